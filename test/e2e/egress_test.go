package e2e_test

import (
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
)

const publicHost = "api.openai.com" // where the catalog's entry leads

// behind starts a provider that only a company's proxy leads to, under its public name.
func (w *world) behind(key string) (*provider, *corporate) {
	w.t.Helper()
	ca, err := fake.NewCA()
	if err != nil {
		w.t.Fatal(err)
	}
	p := w.provider("openai", fake.Options{Keys: []string{key}, Hosts: []string{publicHost}, CA: ca})
	corp := newCorporate(w.t, map[string]string{publicHost + ":443": p.Addr()}, ca.Pool())
	w.secret(corp.password)
	w.secret(corp.basic(corp.password))
	write(w.t, w.path("corp-ca.pem"), corp.rootPEM())
	p.host = publicHost
	return p, corp
}

func (w *world) behindConfig(st keyStore) config {
	c := w.config(st)
	c.providers = []string{"{name: openai}"}
	c.more = "egress: {proxy: \"env:CORP_PROXY\", ca_file: corp-ca.pem}"
	return c
}

// The only way out is a company's proxy that reads along. The agent's
// credentials for it come from a variable, its root from a file, and every
// request goes through it.
func TestBehindACorporateProxy(t *testing.T) {
	w := newWorld(t)
	st := w.sealed()
	key := w.key()
	p, corp := w.behind(key)
	st.put("openai", key)
	a := w.start(w.behindConfig(st), "CORP_PROXY="+corp.url(corp.password))
	l := startLoad(t, rate/2, w.ways(a, p)...)
	l.more(span(2*time.Second, 20*time.Second))
	next := w.key()
	p.Allow(next)
	first := p.FirstUse(next)
	st.put("openai", next)
	await(t, first, 20*time.Second, "a request with the new key")
	l.end()
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
	w := newWorld(t)
	st := w.sealed()
	key := w.key()
	p, corp := w.behind(key)
	st.put("openai", key)
	wrong := w.secret("wrong-password-" + key[len(key)-12:])
	w.secret(corp.basic(wrong))
	a := w.start(w.behindConfig(st), "CORP_PROXY="+corp.url(wrong))
	for _, y := range w.ways(a, p)[:2] {
		err := y.ask(t.Context())
		if err == nil || !strings.Contains(err.Error(), "egress.proxy") || !strings.Contains(err.Error(), corp.addr) {
			t.Errorf("%s: %v, want an error that names egress.proxy and %s", y.name, err, corp.addr)
			continue
		}
		t.Logf("%s: %v", y.name, err)
		w.clean("the client's error", []byte(err.Error()))
	}
	if p.Total() > 0 {
		t.Errorf("%d requests reached the provider", p.Total())
	}
	a.Stop(t)
	out, said, _ := agenttest.RunEnv(t, agenttest.Env(w.dir, "CORP_PROXY="+corp.url(wrong)), "", "check", "--probe", "-c", a.Config)
	if !strings.Contains(out, "unknown") {
		t.Errorf("postern check --probe does not say that nobody could be asked:\n%s%s", out, said)
	}
	w.clean("postern check", []byte(out+said))
}

// Without the company's root nothing is sent: the agent trusts nobody who signs for the provider's name.
func TestCorporateProxyWithoutItsRoot(t *testing.T) {
	w := newWorld(t)
	st := w.sealed()
	key := w.key()
	p, corp := w.behind(key)
	st.put("openai", key)
	c := w.behindConfig(st)
	c.more = strings.Replace(c.more, ", ca_file: corp-ca.pem", "", 1)
	a := w.start(c, "CORP_PROXY="+corp.url(corp.password))
	for _, y := range w.ways(a, p)[:2] {
		if err := y.ask(t.Context()); err == nil || !strings.Contains(err.Error(), "egress.ca_file") {
			t.Errorf("%s: %v, want an error that names egress.ca_file", y.name, err)
		}
	}
	if p.Total() > 0 {
		t.Errorf("%d requests reached the provider", p.Total())
	}
}
