// Package proxy is the data path: one localhost port that takes routes
// (/openai/…), absolute-form requests and CONNECT, and sends what matches a
// configured provider to it with the key attached.
//
//	server → match → decide → pick → attach → round trip → stream → record
//
// It never touches the store: everything it needs is in memory.
package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/elazarl/goproxy"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/redact"
)

// Limits on what a client may hold.
const (
	headTimeout = 10 * time.Second
	idleTimeout = 2 * time.Minute
	maxConns    = 16384 // fewer where the limit of files is low
	// lull is how long idle connections outlive the decision to shut down.
	lull = 500 * time.Millisecond
	// tunnelIdle ends a tunnel on which nothing moved, in either direction, for this long.
	tunnelIdle = 30 * time.Minute
)

// Options are what the data path needs. All but Why and Audit are required.
type Options struct {
	Known *redact.Set
	// Leaf gives the certificate for a configured CONNECT host.
	Leaf    func(host string) (*tls.Certificate, error)
	Metrics *Metrics
	Logger  *slog.Logger
	// Audit receives what was denied; nil drops it.
	Audit audit.Sink
	// Environment and ProxyID stand in each audit entry.
	Environment, ProxyID string
	// Why says, for a key with no usable version, the reason and whether it will pass by itself.
	Why func(key string) (reason string, passing bool)
}

// Server is the agent's data path. Its Routing can be swapped while it serves.
type Server struct {
	Options
	known   *redact.Set
	why     func(string) (string, bool)
	routing atomic.Pointer[Routing]
	bodies  budget
	conns   registry
	denials *denials

	closing atomic.Bool
	lull    time.Duration
	front   *goproxy.ProxyHttpServer
	self    atomic.Pointer[string] // the listener's own literal address; "" where Host is not checked
}

// New makes a server; it serves nothing until Swap and Serve were called.
func New(o Options) *Server {
	s := &Server{Options: o, known: o.Known, why: o.Why, lull: lull}
	s.denials = newDenials(o)
	s.routing.Store(&Routing{})
	s.conns.panicked = func(p any) { s.Logger.Error("panic on a connection", "panic", p) }
	s.front = s.newFront()
	return s
}

// Swap installs a new generation's table. Requests under way end on the one they began with.
func (s *Server) Swap(rt *Routing) {
	for _, t := range rt.routes {
		t.metrics = s.Metrics.target(t.Name)
	}
	s.routing.Store(rt)
}

// Serve accepts on ln until Shutdown. uids, where ln is a Unix socket, are the
// users that may connect.
func (s *Server) Serve(ln net.Listener, uids []int) error {
	self := ""
	if a, ok := ln.Addr().(*net.TCPAddr); ok && !a.IP.IsUnspecified() {
		self = a.String()
	} else if ok {
		self = "*" // bound to every address: each connection's own local address counts
	}
	s.self.Store(&self)
	l := &listener{Listener: ln, s: s, uids: uids, most: mostConns(openFiles())}
	if !s.conns.open(l) {
		return nil
	}
	for pause := 5 * time.Millisecond; ; {
		c, err := l.Accept()
		switch {
		case err == nil:
			pause = 5 * time.Millisecond
			s.conns.run(c, newSession(c, &s.closing, s.serveOuter))
		case s.closing.Load():
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default: // no file descriptor is left, or the like: it passes
			s.Logger.Warn("a connection could not be accepted", "error", err.Error())
			time.Sleep(pause)
			pause = min(2*pause, time.Second)
		}
	}
}

// Shutdown stops accepting, lets requests under way end until ctx does, then
// closes what is left, tunnels and upgraded connections included. The error
// is ctx's if something had to be cut.
func (s *Server) Shutdown(ctx context.Context) error {
	s.closing.Store(true)
	s.conns.stopAccepting()
	if s.conns.busy() {
		// A request may be on its way on a connection that looks idle: it is still
		// answered, and told that it was the last one.
		select {
		case <-time.After(s.lull):
		case <-ctx.Done():
		}
	}
	s.conns.closeIdle()
	err := s.conns.drain(ctx)
	s.conns.closeAll()
	s.conns.wg.Wait()
	s.denials.stop()
	return err
}

