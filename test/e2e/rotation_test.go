package e2e_test

import (
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// inUseWithin is how soon after it was written a version serves, at a poll of a second.
const inUseWithin = slower * 2 * time.Second

// The key is written anew, again and again, while the application goes on; the
// old one is revoked as soon as nobody needs it. Nothing fails, and of the old
// keys nothing is left where keys are kept.
func TestRotationUnderLoad(t *testing.T) {
	onBothStores(t, func(t *testing.T, w *world, st keyStore) {
		current := w.Key()
		p := w.Provider("openai", fake.Options{Keys: []string{current}})
		n := st.Put("openai", current)
		a := w.Start(w.Config(st, p))
		l := e2etest.StartLoad(t, rate, w.Ways(a, p)...)

		var old []string
		rounds, length := 2, e2etest.Span(0, 60*time.Second)
		if e2etest.Long {
			rounds = 5
		}
		for i := range rounds {
			l.Last(length / time.Duration(rounds) * time.Duration(i))
			next := w.Key()
			p.Allow(next)
			first := p.FirstUse(next)
			wrote := time.Now()
			n = st.Put("openai", next)
			written := time.Now()
			took := e2etest.Await(t, first, 20*time.Second, "a request with the new key").Sub(written)
			t.Logf("version %d: in use %d ms after it was written, which took %d ms", n, took.Milliseconds(), written.Sub(wrote).Milliseconds())
			if took > inUseWithin {
				t.Errorf("version %d was in use only after %s", n, took)
			}
			agenttest.Eventually(t, 20*time.Second, "the old version is out of use", func() bool {
				return e2etest.Version(t, a, "openai", n-1).State == "retired"
			})
			p.Revoke(current)
			old, current = append(old, current), next
		}
		l.Last(length)
		l.More(time.Second)
		for i, key := range old {
			if c := p.Counts(key); c.Unauthorized > 0 {
				t.Errorf("version %d came %d times after it was out of use and revoked", i+1, c.Unauthorized)
			}
		}
		leavesNoCopies(t, a, old, current, soon)
		l.End()
		w.promoted(a, n)
	})
}

// promoted looks for the audit entries of each version's way in, and that the chain holds.
func (w *world) promoted(a *agenttest.Agent, versions int) {
	w.T.Helper()
	entries := w.audit()
	for n := 1; n <= versions; n++ {
		for _, outcome := range []string{"intent", "ok"} {
			found := false
			for _, e := range entries {
				found = found || e.Event.Event == "version.promoted" && e.Version == n && e.Outcome == outcome
			}
			if !found {
				w.T.Errorf("no audit entry version.promoted, %s, of version %d", outcome, n)
			}
		}
	}
	out, said, code := agenttest.Run(w.T, w.Dir, "", "audit", "verify", w.Path("audit.jsonl"), "--head", e2etest.Status(w.T, a).AuditHead)
	if code != 0 {
		w.T.Errorf("audit verify: exit code %d\n%s%s", code, out, said)
	}
}

// Traffic moves to the new version as the ramp says, measured at the provider.
func TestRampSharesTheTraffic(t *testing.T) {
	step := e2etest.Span((2+slower)*time.Second, 10*time.Second)
	w := newWorld(t)
	st := stores["vault"](w)
	old, next := w.Key(), w.Key()
	p := w.Provider("openai", fake.Options{Keys: []string{old, next}, Records: 100_000})
	st.Put("openai", old)
	c := w.Config(st, p)
	c.Rotation = "{grace: 5s, ramp: [{weight: 10, for: " + step.String() + "}, {weight: 50, for: " + step.String() + "}]}"
	a := w.Start(c)
	l := e2etest.StartLoad(t, rate, w.Ways(a, p)...)
	l.More(500 * time.Millisecond)

	first := p.FirstUse(next)
	wrote := time.Now() // the ramp begins when Vault has written the version: now, or a moment later
	st.Put("openai", next)
	written := time.Now()
	used := e2etest.Await(t, first, 20*time.Second, "a request with the new key")
	l.Last(written.Sub(l.Started) + 2*step + 2*time.Second)
	l.End()

	// The agent knows Vault's clock to within a fraction of a second: the ends of each step are left out.
	const blur = 600 * time.Millisecond
	requests := p.Requests()
	for _, s := range []struct {
		from, to time.Time
		share    float64
	}{
		{l.Started, wrote, 0},
		{used, wrote.Add(step - blur), 10},
		{written.Add(step + blur), wrote.Add(2*step - blur), 50},
		{written.Add(2*step + blur), time.Now(), 100},
	} {
		with, all := 0.0, 0.0
		for _, r := range requests {
			if r.Time.Before(s.from) || r.Time.After(s.to) || r.Method != "POST" {
				continue
			}
			all++
			if r.Key == next {
				with++
			}
		}
		got := 100 * with / all
		t.Logf("%5.2f to %5.2f s after the write: %5.1f %% of %4.0f requests carried the new version, the ramp says %.0f %%",
			s.from.Sub(written).Seconds(), s.to.Sub(written).Seconds(), got, all, s.share)
		exact := s.share == 0 || s.share == 100
		if all < 100 || exact && got != s.share || got < s.share-7 || got > s.share+7 {
			t.Errorf("the share is %.1f %% of %.0f requests; the ramp says %.0f %%", got, all, s.share)
		}
	}
}
