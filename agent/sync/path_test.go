package sync

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

const vaultPath = "legacy/openai"

func fromPath(o *Options) {
	o.Source = Source{VaultPath: vaultPath, Field: "token"}
	o.Ramp = nil
}

func (r *rig) lay(a pathAnswer) { r.store.set(func() { r.store.paths[vaultPath] = a }) }

func TestAPathWithVersions(t *testing.T) {
	inBubble(t, func(r *rig) {
		one := store.Version{Number: 1, Created: time.Now().UTC()}
		r.lay(pathAnswer{version: one, data: map[string]string{"token": key(1)}})
		a := r.start(fromPath)
		a.shares("1:100")
		pass(time.Minute)
		r.lay(pathAnswer{version: store.Version{Number: 2, Created: time.Now().UTC()}, data: map[string]string{"token": key(2)}})
		pass(5 * time.Second)
		a.shares("2:100 1:0")
		pass(15 * time.Second)
		a.shares("2:100")
		if a.Status().Missing {
			t.Error("missing, because the path shows its newest version only")
		}
		r.store.set(func() { delete(r.store.paths, vaultPath) })
		pass(10 * time.Second)
		if a.shares("2:100"); !a.Status().Missing {
			t.Error("the secret is gone and nothing says so")
		}
	})
}

func TestAPathWithoutVersionsIsToldApartByValue(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.lay(pathAnswer{data: map[string]string{"token": key(1)}})
		a := r.start(fromPath)
		a.shares("1:100")
		if n := r.store.count(vaultPath); n != 1 {
			t.Errorf("%d reads for one version", n)
		}
		values := secret.Stats().Values
		pass(10 * time.Minute) // the same value: the same version, and nothing piles up
		a.shares("1:100")
		if now := secret.Stats().Values; now > values { // what other tests left goes meanwhile
			t.Errorf("%d values grew to %d", values, now)
		}
		r.lay(pathAnswer{data: map[string]string{"token": key(2)}})
		pass(5 * time.Second)
		a.shares("2:100 1:0")
	})
}

func TestARejectedPathIsReadAgain(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.lay(pathAnswer{data: map[string]string{"token": key(1)}})
		r.says(key(1), rotation.VerdictDead)
		a := r.start(fromPath)
		a.shares("")
		r.says(key(1), rotation.VerdictLive)
		pass(time.Minute)
		a.shares("1:100")
	})
}

// A dynamic engine makes a credential at each read, with a lease.
func TestALeaseIsRenewed(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.lay(pathAnswer{data: map[string]string{"token": "dynamic-credential-#"}, lease: &store.Lease{ID: "l1", Duration: time.Hour, Renewable: true}})
		r.store.set(func() { // an answer without an id speaks of the lease it was asked for
			r.store.renew = func(l store.Lease) (store.Lease, error) { l.ID = ""; return l, nil }
		})
		a := r.start(func(o *Options) { fromPath(o); o.MaxStale = 10 * time.Minute })
		pass(39 * time.Minute)
		if n := r.store.count(vaultPath); n != 1 {
			t.Fatalf("%d credentials were made", n)
		}
		pass(10 * time.Hour)
		a.shares("1:100")
		r.store.mu.Lock()
		defer r.store.mu.Unlock()
		if n := len(r.store.renews); n != 15 { // every 40 minutes
			t.Errorf("%d renewals", n)
		}
		if l := r.store.renews[14]; l.ID != "l1" || l.Duration != time.Hour {
			t.Errorf("renewed %+v", l)
		}
		if n := r.store.reads[vaultPath]; n != 1 {
			t.Errorf("%d credentials were made", n)
		}
	})
}

func TestALeaseThatCannotBeExtendedIsReplaced(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.lay(pathAnswer{data: map[string]string{"token": "dynamic-credential-#"}, lease: &store.Lease{ID: "l", Duration: time.Hour, Renewable: true}})
		r.store.set(func() {
			r.store.renew = func(l store.Lease) (store.Lease, error) { // max_ttl: ten minutes are left
				l.Duration = 10 * time.Minute
				return l, nil
			}
		})
		a := r.start(func(o *Options) { fromPath(o); o.Grace = time.Hour })
		old := a.key.Entries()[0].Version
		pass(40 * time.Minute)
		a.shares("2:100 1:0")
		pass(9 * time.Minute)
		a.shares("2:100 1:0")
		pass(time.Minute)
		a.shares("2:100") // its lease is over before its grace
		if slices.Contains(a.journal.told(), "key.expired 1 ok") {
			t.Error("expired, with another version in use")
		}
		if reads(old) {
			t.Error("not wiped")
		}
	})
}

func TestALeaseThatIsOverIsNotUsed(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.lay(pathAnswer{data: map[string]string{"token": "dynamic-credential-#"}, lease: &store.Lease{ID: "l", Duration: time.Hour}})
		a := r.start(fromPath)
		pass(30 * time.Minute)
		r.store.broken("", store.ErrUnavailable)
		pass(30*time.Minute - 1)
		a.shares("1:100")
		pass(1)
		a.shares("")
		r.store.broken("", nil)
		pass(time.Minute)
		a.shares("2:100")
		if n := r.store.count("renew"); n != 0 {
			t.Errorf("a lease that cannot be renewed was to be renewed %d times", n)
		}
	})
}

