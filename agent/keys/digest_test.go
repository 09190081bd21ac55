package keys

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// as is the operator of another scope of the same store.
func (o *operator) as(environment, px string) *operator {
	m := *o.Manager
	m.Scope = Scope{environment, px}
	return &operator{&m, o.t, o.store, o.trail}
}

// A value lives in one environment. The refusal says whose it is and not what it is.
func TestAKeyOfTwoEnvironments(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	staging := o.as("staging", "px_test")
	_, err := staging.Add(t.Context(), "gpt", o.value(key(1)), Meta{})
	if err == nil || !strings.Contains(err.Error(), "prod/px_acme/openai") || strings.Contains(err.Error(), "sk-test") || strings.Contains(err.Error(), o.value(key(1)).Digest()) {
		t.Errorf("%v", err)
	}
	if err := staging.checkDigest(t.Context(), "gpt", o.value(key(1))); err == nil {
		t.Error("the value may be checked in")
	}
	if err := staging.claimDigest(t.Context(), "gpt", 1, o.value(key(1))); err == nil {
		t.Error("the value may be claimed")
	}
	if infos, err := staging.List(t.Context()); err != nil || len(infos) != 0 {
		t.Errorf("%v, %v", infos, err)
	}
	staging.add("gpt", 2, Meta{})
}

// The same value elsewhere in the environment is a key of its own, with a warning.
func TestAKeyOfTwoScopes(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	other := o.as("prod", "px_other")
	if a := other.add("gpt", 1, Meta{}); len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "version 1 of px_acme/openai") {
		t.Errorf("%q", a.Warnings)
	}
	f, err := o.Identify(t.Context(), o.value(key(1)))
	if err != nil || f.ID != "prod.px_other.gpt" || len(f.Others) != 1 || f.Others[0].ID != "prod.px_acme.openai" || !f.Others[0].Verified {
		t.Errorf("%+v, %v", f, err)
	}
}

// Of environments that store one value at the same time, one wins.
func TestEnvironmentsRaceForAValue(t *testing.T) {
	o := newOperator(t)
	for round := range 20 {
		var won sync.Map
		var wg sync.WaitGroup
		for _, env := range []string{"prod", "staging", "dev"} {
			for _, px := range []string{"px_a", "px_b"} {
				m := o.as(env, px)
				v := o.value(key(round))
				wg.Go(func() {
					if err := m.claimDigest(t.Context(), "openai", 1, v); err == nil {
						won.Store(env, true)
					}
				})
			}
		}
		wg.Wait()
		winners := 0
		won.Range(func(any, any) bool { winners++; return true })
		if winners != 1 {
			t.Fatalf("%d environments have the value", winners)
		}
		if found, _, err := o.claims(t.Context(), o.value(key(round)).Digest()); err != nil || len(found) != 2 || found[0].Environment != found[1].Environment {
			t.Errorf("%+v, %v", found, err)
		}
	}
}

func TestARevokedValueIsNotStoredAgain(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	for _, state := range []rotation.State{rotation.Compromised, rotation.Rejected} {
		o.writes("openai", rotation.Record{Closed: true, Versions: []rotation.VersionRecord{{ID: o.id("openai", 1), State: state}}})
		for _, m := range []*operator{o, o.as("prod", "px_other")} {
			_, err := m.Add(t.Context(), "openai", o.value(key(1)), Meta{})
			if err == nil || !strings.Contains(err.Error(), "version 1 of px_acme/openai") || !strings.Contains(err.Error(), state.String()) {
				t.Errorf("%v", err)
			}
		}
	}
	// What cannot be looked at refuses nothing.
	o.store.read = func(_, path string) error {
		if path == "rotations/prod/px_acme/openai" {
			return fmt.Errorf("%s: %w", path, store.ErrForbidden)
		}
		return nil
	}
	o.as("prod", "px_other").add("openai", 1, Meta{})
}

