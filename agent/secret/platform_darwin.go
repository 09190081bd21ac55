package secret

// macOS has no MADV_DONTDUMP; RLIMIT_CORE alone keeps cores away.
func dontDump([]byte) bool { return false }

func hardenProcess(h *Hardening) {
	h.Notes = append(h.Notes,
		"macOS has no PR_SET_DUMPABLE: a debugger of the same user may attach",
		"macOS has no MADV_DONTDUMP: only the core size limit keeps keys out of core files")
}
