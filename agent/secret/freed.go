//go:build linux || darwin

package secret

import (
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Libraries copy what they are given: a header's value is a string, a record of
// TLS lies in a buffer that may be outgrown while it is filled. Such a copy is
// garbage soon, but a collector that frees memory leaves in it what it was, until
// something else happens to lie there. So the runtime is told to overwrite what it
// frees, and after a key is out of use the collector is called, since without
// garbage it might not run for two minutes.

// And a thread that is interrupted, for the collector or because its goroutine has
// run for long, leaves its vector registers in memory, with 16 to 32 bytes each of
// what was being copied or encrypted, until it is interrupted once more. So
// goroutines are left to stop by themselves where they call a function, which is
// always soon.

// clobber is what the runtime is told (package runtime, "clobberfree" and "asyncpreemptoff").
const clobber = "clobberfree=1,asyncpreemptoff=1"

// overwrites is why freed memory is not overwritten although OverwriteFreed was called.
var overwrites atomic.Pointer[error]

// OverwriteFreed has the runtime overwrite every object on the heap that it
// frees, and interrupt no goroutine. It reads that setting when a process begins and never again, so the first
// call begins the program anew: in the same process, with the same arguments,
// environment and open files. To be called before anything else is begun. Where
// it cannot, the program goes on without, and Harden's notes say so.
func OverwriteFreed() {
	switch was := os.Getenv("GODEBUG"); {
	case was == clobber:
		_ = os.Unsetenv("GODEBUG") // nobody whom this process starts asked for it
	case strings.HasSuffix(was, ","+clobber):
		_ = os.Setenv("GODEBUG", strings.TrimSuffix(was, ","+clobber))
	default:
		err := beginAnew(was)
		overwrites.Store(&err)
	}
}

// beginAnew returns only where that fails.
func beginAnew(godebug string) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	if godebug != "" {
		godebug += ","
	}
	env := []string{"GODEBUG=" + godebug + clobber}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "GODEBUG=") {
			env = append(env, e)
		}
	}
	return &os.PathError{Op: "exec", Path: program, Err: syscall.Exec(program, os.Args, env)}
}

// settle is how long a Sweep waits at least, for goroutines to end whose
// connections were closed, and for others who ask for the same.
const settle = 500 * time.Millisecond

var sweep struct {
	sync.Mutex
	coming      bool
	late        bool // somebody asked when one was coming already, which may come too early for them
	first, next []func()
}

// Sweep has the collector find, soon and in the background, what a value that is
// out of use has left on the heap. Before that first is called, which may let go
// of more; it may be nil.
func Sweep(first func()) {
	sweep.Lock()
	defer sweep.Unlock()
	if sweep.coming {
		sweep.late = true
		if first != nil {
			sweep.next = append(sweep.next, first)
		}
		return
	}
	sweep.coming = true
	if first != nil {
		sweep.first = append(sweep.first, first)
	}
	time.AfterFunc(settle, collectAll)
}

// collectAll is for those who asked a whole settle ago; who came late is next.
func collectAll() {
	sweep.Lock()
	all := sweep.first
	sweep.first, sweep.next = sweep.next, nil
	sweep.coming, sweep.late = sweep.late, false
	if sweep.coming {
		time.AfterFunc(settle, collectAll)
	}
	sweep.Unlock()
	for _, f := range all {
		f()
	}
	Collect()
}

// Collect is what Sweep does in the end: when it returns, nothing is left of what
// was garbage on the heap when it was called, if freed memory is overwritten.
func Collect() {
	runtime.GC()         // which takes buffers out of pools, but holds on to them once more
	debug.FreeOSMemory() // collects once more, and gives back free pages: stacks have lain there as well
}
