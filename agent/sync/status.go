package sync

import (
	"fmt"
	"strings"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/rotation"
)

// Status is a key as it is now. It holds no secret.
type Status struct {
	Name     string          `json:"name"`
	Usable   bool            `json:"usable"`
	Versions []VersionStatus `json:"versions"` // newest first; only those that something was done with
	// Open says that a rotation is under way.
	Open bool `json:"rotation_open"`
	// Rotation is the one that the store's record describes until it is closed,
	// or, without a record, the one under way.
	Rotation *RotationStatus `json:"rotation,omitempty"`
	// Missing says that the store has nothing of the key, or not what serves any more.
	Missing     bool      `json:"missing"`
	LastContact time.Time `json:"last_contact,omitzero"` // the last complete look into the store
	Stale       float64   `json:"stale_seconds"`         // since then; 0 before the first
	// Trouble is why the store cannot be looked into, or a version not loaded, in one word, and Error the sentence.
	Trouble string `json:"trouble,omitempty"`
	Error   string `json:"error,omitempty"`
	// Unrecorded is how many audit entries wait to be written.
	Unrecorded int `json:"unrecorded,omitempty"`

	busy   bool
	looked bool
}

// RotationStatus is how far a rotation is, as this agent sees it.
type RotationStatus struct {
	From   int    `json:"from"`            // the old version's number; 0 if there is none
	To     int    `json:"to"`              // the new one's; 0 while it is only wished for
	Weight int    `json:"weight"`          // percent of new requests that take the new one now
	Phase  string `json:"phase,omitempty"` // as the record says; "" without one
}

// VersionStatus is one version of a key.
type VersionStatus struct {
	Number      int       `json:"version"`
	State       string    `json:"state"`
	Weight      int       `json:"weight"` // percent of new requests
	Fingerprint string    `json:"fingerprint,omitempty"`
	Created     time.Time `json:"created"`
	Age         float64   `json:"age_seconds"`
	Reason      string    `json:"reason,omitempty"` // why it was rejected
}

// trouble is an error as it is shown.
type trouble struct{ Kind, Text string }

// publish makes the loop's state visible.
func (l *Loop) publish() {
	now := l.now()
	s := Status{
		Name: l.o.Name, Usable: l.k.Usable(), Open: l.k.Open(now), Missing: l.k.Flagged, LastContact: l.lastContact,
		Unrecorded: len(l.records.queue), busy: l.k.Busy(), looked: l.looked,
	}
	if !s.busy {
		l.unloaded = trouble{} // loaded at last, or given up: then the version says why
	}
	for _, t := range []trouble{l.unloaded, l.trouble} {
		if t.Kind != "" {
			s.Trouble, s.Error = t.Kind, t.Text
		}
	}
	if l.stopped {
		s.Usable, s.busy = false, false
	}
	weights := l.k.Weights(now)
	for _, v := range l.k.Versions {
		if v.State == rotation.Unknown {
			continue
		}
		vs := VersionStatus{Number: v.Number, State: v.State.String(), Created: v.Created, Reason: l.why[v.Number]}
		if h := l.find(v.ID); h != nil {
			vs.Fingerprint = h.v.Fingerprint()
		}
		for _, w := range weights {
			if w.ID.Equal(v.ID) {
				vs.Weight = w.Weight
			}
		}
		s.Versions = append(s.Versions, vs)
	}
	s.Rotation = l.rotation(weights)
	if l.looked {
		l.report.say(l.ack())
	}
	l.mu.Lock()
	was := l.status.Usable
	l.status = s
	l.mu.Unlock()
	if s.Usable && !was {
		l.record(audit.Event{Event: EventLoaded, Version: l.k.To.Number})
		shut(l.loaded)
	}
	if s.Usable || s.hopeless() {
		shut(l.settled)
	}
}

// rotation describes the open rotation; nil if there is none.
func (l *Loop) rotation(weights []rotation.Share) *RotationStatus {
	var to rotation.ID
	var s *RotationStatus
	switch r := l.k.Record; {
	case r != nil && !r.Closed && (r.Phase != rotation.PhaseNone || !r.To.Zero()):
		to = l.incoming()
		s = &RotationStatus{From: r.From.Number, To: to.Number, Phase: string(r.Phase)}
	case !l.k.From.Zero():
		to = l.k.To
		s = &RotationStatus{From: l.k.From.Number, To: to.Number}
	default:
		return nil
	}
	for _, w := range weights {
		if w.ID.Equal(to) {
			s.Weight = w.Weight
		}
	}
	return s
}

func shut(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

// Status describes the key as it is now.
func (l *Loop) Status() Status {
	l.mu.Lock()
	s := l.status
	l.mu.Unlock()
	now := l.now()
	s.Versions = append([]VersionStatus{}, s.Versions...) // in JSON a list, not null
	for i := range s.Versions {
		s.Versions[i].Age = now.Sub(s.Versions[i].Created).Seconds()
	}
	if !s.LastContact.IsZero() {
		s.Stale = time.Since(s.LastContact).Seconds()
	}
	return s
}

// Loading reports whether a version may become usable by waiting alone.
func (l *Loop) Loading() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.status.Usable && !l.status.hopeless()
}

// hopeless reports, of a key of which nothing is usable, whether somebody has to do something about it.
func (s Status) hopeless() bool {
	if s.Trouble != "" {
		return s.Trouble != kindUnavailable
	}
	return s.looked && !s.busy
}

// Reason says in a sentence why no version is usable; "" if one is.
func (s Status) Reason() string {
	if s.Usable {
		return ""
	}
	if s.Error != "" {
		return s.Error
	}
	var rejected []string
	for _, v := range s.Versions {
		switch {
		case v.Reason != "":
			rejected = append(rejected, fmt.Sprintf("version %d was rejected: %s", v.Number, v.Reason))
		case v.State == rotation.Compromised.String():
			rejected = append(rejected, fmt.Sprintf("version %d was revoked", v.Number))
		}
	}
	switch {
	case s.busy:
		return "it is being loaded and checked"
	case len(rejected) > 0:
		return strings.Join(rejected, "; ")
	case s.Missing:
		return "no version of it is stored"
	case !s.looked:
		return "the store has not answered yet"
	default:
		return "no version of it is usable"
	}
}
