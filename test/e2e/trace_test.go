package e2e_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// Every file that the agent and `keys add` open for writing, and every byte
// that they write, as the kernel saw it: no key, and nothing outside the places
// that the configuration names.
func TestNoFileHoldsTheKey(t *testing.T) {
	t.Parallel()
	const name = "system calls of the agent"
	strace, err := tracer()
	if err != nil {
		agenttest.NotRun(t, name, err)
		return
	}
	w := newWorld(t)
	key, next := w.Key(), w.Key()
	p := w.Provider("openai", fake.Options{Keys: []string{key, next}})
	st := w.Sealed()
	h := newHunt(key, next)
	traces := t.TempDir()
	traced := func(what string) (prefix []string, file string) {
		file = filepath.Join(traces, what)
		return []string{strace, "-f", "-qq", "-y", "-xx", "-s", "65535", "-e", "trace=%file,write,pwrite64,writev,pwritev,pwritev2,sendfile,splice", "-o", file}, file
	}
	var calls []call
	add := func(what, key string) {
		prefix, file := traced(what)
		args := append(prefix[1:], agenttest.Binary(t), "keys", "add", "openai", "-c", st.File)
		cmd := exec.Command(prefix[0], args...)
		cmd.Env, cmd.Stdin = agenttest.Env(w.Dir), strings.NewReader(key+"\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("keys add under strace: %v\n%s", err, out)
		}
		calls = append(calls, readTrace(t, file)...)
	}
	add("first", key)
	c := w.Config(st, p)
	c.More = "log: {level: debug}"
	c.Rotation = "{grace: 2s}"
	prefix, file := traced("agent")
	a := agenttest.StartUnder(t, prefix, w.Dir, c.YAML())
	pid := child(t, a.PID())
	a.Ready(t)
	ask := func() {
		for _, y := range w.Ways(a, p) {
			y.Must(t)
		}
	}
	ask()
	add("second", next)
	agenttest.Eventually(t, 30*time.Second, "the old version is out of use", func() bool { return e2etest.Version(t, a, "openai", 1).State == "retired" })
	ask()
	h.process(t, "the agent", pid)
	syscall.Kill(pid, syscall.SIGTERM)
	e2etest.Await(t, a.Done(), 40*time.Second, "the agent's end")
	calls = append(calls, readTrace(t, file)...)

	changed := map[string]bool{}
	for _, c := range calls {
		h.look("a call of "+c.name, c.text)
		for _, path := range c.changes {
			changed[path] = true
			if !w.configured(path) {
				t.Errorf("%s of %s, which no configuration names", c.name, path)
			}
		}
	}
	for _, want := range []string{"postern.sealed", "postern.key", "audit.jsonl", "ca/ca.pem"} {
		if !slices.ContainsFunc(calls, func(c call) bool {
			return slices.ContainsFunc(c.changes, func(p string) bool { return strings.HasPrefix(p, w.Path(want)) })
		}) {
			t.Errorf("the trace does not show that %s was written: %v", want, changed)
		}
	}
	t.Logf("%d calls, %d files opened for writing", len(calls), len(changed))
	h.files(t, w.Dir)
	h.report(t)
}

// configured reports whether the configuration names a path as one to write.
// What is replaced whole is written beside its place first.
func (w *world) configured(path string) bool {
	if path == os.DevNull {
		return true
	}
	at, err := filepath.Rel(w.Dir, path)
	if err != nil {
		return false
	}
	dir, name := filepath.Split(at)
	switch dir {
	case "":
		return name == "audit.jsonl" || name == "ca" || strings.HasPrefix(strings.TrimPrefix(name, "."), "postern.")
	case "ca/":
		return strings.HasPrefix(strings.TrimPrefix(name, "."), "ca.pem") || strings.HasPrefix(strings.TrimPrefix(name, "."), "bundle.pem")
	}
	return false
}

