//go:build linux

package cluster_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/test/cluster"
	"github.com/postern-proxy/postern/test/tools"
)

const system = "postern-system" // where the chart is installed

// stories is a cluster in which the chart is installed.
type stories struct {
	*world
	chart, values string       // the chart, and what differs here
	server        string       // the API server's URL
	client        *http.Client // the administrator's
	key           string       // what Vault's newest version is
}

func newStories(t *testing.T, w *world) *stories {
	t.Helper()
	client, err := w.Client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	s := &stories{world: w, key: firstKey, client: client, server: w.Kubectl(t, "config", "view", "--output", "jsonpath={.clusters[0].cluster.server}")}
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	s.chart, s.values = filepath.Join(root, "charts", "postern"), filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(s.values, []byte(`
vault: {address: "https://vault.vault.svc:8200", role: postern-agent}
injection: {vaultCaConfigMap: vault-ca, extraRootsConfigMap: vault-ca}
injector: {watch: 1s}
test: {namespace: shop, serviceAccount: checkout}
`+s.serverValues(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	w.vault.Must(t, "PUT", "sys/audit/file", map[string]any{"type": "file", "options": map[string]string{"file_path": s.vaultAudit()}})
	return s
}

func (s *stories) vaultAudit() string { return filepath.Join(s.Dir, "vault", "audit.log") }

// logins are those that Vault was asked for since the stories began.
func (s *stories) logins(t *testing.T) (n int) {
	t.Helper()
	text, err := os.ReadFile(s.vaultAudit())
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		var e struct {
			Type    string
			Request struct{ Path string }
		}
		if json.Unmarshal(line, &e) == nil && e.Type == "request" && e.Request.Path == "auth/kubernetes/login" {
			n++
		}
	}
	return n
}

func (s *stories) helm(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.TryHelm(t.Context(), append(args, "--namespace", system)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// loadInjection loads the images that the stories need beside the agent's.
func (w *world) loadInjection(t *testing.T) error {
	t.Helper()
	if missing := w.loadImages(t); missing != nil {
		return missing
	}
	injector, err := injectorImage()
	if err != nil {
		t.Fatal(err)
	}
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", filepath.Join(dir, "client"), "./test/cluster/client")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	busybox, err := tools.Busybox.Find()
	if err != nil {
		return err
	}
	client := filepath.Join(dir, "client.tar")
	if err := (cluster.Archive{
		Name:  "client:1",
		Files: map[string]string{"/bin/client": filepath.Join(dir, "client"), "/bin/busybox": busybox},
		Links: map[string]string{"/bin/sh": "busybox", "/bin/env": "busybox", "/bin/curl": "client"},
	}).Write(client); err != nil {
		t.Fatal(err)
	}
	for _, archive := range []string{client, injector} {
		if err := w.Load(t.Context(), archive); err != nil {
			t.Fatal(err)
		}
	}
	return nil
}

// template is a labelled pod's that runs the client with these arguments.
func template(account string, annotations map[string]string, args ...string) map[string]any {
	return map[string]any{
		"metadata": map[string]any{
			"labels":      map[string]string{"postern.dev/inject": "true", "app": args[1]},
			"annotations": annotations,
		},
		"spec": map[string]any{
			"serviceAccountName":           account,
			"automountServiceAccountToken": false,
			"securityContext":              map[string]any{"runAsNonRoot": true, "seccompProfile": map[string]string{"type": "RuntimeDefault"}},
			"containers": []any{map[string]any{
				"name": "app", "image": "client:1", "command": append([]string{"/bin/client"}, args...),
				"securityContext": map[string]any{
					"runAsUser": 1000, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
					"capabilities": map[string]any{"drop": []string{"ALL"}},
				},
			}},
		},
	}
}

func finite(template map[string]any) map[string]any {
	template["spec"].(map[string]any)["restartPolicy"] = "Never"
	return template
}

func (w *world) deploy(t *testing.T, name string, template map[string]any) {
	t.Helper()
	w.object(t, "apps/v1", "Deployment", name, map[string]any{
		"selector": map[string]any{"matchLabels": map[string]string{"app": name}}, "template": template,
	})
}

func (w *world) object(t *testing.T, version, kind, name string, spec map[string]any) {
	t.Helper()
	text, err := json.Marshal(map[string]any{
		"apiVersion": version, "kind": kind, "metadata": map[string]string{"name": name, "namespace": "shop"}, "spec": spec,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Apply(t, string(text))
}

// podsOf lists pods.
func (w *world) podsOf(t *testing.T, namespace, selector string) []pod {
	t.Helper()
	var list struct{ Items []pod }
	if err := json.Unmarshal([]byte(w.Kubectl(t, "--namespace", namespace, "get", "pods", "--selector", selector, "--output", "json")), &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// untouched: the pods are still these, and nothing in them was started again meanwhile.
func untouched(t *testing.T, before, after []pod) {
	t.Helper()
	restarts := map[string]int{}
	for _, p := range before {
		for _, s := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			restarts[p.Metadata.UID+s.Name] = s.RestartCount
		}
	}
	if len(after) != len(before) {
		t.Errorf("%d pods, before %d", len(after), len(before))
	}
	for _, p := range after {
		for _, s := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			if n, there := restarts[p.Metadata.UID+s.Name]; !there {
				t.Errorf("pod %s was not there before", p.Metadata.Name)
			} else if s.RestartCount != n {
				t.Errorf("pod %s: container %s was restarted %d times, before %d", p.Metadata.Name, s.Name, s.RestartCount, n)
			}
		}
	}
}

// post creates a pod as a client of the API server's does, and returns its answer.
func (s *stories) post(namespace, query string, object []byte) (status int, body []byte, err error) {
	resp, err := s.client.Post(s.server+"/api/v1/namespaces/"+namespace+"/pods?"+query, "application/json", bytes.NewReader(object))
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// missed is how many pods of the namespace the injectors' watchdogs report, which all have to agree.
func (s *stories) missed(t *testing.T, namespace string) (int, error) {
	t.Helper()
	found := -1
	for _, p := range s.podsOf(t, system, "app.kubernetes.io/name=postern-injector") {
		resp, err := s.client.Get("http://" + net.JoinHostPort(p.Status.PodIP, "8080") + "/metrics")
		if err != nil {
			return 0, err
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return 0, err
		}
		looked, n := false, 0
		for line := range strings.Lines(string(text)) {
			if value, ok := strings.CutPrefix(line, `postern_injector_missed_pods{namespace="`+namespace+`"} `); ok {
				if n, err = strconv.Atoi(strings.TrimSpace(value)); err != nil {
					return 0, err
				}
			}
			looked = looked || strings.HasPrefix(line, "postern_injector_watchdog_timestamp_seconds 1.")
		}
		if !looked {
			return 0, fmt.Errorf("%s has not looked yet", p.Metadata.Name)
		}
		if found >= 0 && found != n {
			return 0, fmt.Errorf("one says %d, another %d", found, n)
		}
		found = n
	}
	if found < 0 {
		return 0, errors.New("no injector runs")
	}
	return found, nil
}

// reports waits until the watchdogs report so many pods.
func (s *stories) reports(t *testing.T, namespace string, want int) time.Duration {
	t.Helper()
	began := time.Now()
	if err := cluster.Within(time.Minute, func() error {
		n, err := s.missed(t, namespace)
		if err == nil && n != want {
			err = fmt.Errorf("%d pods are reported", n)
		}
		return err
	}); err != nil {
		t.Fatalf("the watchdog does not report %d pods: %v", want, err)
	}
	return time.Since(began)
}

// holdNoKey looks for keys in the environment and files of every process of this name.
func (w *world) holdNoKey(t *testing.T, program string, keys ...string) {
	t.Helper()
	looked := 0
	for _, pid := range w.Pids(program) {
		dir := fmt.Sprintf("/proc/%d/", pid)
		found, err := search(dir, keys)
		if _, gone := os.Stat(dir); gone != nil {
			continue // a probe
		}
		if err != nil {
			t.Fatalf("looking through %s: %v", program, err)
		}
		looked++
		for _, what := range found {
			t.Errorf("%s: a key stands in %s", program, what)
		}
	}
	if looked == 0 {
		t.Fatalf("no %s runs", program)
	}
}

// search looks for keys in what one process has.
func search(dir string, keys []string) (found []string, err error) {
	look := func(path string) error {
		content, err := os.ReadFile(path)
		for _, key := range keys {
			if bytes.Contains(content, []byte(key)) {
				found = append(found, path)
			}
		}
		return err
	}
	if err := look(dir + "environ"); err != nil {
		return nil, err
	}
	root := dir + "root/"
	return found, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path == root+"proc" || path == root+"sys" || path == root+"dev":
			return fs.SkipDir
		case !entry.Type().IsRegular():
			return nil
		}
		return look(path)
	})
}
