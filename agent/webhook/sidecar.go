package webhook

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/postern-proxy/postern/agent/clientenv"
	"github.com/postern-proxy/postern/config"
)

// status is what the annotation of this name holds.
type status struct {
	ProxyID string `json:"proxyId"`
	Mode    string `json:"mode"`
	// Containers that were given variables, by name.
	Containers []string `json:"containers"`
}

func readStatus(pod *corev1.Pod) (*status, error) {
	text, is := pod.Annotations[AnnotationStatus]
	if !is {
		return nil, nil
	}
	var st status
	if err := json.Unmarshal([]byte(text), &st); err != nil {
		return nil, refuse(BadAnnotation, AnnotationStatus, "is written by the webhook alone: remove it")
	}
	return &st, nil
}

// first gives a pod its sidecar.
func (w *work) first() (Result, error) {
	if err := w.conflicts(); err != nil {
		return Result{}, err
	}
	index, ok := w.s.order.place(w.pod.Spec.InitContainers)
	if !ok {
		return Result{}, w.noSuchPlace()
	}
	e := w.egress()
	text, cfg, err := w.s.compose(e)
	if err != nil {
		return Result{}, err
	}
	w.taken = e
	w.insertInit(index, w.s.sidecar(text))
	for _, v := range w.s.volumes() {
		push(w, "/spec/volumes", &w.pod.Spec.Volumes, v)
	}
	if e != nil && e.source != nil {
		env := &w.pod.Spec.InitContainers[index].Env
		push(w, ref{true, index}.path()+"/env", env, corev1.EnvVar{Name: egressVariable, ValueFrom: e.source})
	} else if e != nil && e.copied {
		w.copyEnv(e.from, e.index, ref{true, index}, egressVariable)
	}
	if share := w.pod.Spec.ShareProcessNamespace; share != nil && *share {
		w.found(SharedProcesses, "with shareProcessNamespace a container that runs as root can reach the agent's process, and with it its keys")
	}
	return w.finish(index, cfg)
}

// again follows up what another webhook did after the sidecar was put in.
func (w *work) again(done *status) (Result, error) {
	now := slices.IndexFunc(w.pod.Spec.InitContainers, named(Container))
	if now < 0 {
		return Result{Skipped: Finding{HasSidecar, "a container named postern is there already, not among the init containers: it is left as it is"}}, nil
	}
	others := slices.Delete(slices.Clone(w.pod.Spec.InitContainers), now, now+1)
	index, ok := w.s.order.place(others)
	if !ok {
		return Result{}, w.noSuchPlace()
	}
	_, cfg, err := w.s.compose(nil)
	if err != nil {
		return Result{}, err
	}
	w.moveInit(now, index)
	for _, name := range done.Containers {
		w.done[name] = true
	}
	res, err := w.finish(index, cfg)
	if res.Again = true; err == nil && len(res.Patch) == 0 {
		return Result{Again: true, Skipped: Finding{AlreadyInjected, "the sidecar is there, and nothing is left to do"}}, nil
	}
	return res, err
}

// finish points the application's containers to the sidecar at index, and says so on the pod.
func (w *work) finish(index int, cfg *config.Config) (Result, error) {
	targets, err := w.targets(index)
	if err != nil {
		return Result{}, err
	}
	providers := providersOf(cfg)
	for _, r := range targets {
		if name := w.at(r).Name; !w.done[name] {
			w.variables(r, providers)
			w.done[name] = true
		}
	}
	w.heldKeys(providers)
	st := status{ProxyID: w.s.proxyID, Mode: w.s.mode.String(), Containers: []string{}}
	if w.s.configMap != nil {
		st.ProxyID = "" // the ConfigMap says which
	}
	for _, list := range [][]corev1.Container{w.pod.Spec.InitContainers, w.pod.Spec.Containers} {
		for _, c := range list {
			if w.done[c.Name] {
				st.Containers = append(st.Containers, c.Name)
			}
		}
	}
	if len(st.Containers) == 0 {
		w.found(NothingToPointTo, "no container of the application is given variables: name some in %scontainers, or set clients up in code", Prefix)
	}
	text, err := json.Marshal(st)
	if err != nil {
		return Result{}, refuse(BadAnnotation, AnnotationStatus, "cannot be written: %v", err)
	}
	w.setMeta("labels", &w.pod.Labels, LabelInjected, "true")
	w.setMeta("annotations", &w.pod.Annotations, AnnotationStatus, string(text))
	return Result{Patch: w.patch, Findings: w.findings}, nil
}

func (w *work) noSuchPlace() error {
	m := w.s.mistake("order", "names no init container of this pod; it has %s", listed(w.pod.Spec.InitContainers))
	return &Refusal{BadAnnotation, []Mistake{m}}
}

