package e2e_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
)

// The agent crashes and comes back. Clients of CONNECT that were running know
// its first CA only, and go on, because the state directory outlived it.
func TestCrashKeepsClientsTrust(t *testing.T) {
	const memory = "/dev/shm"
	if _, err := os.Stat(memory); err != nil {
		agenttest.NotRun(t, "restart with ca.state_dir", err)
		return
	}
	state, err := os.MkdirTemp(memory, "postern-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(state) })

	for name, kept := range map[string]bool{"with state_dir": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			st := w.sealed()
			key := w.key()
			p := w.provider("openai", fake.Options{Keys: []string{key}})
			st.put("openai", key)
			c := w.config(st, p)
			c.proxy = freePort(t) // the clients know it
			if kept {
				c.stateDir = state
			}
			first := w.start(c)
			trust := read(t, w.path("ca/ca.pem"))
			ways := w.ways(first, p)
			for _, y := range ways {
				y.must(t)
			}

			first.Kill()
			second := w.start(c)
			if second.PID() == first.PID() || second.Proxy != first.Proxy {
				t.Fatalf("process %d on %s after process %d on %s", second.PID(), second.Proxy, first.PID(), first.Proxy)
			}
			same := bytes.Equal(trust, read(t, w.path("ca/ca.pem")))
			if same != kept {
				t.Errorf("ca.pem is the same after the restart: %v, want %v", same, kept)
			}
			running := way{name: "connect, with the old CA file", client: w.client(w.through(second, trust)), url: ways[1].url}
			if err := running.ask(t.Context()); (err == nil) != kept {
				t.Errorf("%s: %v", running.name, err)
			}
			if kept {
				for _, y := range ways { // the same processes, as it were: connections, sessions and trust of before
					y.must(t)
				}
				w.stateIsOurs(state)
			}
			out, said, code := agenttest.Run(t, w.dir, "", "audit", "verify", w.path("audit.jsonl"))
			if code != 0 {
				t.Errorf("audit verify after the crash: exit code %d\n%s%s", code, out, said)
			}
		})
	}
}

// stateIsOurs looks at what the state directory holds: one file, for its owner alone, without a provider key.
func (w *world) stateIsOurs(dir string) {
	w.t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		w.t.Fatalf("%v, %v", entries, err)
	}
	info, err := entries[0].Info()
	if err != nil || info.Mode().Perm() != 0o600 {
		w.t.Errorf("mode %v, %v", info.Mode(), err)
	}
	w.clean(entries[0].Name(), read(w.t, dir+"/"+entries[0].Name()))
}
