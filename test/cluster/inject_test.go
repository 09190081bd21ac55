//go:build linux

package cluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/test/cluster"
)

// The chart on a cluster: labelled pods are given the agent, and their requests the key.
func TestInjection(t *testing.T) {
	w := newWorld(t)
	if w.Level < cluster.Full {
		w.less(t, "injection by the chart")
		return
	}
	if missing := w.loadInjection(t); missing != nil {
		lacks(t, "injection by the chart", missing)
		return
	}
	w.vault.Role(t, "postern-agent", "shop", "checkout", "postern-agent")
	w.Apply(t, `
{apiVersion: v1, kind: Namespace, metadata: {name: `+system+`, labels: {pod-security.kubernetes.io/enforce: restricted}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: checkout, namespace: shop}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: stranger, namespace: shop}}
`)
	s := newStories(t, w)
	t.Cleanup(func() {
		if t.Failed() {
			s.tell(t)
		}
	})
	began := time.Now()
	s.helm(t, "install", "postern", s.chart, "--values", s.values, "--wait", "--timeout", "120s")
	fmt.Printf("helm install --wait: %v\n", time.Since(began).Round(100*time.Millisecond))
	for _, story := range []struct {
		name string
		tell func(*testing.T)
	}{
		{"workloads", s.workloads},
		{"a new key", s.newKey},
		{"the server makes a key", s.managed},
		{"agents killed under load", s.agentsKilled},
		{"ServiceAccount that is not bound", s.stranger},
		{"helm test", s.helmTest},
		{"examples", s.examples},
		{"upgrade and rollback", s.upgrade},
		{"injectors end under load", s.injectorsEnd},
		{"certificates expired and made anew", s.certificates},
		{"no injector", s.noInjector},
		{"golden pods", s.golden},
	} {
		if !t.Run(story.name, story.tell) {
			return
		}
	}
}

// tell logs what the cluster has to say.
func (s *stories) tell(t *testing.T) {
	for _, args := range [][]string{
		{"get", "pods", "--all-namespaces", "--output", "wide"},
		{"--namespace", "shop", "get", "events"},
		{"--namespace", "shop", "logs", "--selector", "postern.dev/injected=true", "--all-containers", "--prefix", "--tail", "8", "--max-log-requests", "40"},
		{"--namespace", system, "logs", "--selector", "app.kubernetes.io/name=postern-injector", "--prefix", "--tail", "30"},
	} {
		out, err := s.TryKubectl(context.WithoutCancel(t.Context()), "", args...)
		t.Logf("%s %v", out, err)
	}
}

// by is a request of this client with this key that was answered.
func by(client, key string) func(cluster.Call) bool {
	return func(c cluster.Call) bool { return c.Client == client && c.Key == key && c.Status == http.StatusOK }
}

var forwardMode = map[string]string{"postern.dev/mode": "forward"}

// running are the applications that go on while the stories are told: by route,
// by the injected proxy variables, and one that makes a request an hour.
var running = []string{"route", "forward", "idle"}

const runningPods = "app in (route,forward,idle)"

// agentConfig has each key looked at every second. Only forward mode has a place for the CA's certificate.
const agentConfig = `
    version: 1
    environment: prod
    proxy_id: px_shop_checkout
    listen: {proxy: "127.0.0.1:8700", admin: "0.0.0.0:8701"}
    egress: {ca_file: /etc/postern/roots/ca.crt}
    store:
      vault:
        address: https://vault.vault.svc:8200
        ca_file: /etc/postern/vault-ca/ca.crt
        poll: 1s
        auth:
          kubernetes: {role: postern-agent, token_file: /var/run/secrets/postern/token}
    providers: [{name: openai}]
`

