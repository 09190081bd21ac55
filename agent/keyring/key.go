package keyring

import (
	"slices"
	"sync/atomic"

	"github.com/postern-proxy/postern/agent/rotation"
)

// Entry is a usable version and its share of new requests.
type Entry struct {
	Version *Version
	Weight  int // percent; 0: only as the other one of a retry
}

// Key is one provider key: the usable versions as one immutable snapshot. Its
// methods may be called concurrently; Pick, Other and Spare take no lock.
type Key struct {
	name    string
	current atomic.Pointer[snapshot]
}

type snapshot struct {
	entries []Entry
	total   uint64 // of the weights
}

// NewKey returns a key without any version.
func NewKey(name string) *Key {
	k := &Key{name: name}
	k.Install(nil)
	return k
}

// Name is the name given to NewKey.
func (k *Key) Name() string { return k.name }

// Install makes entries the snapshot that following picks read. Versions that
// fall out of it are not closed. A negative weight counts as 0.
func (k *Key) Install(entries []Entry) {
	s := &snapshot{entries: slices.Clone(entries)}
	for i := range s.entries {
		e := &s.entries[i]
		e.Weight = max(e.Weight, 0)
		s.total += uint64(e.Weight)
	}
	k.current.Store(s)
}

// Entries returns the snapshot's entries, in the order that Install was given.
func (k *Key) Entries() []Entry { return slices.Clone(k.current.Load().entries) }

// Pick leases a version by weight. r is random over its whole range. It reports
// false if no version has weight.
func (k *Key) Pick(r uint32) (Lease, bool) {
	return k.lease(func(s *snapshot) *Version { return s.at(r) })
}

// Other leases the heaviest usable version but the one named. It reports false
// if there is none.
func (k *Key) Other(than rotation.ID) (Lease, bool) {
	return k.lease(func(s *snapshot) *Version { return s.other(than) })
}

// Spare reports whether more than one version is usable.
func (k *Key) Spare() bool { return len(k.current.Load().entries) > 1 }

// lease acquires what choose finds. A version that is closed already means that
// a newer snapshot without it stands; where it does not, nothing is given.
func (k *Key) lease(choose func(*snapshot) *Version) (Lease, bool) {
	for s := k.current.Load(); ; {
		v := choose(s)
		if v == nil {
			return Lease{}, false
		}
		if v.acquire() {
			return Lease{v}, true
		}
		newer := k.current.Load()
		if newer == s {
			return Lease{}, false
		}
		s = newer
	}
}

// at maps r to a version in proportion to the weights.
func (s *snapshot) at(r uint32) *Version {
	n := uint64(r) * s.total >> 32 // below total
	for _, e := range s.entries {
		if n < uint64(e.Weight) {
			return e.Version
		}
		n -= uint64(e.Weight)
	}
	return nil
}

func (s *snapshot) other(than rotation.ID) *Version {
	var best Entry
	for _, e := range s.entries {
		if !e.Version.id.Equal(than) && (best.Version == nil || e.Weight > best.Weight) {
			best = e
		}
	}
	return best.Version
}
