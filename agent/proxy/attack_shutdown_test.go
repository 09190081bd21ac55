package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/upstream"
)

// cutOff shuts the server down with little patience, and wants that it was needed.
func (w *world) cutOff(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- w.s.Shutdown(ctx) }()
	select {
	case err := <-done:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("shutdown: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("shutdown does not end")
	}
	until(t, "a connection is left", func() bool { return w.s.conns.count.Load() == 0 && w.registered() == 0 })
}

// Whatever is under way when the patience of a shutdown ends, it ends.
func TestShutdownCutsWhatIsLeft(t *testing.T) {
	for name, c := range map[string]struct{ text, read string }{
		"an upload that nobody reads": {"POST PRE/v1/stall HTTP/1.1\r\nHost: HOST\r\nContent-Length: 100000000\r\n\r\n", ""},
		"an upload that pauses":       {"POST PRE/v1/stall HTTP/1.1\r\nHost: HOST\r\nContent-Length: 100\r\n\r\nabc", ""},
		"a request without an answer": {"GET PRE/v1/stall HTTP/1.1\r\nHost: HOST\r\n\r\n", ""},
		"an answer without an end":    {"GET PRE/v1/half HTTP/1.1\r\nHost: HOST\r\n\r\n", "half"},
		"a WebSocket":                 {"GET PRE/v1/ws HTTP/1.1\r\nHost: HOST\r\n" + wsHead, "101 Switching"},
	} {
		t.Run(name, func(t *testing.T) {
			stop := make(chan struct{})
			stall := func(r *http.Request) {
				select {
				case <-r.Context().Done():
				case <-stop:
				}
			}
			w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/v1/half":
					io.WriteString(rw, "half")
					rw.(http.Flusher).Flush()
				case "/v1/ws":
					if conn, _, err := rw.(http.Hijacker).Hijack(); err == nil {
						io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
						io.Copy(io.Discard, conn)
						conn.Close()
					}
					return
				}
				stall(r)
			})
			t.Cleanup(func() { close(stop) })
			var sending sync.WaitGroup
			for _, y := range w.ways() {
				before := len(w.requests())
				io.WriteString(y, y.fill(c.text))
				if c.read != "" {
					if err := readUntil(y, c.read); err != nil {
						t.Fatal(err)
					}
				}
				until(t, "not forwarded", func() bool { return len(w.requests()) > before })
				if strings.Contains(c.text, "00000000") {
					sending.Go(func() { io.CopyN(y, &zeros{100000000}, 100000000) })
				}
			}
			w.cutOff(t)
			sending.Wait()
		})
	}
}

// silent is a listener on which somebody accepts and says nothing.
func silent(t *testing.T) string {
	t.Helper()
	return foreignHost(t, func(c net.Conn) { io.Copy(io.Discard, c) })
}

// Tunnels too: those that stand, and those whose far side is still being dialled.
func TestShutdownCutsTunnels(t *testing.T) {
	w := newWorld(t, nil, withTunnel)
	c, resp := w.connect(silent(t))
	if resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	// Through an egress proxy that never answers.
	d, err := upstream.New(upstream.Options{EgressProxy: &url.URL{Scheme: "http", Host: silent(t)}})
	if err != nil {
		t.Fatal(err)
	}
	rt := *w.s.routing.Load()
	rt.Dialer = d
	w.s.routing.Store(&rt)
	dialling := w.dial()
	io.WriteString(dialling, "CONNECT api.example.com:443 HTTP/1.1\r\nHost: api.example.com:443\r\n\r\n")
	until(t, "not taken", func() bool { return w.s.conns.count.Load() == 2 })
	w.cutOff(t)
	for _, c := range []net.Conn{c, dialling} {
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if b, err := io.ReadAll(c); strings.Contains(string(b), " 200 ") || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%q, %v", b, err)
		}
	}
	// One that was dialled in time to be too late is closed.
	late, other := pipe(t)
	w.s.conns.add(&idleConn{Conn: late, idle: tunnelIdle, onClose: w.s.conns.remove})
	if _, err := other.Read(make([]byte, 1)); err != io.EOF || w.registered() != 0 {
		t.Errorf("%v, %d registered", err, w.registered())
	}
}