func TestARevokedLeaseIsReplacedAtOnce(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.lay(pathAnswer{data: map[string]string{"token": "dynamic-credential-#"}, lease: &store.Lease{ID: "l", Duration: time.Hour, Renewable: true}})
		r.store.set(func() {
			r.store.renew = func(l store.Lease) (store.Lease, error) { return store.Lease{}, store.ErrNotFound }
		})
		a := r.start(fromPath)
		pass(40*time.Minute + time.Second)
		a.shares("2:100") // the old one may not be used any more, grace or not
	})
}

func TestAPathNeedsAStoreThatReadsPaths(t *testing.T) {
	inBubble(t, func(r *rig) {
		type plain struct{ store.Store }
		a := r.start(func(o *Options) { fromPath(o); o.Store = plain{r.store} })
		synctest.Wait()
		if reason := a.Status().Reason(); a.Loading() || reason == "" {
			t.Errorf("reason %q", reason)
		}
	})
}

func TestWhatWasFoundAndNotUsedIsWiped(t *testing.T) {
	inBubble(t, func(r *rig) {
		before := secret.Stats().Values
		r.lay(pathAnswer{data: map[string]string{"token": key(1)}})
		s := newPathSource(Options{Store: r.store, Source: Source{VaultPath: vaultPath}})
		if _, err := s.look(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		sec := s.found
		s.close()
		if sec.Fields["token"].Digest() != "" || s.found != nil {
			t.Error("not wiped")
		}
		if now := secret.Stats().Values; now > before {
			t.Errorf("%d values, %d after close", before, now)
		}
		a := r.start(fromPath)
		src := a.src.(*pathSource)
		src.found = &store.Secret{Fields: values(map[string]string{"token": key(2)})}
		a.stop()
		if src.found != nil {
			t.Error("not wiped at the loop's end")
		}
	})
}

func TestAHaltOfAPathStaysWithThisAgent(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.lay(pathAnswer{data: map[string]string{"token": key(1)}})
		a := r.start(func(o *Options) { fromPath(o); o.Grace = time.Hour })
		r.lay(pathAnswer{data: map[string]string{"token": key(2)}})
		pass(5 * time.Second)
		bad := a.key.Entries()[0].Version
		for range 9 {
			bad.Failed()
		}
		pass(time.Minute)
		a.shares("1:100")
		if r.logged("the halt cannot be shared") != 1 {
			t.Error("nobody was told that other agents do not know")
		}
	})
}

func TestALeaseThatMayNotBeRenewedIsReplaced(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.lay(pathAnswer{data: map[string]string{"token": "dynamic-credential-#"}, lease: &store.Lease{ID: "l", Duration: time.Hour, Renewable: true}})
		r.store.broken("renew", store.ErrForbidden)
		a := r.start(fromPath)
		pass(40 * time.Minute)
		a.shares("2:100 1:0")
		r.store.broken("renew", store.ErrUnavailable)
		pass(45 * time.Minute)
		if s := a.Status(); s.Trouble != "unavailable" || !s.Usable {
			t.Errorf("%+v", s)
		}
		a.shares("2:100")
	})
}

func TestPathSourceHandsOutEachSecretOnce(t *testing.T) {
	inBubble(t, func(r *rig) {
		s := newPathSource(Options{Store: r.store, Source: Source{VaultPath: vaultPath}})
		look := func() rotation.ID {
			t.Helper()
			seen, err := s.look(t.Context(), nil)
			if err != nil || len(seen.versions) != 1 {
				t.Fatal(seen, err)
			}
			return seen.versions[0].ID
		}
		r.lay(pathAnswer{data: map[string]string{"token": key(1)}})
		one := look()
		unused := s.found
		r.lay(pathAnswer{data: map[string]string{"token": key(2)}})
		two := look()
		if unused.Fields["token"].Digest() != "" {
			t.Error("a secret that nobody fetched stays in memory")
		}
		if _, err := s.fetch(t.Context(), one); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("an older version: %v", err)
		}
		sec, err := s.fetch(t.Context(), two)
		if err != nil || !sec.Version.Created.Equal(two.Created) || sec.Version.Number != 2 {
			t.Fatal(sec, err)
		}
		again, err := s.fetch(t.Context(), two) // read anew
		if err != nil || again == sec {
			t.Error("the same secret was handed out twice", err)
		}

		r.lay(pathAnswer{data: map[string]string{"token": "dynamic-credential-#"}, lease: &store.Lease{ID: "l", Duration: time.Hour, Renewable: true}})
		three := look()
		if _, err := s.fetch(t.Context(), three); err != nil {
			t.Fatal(err)
		}
		if _, err := s.fetch(t.Context(), three); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("another credential under the same name: %v", err)
		}
		if four := look(); four.Number != 4 || r.store.count("renew") != 0 {
			t.Errorf("the next look finds %v", four)
		}
	})
}

// Some engines lease a credential that stays the same: after its lease was over
// it is a version that was wiped, and is read once more.
func TestTheSameCredentialComesBackWithANewLease(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.lay(pathAnswer{data: map[string]string{"token": "one-credential-for-every-lease"}, lease: &store.Lease{ID: "l", Duration: time.Hour, Renewable: true}})
		a := r.start(fromPath)
		pass(30 * time.Minute)
		r.store.broken("", store.ErrUnavailable)
		pass(30*time.Minute - 1)
		a.shares("1:100")
		pass(1)
		a.shares("")
		r.store.broken("", nil)
		pass(time.Minute)
		a.shares("1:100")
	})
}
