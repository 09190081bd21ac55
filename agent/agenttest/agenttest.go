// Package agenttest runs the real agent, as a process of its own, for tests.
package agenttest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-proxy/postern/test/tools"
)

// given is a binary that was built before, for tests that cannot build one (in
// a network namespace) or want another tree's; "" for none.
var given = os.Getenv("POSTERN_BINARY")

var build = sync.OnceValues(func() (string, error) {
	if given != "" {
		return given, nil
	}
	root, err := tools.Root()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "postern-bin-")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "postern")
	cmd := exec.Command("go", "build", "-o", bin, "./cmd/postern")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building ./cmd/postern: %w\n%s", err, out)
	}
	return bin, nil
})

// Binary is the path of the postern binary, built once for each test process, or
// the one that $POSTERN_BINARY names.
func Binary(t testing.TB) string {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// Cleanup removes what Binary built; a TestMain calls it at its end.
func Cleanup() {
	if bin, err := build(); err == nil && given == "" {
		os.RemoveAll(filepath.Dir(bin))
	}
}

// Agent is a running `postern agent`.
type Agent struct {
	Proxy, Admin string // host:port
	Config       string // the configuration file
	Dir          string
	Log, Out     *Buffer // standard error and standard output

	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Env is the little environment that a process of the tests needs; home is its HOME.
func Env(home string, more ...string) []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home, "LANG=C.UTF-8"}, more...)
}

// Start writes the configuration to dir/postern.yaml, starts an agent on it and
// waits until it listens. listen.proxy and listen.admin should have port 0.
// The agent ends with the test.
func Start(t testing.TB, dir, yaml string, env ...string) *Agent {
	t.Helper()
	a := Launch(t, dir, yaml, env...)
	if err := a.awaitServing(20 * time.Second); err != nil {
		t.Fatalf("the agent did not start: %v\n%s", err, a.Log.String())
	}
	return a
}

// Launch starts an agent without waiting for anything: it may refuse to start.
func Launch(t testing.TB, dir, yaml string, env ...string) *Agent {
	t.Helper()
	return LaunchUnder(t, nil, dir, yaml, env...)
}

// StartUnder is Start of an agent whose command line stands behind another
// one's (a tracer's, or a shell's that sets limits and execs).
func StartUnder(t testing.TB, prefix []string, dir, yaml string, env ...string) *Agent {
	t.Helper()
	a := LaunchUnder(t, prefix, dir, yaml, env...)
	if err := a.awaitServing(60 * time.Second); err != nil {
		t.Fatalf("the agent did not start: %v\n%s", err, a.Log.String())
	}
	return a
}

// LaunchUnder is Launch behind another command, as StartUnder.
func LaunchUnder(t testing.TB, prefix []string, dir, yaml string, env ...string) *Agent {
	t.Helper()
	file := filepath.Join(dir, "postern.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	a := &Agent{Config: file, Dir: dir, Log: &Buffer{}, Out: &Buffer{}, done: make(chan struct{})}
	args := slices.Concat(prefix, []string{Binary(t), "agent", "-c", file})
	a.cmd = exec.Command(args[0], args[1:]...)
	a.cmd.Env = Env(dir, env...)
	a.cmd.Stdout, a.cmd.Stderr = a.Out, a.Log
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		a.err = a.cmd.Wait()
		close(a.done)
	}()
	t.Cleanup(func() {
		a.Stop(t)
		if t.Failed() {
			t.Logf("the agent's log:\n%s", a.Log.Tail(16<<10))
		}
	})
	return a
}

func (a *Agent) awaitServing(wait time.Duration) error {
	deadline := time.After(wait)
	for {
		changed := a.Log.Changed()
		for line := range strings.Lines(a.Log.String()) {
			var e struct{ Msg, Proxy, Admin string }
			if json.Unmarshal([]byte(line), &e) == nil && e.Msg == "serving" {
				a.Proxy, a.Admin = e.Proxy, e.Admin
				return nil
			}
		}
		select {
		case <-changed:
		case <-a.done:
			return fmt.Errorf("it ended: %v", a.err)
		case <-deadline:
			return fmt.Errorf("not within %s", wait)
		}
	}
}

// PID is the agent's process.
func (a *Agent) PID() int { return a.cmd.Process.Pid }

// Signal sends a signal to the agent.
func (a *Agent) Signal(s os.Signal) { a.cmd.Process.Signal(s) }

// Done is closed when the agent's process has ended.
func (a *Agent) Done() <-chan struct{} { return a.done }

// ExitErr is how the process ended; valid after Done.
func (a *Agent) ExitErr() error { return a.err }

// Stop ends the agent with SIGTERM, and with SIGKILL if that does not help.
func (a *Agent) Stop(t testing.TB) {
	t.Helper()
	select {
	case <-a.done:
		return
	default:
	}
	a.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-a.done:
	case <-time.After(40 * time.Second):
		a.cmd.Process.Kill()
		<-a.done
		t.Error("the agent did not end on SIGTERM")
	}
}

// Kill ends the agent as a crash would.
func (a *Agent) Kill() {
	a.cmd.Process.Kill()
	<-a.done
}

// URL is a URL on the proxy listener.
func (a *Agent) URL(path string) string { return "http://" + a.Proxy + path }

var direct = &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}

// Get asks the admin listener.
func (a *Agent) Get(t testing.TB, path string) (int, string) {
	t.Helper()
	resp, err := direct.Get("http://" + a.Admin + path)
	if err != nil {
		t.Fatalf("admin %s: %v", path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("admin %s: %v", path, err)
	}
	return resp.StatusCode, string(b)
}

// Ready waits until the agent is ready.
func (a *Agent) Ready(t testing.TB) {
	t.Helper()
	Eventually(t, 20*time.Second, "the agent is ready", func() bool {
		status, _ := a.Get(t, "/readyz")
		return status == http.StatusOK
	})
}

// Metric is the sum of the series of a metric whose text begins with prefix
// ("postern_requests_total{provider=\"openai\"").
func (a *Agent) Metric(t testing.TB, prefix string) float64 {
	t.Helper()
	_, body := a.Get(t, "/metrics")
	sum := 0.0
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, prefix) {
			var v float64
			if i := strings.LastIndexByte(strings.TrimSpace(line), ' '); i > 0 {
				fmt.Sscan(line[i+1:], &v)
			}
			sum += v
		}
	}
	return sum
}

// Eventually waits until a condition holds, looking often.
func Eventually(t testing.TB, wait time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(wait)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", wait, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Run runs the postern binary and returns what it printed and its exit code.
func Run(t testing.TB, dir, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return RunEnv(t, Env(dir), stdin, args...)
}

// RunEnv is Run in an environment.
func RunEnv(t testing.TB, env []string, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(Binary(t), args...)
	cmd.Env = env
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// Buffer collects what a process prints. It is safe for concurrent use.
type Buffer struct {
	mu      sync.Mutex
	b       bytes.Buffer
	changed chan struct{}
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
	return b.b.Write(p)
}

// String is everything so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Tail is the last n bytes.
func (b *Buffer) Tail(n int) string {
	s := b.String()
	return s[max(0, len(s)-n):]
}

// Changed is closed at the next write.
func (b *Buffer) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.changed == nil {
		b.changed = make(chan struct{})
	}
	return b.changed
}

// Lines yields the JSON lines of a buffer as objects; others are skipped.
func (b *Buffer) Lines() []map[string]any {
	var out []map[string]any
	sc := bufio.NewScanner(strings.NewReader(b.String()))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var m map[string]any
		if json.Unmarshal(sc.Bytes(), &m) == nil {
			out = append(out, m)
		}
	}
	return out
}
