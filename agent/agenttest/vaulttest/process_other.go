//go:build unix && !linux

package vaulttest

import "syscall"

func attached() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
