package chart_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
	corev1 "k8s.io/api/core/v1"

	"github.com/postern-proxy/postern/agent/webhook"
	"github.com/postern-proxy/postern/config"
)

var update = flag.Bool("update", false, "write charts/postern/README.md")

// injection are the arguments that choose the injector's example values.
func injection(t *testing.T, more ...string) []string {
	return append([]string{"template", "acme", "charts/postern", "--namespace", "postern-system", "-f", path(t, "charts/postern/ci/injector-values.yaml")}, more...)
}

// objects are what is rendered, by kind and name.
func objects(t *testing.T, args ...string) map[string]map[string]any {
	t.Helper()
	text, err := helm(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]map[string]any{}
	for dec := yaml.NewDecoder(strings.NewReader(text)); ; {
		var o map[string]any
		if dec.Decode(&o) != nil {
			return out
		}
		if o != nil {
			key := fmt.Sprint(o["kind"], "/", at(o, "metadata", "name"))
			if out[key] != nil {
				t.Errorf("%s is rendered twice", key)
			}
			out[key] = o
		}
	}
}

// at walks down maps, and lists by index.
func at(v any, steps ...any) any {
	for _, s := range steps {
		switch s := s.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[s]
		case int:
			l, _ := v.([]any)
			if s >= len(l) {
				return nil
			}
			v = l[s]
		}
	}
	return v
}

func TestTheInjectorsRender(t *testing.T) {
	if out, err := helm(t, "lint", "--strict", "charts/postern", "-f", path(t, "charts/postern/ci/injector-values.yaml")); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	first, err := helm(t, injection(t)...)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := helm(t, injection(t)...); err != nil || again != first {
		t.Errorf("twice, and not the same: %v", err)
	}
	o := objects(t, injection(t)...)
	for _, want := range []string{"Deployment/acme-injector", "MutatingWebhookConfiguration/acme-injector-postern-system", "PodDisruptionBudget/acme-injector",
		"NetworkPolicy/acme-injector", "PodMonitor/acme-agents", "PrometheusRule/acme-rules", "ConfigMap/acme-dashboard", "Deployment/acme-server", "ConfigMap/acme-more", "Pod/acme-test"} {
		if o[want] == nil {
			t.Errorf("%s is not rendered", want)
		}
	}
}

// What the injector writes is rendered without a value: a re-apply takes nothing from it.
func TestWhatTheInjectorFillsInIsNotRendered(t *testing.T) {
	o := objects(t, injection(t)...)
	if s := o["Secret/acme-injector-certs"]; s == nil || s["data"] != nil || s["stringData"] != nil {
		t.Errorf("the Secret: %v", s)
	}
	for i := range 2 {
		h := at(o["MutatingWebhookConfiguration/acme-injector-postern-system"], "webhooks", i)
		if client, _ := at(h, "clientConfig").(map[string]any); client == nil || client["caBundle"] != nil {
			t.Errorf("webhook %d: %v", i, client)
		}
		for field, want := range map[string]any{"failurePolicy": "Ignore", "timeoutSeconds": 3, "reinvocationPolicy": "IfNeeded", "sideEffects": "NoneOnDryRun", "matchPolicy": "Equivalent"} {
			if got := at(h, field); got != want {
				t.Errorf("webhook %d: %s is %v", i, field, got)
			}
		}
		if got := fmt.Sprint(at(h, "namespaceSelector", "matchExpressions", 0, "values")); got != "[kube-node-lease kube-public kube-system postern-system]" {
			t.Errorf("webhook %d leaves out %s", i, got)
		}
	}
	own := objects(t, injection(t, "--set", "injector.certificates.mode=existing,injector.certificates.secret=mine,injector.certificates.caBundle=PEM")...)
	if got := at(own["MutatingWebhookConfiguration/acme-injector-postern-system"], "webhooks", 0, "clientConfig", "caBundle"); got != "UEVN" || own["Secret/acme-injector-certs"] != nil || own["Role/acme-injector"] != nil {
		t.Errorf("with certificates of one's own: %v", got)
	}
	managed := objects(t, injection(t, "--set", "injector.certificates.mode=cert-manager,injector.certificates.issuer.name=ca")...)
	hook := managed["MutatingWebhookConfiguration/acme-injector-postern-system"]
	if at(hook, "metadata", "annotations", "cert-manager.io/inject-ca-from") != "postern-system/acme-injector" || managed["Certificate/acme-injector"] == nil {
		t.Errorf("with cert-manager: %v", hook)
	}
}