// Without a look at the digests nothing can be granted.
func TestDigestsThatCannotBeRead(t *testing.T) {
	o := newOperator(t)
	o.store.read = func(_, path string) error {
		if strings.HasPrefix(path, "digests/") {
			return fmt.Errorf("%s: %w", path, store.ErrForbidden)
		}
		return nil
	}
	if _, err := o.Add(t.Context(), "openai", o.value(key(1)), Meta{}); !errors.Is(err, store.ErrForbidden) || len(o.trail.told()) != 0 {
		t.Errorf("%v", err)
	}
	o.store.read = nil
	path := claimPath(o.value(key(1)).Digest(), 1)
	if _, err := store.PutText(t.Context(), o.store, path, map[string][]byte{"environment": []byte("prod")}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Add(t.Context(), "openai", o.value(key(1)), Meta{}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("an entry that makes no sense: %v", err)
	}
}

// Vault says 403 where somebody else created the entry first, to those who may only create.
func TestAClaimThatAnswersForbidden(t *testing.T) {
	o := newOperator(t)
	v := o.value(key(1))
	raced := false
	o.store.before = func(method string) error {
		if method != "digests" || raced {
			return nil
		}
		raced = true
		if err := o.as("prod", "px_other").claimDigest(t.Context(), "openai", 1, v); err != nil {
			t.Error(err)
		}
		return fmt.Errorf("digests: %w", store.ErrForbidden)
	}
	if err := o.claimDigest(t.Context(), "openai", 1, v); err != nil {
		t.Error(err)
	}
	if found, _, err := o.claims(t.Context(), v.Digest()); err != nil || len(found) != 2 {
		t.Errorf("%+v, %v", found, err)
	}
	o.store.before = func(string) error { return fmt.Errorf("digests: %w", store.ErrForbidden) }
	if err := o.claimDigest(t.Context(), "openai", 2, v); !errors.Is(err, store.ErrForbidden) {
		t.Errorf("no right to create: %v", err)
	}
}

func TestAClaimThatIsThereAlready(t *testing.T) {
	o := newOperator(t)
	v := o.value(key(1))
	for range 3 {
		if err := o.claimDigest(t.Context(), "openai", 1, v); err != nil {
			t.Fatal(err)
		}
	}
	if found, _, err := o.claims(t.Context(), v.Digest()); err != nil || len(found) != 1 {
		t.Errorf("%+v, %v", found, err)
	}
	// One that was deleted by hand leaves a slot that nobody can create again.
	if err := o.store.Destroy(t.Context(), claimPath(v.Digest(), 1), 1); err != nil {
		t.Fatal(err)
	}
	if err := o.claimDigest(t.Context(), "openai", 1, v); err != nil {
		t.Fatal(err)
	}
	if found, _, err := o.claims(t.Context(), v.Digest()); err != nil || len(found) != 1 || found[0].ID != "prod.px_acme.openai" {
		t.Errorf("%+v, %v", found, err)
	}
	gone := o.value(key(2))
	gone.Destroy()
	if err := o.claimDigest(t.Context(), "openai", 1, gone); err == nil {
		t.Error("nothing was claimed")
	}
}

func TestIdentify(t *testing.T) {
	o := newOperator(t)
	if _, err := o.Identify(t.Context(), o.value(key(9))); !errors.Is(err, store.ErrNotFound) || strings.Contains(err.Error(), "sk-") {
		t.Errorf("%v", err)
	}
	// Claimed, and then somebody else's value became that version.
	if err := o.claimDigest(t.Context(), "openai", 1, o.value(key(1))); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Identify(t.Context(), o.value(key(1))); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("what was never written: %v", err)
	}
	o.add("openai", 2, Meta{})
	if _, err := o.Identify(t.Context(), o.value(key(1))); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("another value of that number: %v", err)
	}
	o.add("openai", 1, Meta{})
	f, err := o.Identify(t.Context(), o.value(key(1)))
	if want := (Found{ID: "prod.px_acme.openai", Name: "openai", Environment: "prod", ProxyID: "px_acme", Version: 2, Readable: true, Verified: true}); err != nil || fmt.Sprint(f) != fmt.Sprint(want) {
		t.Errorf("%+v, %v", f, err)
	}
	// Who may not read takes the newest claim, and the others beside it.
	o.store.read = func(method, path string) error {
		if method == "get" && strings.HasPrefix(path, "provider-keys/") {
			return fmt.Errorf("%s: %w", path, store.ErrForbidden)
		}
		return nil
	}
	f, err = o.Identify(t.Context(), o.value(key(1)))
	if err != nil || f.Version != 2 || f.Verified || !f.Readable || len(f.Others) != 1 || f.Others[0].Version != 1 {
		t.Errorf("%+v, %v", f, err)
	}
	o.store.read = nil
	if err := o.store.Destroy(t.Context(), o.Scope.Path("openai"), 2); err != nil {
		t.Fatal(err)
	}
	if f, err = o.Identify(t.Context(), o.value(key(1))); err != nil || f.Version != 2 || f.Readable {
		t.Errorf("what was destroyed is known still: %+v, %v", f, err)
	}
	if err := o.store.Remove(t.Context(), o.Scope.Path("openai")); err != nil {
		t.Fatal(err)
	}
	if _, err = o.Identify(t.Context(), o.value(key(1))); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a key that was removed: %v", err)
	}
	// What an Add that was cut off was about to write is nothing yet; of what was, the readable one counts most.
	o.add("gpt", 5, Meta{})
	if err := o.claimDigest(t.Context(), "gpt", 2, o.value(key(6))); err != nil {
		t.Fatal(err)
	}
	if _, err = o.Identify(t.Context(), o.value(key(6))); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a version that is not there: %v", err)
	}
	o.as("prod", "px_other").add("gpt", 5, Meta{})
	if err := o.store.Destroy(t.Context(), "provider-keys/prod/px_other/gpt", 1); err != nil {
		t.Fatal(err)
	}
	if f, err = o.Identify(t.Context(), o.value(key(5))); err != nil || f.ProxyID != "px_acme" || !f.Verified || len(f.Others) != 1 || f.Others[0].Readable {
		t.Errorf("%+v, %v", f, err)
	}
	var nothing *secret.Value
	if _, err := o.Identify(t.Context(), nothing); err == nil {
		t.Error("no value is a key")
	}
}
