package proxy

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-proxy/postern/agent/proxy/h1"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/upstream"
)

// trip is a request's way to the provider and its answer's way back.
type trip struct {
	c       *session
	up      *upstream.Conn // nil: there is none, or HTTP/2
	h2      io.ReadCloser  // the answer's body, over HTTP/2
	trailer *http.Header   // likewise, filled when the body ends; nil where no client of HTTP/2 waits for it
	sending *sending       // the body, meanwhile; nil where it went with the head
	wrote   bool           // something of the request went out, of what Ask was not given

	res    h1.Response
	in     *[]byte // borrowed; in[r:w] has come and is not taken
	r, w   int
	from   int   // where the answer's head begins
	failed error // of a read that brought something as well
	dec    h1.Chunked
	left   int64 // of Content-Length
	over   bool  // the answer's end was reached
}

// Buffers. What is read with a small one and fills it goes on with a large one;
// a stream that has nothing to say waits with a tiny one.
const (
	tinyBuf   = 1 << 10
	smallBuf  = 4 << 10
	largeBuf  = 32 << 10
	shortBody = 32 << 10
)

func bufs(size int) *sync.Pool {
	return &sync.Pool{New: func() any { b := make([]byte, size); return &b }}
}

var tinyPool, smallPool, largePool = bufs(tinyBuf), bufs(smallBuf), bufs(largeBuf)

// borrow gives a buffer of at least n bytes.
func borrow(n int) *[]byte {
	switch {
	case n <= tinyBuf:
		return tinyPool.Get().(*[]byte)
	case n <= smallBuf:
		return smallPool.Get().(*[]byte)
	case n <= largeBuf:
		return largePool.Get().(*[]byte)
	}
	b := make([]byte, n)
	return &b
}

// giveBack ends what borrow began. What was in it may have been a key, or repeat one.
func giveBack(b *[]byte) {
	secret.Wipe(*b)
	switch len(*b) {
	case tinyBuf:
		tinyPool.Put(b)
	case smallBuf:
		smallPool.Put(b)
	case largeBuf:
		largePool.Put(b)
	}
}

// overHTTP1 sends the request on a connection of the pool and reads the
// answer's head. A connection that carried a request before may have been
// closed meanwhile: then it is tried once more on a fresh one.
func (x *exchange) overHTTP1() error {
	up, err := x.to.host.Get(x.c.ctx)
	if err != nil {
		return err
	}
	err = x.attempt(up)
	if err == nil || !up.Reused() || !x.mayRepeat(err) {
		return err
	}
	x.trip.discard()
	if up, err = x.to.host.Dial(x.c.ctx); err != nil {
		return err
	}
	return x.attempt(up)
}

// mayRepeat reports whether the request can be sent once more after it failed
// on a connection that was used before: nothing of it went out, or nothing of an
// answer came and it means the same done twice (RFC 9110 section 9.2.2).
func (x *exchange) mayRepeat(err error) bool {
	t := x.trip
	var attach errAttach
	if x.c.ctx.Err() != nil || t.sending != nil || t.w > 0 || isTimeout(err) || errors.As(err, &attach) {
		return false
	}
	return !t.wrote && !t.up.Sent() || x.repeatable()
}

