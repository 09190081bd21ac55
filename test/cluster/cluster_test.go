//go:build linux

package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/test/cluster"
)

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "postern-image-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	agenttest.Cleanup()
	os.RemoveAll(scratch)
	os.Exit(code)
}

// What the machine can run: pods whose agent is a native sidecar written out, or
// the agent as a process.
func TestCluster(t *testing.T) {
	w := newWorld(t)
	t.Run("Vault knows ServiceAccounts", w.knowsServiceAccounts)
	if w.Level < cluster.HostNetwork {
		w.less(t, "sidecar in a pod")
		t.Run("the agent as a process", w.asProcess)
		return
	}
	if missing := w.loadImages(t); missing != nil {
		lacks(t, "sidecar in a pod", missing)
		return
	}
	t.Run("sidecar", w.sidecar)
	t.Run("unbound ServiceAccount", w.unbound)
	if w.Level < cluster.Full {
		w.less(t, "Services and names")
	}
}

// What machines that allow less fall back to works too: without a node always,
// the levels between with POSTERN_E2E_LONG=1.
func TestLowerLevels(t *testing.T) {
	levels := []cluster.Level{cluster.ControlPlane}
	if os.Getenv("POSTERN_E2E_LONG") == "1" {
		levels = append(levels, cluster.HostNetwork, cluster.Pods)
	}
	for _, level := range levels {
		t.Run(level.String(), func(t *testing.T) {
			t.Setenv("POSTERN_CLUSTER_LEVEL", level.String())
			w := newWorld(t)
			if w.Level == cluster.ControlPlane {
				w.asProcess(t)
				return
			}
			if missing := w.loadImages(t); missing != nil {
				lacks(t, "sidecar at level "+level.String(), missing)
				return
			}
			w.sidecar(t)
		})
	}
}

// sidecar is the example's Deployment: the application's requests carry the key
// from Vault, which knows the pod by its ServiceAccount, and a new key is used
// without a restart.
func (w *world) sidecar(t *testing.T) {
	t.Cleanup(func() {
		if t.Failed() {
			w.explain(t)
		}
	})
	w.Apply(t, w.example(t))
	w.Kubectl(t, "--namespace", "shop", "rollout", "status", "deployment/checkout", "--timeout", "120s")
	w.provider.AwaitCall(t, 30*time.Second, "with the key", func(c cluster.Call) bool { return c.Key == firstKey })
	before := w.pod(t)

	w.provider.Accept(firstKey, secondKey)
	written := time.Now()
	w.vault.KVPut(t, keyPath, map[string]string{"api_key": secondKey})
	call := w.provider.AwaitCall(t, 30*time.Second, "with the new key", func(c cluster.Call) bool { return c.Key == secondKey })
	fmt.Printf("rotation: the first request with the new key %v after it was written\n", call.At.Sub(written).Round(10*time.Millisecond))
	// The application makes one request a second, which is part of the time.
	if took := call.At.Sub(written); took > 5*time.Second {
		t.Errorf("the new key was used after %v", took)
	}
	// And it stays: the next request has it too.
	w.provider.AwaitCall(t, 10*time.Second, "after that", func(c cluster.Call) bool { return c.At.After(call.At) && c.Key == secondKey })
	for _, c := range w.provider.Calls() {
		if c.Status != http.StatusOK {
			t.Errorf("a request had status %d", c.Status)
		}
	}

	after := w.pod(t)
	if after.Metadata.UID != before.Metadata.UID {
		t.Errorf("another pod: %s, before %s", after.Metadata.UID, before.Metadata.UID)
	}
	for _, s := range append(after.Status.InitContainerStatuses, after.Status.ContainerStatuses...) {
		if s.RestartCount != 0 {
			t.Errorf("container %s was restarted %d times", s.Name, s.RestartCount)
		}
	}
	log := w.Kubectl(t, "--namespace", "shop", "logs", "deployment/checkout", "--container", "app")
	if !strings.Contains(log, "Hello") || strings.Contains(log, "no answer") {
		t.Errorf("the application's log:\n%s", log)
	}
	everything := w.Kubectl(t, "--namespace", "shop", "get", "all,configmap,secret,events", "--output", "yaml") +
		w.Kubectl(t, "--namespace", "shop", "logs", "deployment/checkout", "--container", "postern") + log
	for _, key := range []string{firstKey, secondKey} {
		if strings.Contains(everything, key) {
			t.Error("a key stands in what the cluster shows of the pod")
		}
	}
	fmt.Printf("pod: ready %v after it was scheduled\n", after.since(t, "PodScheduled", "Ready"))
	rss := w.resident(t, net.JoinHostPort(after.Status.PodIP, "8701"))
	fmt.Printf("sidecar: %.1f MB resident, %.1f MB of them its data and the rest its program\n", rss/1e6, w.data(t)/1e6)
	if rss > 64<<20 {
		t.Errorf("%v bytes resident", rss)
	}
	w.survivesVault(t)
	w.survivesItsAgent(t, after)
	w.stopsInTime(t)
}

