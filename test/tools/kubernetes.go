package tools

import "strings"

// kubernetesVersion is the release of the nested module's k8s.io/kubernetes. Its
// programs report what the linker sets here: without it a node says v0.0.0, and
// whoever asks for a version of the API server refuses it.
const kubernetesVersion = "v1.36.3"

func kubernetes(name string) GoBinary {
	major, minor, _ := strings.Cut(strings.TrimPrefix(kubernetesVersion, "v"), ".")
	minor, _, _ = strings.Cut(minor, ".")
	var flags []string
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		flags = append(flags,
			"-X "+pkg+".gitVersion="+kubernetesVersion, "-X "+pkg+".gitMajor="+major, "-X "+pkg+".gitMinor="+minor)
	}
	return GoBinary{Name: name, Module: "k8s", Package: "k8s.io/kubernetes/cmd/" + name, LDFlags: strings.Join(flags, " ")}
}

// ControlPlane is what a Kubernetes API server needs to answer, with the
// controllers and the scheduler, and the command line client.
var ControlPlane = []GoBinary{
	{Name: "etcd", Module: "k8s", Package: "go.etcd.io/etcd/server/v3"},
	kubernetes("kube-apiserver"),
	kubernetes("kube-controller-manager"),
	kubernetes("kube-scheduler"),
	kubernetes("kubectl"),
}

// containerdTags leave out the drivers of file systems that no test uses.
var containerdTags = []string{"no_aufs", "no_btrfs", "no_devmapper", "no_zfs"}

func containerd(name string) GoBinary {
	return GoBinary{Name: name, Module: "containerd", Package: "github.com/containerd/containerd/v2/cmd/" + name, Tags: containerdTags}
}

// Node is what runs pods, beside [ControlPlane]: the kubelet, containerd and the
// cluster's network and names.
var Node = []GoBinary{
	kubernetes("kubelet"),
	kubernetes("kube-proxy"),
	containerd("containerd"),
	containerd("containerd-shim-runc-v2"),
	containerd("ctr"),
	{Name: "coredns", Module: "coredns"},
}
