package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
)

// generation is the number of the configuration in force.
func generation(t *testing.T, a *agenttest.Agent) int {
	t.Helper()
	return int(a.Metric(t, "postern_config_generation"))
}

// awaitGeneration waits until the log says that a configuration is in force: then all of it is.
func awaitGeneration(t *testing.T, a *agenttest.Agent, n int) {
	t.Helper()
	saysSo(t, a, fmt.Sprintf(`"msg":"a new configuration is in force","generation":%d}`, n))
	if got := generation(t, a); got != n {
		t.Errorf("the metric says generation %d, the log %d", got, n)
	}
}

const (
	reloadOK     = "postern_config_last_reload_successful"
	reloadFailed = `postern_config_reloads_total{outcome="failed"}`
)

// The configuration is changed in every way that there is while the application
// goes on: a provider is added, a file is broken and mended, an address cannot
// change. CONNECT clients keep the trust that they began with.
func TestReloadUnderLoad(t *testing.T) {
	onBothStores(t, func(t *testing.T, w *world, st keyStore) {
		key, second := w.key(), w.key()
		p := w.provider("openai", fake.Options{Keys: []string{key}})
		q := w.provider("second", fake.Options{Keys: []string{second}})
		q.host = strings.Replace(q.host, "localhost", "127.0.0.1", 1) // another name for the CA's constraints
		st.put("openai", key)
		st.put("second", second)
		c := w.config(st, p)
		a := w.start(c)
		before := read(t, w.path("ca/ca.pem"))
		l := startLoad(t, rate, w.ways(a, p)...)
		l.more(500 * time.Millisecond)

		t.Log("a file renamed over the old one: a provider more")
		both := c
		both.providers = []string{p.entry(""), q.entry("")}
		write(t, a.Config, both.yaml())
		awaitGeneration(t, a, 2)
		for _, y := range w.ways(a, q) { // trusting the CA file as it is now
			y.must(t)
		}
		old := way{name: "connect, with the CA file of before", client: w.client(w.through(a, before)), url: "https://" + p.host + "/v1/chat/completions"}
		old.must(t)
		old.url = "https://" + q.host + "/v1/chat/completions"
		if old.ask(t.Context()) == nil {
			t.Error("a client that trusts the first CA file alone trusts a host that was added later: the CA has no name constraints")
		}

		t.Log("a file that is not valid")
		write(t, a.Config, strings.Replace(both.yaml(), "rotation:", "rotatoin:", 1))
		agenttest.Eventually(t, 20*time.Second, "the bad file is noticed", func() bool { return a.Metric(t, reloadFailed) == 1 })
		saysSo(t, a, "the old one stays", "rotatoin: unknown field")
		agenttest.Eventually(t, 5*time.Second, reloadOK+" is 0", func() bool { return a.Metric(t, reloadOK) == 0 })
		if n := generation(t, a); n != 2 {
			t.Errorf("generation %d", n)
		}

		t.Log("an address that cannot change while the agent runs")
		moved := both
		moved.proxy = freePort(t)
		write(t, a.Config, moved.yaml())
		agenttest.Eventually(t, 20*time.Second, "the change is refused", func() bool { return a.Metric(t, reloadFailed) == 2 })
		saysSo(t, a, "listen.proxy: cannot change while the agent runs; restart it")

		t.Log("a key that cannot be loaded")
		missing := both
		missing.providers = append(missing.providers, strings.Replace(q.entry(", key: nowhere, forward: false"), "name: second", "name: third", 1))
		write(t, a.Config, missing.yaml())
		l.more(time.Second) // it waits for the key, for half a minute, and serves meanwhile
		if n := generation(t, a); n != 2 {
			t.Errorf("generation %d without its key", n)
		}
		for _, y := range w.ways(a, q) {
			y.must(t)
		}

		st.put("nowhere", second)
		awaitGeneration(t, a, 3)
		if ok := a.Metric(t, reloadOK); ok != 1 {
			t.Errorf("%s is %v after a good reload", reloadOK, ok)
		}

		t.Log("a provider less")
		write(t, a.Config, c.yaml())
		awaitGeneration(t, a, 4)
		if err := w.ways(a, q)[0].ask(t.Context()); err == nil || !strings.Contains(err.Error(), "404") {
			t.Errorf("the route of a provider that was removed: %v", err)
		}
		l.end()
	})
}