// survivesVault: without Vault the key goes on serving.
func (w *world) survivesVault(t *testing.T) {
	t.Helper()
	w.vault.Stop()
	stopped := time.Now()
	// After more than a poll, so that the agent has noticed.
	w.provider.AwaitCall(t, 10*time.Second, "long after Vault was gone", func(c cluster.Call) bool {
		return c.Key == secondKey && c.Status == http.StatusOK && c.At.Sub(stopped) > 3*time.Second
	})
	if err := w.vault.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// survivesItsAgent kills the agent under the application: Kubernetes starts it
// again, it fetches the key again, and nothing else is restarted.
func (w *world) survivesItsAgent(t *testing.T, before pod) {
	t.Helper()
	killed := time.Now()
	for _, pid := range w.Pids("postern") {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if err := cluster.Within(time.Minute, func() error {
		if s := w.pod(t).Status.InitContainerStatuses; s[0].RestartCount != 1 || !s[0].Started {
			return fmt.Errorf("the agent: %+v", s[0])
		}
		return nil
	}); err != nil {
		t.Fatalf("not started again: %v", err)
	}
	up := time.Now()
	call := w.provider.AwaitCall(t, 30*time.Second, "after the agent was started again", func(c cluster.Call) bool { return c.At.After(up) })
	fmt.Printf("agent killed: the application was answered again after %v\n", call.At.Sub(killed).Round(10*time.Millisecond))
	after := w.pod(t)
	if after.Metadata.UID != before.Metadata.UID {
		t.Error("another pod")
	}
	for _, s := range after.Status.ContainerStatuses {
		if s.RestartCount != 0 {
			t.Errorf("container %s was restarted too", s.Name)
		}
	}
}

// explain logs what the cluster has to say about the pods.
func (w *world) explain(t *testing.T) {
	for _, args := range [][]string{
		{"describe", "pods"},
		{"logs", "--selector", "app.kubernetes.io/name=checkout", "--all-containers", "--prefix", "--tail", "20"},
	} {
		out, err := w.TryKubectl(context.Background(), "", append([]string{"--namespace", "shop"}, args...)...)
		t.Logf("%s %v", out, err)
	}
}

// stopsInTime deletes the Deployment: the pod is gone well before Kubernetes would kill it.
func (w *world) stopsInTime(t *testing.T) {
	t.Helper()
	w.Kubectl(t, "--namespace", "shop", "delete", "deployment/checkout", "--timeout", "60s")
	w.Kubectl(t, "--namespace", "shop", "wait", "--for=delete", "pod", "--selector", "app.kubernetes.io/name=checkout", "--timeout", "60s")
}

// unbound is the same Deployment where no role of Vault's names its
// ServiceAccount: the application does not start, and the agent says why.
func (w *world) unbound(t *testing.T) {
	t.Cleanup(func() {
		if t.Failed() {
			w.explain(t)
		}
	})
	w.vault.Role(t, "postern-agent", "other", "*", "postern-agent")
	before := len(w.provider.Calls())
	w.Apply(t, w.example(t))
	var log string
	if err := cluster.Within(time.Minute, func() error {
		var err error
		log, err = w.TryKubectl(t.Context(), "", "--namespace", "shop", "logs", "deployment/checkout", "--container", "postern")
		if err == nil && !strings.Contains(log, "not authorized") {
			err = errors.New(log)
		}
		return err
	}); err != nil {
		t.Fatalf("the agent does not say why it cannot log in: %v", err)
	}
	pod := w.pod(t)
	for _, c := range pod.Status.Conditions {
		if c.Type == "Ready" && c.Status != "False" {
			t.Errorf("the pod's condition Ready is %s", c.Status)
		}
	}
	for _, s := range pod.Status.ContainerStatuses {
		if s.Started {
			t.Error("the application was started")
		}
	}
	if n := len(w.provider.Calls()) - before; n > 0 {
		t.Errorf("%d requests reached the provider", n)
	}
	// And once the role names it, the pod comes up by itself.
	w.vault.Role(t, "postern-agent", "shop", "checkout", "postern-agent")
	w.Kubectl(t, "--namespace", "shop", "rollout", "status", "deployment/checkout", "--timeout", "120s")
	if s := w.pod(t).Status.InitContainerStatuses; len(s) != 1 || s[0].RestartCount != 0 {
		t.Errorf("the agent was restarted: %+v", s)
	}
	w.stopsInTime(t)
}

// knowsServiceAccounts: Vault, which asks the API server whose a token is, lets
// in whom a role names and nobody else.
func (w *world) knowsServiceAccounts(t *testing.T) {
	defer w.vault.Role(t, "postern-agent", "*", "*", "postern-agent")
	w.vault.Role(t, "postern-agent", "other", "*", "postern-agent")
	token := strings.TrimSpace(w.token(t, "shop", "checkout", "vault"))
	for audience, token := range map[string]string{"vault": token, "another": strings.TrimSpace(w.token(t, "shop", "checkout", "another"))} {
		if _, err := w.vault.Do(t.Context(), "POST", "auth/kubernetes/login", map[string]any{"role": "postern-agent", "jwt": token}); err == nil {
			t.Errorf("a token with audience %s of a ServiceAccount that is not bound logs in", audience)
		}
	}
	w.vault.Role(t, "postern-agent", "shop", "checkout", "postern-agent")
	if _, err := w.vault.Do(t.Context(), "POST", "auth/kubernetes/login", map[string]any{"role": "postern-agent", "jwt": token}); err != nil {
		t.Errorf("a bound one: %v", err)
	}
}

// asProcess shows what can be shown without pods: the agent logs in with a
// ServiceAccount's token that the API server gave out, and attaches the key.
func (w *world) asProcess(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"token": w.token(t, "shop", "checkout", "vault"), "ca.crt": string(w.CA.PEM)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	address := net.JoinHostPort(w.IP, w.provider.Port())
	agent := agenttest.Start(t, dir, `
version: 1
environment: prod
proxy_id: px_shop_checkout
listen: {proxy: "127.0.0.1:0", admin: "127.0.0.1:0"}
store:
  vault:
    address: `+w.vault.Address+`
    ca_file: ca.crt
    poll: 1s
    auth:
      kubernetes: {role: postern-agent, token_file: token}
providers:
  - {name: openai, hosts: ["`+address+`"], base_url: "https://`+address+`", ca_file: ca.crt}
`)
	ask := func() {
		resp, err := http.Post("http://"+agent.Proxy+"/openai/v1/chat/completions", "application/json", strings.NewReader(`{"model": "gpt-5-nano", "messages": []}`))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
			t.Fatalf("HTTP %d: %s", resp.StatusCode, body)
		}
	}
	agent.Ready(t)
	ask()
	w.provider.AwaitCall(t, time.Second, "with the key", func(c cluster.Call) bool { return c.Key == firstKey })
	w.provider.Accept(firstKey, secondKey)
	w.vault.KVPut(t, keyPath, map[string]string{"api_key": secondKey})
	deadline := time.Now().Add(20 * time.Second)
	for ask(); w.provider.Calls()[len(w.provider.Calls())-1].Key != secondKey; ask() {
		if time.Now().After(deadline) {
			t.Fatal("the new key is not used")
		}
		time.Sleep(20 * time.Millisecond) // the client's own pace
	}
}
