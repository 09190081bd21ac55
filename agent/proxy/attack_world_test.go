package proxy

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/keyring"
)

// wsHead ends the head of a WebSocket's opening handshake.
const wsHead = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

// acceptAll serves each connection of ln with f, in a goroutine of its own,
// until the test ends.
func acceptAll(t *testing.T, ln net.Listener, f func(net.Conn)) {
	t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				f(c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
}

// rawUpstream puts an upstream in place of the world's that speaks bytes, inside TLS.
func (w *world) rawUpstream(t *testing.T, f func(c net.Conn)) {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: w.upstream.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	acceptAll(t, ln, f)
	w.upHost = ln.Addr().String()
	w.s.Swap(w.routing(worldConfig{}))
}

// says is an upstream that answers every request with text, whatever it asks.
func says(text func() string) func(net.Conn) {
	return func(c net.Conn) {
		br := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			if _, err := io.WriteString(c, text()); err != nil {
				return
			}
		}
	}
}

// way is how a raw client reaches the provider.
type way struct {
	net.Conn
	raw          *net.TCPConn
	host, prefix string // Host, and what stands before the provider's path
}

// way opens a connection to the listener, or one inside a tunnel.
func (w *world) way(inside bool) way {
	w.t.Helper()
	if inside {
		c := w.tunnel()
		return way{c, c.NetConn().(*net.TCPConn), w.upHost, ""}
	}
	c := w.dial()
	return way{c, c.(*net.TCPConn), w.addr, "/openai"}
}

// ways opens one of each.
func (w *world) ways() []way { return []way{w.way(false), w.way(true)} }

// fill puts the way's host for HOST and its prefix for PRE.
func (y way) fill(text string) string {
	return strings.NewReplacer("HOST", y.host, "PRE", y.prefix).Replace(text)
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

// registered is how many connections a shutdown would have to end.
func (w *world) registered() int {
	w.s.conns.mu.Lock()
	defer w.s.conns.mu.Unlock()
	return len(w.s.conns.conns)
}

// settled waits until nothing of any client is left: no connection, no byte of
// a body, and no lease. New versions of the same keys are installed then.
func (w *world) settled(t *testing.T, what string) {
	t.Helper()
	until(t, what+": a connection or a body is left", func() bool {
		return w.s.conns.count.Load() == 0 && w.registered() == 0 && w.s.bodies.used.Load() == 0
	})
	w.renew(t, what, w.key.Entries())
}

// renew installs new versions of the two keys; those of before are wiped once no lease holds them.
func (w *world) renew(t *testing.T, what string, was []keyring.Entry) {
	t.Helper()
	w.install(key1, key2)
	for _, e := range was {
		select {
		case <-e.Version.Close():
		case <-time.After(10 * time.Second):
			t.Fatal(what + ": a lease is left")
		}
	}
}

// readUntil reads from c until text came.
func readUntil(c net.Conn, text string) error {
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	var got []byte
	b := make([]byte, 1024)
	for !strings.Contains(string(got), text) {
		n, err := c.Read(b)
		got = append(got, b[:n]...)
		if err != nil {
			return fmt.Errorf("read %q instead of %q: %w", got, text, err)
		}
	}
	return nil
}
