//go:build linux && !race

package socket

import (
	"syscall"
	"unsafe"
)

// syscall.Read and Write tell the scheduler, for they may block. Each time a
// thread that watches the others is woken or kept awake, which ticks every 20 µs
// then: of a busy agent a tenth of all that it used, of one with little to do a half. A socket that does not block is done in a few
// microseconds, like any function.

func read(fd int, b []byte) (int, error) { return call(syscall.SYS_READ, fd, b) }

func write(fd int, b []byte) (int, error) { return call(syscall.SYS_WRITE, fd, b) }

func peek(fd int, b []byte) (int, error) { return call(syscall.SYS_RECVFROM, fd, b) }

// call makes one of these calls; b is not empty. The fourth argument is for
// recvfrom alone, whose address is left out by the last two.
func call(trap uintptr, fd int, b []byte) (int, error) {
	n, _, errno := syscall.RawSyscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}
