package agent

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// forgetProgram lets go of the pages of the program's own file: starting touches
// nearly all of them, serving a good third. What is needed again is mapped again
// from the file, which the kernel has in memory anyway. A mapping that holds a
// page of its own (a linker's relocations, a debugger's breakpoint) is left alone,
// so nothing is lost.
func forgetProgram() {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return
	}
	for _, m := range unchanged(smaps, program) {
		// By its number, as no value of Go's lies there. What fails stays as it is.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED)
	}
}

type mapping struct{ from, to uintptr }

// unchanged finds a file's mappings that cannot be written and hold nothing but
// what is in the file, in /proc/PID/smaps (proc_pid_smaps(5)).
func unchanged(smaps []byte, file string) (out []mapping) {
	var m mapping
	var ours bool
	for line := range bytes.Lines(smaps) {
		f := bytes.Fields(line)
		if len(f) < 2 {
			continue
		}
		if !bytes.HasSuffix(f[0], []byte(":")) { // the head of a mapping
			_, err := fmt.Sscanf(string(f[0]), "%x-%x", &m.from, &m.to)
			ours = err == nil && len(f) == 6 && string(f[5]) == file && f[1][1] != 'w'
		} else if ours && string(f[0]) == "Anonymous:" && string(f[1]) == "0" {
			out = append(out, m)
		}
	}
	return out
}