// The values become defaults that the webhook takes, and with which a pod is injected.
func TestTheDefaultsInject(t *testing.T) {
	o := objects(t, injection(t)...)
	text, _ := at(o["ConfigMap/acme-injector"], "data", "defaults.yaml").(string)
	d, err := webhook.ParseDefaults([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}, ServiceAccountName: "shop"}}
	res, err := webhook.Inject(pod, webhook.Place{Namespace: "store", NamespaceLabels: map[string]string{webhook.LabelInject: "true"}, Kubernetes: "v1.36.3"}, d)
	if err != nil || len(res.Patch) == 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	patch, _ := json.Marshal(res.Patch)
	for _, want := range []string{"px_store_shop", "https://vault.example:8200", "role: postern-agent", "acme", "AZURE_OPENAI_ENDPOINT", `"image":"postern:dev"`, `"memory":"64Mi"`} {
		if !bytes.Contains(patch, []byte(want)) {
			t.Errorf("the patch lacks %s:\n%s", want, patch)
		}
	}
	// Every setting that docs/INJECTION.md lists has a value here.
	docs, err := os.ReadFile(path(t, "docs/INJECTION.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(docs), "## Annotations")
	section, _, _ = strings.Cut(section, "\n## ")
	var defaults map[string]any
	if err := yaml.Unmarshal([]byte(text), &defaults); err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|").FindAllStringSubmatch(section, -1) {
		if _, ok := defaults[m[1]]; !ok {
			t.Errorf("the chart has no default for %s", m[1])
		}
	}
	// And every flag of the injector is one that it knows.
	args, _ := at(o["Deployment/acme-injector"], "spec", "template", "spec", "containers", 0, "args").([]any)
	for _, a := range args {
		name, _, _ := strings.Cut(fmt.Sprint(a), "=")
		if !strings.Contains(string(docs), "| `"+name+"` |") {
			t.Errorf("%s is no flag of the injector", name)
		}
	}
	if len(args) < 6 {
		t.Errorf("%v", args)
	}
}

func TestTheServersConfiguration(t *testing.T) {
	o := objects(t, injection(t, "--set", "server.caConfigMap=vault-ca")...)
	text, _ := at(o["Deployment/acme-server"], "spec", "template", "spec", "containers", 0, "env", 0, "value").(string)
	c, err := config.Parse([]byte(strings.ReplaceAll(text, "$$", "$")), "the chart", func(string) string { return "" }, "/")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.ValidateServer(); err != nil {
		t.Error(err)
	}
	if c.Store.Vault.Auth.Kubernetes.Role != "postern-server" || c.Store.Vault.CAFile == "" {
		t.Errorf("%+v", c.Store.Vault)
	}
}

// Without an image of its own `helm test` asks the agent beside it, where agents listen.
func TestHelmsTestAsksTheAgent(t *testing.T) {
	o := objects(t, injection(t)...)
	pod := o["Pod/acme-test"]
	if at(pod, "metadata", "labels", webhook.LabelInject) != "true" || at(pod, "metadata", "namespace") == "postern-system" {
		t.Errorf("the pod is not injected: %v", pod["metadata"])
	}
	c := at(pod, "spec", "containers", 0)
	text, _ := at(c, "env", 0, "value").(string)
	cfg, err := config.Load("", func(name string) string { return map[string]string{"POSTERN_CONFIG": text}[name] })
	if err != nil || cfg.Listen.Admin != "127.0.0.1:8701" || fmt.Sprint(at(c, "args")) != "[status --ready]" {
		t.Errorf("%v, %v", c, err)
	}
	curl := objects(t, injection(t, "--set", "test.image=curl")...)
	if got := fmt.Sprint(at(curl["Pod/acme-test"], "spec", "containers", 0, "args")); !strings.Contains(got, `"$OPENAI_BASE_URL/models"`) {
		t.Error(got)
	}
}

// Every pod of the chart's own meets the restricted profile.
func TestPodsAreRestricted(t *testing.T) {
	for name, o := range objects(t, injection(t)...) {
		spec := at(o, "spec", "template", "spec")
		if strings.HasPrefix(name, "Pod/") {
			spec = o["spec"]
		}
		list, _ := at(spec, "containers").([]any)
		for _, c := range list {
			sc := at(c, "securityContext")
			if at(spec, "securityContext", "runAsNonRoot") != true || at(spec, "securityContext", "seccompProfile", "type") != "RuntimeDefault" ||
				at(sc, "allowPrivilegeEscalation") != false || at(sc, "readOnlyRootFilesystem") != true || fmt.Sprint(at(sc, "capabilities", "drop")) != "[ALL]" {
				t.Errorf("%s: %v", name, c)
			}
		}
	}
}

