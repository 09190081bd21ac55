package upstream

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/postern-proxy/postern/agent/socket"
)

// A handshake leaves some 50 KiB of garbage, certificates and secrets of the
// connection among it, and a collector that waits for as much again as is in use
// leaves it there. So after a burst of them it is called.
const (
	burst    = 32
	calmTime = time.Second // without another
)

// Pool keeps HTTP/1.1 connections to one provider's hosts. It is safe for
// concurrent use. It speaks no HTTP itself: whoever takes a connection does.
type Pool struct {
	dialer *Dialer
	tls    *tls.Config
	wait   time.Duration // how long an idle connection is kept
	began  time.Time     // idle times count from here

	mu     sync.Mutex
	hosts  map[string]*Host
	closed bool
	sweep  *time.Timer // runs while anything is idle
	fresh  int         // handshakes of this burst
	calm   *time.Timer // ends the burst; nil before the first
}

// Pool makes a provider's pool. TLS is always verified against the name that is
// dialled; o.HTTP2 means nothing here. The error names the setting that is wrong.
func (d *Dialer) Pool(o TransportOptions) (*Pool, error) {
	c, err := d.clientTLS(o)
	if err != nil {
		return nil, err
	}
	c.NextProtos = []string{"http/1.1"}
	return &Pool{dialer: d, tls: c, wait: idleTimeout, began: time.Now(), hosts: map[string]*Host{}}, nil
}

// Host is one place that connections lead to, and those that are idle.
type Host struct {
	pool     *Pool
	hostport string
	tls      *tls.Config
	plain    bool

	mu      sync.Mutex
	closed  bool
	renewed int64   // connections from before then are not kept; in nanoseconds of the pool's time
	idle    []*Conn // the one used last is at the end
}

// Host is the host:port that a provider lists; the same for the same arguments.
// A port is always named. plain: no TLS, which only a literal loopback address is spoken to without (I1).
func (p *Pool) Host(hostport string, plain bool) *Host {
	key := hostport
	if plain {
		key = "http://" + hostport
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.hosts[key]
	if h == nil {
		name, _, _ := net.SplitHostPort(hostport)
		conf := p.tls.Clone()
		conf.ServerName = name
		h = &Host{pool: p, hostport: hostport, tls: conf, plain: plain, closed: p.closed}
		p.hosts[key] = h
	}
	return h
}

// Conn is a connection to a Host: TLS, or plain on loopback. One goroutine
// writes and one reads at a time.
type Conn struct {
	net.Conn
	host   *Host
	late   *socket.Conn // the socket below TLS; nil where it is another, or there is none
	rec    *records     // below TLS; nil without
	short  bool         // the last Read brought less than there was room for
	one    [1]byte
	asked  bool // by Ask, since it was taken
	sent   bool // without late: something of what Ask was given
	raw    syscall.RawConn
	reused bool
	born   int64 // in nanoseconds of the pool's time
	since  int64 // when it became idle, likewise

	look  func(fd uintptr) bool // made once, so that looking allocates nothing
	alive bool                  // what look saw
}

// Get returns the idle connection that was used last and is still alive, or a
// new one. The error is an *Error, or ctx's when it was cancelled.
func (h *Host) Get(ctx context.Context) (*Conn, error) {
	for {
		c := h.take()
		if c == nil {
			return h.Dial(ctx)
		}
		// However short a time it waited: what came meanwhile is the answer to nothing, and must not become one.
		if c.AtRest() {
			c.reused = true
			return c, nil
		}
		c.Close()
	}
}

func (h *Host) take() *Conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := len(h.idle) - 1
	if n < 0 {
		return nil
	}
	c := h.idle[n]
	h.idle[n] = nil
	h.idle = h.idle[:n]
	return c
}

// Dial makes a new connection, whatever is idle.
func (h *Host) Dial(ctx context.Context) (*Conn, error) {
	if h.plain && !loopback(h.hostport) {
		return nil, explain(h.hostport, errGuard)
	}
	inner, err := h.pool.dialer.Dial(ctx, h.hostport)
	if err != nil {
		return nil, err
	}
	c := &Conn{Conn: inner, host: h, raw: rawConn(inner), born: h.pool.now()}
	c.look = func(fd uintptr) bool {
		c.alive = socket.Quiet(int(fd))
		return true
	}
	if h.plain {
		return c, nil
	}
	if c.late = socket.New(inner); c.late != nil {
		inner = c.late
	}
	c.rec = &records{Conn: inner}
	inner = c.rec
	secure := tls.Client(inner, h.tls)
	hctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	// On a stack of its own: the caller's would stay as large as a handshake needs, for as long as an answer streams.
	done := make(chan error, 1)
	go func() { done <- secure.HandshakeContext(hctx) }()
	if err := <-done; err != nil {
		inner.Close()
		return nil, explain(h.hostport, err)
	}
	c.Conn = secure
	h.pool.shook()
	return c, nil
}

// shook counts a handshake and puts off the burst's end.
func (p *Pool) shook() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fresh++
	switch {
	case p.closed:
	case p.calm == nil:
		p.calm = time.AfterFunc(calmTime, p.collect)
	default:
		p.calm.Reset(calmTime)
	}
}

