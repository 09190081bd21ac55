package e2e_test

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
	"github.com/postern-proxy/postern/test/tools"
)

// A web page must not be able to spend the key, whatever a browser does for it
// (testdata/browser/attempts.js), and whoever serves it: another site, a name
// that was rebound to the agent's address, another port of the same address.
// Programs are served all the same. Two records show it: what came out of the
// browser, and what reached the provider.
func TestNoPageSpendsTheKey(t *testing.T) {
	t.Parallel()
	b := newBrowsed(t)
	if b == nil {
		return
	}
	s := b.site()
	route, evil := "http://"+b.relay.addr, "http://evil.test:"+s.port
	rebound := "http://rebound.test:" + b.relay.port()
	c := b.browser()
	for _, p := range []page{
		{"another-site", evil, route, every},
		{"another-site-tls", "https://evil.test:" + s.tlsPort, route, every + " service-worker"},
		{"localhost", "http://localhost:" + s.port, route, every + " service-worker"},
		{"same-address", "http://127.0.0.1:" + s.port, route, every + " service-worker"},
		{"rebound", rebound, rebound, every + " worker-script"},
		{"by-localhost", evil, "http://localhost:" + b.relay.port(), every},
	} {
		b.browse(c, s, p, "/openai/v1/", evil)
		b.came(p.name, p.want)
	}
	// Addresses that somebody typed, or that another program handed over.
	c.open(route + "/openai/v1/typed/address")
	c.open(evil + "/redirect?code=302&to=" + url.QueryEscape(route+"/openai/v1/typed/redirected"))
	b.came("typed", "address redirected")
	c.end()
	b.unspent()
}

// every are the attempts that each page's browser lets out.
const every = "fetch fetch-no-cors fetch-post-text fetch-post-json fetch-key xhr beacon websocket event-source img script css-import " +
	"iframe iframe-no-referrer form-get form-post form-post-text form-post-multipart link link-no-referrer link-ping window redirected-post redirected-iframe null-sandbox worker csp-report"

// The same where the browser uses the agent as its proxy and trusts its CA.
func TestNoPageSpendsTheKeyThroughTheProxy(t *testing.T) {
	t.Parallel()
	b := newBrowsed(t)
	if b == nil {
		return
	}
	s := b.site()
	evil := "http://evil.test:" + s.port
	c := b.browser("--proxy-server=http://"+b.relay.addr, "--proxy-bypass-list=<-loopback>;evil.test")
	b.browse(c, s, page{name: "absolute", from: evil, to: "http://" + b.provider.Host}, "/v1/", evil)
	b.came("absolute", "fetch fetch-no-cors fetch-post-text fetch-post-json img script iframe form-get form-post link window redirected-post null-sandbox")
	b.browse(c, s, page{name: "connect", from: evil, to: "https://" + b.provider.Host}, "/v1/", evil)
	c.open(evil + "/redirect?code=302&to=" + url.QueryEscape("https://"+b.provider.Host+"/v1/typed/redirected"))
	// What passes inside of tunnels only the agent can count.
	agenttest.Eventually(t, 20*time.Second, "a page's requests come in tunnels", func() bool {
		return b.a.Metric(t, `postern_requests_total{outcome="cross_site",provider="openai",status="4xx",via="connect"}`) >= float64(len(strings.Fields(every)))
	})
	c.end()
	b.unspent()
}

// page is one that tries everything: where it lies, where it sends, and which attempts at least must come.
type page struct{ name, from, to, want string }

// browsed is the cast: a provider that counts, an agent, and a relay before it
// that records what browsers send. The agent takes the relay's address for its own.
type browsed struct {
	*world
	provider *provider
	a        *agenttest.Agent
	relay    *relay
	chromium string
	pages    []string
}

// newBrowsed is nil where no browser is to be had.
func newBrowsed(t *testing.T) *browsed {
	t.Helper()
	chromium, err := tools.Chromium.Find()
	if err != nil {
		agenttest.NotRun(t, "a browser's pages", err)
		return nil
	}
	w := newWorld(t)
	key := w.Key()
	p := w.Provider("openai", fake.Options{Keys: []string{key}, Records: 8192})
	st := w.Sealed()
	st.Put("openai", key)
	r := newRelay(t)
	c := w.Config(st, p)
	c.Hosts = []string{r.addr}
	a := w.Start(c)
	r.start(a.Proxy)
	return &browsed{world: w, provider: p, a: a, relay: r, chromium: chromium}
}

// browse opens a page, which says at home when it has tried everything.
func (b *browsed) browse(c *browser, s *site, p page, route, home string) {
	b.T.Helper()
	b.pages = append(b.pages, p.name)
	if strings.HasPrefix(p.from, "https:") {
		home = p.from // or the browser would not let it say so
	}
	c.open(p.from + "/page?" + url.Values{"name": {p.name}, "target": {p.to + route + p.name + "/"}, "home": {home}}.Encode())
	if got := e2etest.Await(b.T, s.done, 60*time.Second, "the page "+p.name+" has tried everything"); got != p.name {
		b.T.Fatalf("the page %s was done while %s was awaited", got, p.name)
	}
}

// came waits for attempts to come out of the browser: without them its silence would mean nothing.
func (b *browsed) came(page, want string) {
	b.T.Helper()
	var missing []string
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		seen := b.relay.all()
		missing = slices.DeleteFunc(strings.Fields(want), func(name string) bool {
			return slices.ContainsFunc(seen, func(s sighting) bool { return s.page == page && s.attempt == name })
		})
		if len(missing) == 0 {
			return
		}
		if time.Now().After(deadline) {
			b.T.Fatalf("of %s these never came out of the browser: %v\n%s", page, missing, b.table())
		}
	}
}

// unspent: the provider has seen none of it, and a program is served still.
func (b *browsed) unspent() {
	b.T.Helper()
	b.relay.close()
	for _, s := range b.relay.all() {
		ours := s.page == "typed" || slices.Contains(b.pages, s.page)
		if ours && s.code != "cross_site" && s.code != "host_not_allowed" && s.status != 0 {
			b.T.Errorf("%s, %s: status %d %s", s.page, s.attempt, s.status, s.code)
		}
	}
	for _, r := range b.provider.Requests() {
		if r.Path != models { // the probe's
			b.T.Errorf("the provider was asked: %s %s, with the key: %t", r.Method, r.Path, r.Header.Get("Authorization") != "")
		}
	}
	for _, y := range b.Ways(b.a, b.provider) {
		if err := y.Ask(context.Background()); err != nil {
			b.T.Errorf("a program's request, %s: %v", y.Name, err)
		}
	}
	if testing.Verbose() {
		b.T.Logf("what came out of the browser:\n%s", b.table())
	}
}

// table is what came out of the browser, and what became of it.
func (b *browsed) table() string {
	var out strings.Builder
	for _, s := range b.relay.all() {
		if s.page == "" {
			continue // the browser's own
		}
		fmt.Fprintf(&out, "%-16s %-24s %-7s Host: %s, Origin: %q, Sec-Fetch-Site: %s, -Mode: %s, -Dest: %s: %d %s\n", s.page, s.attempt, s.method, s.host,
			s.header.Get("Origin"), s.header.Get("Sec-Fetch-Site"), s.header.Get("Sec-Fetch-Mode"), s.header.Get("Sec-Fetch-Dest"), s.status, s.code)
	}
	return out.String()
}
