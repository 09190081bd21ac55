package e2e_test

import (
	"slices"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// What the soak asks for, and how it is looked at: the process at the end, and
// after a tenth of the time, always at the same distance from a rotation.
var (
	soakRate    = map[bool]int{false: 200, true: 1000}[e2etest.Long]
	soakTime    = e2etest.Span(20*time.Second, 10*time.Minute)
	soakRotates = e2etest.Span(2*time.Second, 30*time.Second)
	soakWindow  = e2etest.Span(time.Second, 10*time.Second)
)

// Ten minutes of load with a rotation every half minute: nothing fails, and the
// process holds at the end what it held after one.
func TestSoak(t *testing.T) {
	w := newWorld(t)
	st := stores["vault"](w)
	keys := []string{w.Key()}
	p := w.Provider("openai", fake.Options{Keys: keys})
	st.Put("openai", keys[0])
	a := w.Start(w.Config(st, p))
	all := w.Ways(a, p)
	e2etest.Hold(all, 32) // what a slow moment opens stays open
	e2etest.Fill(t, all, 32)
	l := e2etest.StartLoad(t, soakRate, slices.Concat(all[:4], all[:4], all)...)

	var early, late vitals
	rotations := int(soakTime / soakRotates)
	for i := range rotations {
		end := time.Duration(i+1) * soakRotates
		l.Last(end - soakWindow)
		switch i + 1 {
		case rotations / 10:
			early = look(t, l, a, soakWindow)
		case rotations:
			late = look(t, l, a, soakWindow)
			continue // the last one would come after the end
		}
		l.Last(end)
		next := w.Key()
		p.Allow(next)
		first := p.FirstUse(next)
		st.Put("openai", next)
		e2etest.Await(t, first, 20*time.Second, "a request with the new key")
		if keys = append(keys, next); i > 0 {
			p.Revoke(keys[i-1]) // nothing has been sent with it since the rotation before
		}
	}
	l.End()
	t.Logf("%d rotations; goroutines %.0f → %.0f, RSS %.1f → %.1f MiB", len(keys)-1, early.goroutines, late.goroutines, early.rss, late.rss)
	allowed := 1.1
	if !e2etest.Long {
		allowed = 1.5 // after two seconds not everything has come that stays
	}
	if late.goroutines > allowed*early.goroutines || late.rss > allowed*early.rss {
		t.Errorf("goroutines grew from %.0f to %.0f, RSS from %.1f to %.1f MiB", early.goroutines, late.goroutines, early.rss, late.rss)
	}
	if got := float64(l.Total()) / l.Took.Seconds(); got < 0.9*float64(soakRate) {
		t.Logf("this machine gave %.0f requests/s of %d", got, soakRate)
	}
}

// vitals are what a process holds.
type vitals struct{ goroutines, rss float64 }

// look is the middle of what is seen of a process under load for so long.
func look(t *testing.T, l *load, a *agenttest.Agent, d time.Duration) vitals {
	var goroutines, rss []float64
	for end := time.Since(l.Started) + d; time.Since(l.Started) < end; l.More(d / 20) {
		goroutines = append(goroutines, a.Metric(t, "go_goroutines"))
		rss = append(rss, a.Metric(t, "process_resident_memory_bytes")/(1<<20))
	}
	slices.Sort(goroutines)
	slices.Sort(rss)
	return vitals{goroutines[len(goroutines)/2], rss[len(rss)/2]}
}
