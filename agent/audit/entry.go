package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// EventResumed is the one event this package makes itself: the chain goes on
// after a torn line. Its detail has torn_bytes and torn_sha256, over everything
// between the entry before and the newline that ends the torn line.
const EventResumed = "chain.resumed"

// Event is what a caller wants recorded. Only Event is required. Strings longer
// than their limit are cut and end in "…": an entry is never refused for its size.
type Event struct {
	Event       string            // what: "version.promoted", a constant of the caller; ≤ 512 bytes, as all but Reason
	Actor       string            // who, as the caller knows it; "" where the agent acts by itself
	Source      string            // the address it came from
	Environment string            //
	ProxyID     string            //
	Key         string            // the provider key's name, never its value
	Version     int               // the key's version number; 0 means none
	Outcome     string            // "intent", "ok", "failed", "denied"
	Reason      string            // a sentence; ≤ 2048 bytes
	Detail      map[string]string // at most 16, the first by name; names ≤ 64 bytes, values ≤ 512
}

// Entry is one event in its chain. Its time is UTC in whole microseconds.
type Entry struct {
	Seq  uint64 // from 1, without gaps
	Time time.Time
	Boot string // names the process that wrote it
	Event
	Prev string // the hash of the entry before, or Genesis(Boot)
	Hash string // 64 hex digits
}

// Head is a chain's newest entry. The zero Head is a chain without entries.
type Head struct {
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
}

// String returns SEQ:HASH, what [ParseHead] reads.
func (h Head) String() string { return strconv.FormatUint(h.Seq, 10) + ":" + h.Hash }

// ParseHead reads SEQ:HASH: a number from 1 and 64 hex digits.
func ParseHead(s string) (Head, error) {
	num, hash, ok := strings.Cut(strings.TrimSpace(s), ":")
	seq, err := strconv.ParseUint(num, 10, 64)
	hash = strings.ToLower(hash)
	if raw, herr := hex.DecodeString(hash); !ok || err != nil || seq == 0 || herr != nil || len(raw) != sha256.Size {
		return Head{}, fmt.Errorf("head %q: write SEQ:HASH, a number from 1 and 64 hex digits", clip(s, 100))
	}
	return Head{Seq: seq, Hash: hash}, nil
}

// Genesis is the prev of the first entry of the chain that boot began.
func Genesis(boot string) string { return "postern/audit/v1:" + boot }

// Head returns the entry's own place in its chain.
func (e Entry) Head() Head { return Head{Seq: e.Seq, Hash: e.Hash} }

// Sum computes the hash that the entry should have: of everything but Hash.
func (e Entry) Sum() string {
	b := append(make([]byte, 0, 1024), "postern/audit/v1\x00"...)
	b = append(e.appendBody(b), '}')
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// AppendJSON appends the entry's canonical line, without a newline.
func (e Entry) AppendJSON(b []byte) []byte {
	b = appendField(e.appendBody(b), "hash", e.Hash)
	return append(b, '}')
}

// MarshalJSON returns the canonical line.
func (e Entry) MarshalJSON() ([]byte, error) { return e.AppendJSON(nil), nil }

const (
	timeFormat = "2006-01-02T15:04:05.000000Z"
	lineStart  = `{"v":1,"seq":` // how every entry begins
	maxLine    = 1 << 20         // longer lines are no entries: the limits below keep one under 100 KB

	maxString, maxReason = 512, 2048
	maxDetail, maxName   = 16, 64
)

func (e Entry) appendBody(b []byte) []byte {
	b = strconv.AppendUint(append(b, lineStart...), e.Seq, 10)
	b = append(b, `,"time":"`...)
	b = append(e.Time.UTC().AppendFormat(b, timeFormat), '"')
	b = appendField(b, "boot", e.Boot)
	b = appendField(b, "event", e.Event.Event)
	for _, f := range [...]struct{ name, value string }{
		{"actor", e.Actor}, {"source", e.Source}, {"environment", e.Environment},
		{"proxy_id", e.ProxyID}, {"key", e.Key},
	} {
		b = appendOptional(b, f.name, f.value)
	}
	if e.Version != 0 {
		b = strconv.AppendInt(append(b, `,"version":`...), int64(e.Version), 10)
	}
	b = appendOptional(b, "outcome", e.Outcome)
	b = appendOptional(b, "reason", e.Reason)
	if len(e.Detail) > 0 {
		b = append(b, `,"detail":{`...)
		for i, k := range slices.Sorted(maps.Keys(e.Detail)) {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendString(b, k), ':')
			b = appendString(b, e.Detail[k])
		}
		b = append(b, '}')
	}
	return appendField(b, "prev", e.Prev)
}

