package e2e_test

import (
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

const publicHost = "api.openai.com" // where the catalog's entry leads

// behind starts a provider that only a company's proxy leads to, under its public name.
func (w *world) behind(key string) (*provider, *corporate) {
	w.T.Helper()
	ca, err := fake.NewCA()
	if err != nil {
		w.T.Fatal(err)
	}
	p := w.Provider("openai", fake.Options{Keys: []string{key}, Hosts: []string{publicHost}, CA: ca})
	corp := newCorporate(w.T, map[string]string{publicHost + ":443": p.Addr()}, ca.Pool())
	w.Secret(corp.password)
	w.Secret(corp.basic(corp.password))
	e2etest.Write(w.T, w.Path("corp-ca.pem"), corp.rootPEM())
	p.Host = publicHost
	return p, corp
}

func (w *world) behindConfig(st keyStore) config {
	c := w.Config(st)
	c.Providers = []string{"{name: openai}"}
	c.More = "egress: {proxy: \"env:CORP_PROXY\", ca_file: corp-ca.pem}"
	return c
}

// The only way out is a company's proxy that reads along. The agent's
// credentials for it come from a variable, its root from a file, and every
// request goes through it.
func TestBehindACorporateProxy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.Sealed()
	key := w.Key()
	p, corp := w.behind(key)
	st.Put("openai", key)
	a := w.Start(w.behindConfig(st), "CORP_PROXY="+corp.url(corp.password))
	l := e2etest.StartLoad(t, rate/2, w.Ways(a, p)...)
	l.More(e2etest.Span(2*time.Second, 20*time.Second))
	next := w.Key()
	p.Allow(next)
	first := p.FirstUse(next)
	st.Put("openai", next)
	e2etest.Await(t, first, 20*time.Second, "a request with the new key")
	l.End()
	corp.mu.Lock()
	t.Logf("%d tunnels through the proxy for %d requests", corp.opened[publicHost+":443"], p.Total())
	if len(corp.opened) != 1 || corp.opened[publicHost+":443"] == 0 || corp.refused > 0 {
		t.Errorf("the proxy opened %v and refused %d", corp.opened, corp.refused)
	}
	corp.mu.Unlock()
	for _, r := range p.Requests() {
		if r.SNI != publicHost || r.Host != publicHost {
			t.Fatalf("a request for Host %q with SNI %q", r.Host, r.SNI)
		}
		for _, c := range r.Credentials {
			if c.In != "header Authorization" {
				t.Fatalf("a request carried %s to the provider", c.In)
			}
		}
	}
}

// With the wrong password the client is told which setting to look at, and
// nobody is told the password.
func TestWrongProxyPasswordNamesTheSetting(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.Sealed()
	key := w.Key()
	p, corp := w.behind(key)
	st.Put("openai", key)
	wrong := w.Secret("wrong-password-" + key[len(key)-12:])
	w.Secret(corp.basic(wrong))
	a := w.Start(w.behindConfig(st), "CORP_PROXY="+corp.url(wrong))
	for _, y := range w.Ways(a, p)[:2] {
		err := y.Ask(t.Context())
		if err == nil || !strings.Contains(err.Error(), "egress.proxy") || !strings.Contains(err.Error(), corp.addr) {
			t.Errorf("%s: %v, want an error that names egress.proxy and %s", y.Name, err, corp.addr)
			continue
		}
		t.Logf("%s: %v", y.Name, err)
		w.Clean("the client's error", []byte(err.Error()))
	}
	if p.Total() > 0 {
		t.Errorf("%d requests reached the provider", p.Total())
	}
	a.Stop(t)
	out, said, _ := agenttest.RunEnv(t, agenttest.Env(w.Dir, "CORP_PROXY="+corp.url(wrong)), "", "check", "--probe", "-c", a.Config)
	if !strings.Contains(out, "unknown") {
		t.Errorf("postern check --probe does not say that nobody could be asked:\n%s%s", out, said)
	}
	w.Clean("postern check", []byte(out+said))
}

// Without the company's root nothing is sent: the agent trusts nobody who signs for the provider's name.
func TestCorporateProxyWithoutItsRoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.Sealed()
	key := w.Key()
	p, corp := w.behind(key)
	st.Put("openai", key)
	c := w.behindConfig(st)
	c.More = strings.Replace(c.More, ", ca_file: corp-ca.pem", "", 1)
	a := w.Start(c, "CORP_PROXY="+corp.url(corp.password))
	for _, y := range w.Ways(a, p)[:2] {
		if err := y.Ask(t.Context()); err == nil || !strings.Contains(err.Error(), "egress.ca_file") {
			t.Errorf("%s: %v, want an error that names egress.ca_file", y.Name, err)
		}
	}
	if p.Total() > 0 {
		t.Errorf("%d requests reached the provider", p.Total())
	}
}
