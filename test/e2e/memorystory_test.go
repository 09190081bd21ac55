package e2e_test

import (
	"crypto/rand"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/agent/upstream"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// oddKey makes a provider key that JSON, URLs and base64 each write in another way.
func (w *world) oddKey() string { return w.Secret(aPublic + rand.Text() + `"/+%&\=?` + rand.Text()) }

// shortKey makes one that fits where the compiler would rather use a stack than the heap.
func (w *world) shortKey() string { return w.Secret(aPublic + rand.Text()[:24]) }

// Nobody sends requests: keys are read, probed, rotated and refused. Of those
// that are out of use nothing is left anywhere in the agent's memory.
func TestWithoutTrafficNothingIsLeft(t *testing.T) {
	onBothStores(t, func(t *testing.T, w *world, st keyStore) {
		var old []string
		current := w.oddKey()
		p := w.Provider("openai", fake.Options{Keys: []string{current}})
		n := st.Put("openai", current)
		c := w.Config(st, p)
		c.Rotation = "{grace: 2s}"
		a := w.Start(c)
		for range e2etest.Span(2, 10) {
			next, dead := w.oddKey(), w.shortKey()
			n = st.Put("openai", dead)
			agenttest.Eventually(t, 20*time.Second, "the dead version is rejected", func() bool { return e2etest.Version(t, a, "openai", n).State == "rejected" })
			p.Allow(next)
			n = st.Put("openai", next)
			agenttest.Eventually(t, 20*time.Second, "the old version is out of use", func() bool { return e2etest.Version(t, a, "openai", n-2).State == "retired" })
			old, current = append(old, current, dead), next
			leavesNoCopies(t, a, old, current, soon)
		}
	})
}

// A key is rotated and the next one revoked, again and again, under all kinds
// of requests. When its requests have ended nothing is left of a key anywhere in
// the agent's memory.
func TestUnderLoadNothingIsLeft(t *testing.T) {
	onBothStores(t, func(t *testing.T, w *world, st keyStore) { w.leavesNothing(st, "", int(e2etest.Span(2, 20)), soon) })
}

// Over HTTP/2 the same takes longer: net/http holds on to connections that were closed.
func TestOverHTTP2NothingIsLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.leavesNothing(w.Sealed(), ", http2: true", int(e2etest.Span(1, 5)), soon+upstream.Lingering)
}

// leavesNothing tells the story for a provider whose entry in the configuration has more in it.
func (w *world) leavesNothing(st keyStore, more string, rounds int, within time.Duration) {
	t := w.T
	current := w.oddKey()
	p := w.Provider("openai", fake.Options{Keys: []string{current}})
	n := st.Put("openai", current)
	c := w.Config(st)
	c.Providers, c.Rotation = []string{p.Entry(more)}, "{grace: 2s}"
	op := w.console(st, c, "security")
	a := w.Start(c)
	l := e2etest.StartLoad(t, light, w.Ways(a, p)...)
	for range rounds {
		l.More(time.Second)
		next := w.shortKey()
		p.Allow(next)
		n = st.Put("openai", next)
		agenttest.Eventually(t, 20*time.Second, "the old version is out of use", func() bool { return e2etest.Version(t, a, "openai", n-1).State == "retired" })
		leavesNoCopies(t, a, []string{current}, next, within)

		op.must("", "keys", "revoke", "openai", "--now", "--reason", "seen in a paste")
		agenttest.Eventually(t, 20*time.Second, "the agent lets go of the key", func() bool { return e2etest.Version(t, a, "openai", n).State == "compromised" })
		current = w.oddKey()
		p.Allow(current)
		n = st.Put("openai", current)
		agenttest.Eventually(t, 20*time.Second, "a new version is served", func() bool { return e2etest.Version(t, a, "openai", n).State == "active" })
		leavesNoCopies(t, a, []string{next}, current, within)
	}
	for _, f := range l.Report() {
		// Between a revocation and the next version nothing can be served.
		if !f.Answered() {
			t.Errorf("%s, %.2f s after the start: %v", f.Way, f.Began.Sub(l.Started).Seconds(), f.Err)
			break
		}
	}
}
