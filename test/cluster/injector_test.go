//go:build linux

package cluster_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-proxy/postern/test/cluster"
)

// created is what became of pods that were created.
type created struct {
	mu       sync.Mutex
	pods     int
	missed   []string // the uids of those that have no agent
	failures []string // those that the API server did not create
	slowest  time.Duration
}

// create creates one pod that no node runs.
func (s *stories) create(pod []byte, c *created) {
	began := time.Now()
	status, body, err := s.post("shop", "", pod)
	took := time.Since(began)
	c.mu.Lock()
	defer c.mu.Unlock()
	if status != http.StatusCreated {
		c.failures = append(c.failures, fmt.Sprint(status, " ", string(body), err))
		return
	}
	c.pods++
	c.slowest = max(c.slowest, took)
	var answer struct {
		Metadata struct {
			UID    string
			Labels map[string]string
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		c.failures = append(c.failures, err.Error())
	}
	if answer.Metadata.Labels["postern.dev/injected"] != "true" {
		c.missed = append(c.missed, answer.Metadata.UID)
	}
}

// streams is how many create pods at once.
const streams = 2

// stream creates pods while something is done, and says what became of them.
func (s *stories) stream(t *testing.T, what string, do func()) *created {
	t.Helper()
	c := &created{}
	pod := unscheduled(t)
	stop := make(chan struct{})
	var running sync.WaitGroup
	for range streams {
		running.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond) // at most as fast as that
			defer tick.Stop()
			for {
				s.create(pod, c)
				select {
				case <-tick.C:
				case <-stop:
					return
				}
			}
		})
	}
	func() {
		defer func() {
			close(stop)
			running.Wait()
		}()
		do()
	}()
	fmt.Printf("%s: %d pods created meanwhile, %d not injected, %d refused, the slowest took %v\n",
		what, c.pods, len(c.missed), len(c.failures), c.slowest.Round(time.Millisecond))
	return c
}

// none is missed, and none refused.
func (c *created) none(t *testing.T) {
	t.Helper()
	if c.pods == 0 || len(c.missed) > 0 || len(c.failures) > 0 {
		t.Errorf("%d pods, not injected %v, refused %v", c.pods, c.missed, c.failures)
	}
}

// allReady: both replicas are ready, as the cluster sees it, after so many restarts.
func (s *stories) allReady(t *testing.T, restarts int) error {
	t.Helper()
	pods, n := s.podsOf(t, system, injectors), 0
	for _, p := range pods {
		for _, c := range p.Status.ContainerStatuses {
			n += c.RestartCount
		}
		for _, c := range p.Status.Conditions {
			if c.Type == "Ready" && c.Status != "True" {
				return fmt.Errorf("%s is not ready", p.Metadata.Name)
			}
		}
	}
	if len(pods) != 2 || n != restarts {
		return fmt.Errorf("%d pods, restarted %d times", len(pods), n)
	}
	var slices struct {
		Items []struct {
			Endpoints []struct{ Conditions struct{ Ready bool } }
		}
	}
	text := s.Kubectl(t, "--namespace", system, "get", "endpointslices", "--selector", injectors, "--output", "json")
	if err := json.Unmarshal([]byte(text), &slices); err != nil {
		return err
	}
	n = 0
	for _, slice := range slices.Items {
		for _, e := range slice.Endpoints {
			if e.Conditions.Ready {
				n++
			}
		}
	}
	if n != 2 {
		return fmt.Errorf("the Services lead to %d", n)
	}
	return nil
}

// kill kills each injector in its turn, under a stream of pods.
func (s *stories) kill(t *testing.T, what string) *created {
	t.Helper()
	return s.stream(t, what, func() {
		for i, pid := range s.Pids(injectorName) {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Error(err)
				return
			}
			if err := cluster.Within(time.Minute, func() error { return s.allReady(t, i+1) }); err != nil {
				t.Error(err)
				return
			}
		}
	})
}

// clear removes what streams left.
func (s *stories) clear(t *testing.T) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, s.server+"/api/v1/namespaces/shop/pods?gracePeriodSeconds=0&labelSelector="+url.QueryEscape("app=stream"), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
}

const (
	injectors    = "app.kubernetes.io/name=postern-injector"
	injectorName = "postern-injecto" // of the process, as the kernel cuts it
)

// injectorsEnd: each of two replicas is ended in its turn, and then killed, and
// no pod is missed; with the failurePolicy Fail none is refused.
func (s *stories) injectorsEnd(t *testing.T) {
	old := s.podsOf(t, system, injectors)
	s.stream(t, "injectors ended one after the other", func() {
		for _, p := range old {
			if p.Metadata.DeletionTimestamp != "" {
				continue
			}
			s.Kubectl(t, "--namespace", system, "delete", "pod", p.Metadata.Name, "--timeout", "60s")
			s.awaitInjectors(t)
		}
	}).none(t)
	s.kill(t, "injectors killed one after the other").none(t)
	s.clear(t)
	s.reports(t, "shop", 0)
	if os.Getenv("POSTERN_E2E_LONG") != "1" { // where the other answers, the policy is not asked
		return
	}
	s.helm(t, "upgrade", "postern", s.chart, "--values", s.values, "--set", "injector.failurePolicy=Fail,injector.logLevel=warn", "--wait", "--timeout", "120s")
	if err := cluster.Within(time.Minute, func() error { return s.allReady(t, 0) }); err != nil {
		t.Fatal(err)
	}
	s.kill(t, "the same with failurePolicy Fail").none(t)
	s.clear(t)
	s.helm(t, "rollback", "postern", "1", "--wait", "--timeout", "120s")
}

func (s *stories) awaitInjectors(t *testing.T) {
	t.Helper()
	s.Kubectl(t, "--namespace", system, "rollout", "status", "deployment", "--selector", injectors, "--timeout", "60s")
}

// noInjector: what was created without one is reported, each of them, until it is gone.
func (s *stories) noInjector(t *testing.T) {
	before := s.podsOf(t, "shop", runningPods)
	s.Kubectl(t, "--namespace", system, "scale", "deployment", "--selector", injectors, "--replicas", "0")
	s.Kubectl(t, "--namespace", system, "wait", "--for=delete", "pod", "--selector", injectors, "--timeout", "60s")
	c := &created{}
	pod := unscheduled(t)
	for range 20 {
		s.create(pod, c)
	}
	if c.pods != 20 || len(c.missed) != 20 || len(c.failures) > 0 {
		t.Errorf("without an injector %d of 20 pods were created, %d of them not injected: %v", c.pods, len(c.missed), c.failures)
	}
	s.Kubectl(t, "--namespace", system, "scale", "deployment", "--selector", injectors, "--replicas", "1")
	s.awaitInjectors(t)
	took := s.reports(t, "shop", len(c.missed))
	fmt.Printf("no injector: %d pods created, the watchdog reports %d of them %v after it was back\n", c.pods, len(c.missed), took.Round(100*time.Millisecond))
	if err := cluster.Within(30*time.Second, func() error {
		about := s.Kubectl(t, "--namespace", "shop", "get", "events", "--field-selector", "reason=NotInjected", "--output", "jsonpath={.items[*].involvedObject.uid}")
		for _, uid := range c.missed {
			if !strings.Contains(about, uid) {
				return fmt.Errorf("no Event about %s", uid)
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	s.clear(t)
	s.reports(t, "shop", 0)
	untouched(t, before, s.podsOf(t, "shop", runningPods))
}
