package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-proxy/postern/agent/proxy/h1"
	"github.com/postern-proxy/postern/agent/redact"
)

const (
	// watchAfter is how long a request may take before anybody looks whether its
	// client is still there: most are over by then, and cost no goroutine.
	watchAfter = 50 * time.Millisecond
	// maxDrain is how much of a body that nobody wanted is read to keep a connection.
	maxDrain = 256 << 10
	// inSize is what a session reads requests with; it grows for a longer head.
	inSize = 4 << 10
)

// session is one client connection on which HTTP/1.1 is spoken: one request
// after another, each handled in full before the next is read, by one
// goroutine. Whatever could be read in two ways ends it (I13). One on which
// HTTP/2 is spoken has a session of its own for each stream.
type session struct {
	s    *Server
	conn net.Conn
	pin  *pinned         // where it is inside a tunnel; nil on the listener
	ctx  context.Context // of the connection
	end  context.CancelFunc

	// in[r:w] has come and nobody has taken it yet. The head of the request that
	// is handled stands before it.
	in    []byte
	r, w  int
	head  int // its length
	req   h1.Request
	body  clientBody // of the request that is handled
	x     exchange   // likewise
	trip  trip
	scrub *redact.Stream // of answers
	out   []byte         // what is to be written to the client next
	lent  *[]byte        // what out is part of; borrowed for an exchange

	streams  atomic.Pointer[streams] // where the client speaks HTTP/2; nil otherwise
	trailers []h1.Field              // of the answer, for the stream that the session serves

	asked    atomic.Int64 // since when an answer is waited for on up, in Unix nanoseconds; 0: it is not
	idle     atomic.Bool  // waits for a request; whoever makes it false, the session, the sweeper or a shutdown, has the connection
	hijacked bool

	say   sync.Mutex // begun, against sayContinue
	begun bool       // the answer

	mu      sync.Mutex // what follows: the sweeper looks at it
	phase   phase
	since   time.Time
	patient time.Duration // how long a head may take
	watch   chan struct{} // closed when the watch on the client has ended; nil: there is none
	kicked  bool          // the sweeper broke off the read of a short body
	up      net.Conn      // the upstream connection in use; nil for none
	cutOff  bool          // by cut
}

// ending is how the connection goes on after a request.
type ending uint8

const (
	goOn     ending = iota
	endAfter        // its client reads what was written, and no more comes
	endNow          // it is cut
)

// phase is what a session does.
type phase uint8

const (
	atHead phase = iota // waits for a head, or the rest of one
	atBody              // waits for the rest of a short body, before anything is sent
	atWork              // everything else
	away                // relays an upgraded connection
)

func newSession(s *Server, conn net.Conn, pin *pinned) *session {
	c := &session{s: s, conn: conn, pin: pin, in: make([]byte, inSize), since: time.Now(), patient: s.headTimeout}
	c.ctx, c.end = context.WithCancel(context.Background())
	c.body.c = c
	c.scrub = s.known.NewStream("response")
	return c
}

// serve runs until the connection ends, is hijacked, or an exchange gives it up.
func (c *session) serve() {
	defer func() {
		c.cut()
		if !c.hijacked {
			c.conn.Close()
		}
	}()
	if c.choseHTTP2() {
		c.serveStreams()
		return
	}
	for c.one() && !c.ofStream() {
	}
}

// ofStream reports whether the session serves a stream of HTTP/2: one request.
func (c *session) ofStream() bool { return c.pin != nil && c.pin.streams }

// one serves one request and reports whether another may follow.
func (c *session) one() bool {
	c.idle.Store(true)
	if c.s.closing.Load() {
		c.conn.SetReadDeadline(time.Now().Add(c.s.lull))
	}
	if !c.readHead() {
		return false
	}
	if !c.idle.CompareAndSwap(true, false) {
		return false // a shutdown closes it: what came is not taken
	}
	if expect, n := c.req.Get("Expect"); n > 0 && (n > 1 || !h1.EqualFold(expect, "100-continue")) {
		c.answer(http.StatusExpectationFailed, codeFraming, "no expectation but 100-continue is understood")
		return false
	}
	start := time.Now()
	if err := c.body.begin(); err != nil {
		c.answer(http.StatusBadRequest, codeFraming, err.Error())
		return false
	}
	c.enter(atWork, start)
	c.begun = false
	c.ready()
	end := c.handle(start)
	c.out = nil // what an exchange that was given up has not written
	c.rest()
	c.x = exchange{} // an idle connection keeps no generation
	c.stopWatch()
	switch {
	case c.hijacked || end == endNow:
		return false
	case end == endAfter || !c.drain():
		c.lingeringClose()
		return false
	}
	c.patient = c.s.idleTimeout
	c.enter(atHead, time.Now())
	return true
}

// enter begins a phase.
func (c *session) enter(p phase, now time.Time) {
	c.mu.Lock()
	c.phase, c.since = p, now
	c.mu.Unlock()
	if p == atWork {
		c.s.sweeper.rouse()
	}
}

