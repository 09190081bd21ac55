package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func parse(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// corporate is an egress proxy. What it does with a CONNECT is up to each test.
type corporate struct {
	t    *testing.T
	addr string

	mu    sync.Mutex
	heads []string // "CONNECT host:port", with what Proxy-Authorization said behind it
	wg    sync.WaitGroup
}

func newCorporate(t *testing.T, conf *tls.Config, serve func(c net.Conn, target string)) *corporate {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &corporate{t: t, addr: ln.Addr().String()}
	p.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if conf != nil {
				c = tls.Server(c, conf)
			}
			p.wg.Go(func() {
				defer c.Close()
				req, err := http.ReadRequest(bufio.NewReader(c))
				if err != nil {
					io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
					return
				}
				p.mu.Lock()
				p.heads = append(p.heads, strings.TrimSpace(req.Method+" "+req.Host+" "+req.Header.Get("Proxy-Authorization")))
				p.mu.Unlock()
				serve(c, req.Host)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		p.wg.Wait()
	})
	return p
}

func (p *corporate) asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.heads)
}

// says answers every CONNECT with these bytes and holds the connection.
func says(answer string) func(net.Conn, string) {
	return func(c net.Conn, _ string) {
		io.WriteString(c, answer)
		io.Copy(io.Discard, c)
	}
}

const established = "HTTP/1.1 200 Connection established\r\n\r\n"

// leadsTo answers 200 and joins the tunnel to an address, whatever was asked for.
func leadsTo(addr, answer string) func(net.Conn, string) {
	return func(c net.Conn, _ string) {
		far, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		defer far.Close()
		io.WriteString(c, answer)
		var wg sync.WaitGroup
		wg.Go(func() { io.Copy(far, c); far.Close() })
		io.Copy(c, far)
		c.Close()
		wg.Wait()
	}
}

// A provider is reached through an http and an https proxy, with and without
// credentials. The name goes to the proxy unresolved; TLS is between the agent
// and the provider all the same.
func TestThroughAnEgressProxy(t *testing.T) {
	ca := newAuthority(t)
	s := provider(t, ca.leaf("api.test"))
	secure := &tls.Config{Certificates: []tls.Certificate{ca.leaf("127.0.0.1")}}
	for _, c := range []struct {
		name string
		conf *tls.Config
		user string
		auth string
	}{
		{name: "http"},
		{name: "https", conf: secure},
		{name: "http with a password", user: "agent:p%40ss:w%2Frd@", auth: "agent:p@ss:w/rd"},
		{name: "https with a password", conf: secure, user: "agent:secret@", auth: "agent:secret"},
		{name: "a user without a password", user: "agent@", auth: "agent:"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newCorporate(t, c.conf, leadsTo(s.Listener.Addr().String(), established))
			scheme := "http"
			if c.conf != nil {
				scheme = "https"
			}
			d := dialer(t, Options{EgressProxy: parse(t, scheme+"://"+c.user+p.addr), Roots: ca.pem()})
			newNames(nil).use(d) // no name resolves here
			body, err := get(t, transport(t, d, TransportOptions{}), "https://api.test/v1/models")
			if err != nil || body != "hello HTTP/1.1" {
				t.Errorf("%q, %v", body, err)
			}
			want := "CONNECT api.test:443"
			if c.auth != "" {
				want += " Basic " + base64.StdEncoding.EncodeToString([]byte(c.auth))
			}
			if got := p.asked(); !slices.Equal(got, []string{want}) {
				t.Errorf("the proxy was asked %q, want %q", got, want)
			}
		})
	}
}

