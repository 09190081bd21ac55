package h1

import (
	"bytes"
	"io"
	"sync/atomic"
)

// Guard passes a client's byte stream on, request by request, and stops at the
// first byte whose meaning is not certain: a head is passed only when all of it
// has come and is valid, chunk sizes and trailers likewise, bodies as they come.
// One goroutine reads at a time; Opaque may be called from another.
type Guard struct {
	src io.Reader

	opaque atomic.Bool           // what follows is no HTTP any more
	bad    atomic.Pointer[Error] // what Failed returns
	state  state
	pass   int64  // bytes of the body, or of a chunk, that may still pass
	held   []byte // came, but not yet valid: part of a head, a chunk size or a trailer
	out    []byte // valid, not yet read
	seen   int    // bytes of held in which no end was found
	err    error  // after out
}

type state uint8

const (
	inHead state = iota
	inBody
	inChunkSize
	inChunk
	inChunkEnd
	inTrailers
)

// NewGuard guards src.
func NewGuard(src io.Reader) *Guard { return &Guard{src: src} }

// Opaque says that the connection has changed its protocol: from now on every byte passes.
func (g *Guard) Opaque() { g.opaque.Store(true) }

// Failed is the Error that the stream ended with, or nil. It may be called
// while another goroutine reads.
func (g *Guard) Failed() error {
	if e := g.bad.Load(); e != nil {
		return *e
	}
	return nil
}

// fail keeps the first of what a read and a scan had to say; a scan counts for more.
func (g *Guard) fail(read, scan error) {
	g.err = read
	if scan != nil {
		e := scan.(Error) // scan makes no other
		g.err = e
		g.bad.Store(&e)
	}
}

// Read implements io.Reader. After an Error every further Read returns it.
func (g *Guard) Read(p []byte) (int, error) {
	for {
		if len(g.out) > 0 {
			n := copy(p, g.out)
			g.out = g.out[n:]
			return n, nil
		}
		opaque := g.opaque.Load()
		if opaque && len(g.held) > 0 {
			g.out, g.held, g.seen = g.held, nil, 0
			continue
		}
		if err := g.err; err != nil {
			_, ours := err.(Error)
			if !ours || opaque {
				g.err = nil // a deadline may be moved; what ended stays ended by itself
			}
			if !ours || !opaque {
				return 0, err
			}
		}
		if opaque {
			return g.src.Read(p)
		}
		if len(g.held) > 0 {
			g.more()
			continue
		}
		n, err := g.src.Read(p)
		k, bad := g.scan(p[:n])
		if k < n {
			g.held = append(g.held[:0:0], p[k:n]...)
		}
		g.fail(err, bad)
		if k > 0 {
			return k, nil
		}
	}
}

// more reads behind what is held, and scans again.
func (g *Guard) more() {
	if cap(g.held)-len(g.held) < 512 {
		g.held = append(make([]byte, 0, max(2*cap(g.held), 4096)), g.held...)
	}
	n, err := g.src.Read(g.held[len(g.held):cap(g.held)])
	g.held = g.held[:len(g.held)+n]
	k, bad := g.scan(g.held)
	g.out, g.held = g.held[:k], g.held[k:]
	if len(g.held) == 0 {
		g.held = nil
	}
	g.fail(err, bad)
}

// scan returns how many bytes of b may pass, and moves the state over them.
func (g *Guard) scan(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := g.step(b[done:])
		done += n
		if err != nil || n == 0 {
			return done, err
		}
		g.seen = 0
	}
	return done, nil
}

// step takes one unit off b: a head, a piece of a body, a chunk size, a
// trailer section. It returns 0 where the unit is not complete.
func (g *Guard) step(b []byte) (int, error) {
	switch g.state {
	case inHead:
		end, err := g.end(b, crlfcrlf, MaxHead)
		if end == 0 {
			return 0, err
		}
		f, err := RequestHead(b[:end])
		if err != nil {
			return 0, err
		}
		switch {
		case f.Chunked:
			g.state = inChunkSize
		case f.Length > 0:
			g.state, g.pass = inBody, f.Length
		}
		return end, nil
	case inBody:
		return g.some(b, inHead), nil
	case inChunk:
		return g.some(b, inChunkEnd), nil
	case inChunkEnd:
		if b[0] != '\r' || len(b) > 1 && b[1] != '\n' {
			return 0, Error("a chunk is longer than its size")
		}
		if len(b) < 2 {
			return 0, nil
		}
		g.state = inChunkSize
		return 2, nil
	case inChunkSize:
		end, err := g.end(b, crlf, 18)
		if end == 0 {
			return 0, err
		}
		if g.pass, err = chunkSize(b[:end-2]); err != nil {
			return 0, err
		}
		g.state = inChunk
		if g.pass == 0 {
			g.state = inTrailers
		}
		return end, nil
	}
	return g.trailers(b)
}

func (g *Guard) trailers(b []byte) (int, error) {
	if bytes.HasPrefix(b, crlf) {
		g.state = inHead
		return 2, nil
	}
	end, err := g.end(b, crlfcrlf, MaxHead)
	if end == 0 {
		return 0, err
	}
	if err := trailers(b[:end]); err != nil {
		return 0, err
	}
	g.state = inHead
	return end, nil
}

// some passes what b has of the bytes that may pass; when they are through, the state is next.
func (g *Guard) some(b []byte, next state) int {
	n := int(min(int64(len(b)), g.pass))
	if g.pass -= int64(n); g.pass == 0 {
		g.state = next
	}
	return n
}

// end finds the unit's end in b: the index after mark, or 0 if it has not come.
func (g *Guard) end(b, mark []byte, limit int) (int, error) {
	from := max(0, g.seen-len(mark)+1)
	if i := bytes.Index(b[from:], mark); i >= 0 {
		if end := from + i + len(mark); end <= limit {
			return end, nil
		}
		return 0, Error("a head, trailer or chunk size that is too long")
	}
	if err := early(b[from:]); err != nil {
		return 0, err
	}
	g.seen = len(b)
	if len(b) >= limit {
		return 0, Error("a head, trailer or chunk size that is too long")
	}
	return 0, nil
}

// early refuses a line feed without its carriage return as soon as it is seen:
// a client that ends its lines so would otherwise wait for an answer forever.
func early(b []byte) error {
	for i := 0; ; {
		j := bytes.IndexByte(b[i:], '\n')
		if j < 0 {
			return nil
		}
		if i += j; i > 0 && b[i-1] != '\r' {
			return Error("a line feed without a carriage return")
		}
		i++
	}
}
