//go:build linux || darwin

package secret

import (
	"fmt"

	"golang.org/x/sys/unix"
)

var mmap = unix.Mmap // a variable so that a test can run out of memory

// newMapping maps at least n bytes. There is no fallback: without memory that
// can be kept off the heap there is no Value.
func newMapping(n int) (*mapping, error) {
	page := unix.Getpagesize()
	n = (n + page - 1) / page * page
	whole, err := mmap(-1, 0, n+2*page, unix.PROT_NONE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("secret: mapping %d bytes outside the heap: %w", n, err)
	}
	m := &mapping{whole: whole, mem: whole[page : page+n : page+n]}
	if err := unix.Mprotect(m.mem, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		_ = unix.Munmap(whole)
		return nil, fmt.Errorf("secret: opening %d bytes between guard pages: %w", n, err)
	}
	m.dontDump = dontDump(m.mem)
	m.locked = unix.Mlock(m.mem) == nil
	return m, nil
}

func (m *mapping) unmap() { _ = unix.Munmap(m.whole) }
