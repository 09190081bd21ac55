package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// An agent that is killed leaves no core, even where everything around it asks for one.
func TestNoCoreDump(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		agenttest.NotRun(t, "core dumps", errors.New("/proc is Linux's"))
		return
	}
	w := newWorld(t)
	key := w.Key()
	p := w.Provider("openai", fake.Options{Keys: []string{key}})
	st := w.Sealed()
	st.Put("openai", key)
	unlimited := []string{"sh", "-c", `cd "$0" && ulimit -S -c "$(ulimit -H -c)" && exec "$@"`}
	for _, how := range []string{"as it limits itself", "with its limit raised from outside"} {
		a := agenttest.StartUnder(t, append(unlimited, w.Dir), w.Dir, w.Config(st, p).YAML(), "GOTRACEBACK=crash")
		a.Ready(t)
		w.Ways(a, p)[0].Must(t)
		if how == "as it limits itself" {
			if limits := string(e2etest.Read(t, fmt.Sprintf("/proc/%d/limits", a.PID()))); !regexp.MustCompile(`Max core file size +0 `).MatchString(limits) {
				t.Errorf("the limit is not 0:\n%s", limits)
			}
		} else if err := raiseCoreLimit(a.PID()); err != nil {
			agenttest.NotRun(t, "core dumps with a raised limit", err)
			a.Stop(t)
			continue
		}
		a.Signal(syscall.SIGABRT)
		e2etest.Await(t, a.Done(), 40*time.Second, "the agent's end")
		if !strings.Contains(a.Log.String(), "SIGABRT") {
			t.Errorf("%s: the agent did not die of SIGABRT:\n%s", how, a.Log.Tail(2000))
		}
		for _, core := range w.cores() {
			t.Errorf("%s: %s is a core dump", how, core)
		}
		h := newHunt(key)
		h.look("what a crash prints", []byte(a.Log.String()))
		h.files(t, w.Dir)
		h.report(t)
	}
	// What an ordinary process leaves here, for whoever reads the result.
	other := newWorld(t)
	cmd := exec.Command("sh", "-c", `cd "$0" && ulimit -S -c "$(ulimit -H -c)" && kill -ABRT $$`, other.Dir)
	cmd.Run()
	pattern := strings.TrimSpace(string(e2etest.Read(t, "/proc/sys/kernel/core_pattern")))
	t.Logf("an ordinary process with the same limits left %d core dumps in its folder (kernel.core_pattern is %q)", len(other.cores()), pattern)
}

// cores are the ELF core files below the world's folder.
func (w *world) cores() []string {
	var out []string
	filepath.WalkDir(w.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		// The type of an ELF file stands at byte 16: 4 is a core.
		if b, err := os.ReadFile(path); err == nil && len(b) > 17 && bytes.HasPrefix(b, []byte("\x7fELF")) && b[16] == 4 {
			out = append(out, path)
			os.Remove(path)
		}
		return nil
	})
	return out
}
