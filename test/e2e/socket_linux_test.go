package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// socket is the strict way to listen: a path and the users that may connect.
type socket struct {
	*world
	provider *provider
	store    keyStore
	cfg      config
	file     string
}

// newSocket puts it into a folder that other users may enter.
func newSocket(t *testing.T, uids ...int) *socket {
	t.Helper()
	w := newWorld(t)
	key := w.Key()
	s := &socket{world: w, provider: w.Provider("openai", fake.Options{Keys: []string{key}})}
	s.store = w.Sealed()
	s.store.Put("openai", key)
	dir, err := os.MkdirTemp("", "postern-socket-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.file = filepath.Join(dir, "proxy.sock")
	s.cfg = w.Config(s.store, s.provider)
	s.listen(s.file, uids...)
	return s
}

func (s *socket) listen(path string, uids ...int) {
	s.cfg.Proxy = "unix://" + path
	s.cfg.UIDs = uids
}

// as connects as a user. Linux keeps users by thread: the one that became
// somebody else ends with its goroutine.
func (s *socket) as(uid int) (net.Conn, error) {
	type result struct {
		c   net.Conn
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if uid != os.Geteuid() {
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
				done <- result{nil, fmt.Errorf("become user %d: %w", uid, errno)}
				return
			}
		}
		c, err := net.Dial("unix", s.file)
		done <- result{c, err}
	}()
	r := <-done
	return r.c, r.err
}

// asks sends one request on a connection of its own.
func (s *socket) asks(uid int) (status int, err error) {
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return s.as(uid) }}
	c := &http.Client{Transport: tr, Timeout: 20 * time.Second}
	resp, err := c.Get("http://postern/openai/v1/models")
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return resp.StatusCode, nil
}

// Those who are listed are served on every way in; nobody else is, root not
// even where the agent is root's own, and none of it reaches the provider.
func TestSocketServesListedUsersOnly(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		agenttest.NotRun(t, "other users at the agent's socket", errors.New("only root may become another user"))
		return
	}
	const listed, other = 64001, 64002
	s := newSocket(t, listed)
	a := s.Start(s.cfg)
	if a.Proxy != s.file {
		t.Errorf("it says that it listens at %q", a.Proxy)
	}
	fi, err := os.Lstat(s.file)
	if err != nil || fi.Mode()&0o666 != 0o666 || fi.Mode()&os.ModeSocket == 0 {
		t.Errorf("the socket is %v, %v: its mode must let everyone as far as the agent's own check", fi.Mode(), err)
	}
	asked := func() int { return len(s.provider.Requests()) }
	before := asked()
	for _, uid := range []int{other, os.Geteuid(), 65534} {
		if status, err := s.asks(uid); err == nil {
			t.Errorf("user %d was answered: %d", uid, status)
		}
	}
	if n := asked() - before; n != 0 {
		t.Errorf("%d requests reached the provider", n)
	}
	if n := a.Metric(t, `postern_refused_connections_total{reason="uid"}`); n < 3 {
		t.Errorf("%v connections were counted as refused", n)
	}
	if status, err := s.asks(listed); err != nil || status != http.StatusOK {
		t.Errorf("the listed user: %d, %v", status, err)
	}
	// The ways that do not look at Host are no way round.
	through := s.Through(a, e2etest.Read(t, s.Path("ca/ca.pem")))
	for uid, want := range map[int]bool{listed: true, other: false} {
		c := s.Client(func(tr *http.Transport) {
			through(tr)
			tr.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: "postern:80"})
			tr.DialContext = func(context.Context, string, string) (net.Conn, error) { return s.as(uid) }
		})
		resp, err := c.Get("https://" + s.provider.Host + models)
		if served := err == nil && resp.StatusCode == http.StatusOK; served != want {
			t.Errorf("user %d by CONNECT: served is %t, %v", uid, served, err)
		}
		if err == nil {
			resp.Body.Close()
		}
	}
	// Commands find the agent by its admin listener, and know the socket for its own.
	out, said, code := agenttest.Run(t, s.Dir, "", "status", "-c", s.Operator(s.cfg, a))
	if code != 0 {
		t.Errorf("postern status: %d\n%s%s", code, out, said)
	}
	out, said, code = agenttest.Run(t, s.Dir, "", "check", "-c", a.Config)
	if code != 0 || !strings.Contains(out, "in use: by the agent if it runs already") {
		t.Errorf("postern check: %d\n%s%s", code, out, said)
	}
	a.Stop(t)
	if _, err := os.Lstat(s.file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
	// exec has a port of its own, and needs no socket.
	out, said, code = agenttest.Run(t, s.Dir, "", "exec", "-c", a.Config, "--", "sh", "-c", "echo $OPENAI_BASE_URL")
	if code != 0 || !strings.HasPrefix(out, "http://127.0.0.1:") {
		t.Errorf("postern exec: %d\n%s%s", code, out, said)
	}
}

