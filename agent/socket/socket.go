// Package socket makes fewer and cheaper calls of the kernel on a connection
// than package net does. A proxy does little else: of the time that a request
// costs, two thirds are spent in them.
package socket

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// Conn is a connection over a socket. It differs from the one that it was made of
// in two things.
//
// Reads and writes do not tell the scheduler that they enter the kernel (see
// call_raw.go): the socket does not block, and the thread that looks after
// those that stay there long has nothing to look after.
//
// And a write can be late. The usual way to ask and to wait for the answer costs
// three calls: a write, a read that finds nothing, for no answer is that fast, and
// the read after the poller has said that there is something. A late write is made
// by the Read behind it, when the poller watches already, and then the answer is
// waited for without trying. What came before that is not noticed until more
// comes: a peer that has ended the connection answers the write with a reset, and
// one that has said something unasked still answers.
//
// One goroutine reads and one writes at a time; a late write is the reader's.
// Deadlines can be set and Close called by anybody, as ever.
type Conn struct {
	net.Conn
	raw syscall.RawConn

	in      []byte // what Read was given
	n       int    // what came
	readErr error
	read    func(fd uintptr) bool

	out      []byte // what Write was given
	gone     int    // how much of it went out
	writeErr error
	write    func(fd uintptr) bool

	late bool    // what is written is held back
	lent *[]byte // held's; nil while nothing is held back
	held []byte  // what is
	sent int     // how much went out since late was set
}

// New is c with fewer calls, or nil where no socket is right below it.
func New(c net.Conn) *Conn {
	s, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	n := &Conn{Conn: c, raw: raw}
	n.read, n.write = n.tryRead, n.tryWrite // made once, so that a call allocates nothing
	return n
}

// Read implements net.Conn. After Late it begins with the write, and returns its error.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if c.late { // else a writer may be looking at it
		c.late = false
	}
	c.in, c.n, c.readErr = p, 0, nil
	err := c.raw.Read(c.read)
	c.in = nil
	switch {
	case err != nil:
		return 0, err
	case c.readErr != nil:
		return 0, c.failed("read", c.readErr)
	case c.lent != nil: // the socket takes no more of it at once
		if err := c.flush(); err != nil {
			return 0, err
		}
		return c.Read(p)
	case c.n == 0:
		return 0, io.EOF
	}
	return c.n, nil
}

// tryRead is called once the poller watches, and then whenever it has seen
// something. It reports false to be called again.
func (c *Conn) tryRead(fd uintptr) bool {
	if c.lent != nil {
		n, err := again(write, int(fd), c.held[c.sent:])
		c.sent += max(n, 0)
		switch {
		case err != nil && err != syscall.EAGAIN:
			c.readErr = os.NewSyscallError("write", err)
			c.drop()
			return true
		case c.sent < len(c.held):
			return true
		}
		c.drop()
		return false
	}
	n, err := again(read, int(fd), c.in)
	switch {
	case err == syscall.EAGAIN:
		return false
	case err != nil:
		c.readErr = os.NewSyscallError("read", err)
	default:
		c.n = n
	}
	return true
}

// maxLate is how much is held back at most. Of a longer request the calls are the
// smaller part.
const maxLate = 4 << 10

var latePool = sync.Pool{New: func() any { b := make([]byte, maxLate); return &b }}

// Late has what is written next go out with the Read behind it, if it is short.
func (c *Conn) Late() { c.late, c.sent = true, 0 }

// Sent is how much was written since Late was called.
func (c *Conn) Sent() int { return c.sent }

// Write implements net.Conn. A Write that fails may have written a part.
func (c *Conn) Write(p []byte) (int, error) {
	if c.late && len(c.held)+len(p) <= maxLate {
		if c.lent == nil {
			c.lent = latePool.Get().(*[]byte)
			c.held = (*c.lent)[:0]
		}
		c.held = append(c.held, p...)
		return len(p), nil
	}
	if c.lent != nil {
		if err := c.flush(); err != nil {
			return 0, err
		}
	}
	n, err := c.writeAll(p)
	if c.late {
		c.sent += n
	}
	return n, err
}

// flush writes what is held back still.
func (c *Conn) flush() error {
	n, err := c.writeAll(c.held[c.sent:])
	c.sent += n
	c.drop()
	return err
}

// drop holds nothing back any more.
func (c *Conn) drop() {
	latePool.Put(c.lent)
	c.lent, c.held = nil, nil
}

func (c *Conn) writeAll(p []byte) (int, error) {
	c.out, c.gone, c.writeErr = p, 0, nil
	err := c.raw.Write(c.write)
	c.out = nil
	if err == nil && c.writeErr != nil {
		err = c.failed("write", c.writeErr)
	}
	return c.gone, err
}

func (c *Conn) tryWrite(fd uintptr) bool {
	for c.gone < len(c.out) {
		n, err := again(write, int(fd), c.out[c.gone:])
		switch {
		case err == syscall.EAGAIN:
			return false
		case err != nil:
			c.writeErr = os.NewSyscallError("write", err)
			return true
		}
		c.gone += n
	}
	return true
}

// failed is an error in the form of package net's.
func (c *Conn) failed(op string, err error) error {
	return &net.OpError{Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// CloseWrite ends the sending side only.
func (c *Conn) CloseWrite() error { return c.Conn.(interface{ CloseWrite() error }).CloseWrite() }

// CloseRead ends the receiving side only.
func (c *Conn) CloseRead() error { return c.Conn.(interface{ CloseRead() error }).CloseRead() }

// Quiet reports whether a socket that does not block has nothing to read, not even its end.
func Quiet(fd int) bool {
	var b [1]byte
	_, err := again(peek, fd, b[:])
	return err == syscall.EAGAIN
}

// again makes a call of the kernel until no signal interrupts it.
func again(call func(int, []byte) (int, error), fd int, b []byte) (int, error) {
	for {
		n, err := call(fd, b)
		if err != syscall.EINTR {
			return n, err
		}
	}
}
