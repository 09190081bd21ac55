//go:build linux || darwin

package secret

import (
	"sync"

	"golang.org/x/sys/unix"
)

// Hardening is what Harden achieved.
type Hardening struct {
	NoCore      bool     // the core size limit is 0
	NotDumpable bool     // the process cannot be dumped or traced by others of its user
	Notes       []string // what this platform lacks or refused, one sentence each
}

var coreLimit struct {
	sync.Mutex
	cur, max uint64
	saved    bool
}

// Harden sets this process's soft core size limit to 0 and, where there is such
// a thing, marks it as not dumpable. The hard limit stays, so that a child can be
// given what the process itself started with (CoreLimit). Calling it again is harmless.
func Harden() Hardening {
	var h Hardening
	coreLimit.Lock()
	defer coreLimit.Unlock()
	var l unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_CORE, &l)
	if err == nil {
		if !coreLimit.saved {
			coreLimit.cur, coreLimit.max, coreLimit.saved = l.Cur, l.Max, true
		}
		err = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 0, Max: l.Max})
	}
	if err != nil {
		h.Notes = append(h.Notes, "the core size limit stays: RLIMIT_CORE: "+err.Error())
	}
	h.NoCore = err == nil
	if err := overwrites.Load(); err != nil {
		h.Notes = append(h.Notes, "memory that is freed is not overwritten: this program cannot begin anew with GODEBUG="+clobber+": "+(*err).Error())
	}
	hardenProcess(&h)
	return h
}

// CoreLimit is the core size limit as it was before Harden, soft and hard in
// bytes; without Harden it is today's. ok is false if it cannot be read.
func CoreLimit() (cur, max uint64, ok bool) {
	coreLimit.Lock()
	defer coreLimit.Unlock()
	if coreLimit.saved {
		return coreLimit.cur, coreLimit.max, true
	}
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_CORE, &l) != nil {
		return 0, 0, false
	}
	return l.Cur, l.Max, true
}