func TestWrongInjectorValuesAreRefused(t *testing.T) {
	for value, want := range map[string]string{
		"injector.bogus=1": "bogus", "injection.mode=x": "/injection/mode", "injector.replicas=0": "/injector/replicas", "injector.timeoutSeconds=10": "/injector/timeoutSeconds",
		"injector.failurePolicy=Maybe": "/injector/failurePolicy", "injector.certificates.mode=existing": "/injector/certificates", "injector.certificates.mode=cert-manager": "/injector/certificates",
		"injection.runAsUser=root": "/injection/runAsUser", "server.tlsSecret=": "/server/tlsSecret", "vault.role=": "/vault/role", "podMonitor.x=1": "'x'", "test.y=1": "'y'",
	} {
		if _, err := helm(t, injection(t, "--set", value)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--set %s: want an error that holds %s, got %v", value, want, err)
		}
	}
}

// Every metric that rules and dashboard name is documented, and so exists.
func TestRulesAndDashboardNameMetricsThatExist(t *testing.T) {
	known := map[string]bool{}
	for _, file := range []string{"docs/METRICS.md", "docs/INJECTION.md"} {
		text, err := os.ReadFile(path(t, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("(?m)^\\| `(postern_[a-z_]+)`").FindAllStringSubmatch(string(text), -1) {
			known[m[1]] = true
		}
	}
	metric := regexp.MustCompile(`\bpostern_[a-z_]+`)
	o := objects(t, injection(t)...)
	check := func(where, expr string) {
		names := metric.FindAllString(expr, -1)
		if len(names) == 0 {
			t.Errorf("%s names no metric: %s", where, expr)
		}
		for _, n := range names {
			if !known[n] && !known[strings.TrimSuffix(n, "_bucket")] {
				t.Errorf("%s: %s does not exist", where, n)
			}
		}
	}
	rules, _ := at(o["PrometheusRule/acme-rules"], "spec", "groups", 0, "rules").([]any)
	if len(rules) < 10 {
		t.Errorf("%d rules", len(rules))
	}
	for _, r := range rules {
		name := fmt.Sprint(at(r, "alert"))
		check(name, fmt.Sprint(at(r, "expr")))
		for _, a := range []string{"summary", "description"} {
			if s, _ := at(r, "annotations", a).(string); s == "" {
				t.Errorf("%s has no %s", name, a)
			}
		}
	}
	var dash any
	text, _ := at(o["ConfigMap/acme-dashboard"], "data", "postern.json").(string)
	if err := json.Unmarshal([]byte(text), &dash); err != nil {
		t.Fatal(err)
	}
	panels, _ := at(dash, "panels").([]any)
	for _, p := range panels {
		targets, _ := at(p, "targets").([]any)
		for _, q := range targets {
			check(fmt.Sprint(at(p, "title")), fmt.Sprint(at(q, "expr")))
		}
	}
	if len(panels) < 8 {
		t.Errorf("%d panels", len(panels))
	}
}

// charts/postern/README.md is made from the comments of values.yaml.
func TestReadmeIsMadeFromTheValues(t *testing.T) {
	file := path(t, "charts/postern/values.yaml")
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("# postern\n\nThe admission webhook that gives labelled pods the agent, and what belongs to it. ../../docs/INJECTION.md says what a pod gets.\n\n```\nhelm install postern charts/postern --namespace postern-system --create-namespace \\\n  --set vault.address=https://vault.example:8200 --set vault.role=postern-agent\nkubectl label namespace NAMESPACE postern.dev/inject=true\n```\n\nThis file is made from the comments of values.yaml; a value that is not here is refused.\n\n| value | default | |\n|---|---|---|\n")
	rows(&b, "", doc.Content[0])
	readme := filepath.Join(filepath.Dir(file), "README.md")
	if *update {
		if err := os.WriteFile(readme, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(readme)
	if err != nil || string(have) != b.String() {
		t.Errorf("charts/postern/README.md is not what values.yaml says (go test ./test/chart -update writes it): %v", err)
	}
}

func rows(b *strings.Builder, prefix string, n *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		said := []string{}
		for _, c := range []string{k.HeadComment, k.LineComment, v.LineComment} {
			for line := range strings.Lines(c) {
				if s := strings.TrimSpace(strings.TrimLeft(strings.TrimSpace(line), "#")); s != "" && !slices.Contains(said, s) {
					said = append(said, s)
				}
			}
		}
		text := strings.ReplaceAll(strings.Join(said, " "), "|", "\\|")
		if v.Kind == yaml.MappingNode && len(v.Content) > 0 && v.Style&yaml.FlowStyle == 0 {
			if text != "" {
				fmt.Fprintf(b, "| **%s%s** | | %s |\n", prefix, k.Value, text)
			}
			rows(b, prefix+k.Value+".", v)
			continue
		}
		plain := *v
		plain.LineComment, plain.HeadComment, plain.FootComment = "", "", ""
		plain.Style |= yaml.FlowStyle
		def, _ := yaml.Marshal(&plain)
		fmt.Fprintf(b, "| %s%s | `%s` | %s |\n", prefix, k.Value, strings.TrimSpace(string(def)), text)
	}
}
