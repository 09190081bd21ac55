// Package upstream is the only way out: every connection the agent opens to a
// provider, to a tunnel's target or to a corporate proxy is dialled here, so
// the address guard, TLS verification and the egress proxy cannot be passed by.
package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// How long one step of reaching an upstream may take.
const (
	connectTimeout   = 10 * time.Second
	handshakeTimeout = 10 * time.Second
	keepAlive        = 30 * time.Second
	// FirstByte is long: a model may think for minutes before it answers.
	FirstByte   = 15 * time.Minute
	idleTimeout = 90 * time.Second
	// idlePerHost lets as many connections wait as a busy pod has requests at
	// once; net/http's default of 2 makes nearly every request a new handshake.
	idlePerHost = 512
	maxHeader   = 256 << 10
	// maxAnswer bounds the head of an egress proxy's answer to CONNECT.
	maxAnswer = 64 << 10
	// An HTTP/2 connection carries every request to its host, so one that has
	// gone silent is asked for a sign of life, and given up without one.
	pingAfter   = 30 * time.Second
	pingTimeout = 15 * time.Second
)

// Options configure a Dialer. The zero value dials directly, trusting the system's roots.
type Options struct {
	// EgressProxy is a corporate CONNECT proxy (http or https; user and
	// password in the URL become Proxy-Authorization), or nil.
	EgressProxy *url.URL
	// NoProxy lists what is reached directly, in the syntax of NO_PROXY.
	NoProxy string
	// Roots are PEM certificates trusted beside the system's, for providers and for an https egress proxy.
	Roots []byte
	// Own reports the agent's own listeners, which are never dialled. Nil means none.
	Own func(netip.AddrPort) bool
}

// Dialer opens outward connections. It is safe for concurrent use.
type Dialer struct {
	net     net.Dialer
	own     func(netip.AddrPort) bool
	proxy   *url.URL                         // nil: always direct
	through func(*url.URL) (*url.URL, error) // NO_PROXY's rules; nil URL: direct
	roots   *x509.CertPool                   // nil: the system's
	extra   []byte

	mu    sync.Mutex
	pools map[string]*x509.CertPool // by what a ca_file holds: the system's roots are many, and so may providers be
}

// New checks the options and makes a Dialer.
func New(o Options) (*Dialer, error) {
	d := &Dialer{own: o.Own, extra: o.Roots}
	d.net = net.Dialer{
		Timeout:   connectTimeout,
		KeepAlive: keepAlive,
		Control: func(_, address string, _ syscall.RawConn) error {
			return checkAddress(address, o.Own)
		},
	}
	var err error
	if d.roots, err = pool(o.Roots); err != nil {
		return nil, fmt.Errorf("egress.ca_file: %w", err)
	}
	if o.EgressProxy == nil {
		return d, nil
	}
	if s := o.EgressProxy.Scheme; s != "http" && s != "https" {
		return nil, fmt.Errorf("egress.proxy: scheme %q is not supported; write http://host:port or https://host:port", s)
	}
	if o.EgressProxy.Hostname() == "" {
		return nil, errors.New("egress.proxy: names no host; write http://host:port")
	}
	d.proxy = o.EgressProxy
	// It is asked for its decision alone: a URL that it could not read would mean "directly" to it.
	d.through = (&httpproxy.Config{HTTPSProxy: "http://egress.invalid", NoProxy: o.NoProxy}).ProxyFunc()
	return d, nil
}

// pool is the system's roots and the given ones; nil where nothing is given.
func pool(pems ...[]byte) (*x509.CertPool, error) {
	var given bool
	for _, p := range pems {
		given = given || len(p) > 0
	}
	if !given {
		return nil, nil
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	for _, p := range pems {
		if len(p) > 0 && !roots.AppendCertsFromPEM(p) {
			return nil, errors.New("holds no PEM certificate")
		}
	}
	return roots, nil
}

// Dial connects to host:port, through the egress proxy where one applies. The
// connection carries whatever the caller speaks: TLS is the caller's (see Transport).
func (d *Dialer) Dial(ctx context.Context, hostport string) (net.Conn, error) {
	proxy, err := d.proxyFor(hostport)
	if err != nil {
		return nil, explain(hostport, err)
	}
	if proxy == nil {
		conn, err := d.net.DialContext(ctx, "tcp", hostport)
		if err != nil {
			return nil, explain(hostport, err)
		}
		return conn, nil
	}
	conn, err := d.dialProxy(ctx, proxy)
	if err != nil {
		return nil, explainProxy(hostport, proxy.Host, err)
	}
	if err := connectThrough(ctx, conn, proxy, hostport); err != nil {
		conn.Close()
		return nil, explainProxy(hostport, proxy.Host, err)
	}
	return conn, nil
}

// proxyFor is the egress proxy, where host:port is reached through it.
func (d *Dialer) proxyFor(hostport string) (*url.URL, error) {
	literal, err := checkTarget(hostport)
	if err != nil || d.proxy == nil {
		return nil, err
	}
	// An address is checked here, because behind a proxy no socket of ours will ever be opened to it.
	if literal {
		if err := checkAddress(hostport, d.own); err != nil {
			return nil, err
		}
	}
	if through, err := d.through(&url.URL{Scheme: "https", Host: hostport}); err != nil || through == nil {
		return nil, err
	}
	return d.proxy, nil
}

func (d *Dialer) dialProxy(ctx context.Context, proxy *url.URL) (net.Conn, error) {
	port := proxy.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[proxy.Scheme]
	}
	conn, err := d.net.DialContext(ctx, "tcp", net.JoinHostPort(proxy.Hostname(), port))
	if err != nil || proxy.Scheme == "http" {
		return conn, err
	}
	tc := tls.Client(conn, &tls.Config{ServerName: proxy.Hostname(), RootCAs: d.roots, MinVersion: tls.VersionTLS12})
	hctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := tc.HandshakeContext(hctx); err != nil {
		conn.Close()
		return nil, err
	}
	return tc, nil
}

