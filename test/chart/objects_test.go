package chart_test

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
	rbacv1 "k8s.io/api/rbac/v1"
	strict "sigs.k8s.io/yaml"
)

// Every object is where the release is, and has the chart's labels.
func TestObjectsAreTheReleases(t *testing.T) {
	for _, set := range sets {
		for name, o := range objects(t, template(t, set)...) {
			kind := fmt.Sprint(o["kind"])
			wide := slices.Contains([]string{"ClusterRole", "ClusterRoleBinding", "MutatingWebhookConfiguration"}, kind)
			namespace, _ := at(o, "metadata", "namespace").(string)
			if !wide && namespace != "postern-system" && kind != "Pod" && !strings.HasSuffix(name, "-text") || wide && namespace != "" {
				t.Errorf("%s: %s is in the namespace %q", set, name, namespace)
			}
			if strings.HasSuffix(name, "-more") || strings.HasSuffix(name, "-text") { // extraObjects
				continue
			}
			if at(o, "metadata", "labels", "app.kubernetes.io/part-of") != "postern" {
				t.Errorf("%s: %s lacks the chart's labels", set, name)
			}
		}
	}
}

// Nothing that is rendered only with a CRD is there unless it was asked for.
func TestWhatNeedsMoreIsOptIn(t *testing.T) {
	var kinds []string
	for name := range objects(t, template(t, "example")...) {
		kinds = append(kinds, name)
	}
	slices.Sort(kinds)
	want := []string{"ClusterRole/postern-injector-postern-system", "ClusterRoleBinding/postern-injector-postern-system", "ConfigMap/postern-injector", "Deployment/postern-injector-0", "Deployment/postern-injector-1",
		"MutatingWebhookConfiguration/postern-injector-postern-system", "NetworkPolicy/postern-injector", "Pod/postern-test", "PodDisruptionBudget/postern-injector", "Role/postern-injector",
		"RoleBinding/postern-injector", "Secret/postern-injector-certs", "Service/postern-injector-0", "Service/postern-injector-1", "ServiceAccount/postern-injector"}
	if !slices.Equal(kinds, want) {
		t.Errorf("rendered are\n%q\nwant\n%q", kinds, want)
	}
	full := objects(t, template(t, "full")...)
	for _, name := range []string{"PodMonitor/postern-agents", "PodMonitor/postern-injector", "PodMonitor/postern-server", "PrometheusRule/postern-alerts", "ConfigMap/postern-dashboard",
		"Deployment/postern-server", "Service/postern-server", "NetworkPolicy/postern-server", "PodDisruptionBudget/postern-server", "ConfigMap/postern-more", "ConfigMap/postern-text"} {
		if full[name] == nil {
			t.Errorf("%s is not rendered with everything on", name)
		}
	}
	less := objects(t, template(t, "existing")...)
	for _, name := range []string{"NetworkPolicy/postern-injector", "PodDisruptionBudget/postern-injector"} {
		if less[name] != nil {
			t.Errorf("%s is rendered although it is off", name)
		}
	}
	if none := objects(t, template(t, "example", "--set", "injector.enabled=false")...); len(none) > 0 {
		t.Errorf("without injector and server: %v", slices.Sorted(maps.Keys(none)))
	}
	if o := objects(t, template(t, "example", "--set", "test.namespace=kube-system")...); o["Pod/postern-test"] != nil {
		t.Error("a test whose pod would not be injected is rendered")
	}
}

