package main

import (
	"bytes"
	"context"
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
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// terminal is a pseudo-terminal with a postern command on it.
type terminal struct {
	t      *testing.T
	master *os.File
	cmd    *exec.Cmd
	home   string
	done   chan error

	mu  sync.Mutex
	out bytes.Buffer
}

// prompted is a terminal on which `postern keys add openai` has asked for the key.
func prompted(t *testing.T) *terminal {
	t.Helper()
	x := onTerminal(t, t.TempDir(), "keys", "add", "openai")
	x.asked("Key for openai (not shown): ")
	return x
}

// onTerminal runs a command on a terminal; home is its HOME.
func onTerminal(t *testing.T, home string, args ...string) *terminal {
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
	x := &terminal{t: t, master: master, home: home, done: make(chan error, 1)}
	x.cmd = exec.Command(agenttest.Binary(t), args...)
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
	return x
}

// asked waits for a prompt, and for what is typed not to be shown.
func (x *terminal) asked(prompt string) {
	x.t.Helper()
	x.await("the prompt", func() bool { return strings.Contains(x.shown(), prompt) && !x.echoes() })
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

// A rotation with --watch is a table that is drawn anew in its place.
func TestARotationIsWatchedOnATerminal(t *testing.T) {
	const first, second = "sk-proj-first-0123456789abcdefghij", "sk-proj-second-0123456789abcdefghij"
	provider, err := fake.New(fake.Options{Kind: "openai", Keys: []string{first, second}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { provider.Close() })
	home := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(home, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("provider.pem", string(provider.CAPEM()))
	write("key", first)
	yaml := fmt.Sprintf(`{version: 1, environment: dev, proxy_id: px_test, listen: {proxy: "127.0.0.1:0", admin: "127.0.0.1:0"},
store: {sealed: {file: postern.sealed, key_file: postern.key, poll: 200ms}}, audit: {file: audit.jsonl},
providers: [{name: openai, hosts: [%q], base_url: %q, ca_file: provider.pem}]}
`, strings.TrimPrefix(provider.URL(), "https://"), provider.URL())
	write("postern.yaml", yaml)
	if x := onTerminal(t, home, "keys", "add", "openai", "--file", "key"); x.code() != 0 {
		t.Fatal(x.shown())
	}
	agenttest.Start(t, home, yaml).Ready(t)

	x := onTerminal(t, home, "keys", "rotate", "openai", "--watch", "--ramp", "50:1s", "--grace", "1s")
	x.asked("Key for openai (not shown): ")
	x.types(second + "\n")
	if code := x.code(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	x.await("the outcome", func() bool {
		return strings.Contains(x.shown(), "openai: rotated to version 2 in dev, px_test; version 1 is destroyed")
	})
	shown := x.shown()
	for _, want := range []string{
		"openai: migrate, version 2 takes 50% of requests\r\nAGENT", "openai: migrate, version 2 takes all requests\r\nAGENT",
		"VERSION 2  VERSION 1  HEARD", "  active     draining ", "waiting for the grace of ", "\x1b[4A\x1b[J",
	} {
		if !strings.Contains(shown, want) {
			t.Errorf("%q was not shown", want)
		}
	}
	if strings.Contains(shown, second[:12]) {
		t.Error("the terminal shows the key")
	}
	if t.Failed() {
		t.Logf("%q", shown)
	}
}

// full is a store that takes everything but the next version of a key.
type full struct{ store.Store }

func (full) Patch(context.Context, string, map[string]*secret.Value, int) (store.Version, error) {
	return store.Version{}, fmt.Errorf("no more room: %w", store.ErrUnavailable)
}

// interrupted is the home of a rotation whose new version was never stored.
func interrupted(t *testing.T) string {
	t.Helper()
	l := newLaptop(t)
	l.add("perplexity", 0)
	l.Store = full{l.Store}
	if _, err := l.Rotate(t.Context(), "perplexity", l.value(1), keys.RotateOptions{}); err == nil {
		t.Fatal("it rotated")
	}
	return l.home
}

// An interrupted rotation asks for the key where it is of use, and is given up
// where Enter is all that comes.
func TestResumeAsksForTheKeyWhereItIsOfUse(t *testing.T) {
	for typed, want := range map[string]struct {
		code int
		says string
	}{
		aKey(1) + "\n": {0, "perplexity: rotated to version 2 in dev, px_test"},
		"\n":           {1, "perplexity: the rotation was abandoned: "},
		"\x03":         {1, "interrupted; nothing was stored"},
	} {
		home := interrupted(t)
		x := onTerminal(t, home, "keys", "resume", "perplexity")
		x.asked("Key for perplexity, or Enter to go on without it (not shown): ")
		x.types(typed)
		if code := x.code(); code != want.code {
			t.Errorf("%q: exit code %d", typed, code)
		}
		x.await("the outcome", func() bool { return strings.Contains(x.shown(), want.says) })
	}
}

// At the prompt of a rotation Ctrl-C leaves everything as it was.
func TestCtrlCAtTheNewKeysPromptRotatesNothing(t *testing.T) {
	l := newLaptop(t)
	l.add("perplexity", 1)
	x := onTerminal(t, l.home, "keys", "rotate", "perplexity")
	x.asked("Key for perplexity (not shown): ")
	x.types("\x03")
	if code := x.code(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	x.await("the outcome", func() bool { return strings.Contains(x.shown(), "interrupted; nothing was stored") })
}
