package proxy

import (
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/postern-proxy/postern/agent/socket"
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
		if s := socket.New(c); s != nil {
			c = s
		}
		return &clientConn{Conn: c, r: &l.s.conns}, nil
	}
}

// clientConn is an accepted connection; closing it frees its place.
type clientConn struct {
	net.Conn
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

// CloseWrite ends the sending side only, where the connection can.
func (c *clientConn) CloseWrite() error { return closeWrite(c.Conn) }

// CloseRead ends the receiving side only, where the connection can.
func (c *clientConn) CloseRead() error { return closeRead(c.Conn) }

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