// The rights of every role, listed: one more is a decision, and made here too.
func TestRights(t *testing.T) {
	const (
		events  = "events: create, patch"
		webhook = "mutatingwebhookconfigurations postern-injector-postern-system: get, patch"
		all     = "namespaces: get, list; pods: list; " + events
	)
	for set, want := range map[string]map[string]string{
		"example":      {"ClusterRole": all + "; " + webhook, "Role": "secrets postern-injector-certs: get, patch"},
		"full":         {"ClusterRole": all + "; " + webhook, "Role": "secrets postern-injector-certs: get, patch"},
		"existing":     {"ClusterRole": all},
		"cert-manager": {"ClusterRole": "namespaces: get; " + events}, // and no watchdog
	} {
		have := map[string]string{}
		bound := 0
		for name, o := range objects(t, template(t, set)...) {
			kind := fmt.Sprint(o["kind"])
			switch kind {
			case "ClusterRole", "Role":
				var r rbacv1.ClusterRole
				text, _ := yaml.Marshal(o)
				if err := strict.Unmarshal(text, &r); err != nil {
					t.Fatal(err)
				}
				var rights []string
				for _, rule := range r.Rules {
					what := strings.Join(slices.Concat(rule.Resources, rule.ResourceNames), " ")
					rights = append(rights, what+": "+strings.Join(rule.Verbs, ", "))
				}
				if have[kind] != "" {
					t.Errorf("%s: more than one %s", set, kind)
				}
				have[kind] = strings.Join(rights, "; ")
			case "ClusterRoleBinding", "RoleBinding":
				bound++
				subjects, _ := o["subjects"].([]any)
				if len(subjects) != 1 || at(subjects, 0, "kind") != "ServiceAccount" || at(subjects, 0, "name") != "postern-injector" || at(subjects, 0, "namespace") != "postern-system" {
					t.Errorf("%s: %s binds %v", set, name, subjects)
				}
				if at(o, "roleRef", "kind") != strings.TrimSuffix(kind, "Binding") || at(o, "roleRef", "name") != at(o, "metadata", "name") {
					t.Errorf("%s: %s refers to %v", set, name, o["roleRef"])
				}
			}
		}
		if !maps.Equal(have, want) || bound != len(want) {
			t.Errorf("%s: the rights are\n%q\nwant\n%q\nand %d bindings", set, have, want, bound)
		}
	}
}

// The chart renders no secret: a Secret has no data, and nothing has a variable or value that looks like one.
func TestNoSecretAnywhere(t *testing.T) {
	secret := regexp.MustCompile(`sk-[A-Za-z0-9]|PRIVATE KEY|(?i)(password|api[_-]?key|client_secret|secret_id)"?\s*[:=]\s*\S`)
	for _, set := range sets {
		text := render(t, template(t, set)...)
		if found := secret.FindString(text); found != "" {
			t.Errorf("%s: %q", set, found)
		}
		for name, o := range objects(t, template(t, set)...) {
			if o["kind"] == "Secret" && (o["data"] != nil || o["stringData"] != nil || o["type"] != "Opaque") {
				t.Errorf("%s: %s: %v", set, name, o)
			}
		}
	}
}

func podSpec(o map[string]any) any {
	if spec := at(o, "spec", "template", "spec"); spec != nil {
		return spec
	}
	if o["kind"] == "Pod" {
		return o["spec"]
	}
	return nil
}

// Every pod of the chart's own meets the restricted Pod Security Standard and says what it needs.
func TestPodsAreRestricted(t *testing.T) {
	pods := 0
	for _, set := range sets {
		for name, o := range objects(t, template(t, set)...) {
			spec := podSpec(o)
			if spec == nil {
				continue
			}
			pods++
			pod := at(spec, "securityContext")
			if at(pod, "runAsNonRoot") != true || at(pod, "seccompProfile", "type") != "RuntimeDefault" {
				t.Errorf("%s: %s: %v", set, name, pod)
			}
			containers, _ := at(spec, "containers").([]any)
			for _, c := range containers {
				sc := at(c, "securityContext")
				if at(sc, "allowPrivilegeEscalation") != false || at(sc, "readOnlyRootFilesystem") != true || fmt.Sprint(at(sc, "capabilities")) != "map[drop:[ALL]]" {
					t.Errorf("%s: %s: %v", set, name, sc)
				}
				want := any(65532)
				if set == "cert-manager" { // runAsUser: none
					want = nil
				}
				if at(sc, "runAsUser") != want || at(sc, "runAsGroup") != want || set == "cert-manager" && at(pod, "fsGroup") != nil {
					t.Errorf("%s: %s runs as %v, of the groups %v and %v", set, name, at(sc, "runAsUser"), at(sc, "runAsGroup"), at(pod, "fsGroup"))
				}
				if at(c, "resources", "requests", "cpu") == nil || at(c, "resources", "limits", "memory") == nil || at(c, "resources", "limits", "cpu") != nil {
					t.Errorf("%s: %s: resources %v", set, name, at(c, "resources"))
				}
			}
			for _, field := range []string{"hostNetwork", "hostPID", "hostIPC"} {
				if at(spec, field) != nil {
					t.Errorf("%s: %s has %s", set, name, field)
				}
			}
		}
	}
	if pods < 9 {
		t.Errorf("%d pods", pods)
	}
}

