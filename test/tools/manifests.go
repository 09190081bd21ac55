package tools

// What manifests, charts and compose files are tried with.
var (
	Kubeconform  = GoBinary{Name: "kubeconform", Module: "kubeconform", Package: "github.com/yannh/kubeconform/cmd/kubeconform"}
	HelmUnittest = GoBinary{Name: "helm-unittest", Module: "helm-unittest", Package: "github.com/helm-unittest/helm-unittest/cmd/helm-unittest"}
	Compose      = GoBinary{Name: "compose", Module: "compose"}
)
