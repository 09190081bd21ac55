package webhook

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/postern-proxy/postern/config"
)

var update = flag.Bool("update", false, "write the expected answers in testdata")

// Every folder of testdata is one pod: input.yaml goes in; expected.yaml is the
// pod with the patch applied (as it was where there is none); report.txt says
// what else there is to say. place.yaml, where there is one, changes the place
// and the defaults.
type where struct {
	NamespaceLabels map[string]string `json:"namespaceLabels"`
	Namespace       string            `json:"namespace"`
	Kubernetes      string            `json:"kubernetes"`
	Defaults        map[string]any    `json:"defaults"`
}

// canaries stand in the inputs as what must not be repeated anywhere.
var canaries = []string{"hunter2", "sk-proj-canarycanarycanarycanary"}

func TestGolden(t *testing.T) {
	folders, err := filepath.Glob("testdata/*/input.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(folders) < 40 {
		t.Errorf("%d pods are too few", len(folders))
	}
	for _, f := range folders {
		dir := filepath.Dir(f)
		t.Run(filepath.Base(dir), func(t *testing.T) { golden(t, dir) })
	}
}

func golden(t *testing.T, dir string) {
	input := read(t, dir, "input.yaml")
	raw, pod := parsePod(t, input)
	at, d := placeOf(t, dir)
	before, _ := json.Marshal(pod)
	res, err := Inject(pod, at, d)
	if after, _ := json.Marshal(pod); string(after) != string(before) {
		t.Error("the pod that went in was changed")
	}
	if again, errAgain := Inject(pod, at, d); !same(again, res) || fmt.Sprint(errAgain) != fmt.Sprint(err) {
		t.Error("asked twice, two answers")
	}
	patched := apply(t, raw, res.Patch)
	text, yerr := yaml.JSONToYAML(patched)
	if yerr != nil {
		t.Fatal(yerr)
	}
	said := report(res, err)
	compare(t, filepath.Join(dir, "expected.yaml"), string(text))
	compare(t, filepath.Join(dir, "report.txt"), said)
	encoded, _ := json.Marshal(res.Patch)
	for _, c := range canaries {
		if strings.Contains(string(encoded), c) || strings.Contains(said, c) {
			t.Errorf("the answer repeats %s", c)
		}
	}
	if err == nil && len(res.Patch) > 0 {
		checkInjected(t, patched, at, d)
	}
}

// checkInjected is what holds for every injected pod.
func checkInjected(t *testing.T, patched []byte, at Place, d *Defaults) {
	t.Helper()
	var pod corev1.Pod
	if err := yaml.UnmarshalStrict(patched, &pod); err != nil && !strings.Contains(string(patched), "fieldOfTheFuture") {
		t.Fatal(err)
	}
	again, err := Inject(&pod, at, d)
	if err != nil || len(again.Patch) > 0 || again.Skipped.Reason != AlreadyInjected {
		t.Errorf("a second time: %v, %v, %v", again.Patch, again.Skipped, err)
	}
	i := slices.IndexFunc(pod.Spec.InitContainers, named(Container))
	if i < 0 {
		t.Fatal("no sidecar")
	}
	c := pod.Spec.InitContainers[i]
	if len(c.Env) > 0 && c.Env[0].Name == configVariable {
		text := strings.ReplaceAll(c.Env[0].Value, "$$", "$")
		cfg, err := config.Parse([]byte(text), "the pod", func(string) string { return "" }, "/")
		if err != nil {
			t.Errorf("the agent refuses its configuration: %v", err)
		} else if err := cfg.ValidateAgent(); err != nil {
			t.Error(err)
		}
	}
	private := map[string]bool{}
	for _, m := range c.VolumeMounts {
		private[m.Name] = m.Name != "postern-ca"
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, other := range list {
			for _, m := range other.VolumeMounts {
				if other.Name != Container && (private[m.Name] || m.Name == "postern-ca" && !m.ReadOnly) {
					t.Errorf("%s mounts %s", other.Name, m.Name)
				}
			}
		}
	}
}

func placeOf(t *testing.T, dir string) (Place, *Defaults) {
	t.Helper()
	p := where{Namespace: "shop", Kubernetes: "v1.36.3"}
	base := map[string]any{"image": "registry.example/postern:v1.0.0", "vault-address": "https://vault.example:8200", "vault-role": "app"}
	if text, err := os.ReadFile(filepath.Join(dir, "place.yaml")); err == nil {
		if err := yaml.UnmarshalStrict(text, &p); err != nil {
			t.Fatal(err)
		}
	}
	for k, v := range p.Defaults {
		base[k] = v
	}
	text, err := yaml.Marshal(base)
	if err != nil {
		t.Fatal(err)
	}
	d, err := ParseDefaults(text)
	if err != nil {
		t.Fatal(err)
	}
	return Place{Namespace: p.Namespace, NamespaceLabels: p.NamespaceLabels, Kubernetes: p.Kubernetes}, d
}

func parsePod(t *testing.T, text string) ([]byte, *corev1.Pod) {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var pod corev1.Pod
	if err := json.Unmarshal(raw, &pod); err != nil {
		t.Fatal(err)
	}
	return raw, &pod
}

func apply(t *testing.T, raw []byte, ops []Op) []byte {
	t.Helper()
	if len(ops) == 0 {
		return raw
	}
	text, err := json.Marshal(ops)
	if err != nil {
		t.Fatal(err)
	}
	patch, err := jsonpatch.DecodePatch(text)
	if err != nil {
		t.Fatal(err)
	}
	out, err := patch.Apply(raw)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return out
}

func report(res Result, err error) string {
	var b strings.Builder
	if err != nil {
		reason := "?"
		if r, ok := errors.AsType[*Refusal](err); ok {
			reason = r.Reason
		}
		fmt.Fprintf(&b, "refused: %s\n%v\n", reason, err)
		return b.String()
	}
	if res.Skipped != (Finding{}) {
		fmt.Fprintf(&b, "skipped: %s\n", res.Skipped)
	} else {
		b.WriteString("injected\n")
	}
	for _, f := range res.Findings {
		fmt.Fprintf(&b, "%s\n", f)
	}
	return b.String()
}

func same(a, b Result) bool {
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return string(x) == string(y)
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func compare(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", file, got, want)
	}
}

var uidOrDigest = regexp.MustCompile(`uid:|sha256:`)

// Golden pods are written by hand: nothing in them belongs to some machine's cluster.
func TestInputsAreNobodys(t *testing.T) {
	files, _ := filepath.Glob("testdata/*/input.yaml")
	for _, f := range files {
		text, _ := os.ReadFile(f)
		if uidOrDigest.Match(text) {
			t.Errorf("%s holds a uid or a digest", f)
		}
	}
}
