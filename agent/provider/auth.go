package provider

import (
	"maps"
	"net/textproto"
	"slices"

	"github.com/postern-proxy/postern/agent/provider/spec"
)

// AuthHeaders returns the canonical names of every header that carries a
// credential to any provider of the catalog or to one of extra, sorted. All of
// them are removed from a client's request (invariant I3), whichever provider
// it matched: a key sent in another provider's header would be a key leaked.
// Identifiers that are no credential (also with pass) are not among them, nor is Cookie
// unless a spec attaches one.
func AuthHeaders(extra ...spec.Spec) []string {
	names := map[string]bool{
		"Authorization": true, "Proxy-Authorization": true, "X-Api-Key": true, "Api-Key": true, "X-Goog-Api-Key": true,
	}
	for _, s := range append(spec.Catalog(), extra...) {
		add := func(name string) {
			if name != "" {
				names[textproto.CanonicalMIMEHeaderKey(name)] = true
			}
		}
		add(s.Attach.Header)
		for _, a := range s.Also {
			if !a.Pass {
				add(a.Header)
			}
		}
		for _, name := range s.Strip.Headers {
			add(name)
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// AuthQuery returns the names of the query parameters that carry a credential
// to this provider; a client's own are removed. Nil if there are none. The
// slice is the Provider's own and must not be changed.
func (p *Provider) AuthQuery() []string { return p.authQuery }

func authQuery(s spec.Spec) []string {
	var out []string
	add := func(name string) {
		if name != "" && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	add(s.Attach.Query)
	for _, a := range s.Also {
		if !a.Pass {
			add(a.Query)
		}
	}
	for _, name := range s.Strip.Query {
		add(name)
	}
	return out
}

// Credentials are the names of the secret's fields, beside the key itself, that
// are credentials too: whatever the attach form and `also` put into a header or
// query, but for a Basic user name and for identifiers (`pass`). Sorted.
func (p *Provider) Credentials() []string {
	set := map[string]bool{}
	add := func(format string) {
		pieces, err := spec.ParseFormat(format)
		if err != nil {
			return // spec.Check has refused it
		}
		for _, piece := range pieces {
			if piece.Field != "" && piece.Field != spec.KeyField {
				set[piece.Field] = true
			}
		}
	}
	for _, a := range append([]spec.Attach{p.spec.Attach}, p.spec.Also...) {
		switch {
		case a.Pass:
		case a.Basic != nil:
			add(a.Basic.Password)
		default:
			add(a.Format)
		}
	}
	return slices.Sorted(maps.Keys(set))
}
