package proxy

import (
	"context"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/postern-proxy/postern/agent/proxy/h1"
)

// listener counts and caps the connections of a net.Listener, and on a Unix
// socket admits only the named users.
type listener struct {
	net.Listener
	s    *Server
	uids []int
	most int64 // connections at a time
}

// mostConns is how many connections clients may hold where a process may have
// so many files: each may need another one to its provider, and what is left
// is the store's, the record's and the admin listener's. Without that, clients
// that merely connect could keep everybody's requests from their provider.
func mostConns(files uint64) int64 {
	const others = 64
	return max(min(maxConns, (int64(min(files, 1<<32))-others)/2), 16)
}

// openFiles is how many files this process may have; Go has raised it as far as it goes.
func openFiles() uint64 {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 4 * maxConns
	}
	return uint64(l.Cur)
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if u, ok := c.(*net.UnixConn); ok {
			uid, err := peerUID(u)
			if err != nil || !slices.Contains(l.uids, uid) {
				l.s.Metrics.refusedConns.WithLabelValues("uid").Inc()
				c.Close()
				continue
			}
		}
		if l.s.conns.count.Add(1) > l.most {
			l.s.conns.count.Add(-1)
			l.s.Metrics.refusedConns.WithLabelValues("cap").Inc()
			c.Close()
			continue
		}
		return &clientConn{guarded: guard(c), r: &l.s.conns}, nil
	}
}

// guarded is a connection on which a client speaks HTTP/1.1: what it sends is
// read strictly (I13), before net/http, which is more lenient, sees any of it.
// A read deadline reaches the connection only when a read would feel it: the
// server sets several for each request, and each costs a system timer.
type guarded struct {
	net.Conn
	in       *h1.Guard
	deadline *lazyDeadline
}

type lazyDeadline struct {
	mu            sync.Mutex
	want, applied time.Time
	reading       bool
}

func guard(c net.Conn) guarded { return guarded{c, h1.NewGuard(c), &lazyDeadline{}} }

func (c guarded) Read(p []byte) (int, error) {
	c.deadline.mu.Lock()
	err := c.apply()
	c.deadline.reading = true
	c.deadline.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := c.in.Read(p)
	c.deadline.mu.Lock()
	c.deadline.reading = false
	c.deadline.mu.Unlock()
	return n, err
}

// apply sets the deadline that is wanted; the lock is held.
func (c guarded) apply() error {
	if c.deadline.want.Equal(c.deadline.applied) {
		return nil
	}
	c.deadline.applied = c.deadline.want
	return c.Conn.SetReadDeadline(c.deadline.want)
}

// SetReadDeadline bounds the read under way and those to come.
func (c guarded) SetReadDeadline(t time.Time) error {
	c.deadline.mu.Lock()
	defer c.deadline.mu.Unlock()
	c.deadline.want = t
	if c.deadline.reading {
		return c.apply()
	}
	return nil
}

// SetDeadline bounds reads and writes.
func (c guarded) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// CloseWrite ends the sending side only, where the connection can.
func (c guarded) CloseWrite() error { return closeWrite(c.Conn) }

// CloseRead ends the receiving side only, where the connection can.
func (c guarded) CloseRead() error { return closeRead(c.Conn) }

// Opaque says that the client speaks another protocol from here on.
func (c guarded) Opaque() { c.in.Opaque() }

// Failed is what was wrong with the framing of what the client sent, or nil.
func (c guarded) Failed() error { return c.in.Failed() }

// opaque tells a hijacked connection that its client speaks no HTTP any more.
func opaque(c net.Conn) {
	if g, ok := c.(interface{ Opaque() }); ok {
		g.Opaque()
	}
}

// clientConn is an accepted connection; closing it frees its place.
type clientConn struct {
	guarded
	r    *registry
	once sync.Once
}

func (c *clientConn) Close() error {
	c.once.Do(func() {
		c.r.count.Add(-1)
		c.r.remove(c)
	})
	return c.Conn.Close()
}

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

func closeRead(c net.Conn) error {
	if h, ok := c.(interface{ CloseRead() error }); ok {
		return h.CloseRead()
	}
	return nil
}

