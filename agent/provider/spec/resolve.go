package spec

import (
	"fmt"
	"maps"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"time"
)

// Defaults of a resolved spec.
const (
	DefaultProbeTimeout = 5 * time.Second
	DefaultErrors       = "problem"
)

// Resolve lays a configured entry over its catalog entry, fills in parameters
// and defaults, and checks the result.
//
// base names the catalog entry; "" means the entry's own name. A name that the
// catalog lacks describes a provider in full. A field that the entry sets
// replaces the catalog's: lists and maps whole, attach whole, probe whole
// where it has a path and field by field where it has none, sdk_env part by
// part. Other hosts also replace the catalog's base URL, and its probe where
// that asks a host of its own. with gives the {param}s of hosts, base_url and probe.host.
//
// Every mistake is reported, in a stable order; with problems the Spec must not
// be used. A resolved Spec has canonical hosts, a base URL without a trailing
// slash, and canonical header names; resolving it again changes nothing.
func Resolve(entry Spec, base string, with map[string]string) (Spec, []Problem) {
	var c checker
	s := entry.Clone()
	if base == "" {
		base = s.Name
	}
	cat, known := lookup(base)
	switch {
	case known:
		s = overlay(cat.Spec.Clone(), s)
	case base != s.Name:
		c.add("provider", "there is no catalog entry %q; write one of %s, or leave it out and describe the provider with hosts and attach",
			printable(base), strings.Join(names(), ", "))
	}
	if !known && len(s.Hosts) == 0 {
		if base == s.Name {
			c.add("hosts", "%q is not in the catalog (%s); list the hosts its key may go to, and attach",
				printable(s.Name), strings.Join(names(), ", "))
		}
		return s, c.problems // everything else would only repeat it
	}
	s = c.check(defaults(c.substitute(s, with)), cat.Wildcards)
	s.SDKEnv = s.SDKEnv.settle()
	return s, c.problems
}

// Check reports what is wrong with a spec that needs no catalog entry any
// more, as Resolve's result. Hosts may then be wildcards.
func Check(s Spec) []Problem {
	var c checker
	wild := slices.DeleteFunc(slices.Clone(s.Hosts), func(h string) bool { return !strings.HasPrefix(h, "*.") })
	c.check(s.Clone(), wild)
	return c.problems
}

func names() []string {
	entries := catalog().Providers
	out := make([]string, len(entries))
	for i, e := range entries {
		out[i] = e.Name
	}
	return out
}

// overlay returns s with every field that e sets.
func overlay(s, e Spec) Spec {
	set(&s.Name, e.Name)
	if len(e.Hosts) > 0 {
		// A base URL of the catalog's hosts does not fit others.
		s.Hosts, s.BaseURL = e.Hosts, ""
		if e.Probe.Host == "" && s.Probe.Host != "" {
			s.Probe = Probe{}
		}
	}
	set(&s.BaseURL, e.BaseURL)
	set(&s.DefaultPrefix, e.DefaultPrefix)
	set(&s.Errors, e.Errors)
	set(&s.KeyPattern, e.KeyPattern)
	set(&s.KeyPrefix, e.KeyPrefix)
	set(&s.CAFile, e.CAFile)
	if e.Attach != (Attach{}) {
		s.Attach = e.Attach
	}
	setList(&s.Also, e.Also)
	setList(&s.Strip.Headers, e.Strip.Headers)
	setList(&s.Strip.Query, e.Strip.Query)
	setList(&s.Dead, e.Dead)
	setList(&s.Capabilities, e.Capabilities)
	s.Probe = overlayProbe(s.Probe, e.Probe)
	s.SDKEnv = s.SDKEnv.overlay(e.SDKEnv)
	s.Echoes = s.Echoes || e.Echoes
	s.AllowPlaintext = s.AllowPlaintext || e.AllowPlaintext
	return s
}

func overlayProbe(p, e Probe) Probe {
	if e.Path != "" {
		return e
	}
	set(&p.Method, e.Method)
	set(&p.Host, e.Host)
	set(&p.Body, e.Body)
	set(&p.DeadBody, e.DeadBody)
	setList(&p.Live, e.Live)
	setList(&p.Dead, e.Dead)
	setList(&p.DeadIf, e.DeadIf)
	setList(&p.DeadText, e.DeadText)
	if len(e.Headers) > 0 {
		p.Headers = maps.Clone(e.Headers)
	}
	if e.Timeout != 0 {
		p.Timeout = e.Timeout
	}
	return p
}

