package config

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/postern-proxy/postern/agent/provider/spec"
)

var (
	providerName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	keyName      = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)
	fieldName    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`)
)

// reserved are paths that mean something else on a listener, or would look as if they did.
var reserved = []string{"healthz", "livez", "readyz", "metrics", "status", "debug", "v1", "postern"}

func (f *finish) providers() {
	if len(f.Providers) > maxProviders {
		f.at("providers", "has %d entries: at most %d are allowed", len(f.Providers), maxProviders)
		f.Providers = f.Providers[:0]
	}
	for i := range f.Providers {
		p := &f.Providers[i]
		at := item("providers", i)
		f.name(at+".name", p.Name, f.Providers[:i])
		f.key(at, p)
		if p.Forward == nil {
			yes := true
			p.Forward = &yes
		}
		f.resolve(at, p)
		f.file(at+".ca_file", &p.CAFile)
	}
	f.forwardOwners()
	f.variableOwners()
}

func (f *finish) name(at, name string, before []Provider) {
	f.form(at, name, providerName, true, "lower-case letters, digits and -, at most 63, as in openai: it is the route's name")
	if slices.Contains(reserved, name) {
		f.at(at, "%q is reserved: write another name, and keep provider: for the catalog's", name)
	}
	for j := range before {
		if name != "" && before[j].Name == name {
			f.at(at, "is the name of %s too: each needs its own, as in %s-2 with provider: for the catalog entry", item("providers", j), shortened(name))
			return
		}
	}
}

// shortened is a name for an example, or "openai" where it cannot be repeated.
func shortened(name string) string {
	if providerName.MatchString(name) && strings.HasPrefix(shown(name), `"`) {
		return name
	}
	return "openai"
}

// key settles where an entry's key is read from.
func (f *finish) key(at string, p *Provider) {
	if p.VaultPath == "" {
		if p.Field != "" {
			f.at(at+".field", "names a field of vault_path, which is not given: add vault_path, or remove field (the store's own keys are in api_key)")
		}
		if p.Key == "" {
			p.Key = p.Name
			return
		}
		f.form(at+".key", p.Key, keyName, true, "lower-case letters, digits, _ and -, at most 63, as in `postern keys add` NAME; never the key itself")
		return
	}
	if p.Key != "" {
		f.at(at+".key", "stands beside vault_path: keep key for one that postern manages, or vault_path for a secret laid out by somebody else")
	}
	if f.Store.Vault == nil && f.Store.Sealed != nil {
		f.at(at+".vault_path", "is for store.vault only: remove it and use `postern keys add`")
	}
	p.VaultPath = strings.Trim(p.VaultPath, "/")
	f.vaultPath(at+".vault_path", p.VaultPath, "the path as Vault's API has it, as in secret/data/team/openai")
	p.Field = cmp.Or(p.Field, spec.KeyField)
	f.form(at+".field", p.Field, fieldName, true, "letters, digits, '.', _ and -, as in api_key")
}

// resolve lays the entry over the catalog's, completes and checks it.
func (f *finish) resolve(at string, p *Provider) {
	known := p.Provider
	if known == "" {
		known = p.Name
	}
	_, found := spec.Lookup(known)
	if !found && (p.Provider != "" || len(p.Hosts) == 0) {
		if f.mistyped(at+".provider") || f.mistyped(at+".hosts") || f.mistyped(at+".name") {
			return
		}
		f.notInCatalog(at, p)
		return
	}
	if found {
		p.Provider = known
	}
	s, problems := spec.Resolve(p.Spec, p.Provider, p.With)
	var values []string
	if len(problems) > 0 {
		values = texts(reflect.ValueOf(p))
		// What holds another goes first.
		slices.SortFunc(values, func(a, b string) int { return cmp.Or(len(b)-len(a), cmp.Compare(a, b)) })
	}
	if over := len(problems) - maxErrors; over > 0 {
		f.more += over
		problems = problems[:maxErrors]
	}
	for _, m := range problems {
		path := problemPath(at, m.Field)
		if m.Field != "name" && !f.mistyped(path) { // the name was looked at already
			f.at(path, "%s", masked(m.Message, values...))
		}
	}
	if len(problems) > 0 {
		return
	}
	p.Spec = s
	for i, raw := range p.Hosts {
		if h, err := spec.ParseHost(raw, "443"); err == nil {
			port, _ := strconv.ParseUint(h.Port, 10, 16)
			if own := f.ownListener(h.Name, uint16(port)); own != "" {
				f.at(item(at+".hosts", i), "is the agent's own address (%s): name the provider's", own)
			}
		}
	}
}

