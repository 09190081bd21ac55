package wall_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// ports are those at which the world listens, on every address there is.
var ports = []int{80, 443, 1080, 3128, 8080, 8200, 8443, 9000}

// internet is everything outside the agent. It answers whoever comes, in TLS and
// without, and writes down what it was sent.
type internet struct {
	names *names
	certs *authority

	mu       sync.Mutex
	conns    []*conn
	ever     []*conn // since the beginning
	requests []*request
	answers  map[string]answer // by host; what has none answers {}
	wg       sync.WaitGroup
	open     map[net.Conn]bool
}

// conn is one connection that somebody opened.
type conn struct {
	to   string // host:port, a name where the address is a name's own
	tls  bool
	sni  string
	alpn string
	text bytes.Buffer // all that was received, decrypted; under the internet's lock
}

func (c *conn) host() string { h, _, _ := net.SplitHostPort(c.to); return h }

func serveInternet(t *testing.T) *internet {
	t.Helper()
	w := &internet{names: serveNames(t), certs: newAuthority(t), open: map[net.Conn]bool{}}
	var listeners []net.Listener
	for _, port := range ports {
		ln, err := net.Listen("tcp", "[::]:"+strconv.Itoa(port))
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, ln)
		w.wg.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				w.wg.Go(func() { w.serve(c) })
			}
		})
	}
	t.Cleanup(func() {
		for _, ln := range listeners {
			ln.Close()
		}
		w.mu.Lock()
		for c := range w.open {
			c.Close()
		}
		w.mu.Unlock()
		w.wg.Wait()
	})
	return w
}

// reset begins a new record; connections from before stay open.
func (w *internet) reset(answers map[string]answer) {
	w.names.forget()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns, w.requests, w.answers = nil, nil, answers
}

// seen are the requests since reset, and the connections that were opened.
func (w *internet) seen() ([]*request, []*conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]*request(nil), w.requests...), append([]*conn(nil), w.conns...)
}

func (w *internet) note(r *request) answer {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests = append(w.requests, r)
	if strings.Contains(r.target, fence) {
		return nil
	}
	return w.answers[r.conn.host()]
}

func (w *internet) serve(nc net.Conn) {
	w.mu.Lock()
	at := netip.MustParseAddrPort(nc.LocalAddr().String())
	w.open[nc] = true
	w.mu.Unlock()
	defer func() {
		nc.Close()
		w.mu.Lock()
		delete(w.open, nc)
		w.mu.Unlock()
	}()
	w.meet(&conn{to: net.JoinHostPort(w.names.of(at.Addr()), strconv.Itoa(int(at.Port())))}, nc, bufio.NewReader(nc))
}

// meet is one connection, in TLS if the other side begins so.
func (w *internet) meet(c *conn, nc net.Conn, br *bufio.Reader) {
	w.mu.Lock()
	w.conns, w.ever = append(w.conns, c), append(w.ever, c)
	w.mu.Unlock()
	first, err := br.Peek(1)
	if err != nil {
		return
	}
	ahead := &aheadConn{nc, br}
	switch {
	case first[0] != 0x16:
		w.http1(c, ahead, ahead)
		return
	case c.host() == plainHost:
		io.WriteString(nc, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		return
	}
	c.tls = true
	secure := tls.Server(ahead, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		w.mu.Lock()
		c.sni = h.ServerName
		w.mu.Unlock()
		return w.certs.config(c.host(), h.ServerName)
	}})
	if secure.Handshake() != nil {
		return
	}
	w.mu.Lock()
	c.alpn = secure.ConnectionState().NegotiatedProtocol
	w.mu.Unlock()
	if c.alpn == "h2" {
		w.http2(c, secure)
		return
	}
	w.http1(c, secure, secure)
}

// aheadConn is a connection of which some was read already.
type aheadConn struct {
	net.Conn
	br *bufio.Reader
}

func (a *aheadConn) Read(p []byte) (int, error) { return a.br.Read(p) }

// taped writes down what is read.
type taped struct {
	w *internet
	c *conn
	r io.Reader
}

func (t taped) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.w.mu.Lock()
	t.c.text.Write(p[:n])
	t.w.mu.Unlock()
	return n, err
}
