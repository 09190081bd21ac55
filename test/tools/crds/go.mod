// The definitions of kinds that are not Kubernetes' own are taken from these modules; nothing of them is compiled.
module github.com/postern-proxy/postern/test/tools/crds

go 1.26.0

require (
	github.com/cert-manager/cert-manager v1.21.2
	github.com/prometheus-operator/prometheus-operator v0.85.0
	istio.io/api v1.32.0
)
