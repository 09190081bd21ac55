package proxy

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/postern-proxy/postern/agent/proxy/h1"
)

// clientBody is the body of a session's request, without its framing. It knows
// when it was read to its end, and tells a client that asked for it to go on
// when it is read from the connection first.
type clientBody struct {
	c             *session
	ready         []byte // came with the head
	left          int64  // of Content-Length, behind ready
	chunked       bool
	dec           h1.Chunked
	wantsContinue bool
	brokenOff     bool // by detach: the client sends nothing
	asked, ended  atomic.Bool
}

// begin looks at what came with the head. The error is what is wrong with it.
func (b *clientBody) begin() error {
	c := b.c
	b.ready, b.left, b.chunked, b.brokenOff = nil, c.req.Length, c.req.Chunked, false
	_, expects := c.req.Get("Expect")
	b.wantsContinue = expects > 0 && c.req.Minor == 1
	b.asked.Store(false)
	if c.pin == nil && view(c.req.Method) == http.MethodConnect { // what follows is the tunnel's, whatever the head says
		b.left, b.chunked = 0, false
	}
	came := c.in[c.r:c.w]
	ended := true
	switch {
	case b.chunked:
		b.dec.Reset()
		data, n, err := b.dec.Next(came)
		if err != nil {
			return err
		}
		b.ready = data
		c.r += n
		ended = b.dec.Ended()
	case b.left > 0:
		b.ready = came[:min(int64(len(came)), b.left)]
		c.r += len(b.ready)
		b.left -= int64(len(b.ready))
		ended = b.left == 0
	}
	b.ended.Store(ended && len(b.ready) == 0)
	return nil
}

// none reports whether the request has no body.
func (b *clientBody) none() bool { return !b.chunked && b.c.req.Length == 0 }

// whole reports whether all of it came already; it is ready then.
func (b *clientBody) whole() bool {
	if b.chunked {
		return b.dec.Ended()
	}
	return b.left == 0
}

// take gives what is ready, as Read would.
func (b *clientBody) take() []byte {
	data := b.ready
	b.ready = nil
	b.ended.Store(b.whole())
	return data
}

// Read implements io.Reader.
func (b *clientBody) Read(p []byte) (int, error) {
	for {
		if len(b.ready) > 0 {
			n := copy(p, b.ready)
			if b.ready = b.ready[n:]; len(b.ready) == 0 {
				b.ended.Store(b.whole())
			}
			return n, nil
		}
		if b.whole() {
			return 0, io.EOF
		}
		n, err := b.more(p)
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// more reads from the connection; what ends there is no body that ended.
func (b *clientBody) more(p []byte) (int, error) {
	if b.wantsContinue && !b.asked.Swap(true) {
		b.c.sayContinue()
	}
	if !b.chunked {
		p = p[:min(int64(len(p)), b.left)]
	}
	n, err := b.c.conn.Read(p)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if n == 0 {
		return 0, err
	}
	if !b.chunked {
		b.left -= int64(n)
		b.ended.Store(b.left == 0)
		return n, nil
	}
	data, used, err := b.dec.Next(p[:n])
	if err != nil {
		return 0, err
	}
	if b.dec.Ended() {
		b.c.unread(p[used:n])
		b.ended.Store(true)
	}
	return len(data), nil
}

// What is kept of request bodies for a retry: a body, and all bodies together.
const (
	maxBody   = 1 << 20
	maxBodies = 8 << 20
	// replayWait is how long a retry waits for a client that has stopped sending.
	replayWait = time.Second
)

// budget is what all captured bodies may use together.
type budget struct{ used atomic.Int64 }

func (b *budget) take(n int64) bool {
	if b.used.Add(n) > maxBodies {
		b.used.Add(-n)
		return false
	}
	return true
}

func (b *budget) give(n int64) { b.used.Add(-n) }

var errDetached = errors.New("the request's body is no longer read")

// body is a request's body on its way to the provider, read by another
// goroutine than the session's. That one may go on reading after an early
// answer; detach ends it, so that the session finds nobody reading when the
// exchange is over. Where a retry is possible it also keeps a copy, unless the
// body turns out too long.
type body struct {
	src    io.Reader
	budget *budget

	detached atomic.Bool
	keep     atomic.Bool
	turn     chan struct{} // holds a token while somebody reads, or changes what follows
	buf      []byte
}

func newBody(src io.Reader, b *budget, keep bool) *body {
	w := &body{src: src, budget: b, turn: make(chan struct{}, 1)}
	w.keep.Store(keep)
	return w
}

func (b *body) Read(p []byte) (int, error) {
	b.turn <- struct{}{}
	defer func() { <-b.turn }()
	if b.detached.Load() {
		return 0, errDetached
	}
	n, err := b.src.Read(p)
	b.add(p[:n])
	return n, err
}

func (b *body) add(p []byte) {
	if !b.keep.Load() || len(p) == 0 {
		return
	}
	if len(b.buf)+len(p) > maxBody || !b.budget.take(int64(len(p))) {
		b.forget()
		return
	}
	b.buf = append(b.buf, p...)
}

// forget keeps nothing from here on. The bytes are left to the collector,
// since a transport may still hold a replay of them.
func (b *body) forget() {
	b.keep.Store(false)
	b.budget.give(int64(len(b.buf)))
	b.buf = nil
}

// Close is a transport's. The source stays open: the rest of it may still be wanted.
func (b *body) Close() error { return nil }

// replay returns a body that yields the whole of it once more: what was kept,
// then the rest of the source, which b reads no more. Nil: it was too long, or
// the client sends nothing, perhaps until it has an answer; b then goes on.
func (b *body) replay() *body {
	if !b.keep.Load() {
		return nil
	}
	stalled := time.NewTimer(replayWait)
	defer stalled.Stop()
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-stalled.C:
		return nil
	}
	if !b.keep.Load() {
		return nil
	}
	b.detached.Store(true)
	again := newBody(io.MultiReader(bytes.NewReader(b.buf), b.src), b.budget, false)
	again.buf = b.buf // and its place in the budget
	b.keep.Store(false)
	b.buf = nil
	return again
}

// detach ends all reading of the source. A read that waits for the client is
// broken off, which costs the client its connection: it has its answer.
func (b *body) detach(c *session) {
	b.detached.Store(true)
	select {
	case b.turn <- struct{}{}:
	default:
		c.conn.SetReadDeadline(time.Unix(1, 0))
		b.turn <- struct{}{}
		c.body.brokenOff = true
		c.conn.SetReadDeadline(time.Time{})
	}
	b.forget()
	<-b.turn
}
