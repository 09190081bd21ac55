package wall_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
)

// patience bounds every wait; nothing is known by how long it took.
const patience = 20 * time.Second

// run is one case over one path.
type run struct {
	t     *testing.T
	w     *wall
	c     *kase
	on    string
	a     *agent
	p     *provider
	conn  *client
	heard bytes.Buffer // all that any client connection of this run received
	n     int          // fences
}

// reply is one answer as the client has it.
type reply struct {
	*http.Response
	body string
	err  error // of the body
}

// client is one connection to the agent, plain or inside a tunnel.
type client struct {
	net.Conn
	br      *bufio.Reader
	streams *streams // where it speaks HTTP/2
}

// CloseWrite ends the sending side.
func (c *client) CloseWrite() {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		h.CloseWrite()
	}
}

// hearing writes down what a connection receives.
type hearing struct {
	net.Conn
	r *run
}

func (h hearing) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	h.r.heard.Write(p[:n])
	return n, err
}

func (h hearing) CloseWrite() error { return h.Conn.(*net.TCPConn).CloseWrite() }

// try does one case over one path.
func (w *wall) try(t *testing.T, c *kase, on string) {
	r := &run{t: t, w: w, c: c, on: on, p: w.providers[c.to]}
	if c.to == "" {
		r.p = w.providers["openai"]
	}
	if c.agent == "" {
		r.a = w.agent("deny")
	} else if c.agent != "none" {
		r.a = w.agent(c.agent)
	}
	w.net.reset(c.says)
	for name, addresses := range c.names {
		w.net.names.give(name, strings.Fields(addresses)...)
	}
	if c.do != nil {
		c.do(r)
		return
	}
	if on == tunnelH2 {
		r.conn = r.openStreams()
		r.judge(r.stream(r.conn, r.requestFields(), c.body))
		return
	}
	r.conn = r.open()
	r.send(r.conn)
	got := r.read(r.conn, "GET")
	r.judge(got)
}

// dial opens a plain connection to the agent.
func (r *run) dial() *client {
	r.t.Helper()
	c, err := net.Dial("tcp", r.a.Proxy)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	h := hearing{c, r}
	return &client{Conn: h, br: bufio.NewReader(h)}
}

// tunnel asks for a tunnel; the answer's status is not 200 where there is none.
func (r *run) tunnel(target string) (*client, *reply) {
	r.t.Helper()
	c := r.dial()
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target)
	return c, r.read(c, "CONNECT")
}

// secure speaks TLS in a tunnel.
func (r *run) secure(c *client, conf *tls.Config) (*client, error) {
	if conf.RootCAs == nil && !conf.InsecureSkipVerify {
		conf.RootCAs = r.a.roots
	}
	tc := tls.Client(c.Conn, conf)
	if err := tc.Handshake(); err != nil {
		return nil, err
	}
	h := &tapedTLS{tc, r}
	return &client{Conn: h, br: bufio.NewReader(h)}, nil
}

// tapedTLS writes down what is decrypted.
type tapedTLS struct {
	*tls.Conn
	r *run
}

func (h *tapedTLS) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	h.r.heard.Write(p[:n])
	return n, err
}

// open makes a connection on which the path's requests are sent.
func (r *run) open() *client {
	r.t.Helper()
	if r.on != connect && r.on != wsTunnel {
		return r.dial()
	}
	return r.openTo(r.p.hostport())
}

// openTo is a tunnel to a provider's host, TLS included.
func (r *run) openTo(hostport string) *client {
	r.t.Helper()
	c, got := r.tunnel(hostport)
	if got.StatusCode != http.StatusOK {
		r.t.Fatalf("CONNECT %s: %s %s", hostport, got.Status, got.body)
	}
	host, _, _ := net.SplitHostPort(hostport)
	if r.p.name == "local" {
		host = "127.0.0.1"
	}
	in, err := r.secure(c, &tls.Config{ServerName: host, NextProtos: []string{"http/1.1"}})
	if err != nil {
		r.t.Fatalf("TLS to %s: %v", hostport, err)
	}
	return in
}

