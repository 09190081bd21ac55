package faults_test

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// wellWithin is the most that the agent may need once Vault is well again: a
// call that hangs is given up after 10 s, the next comes at most 30 s later.
const wellWithin = 60 * time.Second

// vaultRig is a rig with a Vault that can fail.
type vaultRig struct {
	*rig
	s     *e2etest.VaultStore
	relay *relay // between the agent and the Vault's front
}

// onVault makes a rig on a Vault that runs, with tokens of these settings.
func onVault(t *testing.T, v *vaulttest.Vault, fault string, token map[string]any) *vaultRig {
	t.Helper()
	r := &vaultRig{rig: newRig(t, "Vault "+fault)}
	r.s = r.On(v, "approle-"+r.name, token)
	r.relay = newRelay(t, strings.TrimPrefix(r.s.Front.URL, "http://"))
	r.s.Front.URL = "http://" + r.relay.Addr().String()
	r.st = r.s
	return r
}

// age is how old what the agent knows of its key is, in seconds.
func (r *vaultRig) age() float64 {
	return r.a.Metric(r.t, `postern_key_stale_seconds{key="`+r.name+`"}`)
}

// outage is a way for Vault to fail.
type outage struct {
	begin, end func(*vaultRig)
	reads      bool // reads succeed meanwhile, if late
}

// answers is a Vault that answers every call so.
func answers(status int, body string, header ...string) outage {
	return instead(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", "application/json")
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
		return true
	})
}

func instead(answer func(http.ResponseWriter, *http.Request) bool) outage {
	return outage{
		begin: func(r *vaultRig) { r.s.Front.Intercept(answer) },
		end:   func(r *vaultRig) { r.s.Front.Intercept(nil) },
	}
}

func errs(text string) string { return `{"errors":[` + strconv.Quote(text) + `]}` }

// connections is a Vault whose connections fail so.
func connections(how trouble) outage {
	return outage{
		begin: func(r *vaultRig) { r.relay.set(how) },
		end:   func(r *vaultRig) { r.relay.set(passes) },
	}
}

func slow(delay time.Duration) outage {
	o := instead(func(_ http.ResponseWriter, r *http.Request) bool {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
		}
		return false
	})
	o.reads = true
	return o
}

// outages are the ways of a Vault that many agents share.
var outages = map[string]outage{
	"slow, 2 s a call":           slow(2 * time.Second),
	"answers 403, by policy":     answers(403, errs("1 error occurred:\n\t* permission denied\n\n")),
	"answers 403, invalid token": answers(403, errs("2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n")),
	"answers 429":                answers(429, errs("request path \"secret/\": rate limit quota exceeded"), "Retry-After", "1"),
	"answers 500":                answers(500, errs("internal error")),
	"answers 502, a proxy's":     answers(502, "<html>Bad Gateway</html>", "Content-Type", "text/html"),
	"answers 503":                answers(503, errs("Vault is sealed")),
	"answers broken JSON":        answers(200, `{"data":{"data":{"api_key":7},"metadata":`),
	"resets connections":         connections(resets),
	"half-open":                  connections(silent),
	"speaks garbage":             connections(garbage),
}

// test has Vault fail for a while. Requests are served with the key in memory,
// the agent stays ready, Vault is not stormed, and once it is well the next
// rotation is picked up.
func (o outage) test(r *vaultRig) {
	r.t.Helper()
	r.s.Put(r.name, r.key)
	r.begin(r.Config(r.s, r.good))
	r.s.Front.Reset()
	began := time.Now()
	o.begin(r)
	r.load.More(e2etest.Span(4*time.Second, time.Minute))
	away := time.Since(began).Seconds()
	if age := r.age(); !o.reads && age < away-3 {
		r.t.Errorf("what the agent knows is %.1f s old after %.1f s of the fault: there was none", age, away)
	}
	if code, body := r.a.Get(r.t, "/readyz"); code != http.StatusOK {
		r.t.Errorf("not ready: %d %s", code, body)
	}
	if calls := r.s.Front.Count("") + r.relay.count(); float64(calls) > 20+5*away {
		r.t.Errorf("a storm: %d calls and connections to Vault in %.1f s", calls, away)
	}
	o.end(r)
	r.rotates(time.Now(), wellWithin)
	r.end()
}

func TestVault(t *testing.T) {
	t.Parallel()
	v := vaulttest.Start(t, vaulttest.Options{})
	t.Run("of many", func(t *testing.T) {
		for fault, o := range outages {
			t.Run(fault, func(t *testing.T) {
				t.Parallel()
				o.test(onVault(t, v, fault, map[string]any{"token_ttl": "1h"}))
			})
		}
		for fault, test := range map[string]func(*testing.T, *vaulttest.Vault, string){
			"token revoked": tokenRevoked, "token's max_ttl reached": maxTTL, "lease expired": leaseExpired,
			"clock 1 h ahead": func(t *testing.T, v *vaulttest.Vault, fault string) { clockStepped(t, v, fault, time.Hour) },
			"clock 1 h back":  func(t *testing.T, v *vaulttest.Vault, fault string) { clockStepped(t, v, fault, -time.Hour) },
		} {
			t.Run(fault, func(t *testing.T) {
				t.Parallel()
				test(t, v, fault)
			})
		}
	})
}

// A Vault that is stopped or sealed is one agent's alone.
func TestVaultAway(t *testing.T) {
	t.Parallel()
	v := vaulttest.Start(t, vaulttest.Options{Persistent: true})
	for _, o := range []struct {
		fault string
		outage
	}{
		{"stopped", outage{begin: func(*vaultRig) { v.Stop() }, end: func(*vaultRig) { v.Run() }}},
		{"sealed", outage{begin: func(*vaultRig) { v.Seal() }, end: func(*vaultRig) { v.Unseal() }}},
	} {
		t.Run(o.fault, func(t *testing.T) {
			o.test(onVault(t, v, o.fault, map[string]any{"token_ttl": "1h"}))
		})
	}
}

// Somebody revokes the agent's token, several times: each time it logs in once.
func tokenRevoked(t *testing.T, v *vaulttest.Vault, fault string) {
	r := onVault(t, v, fault, map[string]any{"token_ttl": "1h"})
	r.s.Put(r.name, r.key)
	r.begin(r.Config(r.s, r.good))
	n := 1
	for range map[bool]int{false: 1, true: 4}[e2etest.Long] {
		r.s.RevokeLogins("approle-" + r.name + "/login")
		revoked := time.Now()
		n++
		r.rotates(revoked, wellWithin)
		if logins := r.s.Logins(); logins != n {
			t.Errorf("%d logins for %d revoked tokens", logins-1, n-1)
		}
	}
	r.end()
}

// A token that no renewal extends any more is replaced before it ends.
func maxTTL(t *testing.T, v *vaulttest.Vault, fault string) {
	r := onVault(t, v, fault, map[string]any{"token_ttl": "3s", "token_max_ttl": "6s"})
	r.s.Put(r.name, r.key)
	r.begin(r.Config(r.s, r.good))
	was := r.s.Logins()
	agenttest.Eventually(t, 60*time.Second, "the token was replaced twice", func() bool { return r.s.Logins() >= was+2 })
	if e2etest.Long {
		r.load.More(time.Minute)
	}
	if age := r.age(); age > 30 {
		t.Errorf("what the agent knows is %.1f s old", age)
	}
	if n := r.a.Metric(t, `postern_vault_requests_total{operation="metadata",outcome="unauthenticated"}`); n > 0 {
		t.Errorf("%.0f reads were refused: the token was replaced too late", n)
	}
	r.rotates(time.Now(), wellWithin)
	r.end()
}
