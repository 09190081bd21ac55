package webhook

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
	corev1 "k8s.io/api/core/v1"

	"github.com/postern-proxy/postern/agent/clientenv"
)

var (
	labelForm     = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	configMapForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)
	dataKeyForm   = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}$`)
	variableForm  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	imageForm     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,511}$`)
	listForm      = regexp.MustCompile(`^[A-Za-z0-9._:/,*\[\]-]*$`)
	audienceForm  = regexp.MustCompile(`^[\x21-\x7e]{1,253}$`)
)

// settings are a pod's annotations over the defaults, understood.
type settings struct {
	values     map[string]string // by annotation, without the prefix
	annotated  map[string]bool   // which of them the pod itself says
	proxyID    string
	mode       clientenv.Mode
	containers []string // nil: all
	order      order
	override   []string // "*" for all
	vaultCA    *source  // nil: none
	roots      *source
	configMap  *source
	user       *int64 // nil: left out
	resources  corev1.ResourceRequirements
}

// source is one key of a ConfigMap.
type source struct{ name, key string }

// setting is one annotation, which has a chart-wide default of the same name.
type setting struct {
	name string
	def  string // where the chart says nothing
	// read understands a value; its error says what is allowed. Nil: the agent's
	// configuration is what understands it.
	read func(s *settings, value string) error
}

// table is every setting, in the order in which mistakes are told.
var table = []setting{
	{"environment", "prod", nil},
	{"proxy-id", "", func(s *settings, v string) error { s.proxyID = v; return nil }},
	{"providers", "openai", func(_ *settings, v string) error { _, err := providerList(v); return err }},
	{"mode", "routes", func(s *settings, v string) (err error) {
		if s.mode, err = clientenv.ParseMode(v); err != nil || v == "" {
			return errors.New("must be routes (base URLs), forward (a proxy and its CA) or both")
		}
		return nil
	}},
	{"containers", "*", func(s *settings, v string) error {
		names, err := words(v, labelForm, "must be * or names of containers with commas between")
		if s.containers = names; v == "*" {
			s.containers, err = nil, nil
		}
		return err
	}},
	{"order", "auto", func(s *settings, v string) (err error) {
		if s.order, err = parseOrder(v); err != nil {
			return fmt.Errorf("must be %w", err)
		}
		return nil
	}},
	{"override", "", func(s *settings, v string) (err error) {
		if s.override = []string{"*"}; v != "*" {
			s.override = nil
			if v != "" {
				s.override, err = words(v, variableForm, "must be * or names of variables with commas between, which may then be overwritten in the application's containers")
			}
		}
		return err
	}},
	{"vault-address", "", nil},
	{"vault-namespace", "", nil},
	{"vault-mount", "secret", nil},
	{"vault-prefix", "postern", nil},
	{"vault-audience", "vault", func(_ *settings, v string) error {
		return match(audienceForm, v, "must be the audience that the role in Vault asks of tokens, as in vault")
	}},
	{"vault-auth-method", "kubernetes", func(_ *settings, v string) error {
		if v != "kubernetes" && v != "jwt" {
			return errors.New("must be kubernetes or jwt: these are the methods that take a pod's own token")
		}
		return nil
	}},
	{"vault-auth-mount", "", nil},
	{"vault-role", "", nil},
	{"vault-ca-configmap", "", func(s *settings, v string) (err error) { s.vaultCA, err = parseSource(v, "ca.crt"); return err }},
	{"extra-roots-configmap", "", func(s *settings, v string) (err error) { s.roots, err = parseSource(v, "ca.crt"); return err }},
	{"run-as-user", "65532", func(s *settings, v string) error {
		if s.user = nil; v == "none" {
			return nil
		}
		n, err := strconv.ParseInt(v, 10, 32)
		if err != nil || n < 1 {
			return errors.New("must be a user id above 0, which is the group's too, or none where the platform assigns one (OpenShift)")
		}
		s.user = &n
		return nil
	}},
	{"unmatched", "tunnel", nil},
	{"log-level", "info", nil},
	{"resources", "{requests: {cpu: 5m, memory: 24Mi}, limits: {memory: 64Mi}}", func(s *settings, v string) (err error) {
		s.resources, err = parseResources(v)
		return err
	}},
	{"image", "", func(_ *settings, v string) error {
		if v == "" {
			return errors.New("is required: the agent's image, as in registry.example/postern:v1.0.0")
		}
		return match(imageForm, v, "must be an image's name, as in registry.example/postern:v1.0.0")
	}},
	{"image-pull-policy", "IfNotPresent", func(_ *settings, v string) error {
		if !slices.Contains([]string{"Always", "IfNotPresent", "Never"}, v) {
			return errors.New("must be Always, IfNotPresent or Never")
		}
		return nil
	}},
	{"config-map", "", func(s *settings, v string) (err error) { s.configMap, err = parseSource(v, "postern.yaml"); return err }},
	{"no-proxy", "", func(_ *settings, v string) error {
		return match(listForm, v, "must be hosts, names and ranges with commas between, as in NO_PROXY")
	}},
}

