package webhook

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Op is one operation of a JSON patch (RFC 6902).
type Op struct {
	Op    string `json:"op"` // add, replace, copy or move
	Path  string `json:"path"`
	From  string `json:"from,omitempty"`
	Value any    `json:"value,omitempty"`
}

// work is one pod on its way. Every change goes into the copy and into the
// patch at once, so that paths are those of the pod as it is by then. Only what
// is ours is ever written: lists are added to, never replaced, so fields that
// this version of the API does not know stay.
type work struct {
	pod      *corev1.Pod // a copy
	s        settings
	patch    []Op
	findings []Finding
	taken    *egress         // the proxy that was the application's; nil for none
	done     map[string]bool // containers that have their variables
}

// ref is a container of the pod.
type ref struct {
	init  bool
	index int
}

func (r ref) path() string {
	if r.init {
		return fmt.Sprintf("/spec/initContainers/%d", r.index)
	}
	return fmt.Sprintf("/spec/containers/%d", r.index)
}

func (w *work) at(r ref) *corev1.Container {
	if r.init {
		return &w.pod.Spec.InitContainers[r.index]
	}
	return &w.pod.Spec.Containers[r.index]
}

func (w *work) op(o Op) { w.patch = append(w.patch, o) }

// found notes something once.
func (w *work) found(reason, format string, args ...any) {
	f := Finding{Reason: reason, Text: fmt.Sprintf(format, args...)}
	for _, have := range w.findings {
		if have == f {
			return
		}
	}
	w.findings = append(w.findings, f)
}

// push adds to the end of a list, and makes the list where there is none.
func push[T any](w *work, path string, list *[]T, v T) {
	if len(*list) == 0 {
		w.op(Op{Op: "add", Path: path, Value: []T{v}})
	} else {
		w.op(Op{Op: "add", Path: path + "/-", Value: v})
	}
	*list = append(*list, v)
}

// insertInit puts an init container before the one at index.
func (w *work) insertInit(index int, c corev1.Container) {
	list := &w.pod.Spec.InitContainers
	if len(*list) == 0 {
		push(w, "/spec/initContainers", list, c)
		return
	}
	w.op(Op{Op: "add", Path: ref{true, index}.path(), Value: c})
	*list = append((*list)[:index:index], append([]corev1.Container{c}, (*list)[index:]...)...)
}

// moveInit moves an init container; to counts without it.
func (w *work) moveInit(from, to int) {
	if from == to {
		return
	}
	w.op(Op{Op: "move", From: ref{true, from}.path(), Path: ref{true, to}.path()})
	list := w.pod.Spec.InitContainers
	c := list[from]
	list = append(list[:from:from], list[from+1:]...)
	w.pod.Spec.InitContainers = append(list[:to:to], append([]corev1.Container{c}, list[to:]...)...)
}

// setEnv gives a variable a literal value: what it is set to last is what counts.
func (w *work) setEnv(r ref, name, value string) {
	c := w.at(r)
	v := corev1.EnvVar{Name: name, Value: literal(value)}
	if i := lastEnv(c, name); i >= 0 {
		c.Env[i] = v
		w.op(Op{Op: "replace", Path: fmt.Sprintf("%s/env/%d", r.path(), i), Value: v})
		return
	}
	push(w, r.path()+"/env", &c.Env, v)
}

// copyEnv gives a container another's variable under a new name. The value does
// not go through the patch.
func (w *work) copyEnv(from ref, index int, to ref, name string) {
	dst := w.at(to)
	v := w.at(from).Env[index]
	v.Name = name
	path := fmt.Sprintf("%s/env/%d", to.path(), len(dst.Env))
	w.op(Op{Op: "copy", From: fmt.Sprintf("%s/env/%d", from.path(), index), Path: path})
	w.op(Op{Op: "replace", Path: path + "/name", Value: name})
	dst.Env = append(dst.Env, v)
}

func lastEnv(c *corev1.Container, name string) int {
	for i := len(c.Env) - 1; i >= 0; i-- {
		if c.Env[i].Name == name {
			return i
		}
	}
	return -1
}

// literal keeps the kubelet from expanding $(NAME) in a value.
func literal(s string) string { return strings.ReplaceAll(s, "$", "$$") }

// setMeta sets one label or annotation.
func (w *work) setMeta(kind string, m *map[string]string, key, value string) {
	path := "/metadata/" + kind
	switch old, is := (*m)[key]; {
	case is && old == value:
		return
	case *m == nil:
		*m = map[string]string{}
		w.op(Op{Op: "add", Path: path, Value: map[string]string{key: value}})
	default:
		escaped := strings.ReplaceAll(strings.ReplaceAll(key, "~", "~0"), "/", "~1")
		w.op(Op{Op: "add", Path: path + "/" + escaped, Value: value})
	}
	(*m)[key] = value
}
