// Package clientenv says which environment variables make a program use the
// agent: base URLs that lead to its routes, placeholders where SDKs insist on a
// key, and for forward mode the proxy, NO_PROXY and trust variables. It is pure:
// what the environment holds now is asked of its caller, and what should become
// of it is the answer.
package clientenv

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/postern-proxy/postern/agent/provider/spec"
)

// Placeholder stands where an SDK wants a key. The agent strips it and
// attaches the real one; where it reaches a provider directly, the refusal
// explains itself.
const Placeholder = "attached-by-postern"

// Mode is how a program is led to the agent.
type Mode uint8

const (
	// Routes sets base URLs: http://127.0.0.1:8700/openai. Nothing else of the program's traffic changes.
	Routes Mode = iota
	// Forward makes the agent the program's HTTP proxy, and has it trust the agent's CA.
	Forward
	// Both does both.
	Both
)

var modes = []string{"routes", "forward", "both"}

// String is routes, forward or both.
func (m Mode) String() string {
	if int(m) < len(modes) {
		return modes[m]
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// ParseMode reads what String writes; "" is Routes.
func ParseMode(s string) (Mode, error) {
	if s == "" {
		return Routes, nil
	}
	if i := slices.Index(modes, s); i >= 0 {
		return Mode(i), nil
	}
	return 0, fmt.Errorf("unknown mode: write one of %s", strings.Join(modes, ", "))
}

// Provider is one configured provider.
type Provider struct {
	Name string    // its route
	Spec spec.Spec // resolved
}

// Input is what the variables follow from.
type Input struct {
	Mode Mode
	// Proxy is the agent's own address as http://IP:port. Required.
	Proxy string
	// Providers in the order of the configuration.
	Providers []Provider
	// CAFile holds the agent's CA alone (ca.pem), BundleFile that and every other
	// trusted root (bundle.pem). Used by Forward and Both; an empty one leaves
	// the variables out that would name it.
	CAFile, BundleFile string
	// NoProxy are further hosts, names and ranges that a program reaches without the agent.
	NoProxy []string
	// VaultHost is Vault's host without a port; "" for none.
	VaultHost string
	// Existing looks a variable up in the program's environment as it is now.
	// Nil means that it is empty.
	Existing func(name string) (string, bool)
}

// Kind is what a variable is for.
type Kind uint8

const (
	Setting Kind = iota // anything an SDK wants to know besides
	BaseURL             // leads to a route
	Key                 // holds the placeholder where a key was, or would be
	Proxy               // leads to the agent as a proxy, or past it
	Trust               // names a file of certificates
)

// Var is one variable to set.
type Var struct {
	Name  string
	Value string // never a secret
	Why   string // for whom or what, in a few words
	Kind  Kind
	// Replaces: it holds something else now, which is lost.
	Replaces bool
}

// Note is something about a variable, or a provider without one, that the user should hear of. Its text
// holds no key, and of a URL only scheme, host and port.
type Note struct {
	Name string // the variables, or the provider
	Text string // goes on after the name
}

// String is the name and the text.
func (n Note) String() string { return n.Name + " " + n.Text }

// Vars returns what to set, each name once, in the order of the providers and
// then proxy and trust, and what to tell the user.
func Vars(in Input) (set []Var, notes []Note) {
	b := newBuilder(in)
	if !strings.HasPrefix(b.in.Proxy, "http://") {
		b.note("HTTP_PROXY", "and base URLs cannot lead to a Unix socket: give the agent an address as in 127.0.0.1:8700, or set the client up in its code")
		return nil, b.notes
	}
	for _, p := range in.Providers {
		b.sdk(p)
	}
	for _, p := range in.Providers {
		b.keys(p)
	}
	b.google()
	if in.Mode == Routes {
		b.pastProxies()
	} else {
		b.proxy()
		b.trust()
	}
	return b.set, b.notes
}

// Summary is what to tell the user of a run: one line about what is set,
// "set OPENAI_BASE_URL, OPENAI_API_KEY; replaced ANTHROPIC_API_KEY" ("set
// nothing" for nothing), and below it an indented line for each note.
func Summary(set []Var, notes []Note) string {
	var fresh, replaced []string
	for _, v := range set { // https_proxy goes as HTTPS_PROXY
		if name := strings.ToUpper(v.Name); v.Replaces && !slices.Contains(replaced, name) {
			replaced = append(replaced, name)
		}
	}
	for _, v := range set {
		if name := strings.ToUpper(v.Name); !slices.Contains(replaced, name) && !slices.Contains(fresh, name) {
			fresh = append(fresh, name)
		}
	}
	var parts []string
	if len(fresh) > 0 || len(replaced) == 0 {
		parts = append(parts, "set "+cmp.Or(strings.Join(fresh, ", "), "nothing"))
	}
	if len(replaced) > 0 {
		parts = append(parts, "replaced "+strings.Join(replaced, ", "))
	}
	line := strings.Join(parts, "; ")
	for _, n := range notes {
		line += "\n  " + n.String()
	}
	return line
}

type builder struct {
	in    Input
	own   map[string]string // variable → the provider that has it
	done  map[string]bool
	set   []Var
	notes []Note
}

func newBuilder(in Input) *builder {
	in.Proxy = strings.TrimRight(in.Proxy, "/")
	if in.Existing == nil {
		in.Existing = func(string) (string, bool) { return "", false }
	}
	return &builder{in: in, own: owners(in.Providers), done: map[string]bool{}}
}

func (b *builder) note(name, format string, args ...any) {
	b.notes = append(b.notes, Note{Name: name, Text: fmt.Sprintf(format, args...)})
}

// add sets a variable once. Whether it replaces something is up to the caller.
func (b *builder) add(v Var) {
	if b.done[v.Name] {
		return
	}
	b.done[v.Name] = true
	b.set = append(b.set, v)
}

// now is what a variable holds; empty is nothing.
func (b *builder) now(name string) string {
	v, _ := b.in.Existing(name)
	return v
}

// owners settles which provider has a variable that several would set: the
// one with sdk_env: true, else the one that bears the name of the catalog entry
// whose own variable it is, else the first.
func owners(all []Provider) map[string]string {
	home := map[string]string{}
	for _, s := range spec.Catalog() {
		for name := range s.SDKEnv.Vars {
			if home[name] == "" {
				home[name] = s.Name
			}
		}
	}
	rank := func(p Provider, name string) int {
		switch own := p.Spec.SDKEnv.Own; {
		case own != nil && *own:
			return 3
		case p.Name == home[name]:
			return 2
		}
		return 1
	}
	own, best := map[string]string{}, map[string]int{}
	for _, p := range all {
		for name := range p.Spec.SDKEnv.Vars {
			if r := rank(p, name); r > best[name] {
				own[name], best[name] = p.Name, r
			}
		}
	}
	return own
}

// sdk sets what a provider's SDKs read.
func (b *builder) sdk(p Provider) {
	route := b.in.Proxy + "/" + p.Name
	vars := p.Spec.SDKEnv.Vars
	var lost []string
	led := false
	for _, name := range order(vars) {
		value := vars[name]
		kind := kindOf(value)
		if kind == BaseURL && b.in.Mode == Forward {
			b.bypass(p, name)
			continue
		}
		if b.own[name] != p.Name {
			if kind == BaseURL {
				lost = append(lost, name)
			}
			continue
		}
		value = strings.NewReplacer("{route}", route, "{placeholder}", Placeholder).Replace(value)
		switch kind {
		case BaseURL:
			led = true
			b.baseURL(name, value, p.Name)
		case Key:
			if name == geminiKey && b.now(geminiKey) == "" && b.now(googleKey) != "" {
				continue // the program has the other one, and a warning if it had both
			}
			b.add(Var{Name: name, Value: value, Kind: Key, Why: "a placeholder, because " + p.Name + "'s SDKs want a key", Replaces: !among(b.now(name), "", value)})
		default:
			if b.now(name) == "" { // a setting of the program's own stays
				b.add(Var{Name: name, Value: value, Kind: Setting, Why: "for " + p.Name})
			}
		}
	}
	if own := p.Spec.SDKEnv.Own; led || b.in.Mode != Routes || own != nil && !*own {
		return
	}
	if len(lost) > 0 {
		b.note(p.Name, "does not get %s, which leads to %s: set %s in code, or write sdk_env: true on its entry", strings.Join(lost, " or "), b.own[lost[0]], route)
		return
	}
	b.note(p.Name, "has no variable for a base URL: set %s in code, or use forward mode", route)
}

// order is base URLs first, then the rest, each by name.
func order(vars map[string]string) []string {
	return slices.SortedFunc(maps.Keys(vars), func(a, c string) int {
		ka, kc := kindOf(vars[a]), kindOf(vars[c])
		if (ka == BaseURL) != (kc == BaseURL) {
			if ka == BaseURL {
				return -1
			}
			return 1
		}
		return strings.Compare(a, c)
	})
}

func kindOf(value string) Kind {
	switch {
	case strings.Contains(value, "{route}"):
		return BaseURL
	case strings.Contains(value, "{placeholder}"):
		return Key
	}
	return Setting
}

func (b *builder) baseURL(name, value, provider string) {
	old := b.now(name)
	replaces := !among(old, "", value)
	if replaces && place(old) != place(b.in.Proxy) {
		b.note(name, "pointed to %s and is replaced by %s's route", cmp.Or(place(old), "another place"), provider)
	}
	b.add(Var{Name: name, Value: value, Kind: BaseURL, Why: provider + "'s route", Replaces: replaces})
}

// bypass notes a base URL that leads somewhere else than to the provider, where
// no key is attached: forward mode leaves base URLs alone.
func (b *builder) bypass(p Provider, name string) {
	old := b.now(name)
	if old == "" || b.own[name] != p.Name || p.lists(old) || place(old) == place(b.in.Proxy) {
		return
	}
	b.note(name, "points to %s, which is no host of %s: those requests get no key; unset it", cmp.Or(place(old), "another place"), p.Name)
}

// lists reports whether a URL leads to one of the provider's hosts.
func (p Provider) lists(raw string) bool {
	u, err := url.Parse(raw)
	if err != nil {
		return false
	}
	for _, h := range p.Spec.Hosts {
		host, err := spec.ParseHost(h, "443")
		if err == nil && host.Matches(strings.ToLower(u.Hostname()), cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])) {
			return true
		}
	}
	return false
}

