//go:build linux

package cluster_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/test/cluster"
	"github.com/postern-proxy/postern/test/tools"
)

const (
	firstKey  = "sk-proj-first-0123456789abcdefghijklmnop"
	secondKey = "sk-proj-second-0123456789abcdefghijklmno"
	keyPath   = "postern/provider-keys/prod/px_shop_checkout/openai"
)

// world is a cluster whose Vault and provider know the shop's key.
type world struct {
	*cluster.Cluster
	vault    *cluster.Vault
	provider *cluster.Provider
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Cluster: cluster.Start(t)}
	var err error
	if w.vault, err = w.StartVault(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.provider = w.StartProvider(t, []string{firstKey}, "api.openai.com", "api.anthropic.com")
	policy, err := w.Command(t.Context(), agenttest.Binary(t), "policy", "--role", "agent", "--environment", "prod", "--accessor", w.vault.Accessor).Output()
	if err != nil {
		t.Fatal(err)
	}
	w.vault.Policy(t, "postern-agent", string(policy))
	w.vault.Role(t, "postern-agent", "*", "*", "postern-agent")
	w.vault.KVPut(t, keyPath, map[string]string{"api_key": firstKey})
	w.Apply(t, `
apiVersion: v1
kind: Namespace
metadata: {name: shop`+w.standards()+`}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: vault-ca, namespace: shop}
data: {ca.crt: `+strconv.Quote(string(w.CA.PEM))+`}
`)
	return w
}

// less says that a part is not shown here, because the level is too low for it.
func (w *world) less(t *testing.T, part string) {
	t.Helper()
	reason := fmt.Errorf("level %v ran: %s", w.Level, w.Why)
	if w.Lacks {
		agenttest.NotRun(t, part, reason)
		return
	}
	agenttest.FellBack(t, part, reason)
}

// lacks says the same where the machine has no image builder.
func lacks(t *testing.T, part string, missing error) {
	t.Helper()
	if os.Geteuid() != 0 { // nothing can be installed then, nor built
		agenttest.FellBack(t, part, missing)
		return
	}
	agenttest.NotRun(t, part, missing)
}

// standards are the strictest that the level allows: a pod in the node's network is none of the restricted ones.
func (w *world) standards() string {
	if w.Level == cluster.HostNetwork {
		return ""
	}
	return ", labels: {pod-security.kubernetes.io/enforce: restricted}"
}

// loadImages builds the images that the example names, and loads them. The
// error says what the machine lacks for it.
func (w *world) loadImages(t *testing.T) error {
	t.Helper()
	agent, err := agentImage()
	if err != nil {
		t.Fatal(err)
	}
	if agent.missing != nil {
		return agent.missing
	}
	busybox, err := tools.Busybox.Find()
	if err != nil {
		return err
	}
	app := filepath.Join(t.TempDir(), "app.tar")
	links := map[string]string{}
	for _, name := range []string{"sh", "wget", "sleep", "echo"} {
		links["/bin/"+name] = "busybox"
	}
	if err := (cluster.Archive{Name: "busybox:1.36", Files: map[string]string{"/bin/busybox": busybox}, Links: links}).Write(app); err != nil {
		t.Fatal(err)
	}
	for _, archive := range []string{agent.archive, app} {
		if err := w.Load(t.Context(), archive); err != nil {
			t.Fatal(err)
		}
	}
	return nil
}

// example is the example's manifest with what differs here: the provider's
// certificate is the cluster's, keys are looked at every second, and below Full
// names are the pod's own.
func (w *world) example(t *testing.T) string {
	t.Helper()
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "examples", "kubernetes", "sidecar.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s := string(text)
	replace := func(old, new string) {
		t.Helper()
		if strings.Count(s, old) != 1 {
			t.Fatalf("the example has %q %d times", old, strings.Count(s, old))
		}
		s = strings.Replace(s, old, new, 1)
	}
	ca := "                    ca_file: /etc/postern/vault/ca.crt\n"
	replace(ca, ca+"                    poll: 1s\n")
	replace("                ca: {state_dir: /run/postern/ca}\n", "                ca: {state_dir: /run/postern/ca}\n                egress: {ca_file: /etc/postern/vault/ca.crt}\n")
	account := "      serviceAccountName: checkout\n"
	if w.Level < cluster.Full {
		replace(account, account+"      hostAliases: [{ip: "+w.IP+", hostnames: [vault.vault.svc, api.openai.com]}]\n")
	}
	if w.Level == cluster.HostNetwork {
		replace(account, account+"      hostNetwork: true\n")
	}
	return s
}

// token is one of a ServiceAccount, which is made if there is none.
func (w *world) token(t *testing.T, namespace, account, audience string) string {
	t.Helper()
	w.Apply(t, fmt.Sprintf("{apiVersion: v1, kind: ServiceAccount, metadata: {name: %s, namespace: %s}}", account, namespace))
	return w.Kubectl(t, "create", "token", account, "--namespace", namespace, "--audience", audience, "--duration", "1h")
}

// pod is what the tests look at in the example's pod.
type pod struct {
	Metadata struct{ Name, UID, DeletionTimestamp string }
	Status   struct {
		PodIP                                    string
		Conditions                               []struct{ Type, Status, LastTransitionTime string }
		InitContainerStatuses, ContainerStatuses []struct {
			Name         string
			RestartCount int
			Started      bool
		}
	}
}

func (w *world) pod(t *testing.T) pod {
	t.Helper()
	var list struct{ Items []pod }
	out := w.Kubectl(t, "--namespace", "shop", "get", "pods", "--selector", "app.kubernetes.io/name=checkout", "--output", "json")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 1 {
		t.Fatalf("%d pods, want one", len(list.Items))
	}
	return list.Items[0]
}

// since is the time between two conditions; Kubernetes counts whole seconds.
func (p pod) since(t *testing.T, from, to string) time.Duration {
	t.Helper()
	at := map[string]time.Time{}
	for _, c := range p.Status.Conditions {
		when, err := time.Parse(time.RFC3339, c.LastTransitionTime)
		if err != nil {
			t.Fatal(err)
		}
		at[c.Type] = when
	}
	return at[to].Sub(at[from])
}

var residentBytes = regexp.MustCompile(`(?m)^process_resident_memory_bytes (\S+)$`)

// data is how much of the agent's resident memory is not its program's file,
// which is read anew from there whenever memory is short.
func (w *world) data(t *testing.T) float64 {
	t.Helper()
	pids := w.Pids("postern")
	if len(pids) == 0 {
		t.Fatal("no agent runs")
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pids[0]))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^RssAnon:\s+(\d+) kB$`).FindSubmatch(status)
	if m == nil {
		t.Fatalf("no RssAnon in:\n%s", status)
	}
	kilobytes, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return kilobytes * 1024
}

// resident is the agent's own account of its memory, from its admin listener.
func (w *world) resident(t *testing.T, admin string) float64 {
	t.Helper()
	client, err := w.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	m := residentBytes.FindSubmatch(body.Bytes())
	if m == nil {
		t.Fatalf("no process_resident_memory_bytes in:\n%s", body.String())
	}
	bytes, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}
