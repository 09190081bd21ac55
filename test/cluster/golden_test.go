//go:build linux

package cluster_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/postern-proxy/postern/test/tools"
)

// elsewhere are the golden pods that cannot be as they are here, and why.
var elsewhere = map[string]string{
	"both":                 "has other defaults for the whole chart",
	"nothing-set":          "has other defaults for the whole chart",
	"ephemeral-containers": "has what the API server allows in no new pod, for it is added later",
	"kubernetes-1.28":      "is another version of Kubernetes",
	"kubernetes-unknown":   "is another version of Kubernetes",
}

// golden sends every golden pod through the real webhook, as a dry run: the API
// server accepts what the patch makes of it, or the webhook's refusal is the golden one.
func (s *stories) golden(t *testing.T) {
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	inputs, err := filepath.Glob(filepath.Join(root, "agent", "webhook", "testdata", "*", "input.yaml"))
	if err != nil || len(inputs) < 40 {
		t.Fatalf("%d golden pods: %v", len(inputs), err)
	}
	// Pods that the goldens describe may do what the strictest standard forbids.
	for namespace, inject := range map[string]string{"golden": "", "golden-labelled": `, labels: {postern.dev/inject: "true"}`} {
		s.Apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: "+namespace+inject+"}}")
	}
	for _, namespace := range []string{"golden", "golden-labelled"} { // the controllers make it
		s.Kubectl(t, "--namespace", namespace, "wait", "--for=create", "serviceaccount/default", "--timeout", "30s")
	}
	counts := map[string]int{}
	for _, input := range inputs {
		dir := filepath.Dir(input)
		name := filepath.Base(dir)
		if why, ok := elsewhere[name]; ok {
			fmt.Printf("golden pod %s: left out, it %s\n", name, why)
			counts["left out"]++
			continue
		}
		t.Run(name, func(t *testing.T) { counts[s.goldenPod(t, dir)]++ })
	}
	fmt.Printf("golden pods through the webhook: %v\n", counts)
	log, err := os.ReadFile(filepath.Join(s.Dir, "log", "kube-apiserver.log"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(log), "Failed to set admission audit annotation") {
		t.Error("the API server complains of the webhook's answers to a second question")
	}
}

func readYAML(t *testing.T, file string, to any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err == nil {
		err = yaml.Unmarshal(text, to)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// shape is what of a pod shows what the webhook did.
type shape struct {
	Metadata struct{ Annotations, Labels map[string]string }
	Spec     struct {
		ServiceAccountName         string
		InitContainers, Containers []struct{ Name string }
	}
	Message string
}

func (p shape) names() (names []string) {
	for _, c := range append(p.Spec.InitContainers, p.Spec.Containers...) {
		names = append(names, c.Name)
	}
	return names
}

func (s *stories) goldenPod(t *testing.T, dir string) string {
	t.Helper()
	namespace := "golden"
	if place := filepath.Join(dir, "place.yaml"); exists(place) {
		var p struct{ NamespaceLabels map[string]string }
		readYAML(t, place, &p)
		if len(p.NamespaceLabels) > 0 {
			namespace = "golden-labelled"
		}
	}
	var want shape
	readYAML(t, filepath.Join(dir, "expected.yaml"), &want)
	text, err := os.ReadFile(filepath.Join(dir, "input.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	pod, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	report, err := os.ReadFile(filepath.Join(dir, "report.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if account := want.Spec.ServiceAccountName; account != "" {
		s.Apply(t, "{apiVersion: v1, kind: ServiceAccount, metadata: {name: "+account+", namespace: "+namespace+"}}")
	}
	status, body, err := s.post(namespace, "dryRun=All", pod)
	if err != nil {
		t.Fatal(err)
	}
	var got shape
	if err := json.Unmarshal(body, &got); err != nil {
		t.Fatal(err)
	}
	if said, ok := strings.CutPrefix(string(report), "refused: "); ok {
		_, text, _ := strings.Cut(said, "\n")
		if status != http.StatusUnprocessableEntity || !strings.Contains(got.Message, strings.TrimSpace(text)) {
			t.Errorf("HTTP %d %s, want the refusal\n%s", status, got.Message, text)
		}
		return "refused"
	}
	if status != http.StatusCreated {
		t.Fatalf("HTTP %d: %s", status, got.Message)
	}
	if fmt.Sprint(got.names()) != fmt.Sprint(want.names()) {
		t.Errorf("the containers are %v, want %v", got.names(), want.names())
	}
	const key = "postern.dev/status"
	expected := strings.ReplaceAll(want.Metadata.Annotations[key], "px_shop_", "px_"+namespace+"_")
	if got.Metadata.Annotations[key] != expected {
		t.Errorf("%s is %s, want %s", key, got.Metadata.Annotations[key], expected)
	}
	kind, _, _ := strings.Cut(strings.TrimSpace(string(report)), ":")
	kind, _, _ = strings.Cut(kind, "\n")
	return kind
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}
