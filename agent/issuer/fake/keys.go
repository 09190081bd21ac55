package fake

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
	"time"
)

// Key is a credential that the vendor knows or knew.
type Key struct {
	ID      string // what revokes it; for azure the slot, key1 or key2
	Name    string // as it was asked for
	Value   string
	Created time.Time
	Revoked bool
}

// Keys returns every key, revoked ones too, in the order in which they began.
func (s *Server) Keys() []Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Key(nil), s.keys...)
}

// Live returns the keys that are accepted, in the order in which they began.
func (s *Server) Live() []Key {
	var out []Key
	for _, k := range s.Keys() {
		if !k.Revoked {
			out = append(out, k)
		}
	}
	return out
}

// Find returns the last key that has this id or value.
func (s *Server) Find(idOrValue string) (Key, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.keys) - 1; i >= 0; i-- {
		if k := s.keys[i]; k.ID == idOrValue || k.Value == idOrValue {
			return k, true
		}
	}
	return Key{}, false
}

// Add makes a key known, as if somebody had made it by hand. What is "" of it is
// made up. A live key that has this id already is revoked. The hooks are told.
func (s *Server) Add(k Key) Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.add(k)
}

// add begins a key; the caller holds mu.
func (s *Server) add(k Key) Key {
	if k.ID == "" {
		k.ID = "id_" + random(12)
	}
	if k.Value == "" {
		k.Value = s.vendor.value()
	}
	if k.Created.IsZero() {
		k.Created = time.Now()
	}
	if i := s.find(k.ID); i >= 0 {
		s.end(i)
	}
	s.keys = append(s.keys, k)
	if s.o.OnIssue != nil && !k.Revoked {
		s.o.OnIssue(k.ID, k.Value)
	}
	return k
}

// find is where the live key with an id is, -1 if nowhere; the caller holds mu.
func (s *Server) find(id string) int {
	for i, k := range s.keys {
		if k.ID == id && !k.Revoked {
			return i
		}
	}
	return -1
}

// end revokes a key; the caller holds mu.
func (s *Server) end(i int) {
	s.keys[i].Revoked = true
	if s.o.OnRevoke != nil {
		s.o.OnRevoke(s.keys[i].ID, s.keys[i].Value)
	}
}

// random is n random hex digits.
func random(n int) string {
	b := make([]byte, (n+1)/2)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)[:n]
}

// masked is how vendors repeat a credential in their errors.
func masked(key string) string {
	if len(key) < 12 {
		return strings.Repeat("*", len(key))
	}
	return key[:8] + strings.Repeat("*", len(key)-12) + key[len(key)-4:]
}
