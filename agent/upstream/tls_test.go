package upstream

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// Whatever is wrong with a certificate, no request is sent, and the error says
// what to look at.
func TestTLSIsAlwaysVerified(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	expired := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}
	client := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }
	for _, c := range []struct {
		what string
		cert tls.Certificate
		conf func(*tls.Config)
		says string
	}{
		{what: "unknown authority", cert: stranger.leaf("127.0.0.1"), says: "ca_file"},
		{what: "another name", cert: ca.leaf("api.openai.com"), says: "another name"},
		{what: "expired", cert: ca.leaf("127.0.0.1", expired), says: "clock"},
		{what: "not a server's", cert: ca.leaf("127.0.0.1", client), says: "not for servers"},
		{what: "TLS 1.1 at most", cert: ca.leaf("127.0.0.1"), conf: func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, says: "TLS 1.2"},
		{what: "wants a client certificate", cert: ca.leaf("127.0.0.1"), conf: func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert }, says: "certificate required"},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := provider(t, c.cert, func(s *httptest.Server) {
				s.Config.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request arrived") })
				if c.conf != nil {
					c.conf(s.TLS)
				}
			})
			tr := transport(t, dialer(t, Options{}), TransportOptions{CAFile: ca.pem()})
			_, err := get(t, tr, s.URL)
			if kind(err) != "tls" || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v (kind %s), want kind tls and %q", err, kind(err), c.says)
			}
		})
	}
}

func TestPlaintextWhereTLSIsExpected(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	ssh, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ssh.Close()
	go func() {
		c, err := ssh.Accept()
		if err == nil {
			io.WriteString(c, "SSH-2.0-OpenSSH_9.9\r\n")
			io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	tr := transport(t, dialer(t, Options{}), TransportOptions{})
	for _, addr := range []string{s.Listener.Addr().String(), ssh.Addr().String()} {
		if _, err := get(t, tr, "https://"+addr); kind(err) != "tls" || !strings.Contains(err.Error(), "does not speak TLS") {
			t.Errorf("%v (kind %s)", err, kind(err))
		}
	}
}

// Three roots are trusted side by side, each where it is named: the system's
// (here none of these), the egress's for everybody, a provider's for itself alone.
func TestExtraRootsAddUp(t *testing.T) {
	corporate, house, other := newAuthority(t), newAuthority(t), newAuthority(t)
	byCorporate := provider(t, corporate.leaf("127.0.0.1"))
	byHouse := provider(t, house.leaf("127.0.0.1"))
	d := dialer(t, Options{Roots: corporate.pem()})
	plain := transport(t, d, TransportOptions{})
	both := transport(t, d, TransportOptions{CAFile: house.pem()})
	bundle := transport(t, d, TransportOptions{CAFile: append(other.pem(), house.pem()...)})
	for _, c := range []struct {
		what string
		tr   *http.Transport
		url  string
		kind string
	}{
		{"egress.ca_file for a provider without its own", plain, byCorporate.URL, ""},
		{"a provider's ca_file is nobody else's", plain, byHouse.URL, "tls"},
		{"ca_file", both, byHouse.URL, ""},
		{"egress.ca_file beside ca_file", both, byCorporate.URL, ""},
		{"a bundle of two", bundle, byHouse.URL, ""},
	} {
		if _, err := get(t, c.tr, c.url); kind(err) != c.kind {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

func TestRootsThatAreNone(t *testing.T) {
	for _, s := range []string{"not PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if _, err := New(Options{Roots: []byte(s)}); err == nil || !strings.HasPrefix(err.Error(), "egress.ca_file: ") {
			t.Errorf("egress.ca_file %q: %v", s, err)
		}
		if _, err := dialer(t, Options{}).Transport(TransportOptions{CAFile: []byte(s)}); err == nil || !strings.HasPrefix(err.Error(), "ca_file: ") {
			t.Errorf("ca_file %q: %v", s, err)
		}
	}
}

// A server that picks TLS 1.1 by itself, without an alert.
func TestAnOldServerHello(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		hello := append([]byte{2, 0, 0, 38, 3, 2}, make([]byte, 32)...) // ServerHello, TLS 1.1, random
		hello = append(hello, 0, 0xc0, 0x13, 0)                         // no session, ECDHE-RSA-AES128-SHA, no compression
		c.Write(append([]byte{22, 3, 2, 0, byte(len(hello))}, hello...))
		io.Copy(io.Discard, c)
	}()
	_, err = get(t, transport(t, dialer(t, Options{}), TransportOptions{}), "https://"+ln.Addr().String())
	if kind(err) != "tls" || !strings.Contains(err.Error(), "TLS 1.2") {
		t.Errorf("%v (kind %s)", err, kind(err))
	}
}

func TestTLS12IsEnough(t *testing.T) {
	ca := newAuthority(t)
	s := provider(t, ca.leaf("127.0.0.1"), func(s *httptest.Server) { s.TLS.MaxVersion = tls.VersionTLS12 })
	if _, err := get(t, transport(t, dialer(t, Options{}), TransportOptions{CAFile: ca.pem()}), s.URL); err != nil {
		t.Error(err)
	}
}

// A redirect is an answer like any other: it is not followed, with the key least of all.
func TestRedirectsAreNotFollowed(t *testing.T) {
	ca := newAuthority(t)
	elsewhere := provider(t, ca.leaf("127.0.0.1"), func(s *httptest.Server) {
		s.Config.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") })
	})
	s := provider(t, ca.leaf("127.0.0.1"), func(s *httptest.Server) {
		s.Config.Handler = http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect)
	})
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL, nil)
	resp, err := transport(t, dialer(t, Options{}), TransportOptions{CAFile: ca.pem()}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusTemporaryRedirect || resp.Header.Get("Location") != elsewhere.URL {
		t.Errorf("%s to %q", resp.Status, resp.Header.Get("Location"))
	}
}

// The system's roots are many: a thousand providers with one ca_file share one set of them.
func TestOneCAFileIsReadOnce(t *testing.T) {
	d, ca, other := dialer(t, Options{}), newAuthority(t).pem(), newAuthority(t).pem()
	roots := func(caFile []byte) *x509.CertPool {
		c, err := d.clientTLS(TransportOptions{CAFile: caFile})
		if err != nil {
			t.Fatal(err)
		}
		return c.RootCAs
	}
	if roots(ca) != roots(bytes.Clone(ca)) {
		t.Error("the same file makes two sets")
	}
	if roots(ca).Equal(roots(other)) || roots(ca) == roots(nil) {
		t.Error("different files make one set")
	}
}
