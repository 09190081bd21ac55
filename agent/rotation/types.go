// Package rotation is the life of a key's versions as pure functions: no
// clock, no store, no network. sync feeds it what it saw and does what it says.
package rotation

import (
	"fmt"
	"time"
)

// ID identifies a version: numbers alone repeat after a metadata delete.
type ID struct {
	Number  int       `json:"number"`
	Created time.Time `json:"created"` // UTC
}

// Equal reports whether a and b identify the same version. (== would also
// compare the times' locations.)
func (a ID) Equal(b ID) bool { return a.Number == b.Number && a.Created.Equal(b.Created) }

// Zero reports whether the ID identifies no version.
func (a ID) Zero() bool { return a.Number == 0 && a.Created.IsZero() }

// State is a version's state, after NIST SP 800-57 part 1.
type State uint8

const (
	Unknown     State = iota
	Pending           // known, weight 0, being probed
	Active            // takes its share of new requests
	Draining          // weight 0, but usable until grace ends
	Retired           // no longer usable; wiped when its last lease ends
	Rejected          // the probe, or the evidence of a halt, said it does not work
	Compromised       // revoked in an emergency: never usable again
)

var stateNames = [...]string{"unknown", "pending", "active", "draining", "retired", "rejected", "compromised"}

// String is the state's name in lower case, as records, logs and metrics write it.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// MarshalText gives String.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what String wrote and refuses everything else.
func (s *State) UnmarshalText(b []byte) error {
	for i, name := range stateNames {
		if name == string(b) {
			*s = State(i)
			return nil
		}
	}
	return fmt.Errorf("%q is no version state", b)
}

// Usable reports whether a request may carry a version in this state.
func (s State) Usable() bool { return s == Active || s == Draining }

// Verdict is what a probe found.
type Verdict uint8

const (
	VerdictUnknown Verdict = iota // no answer, or one that says nothing about the key
	VerdictLive
	VerdictDead
)

// String is the verdict's name in lower case.
func (v Verdict) String() string {
	switch v {
	case VerdictLive:
		return "live"
	case VerdictDead:
		return "dead"
	default:
		return "unknown"
	}
}