// keys puts the placeholder where the program holds, or could hold, a real key.
func (b *builder) keys(p Provider) {
	for _, name := range p.Spec.SDKEnv.Keys {
		if old := b.now(name); !among(old, "", Placeholder) {
			b.add(Var{Name: name, Value: Placeholder, Kind: Key, Why: "a placeholder in place of a key of " + p.Name, Replaces: true})
		}
	}
}

// Google's SDKs take the first of these before the second and warn of both.
// Other Google services read it as well.
const googleKey, geminiKey = "GOOGLE_API_KEY", "GEMINI_API_KEY"

func (b *builder) google() {
	i := slices.IndexFunc(b.set, func(v Var) bool { return v.Name == googleKey })
	if i < 0 {
		return
	}
	also := ""
	if b.done[geminiKey] {
		also = ", and Google's SDKs will warn that they take it before " + geminiKey
	}
	b.note(googleKey, "holds the placeholder now%s: a program that needs it for other services of Google's must start without the agent", also)
}

// place is a URL's scheme, host and port: what may be told of it. "" if it has none.
func place(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme == "" || u.Host == "" || len(u.Host) > 100 {
		return ""
	}
	return u.Scheme + "://" + u.Host
}

func among(s string, any ...string) bool { return slices.Contains(any, s) }
