package spec

import (
	"bytes"
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"gopkg.in/yaml.v3"
)

//go:embed catalog.yaml
var catalogYAML []byte

// catalogEntry is a Spec with what a configuration may not say for itself.
type catalogEntry struct {
	Spec `yaml:",inline"`
	// Wildcards are those an entry's hosts may use: labels that the provider
	// alone assigns (invariant I1).
	Wildcards []string `yaml:"wildcards"`
	// OpenAIPaths are the path prefixes at which the provider speaks OpenAI's API.
	OpenAIPaths []string `yaml:"openai_paths_at"`
}

type catalogFile struct {
	OpenAIPaths []Capability   `yaml:"openai_paths"`
	Providers   []catalogEntry `yaml:"providers"`
}

// catalog is parsed once. The file is part of the program, so a mistake in it is a panic.
var catalog = sync.OnceValue(func() catalogFile {
	f, err := parseCatalog(catalogYAML)
	if err != nil {
		panic("agent/provider/spec: catalog.yaml: " + err.Error())
	}
	return f
})

func parseCatalog(b []byte) (catalogFile, error) {
	var f catalogFile
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&f); err != nil {
		return f, err
	}
	seen := map[string]bool{}
	for i := range f.Providers {
		e := &f.Providers[i]
		if seen[e.Name] {
			return f, fmt.Errorf("%s is listed twice", e.Name)
		}
		seen[e.Name] = true
		e.Capabilities = append(e.Capabilities, openAIPaths(f.OpenAIPaths, e.OpenAIPaths)...)
	}
	return f, nil
}

// openAIPaths puts the OpenAI-compatible paths below each prefix ("" is the root).
func openAIPaths(paths []Capability, prefixes []string) []Capability {
	var out []Capability
	for _, prefix := range prefixes {
		for _, c := range paths {
			c.Path = "^" + prefix + c.Path
			out = append(out, c)
		}
	}
	return out
}

// Catalog returns every provider postern knows, in the catalog's order. Hosts
// may hold {param}s; Resolve fills them in. The caller owns the result.
func Catalog() []Spec {
	entries := catalog().Providers
	out := make([]Spec, len(entries))
	for i, e := range entries {
		out[i] = e.Spec.Clone()
	}
	return out
}

// Lookup returns one catalog entry, as Catalog does.
func Lookup(name string) (Spec, bool) {
	e, ok := lookup(name)
	if !ok {
		return Spec{}, false
	}
	return e.Spec.Clone(), true
}

func lookup(name string) (catalogEntry, bool) {
	for _, e := range catalog().Providers {
		if e.Name == name {
			return e, true
		}
	}
	return catalogEntry{}, false
}

// Params returns the names of the {param}s in the spec's hosts, base URL and
// probe host, in order of appearance; each must be given by `with`.
func (s Spec) Params() []string {
	var out []string
	for _, text := range append(slices.Clone(s.Hosts), s.BaseURL, s.Probe.Host) {
		for {
			_, rest, open := strings.Cut(text, "{")
			name, tail, closed := strings.Cut(rest, "}")
			if !open || !closed {
				break
			}
			if !slices.Contains(out, name) {
				out = append(out, name)
			}
			text = tail
		}
	}
	return out
}

// Clone returns a deep copy.
func (s Spec) Clone() Spec {
	s.Hosts = slices.Clone(s.Hosts)
	s.Attach = s.Attach.clone()
	s.Also = slices.Clone(s.Also)
	for i := range s.Also {
		s.Also[i] = s.Also[i].clone()
	}
	s.Strip = Strip{Headers: slices.Clone(s.Strip.Headers), Query: slices.Clone(s.Strip.Query)}
	s.Probe.Headers = maps.Clone(s.Probe.Headers)
	s.Probe.Live, s.Probe.Dead = slices.Clone(s.Probe.Live), slices.Clone(s.Probe.Dead)
	s.Probe.DeadIf, s.Probe.DeadText = slices.Clone(s.Probe.DeadIf), slices.Clone(s.Probe.DeadText)
	s.Dead = slices.Clone(s.Dead)
	s.Capabilities = slices.Clone(s.Capabilities)
	for i := range s.Capabilities {
		s.Capabilities[i].Methods = slices.Clone(s.Capabilities[i].Methods)
	}
	if own := s.SDKEnv.Own; own != nil {
		v := *own
		s.SDKEnv.Own = &v
	}
	s.SDKEnv.Vars, s.SDKEnv.Shared = maps.Clone(s.SDKEnv.Vars), maps.Clone(s.SDKEnv.Shared)
	s.SDKEnv.Keys = slices.Clone(s.SDKEnv.Keys)
	return s
}

func (a Attach) clone() Attach {
	if a.Basic != nil {
		b := *a.Basic
		a.Basic = &b
	}
	return a
}
