package e2e_test

import "golang.org/x/sys/unix"

// raiseCoreLimit lets a process that gave its core limit up write cores again.
func raiseCoreLimit(pid int) error {
	var l unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_CORE, nil, &l); err != nil {
		return err
	}
	return unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{Cur: l.Max, Max: l.Max}, nil)
}