// registry knows every connection that a shutdown has to end: sessions, the far
// sides of tunnels, upgraded connections.
type registry struct {
	count    atomic.Int64 // of accepted connections
	wg       sync.WaitGroup
	panicked func(p any) // records what only its own connection ends for

	mu       sync.Mutex
	stopped  bool // accepts nothing new
	cut      bool // and nothing goes on
	listener net.Listener
	conns    map[net.Conn]*session // nil where no session watches it
	empty    chan struct{}         // closed when the last one goes; nil while nobody waits
}

// open takes the listener; false if the server was shut down before.
func (r *registry) open(ln net.Listener) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listener = ln
	if r.stopped {
		ln.Close()
	}
	return !r.stopped
}

func (r *registry) stopAccepting() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
	if r.listener != nil {
		r.listener.Close()
	}
}

// run serves a session in a goroutine of its own.
func (r *registry) run(c net.Conn, s *session) {
	r.mu.Lock()
	stopped := r.stopped
	if !stopped {
		r.put(c, s)
		r.wg.Add(1)
	}
	r.mu.Unlock()
	if stopped {
		c.Close()
		return
	}
	go func() {
		defer r.wg.Done()
		defer r.leave(c, s)
		defer func() {
			if p := recover(); p != nil {
				r.panicked(p)
			}
		}()
		s.serve()
	}()
}

func (r *registry) put(c net.Conn, s *session) {
	if r.conns == nil {
		r.conns = map[net.Conn]*session{}
	}
	r.conns[c] = s
}

// add registers a connection that no session watches. It is closed where it comes too late.
func (r *registry) add(c net.Conn) {
	r.mu.Lock()
	r.put(c, nil)
	late := r.cut
	r.mu.Unlock()
	if late {
		c.Close()
	}
}

// leave removes a session's connection, unless it was hijacked and lives on
// under another name.
func (r *registry) leave(c net.Conn, s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns[c] == s {
		r.drop(c)
	}
}

func (r *registry) remove(c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(c)
}

func (r *registry) drop(c net.Conn) {
	delete(r.conns, c)
	if len(r.conns) == 0 && r.empty != nil {
		close(r.empty)
		r.empty = nil
	}
}

// busy reports whether any connection is left.
func (r *registry) busy() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.conns) > 0
}

// closeIdle closes the connections that wait for a request. Each is claimed
// first: a request that comes from then on is not taken, and one that was taken
// is not cut.
func (r *registry) closeIdle() {
	for _, c := range r.list(func(s *session) bool { return s != nil && s.idle.CompareAndSwap(true, false) }) {
		c.Close()
	}
}

func (r *registry) list(want func(*session) bool) []net.Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	var conns []net.Conn
	for c, s := range r.conns {
		if want(s) {
			conns = append(conns, c)
		}
	}
	return conns
}

// drain waits until no connection is left or ctx ends.
func (r *registry) drain(ctx context.Context) error {
	r.mu.Lock()
	if len(r.conns) == 0 {
		r.mu.Unlock()
		return nil
	}
	if r.empty == nil {
		r.empty = make(chan struct{})
	}
	empty := r.empty
	r.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// closeAll ends what is left, and the requests under way on it.
func (r *registry) closeAll() {
	r.mu.Lock()
	r.cut = true
	left := maps.Clone(r.conns)
	r.mu.Unlock()
	for c, s := range left {
		c.Close()
		if s != nil {
			s.cut()
		}
	}
}

// idleConn is the far side of a tunnel. It ends when nothing was read or
// written for idle; a deadline is moved only when a quarter of it has passed.
type idleConn struct {
	net.Conn
	idle    time.Duration
	last    atomic.Int64
	once    sync.Once
	onClose func(net.Conn)
}

func (c *idleConn) touch() {
	now := time.Now()
	if last := c.last.Load(); now.UnixNano()-last > int64(c.idle/4) && c.last.CompareAndSwap(last, now.UnixNano()) {
		c.Conn.SetDeadline(now.Add(c.idle))
	}
}

func (c *idleConn) Read(p []byte) (int, error) {
	c.touch()
	return c.Conn.Read(p)
}

func (c *idleConn) Write(p []byte) (int, error) {
	c.touch()
	return c.Conn.Write(p)
}

func (c *idleConn) Close() error {
	c.once.Do(func() { c.onClose(c) })
	return c.Conn.Close()
}

// CloseWrite ends the sending side only.
func (c *idleConn) CloseWrite() error { return closeWrite(c.Conn) }

// CloseRead ends the receiving side only.
func (c *idleConn) CloseRead() error { return closeRead(c.Conn) }
