package faults_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// mounting is a shell that does something with mounts of its own and then becomes the agent. Nothing of it outlives the agent.
func mounting(does string) []string {
	return []string{"unshare", "-m", "sh", "-ec", "mount --make-rprivate /; " + does + `; exec "$@"`, "sh"}
}

// canMount says why mounting cannot work here, or nothing.
func canMount() error {
	out, err := exec.Command("unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt").CombinedOutput()
	if err != nil {
		return fmt.Errorf("mounts of one's own: %w: %s", err, out)
	}
	return nil
}

// The disk of the audit record is full. Requests go on with the version that
// serves; no other is promoted until its entry can be written, and then it is.
func TestAuditDiskFull(t *testing.T) {
	t.Parallel()
	if err := canMount(); err != nil {
		agenttest.NotRun(t, "faults: audit disk full", err)
		return
	}
	r := newRig(t, "audit disk full").sealed()
	if err := os.Mkdir(r.Path("disk"), 0o700); err != nil {
		t.Fatal(err)
	}
	c := r.Config(r.st, r.good)
	c.Audit = "disk/audit.jsonl"
	r.begin(c, mounting("mount -t tmpfs -o size=64k,mode=700 none "+r.Path("disk"))...)
	disk := fmt.Sprintf("/proc/%d/root%s/", r.a.PID(), r.Path("disk"))

	filler := disk + "filler"
	if err := fill(filler); err != nil {
		t.Fatal(err)
	}
	old := r.key
	next, n, first := r.key, 0, (<-chan time.Time)(nil)
	const refused = "version not promoted: its audit entry cannot be written"
	for !strings.Contains(r.a.Log.String(), refused) { // the record's last block has room for some entries
		old, next = next, r.Key()
		r.good.Allow(next)
		first = r.good.FirstUse(next)
		n = r.st.Put(r.name, next)
		agenttest.Eventually(t, 30*time.Second, "the version is promoted, or not for want of its entry", func() bool {
			return e2etest.Version(t, r.a, r.name, n).State == "active" || strings.Contains(r.a.Log.String(), refused)
		})
	}
	r.load.More(e2etest.Span(2*time.Second, 20*time.Second))
	if v := e2etest.Version(t, r.a, r.name, n); v.State == "active" || r.good.Counts(next).Requests > 1 {
		t.Errorf("version %d is %s and carried %d requests without its audit entry", n, v.State, r.good.Counts(next).Requests)
	}
	if failures := r.a.Metric(t, "postern_audit_failures_total"); failures == 0 {
		t.Error("no metric says that the record cannot be written")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	freed := time.Now()
	r.row.recovered = seconds(e2etest.Await(t, first, 2*time.Minute, "a request with the version that waited").Sub(freed))
	if r.good.Counts(old).Unauthorized > 0 {
		t.Error("the old version was refused")
	}
	r.end()
	record, err := os.ReadFile(disk + "audit.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	e2etest.Write(t, r.Path("copy.jsonl"), string(record))
	if out, said, code := agenttest.Run(t, r.Dir, "", "audit", "verify", r.Path("copy.jsonl")); code != 0 {
		t.Errorf("audit verify: exit code %d\n%s%s", code, out, said)
	}
}

// fill writes a file until the disk is full.
func fill(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, size := range []int{4096, 1} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			return err
		}
	}
	return nil
}

// More clients connect than the process may have files. Those that are there
// are served, over new connections to the provider too, and newcomers once there is room.
func TestFilesExhausted(t *testing.T) {
	t.Parallel()
	r := newRig(t, "file descriptors exhausted").sealed()
	const files = 256
	r.begin(r.Config(r.st, r.good), "sh", "-ec", fmt.Sprintf(`ulimit -n %d; exec "$@"`, files), "sh")
	e2etest.Fill(t, r.ways, perClient)
	var c *crowd
	joined := make(chan struct{})
	go func() {
		defer close(joined)
		c = r.joins(2 * files)
	}()
	e2etest.Await(t, joined, time.Minute, "the crowd has connected")
	agenttest.Eventually(t, 20*time.Second, "the crowd has what clients may have", func() bool {
		return r.a.Metric(t, `postern_refused_connections_total{reason="cap"}`) > 0
	})
	most := 0
	for until := time.Now().Add(e2etest.Span(4*time.Second, 20*time.Second)); time.Now().Before(until); r.wait(100 * time.Millisecond) {
		most = max(most, openFiles(t, r.a.PID()))
	}
	if most < files/3 || most > files-8 {
		t.Errorf("%d of %d files were open at the most", most, files)
	}
	r.row.saw = fmt.Sprintf("200; newcomers are closed; %d of %d files at the most", most, files)
	c.leave()
	r.alive(time.Now())
	r.end()
}

func openFiles(t *testing.T, pid int) int {
	t.Helper()
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// cgroup makes a control group with a limit of memory and returns its folder.
func cgroup(t *testing.T, limit int64) (string, error) {
	t.Helper()
	for root, file := range map[string]string{"/sys/fs/cgroup/memory": "memory.limit_in_bytes", "/sys/fs/cgroup": "memory.max"} {
		if _, err := os.Stat(root + "/cgroup.procs"); err != nil {
			continue
		}
		dir, err := os.MkdirTemp(root, "postern-faults-")
		if err != nil {
			return "", err
		}
		t.Cleanup(func() { os.Remove(dir) })
		if err := os.WriteFile(filepath.Join(dir, file), []byte(strconv.FormatInt(limit, 10)), 0); err != nil {
			return "", err
		}
		return dir, nil
	}
	return "", errors.New("no control group for memory can be made here")
}

// The agent has the memory that the chart gives it, and clients that want
// more: long bodies that are kept for a retry, long answers nobody reads, many
// connections. It survives, and others are served.
func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	const limit = 64 << 20 // as in charts/postern/values.yaml
	dir, err := cgroup(t, limit)
	if err != nil {
		agenttest.NotRun(t, "faults: memory limit", err)
		return
	}
	r := newRig(t, "memory limit of 64 MiB").sealed()
	long := strings.Repeat("x", 1<<20)
	bad := r.Provider("bad", fake.Options{Keys: []string{r.key}, Intercept: func(w http.ResponseWriter, q *http.Request) bool {
		io.Copy(io.Discard, q.Body)
		for range 8 {
			io.WriteString(w, long)
		}
		return true
	}})
	c := r.Config(r.st, r.good)
	c.Providers = append(c.Providers, bad.Entry(", key: "+r.name))
	r.begin(c, "sh", "-ec", `echo $$ > "`+dir+`/cgroup.procs"; exec "$@"`, "sh")
	crowd := r.joins(32 * 20)
	until := time.Now().Add(e2etest.Span(4*time.Second, 30*time.Second))
	together(24, func(i int) {
		for time.Now().Before(until) {
			resp, err := r.pool.RoundTrip(r.request("bad", long))
			if err == nil && i%2 == 0 {
				r.wait(200 * time.Millisecond) // it reads late
			}
			r.note(sight(resp, err))
		}
	})
	crowd.leave()
	for what := range r.saw {
		if what != "200" {
			t.Errorf("a client saw %q", what)
		}
	}
	select {
	case <-r.a.Done():
		t.Fatalf("the agent ended: %v", r.a.ExitErr())
	default:
	}
	bad.CloseIdle()
	r.alive(time.Now())
	r.end()
}