// readHead reads until a whole head stands at the buffer's beginning.
func (c *session) readHead() bool {
	switch n := c.w - c.r; {
	case n == 0 && len(c.in) > 4*inSize:
		c.in = make([]byte, inSize)
	case n > 0 && c.r > 0:
		copy(c.in, c.in[c.r:c.w])
	}
	c.r, c.w = 0, c.w-c.r
	c.req.Reset()
	for {
		if c.w > 0 {
			n, err := c.req.Parse(c.in[:c.w])
			if err != nil {
				c.idle.Store(false)
				c.answer(http.StatusBadRequest, codeFraming, err.Error())
				return false
			}
			if n > 0 {
				c.r, c.head = n, n
				return true
			}
		}
		if c.w == len(c.in) {
			c.in = append(c.in, make([]byte, len(c.in))...)
		}
		n, err := c.conn.Read(c.in[c.w:])
		c.w += n
		if err != nil && n == 0 {
			return false
		}
	}
}

// unread puts back what was read of the connection but belongs to the next
// request. Nothing else of the buffer is wanted any more but the head.
func (c *session) unread(b []byte) {
	c.r, c.w = c.head, c.head+copy(c.in[c.head:], b)
	if rest := b[c.w-c.head:]; len(rest) > 0 {
		// Those who look at the head go on with the old buffer.
		c.in = append(c.in, rest...)
		c.w = len(c.in)
	}
}

// lookAfter watches the client until its request is over: the sweeper calls it
// when that takes long, with c.mu held. Next requests that come meanwhile do
// not hide that the client leaves, as far as the buffer holds them.
func (c *session) lookAfter() {
	if c.watch != nil || !c.body.ended.Load() {
		return // or somebody else still reads
	}
	done := make(chan struct{})
	c.watch = done
	go func() {
		defer close(done)
		for {
			if c.w == len(c.in) {
				if len(c.in) > 4*inSize {
					return
				}
				c.in = append(c.in, make([]byte, inSize)...)
			}
			n, err := c.conn.Read(c.in[c.w:])
			c.w += n
			if err == nil {
				continue
			}
			if !isTimeout(err) {
				c.cut()
			}
			return
		}
	}()
}

// stopWatch ends the watch, so that the session may read again.
func (c *session) stopWatch() {
	c.mu.Lock()
	done := c.watch
	c.phase = away // nobody begins another
	c.mu.Unlock()
	if done == nil {
		return
	}
	c.conn.SetReadDeadline(time.Unix(1, 0))
	<-done
	c.conn.SetReadDeadline(time.Time{})
	c.mu.Lock()
	c.watch = nil
	c.mu.Unlock()
}

// cut ends what is under way: the client has left, or the server stops.
func (c *session) cut() {
	c.end()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cutOff = true
	if c.up != nil {
		c.up.SetDeadline(time.Unix(1, 0))
	}
}

// hold makes an upstream connection the one that cut ends; nil: none any more.
// It reports false if that has happened.
func (c *session) hold(up net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.up = up
	return !c.cutOff
}

// unkick ends the wait for a short body, and reports whether the sweeper broke it off.
func (c *session) unkick(start time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	kicked := c.kicked
	if kicked {
		c.conn.SetReadDeadline(time.Time{})
	}
	c.phase, c.since, c.kicked = atWork, start, false
	return kicked
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// drain reads what is left of a body that nobody wanted, so that the next
// request can be read. A long one costs the connection instead.
func (c *session) drain() bool {
	b := &c.body
	if b.ended.Load() {
		return true
	}
	if b.brokenOff || b.wantsContinue && !b.asked.Load() {
		return false // the client sends nothing, perhaps waiting for a word that it will not get
	}
	c.conn.SetReadDeadline(time.Now().Add(time.Second))
	n, err := io.CopyN(io.Discard, b, maxDrain+1)
	c.conn.SetReadDeadline(time.Time{})
	return err == io.EOF && n <= maxDrain
}

// answer writes an error of the connection's own, after which it is closed.
func (c *session) answer(status int, code, msg string) {
	c.conn.SetWriteDeadline(time.Now().Add(time.Second))
	problemResponse(status, code, msg).Write(c.conn)
	c.lingeringClose()
}

// lingeringClose lets the client read the answer before the connection is
// reset by bytes that nobody reads (RFC 9112 section 9.6).
func (c *session) lingeringClose() {
	closeWrite(c.conn)
	c.conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	io.Copy(io.Discard, c.conn)
}

// sayContinue lets a client that asked send its body, unless the answer has begun.
func (c *session) sayContinue() {
	c.say.Lock()
	defer c.say.Unlock()
	if !c.begun {
		io.WriteString(c.conn, "HTTP/1.1 100 Continue\r\n\r\n")
	}
}

// begin is called before the answer's first byte is written.
func (c *session) begin() {
	c.say.Lock()
	c.begun = true
	c.say.Unlock()
}

// ready sees to it that out can be written to.
func (c *session) ready() {
	if c.lent == nil {
		c.lent = borrow(smallBuf)
		c.out = (*c.lent)[:0]
	}
}

// rest gives out's buffer back, unless something in it is not written yet: many
// a stream waits most of the time.
func (c *session) rest() {
	if c.lent != nil && len(c.out) == 0 {
		giveBack(c.lent)
		c.lent, c.out = nil, nil
	}
}

// room reports whether n bytes more can be put into out, which grows once for them.
func (c *session) room(n int) bool {
	if n > cap(c.out)-len(c.out) && len(*c.lent) < largeBuf && len(c.out)+n <= largeBuf {
		larger := borrow(largeBuf)
		c.out = append((*larger)[:0], c.out...)
		giveBack(c.lent)
		c.lent = larger
	}
	return n <= cap(c.out)-len(c.out)
}

// flush writes what is to be written to the client.
func (c *session) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	_, err := c.conn.Write(c.out)
	c.out = c.out[:0]
	return err
}
