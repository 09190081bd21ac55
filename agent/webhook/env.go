package webhook

import (
	"net/url"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/postern-proxy/postern/agent/clientenv"
)

// elsewhere stands for a value that is not in the pod: a Secret's, a ConfigMap's, a field's.
const elsewhere = "(elsewhere)"

var (
	httpsProxies = []string{"HTTPS_PROXY", "https_proxy"}
	httpProxies  = []string{"HTTP_PROXY", "http_proxy"}
	noProxies    = []string{"NO_PROXY", "no_proxy"}
)

// egress is the proxy through which the application left until now, and the agent leaves from now on.
type egress struct {
	where  string               // for messages
	config string               // egress.proxy: the URL itself, or the variable that holds it
	value  string               // the URL, where the pod has it
	source *corev1.EnvVarSource // where it comes from, else
	copied bool                 // it has a password: only the apiserver copies it
	from   ref
	index  int
	// noProxy is what the application reached without it.
	noProxy string
}

// egress finds the first proxy that a container of the application is set to. It goes into the
// configuration, but for one with a password: that moves from variable to variable.
func (w *work) egress() *egress {
	var first *egress
	for i, c := range w.pod.Spec.Containers {
		if slices.Contains(foreign, c.Name) {
			continue
		}
		e := w.egressOf(ref{false, i})
		switch {
		case e == nil:
		case w.s.configMap != nil:
			w.found(VariableKept, "%s is not taken over: the agent's configuration is in a ConfigMap, so write egress.proxy there", e.where)
		case first == nil:
			first = e
		case !first.same(c.Env[e.index]):
			w.found(VariableKept, "%s is another proxy than %s, by which the agent leaves for all containers", e.where, first.where)
		}
	}
	return first
}

func (w *work) egressOf(r ref) *egress {
	c := w.at(r)
	for _, name := range httpsProxies {
		i := lastEnv(c, name)
		if i < 0 {
			continue
		}
		e := &egress{where: w.describe(r) + ": " + name, from: r, index: i, source: c.Env[i].ValueFrom}
		value := c.Env[i].Value
		switch {
		case e.source == nil && (value == "" || place(value) == place(proxyURL)):
			continue
		case strings.Contains(value, "$("):
			w.found(VariableKept, "%s is put together from other variables and not taken over: where that proxy is the only way out, write it out", e.where)
			continue
		case e.source != nil:
			e.config = "env:" + egressVariable
		default:
			if e.value = strings.ReplaceAll(value, "$$", "$"); !strings.Contains(e.value, "://") {
				e.value = "http://" + e.value
			}
			e.config = e.value
			if e.copied = strings.Contains(e.value, "@"); e.copied {
				e.config = "env:" + egressVariable
			}
		}
		var direct []string
		for _, no := range noProxies {
			if j := lastEnv(c, no); j >= 0 && c.Env[j].ValueFrom == nil && !strings.Contains(c.Env[j].Value, "$(") && !slices.Contains(direct, c.Env[j].Value) {
				direct = append(direct, c.Env[j].Value)
			} else if j >= 0 && c.Env[j].ValueFrom != nil {
				w.found(VariableKept, "%s: %s comes from elsewhere, so the agent does not know what it may reach without the proxy", w.describe(r), no)
			}
		}
		e.noProxy = strings.Trim(strings.Join(direct, ","), ",")
		return e
	}
	return nil
}

// variables sets what a container's SDKs and runtimes read.
func (w *work) variables(r ref, providers []clientenv.Provider) {
	c := w.at(r)
	before := slices.Clone(c.Env)
	in := clientenv.Input{
		Mode: w.s.mode, Proxy: proxyURL, Providers: providers, VaultHost: hostOf(w.s.values["vault-address"]),
		CAFile: publicDir + "/ca.pem", BundleFile: publicDir + "/bundle.pem", Existing: existing(before),
	}
	for e := range strings.SplitSeq(w.s.values["no-proxy"], ",") {
		if e = strings.TrimSpace(e); e != "" {
			in.NoProxy = append(in.NoProxy, e)
		}
	}
	if w.s.mode != clientenv.Routes {
		push(w, r.path()+"/volumeMounts", &c.VolumeMounts, corev1.VolumeMount{Name: "postern-ca", MountPath: publicDir, ReadOnly: true})
	}
	vars, notes := clientenv.Vars(in)
	set := map[string]bool{}
	kept := map[string]bool{}
	for _, v := range vars {
		i := lastEnv(c, v.Name)
		switch {
		case i < 0, w.mayReplace(v, before, i):
			if i >= 0 && before[i].ValueFrom == nil && before[i].Value == literal(v.Value) {
				continue
			}
			w.setEnv(r, v.Name, v.Value)
			set[v.Name] = true
		default:
			kept[v.Name] = true
			w.keep(r, v, before[i])
		}
	}
	w.tell(r, notes, set, kept, providers)
	for _, f := range c.EnvFrom {
		if f.SecretRef != nil {
			w.found(PodMayHoldKey, "%s takes the whole Secret %s into its environment: if a provider's key is in it, this pod still holds that key", w.describe(r), f.SecretRef.Name)
		}
	}
}

// existing looks variables up as clientenv asks for them.
func existing(env []corev1.EnvVar) func(string) (string, bool) {
	return func(name string) (string, bool) {
		i := lastEnv(&corev1.Container{Env: env}, name)
		switch {
		case i < 0:
			return "", false
		case env[i].ValueFrom == nil:
			return strings.ReplaceAll(env[i].Value, "$$", "$"), true
		case slices.Contains(noProxies, name):
			return "", true // nothing that could be added to
		}
		return elsewhere, true
	}
}