// repeatable reports whether the request means the same done twice.
func (x *exchange) repeatable() bool {
	switch view(x.req.Method) {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	_, n := x.req.Get("Idempotency-Key")
	return n > 0
}

// attempt makes the round trip on one connection.
func (x *exchange) attempt(up *upstream.Conn) error {
	t := x.trip
	t.begin(x.c, up)
	if !x.c.hold(up) {
		return errGone
	}
	if err := x.writeRequest(up); err != nil {
		return err
	}
	now := time.Now()
	if x.sent.IsZero() {
		x.sent = now
	}
	if x.body != nil {
		t.sending = newSending()
		go t.sending.run(up, x.body, x.req.Chunked)
	}
	x.c.asked.Store(now.UnixNano())
	err := t.readHead(view(x.req.Method) == http.MethodHead)
	x.c.asked.Store(0)
	return err
}

func (t *trip) begin(c *session, up *upstream.Conn) {
	t.c, t.up, t.h2, t.trailer, t.sending, t.wrote = c, up, nil, nil, nil, false
	t.r, t.w, t.from, t.failed, t.left, t.over = 0, 0, 0, nil, 0, false
	t.res.Reset()
	t.dec.Extensions = true
}

// writeRequest writes the head with the key in it, and the body where it is
// whole, from one buffer which is wiped right after.
func (x *exchange) writeRequest(up *upstream.Conn) error {
	size := x.headRoom()
	if all := size + len(x.whole) + h1.MaxChunkHead + len("\r\n") + len(h1.LastChunk); all <= largeBuf {
		size = all
	}
	buf := borrow(size)
	defer giveBack(buf)
	out, err := x.appendHead((*buf)[:0])
	if err != nil {
		return errAttach{err}
	}
	rest := x.whole
	if x.req.Chunked && len(rest) > 0 {
		out = h1.AppendChunkHead(out, len(rest))
	}
	if cap(out)-len(out) >= len(rest)+len("\r\n")+len(h1.LastChunk) {
		out, rest = append(out, rest...), nil
		out = x.appendBodyEnd(out)
	}
	if rest == nil && x.body == nil {
		_, err = up.Ask(out)
		return err
	}
	n, err := up.Write(out)
	x.trip.wrote = n > 0
	if err != nil || rest == nil {
		return err
	}
	if _, err = up.Write(rest); err == nil && x.req.Chunked {
		_, err = up.Write(x.appendBodyEnd(out[:0]))
	}
	return err
}

// appendBodyEnd ends a body that was taken whole.
func (x *exchange) appendBodyEnd(dst []byte) []byte {
	if !x.req.Chunked || x.body != nil {
		return dst
	}
	if len(x.whole) > 0 {
		dst = append(dst, "\r\n"...)
	}
	return append(dst, h1.LastChunk...)
}

// readHead reads until the answer's head has come, past interim ones.
func (t *trip) readHead(bodiless bool) error {
	t.in = borrow(smallBuf)
	interim := 0
	for {
		if t.w > t.r {
			n, err := t.res.Parse((*t.in)[t.r:t.w], bodiless)
			if err != nil {
				return errAnswer(err.Error())
			}
			t.from, t.r = t.r, t.r+n
			if n > 0 && (t.res.Status >= 200 || t.res.Status == http.StatusSwitchingProtocols) {
				t.left = t.res.Length
				return nil
			}
			if interim += n; interim > h1.MaxAnswer {
				return errAnswer("interim responses without end")
			}
			if n > 0 {
				continue
			}
		}
		if err := t.fill(); err != nil {
			return err
		}
	}
}

// fill reads behind what has come, in a larger buffer where this one is full.
func (t *trip) fill() error {
	if t.failed != nil {
		return t.failed
	}
	if t.r > 0 {
		t.w = copy(*t.in, (*t.in)[t.r:t.w])
		t.r, t.from = 0, 0
	}
	if t.w == len(*t.in) {
		t.grow(2 * t.w)
	}
	n, err := t.up.Read((*t.in)[t.w:])
	t.w += n
	if n > 0 {
		t.failed = err
		return nil
	}
	return err
}

func (t *trip) grow(n int) {
	larger := borrow(n)
	copy(*larger, (*t.in)[:t.w])
	giveBack(t.in)
	t.in = larger
}

// next returns the next piece of the answer's body, valid until the call after
// it, and whether it is the last. It may be empty then only.
func (t *trip) next() (data []byte, end bool, err error) {
	if t.h2 != nil {
		return t.nextHTTP2()
	}
	for {
		if t.r == t.w {
			if t.w == len(*t.in) && t.w < largeBuf {
				t.r, t.w = 0, 0
				t.grow(largeBuf)
			}
			if err := t.fill(); err != nil {
				if err == io.EOF && t.res.Length < 0 {
					t.over = true
					return nil, true, nil
				}
				return nil, false, unexpected(err)
			}
		}
		b := (*t.in)[t.r:t.w]
		n := len(b)
		switch {
		case t.res.Chunked:
			if data, n, err = t.dec.Next(b); err != nil {
				return nil, false, errAnswer(err.Error())
			}
			t.over = t.dec.Ended()
		case t.left < 0:
			data = b
		default:
			n = int(min(int64(n), t.left))
			data = b[:n]
			t.left -= int64(n)
			t.over = t.left == 0
		}
		t.r += n
		if len(data) > 0 || t.over {
			return data, t.over, nil
		}
	}
}

// atHand reports whether next need not wait.
func (t *trip) atHand() bool { return t.r < t.w }

// rest is called before a wait for more of the body, when the head is passed on:
// its buffer is of use to others.
func (t *trip) rest() {
	if t.h2 == nil && len(*t.in) == smallBuf {
		giveBack(t.in)
		t.in = borrow(tinyBuf)
		t.r, t.w, t.from = 0, 0, 0
	}
}

// bodiless reports whether no body follows the answer's head.
func (t *trip) bodiless() bool { return t.res.Length == 0 && !t.res.Chunked }

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// discard is end for an answer that nobody wants. Where all of it came with its
// head, the connection can be used again.
func (t *trip) discard() {
	for t.up != nil && t.res.Status >= 200 && !t.over && t.atHand() {
		if _, _, err := t.next(); err != nil {
			break
		}
	}
	t.end()
}

// release gives the connection back as soon as it is at rest, before the client
// has the last of the answer: what it does then is no matter of the connection's.
func (t *trip) release() {
	whole := t.failed == nil && (t.over || t.res.Status >= 200 && t.bodiless())
	if t.up != nil && whole && !t.res.Close && t.r == t.w && (t.sending == nil || t.sending.finished()) && t.c.hold(nil) {
		t.up.Put()
		t.up = nil
	}
}

// end gives back the connection, or closes it where it is not at rest, and what was borrowed.
func (t *trip) end() {
	if t.h2 != nil {
		t.h2.Close()
		t.h2, t.trailer = nil, nil
	}
	t.release()
	if t.up != nil {
		t.c.hold(nil)
		t.up.Close()
		t.up = nil
	}
	if t.sending != nil {
		<-t.sending.done
		t.sending = nil
	}
	if t.in != nil {
		giveBack(t.in)
		t.in = nil
	}
	t.dec.Reset()
	t.res.Status = 0
}

// sending is a body on its way to the provider while the answer may come.
type sending struct {
	done chan struct{}
	all  atomic.Bool           // went out, its end included
	bad  atomic.Pointer[error] // what was wrong with the client's side
}

func newSending() *sending { return &sending{done: make(chan struct{})} }

func (s *sending) finished() bool {
	select {
	case <-s.done:
		return s.all.Load()
	default:
		return false
	}
}

// failure is why the client's body could not be read to its end; nil if it could, or can still.
func (s *sending) failure() error {
	if s == nil {
		return nil
	}
	if e := s.bad.Load(); e != nil {
		return *e
	}
	return nil
}

// run sends the body until its end, or until somebody breaks it off. That the
// provider takes no more of it is no failure: its answer says why.
func (s *sending) run(up *upstream.Conn, from *body, chunked bool) {
	defer close(s.done)
	whole, err := writeBody(up, from, chunked, largeBuf)
	s.all.Store(whole)
	if err != nil && err != errDetached {
		s.bad.Store(&err)
		up.SetDeadline(time.Unix(1, 0)) // the request will not be whole: nobody waits for its answer
	}
}

// writeBody writes a body with its framing, by a buffer of this size. The error is
// the body's own: that to takes no more only leaves it not whole.
func writeBody(to io.Writer, from io.Reader, chunked bool, size int) (whole bool, err error) {
	buf := borrow(size)
	defer giveBack(buf)
	const before, after = h1.MaxChunkHead, len("\r\n")
	room := (*buf)[before : size-after]
	for {
		n, err := from.Read(room)
		if n > 0 {
			piece := room[:n]
			if chunked {
				piece = framed(*buf, before, n)
			}
			if _, werr := to.Write(piece); werr != nil {
				return false, nil
			}
		}
		switch {
		case err == nil:
		case err != io.EOF:
			return false, err
		case chunked:
			_, err := io.WriteString(to, h1.LastChunk)
			return err == nil, nil
		default:
			return true, nil
		}
	}
}

// framed puts a chunk's size before buf[at:at+n] and its end behind.
func framed(buf []byte, at, n int) []byte {
	var size [h1.MaxChunkHead]byte
	head := h1.AppendChunkHead(size[:0], n)
	begin := at - len(head)
	copy(buf[begin:], head)
	copy(buf[at+n:], "\r\n")
	return buf[begin : at+n+len("\r\n")]
}

// errGone: the client has left, or the server ends what is under way.
var errGone = errors.New("the exchange was given up")
