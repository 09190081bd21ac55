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
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// generation is the number of the configuration in force.
func generation(t *testing.T, a *agenttest.Agent) int {
	t.Helper()
	return int(a.Metric(t, "postern_config_generation"))
}

// awaitGeneration waits until the log says that a configuration is in force: then all of it is.
func awaitGeneration(t *testing.T, a *agenttest.Agent, n int) {
	t.Helper()
	e2etest.SaysSo(t, a, fmt.Sprintf(`"msg":"a new configuration is in force","generation":%d}`, n))
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
		key, second := w.Key(), w.Key()
		p := w.Provider("openai", fake.Options{Keys: []string{key}})
		q := w.Provider("second", fake.Options{Keys: []string{second}})
		q.Host = strings.Replace(q.Host, "localhost", "127.0.0.1", 1) // another name for the CA's constraints
		st.Put("openai", key)
		st.Put("second", second)
		c := w.Config(st, p)
		a := w.Start(c)
		before := e2etest.Read(t, w.Path("ca/ca.pem"))
		l := e2etest.StartLoad(t, rate, w.Ways(a, p)...)
		l.More(500 * time.Millisecond)

		t.Log("a file renamed over the old one: a provider more")
		both := c
		both.Providers = []string{p.Entry(""), q.Entry("")}
		e2etest.Write(t, a.Config, both.YAML())
		awaitGeneration(t, a, 2)
		for _, y := range w.Ways(a, q) { // trusting the CA file as it is now
			y.Must(t)
		}
		old := way{Name: "connect, with the CA file of before", Client: w.Client(w.Through(a, before)), URL: "https://" + p.Host + "/v1/chat/completions"}
		old.Must(t)
		old.URL = "https://" + q.Host + "/v1/chat/completions"
		if old.Ask(t.Context()) == nil {
			t.Error("a client that trusts the first CA file alone trusts a host that was added later: the CA has no name constraints")
		}

		t.Log("a file that is not valid")
		e2etest.Write(t, a.Config, strings.Replace(both.YAML(), "rotation:", "rotatoin:", 1))
		agenttest.Eventually(t, 20*time.Second, "the bad file is noticed", func() bool { return a.Metric(t, reloadFailed) == 1 })
		e2etest.SaysSo(t, a, "the old one stays", "rotatoin: unknown field")
		agenttest.Eventually(t, 5*time.Second, reloadOK+" is 0", func() bool { return a.Metric(t, reloadOK) == 0 })
		if n := generation(t, a); n != 2 {
			t.Errorf("generation %d", n)
		}

		t.Log("an address that cannot change while the agent runs")
		moved := both
		moved.Proxy = e2etest.FreePort(t)
		e2etest.Write(t, a.Config, moved.YAML())
		agenttest.Eventually(t, 20*time.Second, "the change is refused", func() bool { return a.Metric(t, reloadFailed) == 2 })
		e2etest.SaysSo(t, a, "listen.proxy: cannot change while the agent runs; restart it")

		t.Log("a key that cannot be loaded")
		missing := both
		missing.Providers = append(missing.Providers, strings.Replace(q.Entry(", key: nowhere, forward: false"), "name: second", "name: third", 1))
		e2etest.Write(t, a.Config, missing.YAML())
		l.More(time.Second) // it waits for the key, for half a minute, and serves meanwhile
		if n := generation(t, a); n != 2 {
			t.Errorf("generation %d without its key", n)
		}
		for _, y := range w.Ways(a, q) {
			y.Must(t)
		}

		st.Put("nowhere", second)
		awaitGeneration(t, a, 3)
		if ok := a.Metric(t, reloadOK); ok != 1 {
			t.Errorf("%s is %v after a good reload", reloadOK, ok)
		}

		t.Log("a provider less")
		e2etest.Write(t, a.Config, c.YAML())
		awaitGeneration(t, a, 4)
		if err := w.Ways(a, q)[0].Ask(t.Context()); err == nil || !strings.Contains(err.Error(), "404") {
			t.Errorf("the route of a provider that was removed: %v", err)
		}
		l.End()
	})
}

// Many generations, one after the other, under load: what is replaced ends the
// requests that it began, and wipes its keys.
func TestManyReloadsUnderLoad(t *testing.T) {
	w := newWorld(t)
	st := w.Sealed()
	key := w.Key()
	p := w.Provider("openai", fake.Options{Keys: []string{key}})
	st.Put("openai", key)
	c := w.Config(st, p)
	a := w.Start(c)
	l := e2etest.StartLoad(t, rate, w.Ways(a, p)...)
	const reloads = 12
	for n := range reloads {
		c.More = "service: s" + string(rune('a'+n))
		e2etest.Write(t, a.Config, c.YAML())
		awaitGeneration(t, a, n+2)
	}
	l.End()
	agenttest.Eventually(t, 20*time.Second, "the keys of the generations before are wiped", func() bool {
		return strings.Count(a.Log.String(), `"msg":"version wiped"`) == reloads
	})
	if values := e2etest.Status(t, a).Memory.Values; values > 12 {
		t.Errorf("%d values are in the arena after %d reloads", values, reloads)
	}
}

