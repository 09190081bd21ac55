package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func appPod(annotations map[string]string, containers ...corev1.Container) *corev1.Pod {
	if len(containers) == 0 {
		containers = []corev1.Container{{Name: "app", Image: "app"}}
	}
	all := map[string]string{"postern.dev/image": "postern:v1", "postern.dev/vault-address": "https://vault.example", "postern.dev/vault-role": "app"}
	maps.Copy(all, annotations)
	for k, v := range all {
		if v == "\x00unset" {
			delete(all, k)
		}
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "app", Labels: map[string]string{LabelInject: "true"}, Annotations: all},
		Spec:       corev1.PodSpec{Containers: containers},
	}
}

var here = Place{Namespace: "shop", Kubernetes: "v1.36.3"}

// patched is the pod after its patch, as an apiserver has it.
func patched(t testing.TB, pod *corev1.Pod, ops []Op) *corev1.Pod {
	t.Helper()
	raw, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	tt, ok := t.(*testing.T)
	if !ok {
		tt = new(testing.T)
	}
	var out corev1.Pod
	if err := json.Unmarshal(apply(tt, raw, ops), &out); err != nil {
		t.Fatal(err)
	}
	return &out
}

func inits(pod *corev1.Pod) []string {
	var names []string
	for _, c := range pod.Spec.InitContainers {
		names = append(names, c.Name)
	}
	return names
}

// Another webhook that comes later puts its mesh in front, and one more container beside.
func TestReinvocationFollowsAnotherWebhook(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	for _, mode := range []string{"routes", "forward"} {
		first, err := Inject(appPod(map[string]string{"postern.dev/mode": mode}), here, nil)
		if err != nil {
			t.Fatal(err)
		}
		pod := patched(t, appPod(map[string]string{"postern.dev/mode": mode}), first.Patch)
		pod.Spec.InitContainers = append(pod.Spec.InitContainers,
			corev1.Container{Name: "istio-init", Image: "istio"}, corev1.Container{Name: "istio-proxy", Image: "istio", RestartPolicy: &always})
		pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "late", Image: "late"})
		config := pod.Spec.InitContainers[0].Env[0].Value

		again, err := Inject(pod, here, nil)
		if err != nil || !again.Again || len(again.Patch) == 0 {
			t.Fatalf("%+v, %v", again, err)
		}
		pod = patched(t, pod, again.Patch)
		if got := inits(pod); !slices.Equal(got, []string{"istio-init", "istio-proxy", "postern"}) {
			t.Errorf("%s: the order is %v", mode, got)
		}
		if pod.Spec.InitContainers[2].Env[0].Value != config {
			t.Error("the sidecar's configuration changed")
		}
		if lastEnv(&pod.Spec.Containers[1], "OPENAI_API_KEY") < 0 {
			t.Error("the late container has no variables")
		}
		if n := len(pod.Spec.Containers[0].VolumeMounts); mode == "forward" && n != 1 {
			t.Errorf("the first container has %d mounts", n)
		}
		if third, err := Inject(pod, here, nil); err != nil || len(third.Patch) > 0 || third.Skipped.Reason != AlreadyInjected {
			t.Errorf("a third time: %+v, %v", third, err)
		}
	}
}

