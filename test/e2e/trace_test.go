package e2e_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// Every file that the agent, exec and the commands that manage keys open for
// writing, and every byte that they write, as the kernel saw it: no key, and nothing
// outside the places that the configuration names.
func TestNoFileHoldsTheKey(t *testing.T) {
	t.Parallel()
	tr, err := newTracing(t)
	if err != nil {
		agenttest.NotRun(t, "system calls of the agent", err)
		return
	}
	w := newWorld(t)
	key, next := w.Key(), w.Key()
	p := w.Provider("openai", fake.Options{Keys: []string{key, next}})
	st := w.Sealed()
	c := w.Config(st, p)
	c.More = "log: {level: debug}"
	op := w.console(st, c)
	tr.must(op, key, "keys add openai")
	a := agenttest.StartUnder(t, tr.prefix(), w.Dir, c.YAML())
	a.Ready(t)
	ask := func() {
		for _, y := range w.Ways(a, p) {
			y.Must(t)
		}
	}
	ask()
	tr.must(op, next, "keys rotate openai --grace 1s")
	agenttest.Eventually(t, 30*time.Second, "the new version is in use", func() bool { return e2etest.Version(t, a, "openai", 2).State == "active" })
	ask()
	tr.must(op, "", "exec -- true")
	tr.must(op, "", "keys validate openai")
	tr.must(op, "", "keys schedule openai --every 30d")
	tr.must(op, "", "keys revoke openai --now --reason drill")
	h := newHunt(key, next)
	h.process(t, "the agent", a.PID())
	a.Stop(t)

	changed := tr.look(h, func(path string) bool { return configured(w.Dir, path) || configured(filepath.Dir(op.file), path) })
	for _, want := range []string{"postern.sealed", "postern.key", "audit.jsonl", "ca/ca.pem"} {
		if !slices.ContainsFunc(changed, func(p string) bool { return strings.HasPrefix(p, w.Path(want)) }) {
			t.Errorf("the trace does not show that %s was written: %v", want, changed)
		}
	}
	h.files(t, w.Dir)
	h.files(t, filepath.Dir(op.file))
	h.report(t)
}

// The same of the server, and of the commands, on a Vault that speaks TLS: they write to no file at all.
func TestNoFileHoldsTheKeyOfVault(t *testing.T) {
	t.Parallel()
	tr, err := newTracing(t)
	if err != nil {
		agenttest.NotRun(t, "system calls of the server", err)
		return
	}
	w := newWorld(t)
	first, second, third := w.Key(), w.Key(), w.Key()
	p := w.Provider("openai", fake.Options{Keys: []string{first, second, third}})
	st := w.Vault(vaulttest.Options{TLS: true})
	op := w.console(st, w.Config(st, p), "security", "devops")
	st.Policy("staging-devops", op.must("", "policy", "--role", "devops", "--with", "validate"))
	token := w.Secret(op.token())
	tr.must(op, first, "keys add openai")
	vendor, line := w.vendor(st, p)
	file, roots := w.serverConfig(st, op, line, p)
	m := w.manager(file, roots, tr.prefix()...)
	path := "/v1/provider-keys/staging." + e2etest.ProxyID + ".openai"
	if status, body := m.ask(token, "POST", path+"/rotate", fmt.Sprintf(`{"api_key":%q,"grace":"1s"}`, second)); status != http.StatusAccepted {
		t.Errorf("rotate: %d %s", status, body)
	}
	agenttest.Eventually(t, 60*time.Second, "the server ends the rotation", func() bool { return op.state("openai", 1) == "destroyed" })
	if status, body := m.ask(token, "POST", path+"/validate", ""); status != http.StatusOK {
		t.Errorf("validate: %d %s", status, body)
	}
	tr.must(op, third, "keys rotate openai --grace 1s")
	tr.must(op, "", "keys rotate openai --managed --now")
	if n := len(vendor.Live()); n != 1 {
		t.Errorf("%d keys are live at the vendor", n)
	}
	tr.must(op, "", "keys validate openai")
	tr.must(op, "", "keys schedule openai --every 30d")
	tr.must(op, "", "keys revoke openai --now --reason drill")
	m.cmd.Process.Signal(syscall.SIGTERM)
	e2etest.Await(t, m.done, 40*time.Second, "the server's end")

	h := newHunt(w.Secrets...) // what the vendor made, too
	tr.look(h, func(path string) bool { return path == os.DevNull })
	h.files(t, w.Dir)
	h.files(t, filepath.Dir(op.file))
	h.report(t)
}

