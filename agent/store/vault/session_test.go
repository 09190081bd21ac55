package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/store"
)

// setUp starts a server with one key, a front that counts, and a role.
func setUp(t *testing.T, settings map[string]any) (*vaulttest.Vault, *vaulttest.Front, Config) {
	t.Helper()
	v := vaulttest.Start(t, vaulttest.Options{})
	v.KVPut("secret/postern/"+key, map[string]string{"api_key": "the value"})
	role := appRole(t, v, settings)
	front := vaulttest.NewFront(t, v)
	return v, front, Config{Address: front.URL, Auth: Auth{AppRole: role}}
}

const (
	pathLogin = "auth/approle/login"
	pathRenew = "auth/token/renew-self"
)

func TestARevokedTokenMeansOneLogin(t *testing.T) {
	v, front, cfg := setUp(t, nil)
	s := open(t, cfg, quick())
	mustRead(t, s, key, "the value")
	v.RevokeLogins("approle/login")
	front.Reset()
	eventually(t, "the gate to open", func() bool { return !time.Now().Before(s.gateOpens()) })

	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { mustRead(t, s, key, "the value") })
	}
	wg.Wait()
	if n := front.Count(pathLogin); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
}

func TestATokenThatWasRenewedMeanwhileIsReplacedToo(t *testing.T) {
	v, front, cfg := setUp(t, map[string]any{"token_ttl": "1h"})
	s := open(t, cfg, quick())
	mustRead(t, s, key, "the value")
	eventually(t, "the gate to open", func() bool { return !time.Now().Before(s.gateOpens()) })
	v.RevokeLogins("approle/login")
	front.Reset()
	front.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
		if old := s.session.Load(); old != nil && !old.renewed { // a renewal ends while the read is under way
			renewed := *old
			renewed.renewed = true
			s.session.Store(&renewed)
		}
		return false
	})
	mustRead(t, s, key, "the value")
	if n := front.Count(pathLogin); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
}

func TestATokenThatIsAlwaysRefusedDoesNotMakeAStormOfLogins(t *testing.T) {
	_, front, cfg := setUp(t, nil)
	front.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/login") {
			return false
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(403)
		fmt.Fprint(w, `{"errors":["2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"]}`)
		return true
	})
	opts := quick()
	opts.BackoffMin, opts.BackoffMax = time.Minute, time.Hour
	s := open(t, cfg, opts)
	for range 50 {
		if _, err := read(t, s, key); !errors.Is(err, store.ErrUnauthenticated) {
			t.Fatalf("error %v, want ErrUnauthenticated", err)
		}
	}
	if n := front.Count(pathLogin); n != 1 {
		t.Errorf("%d logins for 50 reads within one back-off period, want 1", n)
	}
}

func TestAWrongRoleIsOneErrorAndNoStorm(t *testing.T) {
	_, front, cfg := setUp(t, nil)
	cfg.Auth.AppRole.RoleID = "typo"
	log := &logbook{}
	opts := quick()
	opts.Logger = log.logger()
	opts.BackoffMin, opts.BackoffMax = 50*time.Millisecond, 200*time.Millisecond
	s := open(t, cfg, opts)
	s.Start(t.Context())
	start := time.Now()
	eventually(t, "several attempts", func() bool {
		if _, err := read(t, s, key); !errors.Is(err, store.ErrUnauthenticated) {
			t.Fatalf("error %v, want ErrUnauthenticated", err)
		}
		return front.Count(pathLogin) >= 4
	})
	// Back-offs of at least 25, 50 and 100 ms lie between four logins.
	if took := time.Since(start); took < 175*time.Millisecond {
		t.Errorf("four logins within %v", took)
	}
	if n := log.count("level=ERROR"); n != 1 {
		t.Errorf("the same reason was logged %d times", n)
	}
}

func TestADeniedReadIsNoReasonToLogIn(t *testing.T) {
	v, front, cfg := setUp(t, nil)
	s := open(t, cfg, quick())
	mustRead(t, s, key, "the value")
	v.Policy("postern", strings.Replace(policy, `secret/data/postern/*`, `secret/data/elsewhere/*`, 1))
	front.Reset()
	for range 5 {
		_, err := read(t, s, key)
		if !errors.Is(err, store.ErrForbidden) || !strings.Contains(err.Error(), "read on secret/data/postern/"+key) {
			t.Errorf("error %v, want ErrForbidden and the path with the capability", err)
		}
	}
	if n := front.Count("auth/"); n != 0 {
		t.Errorf("%d logins for denied reads", n)
	}
}

// readAll reads without a pause until stop is called, which returns the first error.
func readSteadily(t *testing.T, s *Store) (stop func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		for {
			got, err := s.Get(ctx, key, 0)
			if ctx.Err() != nil {
				done <- nil
				return
			}
			if err != nil {
				done <- err
				return
			}
			got.Destroy()
		}
	}()
	return func() error {
		cancel()
		return <-done
	}
}

