package chart_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	strict "sigs.k8s.io/yaml"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/webhook"
	"github.com/postern-proxy/postern/config"
)

const configuration = "MutatingWebhookConfiguration/postern-injector-postern-system"

// What the injector writes is rendered without a value: a re-apply takes nothing from it.
func TestWhatTheInjectorFillsInIsNotRendered(t *testing.T) {
	o := objects(t, template(t, "example")...)
	if hooks, _ := o[configuration]["webhooks"].([]any); len(hooks) != 4 {
		t.Fatalf("%d webhooks", len(hooks))
	}
	for i := range 4 {
		h := at(o[configuration], "webhooks", i)
		if client, _ := at(h, "clientConfig").(map[string]any); client == nil || client["caBundle"] != nil {
			t.Errorf("webhook %d: %v", i, client)
		}
		for field, want := range map[string]any{"failurePolicy": "Ignore", "timeoutSeconds": 3, "reinvocationPolicy": "IfNeeded", "sideEffects": "NoneOnDryRun", "matchPolicy": "Equivalent"} {
			if got := at(h, field); got != want {
				t.Errorf("webhook %d: %s is %v", i, field, got)
			}
		}
		if got := fmt.Sprint(at(h, "rules")); got != "[map[apiGroups:[] apiVersions:[v1] operations:[CREATE] resources:[pods] scope:Namespaced]]" {
			t.Errorf("webhook %d: rules %s", i, got)
		}
	}
	// Who is asked last decides: before, there is another one to ask.
	full, want := objects(t, template(t, "full")...), []any{"Ignore", "Ignore", "Ignore", "Ignore", "Fail", "Fail"}
	for i, want := range want {
		if got := at(full[configuration], "webhooks", i, "failurePolicy"); got != want {
			t.Errorf("webhook %d: failurePolicy %v, want %v", i, got, want)
		}
	}

	own := objects(t, template(t, "existing")...)
	if at(own[configuration], "webhooks", 1, "clientConfig", "caBundle") == nil || own["Secret/postern-injector-certs"] != nil {
		t.Errorf("with certificates of one's own: %v", own[configuration])
	}
	managed := objects(t, template(t, "cert-manager")...)
	hook := managed[configuration]
	certificate := managed["Certificate/postern-injector"]
	if at(hook, "metadata", "annotations", "cert-manager.io/inject-ca-from") != "postern-system/postern-injector" || at(hook, "webhooks", 0, "clientConfig", "caBundle") != nil || certificate == nil {
		t.Errorf("with cert-manager: %v", hook)
	}
	volumes, _ := at(managed["Deployment/postern-injector-0"], "spec", "template", "spec", "volumes").([]any)
	if got := at(volumes, 1, "secret", "secretName"); got == nil || got != at(certificate, "spec", "secretName") {
		t.Errorf("the injector mounts %v, cert-manager writes %v", got, at(certificate, "spec", "secretName"))
	}
	for replica := range 2 {
		name := at(hook, "webhooks", 2*replica, "clientConfig", "service", "name")
		if at(certificate, "spec", "dnsNames", replica) != fmt.Sprintf("%v.postern-system.svc", name) || managed[fmt.Sprintf("Service/%v", name)] == nil {
			t.Errorf("the certificate is for %v", at(certificate, "spec", "dnsNames"))
		}
	}
}