const handshake = "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n"

func (r *run) isWS() bool { return strings.HasPrefix(r.on, "ws-") }

// text is what the case sends.
func (r *run) text() string {
	if r.c.raw != "" {
		return r.fill(r.c.raw)
	}
	s := r.c.send + "\n"
	if r.isWS() {
		s += handshake
	}
	return r.fill(strings.ReplaceAll(s, "\n", "\r\n") + "\r\n" + r.c.body)
}

func (r *run) send(c *client) {
	r.t.Helper()
	r.write(c, r.text())
}

func (r *run) write(c *client, text string) {
	r.t.Helper()
	// The agent may answer, and close, before all has come.
	if _, err := io.WriteString(c, text); err != nil && r.c.want.status == http.StatusOK {
		r.t.Fatalf("writing %q: %v", text, err)
	}
}

// target is how the path writes a path of the provider.
func (r *run) target(path string) string {
	switch r.on {
	case route, ws:
		return "/" + r.p.name + path
	case absolute, wsAbs:
		scheme := "https"
		if r.p.name == "local" {
			scheme = "http"
		}
		return scheme + "://" + r.p.host + path
	}
	return path
}

// host is the Host that a client of the path sends.
func (r *run) host() string {
	if r.on == route || r.on == ws || r.on == direct {
		return r.a.Proxy
	}
	return r.p.host
}

// fill puts into a text what its words in braces stand for.
func (r *run) fill(s string) string {
	f := []string{"{client}", canary + "0123456789abcdef", "{provider}", r.p.host}
	if r.a != nil {
		_, port, _ := net.SplitHostPort(r.a.Proxy)
		_, admin, _ := net.SplitHostPort(r.a.Admin)
		f = append(f, "{host}", r.host(), "{agent}", r.a.Proxy, "{port}", port, "{admin}", admin)
	}
	s = strings.NewReplacer(f...).Replace(s)
	for {
		before, rest, ok := strings.Cut(s, "{/")
		if !ok {
			break
		}
		path, after, _ := strings.Cut(rest, "}")
		s = before + r.target("/"+path) + after
	}
	return s
}

// read is the next answer; its status is 0 where the connection ended instead.
func (r *run) read(c *client, method string) *reply {
	r.t.Helper()
	resp, err := http.ReadResponse(c.br, &http.Request{Method: method})
	for err == nil && resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols {
		resp, err = http.ReadResponse(c.br, &http.Request{Method: method})
	}
	if err != nil {
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			r.t.Fatalf("no answer came, and the connection did not end: %v", err)
		}
		return &reply{Response: &http.Response{Header: http.Header{}}, err: err}
	}
	got := &reply{Response: resp}
	if resp.StatusCode != http.StatusSwitchingProtocols && (method != "CONNECT" || resp.StatusCode != http.StatusOK) {
		b, err := io.ReadAll(resp.Body)
		got.body, got.err = string(b), err
	}
	return got
}

// ask sends one request over a connection and reads its answer.
func (r *run) ask(c *client, head string) *reply {
	r.t.Helper()
	if c.streams != nil {
		return r.stream(c, pairs(r.fill(head)), "")
	}
	r.write(c, r.fill(strings.ReplaceAll(head, "\n", "\r\n")+"\r\n\r\n"))
	return r.read(c, "GET")
}

// ended reports whether the connection ends with no further byte.
func (r *run) ended(c *client) bool {
	b, err := io.ReadAll(c.br)
	var ne net.Error
	return len(b) == 0 && !(errors.As(err, &ne) && ne.Timeout())
}

