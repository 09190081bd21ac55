package upstream

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// testPool is a pool that trusts ca.
func testPool(t *testing.T, ca *authority, o Options) *Pool {
	t.Helper()
	if ca != nil {
		o.Roots = ca.pem()
	}
	p, err := dialer(t, o).Pool(TransportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// ask makes one request on c and reads its answer to the end.
func ask(t *testing.T, c *Conn) string {
	t.Helper()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	defer c.SetDeadline(time.Time{})
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func take(t *testing.T, h *Host) *Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := h.Get(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The connection used last is taken first, and a new one resumes the session of those before.
func TestPoolReuses(t *testing.T) {
	ca := newAuthority(t)
	s := provider(t, ca.leaf("127.0.0.1"), func(s *httptest.Server) { s.EnableHTTP2 = true })
	h := testPool(t, ca, Options{}).Host(s.Listener.Addr().String(), false)
	a := take(t, h)
	if got := ask(t, a); got != "hello HTTP/1.1" || a.Reused() {
		t.Fatalf("%q, reused %v", got, a.Reused())
	}
	b := take(t, h)
	if ask(t, b); !b.Conn.(*tls.Conn).ConnectionState().DidResume {
		t.Error("the second handshake was a full one")
	}
	a.Put()
	b.Put()
	if c := take(t, h); c != b || !c.Reused() {
		t.Error("not the one used last")
	} else {
		c.Close()
	}
	if c := take(t, h); c != a || ask(t, c) != "hello HTTP/1.1" {
		t.Error("not the one before")
	} else {
		c.Close()
	}
}

// One that was closed by the other side while it waited, or on which something
// came that nobody asked for, is not used again.
func TestPoolLooksBeforeItTakes(t *testing.T) {
	ca := newAuthority(t)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{ca.leaf("127.0.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for name, spoil := range map[string]func(net.Conn){
		"closed":      func(c net.Conn) { c.Close() },
		"half closed": func(c net.Conn) { c.(*tls.Conn).CloseWrite() },
		"reset":       func(c net.Conn) { c.(*tls.Conn).NetConn().(*net.TCPConn).SetLinger(0); c.(*tls.Conn).NetConn().Close() },
		"speaks":      func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") },
	} {
		t.Run(name, func(t *testing.T) {
			accepted := make(chan net.Conn, 2)
			go func() {
				for range 2 {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					c.(*tls.Conn).Handshake()
					io.WriteString(c, ".") // and the client reads what the handshake left
					accepted <- c
				}
			}()
			h := testPool(t, ca, Options{}).Host(ln.Addr().String(), false)
			a := take(t, h)
			defer a.Close()
			theirs := <-accepted
			defer theirs.Close()
			if _, err := io.ReadFull(a, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			a.Put()
			spoil(theirs)
			for a.AtRest() { // until the network has carried it here
				time.Sleep(time.Millisecond)
			}
			b := take(t, h)
			defer b.Close()
			defer (<-accepted).Close()
			if b == a {
				t.Error("a dead connection was taken")
			}
		})
	}
}

// corked holds back what TLS writes until it is let go, all of it or a part, in one write.
type corked struct {
	net.Conn
	held bytes.Buffer
	cork bool
}

func (c *corked) Write(p []byte) (int, error) {
	if c.cork {
		return c.held.Write(p)
	}
	return c.Conn.Write(p)
}

// crypto/tls reads ahead: what came together with an answer and belongs to none
// must not become the answer to the next request, however soon that is sent.
func TestPoolKeepsNothingThatCameAhead(t *testing.T) {
	ca := newAuthority(t)
	conf := &tls.Config{Certificates: []tls.Certificate{ca.leaf("127.0.0.1")}, DynamicRecordSizingDisabled: true}
	for _, c := range []struct {
		name string
		say  func(*tls.Conn)
		size int // of the answer
		lack int // bytes that do not come
		kept bool
	}{
		{"one answer", func(c *tls.Conn) { c.Write(make([]byte, 100)) }, 100, 0, true},
		{"one answer in two records", func(c *tls.Conn) { c.Write(make([]byte, 60)); c.Write(make([]byte, 40)) }, 100, 0, true},
		{"a long one", func(c *tls.Conn) { c.Write(make([]byte, 40000)) }, 40000, 0, true},
		{"another behind it in its record", func(c *tls.Conn) { c.Write(make([]byte, 200)) }, 100, 0, false},
		{"another behind it in one of its own", func(c *tls.Conn) { c.Write(make([]byte, 100)); c.Write([]byte("x")) }, 100, 0, false},
		{"a part of another", func(c *tls.Conn) { c.Write(make([]byte, 100)); c.Write([]byte("x")) }, 100, 1, false},
		{"a part of another's head", func(c *tls.Conn) { c.Write(make([]byte, 100)); c.Write([]byte("x")) }, 100, 20, false},
		{"its end", func(c *tls.Conn) { c.Write(make([]byte, 100)); c.CloseWrite() }, 100, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			var serving sync.WaitGroup
			defer serving.Wait()
			serving.Go(func() {
				inner, err := ln.Accept()
				if err != nil {
					return
				}
				defer inner.Close()
				cork := &corked{Conn: inner}
				theirs := tls.Server(cork, conf)
				one := make([]byte, 1)
				for round := 0; ; round++ {
					if _, err := io.ReadFull(theirs, one); err != nil {
						return
					}
					if round == 0 { // the handshake's rest goes with it
						theirs.Write(make([]byte, 10))
						continue
					}
					cork.cork = true
					c.say(theirs)
					inner.SetDeadline(time.Time{}) // which CloseWrite has set
					inner.Write(cork.held.Bytes()[:cork.held.Len()-c.lack])
				}
			})
			h := testPool(t, ca, Options{}).Host(ln.Addr().String(), false)
			a := take(t, h)
			defer a.Close()
			for _, size := range []int{10, c.size} {
				if _, err := a.Ask([]byte("?")); err != nil {
					t.Fatal(err)
				}
				// Room for more than the answer, as whoever reads HTTP has, but for the case that its record has more.
				b := make([]byte, size)
				for n := 0; n < size; {
					room := b[n:]
					if c.kept {
						room = append(room, make([]byte, 4096)...)
					}
					k, err := a.Read(room)
					if err != nil {
						t.Fatal(err)
					}
					n += k
				}
				if size == 10 {
					a.Put()
					if b := take(t, h); b != a {
						t.Fatal("not kept after the first answer")
					}
				}
			}
			a.Put()
			h.mu.Lock()
			defer h.mu.Unlock()
			if kept := len(h.idle) == 1; kept != c.kept {
				t.Errorf("kept: %v", kept)
			}
		})
	}
}

// What nobody takes is closed in time, and what comes back after Close too.
func TestPoolLetsGo(t *testing.T) {
	ca := newAuthority(t)
	s := provider(t, ca.leaf("127.0.0.1"))
	p := testPool(t, ca, Options{})
	p.wait = 20 * time.Millisecond
	h := p.Host(s.Listener.Addr().String(), false)
	for range 2 { // the sweep ends, and begins anew
		a := take(t, h)
		ask(t, a)
		a.Put()
		for {
			h.mu.Lock()
			n := len(h.idle)
			h.mu.Unlock()
			if n == 0 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if _, err := a.Write([]byte("x")); err == nil {
			t.Error("it was dropped and not closed")
		}
	}
	b := take(t, h)
	p.Close()
	b.Put()
	if _, err := b.Write([]byte("x")); err == nil {
		t.Error("it came back to a closed pool and stayed open")
	}
	if c := p.Host("127.0.0.1:1", false); !c.closed {
		t.Error("a closed pool gives a host that keeps connections")
	}
}

// What keeps a key from going elsewhere (I1) holds here as for a Transport.
func TestPoolVerifies(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	good := provider(t, ca.leaf("127.0.0.1")).Listener.Addr().String()
	named := provider(t, ca.leaf("other.test")).Listener.Addr().String()
	old := provider(t, ca.leaf("127.0.0.1"), func(s *httptest.Server) { s.TLS.MaxVersion = tls.VersionTLS11 }).Listener.Addr().String()
	for _, c := range []struct {
		name, hostport string
		ca             *authority
		plain          bool
		kind           string
	}{
		{"good", good, ca, false, ""},
		{"unknown authority", good, other, false, "tls"},
		{"another name", named, ca, false, "tls"},
		{"TLS 1.1", old, ca, false, "tls"},
		{"metadata", "169.254.169.254:443", ca, false, "guard"},
		{"plain elsewhere", "192.0.2.1:80", ca, true, "guard"},
		{"plain by name", "localhost:80", ca, true, "guard"},
		{"refused", "127.0.0.1:1", ca, false, "refused"},
	} {
		conn, err := testPool(t, c.ca, Options{}).Host(c.hostport, c.plain).Get(t.Context())
		if kind(err) != c.kind {
			t.Errorf("%s: %v (kind %q, want %q)", c.name, err, kind(err), c.kind)
		}
		if err == nil {
			conn.Close()
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := testPool(t, ca, Options{}).Host(good, false).Get(ctx); kind(err) != "?" {
		t.Errorf("a cancelled dial: %v", err)
	}
}

// Many at once: each connection has one user at a time.
func TestPoolConcurrently(t *testing.T) {
	ca := newAuthority(t)
	s := newCounted(t, ca, false, 1)
	p := testPool(t, ca, Options{})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			h := p.Host(s.Listener.Addr().String(), false)
			for range 20 {
				c, err := h.Get(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				if got := ask(t, c); got != "HTTP/1.1" {
					t.Errorf("%q", got)
				}
				c.Put()
			}
		})
	}
	wg.Wait()
	if n := s.handshakes.Load(); n > 16 {
		t.Errorf("%d handshakes for 16 clients", n)
	}
}

// Through an egress proxy the connection is asked about all the same, and
// taking and giving back costs no allocation.
func TestPoolThroughProxy(t *testing.T) {
	ca := newAuthority(t)
	s := provider(t, ca.leaf("1.2.3.4"))
	corporate := newCorporate(t, nil, leadsTo(s.Listener.Addr().String(), established))
	h := testPool(t, ca, Options{EgressProxy: parse(t, "http://"+corporate.addr)}).Host("1.2.3.4:443", false)
	c := take(t, h)
	ask(t, c)
	if !c.AtRest() {
		t.Error("a connection at rest was found dead")
	}
	c.Put()
	if n := testing.AllocsPerRun(100, func() { take(t, h).Put() }); n > 4 { // take's context
		t.Errorf("%v allocations", n)
	}
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		c, err := h.Get(ctx)
		if err != nil {
			t.Fatal(err)
		}
		c.Put()
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// A connection that was there before Renew carries nothing after it.
func TestPoolRenews(t *testing.T) {
	ca := newAuthority(t)
	s := provider(t, ca.leaf("127.0.0.1"), func(*httptest.Server) {})
	p := testPool(t, ca, Options{})
	h := p.Host(s.Listener.Addr().String(), false)
	idle, used := take(t, h), take(t, h)
	ask(t, idle)
	idle.Put()
	p.Renew()
	ask(t, used)
	used.Put()
	next := take(t, h)
	if next == idle || next == used || next.Reused() {
		t.Error("a connection from before is taken again")
	}
	ask(t, next)
	next.Put()
	if take(t, h) != next {
		t.Error("a connection from after is not kept")
	}
	next.Close()
}
