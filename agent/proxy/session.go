package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// watchAfter is how long a request may take before anybody looks whether its
	// client is still there: most are over by then, and cost no goroutine.
	watchAfter = 50 * time.Millisecond
	// maxDrain is how much of a body that nobody wanted is read to keep a connection.
	maxDrain = 256 << 10
)

// session is one client connection on which HTTP/1.1 is spoken: one request
// after another, each handled in full before the next is read. The connection
// is guarded, so what net/http parses here is framed in one way only.
type session struct {
	conn   net.Conn
	br     *bufio.Reader
	bw     *bufio.Writer
	ctx    context.Context // of the connection; each request's derives from it
	cut    context.CancelFunc
	handle func(http.ResponseWriter, *http.Request)

	idle     atomic.Bool // waits for a request; whoever makes it false, the session or a shutdown, has the connection
	closing  *atomic.Bool
	hijacked bool

	watchTimer *time.Timer
	mu         sync.Mutex // the watch's state
	watching   bool
	watchDone  chan struct{}
	body       *countingBody      // of the request that is handled; nil where it has none
	cancel     context.CancelFunc // of the request that is handled
}

func newSession(conn net.Conn, closing *atomic.Bool, handle func(http.ResponseWriter, *http.Request)) *session {
	c := &session{conn: conn, br: bufio.NewReader(conn), bw: bufio.NewWriter(conn), closing: closing, handle: handle}
	c.ctx, c.cut = context.WithCancel(context.WithValue(context.Background(), connKey{}, conn))
	c.watchTimer = time.AfterFunc(time.Hour, c.watch)
	c.watchTimer.Stop()
	return c
}

// serve runs until the connection ends, is hijacked, or an exchange panics
// with http.ErrAbortHandler, which cuts it.
func (c *session) serve() {
	defer func() {
		p := recover()
		c.cut()
		if !c.hijacked || p != nil {
			c.conn.Close()
		}
		if p != nil && p != http.ErrAbortHandler {
			panic(p) // no exchange's, for those record theirs and abort: the registry does
		}
	}()
	for wait := headTimeout; c.one(wait); {
		wait = idleTimeout
	}
}

// one serves one request and reports whether another may follow. The guard
// passes a head only when all of it has come, so wait bounds the head as well.
func (c *session) one(wait time.Duration) bool {
	c.idle.Store(true)
	if c.closing.Load() {
		wait = min(wait, lull)
	}
	c.conn.SetReadDeadline(time.Now().Add(wait))
	if _, err := c.br.Peek(1); err != nil {
		c.refuseFraming()
		return false
	}
	if !c.idle.CompareAndSwap(true, false) {
		return false // a shutdown closes it: what came is not taken
	}
	r, err := http.ReadRequest(c.br)
	if err != nil {
		c.refuseRequest(err)
		return false
	}
	c.conn.SetReadDeadline(time.Time{})
	return c.exchange(r)
}

// exchange runs the handler and brings the connection to the request's end.
func (c *session) exchange(r *http.Request) (more bool) {
	ctx, cancel := context.WithCancel(c.ctx)
	r = r.WithContext(ctx)
	r.RemoteAddr = c.conn.RemoteAddr().String()
	w := &response{c: c, r: r, header: make(http.Header, 16), left: -1}
	defer cancel()
	if !c.begin(r, w, cancel) {
		return false
	}
	defer c.stopWatch()
	c.handle(w, r)
	c.stopWatch()
	if c.hijacked {
		return false
	}
	if !w.finish() {
		return false
	}
	if !c.drain() {
		c.lingeringClose()
		return false
	}
	return true
}

// begin readies the body and the watch on the client.
func (c *session) begin(r *http.Request, w *response, cancel context.CancelFunc) bool {
	expect := r.Header.Get("Expect")
	if expect != "" && !strings.EqualFold(expect, "100-continue") {
		c.answer(http.StatusExpectationFailed, codeFraming, "no expectation but 100-continue is understood")
		return false
	}
	c.mu.Lock()
	c.cancel = cancel
	c.body = nil
	if r.Body != http.NoBody {
		c.body = &countingBody{src: r.Body, w: w, wantsContinue: expect != "" && r.ProtoAtLeast(1, 1)}
		r.Body = c.body
	}
	c.mu.Unlock()
	c.watchTimer.Reset(watchAfter)
	return true
}

