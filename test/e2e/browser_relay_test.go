package e2e_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
)

// sighting is one request that passed a relay, and its answer.
type sighting struct {
	method, host  string
	page, attempt string // the last two segments of its path
	header        http.Header
	status        int
	code          string // the Postern-Error field
}

// relay stands before an agent: it passes bytes on, and reads along. On its
// port at another address, a name's owner serves a page before the name leads
// to the agent (a browser cannot tell: its addresses are mapped by name).
type relay struct {
	addr string
	to   string

	lns   []net.Listener
	wg    sync.WaitGroup
	mu    sync.Mutex
	conns map[net.Conn]bool
	seen  []*sighting
}

const reboundIP = "127.0.0.2"

func newRelay(t *testing.T) *relay {
	t.Helper()
	r := &relay{conns: map[net.Conn]bool{}}
	for _, addr := range []string{"127.0.0.1:0", reboundIP + ":"} {
		ln, err := net.Listen("tcp", addr+r.port())
		if err != nil {
			t.Fatal(err)
		}
		if r.lns = append(r.lns, ln); r.addr == "" {
			r.addr = ln.Addr().String()
		}
	}
	t.Cleanup(r.close)
	return r
}

// start begins to pass on.
func (r *relay) start(to string) {
	r.to = to
	for _, ln := range r.lns {
		r.wg.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				r.wg.Go(func() { r.serve(c) })
			}
		})
	}
}

func (r *relay) port() string {
	_, port, _ := net.SplitHostPort(r.addr)
	return port
}

// close ends every connection and waits until all that passed is recorded.
func (r *relay) close() {
	for _, ln := range r.lns {
		ln.Close()
	}
	r.mu.Lock()
	for c := range r.conns {
		c.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

func (r *relay) keep(c net.Conn) func() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns[c] = true
	return func() {
		c.Close()
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.conns, c)
	}
}

func (r *relay) serve(client net.Conn) {
	defer r.keep(client)()
	in := bufio.NewReader(client)
	if start, err := in.Peek(9); err == nil && (string(start) == "GET /page" || string(start) == "GET /atte") {
		servePage(client, in)
		return
	}
	agent, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer r.keep(agent)()
	asked, asking := io.Pipe()
	answered, answering := io.Pipe()
	queue := make(chan *http.Request, 64)
	var wg sync.WaitGroup
	wg.Go(func() { r.requests(asked, queue) })
	wg.Go(func() { r.answers(answered, queue) })
	wg.Go(func() {
		io.Copy(agent, io.TeeReader(in, asking))
		asking.Close()
		agent.(*net.TCPConn).CloseWrite()
	})
	io.Copy(client, io.TeeReader(agent, answering))
	answering.Close()
	client.Close()
	wg.Wait()
}

// requests reads along with the client's side.
func (r *relay) requests(from io.Reader, queue chan<- *http.Request) {
	defer io.Copy(io.Discard, from)
	defer close(queue)
	br := bufio.NewReader(from)
	for {
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		queue <- req
		io.Copy(io.Discard, req.Body)
	}
}

// answers reads along with the agent's side.
func (r *relay) answers(from io.Reader, queue <-chan *http.Request) {
	defer io.Copy(io.Discard, from)
	br := bufio.NewReader(from)
	for req := range queue {
		path := strings.Split(req.URL.Path, "/")
		s := &sighting{method: req.Method, host: req.Host, header: req.Header, attempt: path[len(path)-1]}
		if len(path) > 1 {
			s.page = path[len(path)-2]
		}
		r.mu.Lock()
		r.seen = append(r.seen, s)
		r.mu.Unlock()
		resp, err := http.ReadResponse(br, req)
		if err != nil {
			continue
		}
		r.mu.Lock()
		s.status, s.code = resp.StatusCode, resp.Header.Get("Postern-Error")
		r.mu.Unlock()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			continue
		}
	}
}

// all is what came, with an answer.
func (r *relay) all() []sighting {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]sighting, 0, len(r.seen))
	for _, s := range r.seen {
		out = append(out, *s)
	}
	return out
}

// servePage serves pages of a name before it leads elsewhere, one a connection.
func servePage(c net.Conn, in *bufio.Reader) {
	req, err := http.ReadRequest(in)
	if err != nil {
		return
	}
	rec := httptest.NewRecorder()
	pages{}.ServeHTTP(rec, req)
	resp := rec.Result()
	resp.Close = true
	resp.Write(c)
}

// pages are what somebody serves who wants the key spent.
type pages struct{ done func(page string) }

