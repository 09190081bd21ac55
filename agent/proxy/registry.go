package proxy

import (
	"context"
	"maps"
	"net"
	"sync"
	"sync/atomic"
)

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

// run serves a session in a goroutine of its own. A stream is no new connection:
// like a request of HTTP/1.1 it may still come while idle ones are waited for.
func (r *registry) run(c net.Conn, s *session) {
	r.mu.Lock()
	stopped := r.stopped
	if s.pin != nil && s.pin.streams {
		stopped = r.cut
	}
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

// watched reports whether a session is left.
func (r *registry) watched() bool { return len(r.sessions(nil)) > 0 }

// sessions appends every session to all.
func (r *registry) sessions(all []*session) []*session {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.conns {
		if s != nil {
			all = append(all, s)
		}
	}
	return all
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