// Kubernetes swaps a symbolic link next to the file; the file's own name never changes.
func TestReloadOfAMountedConfigMap(t *testing.T) {
	w := newWorld(t)
	st := w.Sealed()
	key := w.Key()
	p := w.Provider("openai", fake.Options{Keys: []string{key}})
	st.Put("openai", key)
	c := w.Config(st, p)
	w.link("..2026_1", "..data")
	w.link("..data/postern.yaml", "postern.yaml")
	if err := os.Mkdir(w.Path("..2026_1"), 0o755); err != nil {
		t.Fatal(err)
	}
	a := w.Start(c) // which writes the file through both links
	l := e2etest.StartLoad(t, rate, w.Ways(a, p)...)
	l.More(500 * time.Millisecond)

	if err := os.Mkdir(w.Path("..2026_2"), 0o755); err != nil {
		t.Fatal(err)
	}
	c.More = "service: checkout"
	e2etest.Write(t, w.Path("..2026_2/postern.yaml"), c.YAML())
	w.link("..2026_2", "..data_tmp")
	swapped := time.Now()
	if err := os.Rename(w.Path("..data_tmp"), w.Path("..data")); err != nil {
		t.Fatal(err)
	}
	awaitGeneration(t, a, 2)
	took := time.Since(swapped)
	t.Logf("in force %d ms after the swap", took.Milliseconds())
	if took > slower*2*time.Second {
		t.Error("the swap was noticed by looking, not by being told")
	}
	if s := e2etest.Status(t, a).Service; s != "checkout" {
		t.Errorf("the service is %q", s)
	}
	l.End()
}

func (w *world) link(to, name string) {
	w.T.Helper()
	if err := os.Symlink(to, w.Path(name)); err != nil {
		w.T.Fatal(err)
	}
}

// Where no event tells of a change, SIGHUP does; and where nobody sends one, the
// agent finds out by itself, later.
func TestReloadBySignalAndByLooking(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.Sealed()
	key := w.Key()
	p := w.Provider("openai", fake.Options{Keys: []string{key}})
	st.Put("openai", key)
	c := w.Config(st, p)
	other := t.TempDir() // which the agent does not watch
	elsewhere := filepath.Join(other, "real.yaml")
	c.Audit = filepath.Join(other, "audit.jsonl") // each entry would be an event
	w.link(elsewhere, "postern.yaml")
	a := w.Start(c)
	l := e2etest.StartLoad(t, light, w.Ways(a, p)...)

	c.More = "service: by-signal"
	e2etest.Write(t, elsewhere, c.YAML())
	a.Signal(syscall.SIGHUP)
	told := time.Now()
	awaitGeneration(t, a, 2)
	took := time.Since(told)
	t.Logf("in force %d ms after SIGHUP", took.Milliseconds())
	if took > 5*time.Second {
		t.Error("SIGHUP did nothing: the change was noticed by looking")
	}

	c.More = "service: by-looking"
	e2etest.Write(t, elsewhere, c.YAML())
	wrote := time.Now()
	awaitGeneration(t, a, 3)
	took = time.Since(wrote)
	t.Logf("in force %.1f s after a change that nothing told of", took.Seconds())
	if took < 200*time.Millisecond {
		t.Error("something told of the change: this test shows nothing")
	}
	l.End()
}

// A root that the configuration names is replaced: SIGHUP is enough.
func TestReloadOfARoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.Sealed()
	key := w.Key()
	other := w.Provider("other", fake.Options{})
	p := w.Provider("openai", fake.Options{Keys: []string{key}})
	st.Put("openai", key)
	right := string(e2etest.Read(t, p.CA))
	e2etest.Write(t, p.CA, string(e2etest.Read(t, other.CA)))
	a := w.Start(w.Config(st, p))
	route := w.Ways(a, p)[0]
	if err := route.Ask(t.Context()); err == nil || !strings.Contains(err.Error(), "ca_file") || p.Total() > 0 {
		t.Errorf("with another root: %v, and %d requests reached the provider", err, p.Total())
	}
	e2etest.Write(t, p.CA, right)
	a.Signal(syscall.SIGHUP)
	awaitGeneration(t, a, 2)
	route.Must(t)
}
