package spec

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// As config reads it: inline in a larger struct, unknown fields refused.
type entry struct {
	Spec `yaml:",inline"`
	Key  string `yaml:"key"`
}

func decode(text string) (entry, error) {
	var e entry
	dec := yaml.NewDecoder(strings.NewReader(text))
	dec.KnownFields(true)
	err := dec.Decode(&e)
	return e, err
}

func TestDecodeInline(t *testing.T) {
	e, err := decode(`
name: house-llm
hosts: [llm.corp.example:8443]
base_url: https://llm.corp.example:8443
default_prefix: /v1
attach: {basic: {username: api}}
also: [{header: X-Team, format: "{team}", pass: true}]
strip: {headers: [X-Old], query: [old]}
probe: {method: POST, path: /health, host: llm.corp.example:8443, headers: {a: b}, body: "{}", live: [200], dead: [401], dead_unless: valid, dead_if: [off], dead_text: [gone], timeout: 2s}
dead: [401, 402]
capabilities: [{path: /x, name: chat, methods: [POST]}]
errors: openai
key_pattern: 'x-[0-9]{20}'
key_prefix: x-
sdk_env: {own: true, vars: {A: "{route}"}, shared: {B: "{placeholder}"}, keys: [C]}
echoes: true
allow_plaintext: true
ca_file: ca.pem
key: house
`)
	if err != nil {
		t.Fatal(err)
	}
	s, problems := Resolve(e.Spec, "", nil)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if s.Probe.Timeout.Seconds() != 2 || s.Probe.DeadBody != "valid" || !s.Also[0].Pass || e.Key != "house" {
		t.Errorf("%+v", e)
	}
	if !maps.Equal(s.SDKEnv.Vars, map[string]string{"A": "{route}", "B": "{placeholder}"}) {
		t.Errorf("an owner sets %v", s.SDKEnv.Vars)
	}
}

func TestDecodeSDKEnv(t *testing.T) {
	for text, want := range map[string]string{
		"sdk_env: true": "true", "sdk_env: false": "false", "sdk_env:": "", "name: x": "", "sdk_env: {keys: [A]}": "", "sdk_env: {own: false}": "false",
	} {
		e, err := decode(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got := ""
		if own := e.SDKEnv.Own; own != nil {
			got = map[bool]string{true: "true", false: "false"}[*own]
		}
		if got != want {
			t.Errorf("%s: own is %q", text, got)
		}
	}
	for text, want := range map[string]string{
		"sdk_env: maybe":                "true, false",
		"sdk_env: 1":                    "true, false",
		"sdk_env: [A]":                  "true, false",
		"sdk_env: {var: {A: b}}":        "field var not found",
		"sdk_env: {own: 3}":             "sdk_env.own",
		"sdk_env: {vars: [A]}":          "sdk_env.vars",
		"sdk_env: {vars: {A: {}}}":      "sdk_env.vars",
		"sdk_env: {keys: A}":            "sdk_env.keys",
		"sdk_env: {keys: [], keys: []}": "twice",
		"attach: {heder: x}":            "heder",
		"prob: {}":                      "prob",
	} {
		if _, err := decode(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error about %q", text, err, want)
		}
	}
}

func TestParams(t *testing.T) {
	s, _ := Lookup("bedrock")
	if got := s.Params(); !slices.Equal(got, []string{"region"}) {
		t.Error(got)
	}
	if got := (Spec{Hosts: []string{"{a}.{b}", "{"}, BaseURL: "https://{c}}{"}).Params(); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Error(got)
	}
}