// watch looks whether the client is still there, once nothing else reads from
// it. Next requests that come meanwhile do not hide that it leaves, as far as the reader holds them.
func (c *session) watch() {
	c.mu.Lock()
	if c.cancel == nil || c.watching {
		c.mu.Unlock()
		return // this call is a request late
	}
	if c.body != nil && !c.body.ended.Load() {
		c.watchTimer.Reset(watchAfter) // the handler may still read
		c.mu.Unlock()
		return
	}
	c.watching, c.watchDone = true, make(chan struct{})
	cancel, done := c.cancel, c.watchDone
	c.mu.Unlock()
	defer close(done)
	for {
		_, err := c.br.Peek(c.br.Buffered() + 1)
		if err == nil {
			continue
		}
		if !isTimeout(err) && err != bufio.ErrBufferFull {
			cancel()
		}
		return
	}
}

// stopWatch ends the watch, so that the session may read again.
func (c *session) stopWatch() {
	c.watchTimer.Stop()
	c.mu.Lock()
	c.cancel = nil
	watching, done := c.watching, c.watchDone
	c.watching = false
	c.mu.Unlock()
	if !watching {
		return
	}
	c.conn.SetReadDeadline(time.Unix(1, 0))
	<-done
	c.conn.SetReadDeadline(time.Time{})
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// drain reads what is left of a body that the handler did not want, so that
// the next request can be read. A long one costs the connection instead.
func (c *session) drain() bool {
	b := c.body
	if b == nil || b.ended.Load() {
		return true
	}
	if b.wantsContinue && !b.asked.Load() {
		return false // the client waits for a word that it will not get
	}
	c.conn.SetReadDeadline(time.Now().Add(time.Second))
	n, err := io.CopyN(io.Discard, b.src, maxDrain+1)
	c.conn.SetReadDeadline(time.Time{})
	return err == io.EOF && n <= maxDrain
}

// refuseRequest answers what could not be read as a request.
func (c *session) refuseRequest(err error) {
	if c.refuseFraming() || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || isTimeout(err) || errors.Is(err, net.ErrClosed) {
		return
	}
	c.answer(http.StatusBadRequest, codeFraming, "the request cannot be read as HTTP/1.1")
}

// refuseFraming answers what the guard refused; false if it refused nothing.
func (c *session) refuseFraming() bool {
	g, ok := c.conn.(interface{ Failed() error })
	if !ok || g.Failed() == nil {
		return false
	}
	c.answer(http.StatusBadRequest, codeFraming, g.Failed().Error())
	return true
}

// answer writes an error of the connection's own, after which it is closed.
func (c *session) answer(status int, code, msg string) {
	c.conn.SetWriteDeadline(time.Now().Add(time.Second))
	problemResponse(status, code, msg).Write(c.bw)
	c.bw.Flush()
	c.lingeringClose()
}

// lingeringClose lets the client read the answer before the connection is
// reset by bytes that nobody reads (RFC 9112 section 9.6).
func (c *session) lingeringClose() {
	closeWrite(c.conn)
	opaque(c.conn)
	c.conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	io.Copy(io.Discard, c.conn)
}

// countingBody is a request's body. It knows when it was read to its end, and
// tells a client that asked for it to go on when it is read first.
type countingBody struct {
	src           io.ReadCloser
	w             *response
	wantsContinue bool
	asked, ended  atomic.Bool
}

func (b *countingBody) Read(p []byte) (int, error) {
	if b.wantsContinue && !b.asked.Swap(true) {
		b.w.sayContinue()
	}
	n, err := b.src.Read(p)
	if err != nil {
		b.ended.Store(err == io.EOF)
	}
	return n, err
}

// Close leaves the rest to the session.
func (b *countingBody) Close() error { return nil }
