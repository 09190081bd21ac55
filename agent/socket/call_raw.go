//go:build linux && !race

package socket

import (
	"syscall"
	"unsafe"
)

// syscall.Read and Write tell the scheduler, for they may block. Each time a
// thread that watches the others is kept awake, which ticks every 20 µs then: a
// tenth of all that the agent used. A socket that does not block is done in a few
// microseconds, like any function.

func read(fd int, b []byte) (int, error) { return call(syscall.SYS_READ, fd, b) }

func write(fd int, b []byte) (int, error) { return call(syscall.SYS_WRITE, fd, b) }

// call makes one of these two calls; b is not empty.
func call(trap uintptr, fd int, b []byte) (int, error) {
	n, _, errno := syscall.RawSyscall(trap, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}
