package vault

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/store"
)

// served is a store as the management server has one, with a front that counts,
// and two callers' tokens: one may read, one may not.
func served(t *testing.T, opts Options) (s *Store, f *vaulttest.Front, reader, nobody string) {
	t.Helper()
	v := vaulttest.Start(t, vaulttest.Options{})
	v.KVPut("secret/postern/"+key, map[string]string{"api_key": "the value"})
	auth := appRole(t, v, nil)
	v.Policy("reader", `path "secret/data/postern/*" { capabilities = ["read"] }`)
	v.Policy("nobody", `path "other/*" { capabilities = ["read"] }`)
	f = vaulttest.NewFront(t, v)
	s = open(t, Config{Address: f.URL, Auth: Auth{AppRole: auth}}, opts)
	if err := s.Login(t.Context()); err != nil {
		t.Fatal(err)
	}
	token := func(policy string) string { return v.Token(vaulttest.TokenOptions{Policies: []string{policy}}) }
	return s, f, token("reader"), token("nobody")
}

func TestACallersTokenIsUsedForTheCallerAlone(t *testing.T) {
	s, f, reader, nobody := served(t, quick())
	mustRead(t, s, key, "the value")
	own := f.Requests()[len(f.Requests())-1].Header.Get("X-Vault-Token")

	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			child := s.As(value(t, reader))
			defer child.Close()
			mustRead(t, child, key, "the value")
			if _, err := child.Put(t.Context(), key, fields(t, "api_key", "another"), 1); !errors.Is(err, store.ErrForbidden) {
				t.Errorf("a reader writes: %v", err)
			}
		})
		wg.Go(func() {
			child := s.As(value(t, nobody)).As(value(t, reader)).As(value(t, nobody)) // the last one counts
			defer child.Close()
			if _, err := read(t, child, key); !errors.Is(err, store.ErrForbidden) {
				t.Errorf("nobody reads: %v", err)
			}
		})
	}
	wg.Wait()

	f.Reset()
	child := s.As(value(t, reader))
	defer child.Close()
	mustRead(t, child, key, "the value")
	mustRead(t, child, key, "the value")
	lookups := 0
	for _, r := range f.Requests() {
		if r.Header.Get("X-Vault-Token") != reader {
			t.Errorf("%s %s went out with another token than the caller's (ours: %v)", r.Method, r.Path, r.Header.Get("X-Vault-Token") == own)
		}
		if r.Path == "auth/token/lookup-self" {
			lookups++
		}
	}
	if n := len(f.Requests()); n != 3 || lookups != 1 {
		t.Errorf("a caller's two reads cost %d requests, %d of them lookups; want 3 and 1", n, lookups)
	}
	mustRead(t, s, key, "the value")
	if last := f.Requests()[len(f.Requests())-1]; last.Header.Get("X-Vault-Token") != own {
		t.Error("after a caller came, our own requests carry another token")
	}
}

func TestACallersTokenThatIsNoneIsNotOurTrouble(t *testing.T) {
	registry, book := prometheus.NewRegistry(), &logbook{}
	opts := quick()
	opts.Registerer, opts.Logger = registry, book.logger()
	s, _, _, _ := served(t, opts)
	before, lines := testutil.ToFloat64(s.metrics.expiry), book.count("\n")
	for _, presented := range []string{"hvs.nobody-knows-this-one", ""} {
		child := s.As(value(t, presented))
		_, err := child.Identity(t.Context())
		if !errors.Is(err, store.ErrUnauthenticated) || !strings.Contains(err.Error(), "caller") {
			t.Errorf("%q: %v, want ErrUnauthenticated about the caller's token", presented, err)
		}
		if presented != "" && strings.Contains(err.Error(), presented) {
			t.Errorf("the token is in the error: %v", err)
		}
		child.Close()
	}
	if n := testutil.ToFloat64(s.metrics.logins.WithLabelValues("unauthenticated")); n != 0 {
		t.Errorf("%v failed logins are counted as ours", n)
	}
	if after := testutil.ToFloat64(s.metrics.expiry); after != before || before == 0 {
		t.Errorf("our token's expiry went from %v to %v", before, after)
	}
	if n := book.count("\n"); n != lines {
		t.Errorf("%d log lines about strangers:\n%s", n-lines, book.text.String())
	}
	mustRead(t, s, key, "the value")
}

// A caller's token that is revoked meanwhile is not replaced by ours.
func TestACallersTokenIsNotReplaced(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	v.KVPut("secret/postern/"+key, map[string]string{"api_key": "the value"})
	s := open(t, withToken(t, v.Address, v.RootToken), quick())
	v.Policy("postern", policy)
	token := v.Token(vaulttest.TokenOptions{Policies: []string{"postern"}})
	child := s.As(value(t, token))
	defer child.Close()
	mustRead(t, child, key, "the value")
	v.RevokeToken(token)
	for range 3 {
		if _, err := read(t, child, key); !errors.Is(err, store.ErrUnauthenticated) {
			t.Errorf("a revoked token: %v, want ErrUnauthenticated", err)
		}
	}
	mustRead(t, s, key, "the value")
}

func TestClosingForACallerClosesNothingShared(t *testing.T) {
	s, f, reader, _ := served(t, quick())
	child := s.As(value(t, reader))
	child.Start(t.Context()) // has nothing to do
	mustRead(t, child, key, "the value")
	child.Close()
	if _, err := read(t, child, key); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("after Close: %v, want ErrUnavailable", err)
	}
	mustRead(t, s, key, "the value")

	// Closing the first one ends calls that were made for callers.
	held, let := make(chan struct{}), make(chan struct{})
	f.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/data/") {
			close(held)
			<-let
		}
		return false
	})
	defer close(let)
	second := s.As(value(t, reader))
	defer second.Close()
	ended := make(chan error, 1)
	go func() {
		_, err := second.Get(context.Background(), key, 0)
		ended <- err
	}()
	<-held
	s.Close()
	if err := <-ended; !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "was closed") {
		t.Errorf("a caller's call, the shared store closed: %v", err)
	}
}

func TestIdentityTellsTheDisplayName(t *testing.T) {
	s, f, reader, _ := served(t, quick())
	f.Reset()
	for range 3 {
		who, err := s.Identity(t.Context())
		if err != nil || who.DisplayName != "approle" || who.EntityID == "" || who.Expires.IsZero() || len(who.Policies) == 0 {
			t.Errorf("%+v, %v", who, err)
		}
		who.Policies[0] = "changed"
	}
	if n := f.Count("auth/token/lookup-self"); n != 1 {
		t.Errorf("%d lookups for a name that does not change", n)
	}
	if who, _ := s.Identity(t.Context()); who.Policies[0] == "changed" {
		t.Error("the policies are shared with the caller")
	}
	var known store.Identifier = s.As(value(t, reader))
	who, err := known.Identity(t.Context())
	if err != nil || who.DisplayName != "token" || who.EntityID != "" {
		t.Errorf("a token without an entity: %+v, %v", who, err)
	}
}