// collect ends a burst.
func (p *Pool) collect() {
	p.mu.Lock()
	n := p.fresh
	p.fresh = 0
	p.mu.Unlock()
	if n >= burst {
		debug.FreeOSMemory()
	}
}

// loopback reports a literal loopback address.
func loopback(hostport string) bool {
	ap, err := netip.ParseAddrPort(hostport)
	return err == nil && ap.Addr().Unmap().IsLoopback()
}

// rawConn is the socket below any layers of TLS; nil where there is none.
func rawConn(c net.Conn) syscall.RawConn {
	for {
		below, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c = below.NetConn()
	}
	if s, ok := c.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			return raw
		}
	}
	return nil
}

// AtRest reports whether the other side has neither ended the connection nor
// said anything that nobody asked for.
func (c *Conn) AtRest() bool {
	if c.raw == nil {
		return true
	}
	c.alive = false
	err := c.raw.Read(c.look)
	return err == nil && c.alive
}

// Ask is Write for a request's end: it may be made as late as by the Read that
// waits for the answer, which then returns its error.
func (c *Conn) Ask(p []byte) (int, error) {
	c.asked = true
	if c.late != nil {
		c.late.Late()
		return c.Write(p)
	}
	n, err := c.Write(p)
	c.sent = n > 0
	return n, err
}

// Sent reports whether something of what Ask was given has gone out.
func (c *Conn) Sent() bool {
	if c.late != nil {
		return c.asked && c.late.Sent() > 0
	}
	return c.asked && c.sent
}

// Reused reports whether the connection carried a request before: that it fails
// before a byte of an answer has come may mean that it was closed meanwhile.
func (c *Conn) Reused() bool { return c.reused }

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.short = n < len(p)
	return n, err
}

// drained reports whether TLS holds nothing that came behind the answer: another
// one that nobody asked for would be the next request's.
func (c *Conn) drained() bool {
	if c.rec == nil {
		return true
	}
	n := c.rec.count
	c.rec.count = 0
	switch {
	case c.rec.inside():
		return false
	case n == 0 || n == 1 && c.short:
		return true // nothing has come, or one record that was read to its end
	}
	c.rec.dry = true
	_, err := c.Conn.Read(c.one[:])
	c.rec.dry = false
	return err == errDry
}

// Put gives the connection back. It must be at rest: the answer read to its
// end, no read or write under way, no deadline set. If more has come than that, it is closed.
func (c *Conn) Put() {
	h := c.host
	if !c.drained() {
		c.Close()
		return
	}
	c.since, c.asked = h.pool.now(), false
	h.mu.Lock()
	kept := !h.closed && c.born >= h.renewed && len(h.idle) < idlePerHost
	if kept {
		h.idle = append(h.idle, c)
	}
	first := kept && len(h.idle) == 1
	h.mu.Unlock()
	switch {
	case !kept:
		c.Close()
	case first:
		h.pool.sweepLater()
	}
}

func (p *Pool) now() int64 { return int64(time.Since(p.began)) }

// sweepLater sees to it that what waits too long is closed.
func (p *Pool) sweepLater() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sweep == nil && !p.closed {
		p.sweep = time.AfterFunc(p.wait/2, p.expire)
	}
}

// expire closes what has waited too long and comes back while anything waits.
func (p *Pool) expire() {
	if left := p.closeIdle(p.now() - int64(p.wait)); left == 0 {
		p.mu.Lock()
		p.sweep = nil
		p.mu.Unlock()
		// What came between the look and here is looked at again: it would have found a sweep under way.
		if p.closeIdle(p.now()-int64(p.wait)) > 0 {
			p.sweepLater()
		}
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.sweep.Reset(p.wait / 2)
	}
}

// closeIdle closes the connections that have been idle since before then, and
// returns how many others are idle.
func (p *Pool) closeIdle(before int64) (left int) {
	p.mu.Lock()
	hosts := make([]*Host, 0, len(p.hosts))
	for _, h := range p.hosts {
		hosts = append(hosts, h)
	}
	p.mu.Unlock()
	for _, h := range hosts {
		left += h.closeIdle(before)
	}
	return left
}

func (h *Host) closeIdle(before int64) (left int) {
	h.mu.Lock()
	n := 0
	for n < len(h.idle) && h.idle[n].since < before { // the one used last is at the end
		n++
	}
	old := append([]*Conn(nil), h.idle[:n]...)
	left = copy(h.idle, h.idle[n:])
	clear(h.idle[left:])
	h.idle = h.idle[:left]
	h.mu.Unlock()
	for _, c := range old {
		c.Close()
	}
	return left
}

// Renew closes what is idle now, and what is in use when it comes back: what
// TLS remembers of a connection's requests and answers goes with it.
func (p *Pool) Renew() {
	now := p.now()
	p.mu.Lock()
	for _, h := range p.hosts {
		h.mu.Lock()
		h.renewed = now
		h.mu.Unlock()
	}
	p.mu.Unlock()
	p.closeIdle(now + 1)
}

// Close closes what is idle, and what is in use when it comes back.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	for _, t := range []*time.Timer{p.sweep, p.calm} {
		if t != nil {
			t.Stop()
		}
	}
	for _, h := range p.hosts {
		h.mu.Lock()
		h.closed = true
		h.mu.Unlock()
	}
	p.mu.Unlock()
	p.closeIdle(p.now() + 1)
}
