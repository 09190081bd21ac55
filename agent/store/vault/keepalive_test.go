package vault

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
)

// refuse makes a front answer every renewal with a status and a reason.
func refuse(front *vaulttest.Front, status int, reason string) {
	front.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, pathRenew) {
			return false
		}
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"errors":[%q]}`, reason)
		return true
	})
}

func TestARenewalThatFails(t *testing.T) {
	const denied, unknown = "1 error occurred:\n\t* permission denied\n\n", "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"
	for name, c := range map[string]struct {
		status int
		reason string
		old    float64 // how much of the token's time is over
		want   step
		wait   bool // the step waits for a back-off
	}{
		"Vault is away":           {503, "Vault is sealed", 0.67, renew, true},
		"Vault is away too long":  {503, "Vault is sealed", 0.91, login, false},
		"policy does not allow":   {403, denied, 0.67, login, false},
		"it cannot be renewed":    {400, "token is not renewable", 0.67, login, false},
		"the token is not known":  {403, unknown, 0.67, renew, true}, // of the new session
		"what comes is not Vault": {200, "", 0.67, renew, true},
	} {
		t.Run(name, func(t *testing.T) {
			_, front, cfg := setUp(t, map[string]any{"token_ttl": "1h"})
			s := open(t, cfg, quick())
			if err := s.Login(t.Context()); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the gate to open", func() bool { return !time.Now().Before(s.gateOpens()) })
			sess := *s.session.Load()
			sess.from = time.Now().Add(-time.Duration(c.old * float64(sess.ttl)))
			s.session.Store(&sess)
			refuse(front, c.status, c.reason)

			next := s.takeRenewal(t.Context(), s.upkeep(&sess))
			if next.step != c.want || time.Until(next.at) > 0 != c.wait {
				t.Errorf("next is step %d in %v, want %d, later %v", next.step, time.Until(next.at), c.want, c.wait)
			}
			if replaced := s.session.Load() != &sess; replaced != (c.reason == unknown) {
				t.Errorf("session replaced: %v", replaced)
			}
		})
	}
}

func TestATokensFileIsLookedAtAgain(t *testing.T) {
	const again = look
	_, front, cfg := setUp(t, nil)
	name := file(t, "token", "hvs.first")
	cfg.Auth = Auth{Token: &TokenAuth{File: name}}
	s := open(t, cfg, quick())
	now := time.Now()
	hour := session{token: "hvs.first", from: now, ttl: time.Hour, asked: time.Hour, renewable: true}

	look := func(what string, sess session, want step, after time.Duration) upkeep {
		t.Helper()
		next := s.takeLook(t.Context(), upkeep{sess: &sess, step: look})
		if d := time.Until(next.at); next.step != want || d > after || d < after-5*time.Second {
			t.Errorf("%s: step %d in %v, want %d in %v", what, next.step, d, want, after)
		}
		return next
	}
	look("the same token", hour, again, fileCheck)
	look("the same token without an end", session{token: "hvs.first", from: now}, again, fileCheck)
	short := session{token: "hvs.first", from: now, ttl: 20 * time.Second, asked: time.Hour}
	look("the same token, soon over", short, again, 2*time.Second)
	late := hour
	late.from = now.Add(-45 * time.Minute)
	look("time to renew", late, renew, 0)

	rewrite(t, name, "hvs.second")
	s.gate.opens = time.Now()
	look("another token", hour, login, 0)
	rewrite(t, name, "")
	look("an empty file", hour, again, fileCheck)

	// Vault does not let this token renew itself: it is not asked again and again.
	rewrite(t, name, "hvs.first")
	refuse(front, 403, "permission denied")
	next := s.takeRenewal(t.Context(), upkeep{sess: &late, step: renew})
	if d := time.Until(next.at); next.step != again || d < 50*time.Second {
		t.Errorf("after a refused renewal: step %d in %v", next.step, d)
	}
	if next = s.takeLook(t.Context(), next); next.step != again {
		t.Errorf("after a refused renewal and a look: step %d", next.step)
	}
}