func TestNoProxyIsReachedDirectly(t *testing.T) {
	ca := newAuthority(t)
	s := provider(t, ca.leaf("direct.corp.test"))
	p := newCorporate(t, nil, says("HTTP/1.1 418 I'm a teapot\r\n\r\n"))
	d := dialer(t, Options{EgressProxy: parse(t, "http://"+p.addr), NoProxy: ".corp.test,10.0.0.0/8,exact.test:443", Roots: ca.pem()})
	newNames(map[string][][]string{"direct.corp.test.": {{"127.0.0.1"}}, "corp.test.": {{"127.0.0.1"}}}).use(d)
	tr := transport(t, d, TransportOptions{})
	port := portOf(t, s.Listener.Addr().String())
	if _, err := get(t, tr, "https://direct.corp.test:"+port); err != nil {
		t.Errorf("a name under no_proxy: %v", err)
	}
	if n := len(p.asked()); n != 0 {
		t.Errorf("the proxy was asked %d times for what is under no_proxy", n)
	}
	for target, want := range map[string]bool{
		"corp.test:443": true, "exact.test:443": false, "exact.test:8443": true, "other.test:443": true, "10.1.2.3:443": false, "11.1.2.3:443": true,
		"127.0.0.1:443": false, "localhost:443": false, // loopback never
	} {
		if u, err := d.proxyFor(target); err != nil || (u != nil) != want {
			t.Errorf("%s: through the proxy %v (%v), want %v", target, u != nil, err, want)
		}
	}
}

// The variables that TestMain sets lead nowhere: if one of them were read, this would fail.
func TestTheEnvironmentIsNotRead(t *testing.T) {
	ca := newAuthority(t)
	s := provider(t, ca.leaf("api.test"))
	dns := newNames(map[string][][]string{"api.test.": {{"127.0.0.1"}}})
	d := dialer(t, Options{Roots: ca.pem()})
	dns.use(d)
	req, _ := http.NewRequest(http.MethodGet, "https://api.test", nil)
	if u, err := http.ProxyFromEnvironment(req); err != nil || u == nil || u.Host != "127.0.0.1:1" {
		t.Fatalf("the environment of this test says %v, %v", u, err)
	}
	if _, err := get(t, transport(t, d, TransportOptions{}), "https://api.test:"+portOf(t, s.Listener.Addr().String())); err != nil {
		t.Error(err)
	}
}

// What an egress proxy may answer besides 200. The client is told which host
// could not be reached, and which proxy stood in the way, and never the password.
func TestWhatAnEgressProxyAnswers(t *testing.T) {
	const password = "corp-password-5f4dcc3b5aa765d6"
	for answer, want := range map[string]string{
		"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 5000\r\n\r\nlogin": "407 Proxy Authentication Required; check the user and password in egress.proxy",
		"HTTP/1.1 403 Forbidden\r\n\r\n<html>":                    "403 Forbidden; check whether it lets this host and port pass",
		"HTTP/1.1 502 Bad Gateway\r\n\r\n":                        "502 Bad Gateway; it could not reach the host itself",
		"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n":          "302 Found",
		"HTTP/1.1 299 " + password + "\r\n\r\n":                   "299",
		"SSH-2.0-OpenSSH_9.9\r\n\r\n":                             "not valid HTTP",
		"HTTP/1.1 two hundred\r\n\r\n":                            "not valid HTTP",
		"HTTP/1.1 200 OK\r\nno colon\r\n\r\n":                     "not valid HTTP",
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", maxAnswer): "not valid HTTP",
	} {
		t.Run(want, func(t *testing.T) {
			p := newCorporate(t, nil, says(answer))
			d := dialer(t, Options{EgressProxy: parse(t, "http://agent:"+password+"@"+p.addr)})
			started := time.Now()
			_, err := d.Dial(t.Context(), "api.test:443")
			if kind(err) != "proxy" || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "cannot reach api.test:443: the egress proxy "+p.addr) {
				t.Errorf("%v (kind %s), want %q", err, kind(err), want)
			}
			for e := err; e != nil; e = errors.Unwrap(e) {
				if strings.Contains(e.Error(), password) || strings.Contains(e.Error(), base64.StdEncoding.EncodeToString([]byte("agent:"+password))) {
					t.Errorf("the password stands in %q", e)
				}
			}
			if took := time.Since(started); took > connectTimeout/2 {
				t.Errorf("it took %s: a body that is announced is not waited for", took)
			}
		})
	}
}