func (p pages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	switch r.URL.Path {
	case "/page":
		w.Header().Set("Content-Security-Policy-Report-Only", "font-src 'none'; report-uri "+q.Get("target")+"csp-report")
		serveFile(w, "page.html", "text/html")
	case "/attempts.js":
		serveFile(w, "attempts.js", "text/javascript")
	case "/worker.js":
		w.Header().Set("Content-Type", "text/javascript")
		io.WriteString(w, `onmessage = e => e.waitUntil(fetch(e.data, {mode: "no-cors", method: "POST", body: "x"}));`)
	case "/document":
		w.Header().Set("Content-Type", "image/svg+xml")
		to := html.EscapeString(q.Get("to"))
		fmt.Fprintf(w, `<?xml-stylesheet type="text/xsl" href="%s-xslt"?><svg xmlns="http://www.w3.org/2000/svg"><image href="%s"/></svg>`, to, to)
	case "/redirect":
		var code int
		fmt.Sscan(q.Get("code"), &code)
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.Header().Set("Location", q.Get("to"))
		w.WriteHeader(code)
	case "/done":
		if p.done != nil {
			p.done(q.Get("page"))
		}
		w.WriteHeader(http.StatusNoContent)
	default:
		http.NotFound(w, r)
	}
}

func serveFile(w http.ResponseWriter, name, kind string) {
	b, err := os.ReadFile(filepath.Join("testdata", "browser", name))
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", kind+"; charset=utf-8")
	w.Write(b)
}

// site serves pages over HTTP and over TLS.
type site struct {
	port, tlsPort string
	done          chan string
}

func (b *browsed) site() *site {
	s := &site{done: make(chan string, 16)}
	handler := pages{done: func(page string) { s.done <- page }}
	plain, secure := httptest.NewServer(handler), httptest.NewUnstartedServer(handler)
	secure.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	secure.StartTLS()
	b.T.Cleanup(plain.Close)
	b.T.Cleanup(secure.Close)
	s.port, s.tlsPort = port(plain), port(secure)
	return s
}

func port(s *httptest.Server) string {
	_, p, _ := net.SplitHostPort(s.Listener.Addr().String())
	return p
}

// browser is a Chromium that runs.
type browser struct {
	t        *testing.T
	cmd      *exec.Cmd
	devtools string
	said     *agenttest.Buffer
	done     chan struct{}
}

// browser starts one with a profile of its own, whose names lead to loopback or nowhere.
func (b *browsed) browser(flags ...string) *browser {
	b.T.Helper()
	profile, err := os.MkdirTemp("", "postern-browser-")
	if err != nil {
		b.T.Fatal(err)
	}
	c := &browser{t: b.T, said: &agenttest.Buffer{}, done: make(chan struct{})}
	c.cmd = exec.Command(b.chromium, append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--disable-breakpad", "--disable-popup-blocking",
		// What a browser itself may refuse is not what is tried here.
		"--disable-features=LocalNetworkAccessChecks,HttpsUpgrades,HttpsFirstBalancedModeAutoEnable", "--ignore-certificate-errors",
		"--user-data-dir=" + profile, "--remote-debugging-port=0",
		"--host-resolver-rules=MAP evil.test 127.0.0.1, MAP rebound.test " + reboundIP + ", MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
	}, append(flags, "about:blank")...)...)
	c.cmd.Env = agenttest.Env(profile)
	c.cmd.Stderr = c.said
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it is many processes
	if err := c.cmd.Start(); err != nil {
		b.T.Fatal(err)
	}
	go func() {
		c.cmd.Wait()
		close(c.done)
	}()
	b.T.Cleanup(func() {
		c.end()
		os.RemoveAll(profile)
		if b.T.Failed() {
			b.T.Logf("the browser said:\n%s", c.said.Tail(4000))
		}
	})
	agenttest.Eventually(b.T, 60*time.Second, "the browser runs", func() bool {
		text, err := os.ReadFile(filepath.Join(profile, "DevToolsActivePort"))
		at, _, whole := strings.Cut(string(text), "\n")
		c.devtools = "http://127.0.0.1:" + at
		return err == nil && whole
	})
	return c
}

// open opens an address in a new window, as a person does who types it.
func (c *browser) open(address string) {
	c.t.Helper()
	req, err := http.NewRequest(http.MethodPut, c.devtools+"/json/new?"+url.QueryEscape(address), nil)
	if err != nil {
		c.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		c.t.Fatalf("%s: %s", resp.Status, b)
	}
}

// end ends the browser with all its processes.
func (c *browser) end() {
	syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
	<-c.done
}
