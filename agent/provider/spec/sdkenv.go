package spec

import (
	"fmt"
	"maps"

	"gopkg.in/yaml.v3"
)

// SDKEnv is what a provider's official SDKs read from the environment. It is
// written in one of two forms:
//
//	sdk_env: true     # this entry owns the variables it shares with other providers (OPENAI_BASE_URL)
//	sdk_env: false    # this entry sets no variable
//
//	sdk_env:          # described in full; every part may be left out
//	  own: true
//	  vars: {ACME_BASE_URL: "{route}/v1", ACME_API_KEY: "{placeholder}"}
//	  shared: {OPENAI_BASE_URL: "{route}/v1", OPENAI_API_KEY: "{placeholder}"}
//	  keys: [ACME_TOKEN]
//
// Resolve settles ownership: afterwards Vars is exactly what the entry sets
// (Shared is part of it where Own is true, nothing where it is false). Where
// two entries still name one variable, the one with Own set has it.
type SDKEnv struct {
	// Own is nil where nothing was said.
	Own *bool
	// Vars maps a variable to its value: {route} is the route's URL without a
	// trailing slash (http://127.0.0.1:8700/openai), {placeholder} the constant
	// placeholder. Anything else is literal.
	Vars map[string]string
	// Shared are variables that belong to another provider first (OPENAI_BASE_URL
	// for everything that is OpenAI-compatible): set only by an owner. Nil after Resolve.
	Shared map[string]string
	// Keys are variables that may hold a real key: `exec` replaces them by the
	// placeholder where they are set, even those that Vars does not name. They
	// stay in force where Own is false.
	Keys []string
}

// UnmarshalYAML reads both forms. Unknown fields are refused here, because a
// strict decoder does not reach into a type that decodes itself.
func (e *SDKEnv) UnmarshalYAML(n *yaml.Node) error {
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		return nil
	case n.Kind == yaml.ScalarNode:
		var own bool
		if err := n.Decode(&own); err != nil {
			return fmt.Errorf("line %d: sdk_env: write true, false, or a map of own, vars, shared and keys", n.Line)
		}
		e.Own = &own
		return nil
	case n.Kind != yaml.MappingNode:
		return fmt.Errorf("line %d: sdk_env: write true, false, or a map of own, vars, shared and keys", n.Line)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if seen[k.Value] {
			return fmt.Errorf("line %d: sdk_env.%s is written twice", k.Line, k.Value)
		}
		seen[k.Value] = true
		var into any
		switch k.Value {
		case "own":
			into = &e.Own
		case "vars":
			into = &e.Vars
		case "shared":
			into = &e.Shared
		case "keys":
			into = &e.Keys
		default:
			return fmt.Errorf("line %d: field %s not found in sdk_env: it has own, vars, shared and keys", k.Line, k.Value)
		}
		if err := v.Decode(into); err != nil {
			return fmt.Errorf("line %d: sdk_env.%s: %w", v.Line, k.Value, err)
		}
	}
	return nil
}

// overlay returns e with the parts that o sets.
func (e SDKEnv) overlay(o SDKEnv) SDKEnv {
	if o.Own != nil {
		e.Own = o.Own
	}
	if o.Vars != nil {
		e.Vars = o.Vars
	}
	if o.Shared != nil {
		e.Shared = o.Shared
	}
	if o.Keys != nil {
		e.Keys = o.Keys
	}
	return e
}

// settle makes Vars exactly what is to be set.
func (e SDKEnv) settle() SDKEnv {
	switch {
	case e.Own != nil && !*e.Own:
		e.Vars = nil
	case e.Own != nil && len(e.Shared) > 0:
		vars := maps.Clone(e.Shared)
		maps.Copy(vars, e.Vars)
		e.Vars = vars
	}
	e.Shared = nil
	return e
}