// The trace shows what it is read for, or its silence would mean nothing.
func TestTheTraceShowsAWrite(t *testing.T) {
	t.Parallel()
	strace, err := tracer()
	if err != nil {
		agenttest.NotRun(t, "system calls of the agent", err)
		return
	}
	w := newWorld(t)
	key := w.gnarly()
	w.Secrets = nil // it is written on purpose
	cmd := exec.Command(strace, "-f", "-qq", "-y", "-xx", "-s", "65535", "-e", "trace=%file,write", "-o", w.Path("trace"), "sh", "-c", `printf %s "$KEY" >leak; mv leak moved`)
	cmd.Dir, cmd.Env = w.Dir, agenttest.Env(w.Dir, "KEY="+key)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	h := newHunt(key)
	var changed []string
	for _, c := range readTrace(t, w.Path("trace")) {
		h.look(c.name, c.text)
		changed = append(changed, c.changes...)
	}
	if !h.has("write: raw") {
		t.Errorf("the write is not found: %q", h.found)
	}
	for _, path := range []string{w.Path("leak"), w.Path("moved")} {
		if !slices.Contains(changed, path) || w.configured(path) {
			t.Errorf("%s: not among %q, or allowed", path, changed)
		}
	}
}

// tracer is strace, installed where that is allowed.
func tracer() (string, error) {
	if runtime.GOOS != "linux" {
		return "", errors.New("strace is Linux's")
	}
	path, err := exec.LookPath("strace")
	if err != nil && os.Geteuid() == 0 {
		install := exec.Command("apt-get", "install", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", "strace")
		if install.Run() != nil { // perhaps only because the lists of packages are missing or old
			exec.Command("apt-get", "update", "-o", "DPkg::Lock::Timeout=300").Run()
			again := exec.Command("apt-get", "install", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", "strace")
			again.Run()
		}
		path, err = exec.LookPath("strace")
	}
	if err != nil {
		return "", fmt.Errorf("%w; `apt-get install strace` as root installs it", err)
	}
	if out, err := exec.Command(path, "-qq", "-o", os.DevNull, "true").CombinedOutput(); err != nil {
		return "", fmt.Errorf("strace may not trace here: %w: %s", err, bytes.TrimSpace(out))
	}
	return path, nil
}

// child is the one child of a process.
func child(t *testing.T, pid int) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(string(e2etest.Read(t, fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)))))
	if err != nil {
		t.Fatalf("the tracer's child: %v", err)
	}
	return n
}

// call is one system call.
type call struct {
	name    string
	text    []byte   // as it stands in the trace, its strings decoded
	changes []string // paths that it creates, opens for writing, renames, removes
}

var (
	callName = regexp.MustCompile(`^\d+ +(\w+)\(`)
	hexByte  = regexp.MustCompile(`\\x[0-9a-f]{2}`)
	callPath = regexp.MustCompile(`(?:(?:AT_FDCWD|\d+)<((?:\\x[0-9a-f]{2})*)>, )?"((?:\\x[0-9a-f]{2})*)"`)
	writes   = regexp.MustCompile(`O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND`)
	alters   = regexp.MustCompile(`^(creat|rename|link|symlink|mkdir|mknod|unlink|rmdir|truncate|chmod|fchmodat|chown|fchownat|utime)`)
)

// readTrace reads what strace wrote with -y and -xx.
func readTrace(t *testing.T, file string) []call {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []call
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		line := sc.Text()
		m := callName.FindStringSubmatch(line)
		if m == nil {
			continue // the end of a call, a signal, an exit
		}
		c := call{name: m[1], text: unhex(line)}
		opens := strings.HasPrefix(c.name, "open") && writes.MatchString(line)
		if (opens || alters.MatchString(c.name)) && !strings.Contains(line, " = -1 ") {
			for _, p := range callPath.FindAllStringSubmatch(line, -1) {
				dir, path := string(unhex(p[1])), string(unhex(p[2]))
				if !filepath.IsAbs(path) {
					path = filepath.Join(dir, path)
				}
				c.changes = append(c.changes, path)
			}
		}
		out = append(out, c)
	}
	if err := sc.Err(); err != nil || len(out) == 0 {
		t.Fatalf("%s: %d calls, %v", file, len(out), err)
	}
	return out
}

func unhex(s string) []byte {
	return hexByte.ReplaceAllFunc([]byte(s), func(b []byte) []byte {
		d, _ := hex.DecodeString(string(b[2:]))
		return d
	})
}