// workloads: Deployments, a Job and a CronJob's, the last two with what the chart's defaults give.
func (s *stories) workloads(t *testing.T) {
	s.Apply(t, `
apiVersion: v1
kind: ConfigMap
metadata: {name: postern, namespace: shop}
data:
  postern.yaml: |`+agentConfig+`    ca: {state_dir: /run/postern/ca}
  forward.yaml: |`+agentConfig+`    ca: {dir: /run/postern-ca, state_dir: /run/postern/ca}
`)
	routes := map[string]string{"postern.dev/config-map": "postern"}
	s.deploy(t, "route", template("checkout", routes, "-as", "route", "-every", "50ms"))
	s.deploy(t, "forward", template("checkout", map[string]string{"postern.dev/mode": "forward", "postern.dev/config-map": "postern/forward.yaml"}, "-as", "forward", "-every", "50ms"))
	s.deploy(t, "idle", template("checkout", routes, "-as", "idle", "-every", "1h"))
	s.object(t, "batch/v1", "Job", "job", map[string]any{"backoffLimit": 0, "template": finite(template("checkout", forwardMode, "-as", "job", "-n", "3"))})
	s.object(t, "batch/v1", "CronJob", "nightly", map[string]any{
		"schedule": "0 3 * * *",
		"jobTemplate": map[string]any{"spec": map[string]any{
			"backoffLimit": 0, "template": finite(template("checkout", nil, "-as", "nightly", "-n", "3")),
		}},
	})
	s.Kubectl(t, "--namespace", "shop", "create", "job", "nightly-now", "--from", "cronjob/nightly")
	for _, name := range running {
		s.Kubectl(t, "--namespace", "shop", "rollout", "status", "deployment/"+name, "--timeout", "120s")
		for _, p := range s.podsOf(t, "shop", "app="+name) {
			fmt.Printf("pod %s: ready %v after it was scheduled\n", name, p.since(t, "PodScheduled", "Ready"))
		}
	}
	for _, name := range []string{"job", "nightly-now"} {
		s.Kubectl(t, "--namespace", "shop", "wait", "--for=condition=Complete", "job/"+name, "--timeout", "120s")
	}
	for _, name := range append([]string{"job", "nightly"}, running...) {
		s.provider.AwaitCall(t, 30*time.Second, "of "+name+" with the key", by(name, firstKey))
		for _, p := range s.podsOf(t, "shop", "app="+name) {
			if len(p.Status.InitContainerStatuses) != 1 || p.Status.InitContainerStatuses[0].Name != "postern" {
				t.Errorf("%s: no agent in %+v", name, p.Status)
			}
		}
	}
	for name, want := range map[string]string{"route": "OPENAI_BASE_URL=http://127.0.0.1:8700/openai/v1\n", "forward": "SSL_CERT_FILE=/run/postern-ca/bundle.pem\n"} {
		environment := s.Kubectl(t, "--namespace", "shop", "exec", "deployment/"+name, "--container", "app", "--", "env")
		if !strings.Contains(environment, want) || strings.Contains(environment, firstKey) {
			t.Errorf("the environment of %s, which should have %s", name, want)
		}
		if proxied := strings.Contains(environment, "HTTPS_PROXY=http://127.0.0.1:8700\n"); proxied != (name == "forward") {
			t.Errorf("%s: a proxy: %v", name, proxied)
		}
	}
	s.noKey(t, firstKey)
}

// noKey: neither what the cluster shows of the pods nor what is in them holds a key.
func (s *stories) noKey(t *testing.T, keys ...string) {
	t.Helper()
	shown := s.Kubectl(t, "get", "pods,jobs,cronjobs,deployments,configmaps,secrets,events", "--all-namespaces", "--output", "yaml")
	for _, key := range keys {
		if strings.Contains(shown, key) {
			t.Error("a key stands in what the cluster shows")
		}
	}
	s.holdNoKey(t, "client", keys...)
	s.holdNoKey(t, "postern", keys...)
}

// newKey: pods that run use it, no request fails, and nothing is started again.
func (s *stories) newKey(t *testing.T) {
	before := s.podsOf(t, "shop", runningPods)
	s.provider.Accept(firstKey, secondKey)
	s.vault.KVPut(t, keyPath, map[string]string{"api_key": secondKey})
	s.taken(t, time.Now(), secondKey, 5*time.Second) // 2 s are allowed; a machine may be busy with more than this
	untouched(t, before, s.podsOf(t, "shop", runningPods))
	s.noKey(t, firstKey, secondKey)
	for _, p := range s.podsOf(t, "shop", "app=idle") {
		rss := s.resident(t, net.JoinHostPort(p.Status.PodIP, "8701"))
		fmt.Printf("sidecar: %.1f MB resident in a pod that is idle\n", rss/1e6)
		if rss > 20e6 {
			t.Errorf("%v bytes resident in a pod that is idle", rss)
		}
	}
}

// taken waits until the applications' requests carry a key that was written, and
// looks whether one has failed.
func (s *stories) taken(t *testing.T, written time.Time, key string, limit time.Duration) {
	t.Helper()
	for _, name := range []string{"route", "forward"} {
		call := s.provider.AwaitCall(t, 30*time.Second, "of "+name+" with the new key", by(name, key))
		took := call.At.Sub(written)
		fmt.Printf("new key: used by %s %v after it was made (poll 1s)\n", name, took.Round(10*time.Millisecond))
		if took > limit {
			t.Errorf("%s used the new key after %v", name, took)
		}
	}
	s.key = key
	failed, calls := 0, s.provider.Calls()
	for _, c := range calls {
		if c.Status != http.StatusOK {
			failed++
		}
	}
	for _, name := range []string{"route", "forward"} {
		failed += s.failures(t, name)
	}
	fmt.Printf("new key: %d of %d requests failed\n", failed, len(calls))
	if failed > 0 {
		t.Errorf("%d requests failed", failed)
	}
}