// Each replica is asked once about a pod that a label selects, and none about any
// other; once a pod was given its agent, only the first, which follows up what
// other webhooks do.
func TestWhichPodsAreAskedAbout(t *testing.T) {
	hooks, _ := objects(t, template(t, "example")...)[configuration]["webhooks"].([]any)
	asked := func(namespace string, nsLabel, podLabel string, more labels.Set) string {
		ns, pod := labels.Set{"kubernetes.io/metadata.name": namespace}, labels.Merge(labels.Set{"app": "shop"}, more)
		if nsLabel != "" {
			ns[webhook.LabelInject] = nsLabel
		}
		if podLabel != "" {
			pod[webhook.LabelInject] = podLabel
		}
		var services []string
		for _, h := range hooks {
			if selects(t, at(h, "namespaceSelector"), ns) && selects(t, at(h, "objectSelector"), pod) {
				services = append(services, strings.TrimPrefix(fmt.Sprint(at(h, "clientConfig", "service", "name")), "postern-injector-"))
			}
		}
		return strings.Join(services, " ")
	}
	injected := labels.Set{webhook.LabelInjected: "true"}
	for _, c := range []struct {
		namespace, nsLabel, podLabel string
		asks                         bool
	}{
		{"shop", "", "", false}, {"shop", "true", "", true}, {"shop", "", "true", true}, {"shop", "true", "true", true},
		{"shop", "true", "false", false}, {"shop", "false", "", false}, {"shop", "false", "true", true},
		{"shop", "yes", "", true}, {"shop", "", "yes", true}, // refused with what is allowed
		{"kube-system", "true", "true", false}, {"kube-node-lease", "true", "", false}, {"postern-system", "true", "true", false},
	} {
		want, after := "", ""
		if c.asks {
			want, after = "0 1", "0"
		}
		if got := asked(c.namespace, c.nsLabel, c.podLabel, nil); got != want {
			t.Errorf("namespace %s %q, pod %q: asked are %q, want %q", c.namespace, c.nsLabel, c.podLabel, got, want)
		}
		if got := asked(c.namespace, c.nsLabel, c.podLabel, injected); got != after {
			t.Errorf("namespace %s %q, injected pod %q: asked are %q, want %q", c.namespace, c.nsLabel, c.podLabel, got, after)
		}
	}
}

func selects(t *testing.T, selector any, set labels.Set) bool {
	t.Helper()
	text, err := json.Marshal(selector)
	if err != nil {
		t.Fatal(err)
	}
	var s metav1.LabelSelector
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	compiled, err := metav1.LabelSelectorAsSelector(&s)
	if err != nil {
		t.Fatal(err)
	}
	return compiled.Matches(set)
}

// The values become defaults that the webhook takes, and with which a pod is injected.
func TestTheDefaultsInject(t *testing.T) {
	for set, wanted := range map[string][]string{
		"example":      {"px_store_shop", "https://vault.example:8200", "role: postern-agent", `"image":"postern:dev"`, `"memory":"64Mi"`, `"runAsUser":65532`, "OPENAI_BASE_URL"},
		"full":         {"registry.example/postern:v1.2.3", "AZURE_OPENAI_ENDPOINT", "acme", "mount: kv", "namespace: team", "environment: staging", ".corp.example", "root.pem", "HTTPS_PROXY"},
		"cert-manager": {"px_store_shop"},
	} {
		o := objects(t, template(t, set)...)
		text, _ := at(o["ConfigMap/postern-injector"], "data", "defaults.yaml").(string)
		d, err := webhook.ParseDefaults([]byte(text))
		if err != nil {
			t.Fatalf("%s: %v", set, err)
		}
		pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}, ServiceAccountName: "shop"}}
		res, err := webhook.Inject(pod, webhook.Place{Namespace: "store", NamespaceLabels: map[string]string{webhook.LabelInject: "true"}, Kubernetes: "v1.36.3"}, d)
		if err != nil || len(res.Patch) == 0 {
			t.Fatalf("%s: %+v, %v", set, res, err)
		}
		patch, err := json.Marshal(res.Patch)
		if err != nil {
			t.Fatal(err)
		}
		plain := bytes.ReplaceAll(patch, []byte(`\"`), nil)
		for _, want := range wanted {
			if !bytes.Contains(patch, []byte(want)) && !bytes.Contains(plain, []byte(want)) {
				t.Errorf("%s: the patch lacks %s:\n%s", set, want, patch)
			}
		}
		if set == "cert-manager" && bytes.Contains(patch, []byte("runAsUser")) {
			t.Errorf("with runAsUser none: %s", patch)
		}
	}
}

