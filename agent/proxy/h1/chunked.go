package h1

import "bytes"

// Chunked reads a chunked body (RFC 9112 section 7.1) as it comes, in pieces
// cut anywhere. Trailers are checked and dropped. The zero value is at a body's
// beginning.
type Chunked struct {
	// Extensions has chunk extensions checked and dropped, as whoever receives them
	// must (RFC 9112 section 7.1.1); else they are refused. Requests can do without,
	// and where two servers read them differently one request hides in another.
	Extensions bool

	state  chunkState
	left   int64  // of the chunk
	digits int    // of the chunk's size
	held   []byte // of extensions or a trailer section that have not come whole
}

type chunkState uint8

const (
	inSize chunkState = iota
	inExtensions
	inSizeLF
	inData
	inDataCR
	inDataLF
	inTrailers
	ended
)

// Reset puts c at a body's beginning, and leaves nothing of what it held.
func (c *Chunked) Reset() {
	clear(c.held)
	*c = Chunked{Extensions: c.Extensions, held: c.held[:0]}
}

// Ended reports whether the body's end has come.
func (c *Chunked) Ended() bool { return c.state == ended }

// Next takes the next bytes and moves what is data among them to the front of
// b. n is how many bytes of b belong to the body: all of them, unless it ends there.
func (c *Chunked) Next(b []byte) (data []byte, n int, err error) {
	kept := 0
	for n < len(b) && c.state != ended {
		switch c.state {
		case inData:
			k := int(min(int64(len(b)-n), c.left))
			if kept != n {
				copy(b[kept:], b[n:n+k])
			}
			kept, n = kept+k, n+k
			if c.left -= int64(k); c.left == 0 {
				c.state = inDataCR
			}
		case inExtensions, inTrailers:
			take := c.trailers
			if c.state == inExtensions {
				take = c.extensions
			}
			k, err := take(b[n:])
			if err != nil {
				return b[:kept], n, err
			}
			n += k
		default:
			if err := c.byte(b[n]); err != nil {
				return b[:kept], n, err
			}
			n++
		}
	}
	return b[:kept], n, nil
}

// byte takes one byte of a size or of what ends a chunk.
func (c *Chunked) byte(b byte) error {
	switch c.state {
	case inSize:
		return c.size(b)
	case inSizeLF:
		if b != '\n' {
			return errSize
		}
		c.digits = 0
		c.state = inData
		if c.left == 0 {
			c.state, c.held = inTrailers, c.held[:0]
		}
		return nil
	case inDataCR:
		if b != '\r' {
			return errChunk
		}
		c.state = inDataLF
		return nil
	}
	if b != '\n' {
		return errChunk
	}
	c.state, c.left = inSize, 0
	return nil
}

const (
	errSize  = Error("a chunk size that is not 1 to 15 hexadecimal digits")
	errChunk = Error("a chunk is longer than its size")
)

// size takes a byte of a chunk's first line: hexadecimal digits, and behind them
// extensions where they may be.
func (c *Chunked) size(b byte) error {
	switch {
	case b == '\r' && c.digits > 0:
		c.state = inSizeLF
		return nil
	case c.Extensions && c.digits > 0 && (b == ';' || b == ' ' || b == '\t'):
		c.state, c.held = inExtensions, append(c.held[:0], b)
		return nil
	case c.digits == 15:
		return errSize
	case b >= '0' && b <= '9':
		b -= '0'
	case b >= 'a' && b <= 'f':
		b -= 'a' - 10
	case b >= 'A' && b <= 'F':
		b -= 'A' - 10
	default:
		return errSize
	}
	c.left = c.left<<4 | int64(b)
	c.digits++
	return nil
}

// maxExtensions is the most that a chunk's extensions may be, in bytes.
const maxExtensions = 1 << 10

// extensions takes what belongs to a chunk's extensions: up to the end of the line,
// for a quoted string has no line end in it.
func (c *Chunked) extensions(b []byte) (int, error) {
	n := bytes.IndexByte(b, '\r')
	whole := n >= 0
	if !whole {
		n = len(b)
	}
	if len(c.held)+n > maxExtensions {
		return 0, errLong
	}
	c.held = append(c.held, b[:n]...)
	if !whole {
		return n, early(c.held, 0)
	}
	ok := extensions(c.held)
	clear(c.held) // they may repeat a key
	if !ok {
		return 0, errExtension
	}
	c.state = inSizeLF
	return n + 1, nil
}

const errExtension = Error("a chunk extension that is neither ;name nor ;name=value")

// extensions reports whether b is *( BWS ";" BWS name [ BWS "=" BWS value ] ).
func extensions(b []byte) bool {
	for len(b) > 0 {
		b = skipBlanks(b)
		if len(b) == 0 || b[0] != ';' {
			return false
		}
		b = skipBlanks(b[1:])
		n := tokenLength(b)
		if n == 0 {
			return false
		}
		b = b[n:]
		rest := skipBlanks(b)
		if len(rest) == 0 || rest[0] != '=' {
			continue
		}
		b = skipBlanks(rest[1:])
		if n = valueLength(b); n == 0 {
			return false
		}
		b = b[n:]
	}
	return true
}

// trailers takes what belongs to the trailer section. Fields that frame or
// route have no place there (RFC 9110 section 6.5.1).
func (c *Chunked) trailers(b []byte) (int, error) {
	was := len(c.held)
	c.held = append(c.held, b...)
	defer func() {
		if c.state == ended {
			clear(c.held) // it may repeat a key
		}
	}()
	if len(c.held) >= 2 && c.held[0] == '\r' && c.held[1] == '\n' {
		c.state = ended
		return 2 - was, nil
	}
	var h Head
	h.seen = was
	end, err := h.end(c.held, MaxHead)
	if end == 0 {
		return len(b), err
	}
	if err := h.fields(c.held[:end]); err != nil {
		return 0, err
	}
	if h.hosts+h.lengths+h.encodings > 0 {
		return 0, Error("a trailer that frames or routes the message")
	}
	c.state = ended
	return end - was, nil
}

// LastChunk ends a chunked body without trailers.
const LastChunk = "0\r\n\r\n"

// MaxChunkHead is the most that AppendChunkHead appends.
const MaxChunkHead = 16 + 2

// AppendChunkHead appends what stands before a chunk of n bytes. Behind it stands CRLF.
func AppendChunkHead(dst []byte, n int) []byte {
	const digits = "0123456789abcdef"
	shift := 0
	for n>>shift > 15 {
		shift += 4
	}
	for ; shift >= 0; shift -= 4 {
		dst = append(dst, digits[n>>shift&15])
	}
	return append(dst, '\r', '\n')
}
