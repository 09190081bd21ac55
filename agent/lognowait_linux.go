package agent

import (
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// nowait writes to a file without telling the scheduler that it enters the
// kernel, as long as it need not wait there. After each call of which the
// scheduler knows, the thread that watches the others ticks every 20 µs for
// some milliseconds, and a log that is written two hundred times a second keeps
// it at that: a twentieth of all that a busy agent used. Not safe for concurrent use.
type nowait struct {
	*os.File
	raw    syscall.RawConn
	cannot bool // the kernel, or this kind of file
}

// withoutWaiting is w with cheaper writes, where it is a file and they can be had.
func withoutWaiting(w io.Writer) io.Writer {
	f, ok := w.(*os.File)
	if !ok {
		return w
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return w
	}
	return &nowait{File: f, raw: raw}
}

// Write implements io.Writer. What a pipe has no room for is written in the usual way, which waits.
func (w *nowait) Write(p []byte) (int, error) {
	n := 0
	if len(p) > 0 && !w.cannot {
		_ = w.raw.Control(func(fd uintptr) { n = w.some(fd, p) })
	}
	if n == len(p) {
		return n, nil
	}
	rest, err := w.File.Write(p[n:])
	return n + rest, err
}

// some writes what can be written at once (pwritev2(2), RWF_NOWAIT; pipes know
// it since Linux 6.5, and what files say to it depends on where they lie).
func (w *nowait) some(fd uintptr, p []byte) (n int) {
	const here = ^uintptr(0) // where the file stands, or its end
	for n < len(p) {
		v := unix.Iovec{Base: &p[n]}
		v.SetLen(len(p) - n)
		k, _, errno := unix.RawSyscall6(unix.SYS_PWRITEV2, fd, uintptr(unsafe.Pointer(&v)), 1, here, here, unix.RWF_NOWAIT)
		switch errno {
		case 0:
			n += int(k)
		case unix.EINTR:
		default:
			w.cannot = errno != unix.EAGAIN
			return n
		}
	}
	return n
}
