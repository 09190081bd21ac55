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
	"sync/atomic"
	"time"

	"github.com/elazarl/goproxy"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/redact"
	"github.com/postern-proxy/postern/agent/upstream"
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
	// Lines, where it is not nil, takes the lines of requests that went well.
	Lines *Lines
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
	sweeper sweeper
	denials *denials

	closing                        atomic.Bool
	lull, headTimeout, idleTimeout time.Duration // the constants, but for tests
	front                          *goproxy.ProxyHttpServer
	self                           atomic.Pointer[string] // the listener's own literal address; "" where Host is not checked
}

// New makes a server; it serves nothing until Swap and Serve were called.
func New(o Options) *Server {
	s := &Server{Options: o, known: o.Known, why: o.Why, lull: lull, headTimeout: headTimeout, idleTimeout: idleTimeout}
	s.sweeper.conns, s.sweeper.first = &s.conns, upstream.FirstByte
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
			s.run(c, nil)
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

// run serves a client's connection in a goroutine of its own; pin is where it is in a tunnel.
func (s *Server) run(c net.Conn, pin *pinned) *session {
	in := newSession(s, c, pin)
	s.conns.run(c, in)
	s.sweeper.start()
	return in
}

// Shutdown stops accepting, lets requests under way end until ctx does, then
// closes what is left, tunnels and upgraded connections included. The error
// is ctx's if something had to be cut.
func (s *Server) Shutdown(ctx context.Context) error {
	s.closing.Store(true)
	s.conns.stopAccepting()
	for _, c := range s.conns.sessions(nil) {
		if h2 := c.streams.Load(); h2 != nil {
			h2.goAway()
		}
	}
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
	s.sweeper.finish()
	s.denials.stop()
	return err
}

// handle serves the request whose head the session has read.
func (c *session) handle(start time.Time) ending {
	target, ok := target{}, true
	connect := view(c.req.Method) == http.MethodConnect
	if !connect {
		target, ok = parseTarget(c.req.Target)
	}
	switch {
	case !ok:
		c.answer(http.StatusBadRequest, codeFraming, "the request cannot be read as HTTP/1.1")
		return endNow
	case c.pin != nil:
		return c.inTunnel(start, target, connect)
	case connect:
		c.openTunnel()
		return goOn // unless it was hijacked
	case target.absolute:
		return c.absolute(start, target)
	}
	return c.route(start, target)
}

// route takes a request for a path of the listener's own.
func (c *session) route(start time.Time, target target) (end ending) {
	x := c.open(start, viaRoute)
	defer x.finish(&end)
	x.target = target
	if !x.fromProgram() {
		return
	}
	t, rest := x.rt.byRoute(target.path)
	if t == nil {
		x.refuse(http.StatusNotFound, codeNoRoute,
			"no provider is configured for this path; routes are /<name>/…, as in /openai/v1/models, for the names under providers", nil)
		return
	}
	if len(rest) == 0 {
		rest = []byte{'/'}
	}
	x.t, x.to, x.path = t, t.base, rest
	x.serve()
	return
}

// absolute takes a request whose target is a whole URL, as proxies get it.
func (c *session) absolute(start time.Time, target target) (end ending) {
	x := c.open(start, viaAbsolute)
	defer x.finish(&end)
	x.target, x.path, x.host = target, target.path, target.authority
	if !x.crossSite() {
		return
	}
	host, port, err := authority(target.authority, defaultPort(target.scheme))
	if err != nil || defaultPort(target.scheme) == "" {
		x.refuse(http.StatusBadRequest, codeBadHost, errAuthority.Error(), nil)
		return
	}
	x.to = x.rt.byHost(host, port)
	if _, _, portless := authority(target.authority, ""); x.to == nil && target.is("http") && portless != nil {
		// A provider asked for over plain HTTP is reached over TLS all the same (I1).
		x.to = x.rt.byHost(host, "443")
	}
	if x.to == nil {
		x.foreign(host, port)
		return
	}
	x.t = x.to.t
	x.serve()
	return
}

// inTunnel takes a request out of a decrypted tunnel. The host was pinned by
// CONNECT; the target is looked up afresh, so that a reload or a revocation
// counts from the next request on, and so does how the host is spoken to.
func (c *session) inTunnel(start time.Time, target target, connect bool) (end ending) {
	x := c.open(start, viaConnect)
	defer x.finish(&end)
	x.target, x.path = target, target.path
	if target.absolute {
		x.host = target.authority
	}
	p := c.pin
	if connect {
		// Even with a path as its target: another reader would take its body for requests.
		x.refuse(http.StatusBadRequest, codeBadHost, "a tunnel to a provider takes no CONNECT", nil)
		return
	}
	if !p.names(&target, x.host) {
		x.refuse(http.StatusMisdirectedRequest, codeMisdirected,
			"the request names another host than the tunnel it came through", nil)
		return
	}
	if x.to = x.rt.at(p.hostport, p.host, p.port); x.to == nil {
		x.refuse(http.StatusMisdirectedRequest, codeMisdirected, "the host is no longer configured; open a new tunnel", nil)
		return
	}
	x.t = x.to.t
	if x.crossSite() {
		x.serve()
	}
	return
}

// names reports whether a request in the tunnel names the tunnel's own host, in
// Host or as an absolute https URL.
func (p *pinned) names(t *target, host string) bool {
	if t.absolute && !t.is("https") {
		return false
	}
	if host == p.header || host == p.hostport {
		return true // as nearly every client writes it
	}
	name, port, err := authority(host, p.port)
	return err == nil && name == p.host && port == p.port
}
