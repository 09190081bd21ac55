package roles

import (
	"slices"
	"strings"
)

// Place is a key whose verbs are asked about.
type Place struct {
	Mount, Prefix        string // as in Options
	Environment, ProxyID string
	Key                  string // its name; "" asks about a name that nothing in particular is said of
	Entity               string // whose acknowledgements; "" asks about none: such a token writes none
}

// Need is what a verb needs of one path.
type Need struct {
	Path         string   `json:"path"` // of Vault's API
	Capabilities []string `json:"capabilities"`

	core bool
}

// Needs returns all that a verb needs in a place, each path once.
func Needs(v Verb, p Place) []Need {
	var all []Need
	fill := p.fill()
	mount, prefix := p.root()
	for _, g := range needs[v] {
		if g.wide || v == Use && p.Entity == "" && strings.Contains(g.on.path, "{entity}") {
			continue
		}
		all = append(all, Need{g.on.at(mount, prefix, fill), strings.Fields(g.caps), g.core})
	}
	return all
}

// Ask returns the paths that the capabilities are wanted of, to judge every verb in a place.
func Ask(p Place) []string {
	var paths []string
	for _, v := range Verbs() {
		for _, n := range Needs(v, p) {
			paths = append(paths, n.Path)
		}
	}
	return slices.Compact(slices.Sorted(slices.Values(paths)))
}

// Answer says how much of a verb is possible.
type Answer struct {
	Verb    Verb   `json:"verb"`
	May     string `json:"may"` // yes, partly or no
	Missing []Need `json:"missing,omitempty"`
}

// Judge compares what every verb needs with the capabilities that Vault gives,
// by path: those of Ask. A path that is missing gives none.
func Judge(p Place, given map[string][]string) []Answer {
	var all []Answer
	for _, v := range Verbs() {
		a := Answer{Verb: v, May: "yes"}
		for _, n := range Needs(v, p) {
			n.Capabilities = lacking(n.Capabilities, given[n.Path])
			if len(n.Capabilities) == 0 {
				continue
			}
			a.Missing = append(a.Missing, n)
			if a.May == "yes" {
				a.May = "partly"
			}
			if n.core {
				a.May = "no"
			}
		}
		all = append(all, a)
	}
	return all
}

// lacking are the wanted capabilities that are not given. Vault answers "root"
// for a root token, and "deny" alone.
func lacking(want, given []string) []string {
	if slices.Contains(given, "root") {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(want), func(c string) bool { return slices.Contains(given, c) })
}

func (p Place) root() (mount, prefix string) {
	o := Options{Role: DevOps, Environment: "any", Mount: p.Mount, Prefix: p.Prefix}
	_ = o.complete() // for its defaults
	return o.Mount, o.Prefix
}

func (p Place) fill() *strings.Replacer {
	key, entity := p.Key, p.Entity
	if key == "" {
		key = "any"
	}
	if entity == "" {
		entity = "any"
	}
	return strings.NewReplacer("{env}", p.Environment, "{px}", p.ProxyID, "{entity}", entity,
		"{name}", key, "{to}", "1", "{issuer}", "any", "{agent}", "any", "{digest}", strings.Repeat("0", 64), "{seq}", "000000000001")
}
