//go:build !linux

package agent

// forgetProgram does nothing: only Linux counts such pages as the process's own.
func forgetProgram() {}