// An egress proxy that is not there, not TLS, or hangs up.
func TestAnEgressProxyThatIsNone(t *testing.T) {
	ca := newAuthority(t)
	hangsUp := newCorporate(t, nil, func(net.Conn, string) {})
	plain := newCorporate(t, nil, nil)
	mute := newCorporate(t, &tls.Config{Certificates: []tls.Certificate{ca.leaf("other.test")}}, says(established))
	for _, c := range []struct{ proxy, says string }{
		{"http://127.0.0.1:1", "connection refused"},
		{"http://" + hangsUp.addr, "closed"},
		{"https://" + plain.addr, "does not speak TLS"},
		{"https://" + mute.addr, "another name"},
		{"http://169.254.169.254:3128", "address guard"},
	} {
		d := dialer(t, Options{EgressProxy: parse(t, c.proxy), Roots: ca.pem()})
		conn, err := d.Dial(t.Context(), "api.test:443")
		if err == nil {
			conn.Close()
		}
		if kind(err) != "proxy" || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "whether an egress proxy is needed") {
			t.Errorf("%s: %v (kind %s), want %q", c.proxy, err, kind(err), c.says)
		}
	}
	if n := len(mute.asked()); n != 0 {
		t.Error("credentials and target were sent to a proxy whose certificate is another's")
	}
}

func TestProxyURLsThatAreNone(t *testing.T) {
	for _, s := range []string{"socks5://127.0.0.1:1080", "ftp://proxy.test", "http://", "http://:3128", "//proxy.test:3128"} {
		if _, err := New(Options{EgressProxy: parse(t, s)}); err == nil || !strings.HasPrefix(err.Error(), "egress.proxy: ") {
			t.Errorf("%s: %v", s, err)
		}
	}
}

// Behind a proxy no socket is opened to the target, so an address is checked before the proxy is asked.
func TestTheGuardStandsBeforeTheProxy(t *testing.T) {
	p := newCorporate(t, nil, says(established))
	ours := netip.MustParseAddrPort("10.1.2.3:8701")
	d := dialer(t, Options{EgressProxy: parse(t, "http://"+p.addr), Own: func(ap netip.AddrPort) bool { return ap == ours }})
	for _, target := range []string{"169.254.169.254:80", "[fd00:ec2::254]:80", "[::ffff:169.254.169.254]:80", "10.1.2.3:8701", "[::ffff:10.1.2.3]:8701"} {
		conn, err := d.Dial(t.Context(), target)
		if err == nil {
			conn.Close()
		}
		if kind(err) != "guard" {
			t.Errorf("%s: %v", target, err)
		}
	}
	if got := p.asked(); len(got) != 0 {
		t.Errorf("the proxy was asked %q", got)
	}
}

// A host behind the tunnel may speak first, and its words may come together with the proxy's 200.
func TestEarlyBytesBelongToTheTunnel(t *testing.T) {
	p := newCorporate(t, nil, says("HTTP/1.1 200 OK\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\nSSH-2.0-OpenSSH_9.9\r\n"))
	d := dialer(t, Options{EgressProxy: parse(t, "http://"+p.addr)})
	conn, err := d.Dial(t.Context(), "git.test:22")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, ok := conn.(*net.TCPConn); !ok {
		t.Errorf("the tunnel is a %T, which cannot be half closed", conn)
	}
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if line, err := bufio.NewReader(conn).ReadString('\n'); line != "SSH-2.0-OpenSSH_9.9\r\n" {
		t.Errorf("%q, %v", line, err)
	}
}

// Where TLS is expected, early bytes are no handshake, and nothing is sent.
func TestEarlyBytesBeforeTLS(t *testing.T) {
	p := newCorporate(t, nil, says(established+"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"))
	d := dialer(t, Options{EgressProxy: parse(t, "http://"+p.addr)})
	if body, err := get(t, transport(t, d, TransportOptions{}), "https://api.test"); kind(err) != "tls" {
		t.Errorf("%q, %v", body, err)
	}
}