// What refusals there were stands in the record when the server has stopped.
func TestRefusalsAreRecordedBeforeTheEnd(t *testing.T) {
	sink := &slowSink{begun: make(chan struct{}), goOn: make(chan struct{})}
	d := newDenials(Options{Audit: sink})
	d.add("code-0", "", "127.0.0.1:1")
	<-sink.begun
	for i := range 20 {
		d.add(fmt.Sprint("code-", i+1), "", "127.0.0.1:1")
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		d.stop()
	}()
	<-d.quit
	close(sink.goOn)
	<-stopped
	if n := len(sink.reasons()); n != 21 {
		t.Errorf("%d entries: %v", n, sink.reasons())
	}
}

// slowSink holds its first entry until it may go on.
type slowSink struct {
	entries
	once        sync.Once
	begun, goOn chan struct{}
}

func (s *slowSink) Append(ctx context.Context, e audit.Event) (audit.Head, error) {
	s.once.Do(func() { close(s.begun) })
	<-s.goOn
	return s.entries.Append(ctx, e)
}

// A mistake outside of any exchange ends one connection, and is recorded.
func TestPanicOnAConnectionIsContained(t *testing.T) {
	w := newWorld(t, nil)
	w.s.Leaf = func(string) (*tls.Certificate, error) { panic("boom") }
	c, resp := w.connect(w.upHost)
	if resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	if err := tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Handshake(); err == nil {
		t.Error("the handshake succeeded")
	}
	until(t, "not recorded", func() bool { return strings.Contains(w.log.String(), "panic on a connection") })
	w.settled(t, "after a panic")
	resp, err := w.client().Get(w.url("/openai/v1/models"))
	if err != nil {
		t.Fatal(err)
	}
	readAll(t, resp)
}

// A client has headTimeout to send its first head, a TLS handshake included,
// and idleTimeout for each further one.
func TestTimeForAHead(t *testing.T) {
	w := newWorld(t, nil, withTimes(func(s *Server) { s.headTimeout, s.idleTimeout = 100*time.Millisecond, time.Hour }))
	ends := func(c net.Conn) {
		t.Helper()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if b, err := io.ReadAll(c); len(b) > 0 || isTimeout(err) {
			t.Errorf("%q, %v", b, err)
		}
	}
	silent, slow, inTunnel := w.dial(), w.dial(), w.dial()
	io.WriteString(slow, "GET / HTTP/1.1\r\nHo")
	fmt.Fprintf(inTunnel, "CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", w.upHost)
	if err := readUntil(inTunnel, "\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{silent, slow, inTunnel} {
		ends(c)
	}
	for _, patience := range []time.Duration{time.Hour, 100 * time.Millisecond} {
		w := newWorld(t, nil, withTimes(func(s *Server) { s.idleTimeout = patience }))
		c := w.dial()
		fmt.Fprintf(c, "GET /nosuch HTTP/1.1\r\nHost: %s\r\n\r\n", w.addr)
		if err := readUntil(c, "\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
		if patience < time.Hour {
			c.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.Copy(io.Discard, c); err != nil {
				t.Error(err)
			}
			continue
		}
		c.SetReadDeadline(time.Now().Add(3 * sweepSlow / 2)) // longer than a head may take, and somebody looks
		if _, err := io.Copy(io.Discard, c); !isTimeout(err) {
			t.Errorf("an idle connection: %v", err)
		}
	}
}

// A provider that says nothing for too long is given up.
func TestTimeForAnAnswer(t *testing.T) {
	stop := make(chan struct{})
	w := newWorld(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-stop:
		}
	}, withTimes(func(s *Server) { s.sweeper.first = 100 * time.Millisecond }))
	defer close(stop)
	for _, y := range w.ways() {
		y.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(y, y.fill("GET PRE/v1/models HTTP/1.1\r\nHost: HOST\r\n\r\n"))
		resp, err := http.ReadResponse(bufio.NewReader(y), nil)
		if err != nil {
			t.Fatal(err)
		}
		if readAll(t, resp); resp.StatusCode != http.StatusGatewayTimeout || resp.Header.Get(errorField) != codeTimeout {
			t.Errorf("%s", resp.Status)
		}
	}
}
