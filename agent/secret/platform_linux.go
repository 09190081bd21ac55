package secret

import "golang.org/x/sys/unix"

func dontDump(b []byte) bool { return unix.Madvise(b, unix.MADV_DONTDUMP) == nil }

func hardenProcess(h *Hardening) {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		h.Notes = append(h.Notes, "the process stays dumpable: prctl(PR_SET_DUMPABLE, 0): "+err.Error())
		return
	}
	h.NotDumpable = true
}