// How long the proxy may take for its answer says nothing about the tunnel.
func TestATunnelOutlivesItsMaking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		go func() {
			if _, err := http.ReadRequest(bufio.NewReader(theirs)); err == nil {
				io.WriteString(theirs, established)
			}
			time.Sleep(time.Hour)
			io.WriteString(theirs, "x")
			theirs.Close()
		}()
		if err := connectThrough(t.Context(), ours, parse(t, "http://proxy.test"), "api.test:443"); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(ours); string(b) != "x" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
	})
}

// Nor is a proxy waited for without end that takes the question and never answers.
func TestAProxyThatNeverAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		go io.Copy(io.Discard, theirs)
		began := time.Now()
		err := connectThrough(t.Context(), ours, parse(t, "http://proxy.test"), "api.test:443")
		if err = explainProxy("api.test:443", "proxy.test", err); kind(err) != "proxy" || !strings.Contains(err.Error(), "no answer in time") || time.Since(began) != connectTimeout {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		ours.Close()
	})
}

// Whoever asked may leave while the proxy is silent, at once and before it began.
func TestASilentEgressProxyAndAClientThatLeaves(t *testing.T) {
	asked := make(chan struct{}, 8)
	p := newCorporate(t, nil, func(c net.Conn, _ string) {
		asked <- struct{}{}
		io.Copy(io.Discard, c)
	})
	hello, err := net.Listen("tcp", "127.0.0.1:0") // for https: accepts and does not shake hands
	if err != nil {
		t.Fatal(err)
	}
	defer hello.Close()
	go func() {
		for {
			c, err := hello.Accept()
			if err != nil {
				return
			}
			asked <- struct{}{}
			go func() { io.Copy(io.Discard, c); c.Close() }()
		}
	}()
	for _, proxy := range []string{"http://" + p.addr, "https://" + hello.Addr().String()} {
		d := dialer(t, Options{EgressProxy: parse(t, proxy)})
		ctx, cancel := context.WithCancel(t.Context())
		started := time.Now()
		go func() {
			<-asked
			cancel()
		}()
		if _, err := d.Dial(ctx, "api.test:443"); !errors.Is(err, context.Canceled) || kind(err) != "?" {
			t.Errorf("%s: %v, want the context's error as it is", proxy, err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := d.Dial(ctx, "api.test:443"); kind(err) != "proxy" || !errors.Is(err, context.DeadlineExceeded) || !strings.HasSuffix(err.Error(), "no answer in time; check the network, a firewall") {
			t.Errorf("%s: %v, want a timeout", proxy, err)
		}
		cancel()
		<-asked
		if _, err := d.Dial(ctx, "api.test:443"); err == nil {
			t.Errorf("%s: dialled for a context that had ended", proxy)
		}
		if took := time.Since(started); took > connectTimeout/2 {
			t.Errorf("%s: it took %s", proxy, took)
		}
	}
}

// A cancellation that comes together with the proxy's answer either ends the
// dial or leaves a connection that works: never one whose time is over already.
func TestACancellationThatComesLate(t *testing.T) {
	p := newCorporate(t, nil, func(c net.Conn, _ string) {
		io.WriteString(c, established)
		io.Copy(c, c)
	})
	d := dialer(t, Options{EgressProxy: parse(t, "http://"+p.addr)})
	for i := range 300 {
		ctx, cancel := context.WithCancel(t.Context())
		timer := time.AfterFunc(time.Duration(i)*time.Microsecond, cancel)
		conn, err := d.Dial(ctx, "api.test:443")
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("after %d µs: %v", i, err)
			}
			timer.Stop()
			cancel()
			continue
		}
		timer.Stop()
		cancel()
		io.WriteString(conn, "x")
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Errorf("after %d µs: the connection does not work: %v", i, err)
		}
		conn.Close()
	}
}
