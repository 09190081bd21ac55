package chart_test

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/test/tools"
)

// kubeconform holds manifests against the schemas of the API that the test cluster serves, and of the other kinds that
// are used here. The error says what is wrong.
func kubeconform(t *testing.T, manifests string, files ...string) (string, error) {
	t.Helper()
	program, err := tools.Kubeconform.Build()
	if err != nil {
		t.Fatal(err)
	}
	schemas, err := tools.BuildSchemas()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, append([]string{"-strict", "-summary", "-schema-location", filepath.Join(schemas, tools.SchemaLocation)}, files...)...)
	cmd.Stdin = strings.NewReader(manifests)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	return out.String(), err
}

// Whatever is rendered, and every example, is what the API server takes: fields, their types, what is required.
func TestManifestsAreValid(t *testing.T) {
	for _, set := range sets {
		if out, err := kubeconform(t, render(t, template(t, set)...)); err != nil || !strings.Contains(out, "Skipped: 0") {
			t.Errorf("%s: %v\n%s", set, err, out)
		}
	}
	examples, err := filepath.Glob(path(t, "examples", "kubernetes", "*.yaml"))
	if err != nil || len(examples) < 3 {
		t.Fatalf("%d examples: %v", len(examples), err)
	}
	if out, err := kubeconform(t, "", examples...); err != nil || !strings.Contains(out, "Skipped: 0") {
		t.Errorf("examples: %v\n%s", err, out)
	}
}

// The schemas can refuse something: of Kubernetes' own kinds, and of others'.
func TestInvalidManifestsAreFound(t *testing.T) {
	for manifest, want := range map[string]string{
		"{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a, imagePullpolicy: Never}]}}":                                 "imagePullpolicy",
		"{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: 1}]}}":                                                         "want string",
		"{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}, spec: {template: {}}}":                                                        "missing property 'selector'",
		"{apiVersion: batch/v1beta1, kind: CronJob, metadata: {name: a}}":                                                                           "could not find schema",
		"{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: a}, spec: {hosts: [a], ports: [{number: 1, name: a, port: 1}]}}": "'port' not allowed",
		"{apiVersion: monitoring.coreos.com/v1, kind: PodMonitor, metadata: {name: a, lables: {}}, spec: {selector: {}, podMetricsEndpoints: []}}":  "'lables' not allowed",
		"{apiVersion: cert-manager.io/v1, kind: Certificate, metadata: {name: a}, spec: {issuerRef: {name: a}}}":                                    "missing property 'secretName'",
	} {
		if out, err := kubeconform(t, manifest); err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: want an error that says %s, got %v\n%s", manifest, want, err, out)
		}
	}
}