func TestTokensOutliveTheirTTL(t *testing.T) {
	for name, c := range map[string]struct {
		role map[string]any
		// enough says when the test has seen what it waits for.
		enough func(logins, renewals int) bool
		verify func(t *testing.T, logins, renewals int)
	}{
		"renewed before it ends": {
			map[string]any{"token_ttl": "2s", "token_max_ttl": "1h"},
			func(_, renewals int) bool { return renewals >= 3 },
			func(t *testing.T, logins, _ int) {
				if logins != 1 {
					t.Errorf("%d logins, want 1", logins)
				}
			},
		},
		"replaced before its longest time ends": {
			map[string]any{"token_ttl": "2s", "token_max_ttl": "3s"},
			func(logins, renewals int) bool { return logins >= 3 && renewals >= 2 },
			func(t *testing.T, logins, renewals int) {
				if logins > renewals+2 {
					t.Errorf("%d logins but only %d renewals", logins, renewals)
				}
			},
		},
		"replaced where it is a batch token": {
			map[string]any{"token_type": "batch", "token_ttl": "2s"},
			func(logins, _ int) bool { return logins >= 3 },
			func(t *testing.T, _, renewals int) {
				if renewals != 0 {
					t.Errorf("%d attempts to renew a batch token", renewals)
				}
			},
		},
		"replaced where it may not renew itself": {
			map[string]any{"token_ttl": "2s", "token_no_default_policy": true},
			func(logins, _ int) bool { return logins >= 3 },
			func(*testing.T, int, int) {},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, front, cfg := setUp(t, c.role)
			log := &logbook{}
			opts := quick()
			opts.Logger = log.logger()
			s := open(t, cfg, opts)
			s.Start(t.Context())
			stop := readSteadily(t, s)
			eventually(t, "renewals and logins", func() bool {
				return c.enough(front.Count(pathLogin), front.Count(pathRenew))
			})
			if err := stop(); err != nil {
				t.Errorf("a read failed: %v", err)
			}
			if log.count("does not know our token") != 0 {
				t.Error("a token was used after its end")
			}
			c.verify(t, front.Count(pathLogin), front.Count(pathRenew))
		})
	}
}

func TestAFileTokenIsRenewedAndReplaced(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	v.KVPut("secret/postern/"+key, map[string]string{"api_key": "the value"})
	v.Policy("postern", policy)
	front := vaulttest.NewFront(t, v)
	mint := func(opts vaulttest.TokenOptions) string {
		opts.Policies = []string{"postern"}
		return v.Token(opts)
	}
	tokenFile := file(t, "token", mint(vaulttest.TokenOptions{TTL: 2 * time.Second}))
	s := open(t, Config{Address: front.URL, Auth: Auth{Token: &TokenAuth{File: tokenFile}}}, quick())
	s.Start(t.Context())
	stop := readSteadily(t, s)
	eventually(t, "renewals", func() bool { return front.Count(pathRenew) >= 2 })

	// Whatever keeps the file fresh writes a token that cannot be renewed, then another.
	rewrite(t, tokenFile, mint(vaulttest.TokenOptions{TTL: 3 * time.Second, Fixed: true}))
	v.RevokeToken(s.session.Load().token)
	eventually(t, "the second token", func() bool {
		sess := s.session.Load()
		return sess != nil && !sess.renewable
	})
	if err := stop(); err != nil {
		t.Errorf("a read failed: %v", err)
	}
	stop = readSteadily(t, s)
	last := mint(vaulttest.TokenOptions{TTL: time.Hour})
	rewrite(t, tokenFile, last)
	eventually(t, "the last token", func() bool {
		sess := s.session.Load()
		return sess != nil && sess.token == last
	})
	if err := stop(); err != nil {
		t.Errorf("a read failed: %v", err)
	}
}

func TestPlan(t *testing.T) {
	const hour = time.Hour
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		sess session
		file bool
		step step
		in   time.Duration
	}{
		"renewable":                     {session{ttl: hour, asked: hour, renewable: true}, false, renew, 40 * time.Minute},
		"renewable, early":              {session{ttl: hour, asked: hour, renewable: true, wobble: -0.1}, false, renew, 36 * time.Minute},
		"renewable, late":               {session{ttl: hour, asked: hour, renewable: true, wobble: 0.1}, false, renew, 44 * time.Minute},
		"renewed for less":              {session{ttl: hour / 2, asked: hour, renewable: true, renewed: true}, false, login, 20 * time.Minute},
		"rounded down":                  {session{ttl: hour - time.Second, asked: hour, renewable: true, renewed: true}, false, renew, 40 * time.Minute},
		"not renewable":                 {session{ttl: hour, asked: hour}, false, login, 40 * time.Minute},
		"shortest":                      {session{ttl: time.Second, asked: time.Second}, false, login, time.Second / 3},
		"renewed for nothing":           {session{asked: hour, renewable: true, renewed: true}, false, login, 0},
		"found in mid-life":             {session{ttl: hour / 2, asked: hour, renewable: true}, false, renew, 20 * time.Minute},
		"without an end":                {session{}, false, rest, 0},
		"file, end unknown":             {session{}, true, look, fileCheck},
		"file, long":                    {session{ttl: hour, asked: hour, renewable: true}, true, look, fileCheck},
		"file, short":                   {session{ttl: 31 * time.Second, asked: time.Minute}, true, look, 20 * time.Second},
		"file, short and renewable":     {session{ttl: 61 * time.Second, asked: 61 * time.Second, renewable: true}, true, renew, 40 * time.Second},
		"file, nearly over, not hectic": {session{ttl: time.Second, asked: hour}, true, look, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			c.sess.from = from
			step, at := plan(&c.sess, c.file)
			if step != c.step || step != rest && at.Sub(from.Add(c.in)).Abs() > 2*time.Second {
				t.Errorf("step %d in %v, want %d in %v", step, at.Sub(from), c.step, c.in)
			}
		})
	}
}