func settingNames() []string {
	var out []string
	for _, t := range table {
		out = append(out, t.name)
	}
	return out
}

func match(form *regexp.Regexp, v, say string) error {
	if !form.MatchString(v) {
		return errors.New(say)
	}
	return nil
}

// words splits at commas.
func words(v string, form *regexp.Regexp, say string) ([]string, error) {
	var out []string
	for w := range strings.SplitSeq(v, ",") {
		if w = strings.TrimSpace(w); !form.MatchString(w) {
			return nil, errors.New(say)
		}
		if !slices.Contains(out, w) {
			out = append(out, w)
		}
	}
	return out, nil
}

func parseSource(v, key string) (*source, error) {
	if v == "" {
		return nil, nil
	}
	s := source{name: v, key: key}
	if name, rest, slash := strings.Cut(v, "/"); slash {
		s = source{name, rest}
	}
	if !configMapForm.MatchString(s.name) || !dataKeyForm.MatchString(s.key) || strings.HasPrefix(s.key, "..") {
		return nil, fmt.Errorf("must be NAME or NAME/KEY of a ConfigMap in the pod's namespace (without KEY it is %s)", key)
	}
	return &s, nil
}

// Defaults are what holds for every pod whose annotations do not say otherwise.
// The zero value, and nil, has no image and no Vault: each pod names its own.
// It does not change after ParseDefaults and is safe for concurrent use.
type Defaults struct{ values map[string]string }

// ParseDefaults reads a YAML map of the annotations' names, without their prefix,
// to values: text as an annotation has it, or for providers and resources the
// YAML itself. Every mistake is reported at once. What no pod could do without
// may still be missing: then each pod has to say it.
func ParseDefaults(data []byte) (*Defaults, error) {
	var doc map[string]yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&doc); err != nil && len(bytes.TrimSpace(data)) > 0 {
		return nil, errors.New("the defaults are no YAML map of settings to values")
	}
	d := &Defaults{values: map[string]string{}}
	var mistakes []Mistake
	known := settingNames()
	for name, n := range doc {
		switch {
		case !slices.Contains(known, name):
			mistakes = append(mistakes, Mistake{shownName(name), unknown(name, known)})
		case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null":
		case n.Kind == yaml.ScalarNode:
			d.values[name] = n.Value
		default:
			text, err := flow(&n)
			if err != nil {
				mistakes = append(mistakes, Mistake{name, err.Error()})
			}
			d.values[name] = text
		}
	}
	if len(mistakes) == 0 {
		mistakes = d.check()
	}
	if len(mistakes) > 0 {
		slices.SortFunc(mistakes, func(a, b Mistake) int { return strings.Compare(a.Where, b.Where) })
		for i := range mistakes {
			mistakes[i].Where = "default of " + mistakes[i].Where
		}
		return nil, &Refusal{Reason: BadAnnotation, Mistakes: mistakes}
	}
	return d, nil
}

