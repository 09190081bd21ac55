package upstream

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// lateConn is a TCP connection that can hold back what is written until the
// answer is waited for. The usual way costs three calls of the kernel: a write,
// a read that finds nothing, for no answer is that fast, and the read after the
// poller has said that there is something. Here the write is made when the poller
// has begun to watch, and then the answer is waited for without trying.
//
// What came before that is not noticed until more comes. A peer that has ended
// the connection answers the write with a reset, and one that has said something
// unasked still answers.
type lateConn struct {
	*net.TCPConn
	raw syscall.RawConn

	late bool    // what is written is held back
	lent *[]byte // out's; nil while nothing is held back
	out  []byte  // what is
	sent int     // how much went out since late was set

	in   []byte // what Read was given
	n    int    // what came
	err  error  // of either call
	turn func(fd uintptr) bool
}

// lateOf is c where its socket can be used that way, else nil.
func lateOf(c net.Conn) *lateConn {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	l := &lateConn{TCPConn: tcp, raw: raw}
	l.turn = l.writeThenRead // made once, so that a Read allocates nothing
	return l
}

// maxLate is how much is held back at most. Of a longer request the calls are the
// smaller part.
const maxLate = 4 << 10

var latePool = sync.Pool{New: func() any { b := make([]byte, maxLate); return &b }}

func (l *lateConn) Write(p []byte) (int, error) {
	if l.late && len(l.out)+len(p) <= maxLate {
		if l.lent == nil {
			l.lent = latePool.Get().(*[]byte)
			l.out = (*l.lent)[:0]
		}
		l.out = append(l.out, p...)
		return len(p), nil
	}
	if err := l.flush(); err != nil {
		return 0, err
	}
	n, err := l.TCPConn.Write(p)
	l.sent += n
	return n, err
}

// flush writes what is held back still.
func (l *lateConn) flush() error {
	l.late = false
	if l.lent == nil {
		return nil
	}
	n, err := l.TCPConn.Write(l.out[l.sent:])
	l.sent += n
	l.drop()
	return err
}

// drop holds nothing back any more.
func (l *lateConn) drop() {
	latePool.Put(l.lent)
	l.lent, l.out = nil, nil
}

func (l *lateConn) Read(p []byte) (int, error) {
	l.late = false
	if l.lent == nil {
		return l.TCPConn.Read(p)
	}
	l.in, l.n, l.err = p, 0, nil
	err := l.raw.Read(l.turn)
	l.in = nil
	switch {
	case err != nil:
		return 0, err
	case l.err != nil:
		return 0, &net.OpError{Op: "read", Net: "tcp", Source: l.LocalAddr(), Addr: l.RemoteAddr(), Err: l.err}
	case l.lent != nil: // the socket takes no more at once
		if err := l.flush(); err != nil {
			return 0, err
		}
		return l.TCPConn.Read(p)
	case l.n == 0:
		return 0, io.EOF
	}
	return l.n, nil
}

// writeThenRead is called once the poller watches, and then whenever it has seen
// something. It reports false to be called again.
func (l *lateConn) writeThenRead(fd uintptr) bool {
	if l.lent != nil {
		n, err := again(syscall.Write, int(fd), l.out[l.sent:])
		l.sent += max(n, 0)
		if err != nil && err != syscall.EAGAIN {
			l.err = os.NewSyscallError("write", err)
			l.drop()
			return true
		}
		if l.sent < len(l.out) {
			return true
		}
		l.drop()
		return false
	}
	n, err := again(syscall.Read, int(fd), l.in)
	switch {
	case err == syscall.EAGAIN:
		return false
	case err != nil:
		l.err = os.NewSyscallError("read", err)
	default:
		l.n = n
	}
	return true
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
