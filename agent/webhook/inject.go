// Package webhook puts the agent beside an application: a pod goes in, a JSON
// patch comes out. It is pure: it asks nobody anything, keeps no state, and
// gives the same answer for the same pod, the same place and the same defaults.
//
// A label selects (postern.dev/inject, on the pod or its namespace), annotations
// below postern.dev/ configure, and each of them has a chart-wide default. What
// cannot work is refused with the annotation's name and what is allowed; what is
// left alone is left alone for a reason. No patch holds a key: the configuration
// names where keys are, and variables hold placeholders.
package webhook

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

const (
	// Prefix begins every label and annotation that is read or set here.
	Prefix = "postern.dev/"
	// LabelInject selects: "true" or "false", the pod's before its namespace's.
	LabelInject = Prefix + "inject"
	// LabelInjected is set to "true" on every pod that was given a sidecar, so
	// that selectors of policies and monitors find it.
	LabelInjected = Prefix + "injected"
	// AnnotationStatus says what was done: a small JSON object.
	AnnotationStatus = Prefix + "status"
	// Container is the sidecar's name.
	Container = "postern"
)

// Place is what an answer depends on besides the pod.
type Place struct {
	// Namespace that the pod goes into. Required: a pod on its way in need not name it.
	Namespace string
	// NamespaceLabels are that namespace's labels. Nil: only the pod's own label selects.
	NamespaceLabels map[string]string
	// Kubernetes is the cluster's version as it reports it ("v1.36.3", "1.29+").
	// Required: native sidecars came with 1.29, and "" is refused as one that is not known.
	Kubernetes string
}

// Reasons are stable words for metrics and Events.
const (
	OptedOut        = "OptedOut"        // skipped: the label says false
	NotSelected     = "NotSelected"     // skipped: no label asks for it
	MirrorPod       = "MirrorPod"       // skipped: a static pod's image in the API
	HostNetwork     = "HostNetwork"     // skipped or refused: localhost would be the node's
	Windows         = "Windows"         // skipped or refused: the agent runs on Linux
	HasSidecar      = "HasSidecar"      // skipped: a container named postern is written out
	AlreadyInjected = "AlreadyInjected" // skipped: nothing is left to do

	BadAnnotation = "BadAnnotation" // refused: a mistake in an annotation, a label or a default
	OldKubernetes = "OldKubernetes" // refused: no native sidecars
	Conflict      = "Conflict"      // refused: a port, a volume or a mount is taken

	PodHoldsKey      = "PodHoldsKey"      // found: the pod still holds what looks like a provider's key
	PodMayHoldKey    = "PodMayHoldKey"    // found: a whole Secret goes into the environment
	BaseURLBypasses  = "BaseURLBypasses"  // found: a base URL leads past the agent
	VariableKept     = "VariableKept"     // found: a variable that exists stays as it is
	VariableChanged  = "VariableChanged"  // found: a variable's own value was changed, as asked or needed
	NoBaseURL        = "NoBaseURL"        // found: a provider's SDKs read no base URL
	SharedProcesses  = "SharedProcesses"  // found: containers of the pod see the agent's process
	NothingToPointTo = "NothingToPointTo" // found: no container gets variables
)

// Finding is something that the pod's owner should hear of.
type Finding struct {
	Reason string // one of the constants
	Text   string // a sentence; holds no value of a variable, and of a URL only scheme, host and port
}

// String is the reason and the text.
func (f Finding) String() string { return f.Reason + ": " + f.Text }

// Result is the answer for one pod.
type Result struct {
	// Patch makes the pod what it should be, as RFC 6902 has it. Empty: the pod stays as it is.
	Patch []Op
	// Skipped says why nothing was done; its zero value is that something was.
	Skipped Finding
	// Again: the pod had its sidecar, and another webhook's work was followed up.
	Again bool
	// Findings are for warnings, Events and metrics, each once, in a stable order.
	Findings []Finding
}

// Mistake is one thing that makes a pod impossible to inject.
type Mistake struct {
	Where string // an annotation's full name, or what else is at fault; "" for the pod as a whole
	Text  string // what is wrong and what to write; never repeats a value
}

// Refusal is the error for a pod that must not be let in as it is.
type Refusal struct {
	Reason   string // BadAnnotation, OldKubernetes, Conflict, HostNetwork or Windows
	Mistakes []Mistake
}

// Error is every mistake with its place, in one line.
func (r *Refusal) Error() string {
	var parts []string
	for _, m := range r.Mistakes {
		if m.Where != "" {
			parts = append(parts, m.Where+": "+m.Text)
		} else {
			parts = append(parts, m.Text)
		}
	}
	return "postern: " + strings.Join(parts, "; ")
}

