package faults_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// memory is a tmpfs, where a CA may outlive its agent (ca.state_dir).
const memory = "/dev/shm"

// outlives gives a configuration what a restarted agent needs to be the same to its clients.
func (r *rig) outlives(c e2etest.Config) e2etest.Config {
	r.t.Helper()
	state, err := os.MkdirTemp(memory, "postern-faults-")
	if err != nil {
		agenttest.NotRun(r.t, "restarts with ca.state_dir", err)
	} else {
		r.t.Cleanup(func() { os.RemoveAll(state) })
		c.StateDir = state
	}
	c.Proxy = e2etest.FreePort(r.t) // the clients know it
	return c
}

// life is one of the agent's, from when it was told to end until another took requests again.
type life struct{ told, ended, back time.Time }

// restarts ends the agent at random moments, each time starting it anew, and reports when.
func (r *rig) restarts(c e2etest.Config, end func()) []life {
	r.t.Helper()
	var lives []life
	for range map[bool]int{false: 2, true: 10}[e2etest.Long] {
		r.load.More(time.Duration(rand.Int64N(int64(2 * time.Second))))
		l := life{told: time.Now()}
		end()
		l.ended = time.Now()
		r.a = agenttest.Start(r.t, r.Dir, c.YAML())
		r.KeepsSecrets(r.a)
		r.a.Ready(r.t)
		l.back = time.Now()
		lives = append(lives, l)
	}
	return lives
}

// slowest is how long the slowest restart took.
func (r *rig) slowest(lives []life) {
	var most time.Duration
	for _, l := range lives {
		most = max(most, l.back.Sub(l.ended))
	}
	r.row.recovered = seconds(most)
}

// The agent is killed at random moments. What was under way is lost, and what
// comes while there is no agent; everything before and after is served.
func TestKilled(t *testing.T) {
	t.Parallel()
	r := newRig(t, "SIGKILL at random moments").sealed()
	c := r.outlives(r.Config(r.st, r.good))
	r.begin(c)
	lives := r.restarts(c, func() { r.a.Kill() })
	r.load.More(time.Second)
	r.slowest(lives)
	r.row.saw = fmt.Sprintf("%d times its connection cut, or refused until the agent was back", len(lives))
	r.lose(func(f e2etest.Failure) bool {
		for _, l := range lives {
			if f.Began.Before(l.back) && f.Ended.After(l.told) {
				return true
			}
		}
		return false
	})
	r.back()
	r.chainHolds()
}

// The agent is ended as an orchestrator does. Every answer that was begun comes
// whole. Who got none, or was told while a new agent still loads its keys that
// there is none yet, can safely ask again.
func TestTerminated(t *testing.T) {
	t.Parallel()
	r := newRig(t, "SIGTERM at random moments").sealed()
	c := r.outlives(r.Config(r.st, r.good))
	r.begin(c)
	lives := r.restarts(c, func() {
		r.a.Signal(syscall.SIGTERM)
		e2etest.Await(t, r.a.Done(), 40*time.Second, "the agent has ended")
		if err := r.a.ExitErr(); err != nil {
			t.Errorf("the agent ended with %v", err)
		}
	})
	r.load.More(time.Second)
	r.slowest(lives)
	r.row.saw = fmt.Sprintf("whole answers; %d times refused until the agent was back", len(lives))
	r.lose(func(f e2etest.Failure) bool {
		for _, l := range lives {
			again := !f.Answered() || strings.Contains(f.Err.Error(), "no usable provider key")
			if again && f.Began.Before(l.back) && f.Ended.After(l.told) {
				return true
			}
		}
		return false
	})
	r.back()
	r.chainHolds()
}

// chainHolds looks at the audit record of all lives.
func (r *rig) chainHolds() {
	r.t.Helper()
	r.a.Stop(r.t)
	out, said, code := agenttest.Run(r.t, r.Dir, "", "audit", "verify", r.Path("audit.jsonl"))
	if code != 0 {
		r.t.Errorf("audit verify: exit code %d\n%s%s", code, out, said)
	}
}