// failures are the requests of an application that were not answered, as it tells.
func (s *stories) failures(t *testing.T, name string) int {
	t.Helper()
	return strings.Count(s.Kubectl(t, "--namespace", "shop", "logs", "deployment/"+name, "--container", "app"), "failed:")
}

// stranger: Vault's role does not name its ServiceAccount.
func (s *stories) stranger(t *testing.T) {
	before, began := s.logins(t), time.Now()
	s.deploy(t, "stranger", template("stranger", nil, "-as", "stranger"))
	if err := cluster.Within(time.Minute, func() error {
		log, err := s.TryKubectl(t.Context(), "", "--namespace", "shop", "logs", "deployment/stranger", "--container", "postern")
		if err == nil && !strings.Contains(log, "not authorized") {
			err = errors.New(log)
		}
		return err
	}); err != nil {
		t.Fatalf("the agent does not say why it cannot log in: %v", err)
	}
	pods := s.podsOf(t, "shop", "app=stranger")
	if len(pods) != 1 {
		t.Fatalf("%d pods", len(pods))
	}
	for _, c := range pods[0].Status.Conditions {
		if c.Type == "Ready" && c.Status != "False" {
			t.Error("the pod is ready")
		}
	}
	for _, c := range pods[0].Status.ContainerStatuses {
		if c.Started {
			t.Error("the application was started")
		}
	}
	reason := regexp.MustCompile(`waiting for keys: openai; openai: .*store\.vault\.auth\.kubernetes\.role "postern-agent" is not for this ServiceAccount: see its bound names`)
	if err := cluster.Within(time.Minute, func() error {
		events := s.Kubectl(t, "--namespace", "shop", "get", "events", "--field-selector", "reason=Unhealthy,involvedObject.name="+pods[0].Metadata.Name, "--output", "jsonpath={.items[*].message}")
		if !reason.MatchString(events) {
			return errors.New(events)
		}
		return nil
	}); err != nil {
		t.Errorf("no Event of the pod says what Vault says: %v", err)
	}
	<-time.After(10 * time.Second) // what is counted is what happens meanwhile
	n, took := s.logins(t)-before, time.Since(began)
	fmt.Printf("ServiceAccount that is not bound: %d logins in %v\n", n, took.Round(time.Second))
	if n == 0 || n > int(took.Seconds()) {
		t.Errorf("%d logins in %v, want one, and no more than one a second", n, took)
	}
	s.Kubectl(t, "--namespace", "shop", "delete", "deployment/stranger", "--timeout", "60s")
	for _, c := range s.provider.Calls() {
		if c.Client == "stranger" {
			t.Fatal("a request reached the provider")
		}
	}
}

// helmTest: `helm test` as it is, and with an image that makes a request.
func (s *stories) helmTest(t *testing.T) {
	s.helm(t, "test", "postern", "--timeout", "60s")
	s.helm(t, "upgrade", "postern", s.chart, "--values", s.values, "--set", "test.image=client:1", "--wait", "--timeout", "120s")
	if out := s.helm(t, "test", "postern", "--timeout", "60s"); !strings.Contains(out, "Succeeded") {
		t.Error(out)
	}
}

// upgrade: what runs stays as it is, whatever becomes of the injector, and no new pod is missed.
func (s *stories) upgrade(t *testing.T) {
	before, old := s.podsOf(t, "shop", runningPods), s.podsOf(t, system, injectors)
	s.stream(t, "upgrade and rollback of the chart", func() {
		s.helm(t, "upgrade", "postern", s.chart, "--values", s.values, "--set", "injector.logLevel=debug,injection.logLevel=debug", "--wait", "--timeout", "120s")
		for _, p := range s.podsOf(t, system, injectors) {
			for _, old := range old {
				if p.Metadata.UID == old.Metadata.UID && p.Metadata.DeletionTimestamp == "" {
					t.Errorf("the injector %s was not upgraded", p.Metadata.Name)
				}
			}
		}
		s.helm(t, "rollback", "postern", "1", "--wait", "--timeout", "120s")
	}).none(t)
	s.clear(t)
	untouched(t, before, s.podsOf(t, "shop", runningPods))
	after := time.Now()
	for _, name := range []string{"route", "forward"} {
		s.provider.AwaitCall(t, 10*time.Second, "of "+name+" after the rollback", func(c cluster.Call) bool { return by(name, s.key)(c) && c.At.After(after) })
	}
}

// unscheduled is a labelled pod that no node runs: it is there and costs nothing.
func unscheduled(t *testing.T) []byte {
	t.Helper()
	p := template("checkout", nil, "-as", "stream")
	p["apiVersion"], p["kind"] = "v1", "Pod"
	p["metadata"].(map[string]any)["generateName"] = "stream-"
	p["spec"].(map[string]any)["schedulerName"] = "nobody"
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