// fence shows that the agent goes on, that the provider's connection is where it
// should be, and that all that was sent before has been read.
func (r *run) fence() {
	r.t.Helper()
	on := r.on
	defer func() { r.on = on }()
	p := r.p
	defer func() { r.p = p }()
	if r.c.want.n == 0 || p.name == "keyless" {
		r.p = r.w.providers["openai"]
	}
	r.on = route
	r.n++
	name := fmt.Sprintf("%s%d", fence, r.n)
	c := r.dial()
	got := r.ask(c, "GET {/v1/"+name+"} HTTP/1.1\nHost: {host}\nConnection: close")
	if got.body != name {
		r.t.Errorf("what comes after it gets %d %q, %v", got.StatusCode, got.body, got.err)
	}
}

// judge compares what happened with what the case wants.
func (r *run) judge(got *reply) {
	r.t.Helper()
	w := r.c.want
	status := w.status
	if r.isWS() && status == http.StatusOK {
		status = http.StatusSwitchingProtocols
	}
	if !w.anyhow {
		if got.StatusCode != status {
			r.t.Errorf("the answer is %d %q %v, want %d", got.StatusCode, got.body, got.err, status)
		}
		if code := got.Header.Get("Postern-Error"); !slices.Contains(strings.Split(w.code, "|"), code) {
			r.t.Errorf("Postern-Error is %q, want %q", code, w.code)
		}
	}
	if w.answer != nil {
		w.answer(r, got)
	}
	if w.closes && !r.ended(r.conn) {
		r.t.Error("the connection goes on")
	}
	if got.StatusCode == http.StatusOK && got.err == nil && w.n == 1 && !got.Close && !w.closes && r.c.raw == "" && r.on != direct {
		r.n++
		name := fmt.Sprintf("%s%d", fence, r.n)
		if next := r.ask(r.conn, "GET {/v1/"+name+"} HTTP/1.1\nHost: {host}"); next.body != name {
			r.t.Errorf("the next answer on the connection is %d %q, %v", next.StatusCode, next.body, next.err)
		}
	}
	r.fence()
	r.account(w.n, w.check, w.foreign...)
}

// account goes through all that anybody was sent: the provider n requests, each
// with its key, and no other host anything but what is foreign and without a key.
func (r *run) account(n int, check func(*run, *request), foreign ...string) {
	r.t.Helper()
	requests, conns := r.w.net.seen()
	var mine []*request
	for _, q := range requests {
		if strings.Contains(q.target, fence) && q.bad == nil || q.method == "CONNECT" && q.conn.to == "egress.test:3128" && r.w.owner(q.target) != nil {
			continue // a company's proxy is told no more than the host
		}
		r.noStrayKeys(q)
		if p := r.w.owner(q.conn.to); p == nil {
			if !slices.Contains(foreign, q.conn.to) {
				r.t.Errorf("%s was sent %q", q.conn.to, q.raw)
			}
		} else if p == r.p && q.bad != nil && r.c.want.cut {
			continue // it broke off, so nobody acts on it
		} else if p == r.p {
			mine = append(mine, q)
		} else {
			r.t.Errorf("%s was sent %q", q.conn.to, q.raw)
		}
	}
	for _, c := range conns {
		if r.w.owner(c.to) == nil && !slices.Contains(foreign, c.to) && !(r.c.agent == "egress" && c.to == "egress.test:3128") {
			r.t.Errorf("a connection to %s (SNI %q) was opened", c.to, c.sni)
		}
	}
	for _, want := range foreign {
		if !slices.ContainsFunc(conns, func(c *conn) bool { return c.to == want }) && !slices.ContainsFunc(requests, func(q *request) bool { return q.conn.to == want }) {
			r.t.Errorf("nobody came to %s", want)
		}
	}
	if len(mine) != n && !(r.c.want.again && len(mine) == n+1) {
		r.t.Errorf("%s had %d requests, want %d", r.p.name, len(mine), n)
		for _, q := range mine {
			r.t.Logf("%q", q.raw)
		}
	}
	for _, q := range mine {
		r.inOrder(q)
		if check != nil {
			check(r, q)
		}
	}
	r.keyless(r.heard.String(), "the client")
}