// check tries the defaults on a pod that says what they leave open.
func (d *Defaults) check() []Mistake {
	pod := &corev1.Pod{}
	pod.Annotations = map[string]string{}
	for name, stand := range map[string]string{"image": "postern", "vault-address": "https://vault.invalid", "vault-role": "any"} {
		if d.values[name] == "" {
			pod.Annotations[Prefix+name] = stand
		}
	}
	s, err := d.settings(pod, Place{Namespace: "default"})
	if err == nil {
		_, _, err = s.compose(nil)
	}
	refusal, _ := errors.AsType[*Refusal](err)
	if refusal == nil {
		return nil
	}
	out := slices.Clone(refusal.Mistakes)
	for i := range out {
		out[i].Where = strings.TrimPrefix(out[i].Where, Prefix)
		out[i].Text = strings.TrimSuffix(strings.TrimSuffix(out[i].Text, byDefault), unset)
	}
	return out
}

func unknown(name string, known []string) string {
	if n := nearest(name, known); n != "" {
		return fmt.Sprintf("is not known; did you mean %s?", n)
	}
	return "is not known; there are " + strings.Join(known, ", ")
}

// shownName is a name that can be repeated.
func shownName(name string) string {
	if labelForm.MatchString(name) && len(name) < 40 {
		return name
	}
	return "?"
}

// What ends a sentence about a value that the pod does not say itself.
const (
	byDefault = " (the value is the chart's default, not the pod's own)"
	unset     = " (annotate the pod, or set the chart's default)"
)

// mistake is one in a setting.
func (s *settings) mistake(name, format string, args ...any) Mistake {
	text := fmt.Sprintf(format, args...)
	switch {
	case s.annotated[name]:
	case s.values[name] == "":
		text += unset
	default:
		text += byDefault
	}
	return Mistake{Where: Prefix + name, Text: text}
}

// settings lays a pod's annotations over the defaults.
func (d *Defaults) settings(pod *corev1.Pod, at Place) (settings, error) {
	s := settings{values: map[string]string{}, annotated: map[string]bool{}}
	known := settingNames()
	var mistakes []Mistake
	for _, key := range sortedKeys(pod.Annotations) {
		name, ours := strings.CutPrefix(key, Prefix)
		switch {
		case !ours || key == AnnotationStatus:
		case slices.Contains(known, name):
			s.annotated[name] = true
		default:
			mistakes = append(mistakes, Mistake{Prefix + shownName(name), unknown(name, known)})
		}
	}
	for _, t := range table {
		v := t.def
		if d != nil {
			if own, is := d.values[t.name]; is {
				v = own
			}
		}
		if s.annotated[t.name] {
			v = pod.Annotations[Prefix+t.name]
		}
		v = strings.TrimSpace(v)
		s.values[t.name] = v
		if !utf8.ValidString(v) || strings.ContainsRune(v, 0) {
			mistakes = append(mistakes, s.mistake(t.name, "must be UTF-8 text"))
			continue
		}
		if t.read == nil {
			continue
		}
		if err := t.read(&s, v); err != nil {
			mistakes = append(mistakes, s.mistake(t.name, "%v", err))
		}
	}
	if s.proxyID == "" {
		account := pod.Spec.ServiceAccountName
		if account == "" {
			account = "default"
		}
		s.proxyID = "px_" + at.Namespace + "_" + account
	}
	if len(mistakes) > 0 {
		return s, &Refusal{Reason: BadAnnotation, Mistakes: s.more(mistakes)}
	}
	return s, nil
}

// more adds what the agent's configuration would say of the other annotations, so that all is told at once.
func (s *settings) more(mistakes []Mistake) []Mistake {
	told := map[string]bool{"": true}
	for _, m := range mistakes {
		told[m.Where] = true
	}
	if told[Prefix+"vault-auth-method"] {
		return mistakes // nothing could be made of it
	}
	_, _, err := s.compose(nil)
	if r, ok := errors.AsType[*Refusal](err); ok {
		for _, m := range r.Mistakes {
			if !told[m.Where] {
				mistakes = append(mistakes, m)
			}
		}
	}
	return mistakes
}
