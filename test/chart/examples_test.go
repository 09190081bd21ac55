package chart_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
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