func TestGateOpensLaterAndLater(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	failed := errors.New("failed")
	g := gate{min: time.Second, max: 30 * time.Second, rand: func() float64 { return 1 }}
	expect := func(what string, err error, rapid bool, want time.Duration) {
		t.Helper()
		g.closeAfter(now, err, rapid)
		if got := g.opens.Sub(now); got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
		expect(fmt.Sprintf("failure %d", i+1), failed, false, want*time.Second)
	}
	expect("success", nil, false, time.Second)
	expect("a young token was refused", nil, true, 2*time.Second)
	expect("again", nil, true, 4*time.Second)
	expect("success of an old one", nil, false, time.Second)
	g.rand = func() float64 { return 0 }
	expect("without luck", failed, false, 500*time.Millisecond)
}

func TestJitterOfLogins(t *testing.T) {
	opts := quick()
	opts.Rand = func() float64 { return 0.5 }
	opts.OutageJitter, opts.StartJitter = 0, 2*time.Second
	s := open(t, Config{Address: "http://127.0.0.1:1", Auth: Auth{Token: &TokenAuth{File: "x"}}}, opts)
	expect := func(what string, old *session, want time.Duration) {
		t.Helper()
		if got := s.jitter(old); got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	expect("the first login, as Options say", nil, time.Second)
	s.gate.opens = time.Now()
	expect("a later login", nil, 0)
	expect("a refused token", &session{}, 0)
	s.outage.Store(true)
	expect("after an outage", &session{}, 2500*time.Millisecond)
	s.gate.failures = 1
	expect("after a failed login", nil, 0)
}

func TestALeavingCallerDoesNotEndTheLoginOfOthers(t *testing.T) {
	_, front, cfg := setUp(t, nil)
	arrived, proceed := make(chan struct{}), make(chan struct{})
	front.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/login") {
			close(arrived)
			<-proceed
		}
		return false
	})
	s := open(t, cfg, quick())
	impatient, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := s.Get(impatient, key, 0); !errors.Is(err, context.Canceled) {
			t.Errorf("the caller that left got %v", err)
		}
	})
	<-arrived
	wg.Go(func() { mustRead(t, s, key, "the value") })
	leave()
	close(proceed)
	wg.Wait()
	if n := front.Count(pathLogin); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
}

func TestCloseEndsCallsUnderWay(t *testing.T) {
	_, front, cfg := setUp(t, nil)
	arrived, release := make(chan struct{}, 10), make(chan struct{})
	defer close(release)
	front.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/data/") {
			arrived <- struct{}{}
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
		return false
	})
	s := open(t, cfg, quick())
	s.Start(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := read(t, s, key)
		done <- err
	}()
	<-arrived
	s.Close()
	if err := <-done; !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "closed") {
		t.Errorf("the call under way got %v", err)
	}
	if _, err := read(t, s, key); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a call after Close got %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	_, _, cfg := setUp(t, map[string]any{"token_ttl": "1h"})
	reg := prometheus.NewPedanticRegistry()
	opts := quick()
	opts.Registerer = reg
	first := open(t, cfg, opts)
	second := open(t, cfg, opts) // a reload: two Stores share one registry
	mustRead(t, first, key, "the value")
	mustRead(t, second, key, "the value")
	if _, err := read(t, first, "never"); !errors.Is(err, store.ErrNotFound) {
		t.Error(err)
	}
	for labels, want := range map[[2]string]float64{
		{"get", "ok"}: 2, {"get", "not_found"}: 1, {"login", "ok"}: 2, {"check_mount", "ok"}: 2,
	} {
		if got := testutil.ToFloat64(first.metrics.requests.WithLabelValues(labels[0], labels[1])); got != want {
			t.Errorf("%v: %v requests, want %v", labels, got, want)
		}
	}
	if got := testutil.ToFloat64(first.metrics.logins.WithLabelValues("ok")); got != 2 {
		t.Errorf("%v logins, want 2", got)
	}
	if left := time.Until(time.Unix(int64(testutil.ToFloat64(first.metrics.expiry)), 0)); left < 50*time.Minute || left > time.Hour {
		t.Errorf("the token ends in %v, want an hour", left)
	}
	found, err := testutil.GatherAndCount(reg, "postern_vault_request_seconds")
	if err != nil || found == 0 {
		t.Errorf("%d histograms, %v", found, err)
	}
}
