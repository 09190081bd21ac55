package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-proxy/postern/agent/agenttest"
)

// terminal is a pseudo-terminal with `postern keys add openai` on it.
type terminal struct {
	t      *testing.T
	master *os.File
	cmd    *exec.Cmd
	home   string
	done   chan error

	mu  sync.Mutex
	out bytes.Buffer
}

func prompted(t *testing.T) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	x := &terminal{t: t, master: master, home: t.TempDir(), done: make(chan error, 1)}
	x.cmd = exec.Command(agenttest.Binary(t), "keys", "add", "openai")
	x.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + x.home, "TERM=dumb"}
	x.cmd.Dir = x.home
	x.cmd.Stdin, x.cmd.Stdout, x.cmd.Stderr = slave, slave, slave
	x.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := x.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.cmd.Process.Kill() })
	go func() { x.done <- x.cmd.Wait() }()
	go func() {
		b := make([]byte, 1024)
		for {
			n, err := master.Read(b)
			x.mu.Lock()
			x.out.Write(b[:n])
			x.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	x.await("the prompt", func() bool {
		return strings.Contains(x.shown(), "Key for openai (not shown): ") && !x.echoes()
	})
	return x
}

func (x *terminal) shown() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.out.String()
}

func (x *terminal) echoes() bool {
	x.t.Helper()
	state, err := unix.IoctlGetTermios(int(x.master.Fd()), unix.TCGETS)
	if err != nil {
		x.t.Fatal(err)
	}
	return state.Lflag&unix.ECHO != 0
}

func (x *terminal) await(what string, cond func() bool) {
	x.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			x.t.Fatalf("not within 20s: %s; the terminal shows %q", what, x.shown())
		}
	}
}

func (x *terminal) types(text string) {
	x.t.Helper()
	if _, err := x.master.WriteString(text); err != nil {
		x.t.Fatal(err)
	}
}

// code waits for the end and returns the exit code.
func (x *terminal) code() int {
	x.t.Helper()
	select {
	case err := <-x.done:
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			x.t.Fatal(err)
		}
		return x.cmd.ProcessState.ExitCode()
	case <-time.After(20 * time.Second):
		x.t.Fatalf("it does not end; the terminal shows %q", x.shown())
		return 0
	}
}

func TestTheKeyIsAskedForWithoutEcho(t *testing.T) {
	const key = "sk-proj-0123456789abcdefghij"
	x := prompted(t)
	x.types(key + "\n")
	if code := x.code(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	x.await("the outcome", func() bool { return strings.Contains(x.shown(), "openai: created with version 1 in dev, px_local") })
	if strings.Contains(x.shown(), key[:12]) {
		t.Errorf("the terminal shows the key: %q", x.shown())
	}
	if !x.echoes() {
		t.Error("the terminal was left without echo")
	}
	if _, err := os.Stat(filepath.Join(x.home, ".local/share/postern/postern.sealed")); err != nil {
		t.Error(err)
	}
}

func TestCtrlCAtThePromptStoresNothing(t *testing.T) {
	x := prompted(t)
	x.types("sk-proj-01234")
	x.types("\x03")
	if code := x.code(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	x.await("the outcome", func() bool { return strings.Contains(x.shown(), "interrupted; nothing was stored") })
	if !x.echoes() {
		t.Error("the terminal was left without echo")
	}
	there, err := os.ReadDir(x.home)
	if err != nil || len(there) > 0 {
		t.Errorf("%v, %v", there, err)
	}
}
