package proxy

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

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

// body is a request's body on its way to the provider. A transport may go on
// reading it after an early answer; detach ends that, so that the server finds
// nobody reading when the handler returns. Where a retry is possible it also
// keeps a copy, unless the body turns out too long.
type body struct {
	src    io.ReadCloser
	budget *budget

	detached atomic.Bool
	keep     atomic.Bool
	turn     chan struct{} // holds a token while somebody reads, or changes what follows
	buf      []byte
}

func newBody(src io.ReadCloser, b *budget) *body {
	return &body{src: src, budget: b, turn: make(chan struct{}, 1)}
}

// wrapBody takes out's body over; nil where there is none.
func (x *exchange) wrapBody(out *http.Request) *body {
	if out.Body == nil {
		return nil
	}
	b := newBody(out.Body, &x.s.bodies)
	b.keep.Store(x.t.Key.Spare() && out.ContentLength <= maxBody)
	out.Body = b
	return b
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

// Close is the transport's. The source stays open: the server closes it, and
// the rest of it may still be wanted.
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
	again := newBody(io.NopCloser(io.MultiReader(bytes.NewReader(b.buf), b.src)), b.budget)
	again.buf = b.buf // and its place in the budget
	b.keep.Store(false)
	b.buf = nil
	return again
}

// detach ends all reading of the source. A read that waits for the client is
// broken off, which costs the client its connection: it has its answer.
func (b *body) detach(x *exchange) {
	if b == nil {
		return
	}
	b.detached.Store(true)
	select {
	case b.turn <- struct{}{}:
	default:
		http.NewResponseController(x.w).SetReadDeadline(time.Unix(1, 0))
		b.turn <- struct{}{}
	}
	b.forget()
	<-b.turn
}