// Many generations, one after the other, under load: what is replaced ends the
// requests that it began, and wipes its keys.
func TestManyReloadsUnderLoad(t *testing.T) {
	w := newWorld(t)
	st := w.sealed()
	key := w.key()
	p := w.provider("openai", fake.Options{Keys: []string{key}})
	st.put("openai", key)
	c := w.config(st, p)
	a := w.start(c)
	l := startLoad(t, rate, w.ways(a, p)...)
	const reloads = 12
	for n := range reloads {
		c.more = "service: s" + string(rune('a'+n))
		write(t, a.Config, c.yaml())
		awaitGeneration(t, a, n+2)
	}
	l.end()
	agenttest.Eventually(t, 20*time.Second, "the keys of the generations before are wiped", func() bool {
		return strings.Count(a.Log.String(), `"msg":"version wiped"`) == reloads
	})
	if values := status(t, a).Memory.Values; values > 12 {
		t.Errorf("%d values are in the arena after %d reloads", values, reloads)
	}
}

// Kubernetes swaps a symbolic link next to the file; the file's own name never changes.
func TestReloadOfAMountedConfigMap(t *testing.T) {
	w := newWorld(t)
	st := w.sealed()
	key := w.key()
	p := w.provider("openai", fake.Options{Keys: []string{key}})
	st.put("openai", key)
	c := w.config(st, p)
	w.link("..2026_1", "..data")
	w.link("..data/postern.yaml", "postern.yaml")
	if err := os.Mkdir(w.path("..2026_1"), 0o755); err != nil {
		t.Fatal(err)
	}
	a := w.start(c) // which writes the file through both links
	l := startLoad(t, rate, w.ways(a, p)...)
	l.more(500 * time.Millisecond)

	if err := os.Mkdir(w.path("..2026_2"), 0o755); err != nil {
		t.Fatal(err)
	}
	c.more = "service: checkout"
	write(t, w.path("..2026_2/postern.yaml"), c.yaml())
	w.link("..2026_2", "..data_tmp")
	swapped := time.Now()
	if err := os.Rename(w.path("..data_tmp"), w.path("..data")); err != nil {
		t.Fatal(err)
	}
	awaitGeneration(t, a, 2)
	took := time.Since(swapped)
	t.Logf("in force %d ms after the swap", took.Milliseconds())
	if took > slower*2*time.Second {
		t.Error("the swap was noticed by looking, not by being told")
	}
	if s := status(t, a).Service; s != "checkout" {
		t.Errorf("the service is %q", s)
	}
	l.end()
}

func (w *world) link(to, name string) {
	w.t.Helper()
	if err := os.Symlink(to, w.path(name)); err != nil {
		w.t.Fatal(err)
	}
}

// Where no event tells of a change, SIGHUP does; and where nobody sends one, the
// agent finds out by itself, later.
func TestReloadBySignalAndByLooking(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.sealed()
	key := w.key()
	p := w.provider("openai", fake.Options{Keys: []string{key}})
	st.put("openai", key)
	c := w.config(st, p)
	other := t.TempDir() // which the agent does not watch
	elsewhere := filepath.Join(other, "real.yaml")
	c.audit = filepath.Join(other, "audit.jsonl") // each entry would be an event
	w.link(elsewhere, "postern.yaml")
	a := w.start(c)
	l := startLoad(t, light, w.ways(a, p)...)

	c.more = "service: by-signal"
	write(t, elsewhere, c.yaml())
	a.Signal(syscall.SIGHUP)
	told := time.Now()
	awaitGeneration(t, a, 2)
	took := time.Since(told)
	t.Logf("in force %d ms after SIGHUP", took.Milliseconds())
	if took > 5*time.Second {
		t.Error("SIGHUP did nothing: the change was noticed by looking")
	}

	c.more = "service: by-looking"
	write(t, elsewhere, c.yaml())
	wrote := time.Now()
	awaitGeneration(t, a, 3)
	took = time.Since(wrote)
	t.Logf("in force %.1f s after a change that nothing told of", took.Seconds())
	if took < 200*time.Millisecond {
		t.Error("something told of the change: this test shows nothing")
	}
	l.end()
}

// A root that the configuration names is replaced: SIGHUP is enough.
func TestReloadOfARoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.sealed()
	key := w.key()
	other := w.provider("other", fake.Options{})
	p := w.provider("openai", fake.Options{Keys: []string{key}})
	st.put("openai", key)
	right := string(read(t, p.ca))
	write(t, p.ca, string(read(t, other.ca)))
	a := w.start(w.config(st, p))
	route := w.ways(a, p)[0]
	if err := route.ask(t.Context()); err == nil || !strings.Contains(err.Error(), "ca_file") || p.Total() > 0 {
		t.Errorf("with another root: %v, and %d requests reached the provider", err, p.Total())
	}
	write(t, p.ca, right)
	a.Signal(syscall.SIGHUP)
	awaitGeneration(t, a, 2)
	route.must(t)
}