// connectThrough asks an HTTP proxy for a tunnel (RFC 9110 section 9.3.6).
func connectThrough(ctx context.Context, conn net.Conn, proxy *url.URL, hostport string) error {
	conn.SetDeadline(time.Now().Add(connectTimeout))
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err := askTunnel(conn, proxy.User, hostport)
	if !stop() { // then the deadline that ended the wait may still come, so the connection is of no use
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	return conn.SetDeadline(time.Time{})
}

func askTunnel(conn net.Conn, user *url.Userinfo, hostport string) error {
	req := "CONNECT " + hostport + " HTTP/1.1\r\nHost: " + hostport + "\r\n"
	if user != nil {
		pass, _ := user.Password()
		req += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+pass)) + "\r\n"
	}
	if _, err := io.WriteString(conn, req+"\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(&head{conn, maxAnswer}), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return fmt.Errorf("no valid answer to CONNECT: %w", err)
	}
	// Its body is nobody's: after a 200 there is none, whatever its fields say, and after anything else the connection ends.
	if resp.StatusCode != http.StatusOK {
		return proxyStatus(resp.StatusCode)
	}
	return nil
}

// head reads byte by byte, so that what follows the head of an answer stays in
// the connection (a host behind the tunnel may speak first), and not without end.
type head struct {
	r    io.Reader
	left int
}

func (h *head) Read(p []byte) (int, error) {
	if h.left == 0 {
		return 0, errHead
	}
	h.left--
	return h.r.Read(p[:1])
}

// TransportOptions say how one provider is spoken to.
type TransportOptions struct {
	CAFile []byte // PEM roots beside the system's and Options.Roots
	HTTP2  bool
}

// clientTLS is how a provider's certificates are verified.
func (d *Dialer) clientTLS(o TransportOptions) (*tls.Config, error) {
	roots, err := d.rootsWith(o.CAFile)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	return &tls.Config{
		RootCAs: roots, MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(64),
		DynamicRecordSizingDisabled: true, // small records let a browser show a page's beginning; a provider needs all of a request
	}, nil
}

// rootsWith is the Dialer's roots and a ca_file's, made once for each content.
func (d *Dialer) rootsWith(caFile []byte) (*x509.CertPool, error) {
	if len(caFile) == 0 {
		return d.roots, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if roots := d.pools[string(caFile)]; roots != nil {
		return roots, nil
	}
	roots, err := pool(d.extra, caFile)
	if err != nil {
		return nil, err
	}
	if d.pools == nil {
		d.pools = map[string]*x509.CertPool{}
	}
	d.pools[string(caFile)] = roots
	return roots, nil
}

// Transport makes the provider's connection pool. TLS is always verified
// against the name that is dialled; redirects are nobody's business here, since
// RoundTrip follows none; nothing is read from the environment.
func (d *Dialer) Transport(o TransportOptions) (*http.Transport, error) {
	c, err := d.clientTLS(o)
	if err != nil {
		return nil, err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(o.HTTP2)
	return &http.Transport{
		DialContext:            func(ctx context.Context, _, addr string) (net.Conn, error) { return d.Dial(ctx, addr) },
		TLSClientConfig:        c,
		TLSHandshakeTimeout:    handshakeTimeout,
		ResponseHeaderTimeout:  FirstByte,
		IdleConnTimeout:        idleTimeout,
		MaxIdleConns:           0,
		MaxIdleConnsPerHost:    idlePerHost,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true,
		Protocols:              protocols,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		ReadBufferSize:         8 << 10,
		WriteBufferSize:        4 << 10,
	}, nil
}