// Where a socket can be: whatever else is at its place stays as it is.
func TestSocketPlaces(t *testing.T) {
	t.Parallel()
	s := newSocket(t, os.Geteuid())
	dir := filepath.Dir(s.file)
	precious := filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused := func(what, path, want string) {
		t.Helper()
		s.listen(path, os.Geteuid())
		a := agenttest.Launch(t, s.Dir, s.cfg.YAML())
		e2etest.Await(t, a.Done(), 40*time.Second, "the end of an agent at "+what)
		if a.ExitErr() == nil || !strings.Contains(a.Log.String(), "listen.proxy") || !strings.Contains(a.Log.String(), want) {
			t.Errorf("%s: %v, without %q\n%s", what, a.ExitErr(), want, a.Log.Tail(1000))
		}
	}
	refused("a file", precious, "is no socket")
	link := filepath.Join(dir, "link")
	if err := os.Symlink(precious, link); err != nil {
		t.Fatal(err)
	}
	refused("a link to a file", link, "is no socket")
	dangling := filepath.Join(dir, "dangling")
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), dangling); err != nil {
		t.Fatal(err)
	}
	refused("a link to nothing", dangling, "is no socket")
	refused("a folder", dir, "is no socket")
	refused("a folder that is not there", filepath.Join(dir, "none", "proxy.sock"), "no such file")
	if fi, err := os.Stat(precious); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the file that stood in the way is %v, %v", fi, err)
	}
	// A crash leaves a socket; of several that start then, one listens, and it goes on doing so.
	s.listen(s.file, os.Geteuid())
	crashed := agenttest.Start(t, s.Dir, s.cfg.YAML())
	crashed.Kill()
	if _, err := os.Lstat(s.file); err != nil {
		t.Fatalf("the crash left no socket: %v", err)
	}
	var agents []*agenttest.Agent
	for range 4 {
		cfg := s.cfg
		cfg.Store = s.store.Shared()
		agents = append(agents, agenttest.Launch(t, t.TempDir(), cfg.YAML()))
	}
	agenttest.Eventually(t, 60*time.Second, "all but one give up", func() bool {
		return len(slices.DeleteFunc(slices.Clone(agents), func(a *agenttest.Agent) bool { return !e2etest.Running(a) })) == 1
	})
	for _, a := range agents {
		if !e2etest.Running(a) && !strings.Contains(a.Log.String(), "in use by another process") {
			t.Errorf("one gave up for another reason: %v\n%s", a.ExitErr(), a.Log.Tail(1000))
		}
	}
	agenttest.Eventually(t, 20*time.Second, "the one that is left serves", func() bool {
		status, err := s.asks(os.Geteuid())
		return err == nil && status == http.StatusOK
	})
	// A folder in which others may put a socket of their own is worth a word.
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if out, said, _ := agenttest.Run(t, s.Dir, "", "check", "-c", agents[0].Config); !strings.Contains(out, "put another socket in its place") {
		t.Errorf("check says nothing of a folder that everyone may write to:\n%s%s", out, said)
	}
}
