package fake

import (
	"net/http"
	"slices"
	"time"
)

// State is what the provider thinks of a key.
type State uint8

const (
	// Revoked: refused everywhere. A key that was never allowed is the same.
	Revoked State = iota
	// Live: everything works.
	Live
	// Forbidden: known, may list models, may do nothing else (403).
	Forbidden
	// Limited: known, but out of quota (429 insufficient_quota) for everything but models.
	Limited
)

// String is revoked, live, forbidden or limited.
func (st State) String() string {
	return [...]string{"revoked", "live", "forbidden", "limited"}[st]
}

// Counts are the requests that carried one key, by what became of them.
type Counts struct {
	Requests     uint64 // all
	OK           uint64 // status below 400, and the key was not refused
	Unauthorized uint64 // the key was refused, with whatever status this provider does that
	Forbidden    uint64 // 403
	Limited      uint64 // 429
}

type keyState struct {
	state   State
	counts  Counts
	used    time.Time // first accepted request that was no probe
	waiting []chan time.Time
}

func (s *Server) set(key string, st State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.keys[key]
	if k == nil {
		k = &keyState{}
		s.keys[key] = k
	}
	k.state = st
}

// Allow makes a key live.
func (s *Server) Allow(key string) { s.set(key, Live) }

// Revoke makes a key refused, from the next request on.
func (s *Server) Revoke(key string) { s.set(key, Revoked) }

// Forbid leaves a key known but useless, except for listing models.
func (s *Server) Forbid(key string) { s.set(key, Forbidden) }

// Limit puts a key out of quota.
func (s *Server) Limit(key string) { s.set(key, Limited) }

// State is a key's state; Revoked for one that was never set.
func (s *Server) State(key string) State {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.keys[key]; k != nil {
		return k.state
	}
	return Revoked
}

// Counts are a key's counters since the Server began; zero for a key that was
// never set.
func (s *Server) Counts(key string) Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.keys[key]; k != nil {
		return k.counts
	}
	return Counts{}
}

// KeysSeen is how many different keys requests were accepted with, probes left out.
func (s *Server) KeysSeen() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, k := range s.keys {
		if !k.used.IsZero() {
			n++
		}
	}
	return n
}

// FirstUse returns a channel that gets, once, the time at which the first
// accepted request with this key came. Requests that merely test a key (a list
// of models, Cohere's check) do not count.
func (s *Server) FirstUse(key string) <-chan time.Time {
	ch := make(chan time.Time, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.keys[key]
	if k == nil {
		k = &keyState{}
		s.keys[key] = k
	}
	if k.used.IsZero() {
		k.waiting = append(k.waiting, ch)
	} else {
		ch <- k.used
	}
	return ch
}

// count books a request; the caller holds mu.
func (s *Server) count(key string, at time.Time, status int, refused, probe bool) {
	k := s.keys[key]
	if k == nil {
		return // made-up keys of whoever must not fill the memory
	}
	k.counts.Requests++
	switch {
	case refused:
		k.counts.Unauthorized++
		return
	case status < http.StatusBadRequest:
		k.counts.OK++
	case status == http.StatusForbidden:
		k.counts.Forbidden++
	case status == http.StatusTooManyRequests:
		k.counts.Limited++
	}
	if status < http.StatusBadRequest && !probe && k.used.IsZero() {
		k.used = at
		for _, ch := range k.waiting {
			ch <- at
		}
		k.waiting = nil
	}
}

// Credential is something that a request carried to identify itself.
type Credential struct {
	In    string // "header Authorization", "query key"
	Value string // as given, with its scheme
}

// Request is what is remembered of one request.
type Request struct {
	Time        time.Time
	Host        string // as the Host field or :authority said
	SNI         string // as the TLS handshake said
	Proto       string // HTTP/1.1, HTTP/2.0
	Method      string
	Path        string // escaped
	Query       string // raw
	Header      http.Header
	Credentials []Credential // every one, duplicates too
	Key         string       // the one that was judged
	Status      int          // of the answer
}

// Requests returns the remembered requests, oldest first, each as soon as its
// answer's status is decided. Headers are shared and must not be changed.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total <= uint64(len(s.ring)) {
		return slices.Clone(s.ring)
	}
	at := int(s.total % uint64(len(s.ring)))
	return slices.Concat(s.ring[at:], s.ring[:at])
}

// Total counts the requests since the Server began.
func (s *Server) Total() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// remember stores one request and books it.
func (s *Server) remember(r Request, refused, probe bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ring) < s.o.Records {
		s.ring = append(s.ring, r)
	} else {
		s.ring[s.total%uint64(len(s.ring))] = r
	}
	s.total++
	s.count(r.Key, r.Time, r.Status, refused, probe)
}
