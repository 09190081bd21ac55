//go:build unix

package vaulttest

import (
	"os/exec"
	"runtime"
	"syscall"
)

// startAttached starts a command in a process group of its own and closes
// exited once it has ended. Start and Wait happen on one locked thread: where
// the system can kill a child with its parent, it means the parent's thread.
func startAttached(cmd *exec.Cmd, exited chan<- struct{}) error {
	cmd.SysProcAttr = attached()
	cmd.SysProcAttr.Setpgid = true
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended stands in cmd.ProcessState
			close(exited)
		}
	}()
	return <-started
}

func signalTerm(cmd *exec.Cmd) { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
func signalKill(cmd *exec.Cmd) { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