// serveOuter takes what arrives on the listener itself.
func (s *Server) serveOuter(w http.ResponseWriter, r *http.Request) {
	rt := s.routing.Load()
	if r.Method == http.MethodConnect {
		s.front.ServeHTTP(bufferedHijacker{w}, r)
		return
	}
	x := s.begin(rt, w, r, viaRoute)
	defer x.finish()
	if r.URL.Scheme != "" || r.URL.Host != "" {
		x.absolute()
		return
	}
	if !x.fromProgram() {
		return
	}
	path := rawPath(r)
	t, rest := rt.byRoute(path)
	if t == nil {
		x.refuse(http.StatusNotFound, codeNoRoute,
			"no provider is configured for this path; routes are /<name>/…, as in /openai/v1/models, for the names under providers", nil)
		return
	}
	x.t = t
	if rest == "" {
		rest = "/"
	}
	x.serve(rest)
}

// absolute takes a request whose target is a whole URL, as proxies get it.
func (x *exchange) absolute() {
	x.via = viaAbsolute
	r := x.r
	if !x.crossSite() {
		return
	}
	port := map[string]string{"http": "80", "https": "443"}[r.URL.Scheme]
	host, port, err := authority(r.URL.Host, port)
	if err != nil || r.URL.User != nil || r.URL.Scheme != "http" && r.URL.Scheme != "https" {
		x.refuse(http.StatusBadRequest, codeBadHost, errAuthority.Error(), nil)
		return
	}
	x.t = x.rt.byHost(host, port)
	if x.t == nil && r.URL.Scheme == "http" && r.URL.Port() == "" {
		// A provider asked for over plain HTTP is reached over TLS all the same (I1).
		x.t = x.rt.byHost(host, "443")
		port = "443"
	}
	if x.t == nil {
		x.foreign(host, port)
		return
	}
	x.pin(host, port)
	x.serve(rawPath(r))
}

// pin makes the request's URL say where it goes: the matched host, over TLS
// unless the provider is one that allows plain HTTP on loopback.
func (x *exchange) pin(host, port string) {
	scheme := x.rt.scheme(net.JoinHostPort(host, port))
	x.r.URL.Scheme, x.r.URL.Host = scheme, hostHeader(scheme, host, port)
}

// hostHeader is the Host field's form: no port where it is the scheme's own.
func hostHeader(scheme, host, port string) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if scheme == "https" && port == "443" || scheme == "http" && port == "80" {
		return host
	}
	return host + ":" + port
}

// serveInner takes a request out of a decrypted tunnel. The host was pinned by
// CONNECT; the target is looked up afresh, so that a reload or a revocation
// counts from the next request on.
func (s *Server) serveInner(w http.ResponseWriter, r *http.Request) {
	x := s.begin(s.routing.Load(), w, r, viaConnect)
	defer x.finish()
	p := r.Context().Value(connKey{}).(*pinned)
	if r.Method == http.MethodConnect {
		// Even with a path as its target: net/http would send its body unframed.
		x.refuse(http.StatusBadRequest, codeBadHost, "a tunnel to a provider takes no CONNECT", nil)
		return
	}
	if !p.names(r) {
		x.refuse(http.StatusMisdirectedRequest, codeMisdirected,
			"the request names another host than the tunnel it came through", nil)
		return
	}
	if x.t = x.rt.at(p.hostport, p.host, p.port); x.t == nil {
		x.refuse(http.StatusMisdirectedRequest, codeMisdirected, "the host is no longer configured; open a new tunnel", nil)
		return
	}
	// The scheme is the present generation's, and so is the port that goes without saying.
	r.URL.Scheme = x.rt.scheme(p.hostport)
	r.URL.Host = hostHeader(r.URL.Scheme, p.host, p.port)
	x.serve(rawPath(r))
}

// names reports whether a request in the tunnel names the tunnel's own host, in
// Host or as an absolute https URL.
func (p *pinned) names(r *http.Request) bool {
	absolute := r.URL.Scheme != "" || r.URL.Host != ""
	if !absolute && (r.Host == p.header || r.Host == p.hostport) {
		return true // as nearly every client writes it
	}
	if absolute && (r.URL.Scheme != "https" || r.URL.Host == "") {
		return false
	}
	host, port, err := authority(r.Host, p.port)
	return err == nil && host == p.host && port == p.port
}

// rawPath is the request target's path as the client escaped it. A backslash
// stays one: net/url would escape it, and what is refused would pass.
func rawPath(r *http.Request) string {
	switch p := r.URL.EscapedPath(); {
	case strings.IndexByte(r.URL.RawPath, '\\') >= 0:
		return r.URL.RawPath
	case p == "":
		return "/"
	default:
		return p
	}
}

// begin opens the exchange.
func (s *Server) begin(rt *Routing, w http.ResponseWriter, r *http.Request, via string) *exchange {
	return &exchange{s: s, rt: rt, w: w, r: r, via: via, start: time.Now()}
}
