package e2e_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// The agent crashes and comes back. Clients of CONNECT that were running know
// its first CA only, and go on, because the state directory outlived it.
func TestCrashKeepsClientsTrust(t *testing.T) {
	t.Parallel()
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
			st := w.Sealed()
			key := w.Key()
			p := w.Provider("openai", fake.Options{Keys: []string{key}})
			st.Put("openai", key)
			c := w.Config(st, p)
			c.Proxy = e2etest.FreePort(t) // the clients know it
			if kept {
				c.StateDir = state
			}
			first := w.Start(c)
			trust := e2etest.Read(t, w.Path("ca/ca.pem"))
			ways := w.Ways(first, p)
			for _, y := range ways {
				y.Must(t)
			}

			first.Kill()
			second := w.Start(c)
			if second.PID() == first.PID() || second.Proxy != first.Proxy {
				t.Fatalf("process %d on %s after process %d on %s", second.PID(), second.Proxy, first.PID(), first.Proxy)
			}
			same := bytes.Equal(trust, e2etest.Read(t, w.Path("ca/ca.pem")))
			if same != kept {
				t.Errorf("ca.pem is the same after the restart: %v, want %v", same, kept)
			}
			running := way{Name: "connect, with the old CA file", Client: w.Client(w.Through(second, trust)), URL: ways[1].URL}
			if err := running.Ask(t.Context()); (err == nil) != kept {
				t.Errorf("%s: %v", running.Name, err)
			}
			if kept {
				for _, y := range ways { // the same processes, as it were: connections, sessions and trust of before
					y.Must(t)
				}
				w.stateIsOurs(state)
			}
			out, said, code := agenttest.Run(t, w.Dir, "", "audit", "verify", w.Path("audit.jsonl"))
			if code != 0 {
				t.Errorf("audit verify after the crash: exit code %d\n%s%s", code, out, said)
			}
		})
	}
}

// stateIsOurs looks at what the state directory holds: one file, for its owner alone, without a provider key.
func (w *world) stateIsOurs(dir string) {
	w.T.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		w.T.Fatalf("%v, %v", entries, err)
	}
	info, err := entries[0].Info()
	if err != nil || info.Mode().Perm() != 0o600 {
		w.T.Errorf("mode %v, %v", info.Mode(), err)
	}
	w.Clean(entries[0].Name(), e2etest.Read(w.T, dir+"/"+entries[0].Name()))
}
