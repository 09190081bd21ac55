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
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// The agent, the server and a command that waits for the end of a rotation leave
// no core when they are killed, even where everything around them asks for one.
func TestNoCoreDump(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		agenttest.NotRun(t, "core dumps", errors.New("/proc is Linux's"))
		return
	}
	w := newWorld(t)
	keys := []string{w.Key(), w.Key(), w.Key(), w.Key()}
	p, other := w.Provider("openai", fake.Options{Keys: keys}), w.Provider("other", fake.Options{Keys: keys})
	st := w.Vault(vaulttest.Options{})
	st.Put("openai", keys[0])
	st.Put("other", keys[1])
	cfg := w.Config(st, p, other)
	op := w.console(st, cfg, "devops")
	file, roots := w.serverConfig(st, op, "", p, other)
	unlimited := []string{"sh", "-c", `cd "$0" && export GOTRACEBACK=crash && ulimit -S -c "$(ulimit -H -c)" && exec "$@"`, w.Dir}
	h := newHunt(keys...)
	for i, how := range []string{"as it limits itself", "with its limit raised from outside"} {
		a := agenttest.StartUnder(t, unlimited, w.Dir, cfg.YAML())
		a.Ready(t)
		w.Ways(a, p)[0].Must(t)
		m := w.manager(file, roots, unlimited...)
		name := []string{"openai", "other"}[i]
		cmd := op.startUnder(unlimited, keys[2+i]+"\n", "keys", "rotate", name, "--ramp", "10:10m")
		agenttest.Eventually(t, 30*time.Second, "the rotation waits", func() bool {
			r := op.show(name).Rotation
			return r != nil && r.Phase == rotation.PhaseMigrate
		})
		for _, x := range []victim{
			{"the command", cmd.Process.Pid, cmd.done, func() string { return cmd.out.String() + cmd.said.String() }},
			{"the server", m.cmd.Process.Pid, m.done, m.log.String},
			{"the agent", a.PID(), a.Done(), a.Log.String},
		} {
			x.what += ", " + how
			h.process(t, x.what, x.pid)
			x.dies(t, h, i == 1)
			for _, core := range w.cores() {
				t.Errorf("%s: %s is a core dump", x.what, core)
			}
		}
	}
	h.files(t, w.Dir)
	h.report(t)
	// What an ordinary process leaves here, for whoever reads the result.
	control := newWorld(t)
	cmd := exec.Command("sh", "-c", `cd "$0" && ulimit -S -c "$(ulimit -H -c)" && kill -ABRT $$`, control.Dir)
	cmd.Run()
	pattern := strings.TrimSpace(string(e2etest.Read(t, "/proc/sys/kernel/core_pattern")))
	t.Logf("an ordinary process with the same limits left %d core dumps in its folder (kernel.core_pattern is %q)", len(control.cores()), pattern)
}

// victim is a process that is to be killed.
type victim struct {
	what string
	pid  int
	done <-chan struct{}
	said func() string // valid once it is done
}

// dies ends a process as an abort does, with its core limit as it is or raised.
func (x victim) dies(t *testing.T, h *hunt, raised bool) {
	t.Helper()
	if raised {
		if err := raiseCoreLimit(x.pid); err != nil {
			agenttest.NotRun(t, "core dumps with a raised limit", err)
			return
		}
	} else if limits := string(e2etest.Read(t, fmt.Sprintf("/proc/%d/limits", x.pid))); !regexp.MustCompile(`Max core file size +0 `).MatchString(limits) {
		t.Errorf("%s: the limit is not 0:\n%s", x.what, limits)
	}
	syscall.Kill(x.pid, syscall.SIGABRT)
	e2etest.Await(t, x.done, 40*time.Second, "the end of "+x.what)
	if !strings.Contains(x.said(), "SIGABRT") {
		t.Errorf("%s did not die of SIGABRT:\n%s", x.what, x.said())
	}
	h.look("what a crash prints of "+x.what, []byte(x.said()))
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
