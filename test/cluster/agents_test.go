//go:build linux

package cluster_test

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/postern-proxy/postern/test/cluster"
)

// agents are the processes of the agents in pods; servers are of the same program.
func (w *world) agents() (pids []int) {
	for _, pid := range w.Pids("postern") {
		words, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && bytes.Contains(words, []byte("\x00agent\x00")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// agentsKilled: each application's agent is killed under its requests, by route
// and by CONNECT. Kubernetes starts it again; the applications, which run on with
// the trust and the connections that they have, are answered again, and nothing
// else is started again.
func (s *stories) agentsKilled(t *testing.T) {
	before := s.podsOf(t, "shop", runningPods)
	pids, killed := s.agents(), time.Now()
	if len(pids) != len(running) {
		t.Fatalf("%d agents, want those of %v", len(pids), running)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if err := cluster.Within(time.Minute, func() error {
		for _, p := range s.podsOf(t, "shop", runningPods) {
			if a := p.Status.InitContainerStatuses[0]; a.RestartCount != 1 || !a.Started {
				return fmt.Errorf("the agent of %s: %+v", p.Metadata.Name, a)
			}
		}
		return nil
	}); err != nil {
		t.Fatalf("not started again: %v", err)
	}
	up := time.Now()
	for _, name := range []string{"route", "forward"} {
		call := s.provider.AwaitCall(t, 30*time.Second, "of "+name+" after its agent was killed", func(c cluster.Call) bool { return by(name, s.key)(c) && c.At.After(killed.Add(100*time.Millisecond)) })
		s.provider.AwaitCall(t, 30*time.Second, "of "+name+" after its agent was up", func(c cluster.Call) bool { return by(name, s.key)(c) && c.At.After(up) })
		failed := s.failures(t, name)
		fmt.Printf("agent killed: %s was answered again %v later; %d of its requests failed\n", name, call.At.Sub(killed).Round(10*time.Millisecond), failed)
		// That was all of them.
		later := time.Now()
		s.provider.AwaitCall(t, 30*time.Second, "of "+name+" long after", func(c cluster.Call) bool { return by(name, s.key)(c) && c.At.Sub(later) > time.Second })
		if more := s.failures(t, name) - failed; more > 0 {
			t.Errorf("%s: %d requests failed although the agent was up", name, more)
		}
	}
	for i := range before {
		before[i].Status.InitContainerStatuses[0].RestartCount++
	}
	untouched(t, before, s.podsOf(t, "shop", runningPods))
}