func set(dst *string, v string) {
	if v != "" {
		*dst = v
	}
}

func setList[T any](dst *[]T, v []T) {
	if len(v) > 0 {
		*dst = v
	}
}

// substitute fills in the parameters. One that is missing, wrong or unknown is
// a problem; a harmless label takes its place so that the rest can be checked.
func (c *checker) substitute(s Spec, with map[string]string) Spec {
	params := s.Params()
	pairs := make([]string, 0, 2*len(params))
	for _, name := range params {
		v, ok := with[name]
		if !ok {
			c.add("with."+printable(name), "the provider's hosts need it; write with: {%s: …}, or name the exact hosts", printable(name))
			v = "param"
		} else if !isLabel(v) {
			c.add("with."+printable(name), "%q is not one part of a host name; write 1 to 63 of a-z, 0-9 and -", printable(v))
			v = "param"
		}
		pairs = append(pairs, "{"+name+"}", v)
	}
	for _, name := range slices.Sorted(maps.Keys(with)) {
		if !slices.Contains(params, name) {
			c.add("with."+printable(name), "no host of the provider has a parameter {%s}; leave it out", printable(name))
		}
	}
	r := strings.NewReplacer(pairs...)
	for i, h := range s.Hosts {
		s.Hosts[i] = r.Replace(h)
	}
	s.BaseURL, s.Probe.Host = r.Replace(s.BaseURL), r.Replace(s.Probe.Host)
	return s
}

func isLabel(s string) bool {
	if s == "" || len(s) > 63 {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// defaults fills in what nobody said.
func defaults(s Spec) Spec {
	if s.BaseURL == "" && len(s.Hosts) > 0 && !strings.HasPrefix(s.Hosts[0], "*") {
		s.BaseURL = "https://" + s.Hosts[0]
	}
	s.BaseURL = strings.TrimSuffix(s.BaseURL, "/")
	s.DefaultPrefix = strings.TrimSuffix(s.DefaultPrefix, "/")
	s.Errors = or(s.Errors, DefaultErrors)
	s.Attach = s.Attach.defaults()
	for i := range s.Also {
		s.Also[i] = s.Also[i].defaults()
	}
	for i, h := range s.Strip.Headers {
		s.Strip.Headers[i] = textproto.CanonicalMIMEHeaderKey(h)
	}
	if len(s.Dead) == 0 {
		s.Dead = []int{http.StatusUnauthorized}
	}
	if s.Probe.Path != "" {
		s.Probe.Method = or(s.Probe.Method, http.MethodGet)
		if len(s.Probe.Live) == 0 {
			s.Probe.Live = []int{http.StatusOK}
		}
		if len(s.Probe.Dead) == 0 {
			s.Probe.Dead = []int{http.StatusUnauthorized}
		}
		if s.Probe.Timeout == 0 {
			s.Probe.Timeout = DefaultProbeTimeout
		}
	}
	if len(s.Capabilities) == 0 {
		prefixes := []string{"", "/v1"}
		if cleanPath(s.DefaultPrefix) {
			prefixes = []string{s.DefaultPrefix}
		}
		s.Capabilities = openAIPaths(catalog().OpenAIPaths, prefixes)
		for i := range s.Capabilities {
			s.Capabilities[i].Methods = slices.Clone(s.Capabilities[i].Methods)
		}
	}
	return s
}

func (a Attach) defaults() Attach {
	a.Header = textproto.CanonicalMIMEHeaderKey(a.Header)
	switch {
	case a.Basic != nil:
		b := *a.Basic
		b.Password = or(b.Password, "{"+KeyField+"}")
		a.Basic = &b
	case a.Header != "" || a.Query != "":
		a.Format = or(a.Format, "{"+KeyField+"}")
	}
	return a
}

func or(v, otherwise string) string {
	if v == "" {
		return otherwise
	}
	return v
}

// checker collects problems.
type checker struct{ problems []Problem }

func (c *checker) add(field, format string, args ...any) {
	c.problems = append(c.problems, Problem{Field: field, Message: fmt.Sprintf(format, args...)})
}
