package vaulttest

import "syscall"

// attached makes the kernel kill the server when the test binary dies without
// cleaning up, as it does after a timeout.
func attached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