func (f *finish) notInCatalog(at string, p *Provider) {
	all := catalogNames()
	if p.Provider != "" {
		f.at(at+".provider", "%s is not in the catalog%s; it has %s", shown(p.Provider), didYouMean(p.Provider, all), sorted(all))
		return
	}
	if p.Name != "" {
		f.at(at+".name", "%s is not in the catalog%s; write provider: with one of %s, or describe it with hosts and attach", shown(p.Name), didYouMean(p.Name, all), sorted(all))
	}
}

func catalogNames() []string {
	var out []string
	for _, s := range spec.Catalog() {
		out = append(out, s.Name)
	}
	return out
}

// catalogDefaults are the entries that are complete as they are.
func catalogDefaults() []string {
	var out []string
	for _, s := range spec.Catalog() {
		if len(s.Params()) == 0 {
			out = append(out, s.Name)
		}
	}
	return out
}

// maps of a provider whose names are the user's own.
var userNamed = []string{"with.", "probe.headers.", "sdk_env.vars.", "sdk_env.shared."}

// problemPath is where a mistake that spec found stands.
func problemPath(at, fieldPath string) string {
	for _, m := range userNamed {
		if key, ok := strings.CutPrefix(fieldPath, m); ok {
			return at + "." + m + name(key)
		}
	}
	return at + "." + fieldPath
}

// forwardOwners makes sure that a CONNECT leads to one entry.
func (f *finish) forwardOwners() {
	for i := range f.Providers {
		for j := range f.Providers[:i] {
			a, b := &f.Providers[j], &f.Providers[i]
			if !a.Forwards() || !b.Forwards() {
				continue
			}
			if h := sharedHost(a.Hosts, b.Hosts); h != "" {
				f.at(item("providers", i)+".forward", "%s and %s both own CONNECT to %s: write forward: false on all of them but one",
					item("providers", j), item("providers", i), masked(h))
			}
		}
	}
}

// sharedHost is a host that both lists reach, "" if there is none.
func sharedHost(a, b []string) string {
	for _, x := range a {
		for _, y := range b {
			hx, errX := spec.ParseHost(x, "443")
			hy, errY := spec.ParseHost(y, "443")
			switch {
			case errX != nil || errY != nil || !overlap(hx, hy):
			case hx.Wildcard:
				return hy.String()
			default:
				return hx.String()
			}
		}
	}
	return ""
}

// overlap reports whether some host and port is both.
func overlap(a, b spec.Host) bool {
	switch {
	case a.Port != b.Port:
		return false
	case a.Wildcard == b.Wildcard:
		return a.Name == b.Name
	case a.Wildcard:
		return a.Matches(b.Name, b.Port)
	}
	return b.Matches(a.Name, a.Port)
}

// variableOwners makes sure that at most one entry claims a variable that
// several providers' SDKs read.
func (f *finish) variableOwners() {
	claimed := map[string]int{}
	for i, p := range f.Providers {
		if p.SDKEnv.Own == nil || !*p.SDKEnv.Own {
			continue
		}
		for _, v := range slices.Sorted(maps.Keys(p.SDKEnv.Vars)) {
			if j, twice := claimed[v]; twice {
				f.at(item("providers", i)+".sdk_env", "%s and %s both claim %s: one variable leads to one of them, so write sdk_env: true only there",
					item("providers", j), item("providers", i), name(v))
				break
			}
			claimed[v] = i
		}
	}
}

// note says what is no mistake but good to know.
func (f *finish) note(path, format string, args ...any) {
	f.Notes = append(f.Notes, Error{Path: path, Line: lineOf(f.lines, path), Message: fmt.Sprintf(format, args...)})
}
