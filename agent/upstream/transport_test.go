package upstream

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
)

// counted is a provider that counts handshakes. While burst is set, it answers
// nobody until that many requests are there.
type counted struct {
	*httptest.Server
	handshakes atomic.Int32
	burst      int

	mu      sync.Mutex
	waiting int
	all     chan struct{}
}

func newCounted(t *testing.T, ca *authority, http2 bool, burst int) *counted {
	t.Helper()
	c := &counted{burst: burst, all: make(chan struct{})}
	c.Server = provider(t, ca.leaf("127.0.0.1"), func(s *httptest.Server) {
		s.EnableHTTP2 = http2
		s.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
			c.handshakes.Add(1)
			return nil, nil
		}
		s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c.arrive()
			w.Write([]byte(r.Proto))
		})
	})
	return c
}

func (c *counted) arrive() {
	c.mu.Lock()
	all := c.all
	if c.waiting++; c.waiting == c.burst {
		c.waiting, c.all = 0, make(chan struct{})
		close(all)
	}
	c.mu.Unlock()
	<-all
}

// Thirty-two clients that send at the same time, again and again, need
// thirty-two handshakes: net/http's own pool of two would make it one for nearly every request.
func TestConnectionsAreReused(t *testing.T) {
	const clients, rounds = 32, 10
	ca := newAuthority(t)
	for _, through := range []string{"directly", "through a proxy"} {
		t.Run(through, func(t *testing.T) {
			s := newCounted(t, ca, false, clients)
			o := Options{Roots: ca.pem()}
			url := s.URL
			if through == "through a proxy" {
				p := newCorporate(t, nil, leadsTo(s.Listener.Addr().String(), established))
				o.EgressProxy, url = parse(t, "http://"+p.addr), "https://1.2.3.4:443"
				s.TLS.Certificates[0] = ca.leaf("1.2.3.4")
				defer func() {
					if n := len(p.asked()); n != clients {
						t.Errorf("%d tunnels for %d clients", n, clients)
					}
				}()
			}
			tr := transport(t, dialer(t, o), TransportOptions{})
			defer tr.CloseIdleConnections()
			for range rounds {
				var wg sync.WaitGroup
				for range clients {
					wg.Go(func() {
						if _, err := get(t, tr, url); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
			}
			if n := s.handshakes.Load(); n != clients {
				t.Errorf("%d handshakes for %d clients", n, clients)
			}
		})
	}
}

// HTTP/2 is spoken where it was asked for and the provider can; nowhere else.
func TestHTTP2WhenAskedAndOnlyThen(t *testing.T) {
	ca := newAuthority(t)
	for _, c := range []struct {
		asked, offered bool
		proto          string
		handshakes     int32
	}{
		{asked: false, offered: true, proto: "HTTP/1.1", handshakes: 8},
		{asked: true, offered: false, proto: "HTTP/1.1", handshakes: 8},
		{asked: true, offered: true, proto: "HTTP/2.0", handshakes: 1},
	} {
		s := newCounted(t, ca, c.offered, 8)
		tr := transport(t, dialer(t, Options{Roots: ca.pem()}), TransportOptions{HTTP2: c.asked})
		if c.proto == "HTTP/2.0" { // the first connection is made, so that all eight find it
			s.burst = 1
			if _, err := get(t, tr, s.URL); err != nil {
				t.Fatal(err)
			}
			s.burst = 8
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if proto, err := get(t, tr, s.URL); err != nil || proto != c.proto {
					t.Errorf("asked %v, offered %v: %s, %v", c.asked, c.offered, proto, err)
				}
			})
		}
		wg.Wait()
		if n := s.handshakes.Load(); n != c.handshakes {
			t.Errorf("asked %v, offered %v: %d handshakes for 8 requests at once, want %d", c.asked, c.offered, n, c.handshakes)
		}
		tr.CloseIdleConnections()
	}
}

// One silent HTTP/2 connection would hold up every request to its host for as
// long as a model may think.
func TestSilentHTTP2ConnectionsAreGivenUp(t *testing.T) {
	tr := transport(t, dialer(t, Options{}), TransportOptions{HTTP2: true})
	if h := tr.HTTP2; h == nil || h.SendPingTimeout <= 0 || h.SendPingTimeout+h.PingTimeout >= tr.ResponseHeaderTimeout {
		t.Errorf("%+v", h)
	}
}

// Nothing of a transport is shared: a provider's connections end with it alone.
func TestTransportsShareNothing(t *testing.T) {
	ca := newAuthority(t)
	s := newCounted(t, ca, false, 1)
	d := dialer(t, Options{Roots: ca.pem()})
	one, two := transport(t, d, TransportOptions{}), transport(t, d, TransportOptions{})
	for _, tr := range []*http.Transport{one, two, two} {
		if _, err := get(t, tr, s.URL); err != nil {
			t.Fatal(err)
		}
	}
	one.CloseIdleConnections()
	if _, err := get(t, two, s.URL); err != nil {
		t.Fatal(err)
	}
	if n := s.handshakes.Load(); n != 2 {
		t.Errorf("%d handshakes, want 2", n)
	}
	if one.TLSClientConfig == two.TLSClientConfig || one.TLSClientConfig.ClientSessionCache == two.TLSClientConfig.ClientSessionCache {
		t.Error("they share a TLS configuration")
	}
	if one.Proxy != nil || one.DialTLSContext != nil || one.TLSClientConfig.InsecureSkipVerify || one.TLSClientConfig.MinVersion < tls.VersionTLS12 {
		t.Error("a transport may bypass the dialer")
	}
}

// A key is spoken over a connection that was closed under it only where nothing
// was sent yet; what the client sees otherwise is an error, not a second request.
func TestAClosedConnectionIsSaidToBe(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ca := newAuthority(t)
	cert := ca.leaf("127.0.0.1")
	answers := []string{"", "HTTP/1.1 200 OK\r\nbroken\r\n\r\n", "nonsense\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"}
	go func() {
		for _, a := range answers {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
			tc.Read(make([]byte, 4096))
			tc.Write([]byte(a))
			tc.Close()
		}
	}()
	tr := transport(t, dialer(t, Options{Roots: ca.pem()}), TransportOptions{})
	for i, want := range []string{"closed", "protocol", "protocol", "protocol"} {
		if _, err := get(t, tr, "https://"+ln.Addr().String()); kind(err) != want {
			t.Errorf("%q: %v (kind %s), want %s", answers[i], err, kind(err), want)
		}
	}
}
