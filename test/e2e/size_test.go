package e2e_test

import (
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// From the start of the process to its readiness. The figure is what counts;
// the limit only catches what is broken.
func TestReadySoonAfterStart(t *testing.T) {
	onBothStores(t, func(t *testing.T, w *world, st keyStore) {
		key := w.Key()
		p := w.Provider("openai", fake.Options{Keys: []string{key}})
		st.Put("openai", key)
		agenttest.Binary(t) // is built by now
		var took []time.Duration
		for range 3 {
			began := time.Now()
			a := agenttest.Start(t, w.Dir, w.Config(st, p).YAML())
			agenttest.Eventually(t, 20*time.Second, "the agent is ready", func() bool {
				code, _ := a.Get(t, "/readyz")
				return code == 200
			})
			took = append(took, time.Since(began))
			w.KeepsSecrets(a)
			w.Ways(a, p)[0].Must(t)
			a.Stop(t)
		}
		t.Logf("ready after %v", took)
		for _, d := range took {
			if d > 5*time.Second {
				t.Errorf("ready only after %s", d)
			}
		}
	})
}

// Memory that is resident, idle and with 400 streams. As above: the figures
// count, the limits are three times what is promised.
func TestResidentMemory(t *testing.T) {
	if runtime.GOOS != "linux" {
		agenttest.NotRun(t, "resident memory", errors.New("/proc/PID/status is Linux's"))
		return
	}
	const streams, words = 400, 12
	w := newWorld(t)
	st := w.Sealed()
	key := w.Key()
	p := w.Provider("openai", fake.Options{Keys: []string{key}, Gap: e2etest.Span(300*time.Millisecond, time.Second), Words: words})
	st.Put("openai", key)
	a := w.Start(w.Config(st, p))
	idle := resident(t, a.PID())

	url := a.URL("/openai/v1/chat/completions")
	client := w.Client(func(tr *http.Transport) { tr.MaxConnsPerHost = streams })
	open := make([]*openStream, streams)
	errs := make([]error, streams)
	var wg sync.WaitGroup
	for i := range open {
		wg.Go(func() { open[i], errs[i] = openChat(client, url) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	busy := resident(t, a.PID())
	for _, s := range open {
		wg.Go(func() {
			defer s.close()
			if err := s.rest(); err != nil {
				t.Errorf("one of %d streams: %v", streams, err)
			}
		})
	}
	wg.Wait()
	after := resident(t, a.PID())
	t.Logf("resident: idle %.1f MB, with %d streams %.1f MB, after them %.1f MB", idle, streams, busy, after)
	if idle > 60 || busy > 180 {
		t.Errorf("idle %.1f MB, with %d streams %.1f MB: three times what is promised", idle, streams, busy)
	}
}

// resident is a process's resident memory in MB.
func resident(t *testing.T, pid int) float64 {
	t.Helper()
	for line := range strings.Lines(string(e2etest.Read(t, fmt.Sprintf("/proc/%d/status", pid)))) {
		var kb float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kb); n == 1 {
			return kb / 1024
		}
	}
	t.Fatalf("no VmRSS of process %d", pid)
	return 0
}
