package e2e_test

import (
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// duo is two agents of one scope, each with a provider of its own, so that
// what each of them attaches can be told apart.
type duo struct {
	worlds    [2]*world
	providers [2]*provider
	agents    [2]*agenttest.Agent
	loads     [2]*load
}

// duo starts both on a store that holds the key, and a load on each.
func (w *world) duo(st keyStore, perSecond int, o fake.Options, roles ...string) (*duo, *console) {
	w.T.Helper()
	p := &duo{worlds: [2]*world{w, w.twin()}}
	o.Records = 100_000
	var op *console
	for i, each := range p.worlds {
		p.providers[i] = each.Provider("openai", o)
		c := each.Config(st, p.providers[i])
		c.Store = st.Shared()
		if i == 0 {
			op = w.console(st, c, roles...)
		}
		p.agents[i] = each.Start(c)
	}
	for i, each := range p.worlds {
		p.loads[i] = e2etest.StartLoad(w.T, perSecond, each.Ways(p.agents[i], p.providers[i])...)
	}
	return p, op
}

func (p *duo) end() {
	for _, l := range p.loads {
		l.End()
	}
}

// allow makes a key live at both providers.
func (p *duo) allow(key string) {
	for _, f := range p.providers {
		f.Allow(key)
	}
}

// share is the percentage of a provider's requests in a span of time that carried a key, and of how many.
func share(f *provider, key string, from, to time.Time) (percent float64, all int) {
	with := 0
	for _, r := range f.Requests() {
		if r.Method == http.MethodPost && r.Time.After(from) && r.Time.Before(to) {
			all++
			if r.Key == key {
				with++
			}
		}
	}
	return 100 * float64(with) / float64(max(all, 1)), all
}

// An operator rotates a key under load. Both agents follow the ramp, nothing
// fails, and in the end the old version is gone from the store.
func TestRotateInFourSteps(t *testing.T) {
	onBothStores(t, func(t *testing.T, w *world, st keyStore) {
		step := e2etest.Span(5*time.Second, 15*time.Second)
		old, next := w.Key(), w.Key()
		st.Put("openai", old)
		p, op := w.duo(st, 300, fake.Options{Keys: []string{old, next}}, "devops")
		p.loads[0].More(time.Second)

		ramp := fmt.Sprintf("1:%s,10:%s,50:%s", step, step, step)
		cmd := op.start(next+"\n", "keys", "rotate", "openai", "--watch", "--ramp", ramp, "--grace", "5s", "--reason", "quarterly", "-o", "json")
		if code := cmd.end(); code != 0 {
			t.Fatalf("keys rotate: exit code %d\n%s%s", code, cmd.out.String(), cmd.said.String())
		}
		r := cmd.rotation()
		if r.Phase != rotation.PhaseDone || !r.Closed || r.From != 1 || r.To != 2 || r.Reason != "quarterly" {
			t.Errorf("%+v", r)
		}
		for _, f := range p.providers {
			f.Revoke(old)
		}
		p.loads[0].More(time.Second)
		p.end()
		t.Logf("the command said:\n%s", cmd.said.String())

		// The agents know the store's clock to within a fraction of a second: the ends of each step are left out.
		const blur = time.Second
		for i, want := range []float64{0, 1, 10, 50, 100} {
			from := r.StartedAt.Add(time.Duration(i-1)*step + blur)
			to := from.Add(step - 2*blur)
			for n, f := range p.providers {
				got, all := share(f, next, from, to)
				t.Logf("agent %d, step %d: %5.1f %% of %4d requests carried the new version, the ramp says %.0f %%", n+1, i, got, all, want)
				chance := 5 * math.Sqrt(want*(100-want)/float64(max(all, 1))) // requests are drawn: five standard deviations
				if all < 100 || math.Abs(got-want) > chance {
					t.Errorf("agent %d: the share is %.1f %% of %d requests, the ramp says %.0f %%", n+1, got, all, want)
				}
			}
		}
		if s := op.state("openai", 1); s != "destroyed" {
			t.Errorf("the old version is %s in the store", s)
		}
		for i, f := range p.providers {
			if c := f.Counts(old); c.Unauthorized > 0 {
				t.Errorf("agent %d attached the old version %d times after it was over", i+1, c.Unauthorized)
			}
		}
		leavesNoCopies(t, p.agents[0], []string{old}, next, soon)
		w.auditor(st).must("", "audit", "verify")
	})
}

// A key that the provider refuses stops at validate: nothing that serves changes.
func TestRotateToARejectedKey(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, w *world, st keyStore) {
		old, dead := w.Key(), w.Key()
		st.Put("openai", old)
		p, op := w.duo(st, light, fake.Options{Keys: []string{old}}, "devops")
		out, said, code := op.run(dead+"\n", "keys", "rotate", "openai", "-o", "json")
		if code != 1 || !strings.Contains(said+out, "revoked") {
			t.Errorf("exit code %d, which does not say why\n%s%s", code, out, said)
		}
		if s := op.state("openai", 2); s != "rejected" && s != "destroyed" {
			t.Errorf("the rejected version is %s", s)
		}
		p.loads[0].More(3 * time.Second)
		p.end()
		for i, a := range p.agents {
			if v := e2etest.Version(t, a, "openai", 1); v.State != "active" || v.Weight != 100 {
				t.Errorf("agent %d: the good version is %s at %d %%", i+1, v.State, v.Weight)
			}
			if n := p.providers[i].Counts(dead).OK; n > 0 {
				t.Errorf("agent %d attached the rejected key %d times", i+1, n)
			}
		}
		// The next one is as good as if nothing had been.
		next := w.Key()
		p.allow(next)
		if r := parsed[struct{ Phase rotation.Phase }](t, op.must(next+"\n", "keys", "rotate", "openai", "--now", "-o", "json")); r.Phase != rotation.PhaseDone {
			t.Errorf("the rotation after it is %s", r.Phase)
		}
	})
}