// mayReplace reports whether a variable that is there may get another value:
// an empty one, a list that is only added to, the proxy that has moved into the
// agent's configuration, and what an annotation allows.
func (w *work) mayReplace(v clientenv.Var, before []corev1.EnvVar, i int) bool {
	now := before[i]
	switch {
	case now.ValueFrom == nil && (now.Value == "" || !v.Replaces):
		return true
	case slices.Contains(w.s.override, "*") || slices.Contains(w.s.override, v.Name):
		return true
	case w.taken == nil || !slices.Contains(httpsProxies, v.Name) && !slices.Contains(httpProxies, v.Name):
		return false
	}
	return w.s.mode != clientenv.Routes && w.taken.same(now)
}

// same reports whether a variable is the proxy that was taken over.
func (e *egress) same(v corev1.EnvVar) bool {
	if e.source != nil {
		return v.ValueFrom != nil && v.ValueFrom.String() == e.source.String()
	}
	value := strings.ReplaceAll(v.Value, "$$", "$")
	return v.ValueFrom == nil && (value == e.value || "http://"+value == e.value)
}

// keep says what it means that a variable stays.
func (w *work) keep(r ref, v clientenv.Var, now corev1.EnvVar) {
	from := ""
	if now.ValueFrom != nil {
		from = " comes from elsewhere and"
		if k := now.ValueFrom.SecretKeyRef; k != nil {
			from = " comes from the Secret " + k.Name + " and"
		}
	}
	at := w.describe(r) + ": " + v.Name
	switch v.Kind {
	case clientenv.Key:
		w.found(PodHoldsKey, "%s%s is no placeholder: this pod still holds a key; remove the variable, or name it in %soverride", at, from, Prefix)
	case clientenv.BaseURL:
		if now.ValueFrom == nil && place(now.Value) == place(proxyURL) {
			return // another of our routes, as somebody wanted it
		}
		leads := "leads past the agent"
		if p := place(now.Value); p != "" {
			leads = "leads to " + p + ", past the agent"
		}
		w.found(BaseURLBypasses, "%s%s %s: no key is attached there; remove the variable, or name it in %soverride", at, from, leads, Prefix)
	case clientenv.Trust:
		w.found(VariableKept, "%s%s stays: clients that read it do not trust the agent's CA; name it in %soverride, and roots that are needed besides in %sextra-roots-configmap", at, from, Prefix, Prefix)
	default:
		w.found(VariableKept, "%s%s stays as it is, and the agent needs another value there (%s); name it in %soverride if that is right", at, from, v.Why, Prefix)
	}
}

// tell passes on what clientenv says of variables that were changed and of
// providers without one. What it says of variables that stayed was said better.
func (w *work) tell(r ref, notes []clientenv.Note, set, kept map[string]bool, providers []clientenv.Provider) {
	for _, n := range notes {
		isProvider := slices.ContainsFunc(providers, func(p clientenv.Provider) bool { return p.Name == n.Name })
		proxy := slices.Contains(httpsProxies, n.Name) || slices.Contains(httpProxies, n.Name)
		switch {
		case isProvider:
			w.found(NoBaseURL, "%s", n)
		case kept[n.Name], proxy && !slices.Contains(w.s.override, "*") && !slices.Contains(w.s.override, n.Name):
		case set[n.Name], n.Name == "NO_PROXY":
			w.found(VariableChanged, "%s: %s", w.describe(r), strings.ReplaceAll(n.String(), "egress.ca_file", Prefix+"extra-roots-configmap"))
		case strings.Contains(n.Text, "points to"):
			w.found(BaseURLBypasses, "%s: %s", w.describe(r), n)
		}
	}
}

// heldKeys looks through every container for keys of the configured providers under other names.
func (w *work) heldKeys(providers []clientenv.Provider) {
	keys := map[string]bool{}
	var forms []*regexp.Regexp
	for _, p := range providers {
		for _, k := range p.Spec.SDKEnv.Keys {
			keys[k] = true
		}
		if p.Spec.KeyPattern != "" {
			if form, err := regexp.Compile(`^(?:Bearer )?(?:` + p.Spec.KeyPattern + `)$`); err == nil {
				forms = append(forms, form)
			}
		}
	}
	for _, list := range [][]corev1.Container{w.pod.Spec.InitContainers, w.pod.Spec.Containers} {
		for _, c := range list {
			if c.Name == Container {
				continue
			}
			for _, v := range c.Env {
				said := slices.ContainsFunc(w.findings, func(f Finding) bool {
					return f.Reason == PodHoldsKey && strings.HasPrefix(f.Text, "container "+c.Name+": "+v.Name+" ")
				})
				switch {
				case said:
				case v.ValueFrom != nil && v.ValueFrom.SecretKeyRef != nil:
					if k := v.ValueFrom.SecretKeyRef; keys[k.Key] || keys[v.Name] {
						w.found(PodHoldsKey, "container %s: %s comes from the Secret %s, whose key %s is named as a provider's: this pod still holds a key", c.Name, v.Name, k.Name, k.Key)
					}
				case slices.ContainsFunc(forms, func(f *regexp.Regexp) bool { return f.MatchString(strings.TrimSpace(v.Value)) }):
					w.found(PodHoldsKey, "container %s: %s looks like a provider's key: this pod still holds a key", c.Name, v.Name)
				}
			}
		}
	}
}

// place is a URL's scheme, host and port: what may be told of it. "" if it has none.
func place(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme == "" || u.Host == "" || len(u.Host) > 100 {
		return ""
	}
	return u.Scheme + "://" + u.Host
}
