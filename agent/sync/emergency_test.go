package sync

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/keyring"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

// id is a stored version's identity.
func (r *rig) id(number int) rotation.ID {
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	return rotation.ID{Number: number, Created: r.store.kv[keyPath].versions[number-1].Created}
}

// revoke writes a record in which versions are revoked.
func (r *rig) revoke(rec rotation.Record, ids ...rotation.ID) {
	for _, id := range ids {
		rec.Version(id).State = rotation.Compromised
	}
	r.store.writeRecord(record, rec)
}

// leases holds a request on both versions of a ramp.
func (a *agent) leases() (newer, older keyring.Lease) {
	a.t.Helper()
	newer, ok := a.key.Pick(0)
	older, also := a.key.Pick(math.MaxUint32)
	if !ok || !also || newer.Version() == older.Version() {
		a.t.Fatal("there are not two versions")
	}
	return newer, older
}

// ramping is a rotation that a record describes, half way.
func (r *rig) ramping(change func(*Options)) (*agent, rotation.Record) {
	r.t.Helper()
	r.store.write(keyPath, key(1))
	a := r.start(change)
	r.store.write(keyPath, key(2))
	rec := rotation.Record{From: r.id(1), To: r.id(2), Phase: rotation.PhaseMigrate, StartedAt: time.Now(), Ramp: rotation.Ramp{{Weight: 50, For: time.Hour}}, Grace: time.Minute}
	r.store.writeRecord(record, rec)
	pass(5 * time.Second)
	a.shares("2:50 1:50")
	a.journal.told()
	return a, rec
}

// I12, I15: whatever else goes on, a revoked version is wiped at the next look,
// under the requests that carry it, and without waiting for the record of it.
func TestARevocationDuringARotation(t *testing.T) {
	for _, c := range []struct {
		what    string
		revoked []int
		left    string
		records []string
	}{
		{"the new version", []int{2}, "1:100", []string{"version.revoked 2 ok", "version.rolled_back 1 ok"}},
		{"the old version", []int{1}, "2:100", []string{"version.revoked 1 ok"}},
		{"both", []int{1, 2}, "", []string{"version.revoked 1 ok", "version.revoked 2 ok"}},
	} {
		for _, recorded := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, recorded %v", c.what, recorded), func(t *testing.T) {
				inBubble(t, func(r *rig) {
					a, rec := r.ramping(nil)
					newer, older := a.leases()
					defer newer.Release()
					defer older.Release()
					if !recorded {
						a.journal.broken(errors.New("disk full"))
					}
					var ids []rotation.ID
					for _, n := range c.revoked {
						ids = append(ids, r.id(n))
					}
					r.revoke(rec, ids...)
					pass(time.Second) // a rotation is open: that is the next look
					a.shares(c.left)
					for n, l := range map[int]keyring.Lease{2: newer, 1: older} {
						if want := strings.Contains(c.left, fmt.Sprint(n, ":")); reads(l.Version()) != want {
							t.Errorf("version %d is in memory: %v", n, !want)
						}
					}
					if c.left == "" && (a.Loading() || !strings.Contains(a.Status().Reason(), "revoked")) {
						t.Errorf("reason %q", a.Status().Reason())
					}
					if !recorded {
						a.recorded()
						a.journal.broken(nil)
						pass(time.Minute)
					}
					told := strings.Join(a.journal.told(), ",")
					for _, want := range c.records {
						if !strings.Contains(told, want) {
							t.Errorf("%q is not recorded: %s", want, told)
						}
					}
				})
			})
		}
	}
}

func TestTheHeldVersionIsRevoked(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		a := r.start(nil)
		rec := rotation.Record{From: r.id(1), To: rotation.ID{Number: 2}, Phase: rotation.PhaseGenerate}
		r.store.writeRecord(record, rec)
		r.store.write(keyPath, key(2))
		pass(5 * time.Second)
		rec.To = r.id(2)
		r.revoke(rec, rec.To)
		pass(time.Second)
		rec.StartedAt = time.Now()
		r.revoke(rec, rec.To)
		pass(time.Hour)
		a.shares("1:100")
		if n := r.logged("version wiped"); n != 1 {
			t.Errorf("%d versions were wiped", n)
		}
	})
}

