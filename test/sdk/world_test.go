package sdk_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/clientenv"
	"github.com/postern-proxy/postern/agent/provider/fake"
)

// hosts are the providers' own names, which the agent's catalog lists.
var hosts = map[string]string{
	"api.openai.com":                    "openai",
	"api.anthropic.com":                 "anthropic",
	"generativelanguage.googleapis.com": "gemini",
}

// world is everything beyond the agent: a proxy as the only way out, and behind
// it the providers.
type world struct {
	t      *testing.T
	keys   map[string]string // what each provider accepts
	egress string            // the proxy's URL
	caFile string            // the PEM file of the CA that the providers' certificates are from
	held   chan struct{}     // gets a value when a client has the first chunk of its stream
}

// newWorld starts the providers, each with one key that it accepts, and the way to them.
func newWorld(t *testing.T, dir string) *world {
	t.Helper()
	ca, err := fake.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, keys: map[string]string{}, caFile: filepath.Join(dir, "providers-ca.pem"), held: make(chan struct{}, 1)}
	if err := os.WriteFile(w.caFile, ca.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	addrs := map[string]string{} // where each host is served
	for host, name := range hosts {
		w.keys[name] = newKey(name)
		addrs[host] = w.provider(fake.Options{Kind: name, Hosts: []string{host}, Keys: []string{w.keys[name]}, CA: ca})
	}
	out := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { w.tunnel(rw, r, addrs) }))
	t.Cleanup(out.Close)
	w.egress = out.URL
	return w
}

// inside marks a request that a provider's interceptor has seen.
type inside struct{}

// provider starts one that looks at each request first and holds streams back, and returns its address.
func (w *world) provider(o fake.Options) string {
	w.t.Helper()
	var server *fake.Server
	started := make(chan struct{}) // server is set
	o.Intercept = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Context().Value(inside{}) != nil {
			return false
		}
		if !w.inspect(r, o.Hosts[0]) {
			http.Error(rw, "not such a request", http.StatusBadRequest)
			return true
		}
		<-started
		answer := &heldBack{ResponseWriter: rw, r: r, world: w}
		server.ServeHTTP(answer, r.WithContext(context.WithValue(r.Context(), inside{}, true)))
		answer.finish()
		return true
	}
	server, err := fake.New(o)
	if err != nil {
		w.t.Fatal(err)
	}
	close(started)
	w.t.Cleanup(func() { server.Close() })
	return server.Addr()
}

// inspect fails the test where a request is not for the provider, or where what
// the application sent in place of a key left the agent.
func (w *world) inspect(r *http.Request, host string) bool {
	sent := []string{r.RequestURI}
	for _, values := range r.Header {
		sent = append(sent, values...)
	}
	switch {
	case r.Host != host:
		w.t.Errorf("a request for Host %q reached %s", r.Host, host)
	case strings.Contains(strings.Join(sent, "\n"), clientenv.Placeholder):
		w.t.Errorf("%s %s%s: the placeholder reached the provider", r.Method, r.Host, r.URL.Path)
	default:
		return true
	}
	return false
}

// tunnel is the corporate proxy: CONNECT to a provider leads to its address, anything else fails the test.
func (w *world) tunnel(rw http.ResponseWriter, r *http.Request, addrs map[string]string) {
	host, port, _ := net.SplitHostPort(r.Host)
	if r.Method != http.MethodConnect || addrs[host] == "" || port != "443" {
		w.t.Errorf("%s %s left the agent", r.Method, r.Host)
		http.Error(rw, "not a provider", http.StatusForbidden)
		return
	}
	inner, err := net.Dial("tcp", addrs[host])
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadGateway)
		return
	}
	defer inner.Close()
	outer, early, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		w.t.Error(err)
		return
	}
	defer outer.Close()
	io.WriteString(outer, "HTTP/1.1 200 Connection established\r\n\r\n")
	done := make(chan struct{}, 2)
	go func() { io.Copy(inner, early); done <- struct{}{} }()
	go func() { io.Copy(outer, inner); done <- struct{}{} }()
	<-done
}

// release lets go of the stream that is held back, or of the next one.
func (w *world) release() {
	select {
	case w.held <- struct{}{}:
	default:
	}
}

// heldBack keeps the last event of a streamed answer until the client has
// shown that it has the first: nobody on the way may wait for the whole.
type heldBack struct {
	http.ResponseWriter
	r     *http.Request
	world *world
	kept  []byte
	begun bool
}

func (h *heldBack) Write(p []byte) (int, error) {
	if !strings.HasPrefix(h.Header().Get("Content-Type"), "text/event-stream") {
		return h.ResponseWriter.Write(p)
	}
	if !h.begun {
		h.begun = true
		select { // what the client showed before is of another stream
		case <-h.world.held:
		default:
		}
	}
	h.kept = append(h.kept, p...)
	return len(p), h.send(lastEvent(h.kept))
}

// lastEvent is where the last event in a piece of a stream begins.
func lastEvent(b []byte) int {
	b = bytes.TrimRight(b, "\r\n")
	for _, between := range []string{"\n\n", "\r\n\r\n"} {
		if i := bytes.LastIndex(b, []byte(between)); i >= 0 {
			return i + len(between)
		}
	}
	return 0
}

// Flush is for http.Flusher. A stream's events are flushed as they are sent.
func (h *heldBack) Flush() { h.flush() }

func (h *heldBack) flush() error { return http.NewResponseController(h.ResponseWriter).Flush() }

func (h *heldBack) send(n int) error {
	if _, err := h.ResponseWriter.Write(h.kept[:n]); err != nil {
		return err
	}
	h.kept = slices.Clone(h.kept[n:])
	return h.flush()
}

// finish sends the last event once the client has the first.
func (h *heldBack) finish() {
	if len(h.kept) == 0 {
		return
	}
	select {
	case <-h.world.held:
	case <-h.r.Context().Done():
	case <-time.After(30 * time.Second):
		h.world.t.Errorf("%s %s: the client had nothing of the stream after 30 s", h.r.Method, h.r.URL.Path)
	}
	h.send(len(h.kept))
}
