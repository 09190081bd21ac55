package redact

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-proxy/postern/agent/secret"
)

// Redacted is what stands in a log where a secret stood.
const Redacted = secret.Redacted

// The places where a secret can turn up, for Options.OnHit.
const (
	WhereLog      = "log"
	WhereResponse = "response"
	WhereHeader   = "header"
	WhereAudit    = "audit"
	WhereAdmin    = "admin"
)

// Label names the version of a key that a value is.
type Label struct {
	Key     string
	Version int
}

// Options are a Set's settings.
type Options struct {
	// Patterns are regular expressions (RE2) of what keys look like. They are
	// applied to log text only. A pattern whose matches all begin with a literal
	// of three bytes or more costs almost nothing where that is absent; any
	// other is run on every text.
	Patterns []string
	// Now is the clock of Keep; nil is time.Now.
	Now func() time.Time
	// OnHit, if set, is called for every occurrence found, after the bytes were
	// replaced, without a lock held and by the goroutine that brought them; where
	// is the caller's word for the place. The Label is zero for what only a
	// pattern found. It must be quick and limit its own rate.
	OnHit func(l Label, where string)
	// Keep is how long a retired value is still recognised; 0 is 24 hours.
	Keep time.Duration
}

// Set is the values that must not be seen. All its methods may be called
// concurrently; looking for values takes no lock.
type Set struct {
	now      func() time.Time
	onHit    func(Label, string)
	keep     time.Duration
	patterns *patterns
	mac      *secret.MAC
	key      *secret.Value // the filter's multiplier, 8 bytes

	hits atomic.Uint64
	snap atomic.Pointer[snapshot] // nil: nothing is known

	mu      sync.Mutex // guards entries and the making of snapshots
	entries []*Entry

	coming struct { // those that Add has made and no snapshot has
		sync.Mutex
		entries []*Entry
	}
}

// Entry is one value known to a Set.
type Entry struct {
	label   Label
	forms   []form
	bytes   *secret.Value // all forms; destroyed by Retire
	marks   *secret.Value // per form: its words' hashes and its MAC
	retired atomic.Int64  // Unix nanoseconds; 0 while live
	done    bool          // a snapshot has it, or err says why none has; guarded by Set.mu
	err     error
}

// Label is what the value was added under.
func (e *Entry) Label() Label { return e.label }

// A form's marks: eight hashes of 4 bytes, then the first bytes of its MAC.
const (
	words    = 8
	macAt    = words * 4
	macSize  = 16
	markSize = macAt + macSize
)