// tracing is of processes: every file that they open for writing, and every byte that they write.
type tracing struct {
	t      *testing.T
	strace string
	files  []string
}

func newTracing(t *testing.T) (*tracing, error) {
	path, err := tracer()
	return &tracing{t: t, strace: path}, err
}

// prefix stands before the command line of a process that is to be traced; the
// process stays the caller's child.
func (tr *tracing) prefix() []string {
	file := filepath.Join(tr.t.TempDir(), "trace")
	tr.files = append(tr.files, file)
	return []string{tr.strace, "-D", "-f", "--seccomp-bpf", "-qq", "-y", "-xx", "-s", "65535", "-o", file,
		"-e", "trace=%file,write,pwrite64,writev,pwritev,pwritev2,sendfile,splice,sendto,sendmsg,sendmmsg"}
}

// must runs a command that has to succeed.
func (tr *tracing) must(op *console, key, line string) {
	tr.t.Helper()
	args := slices.Concat(tr.prefix(), []string{agenttest.Binary(tr.t), "-c", op.file}, strings.Fields(line))
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env, cmd.Stdin = op.env, strings.NewReader(key+"\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		tr.t.Errorf("postern %s under strace: %v\n%s", line, err, out)
	}
}

// look searches the traces. It returns the files that were changed; each must be one that may be.
func (tr *tracing) look(h *hunt, may func(path string) bool) []string {
	tr.t.Helper()
	var changed []string
	n := 0
	for _, file := range tr.files {
		calls := readTrace(tr.t, file)
		if !slices.ContainsFunc(calls, func(c call) bool { return c.name == "write" }) {
			tr.t.Errorf("%s shows no write", file)
		}
		n += len(calls)
		for _, c := range calls {
			h.look("a call of "+c.name, c.text)
			for _, path := range c.changes {
				if !slices.Contains(changed, path) {
					changed = append(changed, path)
				}
				if !may(path) {
					tr.t.Errorf("%s of %s, which no configuration names", c.name, path)
				}
			}
		}
	}
	tr.t.Logf("%d calls of %d processes, %d files changed", n, len(tr.files), len(changed))
	return changed
}

// configured reports whether the configuration in a folder names a path as one to
// write. What is replaced whole is written beside its place first; `exec` makes a
// folder where temporary ones belong, which here is the same.
func configured(folder, path string) bool {
	if path == os.DevNull {
		return true
	}
	at, err := filepath.Rel(folder, path)
	if err != nil {
		return false
	}
	dir, name := filepath.Split(at)
	switch dir {
	case "":
		return name == "audit.jsonl" || name == "ca" || strings.HasPrefix(name, "postern-exec-") || strings.HasPrefix(strings.TrimPrefix(name, "."), "postern.")
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
		if !slices.Contains(changed, path) || configured(w.Dir, path) {
			t.Errorf("%s: not among %q, or allowed", path, changed)
		}
	}
}

// tracer is strace, installed once where that is allowed.
var tracer = sync.OnceValues(func() (string, error) {
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
	if out, err := exec.Command(path, "-D", "-qq", "-o", os.DevNull, "true").CombinedOutput(); err != nil {
		return "", fmt.Errorf("strace may not trace here: %w: %s", err, bytes.TrimSpace(out))
	}
	return path, nil
})

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
