// Package provider is what a provider does: where a route leads, which hosts a
// key may go to, how it is attached, how it is probed, what a path is for, and
// what an error of its kind looks like. What a provider is stands in
// agent/provider/spec.
package provider

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/postern-proxy/postern/agent/provider/spec"
)

// Provider gives a resolved spec its behaviour. It is immutable: all methods
// are safe for concurrent use.
type Provider struct {
	spec   spec.Spec
	hosts  []spec.Host
	scheme string // of the base URL
	host   string // of the base URL, with its port unless that is the scheme's
	base   string // path of the base URL, no trailing slash
	prefix string // default prefix
	full   string // base and prefix
	first  string // the prefix's first segment

	attach       form
	also         []form
	authQuery    []string
	capabilities []capability
}

// New compiles a spec that spec.Resolve made. The error names every field that
// is wrong.
func New(s spec.Spec) (*Provider, error) {
	if problems := spec.Check(s); len(problems) > 0 {
		errs := make([]error, len(problems))
		for i, p := range problems {
			errs[i] = errors.New(p.String())
		}
		return nil, fmt.Errorf("provider %s: %w", s.Name, errors.Join(errs...))
	}
	p := &Provider{spec: s.Clone(), prefix: s.DefaultPrefix}
	for _, text := range s.Hosts {
		h, err := spec.ParseHost(text, "443")
		if err != nil {
			return nil, fmt.Errorf("provider %s: host %w", s.Name, err)
		}
		p.hosts = append(p.hosts, h)
	}
	u, err := url.Parse(s.BaseURL)
	if err != nil {
		return nil, fmt.Errorf("provider %s: base_url: %w", s.Name, err)
	}
	p.scheme, p.host, p.base = u.Scheme, u.Host, strings.TrimSuffix(u.EscapedPath(), "/")
	p.full = p.base + p.prefix
	p.first, _, _ = strings.Cut(strings.TrimPrefix(p.prefix, "/"), "/")
	if p.attach, err = compile(s.Attach); err != nil {
		return nil, fmt.Errorf("provider %s: attach: %w", s.Name, err)
	}
	for i, a := range s.Also {
		f, err := compile(a)
		if err != nil {
			return nil, fmt.Errorf("provider %s: also[%d]: %w", s.Name, i, err)
		}
		p.also = append(p.also, f)
	}
	p.authQuery = authQuery(s)
	for i, c := range s.Capabilities {
		pattern, err := spec.ParsePattern(c.Path)
		if err != nil {
			return nil, fmt.Errorf("provider %s: capabilities[%d]: %w", s.Name, i, err)
		}
		p.capabilities = append(p.capabilities, capability{pattern, c.Name, slices.Clone(c.Methods)})
	}
	return p, nil
}

// Name is the spec's name.
func (p *Provider) Name() string { return p.spec.Name }

// Spec is the resolved spec. Its slices and maps are the Provider's own and must not be changed.
func (p *Provider) Spec() spec.Spec { return p.spec }

// Endpoint is one exact place that a key may go to.
type Endpoint struct {
	Host string // lower case; an IP address without brackets
	Port string // decimal, never empty
	// Plaintext: plain HTTP, to a literal loopback address; otherwise TLS.
	Plaintext bool
}

// Endpoints returns the exact hosts, in the spec's order; wildcards are left
// out (see Lists). The caller owns the result.
func (p *Provider) Endpoints() []Endpoint {
	plain := spec.Host{}
	if p.scheme == "http" {
		plain, _ = spec.ParseHost(p.host, "80")
	}
	var out []Endpoint
	for _, h := range p.hosts {
		if !h.Wildcard {
			out = append(out, Endpoint{Host: h.Name, Port: h.Port, Plaintext: h == plain})
		}
	}
	return out
}

// Lists reports whether a key may go to host, which is canonical (lower case,
// no brackets, no trailing dot), at port. It does not allocate.
func (p *Provider) Lists(host, port string) bool {
	for _, h := range p.hosts {
		if h.Matches(host, port) {
			return true
		}
	}
	return false
}

// DeadStatus reports whether an answer's status says that the key itself was
// refused. Some providers say it with a status that means other things as well
// (400), so it is a suspicion until another key fares better.
func (p *Provider) DeadStatus(status int) bool { return slices.Contains(p.spec.Dead, status) }