// The version in use is revoked while the next one is held back: it takes over at once.
func TestTheVersionInUseIsRevokedWhileTheNextIsHeld(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		a := r.start(nil)
		r.store.write(keyPath, key(2))
		rec := rotation.Record{From: r.id(1), To: r.id(2), Phase: rotation.PhaseValidate}
		r.store.writeRecord(record, rec)
		pass(5 * time.Second)
		a.shares("1:100")
		r.revoke(rec, rec.From)
		pass(time.Second)
		a.shares("2:100")
	})
}

func TestANewerVersionComesInAfterARevocation(t *testing.T) {
	inBubble(t, func(r *rig) {
		slow := func(o *Options) { o.Ramp = rotation.Ramp{{Weight: 1, For: time.Hour}}; o.Grace = time.Hour }
		a, rec := r.ramping(slow)
		r.revoke(rec, r.id(1), r.id(2))
		pass(time.Second)
		a.shares("")
		pass(time.Hour)
		r.store.write(keyPath, key(3))
		pass(5 * time.Second)
		a.shares("3:100")
		late := r.start(slow) // and whoever starts now never loads the others
		late.shares("3:100")
		pass(2 * time.Hour)
		late.shares("3:100")
		if n := len(late.held); n != 1 {
			t.Errorf("%d versions are in memory", n)
		}
	})
}

// A number alone is no identity: a version of the same number, written after the path was deleted, is another one.
func TestARevokedNumberIsWrittenAnew(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		a := r.start(nil)
		r.revoke(rotation.Record{}, r.id(1))
		pass(5 * time.Second)
		a.shares("")
		r.store.set(func() { delete(r.store.kv, keyPath) })
		pass(time.Minute)
		r.store.write(keyPath, key(2))
		pass(5 * time.Second)
		a.shares("1:100")
	})
}

// Whoever revokes may close the door behind them: what the record says counts
// although the key's own path, or a halt, cannot be read.
func TestARevocationIsSeenWhereTheKeyCannotBeRead(t *testing.T) {
	for what, spoil := range map[string]func(r *rig){
		"forbidden": func(r *rig) { r.store.broken(keyPath, store.ErrForbidden) },
		"environment": func(r *rig) {
			r.store.set(func() { r.store.kv[keyPath].custom = map[string]string{"environment": "staging"} })
		},
		"a halt": func(r *rig) { r.store.broken(halt2, store.ErrUnavailable) },
	} {
		t.Run(what, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				a, rec := r.ramping(nil)
				newer, older := a.leases()
				defer newer.Release()
				defer older.Release()
				spoil(r)
				pass(2 * time.Second)
				a.shares("2:50 1:50")
				r.revoke(rec, r.id(1), r.id(2))
				pass(5 * time.Second)
				a.shares("")
				if reads(newer.Version()) || reads(older.Version()) {
					t.Error("a revoked version is in memory")
				}
			})
		})
	}
}

// A version that is on its way when it is revoked never arrives.
func TestAVersionIsRevokedWhileItIsLoaded(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		a := r.start(func(o *Options) { o.Poll = time.Second })
		pass(500 * time.Millisecond)
		r.store.set(func() { r.store.slow = 3 * time.Second })
		r.store.write(keyPath, key(2))
		pass(time.Second)
		r.revoke(rotation.Record{}, r.id(2))
		pass(10 * time.Second)
		a.shares("1:100")
		if n := r.logged("version wiped"); n != 1 {
			t.Errorf("%d versions were wiped", n)
		}
	})
}

// A record that was deleted by hand is none; what it revoked stays out.
func TestTheRecordIsDeleted(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		a := r.start(nil)
		r.store.write(keyPath, key(2))
		rec := rotation.Record{From: r.id(1), To: r.id(2), Phase: rotation.PhaseValidate}
		r.store.writeRecord(record, rec)
		pass(10 * time.Second)
		a.shares("1:100") // held
		r.store.write(keyPath, key(3))
		r.store.set(func() { r.store.kv[record].versions[0].Deleted = time.Now() })
		pass(5 * time.Second)
		a.shares("3:100 1:0") // nothing holds it any more
		r.revoke(rec, r.id(3))
		pass(time.Second)
		a.shares("1:100")
		r.store.set(func() { r.store.kv[record].versions[1].Deleted = time.Now() })
		pass(time.Hour)
		a.shares("2:100")
	})
}