// New returns an empty Set. The error names the pattern that does not compile,
// or says that no memory could be mapped.
func New(o Options) (*Set, error) {
	s := &Set{now: o.Now, onHit: o.OnHit, keep: o.Keep}
	if s.now == nil {
		s.now = time.Now
	}
	if s.keep <= 0 {
		s.keep = 24 * time.Hour
	}
	var err error
	if s.patterns, err = compilePatterns(o.Patterns); err != nil {
		return nil, err
	}
	if s.mac, err = secret.NewMAC(); err != nil {
		return nil, err
	}
	s.key, err = secret.Make(8, func(b []byte) int {
		_, _ = rand.Read(b)
		b[0] |= 1 // odd, so that no bit of a word is lost
		return 8
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Add makes v known: when it returns, v is found. It keeps what it needs of v,
// which stays the caller's. publicPrefix is the part of v that is no secret
// (as "sk-proj-"); as far as v does not begin with it, it is ignored. Values of
// fewer than MinValue or more than MaxValue bytes are refused. Calls that come
// together share one snapshot, so that a thousand keys do not take a thousand.
func (s *Set) Add(l Label, v *secret.Value, publicPrefix string) (*Entry, error) {
	if n := v.Len(); n < MinValue || n > MaxValue {
		return nil, fmt.Errorf("redact: value of %s version %d: %d bytes; only values of %d to %d bytes can be recognised", l.Key, l.Version, n, MinValue, MaxValue)
	}
	e := &Entry{label: l}
	err := errors.New("it was destroyed before")
	v.Use(func(raw []byte) { err = s.fill(e, raw, commonPrefix(raw, publicPrefix)) })
	if err == nil {
		err = s.enter(e)
	}
	if err != nil {
		e.bytes.Destroy()
		e.marks.Destroy()
		return nil, fmt.Errorf("redact: value of %s version %d: %w", l.Key, l.Version, err)
	}
	return e, nil
}

// enter makes a snapshot with e and all others that wait for one, unless who came
// before has taken e along.
func (s *Set) enter(e *Entry) error {
	s.coming.Lock()
	s.coming.entries = append(s.coming.entries, e)
	s.coming.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.done {
		return e.err
	}
	s.coming.Lock()
	all := s.coming.entries
	s.coming.entries = nil
	s.coming.Unlock()
	s.entries = append(s.entries, all...)
	err := s.rebuild(s.prune())
	if err != nil {
		s.entries = s.entries[:len(s.entries)-len(all)] // they are the last ones still
	}
	for _, e := range all {
		e.done, e.err = true, err
	}
	return err
}

func commonPrefix(raw []byte, prefix string) int {
	n := 0
	for n < len(prefix) && n < len(raw) && raw[n] == prefix[n] {
		n++
	}
	return n
}

// fill computes an entry's forms and marks, all of it in the arena.
func (s *Set) fill(e *Entry, raw []byte, pub int) error {
	used := 0
	scratch, err := secret.Make(formsRoom(raw), func(b []byte) int {
		e.forms, used = encodeForms(b, raw, pub)
		return used
	})
	if err != nil {
		return err
	}
	defer scratch.Destroy()
	if e.bytes, err = scratch.Clone(); err != nil {
		return err
	}
	var macErr error
	e.marks, err = secret.Make(len(e.forms)*markSize, func(m []byte) int {
		s.key.Use(func(key []byte) {
			e.bytes.Use(func(all []byte) {
				for i, f := range e.forms {
					if err := s.mark(m[i*markSize:], all[f.pos:f.pos+f.n], f.off, binary.LittleEndian.Uint64(key)); err != nil {
						macErr = err
					}
				}
			})
		})
		return len(m)
	})
	return errors.Join(err, macErr)
}

func (s *Set) mark(m, b []byte, off int, key uint64) error {
	for j := range words {
		h := hashWord(binary.LittleEndian.Uint64(b[off+j:]), key)
		binary.LittleEndian.PutUint32(m[j*4:], h)
	}
	sum, err := s.mac.Sum(b)
	copy(m[macAt:markSize], sum[:])
	return err
}

// Retire wipes the value's bytes. Its hashes are kept, and found, for Keep from
// now on. Calling it again, or with nil, does nothing.
func (s *Set) Retire(e *Entry) {
	if e == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !e.retired.CompareAndSwap(0, s.now().UnixNano()) {
		return
	}
	e.bytes.Destroy()
	if dropped := s.prune(); len(dropped) > 0 {
		// A failure leaves the former snapshot, which knows more than it must.
		_ = s.rebuild(dropped)
	}
}

// live reports whether the value's bytes are still there.
func (e *Entry) live() bool { return e.retired.Load() == 0 }

// forgotten reports whether a retired value's time is over.
func (s *Set) forgotten(e *Entry) bool {
	at := e.retired.Load()
	return at != 0 && s.now().Sub(time.Unix(0, at)) >= s.keep
}

// prune drops what is forgotten, and retired values that another entry stands
// for, and returns them.
func (s *Set) prune() (dropped []*Entry) {
	kept := s.entries[:0:0]
	latest := make(map[[macSize]byte]*Entry) // by the raw form's MAC
	for _, e := range s.entries {
		latest[e.id()] = later(latest[e.id()], e)
	}
	for _, e := range s.entries {
		if e.live() || !s.forgotten(e) && latest[e.id()] == e {
			kept = append(kept, e)
		} else {
			dropped = append(dropped, e)
		}
	}
	s.entries = kept
	return dropped
}

func (e *Entry) id() (id [macSize]byte) {
	e.marks.Use(func(m []byte) { copy(id[:], m[macAt:markSize]) })
	return id
}

// later is the entry that recognises the value for longer.
func later(a, b *Entry) *Entry {
	if a == nil {
		return b
	}
	at, bt := a.retired.Load(), b.retired.Load()
	if at == 0 || bt != 0 && at > bt {
		return a
	}
	return b
}

// Hits is how many occurrences were replaced so far, patterns included.
func (s *Set) Hits() uint64 { return s.hits.Load() }

// Empty reports whether no value is known, retired ones included.
func (s *Set) Empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.entries {
		if !s.forgotten(e) {
			return false
		}
	}
	return true
}

// report counts finds and tells OnHit.
func (s *Set) report(found []find, where string) {
	if len(found) == 0 {
		return
	}
	s.hits.Add(uint64(len(found)))
	if s.onHit == nil {
		return
	}
	for _, f := range found {
		var l Label
		if f.entry != nil {
			l = f.entry.label
		}
		s.onHit(l, where)
	}
}