// A mesh without native sidecars must find the agent running before its rules are in force.
func TestReinvocationGoesBeforeAClassicMesh(t *testing.T) {
	first, err := Inject(appPod(nil), here, nil)
	if err != nil {
		t.Fatal(err)
	}
	pod := patched(t, appPod(nil), first.Patch)
	pod.Spec.InitContainers = append([]corev1.Container{{Name: "istio-init", Image: "istio"}}, pod.Spec.InitContainers...)
	again, err := Inject(pod, here, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := inits(patched(t, pod, again.Patch)); !slices.Equal(got, []string{"postern", "istio-init"}) {
		t.Error(got)
	}
}

// The proxy's password is in no operation, and in the sidecar nevertheless.
func TestPasswordsAreMovedByTheServer(t *testing.T) {
	const url = "http://user:hunter2$$x@proxy.example:3128"
	pod := appPod(nil, corev1.Container{Name: "app", Image: "app", Env: []corev1.EnvVar{{Name: "A", Value: "b"}, {Name: "HTTPS_PROXY", Value: url}}})
	res, err := Inject(pod, here, nil)
	if err != nil {
		t.Fatal(err)
	}
	if text, _ := json.Marshal(res); strings.Contains(string(text), "hunter2") {
		t.Errorf("the answer holds the password: %s", text)
	}
	out := patched(t, pod, res.Patch)
	side := out.Spec.InitContainers[0]
	if i := lastEnv(&side, egressVariable); i < 0 || side.Env[i].Value != url {
		t.Error("the sidecar does not have the proxy")
	}
	if out.Spec.Containers[0].Env[1].Value != url {
		t.Error("with routes the application's proxy stays")
	}
}

func TestParseDefaults(t *testing.T) {
	if d, err := ParseDefaults(nil); err != nil || d == nil {
		t.Errorf("nothing: %v", err)
	}
	d, err := ParseDefaults([]byte("image: postern:v1\nproviders: [openai, {name: azure, provider: azure-openai, with: {resource: acme}}]\nresources: {limits: {memory: 128Mi}}\nrun-as-user: 1000\n"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"run-as-user": "1000", "resources": "{limits: {memory: 128Mi}}", "image": "postern:v1"} {
		if d.values[name] != want {
			t.Errorf("%s is %q", name, d.values[name])
		}
	}
	for text, want := range map[string][]string{
		"[a, b]":                            {"no YAML map"},
		"mode: proxy\nrun-as-user: 0\n":     {"default of mode", "default of run-as-user"},
		"vault-addres: https://v\n":         {"did you mean vault-address?"},
		"vault-address: http://v.example\n": {"default of vault-address: plain http"},
		"providers: []\n":                   {"default of providers"},
		"providers: &a [*a]\n":              {"without anchors"},
		"x: &a {b: c}\ny: *a\n":             {"default of x"},
		"resources: {limits: {gpu: 1}}\n":   {"default of resources"},
		"status: x\n":                       {"default of status: is not known"},
		"unmatched: maybe\nenvironment: X_": {"default of environment", "default of unmatched"},
	} {
		_, err := ParseDefaults([]byte(text))
		if err == nil {
			t.Errorf("%q is taken", text)
			continue
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q: %v; want %q", text, err, w)
			}
		}
	}
}

// Each annotation refuses a mistake with its own name, and takes the chart's default where it is not there.
func TestEveryAnnotation(t *testing.T) {
	bad := map[string]string{
		"environment": "PROD", "proxy-id": "acme", "providers": "{", "mode": "x", "containers": "A B", "order": "x", "override": "1", "vault-address": "vault",
		"vault-namespace": "a b", "vault-mount": "..", "vault-prefix": "..", "vault-audience": "a b", "vault-auth-method": "approle", "vault-auth-mount": "a b",
		"vault-role": "", "vault-ca-configmap": "A", "extra-roots-configmap": "a/b/c", "run-as-user": "-1", "unmatched": "x", "log-level": "x",
		"resources": "[]", "image": " ", "image-pull-policy": "x", "config-map": "/", "no-proxy": "a b",
	}
	for _, s := range table {
		value, ok := bad[s.name]
		if !ok {
			t.Errorf("no mistake is known for %s", s.name)
			continue
		}
		_, err := Inject(appPod(map[string]string{Prefix + s.name: value}), here, nil)
		r, ok := errors.AsType[*Refusal](err)
		if !ok || r.Reason != BadAnnotation || r.Mistakes[0].Where != Prefix+s.name || strings.Contains(r.Mistakes[0].Text, "default") {
			t.Errorf("%s: %v", s.name, err)
		}
		d := &Defaults{values: map[string]string{s.name: value}}
		_, err = Inject(appPod(map[string]string{Prefix + s.name: "\x00unset"}), here, d)
		if err == nil || !strings.Contains(err.Error(), s.name) || !strings.Contains(err.Error(), "default") {
			t.Errorf("%s by default: %v", s.name, err)
		}
	}
}

// The restricted profile, whatever the annotations say.
func TestSidecarIsRestricted(t *testing.T) {
	for _, user := range []string{"65532", "1000", "none"} {
		res, err := Inject(appPod(map[string]string{"postern.dev/run-as-user": user}), here, nil)
		if err != nil {
			t.Fatal(err)
		}
		c := patched(t, appPod(map[string]string{"postern.dev/run-as-user": user}), res.Patch).Spec.InitContainers[0]
		sc := c.SecurityContext
		if !*sc.RunAsNonRoot || *sc.AllowPrivilegeEscalation || !*sc.ReadOnlyRootFilesystem || sc.Capabilities.Drop[0] != "ALL" || sc.SeccompProfile.Type != "RuntimeDefault" || !always(c) {
			t.Errorf("%+v", sc)
		}
		if got := fmt.Sprint(sc.RunAsUser != nil, sc.RunAsGroup != nil); (user == "none") != (got == "false false") {
			t.Errorf("%s: %s", user, got)
		}
	}
}

// Whatever an annotation says: an answer comes, a refusal is one of ours, and an injected pod stays as it is.
func FuzzAnnotations(f *testing.F) {
	for i, s := range table {
		f.Add(uint8(i), s.def, "OPENAI_BASE_URL", "https://x.example")
	}
	f.Add(uint8(2), "[{name: a, hosts: [b], attach: {header: X, format: '{api_key}'}}]", "HTTPS_PROXY", "http://u:p@h:1")
	f.Add(uint8(2), "- &a {name: openai}\n- *a\n", "NO_PROXY", "*")
	f.Add(uint8(3), "both", "https_proxy", "h:1")
	f.Add(uint8(18), "{requests: {cpu: 1e300}}", "HTTPS_PROXY", "$(A)")
	f.Fuzz(func(t *testing.T, which uint8, value, variable, holds string) {
		name := table[int(which)%len(table)].name
		variable, holds = strings.ToValidUTF8(variable, "?"), strings.ToValidUTF8(holds, "?") // as JSON has them
		pod := appPod(map[string]string{Prefix + name: value}, corev1.Container{Name: "app", Image: "app", Env: []corev1.EnvVar{{Name: variable, Value: holds}}})
		res, err := Inject(pod, here, nil)
		if err != nil {
			if _, ok := errors.AsType[*Refusal](err); !ok || !strings.Contains(err.Error(), name) && !strings.Contains(err.Error(), "HTTPS_PROXY") && !strings.Contains(err.Error(), "https_proxy") {
				t.Fatalf("%s: %v", name, err)
			}
			return
		}
		text, err := json.Marshal(res.Patch)
		if err != nil {
			t.Fatal(err)
		}
		if u := strings.LastIndex(holds, "@"); u > 12 && strings.Contains(strings.ToUpper(variable), "HTTPS_PROXY") && strings.Contains(string(text), holds[:u]) {
			t.Fatalf("the patch holds what stands before @: %s", text)
		}
		again, err := Inject(patched(t, pod, res.Patch), here, nil)
		if err != nil || len(again.Patch) > 0 {
			t.Fatalf("a second time: %v, %v", again.Patch, err)
		}
	})
}