func refuse(reason, where, format string, args ...any) error {
	return &Refusal{Reason: reason, Mistakes: []Mistake{{Where: where, Text: fmt.Sprintf(format, args...)}}}
}

// Inject says what becomes of a pod. The pod is not changed. The error is a
// *Refusal. Injecting its own result once more changes nothing, and a pod that
// another webhook worked on in between gets what it lacks by then.
func Inject(pod *corev1.Pod, at Place, d *Defaults) (Result, error) {
	asked, skipped, err := selected(pod, at)
	if err != nil || skipped != (Finding{}) {
		return Result{Skipped: skipped}, err
	}
	done, err := readStatus(pod)
	if err != nil {
		return Result{}, err
	}
	has := slices.ContainsFunc(pod.Spec.InitContainers, named(Container)) || slices.ContainsFunc(pod.Spec.Containers, named(Container))
	if has && done == nil {
		return Result{Skipped: Finding{HasSidecar, "a container named postern is there already: what is written out by hand is left as it is"}}, nil
	}
	if why := unfit(pod); why != (Finding{}) {
		if asked {
			return Result{}, refuse(why.Reason, "", "%s; remove the label %s, or set it to \"false\"", why.Text, LabelInject)
		}
		return Result{Skipped: why}, nil
	}
	if err := nativeSidecars(at.Kubernetes); err != nil {
		return Result{}, err
	}
	s, err := d.settings(pod, at)
	if err != nil {
		return Result{}, err
	}
	w := &work{pod: pod.DeepCopy(), s: s, done: map[string]bool{}}
	if has {
		return w.again(done)
	}
	return w.first()
}

// selected reports whether the pod's own label asks, or why it is left alone.
func selected(pod *corev1.Pod, at Place) (asked bool, skipped Finding, err error) {
	if _, wrong := pod.Annotations[LabelInject]; wrong {
		return false, Finding{}, refuse(BadAnnotation, LabelInject, "is a label: an annotation of this name selects nothing; move it to the labels")
	}
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return false, Finding{MirrorPod, "a static pod's image in the API cannot be changed"}, nil
	}
	label, own := pod.Labels[LabelInject]
	if !own {
		label = at.NamespaceLabels[LabelInject]
	}
	switch label {
	case "true":
		return own, Finding{}, nil
	case "false":
		return false, Finding{OptedOut, "the label " + LabelInject + " is \"false\""}, nil
	case "":
		if !own {
			return false, Finding{NotSelected, "neither the pod nor its namespace has the label " + LabelInject + ": \"true\""}, nil
		}
	}
	where := "label " + LabelInject
	if !own {
		where += " of the namespace"
	}
	return false, Finding{}, refuse(BadAnnotation, where, `must be "true" or "false"`)
}

// unfit says why no sidecar can work in this pod, whatever its annotations say.
func unfit(pod *corev1.Pod) Finding {
	os := pod.Spec.NodeSelector["kubernetes.io/os"] + pod.Spec.NodeSelector["beta.kubernetes.io/os"]
	if pod.Spec.OS != nil {
		os += string(pod.Spec.OS.Name)
	}
	switch {
	case strings.Contains(os, "windows"):
		return Finding{Windows, "the pod runs on Windows nodes, and the agent on Linux only"}
	case pod.Spec.HostNetwork:
		return Finding{HostNetwork, "with hostNetwork the agent would listen on the node's own localhost, where every program of the node could use the keys"}
	}
	return Finding{}
}

// nativeSidecars refuses clusters that would start the sidecar as a plain init
// container and wait for its end for ever.
func nativeSidecars(version string) error {
	const oldest = 29
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	end := 0
	for end < len(rest) && rest[end] >= '0' && rest[end] <= '9' {
		end++
	}
	a, errA := strconv.Atoi(major)
	b, errB := strconv.Atoi(rest[:end])
	switch {
	case errA != nil || errB != nil:
		return refuse(OldKubernetes, "", "the cluster's version is not known, and native sidecars need Kubernetes 1.29 or newer")
	case a == 1 && b < oldest || a < 1:
		return refuse(OldKubernetes, "", "Kubernetes %d.%d has no native sidecars: 1.29 or newer is needed", a, b)
	}
	return nil
}

func named(name string) func(corev1.Container) bool {
	return func(c corev1.Container) bool { return c.Name == name }
}

// nearest is the known name that was probably meant, "" if none is near.
func nearest(word string, known []string) string {
	best, least := "", len(word)/3+1
	for _, k := range known {
		if d := distance(word, k); d < least {
			best, least = k, d
		}
	}
	return best
}

func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