// What selects pods finds those of its own Deployment, by ports that these have, and they are never injected themselves.
func TestSelectorsFindTheirPods(t *testing.T) {
	o := objects(t, template(t, "full")...)
	for which, replica := range map[string]string{"postern-injector": "postern-injector-2", "postern-server": "postern-server"} {
		labels, _ := at(o["Deployment/"+replica], "spec", "template", "metadata", "labels").(map[string]any)
		if labels["postern.dev/inject"] != "false" {
			t.Errorf("%s may be injected: %v", which, labels)
		}
		ports := map[any]any{}
		list, _ := at(o["Deployment/"+replica], "spec", "template", "spec", "containers", 0, "ports").([]any)
		for _, p := range list {
			ports[at(p, "name")] = at(p, "containerPort")
		}
		for kind, steps := range map[string][]any{"Deployment": {"spec", "selector", "matchLabels"}, "Service": {"spec", "selector"}, "PodDisruptionBudget": {"spec", "selector", "matchLabels"},
			"NetworkPolicy": {"spec", "podSelector", "matchLabels"}, "PodMonitor": {"spec", "selector", "matchLabels"}} {
			name := kind + "/" + which
			if kind == "Deployment" || kind == "Service" {
				name = kind + "/" + replica
			}
			selector, _ := at(o[name], steps...).(map[string]any)
			if len(selector) < 2 {
				t.Errorf("%s selects %v", name, selector)
			}
			for k, v := range selector {
				if labels[k] != v {
					t.Errorf("%s selects %s=%v; the pods have %v", name, k, v, labels[k])
				}
			}
		}
		if port := at(o["Service/"+replica], "spec", "ports", 0, "targetPort"); ports[port] == nil {
			t.Errorf("Service/%s leads to the port %v; there are %v", replica, port, ports)
		}
		if port := at(o["PodMonitor/"+which], "spec", "podMetricsEndpoints", 0, "port"); ports[port] == nil {
			t.Errorf("PodMonitor/%s scrapes the port %v; there are %v", which, port, ports)
		}
		open := map[any]bool{}
		rules, _ := at(o["NetworkPolicy/"+which], "spec", "ingress").([]any)
		for _, r := range rules {
			open[at(r, "ports", 0, "port")] = true
		}
		for name, port := range ports {
			if !open[port] {
				t.Errorf("NetworkPolicy/%s does not let the port %v (%v) be reached", which, name, port)
			}
		}
		if at(o["Deployment/"+replica], "spec", "strategy", "rollingUpdate", "maxUnavailable") != 0 {
			t.Errorf("an upgrade takes a replica of %s away before its successor is there", which)
		}
	}
	if got := fmt.Sprint(at(o["NetworkPolicy/postern-server"], "spec", "egress", 1, "ports")); got != "[map[port:443 protocol:TCP] map[port:8200 protocol:TCP]]" {
		t.Errorf("the server reaches %s", got)
	}
	if got := at(o["NetworkPolicy/postern-injector"], "spec", "ingress", 0, "from"); got != nil {
		t.Errorf("the API server must be let in wherever it is, not from %v", got)
	}
}