// Every setting that docs/INJECTION.md lists has a value here, and every argument is a flag that it lists.
func TestTheInjectorsFlagsAndSettings(t *testing.T) {
	docs := read(t, "docs/INJECTION.md")
	_, section, _ := strings.Cut(docs, "## Annotations")
	section, _, _ = strings.Cut(section, "\n## ")
	o := objects(t, template(t, "example")...)
	text, _ := at(o["ConfigMap/postern-injector"], "data", "defaults.yaml").(string)
	var defaults map[string]any
	if err := yaml.Unmarshal([]byte(text), &defaults); err != nil {
		t.Fatal(err)
	}
	listed := regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|").FindAllStringSubmatch(section, -1)
	for _, m := range listed {
		if _, ok := defaults[m[1]]; !ok {
			t.Errorf("the chart has no default for %s", m[1])
		}
	}
	if len(listed) != len(defaults) {
		t.Errorf("docs/INJECTION.md lists %d annotations, the chart has defaults for %d", len(listed), len(defaults))
	}
	for _, set := range sets {
		o := objects(t, template(t, set)...)
		args, _ := at(o["Deployment/postern-injector-1"], "spec", "template", "spec", "containers", 0, "args").([]any)
		given := map[string]string{}
		for _, a := range args {
			name, value, _ := strings.Cut(fmt.Sprint(a), "=")
			if given[name] = value; !strings.Contains(docs, "| `"+name+"` |") {
				t.Errorf("%s: %s is no flag of the injector", set, name)
			}
		}
		_, own := given["-cert-dir"]
		self := set == "example" || set == "full"
		if own == self || self && (o["Secret/"+given["-cert-secret"]] == nil || o["MutatingWebhookConfiguration/"+given["-webhook"]] == nil) {
			t.Errorf("%s: %v", set, given)
		}
		for _, service := range strings.Split(given["-services"], ",") {
			if o["Service/"+service] == nil || at(o["Service/"+service], "spec", "selector", "postern.dev/replica") != service {
				t.Errorf("%s: the Service %s: %v", set, service, o["Service/"+service])
			}
			if got := at(o["Deployment/"+service], "spec", "template", "metadata", "labels", "postern.dev/replica"); got != service {
				t.Errorf("%s: the Deployment %s makes pods of %v", set, service, got)
			}
		}
		if given["-namespace"] != "postern-system" {
			t.Errorf("%s: %v", set, given)
		}
		// The ports are those of -listen and -admin, which are left as they are.
		for flag, port := range map[string]any{"-listen": 8443, "-admin": 8080} {
			if !strings.Contains(docs, fmt.Sprintf("| `%s` | `:%v` |", flag, port)) {
				t.Errorf("%s is not :%v any more", flag, port)
			}
		}
		if got := fmt.Sprint(at(o["Deployment/postern-injector-0"], "spec", "template", "spec", "containers", 0, "ports")); !strings.Contains(got, "8443") || !strings.Contains(got, "8080") {
			t.Errorf("%s: ports %s", set, got)
		}
	}
}

// Other defaults make other pods of the injector, which reads them at its start.
func TestNewDefaultsAreTaken(t *testing.T) {
	sum := func(args ...string) any {
		return at(objects(t, template(t, "full", args...)...)["Deployment/postern-injector-0"], "spec", "template", "metadata", "annotations", "checksum/defaults")
	}
	if a, b := sum(), sum("--set", "injection.mode=routes"); a == b || a == nil {
		t.Errorf("%v and %v", a, b)
	}
}