// owner is the provider that lists a host; nil if none does.
func (w *wall) owner(hostport string) *provider {
	for _, p := range w.providers {
		if p.hostport() == hostport {
			return p
		}
	}
	switch {
	case strings.HasSuffix(hostport, ".api.openai.com:443"):
		return w.providers["openai"]
	case hostport == "huggingface.co:443":
		return w.providers["huggingface"]
	case strings.HasPrefix(hostport, "bedrock.eu-central-1."):
		return w.providers["bedrock"]
	}
	return nil
}

// noStrayKeys: no key is at a host that is not its own.
func (r *run) noStrayKeys(q *request) {
	r.t.Helper()
	for _, p := range r.w.providers {
		if r.w.owner(q.conn.to) != p {
			if form := found(string(q.raw), p.key); form != "" {
				r.t.Errorf("%s was sent the key of %s (%s)", q.conn.to, p.name, form)
			}
		}
	}
}

// keyless: a text holds no key.
func (r *run) keyless(text, whose string) {
	r.t.Helper()
	for _, p := range r.w.providers {
		if form := found(text, p.key); form != "" {
			r.t.Errorf("%s has seen the key of %s (%s)", whose, p.name, form)
		}
	}
}

// inOrder is what holds of every request that a provider gets (I1–I4).
func (r *run) inOrder(q *request) {
	r.t.Helper()
	if q.bad != nil {
		r.t.Errorf("%s was sent what is no request: %v: %q", r.p.name, q.bad, q.raw)
		return
	}
	host, _, _ := net.SplitHostPort(q.conn.to)
	named := strings.TrimSuffix(q.conn.to, ":443")
	if (!q.conn.tls || q.conn.sni != host && net.ParseIP(host) == nil) && r.p.name != "local" {
		r.t.Errorf("TLS is %v and SNI %q, want %q", q.conn.tls, q.conn.sni, host)
	}
	if got := q.header("Host"); got != named {
		r.t.Errorf("Host is %q, want %q", got, named)
	}
	for _, name := range credentialFields {
		got := q.values(name)
		if strings.EqualFold(name, r.p.field) {
			if len(got) != 1 || got[0] != r.p.value() {
				r.t.Errorf("%s is %q, want %q and nothing else", name, got, r.p.value())
			}
		} else if len(got) > 0 {
			r.t.Errorf("%s is %q, want none", name, got)
		}
	}
	if r.p.name == "query" {
		if n := strings.Count(q.target, "token="+r.p.key); n != 1 || strings.Count(strings.ToLower(q.target), "token=") != 1 {
			r.t.Errorf("the query of %s carries the key %d times", q.target, n)
		}
	} else if found(string(q.raw), r.p.key) == "" && r.p.name != "basic" {
		r.t.Error("the request carries no key")
	}
	if strings.Contains(string(q.raw), canary) || strings.Contains(string(q.raw), "attached-by-postern") {
		r.t.Errorf("the provider has seen the client's own credential: %q", q.raw)
	}
	if te := q.values("Te"); len(te) > 0 && !(r.on == tunnelH2 && q.conn.alpn == "h2" && len(te) == 1 && te[0] == "trailers") {
		r.t.Errorf("TE is passed on: %q", te)
	}
	for _, name := range []string{"Proxy-Connection", "Keep-Alive", "Trailer", "HTTP2-Settings", "Proxy-Authenticate", "X-Forwarded-For", "X-Forwarded-Host", "Forwarded", "Via"} {
		if got := q.values(name); len(got) > 0 {
			r.t.Errorf("%s is passed on: %q", name, got)
		}
	}
	if c := strings.ToLower(q.header("Connection")); c != "" && c != "close" && c != "keep-alive" && !(c == "upgrade" && r.isWS()) {
		r.t.Errorf("Connection is %q", c)
	}
	if u := q.header("Upgrade"); u != "" && !(u == "websocket" && r.isWS()) {
		r.t.Errorf("Upgrade is %q", u)
	}
}

// until waits for something to become so.
func (r *run) until(what string, so func() bool) {
	r.t.Helper()
	agenttest.Eventually(r.t, patience, what, so)
}
