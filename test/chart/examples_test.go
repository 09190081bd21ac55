package chart_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	strict "sigs.k8s.io/yaml"

	"github.com/postern-proxy/postern/agent/provider/spec"
	"github.com/postern-proxy/postern/agent/webhook"
)

func documents(t *testing.T, elem ...string) (out []map[string]any) {
	t.Helper()
	for dec := yaml.NewDecoder(strings.NewReader(read(t, elem...))); ; {
		var o map[string]any
		if dec.Decode(&o) != nil {
			return out
		}
		out = append(out, o)
	}
}

// The policies for injected pods are ones that the API takes, and lead where agents listen and what they reach.
func TestExampleNetworkPolicies(t *testing.T) {
	for i, o := range documents(t, "examples/kubernetes/network-policies.yaml") {
		text, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		var p networkingv1.NetworkPolicy
		if err := strict.UnmarshalStrict(text, &p); err != nil || p.Kind != "NetworkPolicy" {
			t.Fatalf("document %d: %v", i, err)
		}
		if i > 0 {
			continue
		}
		if p.Spec.PodSelector.MatchLabels[webhook.LabelInjected] != "true" || p.Spec.Ingress[0].Ports[0].Port.IntValue() != 8701 {
			t.Errorf("%+v", p.Spec)
		}
		var open []int
		for _, rule := range p.Spec.Egress {
			for _, port := range rule.Ports {
				open = append(open, port.Port.IntValue())
			}
			for _, to := range rule.To {
				if to.IPBlock != nil && !slices.Contains(to.IPBlock.Except, "169.254.0.0/16") {
					t.Error("the metadata service can be reached")
				}
			}
		}
		if !slices.Equal(open, []int{53, 53, 8200, 443}) {
			t.Errorf("the ports are %v", open)
		}
	}
}

// The chart's injector takes the examples' pods as they are: each container that the example is about gets what its client
// reads, the agent has the provider that it asks, and there is nothing to report. A cluster runs them too (test/cluster).
func TestExamplesAreInjected(t *testing.T) {
	text, _ := at(objects(t, template(t, "example")...)["ConfigMap/postern-injector"], "data", "defaults.yaml").(string)
	d, err := webhook.ParseDefaults([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string][]string{
		"deployment.yaml": {`"name":"OPENAI_BASE_URL","value":"http://127.0.0.1:8700/openai/v1"`, "{name: openai}"},
		"job.yaml":        {`"name":"ANTHROPIC_BASE_URL","value":"http://127.0.0.1:8700/anthropic"`, "{name: anthropic}"},
		"cronjob.yaml":    {`"name":"HTTPS_PROXY","value":"http://127.0.0.1:8700"`, `"name":"CURL_CA_BUNDLE","value":"/run/postern-ca/bundle.pem"`, "{name: openai}"},
	} {
		pods := 0
		for _, o := range documents(t, "examples/kubernetes", file) {
			spec := at(o, "spec")
			if job := at(spec, "jobTemplate", "spec"); job != nil {
				spec = job
			}
			if at(spec, "template") == nil {
				continue
			}
			pods++
			raw, err := yaml.Marshal(at(spec, "template"))
			if err != nil {
				t.Fatal(err)
			}
			var p corev1.PodTemplateSpec
			if err := strict.UnmarshalStrict(raw, &p); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			pod := &corev1.Pod{ObjectMeta: p.ObjectMeta, Spec: p.Spec}
			res, err := webhook.Inject(pod, webhook.Place{Namespace: "shop", Kubernetes: "v1.36.3"}, d)
			if err != nil || len(res.Findings) > 0 {
				t.Errorf("%s: %+v, %v", file, res.Findings, err)
			}
			patch, err := json.Marshal(res.Patch)
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range append(want, "px_shop_checkout") {
				if !strings.Contains(string(patch), part) {
					t.Errorf("%s: the patch lacks %s:\n%s", file, part, patch)
				}
			}
		}
		if pods != 1 {
			t.Errorf("%s has %d pods", file, pods)
		}
	}
}

// The examples' image has the SDKs that the tests run.
func TestExampleImage(t *testing.T) {
	var manifest struct{ Dependencies map[string]string }
	if err := json.Unmarshal([]byte(read(t, "test/sdk/node/package.json")), &manifest); err != nil {
		t.Fatal(err)
	}
	installed := regexp.MustCompile(`\s(@?[a-z/-]+)@([0-9.]+)`).FindAllStringSubmatch(read(t, "examples/kubernetes/Dockerfile"), -1)
	for _, m := range installed {
		if manifest.Dependencies[m[1]] != m[2] {
			t.Errorf("the Dockerfile installs %s %s, the tests run %s", m[1], m[2], manifest.Dependencies[m[1]])
		}
	}
	if len(installed) != 2 {
		t.Errorf("installed are %q", installed)
	}
}

// What the mesh is told of providers are the catalog's hosts, and the Sidecar names what is registered.
func TestExampleServiceEntries(t *testing.T) {
	hosts := map[string]bool{}
	for _, s := range spec.Catalog() {
		for _, h := range s.Hosts {
			hosts[fmt.Sprint(h)] = true
		}
	}
	registered := []string{"istio-system/*"}
	for _, o := range documents(t, "examples/kubernetes/istio.yaml") {
		if o["apiVersion"] != "networking.istio.io/v1" {
			t.Errorf("%v", o["apiVersion"])
		}
		switch list, _ := at(o, "spec", "hosts").([]any); o["kind"] {
		case "ServiceEntry":
			if at(o, "spec", "ports", 0, "protocol") != "TLS" || at(o, "spec", "location") != "MESH_EXTERNAL" || len(list) == 0 {
				t.Errorf("%v", o)
			}
			for _, h := range list {
				registered = append(registered, "./"+fmt.Sprint(h))
				if at(o, "metadata", "name") == "postern-providers" && !hosts[fmt.Sprint(h)] && !hosts[fmt.Sprint(h)+":443"] {
					t.Errorf("%v is no host of the catalog's", h)
				}
			}
		case "Sidecar":
			egress, _ := at(o, "spec", "egress", 0, "hosts").([]any)
			for _, h := range egress {
				if !slices.Contains(registered, fmt.Sprint(h)) {
					t.Errorf("%v is not registered", h)
				}
			}
			if len(egress) != len(registered) {
				t.Errorf("%v of %v", egress, registered)
			}
		default:
			t.Errorf("a %v", o["kind"])
		}
	}
}