func listed(list []corev1.Container) string {
	var names []string
	for _, c := range list {
		if c.Name != Container {
			names = append(names, c.Name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// conflicts refuses what would clash in the pod.
func (w *work) conflicts() error {
	for _, c := range slices.Concat(w.pod.Spec.InitContainers, w.pod.Spec.Containers) {
		for _, p := range c.Ports {
			if (p.ContainerPort == proxyPort || p.ContainerPort == adminPort) && (p.Protocol == "" || p.Protocol == corev1.ProtocolTCP) {
				return refuse(Conflict, "container "+c.Name, "declares port %d, where the agent listens (%d and %d): give it another", p.ContainerPort, proxyPort, adminPort)
			}
		}
	}
	for _, ours := range w.s.volumes() {
		if slices.ContainsFunc(w.pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == ours.Name }) {
			return refuse(Conflict, "volume "+ours.Name, "is there already, and the agent's own has this name: rename it")
		}
	}
	return nil
}

// sidecar is the agent as a native sidecar.
func (s *settings) sidecar(text string) corev1.Container {
	always, yes, no := corev1.ContainerRestartPolicyAlways, true, false
	c := corev1.Container{
		Name: Container, Image: s.values["image"], ImagePullPolicy: corev1.PullPolicy(s.values["image-pull-policy"]),
		RestartPolicy: &always,
		Ports:         []corev1.ContainerPort{{Name: "postern-admin", ContainerPort: adminPort, Protocol: corev1.ProtocolTCP}},
		Resources:     s.resources,
		// Why it ended, where it did, is part of the pod's status.
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		SecurityContext: &corev1.SecurityContext{
			RunAsNonRoot: &yes, RunAsUser: s.user, RunAsGroup: s.user, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
			Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		VolumeMounts: []corev1.VolumeMount{
			{Name: "postern-token", MountPath: tokenDir, ReadOnly: true},
			{Name: "postern-state", MountPath: stateMount},
		},
	}
	from := "env:" + configVariable
	if s.configMap != nil {
		from = configDir + "/" + configFile
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "postern-config", MountPath: configDir, ReadOnly: true})
	} else {
		c.Env = []corev1.EnvVar{{Name: configVariable, Value: literal(text)}}
	}
	c.Args = []string{"agent", "-c", from}
	c.StartupProbe, c.ReadinessProbe = ready(from, 1, 120), ready(from, 10, 3)
	if s.mode != clientenv.Routes {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "postern-ca", MountPath: publicDir})
	}
	if s.vaultCA != nil {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "postern-vault-ca", MountPath: vaultCADir, ReadOnly: true})
	}
	if s.roots != nil {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "postern-roots", MountPath: rootsDir, ReadOnly: true})
	}
	return c
}

// ready is a probe by exec: it needs no port that a mesh would take over.
func ready(from string, period, failures int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"/postern", "status", "--ready", "-c", from}}},
		PeriodSeconds: period, TimeoutSeconds: 5, FailureThreshold: failures,
	}
}

// volumes are what the sidecar mounts; of all of them applications see the
// certificates of forward mode only.
func (s *settings) volumes() []corev1.Volume {
	expiry := int64(3600)
	out := []corev1.Volume{
		{Name: "postern-token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{
			ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", Audience: s.values["vault-audience"], ExpirationSeconds: &expiry},
		}}}}},
		memory("postern-state", "1Mi"),
	}
	if s.mode != clientenv.Routes {
		out = append(out, memory("postern-ca", "4Mi"))
	}
	for _, m := range []struct {
		name, file string
		from       *source
	}{{"postern-vault-ca", rootsFile, s.vaultCA}, {"postern-roots", rootsFile, s.roots}, {"postern-config", configFile, s.configMap}} {
		if m.from != nil {
			out = append(out, corev1.Volume{Name: m.name, VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
				LocalObjectReference: corev1.LocalObjectReference{Name: m.from.name}, Items: []corev1.KeyToPath{{Key: m.from.key, Path: m.file}},
			}}})
		}
	}
	return out
}

func memory(name, size string) corev1.Volume {
	limit := resource.MustParse(size)
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &limit}}}
}

// targets are the containers that get variables: those named, else all of the
// application's, init containers among them that start after the sidecar.
func (w *work) targets(index int) ([]ref, error) {
	var out []ref
	seen := map[string]bool{}
	consider := func(c corev1.Container, r ref) error {
		wanted := w.s.containers == nil && !slices.Contains(foreign, c.Name) || slices.Contains(w.s.containers, c.Name) && c.Name != Container
		early := r.init && r.index < index
		switch {
		case !wanted, early && w.s.containers == nil:
			return nil
		case early:
			m := w.s.mistake("containers", "names an init container that starts before the agent: set %sorder, or leave it out", Prefix)
			return &Refusal{BadAnnotation, []Mistake{m}}
		}
		seen[c.Name] = true
		out = append(out, r)
		if w.s.mode == clientenv.Routes || w.done[c.Name] {
			return nil
		}
		for _, m := range c.VolumeMounts {
			if m.MountPath == publicDir {
				return refuse(Conflict, "container "+c.Name, "mounts something at %s, where the agent's certificates go: mount it elsewhere", publicDir)
			}
		}
		return nil
	}
	for i, c := range w.pod.Spec.InitContainers {
		if err := consider(c, ref{true, i}); err != nil {
			return nil, err
		}
	}
	for i, c := range w.pod.Spec.Containers {
		if err := consider(c, ref{false, i}); err != nil {
			return nil, err
		}
	}
	for _, name := range w.s.containers {
		if !seen[name] {
			m := w.s.mistake("containers", "names a container that this pod does not have; it has %s", listed(slices.Concat(w.pod.Spec.InitContainers, w.pod.Spec.Containers)))
			return nil, &Refusal{BadAnnotation, []Mistake{m}}
		}
	}
	return out, nil
}

func (w *work) describe(r ref) string { return fmt.Sprintf("container %s", w.at(r).Name) }