func TestTheServer(t *testing.T) {
	o := objects(t, template(t, "full")...)
	text, _ := at(o["ConfigMap/postern-server"], "data", "server.yaml").(string)
	c, err := config.Parse([]byte(text), "the chart", func(string) string { return "" }, "/")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.ValidateServer(); err != nil {
		t.Error(err)
	}
	if len(c.Notes) > 0 {
		t.Errorf("notes: %v", c.Notes)
	}
	v := c.Store.Vault
	if c.Environment != "staging" || v.Auth.Kubernetes.Role != "postern-server" || v.Mount != "kv" || v.Namespace != "team" || len(c.Issuers) != 1 ||
		len(c.Providers) != 1 || c.Providers[0].CAFile != "/etc/postern/vault-ca/ca.crt" || c.Egress.ProxyURL().Host != "proxy.corp.example:3128" {
		t.Errorf("%+v", c)
	}
	spec := at(o["Deployment/postern-server"], "spec", "template", "spec")
	container := at(spec, "containers", 0)
	mounts := map[string]string{}
	list, _ := at(container, "volumeMounts").([]any)
	for _, m := range list {
		mounts[fmt.Sprint(at(m, "name"))] = fmt.Sprint(at(m, "mountPath"))
	}
	for file, dir := range map[string]string{v.CAFile: mounts["vault-ca"], v.Auth.Kubernetes.TokenFile: mounts["token"], c.Server.CertFile: mounts["tls"], c.Server.KeyFile: mounts["tls"]} {
		if dir == "" || !strings.HasPrefix(file, dir+"/") {
			t.Errorf("%s is in no volume: %v", file, mounts)
		}
	}
	if got := fmt.Sprint(at(container, "args")); got != "[server -c "+mounts["config"]+"/server.yaml]" {
		t.Errorf("it is started with %s", got)
	}
	if at(spec, "automountServiceAccountToken") != false || at(spec, "serviceAccountName") != "postern-server" || at(o["Deployment/postern-server"], "spec", "replicas") != 2 {
		t.Errorf("%v", spec)
	}
	volumes := fmt.Sprint(at(spec, "volumes"))
	for _, want := range []string{"audience:vault", "secretName:postern-server-tls", "[map[key:root.pem path:ca.crt]] name:vault-ca"} {
		if !strings.Contains(volumes, want) {
			t.Errorf("the volumes lack %s: %s", want, volumes)
		}
	}
	// Its probes and its scraper ask for what it answers.
	if !strings.HasSuffix(c.Server.Listen, fmt.Sprintf(":%v", at(container, "ports", 0, "containerPort"))) {
		t.Errorf("it listens at %s", c.Server.Listen)
	}
	for _, probe := range []string{"livenessProbe", "readinessProbe"} {
		if at(container, probe, "httpGet", "scheme") != "HTTPS" {
			t.Errorf("%s: %v", probe, at(container, probe))
		}
	}
}

// Without an image of its own `helm test` asks the agent beside it, where agents listen; with one it sends a request.
func TestHelmsTest(t *testing.T) {
	pod := objects(t, template(t, "example")...)["Pod/postern-test"]
	if at(pod, "metadata", "labels", webhook.LabelInject) != "true" || at(pod, "metadata", "annotations", "helm.sh/hook") != "test" || at(pod, "metadata", "namespace") != "default" {
		t.Errorf("the pod is not injected: %v", pod["metadata"])
	}
	c := at(pod, "spec", "containers", 0)
	text, _ := at(c, "env", 0, "value").(string)
	args, _ := at(c, "args").([]any)
	var line []string
	for _, a := range args {
		line = append(line, fmt.Sprint(a))
	}
	cfg, err := config.Load("", func(name string) string { return map[string]string{"POSTERN_CONFIG": text}[name] })
	if err != nil || cfg.Listen.Admin != "127.0.0.1:8701" {
		t.Errorf("%v, %v", c, err)
	}
	config := strings.Replace(text, "{version: 1,", `{version: 1, listen: {admin: "127.0.0.1:1"},`, 1)
	if _, said, code := agenttest.RunEnv(t, agenttest.Env(t.TempDir(), "POSTERN_CONFIG="+config), "", line...); code != 1 || !strings.Contains(said, "no agent answers") {
		t.Errorf("beside no agent: exit code %d: %s", code, said)
	}
	full := objects(t, template(t, "full")...)["Pod/postern-test"]
	script := fmt.Sprint(at(full, "spec", "containers", 0, "args"))
	if at(full, "metadata", "namespace") != "shop" || at(full, "spec", "serviceAccountName") != "checkout" || strings.Count(script, `"$OPENAI_BASE_URL/models"`) != 2 {
		t.Errorf("%v", full)
	}

	// The injector takes both as they are.
	for _, set := range []string{"example", "full", "cert-manager"} {
		o := objects(t, template(t, set)...)
		text, _ := at(o["ConfigMap/postern-injector"], "data", "defaults.yaml").(string)
		d, err := webhook.ParseDefaults([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := yaml.Marshal(o["Pod/postern-test"])
		if err != nil {
			t.Fatal(err)
		}
		var p corev1.Pod
		if err := strict.UnmarshalStrict(raw, &p); err != nil {
			t.Fatal(err)
		}
		if res, err := webhook.Inject(&p, webhook.Place{Namespace: p.Namespace, Kubernetes: "v1.36.3"}, d); err != nil || len(res.Patch) == 0 || len(res.Findings) > 1 {
			t.Errorf("%s: %+v, %v", set, res, err)
		}
	}
}
