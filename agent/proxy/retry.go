package proxy

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
)

// What is kept of request bodies for a retry: a body, and all bodies together.
const (
	maxBody   = 1 << 20
	maxBodies = 8 << 20
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

var errDetached = errors.New("the request is being sent again")

// capture passes a request's body on and keeps a copy, so that the request can
// be sent again. It keeps nothing of a body that turns out too long.
type capture struct {
	src    io.ReadCloser
	budget *budget

	detached atomic.Bool
	mu       sync.Mutex // the transport may still read when an early answer has come
	buf      []byte
	over     bool
}

// capture wraps out's body where a retry is possible: where another version is
// usable and the body is not known to be too long. It returns nil where there
// is no body or nothing to retry with.
func (x *exchange) capture(out *http.Request) *capture {
	if out.Body == nil || !x.t.Key.Spare() || out.ContentLength > maxBody {
		return nil
	}
	c := &capture{src: out.Body, budget: &x.s.bodies}
	out.Body = c
	return c
}

func (c *capture) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.detached.Load() {
		return 0, errDetached
	}
	n, err := c.src.Read(p)
	c.keep(p[:n])
	return n, err
}

func (c *capture) keep(p []byte) {
	if c.over || len(p) == 0 {
		return
	}
	if len(c.buf)+len(p) > maxBody || !c.budget.take(int64(len(p))) {
		c.over = true
		c.budget.give(int64(len(c.buf)))
		c.buf = nil
		return
	}
	c.buf = append(c.buf, p...)
}

// Close is the transport's. The source stays open: the server closes it, and
// the rest of it may still be wanted.
func (c *capture) Close() error { return nil }

// replay returns the whole body once more: what was kept, then the rest of the
// source, which the first request reads no more. False: it was too long.
func (c *capture) replay() (io.ReadCloser, bool) {
	c.detached.Store(true) // before the lock: a read under way is the last one
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return nil, false
	}
	return io.NopCloser(io.MultiReader(bytes.NewReader(c.buf), c.src)), true
}

// release gives the budget back when the exchange ends. The bytes are left to
// the collector, since a transport may still hold the replay.
func (c *capture) release() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	c.budget.give(int64(len(c.buf)))
	c.buf = nil
}
