// Package keyring holds the provider keys in memory: which versions exist, how
// requests are shared among them, and when their bytes may be wiped. Readers
// take no lock; the snapshot they read is replaced whole.
package keyring

import (
	"sync"
	"sync/atomic"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
)

// KeyField is the field that holds the key itself, whatever it is called where it is stored.
const KeyField = "api_key"

// Version is one version of a key in memory. Its methods may be called concurrently.
type Version struct {
	id     rotation.ID
	fields map[string]*secret.Value

	// leases counts the leases held; the bit closed says that no new one is given.
	leases  atomic.Uint64
	destroy sync.Once
	wiped   chan struct{}

	served, failed atomic.Uint64
}

const (
	closed = 1 << 63
	count  = closed - 1
)

// NewVersion returns a version that owns fields: neither the map nor its values
// may be changed or destroyed by the caller afterwards. fields[KeyField] is the key.
func NewVersion(id rotation.ID, fields map[string]*secret.Value) *Version {
	return &Version{id: id, fields: fields, wiped: make(chan struct{})}
}

// ID identifies the version.
func (v *Version) ID() rotation.ID { return v.id }

// Number is the version's number in the store.
func (v *Version) Number() int { return v.id.Number }

// Field returns a field's value, or nil if the version has no such field. Once
// the version was wiped the value's Use does nothing and says so.
func (v *Version) Field(name string) *secret.Value { return v.fields[name] }

// Fields returns all fields. The map must not be changed.
func (v *Version) Fields() map[string]*secret.Value { return v.fields }

// Fingerprint is that of the key itself. It survives the wiping.
func (v *Version) Fingerprint() string { return v.fields[KeyField].Fingerprint() }

// Served counts a request that this version answered.
func (v *Version) Served() { v.served.Add(1) }

// Failed counts a request that the provider refused with this version and
// answered otherwise with another one: evidence against this one.
func (v *Version) Failed() { v.failed.Add(1) }

// Counts returns how often Served and Failed were called.
func (v *Version) Counts() (served, failed uint64) { return v.served.Load(), v.failed.Load() }

// Close gives no lease from now on, and wipes the fields when the last one has
// ended. The channel is closed after that. Take the version out of its Key's
// snapshot first. Calling Close again changes nothing.
func (v *Version) Close() <-chan struct{} {
	if v.leases.Or(closed) == 0 {
		v.wipe()
	}
	return v.wiped
}

// Wipe closes the version and wipes its fields now, leases or not: a request
// that holds a lease but did not attach the key yet finds nothing to attach.
func (v *Version) Wipe() {
	v.leases.Or(closed)
	v.wipe()
}

// wipe may be called by a Wipe and by the last lease's end, in any order.
func (v *Version) wipe() {
	v.destroy.Do(func() {
		for _, f := range v.fields {
			f.Destroy()
		}
		close(v.wiped)
	})
}

func (v *Version) acquire() bool {
	for {
		n := v.leases.Load()
		if n&closed != 0 {
			return false
		}
		if v.leases.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (v *Version) release() {
	switch n := v.leases.Add(^uint64(0)); {
	case n == closed: // and it stays so: acquire gives nothing any more
		v.wipe()
	case n&count == count: // below zero
		panic("keyring: a lease was released twice")
	}
}

// Lease keeps a version's bytes from being wiped while a request is under way.
// The zero Lease holds nothing.
type Lease struct{ v *Version }

// Version is the leased version; nil for the zero Lease.
func (l Lease) Version() *Version { return l.v }

// Release ends the lease. Call it exactly once, however often the Lease was
// copied; on the zero Lease it does nothing.
func (l Lease) Release() {
	if l.v != nil {
		l.v.release()
	}
}
