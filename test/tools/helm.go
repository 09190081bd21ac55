package tools

import "testing"

// The versions of Kubernetes that Helm takes charts to be for are set as its own releases set them.
var helm = GoBinary{
	Name: "helm", Module: "helm", Package: "helm.sh/helm/v3/cmd/helm",
	LDFlags: "-X helm.sh/helm/v3/internal/version.version=v3.22.0" +
		" -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor=37" +
		" -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=37",
}

// BuildHelm returns the path of Helm's command.
func BuildHelm() (string, error) { return helm.Build() }

// Helm is [BuildHelm] for a test, which fails if there is none to be had.
func Helm(t testing.TB) string {
	t.Helper()
	path, err := BuildHelm()
	if err != nil {
		t.Fatalf("no Helm to test with: %v", err)
	}
	return path
}