// forbids answers 403 to chat with some keys, or for a model that nobody may use.
func forbids(model string, keys ...string) func(http.ResponseWriter, *http.Request) bool {
	return func(rw http.ResponseWriter, r *http.Request) bool {
		key := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		if r.URL.Path == models || !slices.Contains(keys, key) && (model == "" || r.Header.Get("X-Model") != model) {
			return false
		}
		rw.Header().Set("Content-Type", "application/json")
		rw.WriteHeader(http.StatusForbidden)
		rw.Write([]byte(`{"error":{"message":"Project does not have access to model.","type":"invalid_request_error","param":null,"code":"model_not_found"}}`))
		return true
	}
}

// A key passes the probe and then may not chat: all agents go back by themselves.
func TestRotateToAKeyThatMayNotChat(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, w *world, st keyStore) {
		old, bad := w.Key(), w.Key()
		st.Put("openai", old)
		p, op := w.duo(st, 300, fake.Options{Keys: []string{old, bad}, Intercept: forbids("", bad)}, "devops")
		cmd := op.start(bad+"\n", "keys", "rotate", "openai", "--ramp", "50:10m", "-o", "json")
		if code := cmd.end(); code != 1 {
			t.Errorf("exit code %d\n%s%s", code, cmd.out.String(), cmd.said.String())
		}
		r := cmd.rotation()
		if r.Phase != rotation.PhaseRolledBack || r.Reason == "" {
			t.Errorf("%+v", r)
		}
		p.loads[0].More(2 * time.Second)
		p.end()
		var began, last time.Time
		for i, f := range p.providers {
			for _, q := range f.Requests() {
				if q.Header.Get("Authorization") != "Bearer "+bad || q.Path == models {
					continue
				}
				if began.IsZero() || q.Time.Before(began) {
					began = q.Time
				}
				if q.Time.After(last) {
					last = q.Time
				}
			}
			if v := e2etest.Version(t, p.agents[i], "openai", 1); v.State != "active" || v.Weight != 100 {
				t.Errorf("agent %d: the good version is %s at %d %%", i+1, v.State, v.Weight)
			}
		}
		t.Logf("the last request with the bad version came %.1f s after the first; the record says: %s", last.Sub(began).Seconds(), r.Reason)
		if last.Sub(began) > 10*time.Second {
			t.Errorf("the agents took %s to go back", last.Sub(began))
		}
	})
}

// An application that keeps asking for what no version may do stops no rotation.
func TestForbiddenOnBothVersionsStopsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := stores["vault"](w)
	old, next := w.Key(), w.Key()
	st.Put("openai", old)
	p, op := w.duo(st, light, fake.Options{Keys: []string{old, next}, Intercept: forbids("secret-model")}, "devops")
	stop, asked := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { asked <- n }()
		for tick := time.NewTicker(20 * time.Millisecond); ; n++ {
			select {
			case <-stop:
				tick.Stop()
				return
			case <-tick.C:
			}
			req, err := http.NewRequest(http.MethodPost, p.agents[0].URL("/openai/v1/chat/completions"), strings.NewReader(`{"model":"secret-model"}`))
			if err != nil {
				return
			}
			req.Header.Set("X-Model", "secret-model")
			if resp, err := p.loads[0].Ways[0].Client.Do(req); err == nil {
				resp.Body.Close()
			}
		}
	}()
	cmd := op.start(next+"\n", "keys", "rotate", "openai", "--ramp", "50:5s", "--grace", "2s", "-o", "json")
	code := cmd.end()
	close(stop)
	t.Logf("%d requests for what nobody may have", <-asked)
	if r := cmd.rotation(); code != 0 || r.Phase != rotation.PhaseDone {
		t.Errorf("exit code %d, %+v\n%s", code, r, cmd.said.String())
	}
	p.end()
}
