package webhook

import (
	"errors"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// meshInit are what meshes put among the init containers, their sidecars included.
var meshInit = []string{"istio-init", "istio-validation", "istio-proxy", "linkerd-init", "linkerd-network-validator", "linkerd-proxy"}

// meshNative are the sidecars of meshes.
var meshNative = []string{"istio-proxy", "linkerd-proxy"}

// foreign are containers that other webhooks add: no variable of ours is for them.
var foreign = append([]string{Container, "vault-agent", "vault-agent-init"}, meshInit...)

// order is where the sidecar stands among the init containers.
type order struct {
	how  string // auto, first, last, after, before
	name string // for after and before
}

const orderSay = "auto, first, last, after:NAME or before:NAME, where NAME is an init container"

func parseOrder(s string) (order, error) {
	how, name, colon := strings.Cut(s, ":")
	switch how {
	case "auto", "first", "last":
		if !colon {
			return order{how: how}, nil
		}
	case "after", "before":
		if labelForm.MatchString(name) && name != Container {
			return order{how, name}, nil
		}
	}
	return order{}, errors.New(orderSay)
}

// place is the sidecar's index among the others.
//
// Beside a mesh whose proxy is a native sidecar it comes after that: Vault may be
// reachable only through the mesh. Beside one whose proxy starts with the
// application it comes first of all, before the rules that lead all traffic to a
// proxy which does not run yet.
func (o order) place(others []corev1.Container) (int, bool) {
	switch o.how {
	case "last":
		return len(others), true
	case "after", "before":
		i := slices.IndexFunc(others, named(o.name))
		if o.how == "after" {
			return i + 1, i >= 0
		}
		return i, i >= 0
	case "auto":
		native := slices.ContainsFunc(others, func(c corev1.Container) bool { return always(c) && slices.Contains(meshNative, c.Name) })
		for i := len(others) - 1; native && i >= 0; i-- {
			if slices.Contains(meshInit, others[i].Name) {
				return i + 1, true
			}
		}
	}
	return 0, true
}

// always reports a native sidecar.
func always(c corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}