func appendOptional(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return appendField(b, name, value)
}

func appendField(b []byte, name, value string) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	return appendString(append(b, '"', ':'), value)
}

// appendString writes a JSON string in its one canonical spelling. The set of
// escaped characters is fixed by the format: it must not follow Unicode's tables.
func appendString(b []byte, s string) []byte {
	const digits = "0123456789abcdef"
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case hidden(r):
			b = append(b, '\\', 'u', digits[r>>12&15], digits[r>>8&15], digits[r>>4&15], digits[r&15])
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}

// hidden: C0 and C1 controls, line and paragraph separators, and the marks that
// turn the direction of text, so that reading a file in a terminal shows what it says.
func hidden(r rune) bool {
	return r < 0x20 || r >= 0x7f && r <= 0x9f || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069
}

var (
	errNotJSON   = errors.New("is not one whole JSON object")
	errForm      = errors.New("is not spelled as an entry is written (edited, or rewritten by a log collector)")
	errNoEntry   = errors.New("is no entry of this format")
	errLongLine  = fmt.Errorf("is longer than %d bytes", maxLine)
	errEventName = errors.New("audit event without a name: set Event.Event")
)

// ParseEntry reads one line, with or without its newline. It wants the canonical
// spelling but does not compare Hash with Sum. With a spelling error the entry
// is returned too, as far as it could be read.
func ParseEntry(line []byte) (Entry, error) {
	if n := len(line); n > 0 && line[n-1] == '\n' {
		line = line[:n-1]
	}
	var w struct {
		V           int               `json:"v"`
		Seq         uint64            `json:"seq"`
		Time        string            `json:"time"`
		Boot        string            `json:"boot"`
		Event       string            `json:"event"`
		Actor       string            `json:"actor"`
		Source      string            `json:"source"`
		Environment string            `json:"environment"`
		ProxyID     string            `json:"proxy_id"`
		Key         string            `json:"key"`
		Version     int               `json:"version"`
		Outcome     string            `json:"outcome"`
		Reason      string            `json:"reason"`
		Detail      map[string]string `json:"detail"`
		Prev        string            `json:"prev"`
		Hash        string            `json:"hash"`
	}
	if !json.Valid(line) {
		return Entry{}, errNotJSON
	}
	if json.Unmarshal(line, &w) != nil {
		return Entry{}, errNoEntry
	}
	at, err := time.Parse(timeFormat, w.Time)
	if err != nil || w.V != 1 || w.Seq == 0 {
		return Entry{}, errNoEntry
	}
	e := Entry{Seq: w.Seq, Time: at, Boot: w.Boot, Prev: w.Prev, Hash: w.Hash, Event: Event{
		Event: w.Event, Actor: w.Actor, Source: w.Source, Environment: w.Environment, ProxyID: w.ProxyID,
		Key: w.Key, Version: w.Version, Outcome: w.Outcome, Reason: w.Reason, Detail: w.Detail,
	}}
	// Comparing with our own spelling settles everything a lenient reader lets
	// pass: repeated, unknown and differently cased names, order, escapes, bad UTF-8.
	if string(e.AppendJSON(make([]byte, 0, len(line)+16))) != string(line) {
		return e, errForm
	}
	return e, nil
}

// clean returns a copy within the format's limits, each string passed through
// scrub first unless that is nil. Cleaning twice changes nothing.
func (e Event) clean(scrub func([]byte) []byte) Event {
	fit := func(s string, limit int) string {
		if scrub != nil && s != "" {
			s = string(scrub([]byte(s)))
		}
		return clip(s, limit)
	}
	for _, s := range []*string{&e.Event, &e.Actor, &e.Source, &e.Environment, &e.ProxyID, &e.Key, &e.Outcome} {
		*s = fit(*s, maxString)
	}
	e.Reason = fit(e.Reason, maxReason)
	if len(e.Detail) == 0 {
		e.Detail = nil
		return e
	}
	kept := make(map[string]string, min(len(e.Detail), maxDetail))
	for _, k := range slices.Sorted(maps.Keys(e.Detail)) {
		if len(kept) == maxDetail {
			break
		}
		kept[fit(k, maxName)] = fit(e.Detail[k], maxString)
	}
	e.Detail = kept
	return e
}

// clip returns s as valid UTF-8 of at most limit bytes.
func clip(s string, limit int) string {
	const mark = "…"
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= limit {
		return s
	}
	n := limit - len(mark)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + mark
}
