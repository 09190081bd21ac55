package config

import (
	"reflect"
	"strings"
	"testing"
)

func TestServerExample(t *testing.T) {
	c, err := parseFile(t, "testdata/server.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if want := (Server{Listen: "0.0.0.0:8702", CertFile: "/etc/postern/tls/tls.crt", KeyFile: "/etc/postern/tls/tls.key"}); *c.Server != want {
		t.Errorf("server: %+v", *c.Server)
	}
	want := []Issuer{
		{Provider: "openai", Kind: KindOpenAI, AdminKey: "issuers/openai", Project: "proj_x"},
		{Provider: "openrouter", Kind: KindOpenRouter, AdminKey: "issuers/openrouter", BaseURL: "https://gateway.corp.example/openrouter", CAFile: "/etc/postern/corp.pem"},
		{Provider: "anthropic", Kind: KindAnthropic, AdminKey: "issuers/anthropic"},
		{
			Provider: "azure-openai", Kind: KindAzure, AdminKey: "issuers/azure", Subscription: "0b1f6471-1bf0-4dda-aec3-cb9272f09590", ResourceGroup: "ai.prod_(eu)",
			Account: "acme", BaseURL: "https://management.usgovcloudapi.net", LoginURL: "https://login.microsoftonline.us", Spare: "key2",
		},
		{Provider: "gemini", Kind: KindVault, Path: "gcp/roleset/gemini/key", Field: "private_key_data"},
		{Provider: "mistral", Kind: KindVault, Path: "mistral/creds/checkout", Field: "api_key"},
	}
	if !reflect.DeepEqual(c.Issuers, want) {
		t.Errorf("issuers:\n%+v\n%+v", c.Issuers, want)
	}
	if got := c.Issuers[0].AdminPath(c.Environment); got != "issuers/prod/openai" {
		t.Errorf("admin path %q", got)
	}
	if got := c.Issuers[4].AdminPath(c.Environment); got != "" {
		t.Errorf("vault's admin path %q", got)
	}
}

// Only the server does without a proxy id; everybody else is told so.
func TestServerNeedsNoProxyID(t *testing.T) {
	const text = "version: 1\nenvironment: prod\nstore: {sealed: {file: a, key_file: b}}\nserver: {cert_file: c, key_file: k}\n"
	c, err := Parse([]byte(text), "x.yaml", noEnv, "/d")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.ValidateServer(); err != nil {
		t.Error(err)
	}
	if c.Server.Listen != "127.0.0.1:8702" {
		t.Errorf("listens on %s", c.Server.Listen)
	}
	if err := c.ValidateScope(); err == nil || !strings.Contains(err.Error(), "proxy_id: is required here, for the command works on the keys of one proxy id") {
		t.Errorf("an operator: %v", err)
	}
	if err := c.ValidateAgent(); err == nil || !strings.Contains(err.Error(), "proxy_id: is required here, for the agent") || !strings.Contains(err.Error(), "providers: is empty") {
		t.Errorf("the agent: %v", err)
	}
	// One file may serve all three.
	c, err = Parse([]byte(text+"proxy_id: px_a\nproviders: [{name: openai}]\n"), "x.yaml", noEnv, "/d")
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"server": c.ValidateServer(), "scope": c.ValidateScope(), "agent": c.ValidateAgent()} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := Parse([]byte(strings.Replace(text, "server:", "#", 1)), "x.yaml", noEnv, "/d"); err == nil || !strings.Contains(err.Error(), "proxy_id: is required: px_") {
		t.Errorf("without a server: %v", err)
	}
}

func TestValidateServer(t *testing.T) {
	for text, want := range map[string][]string{
		"proxy_id: px_a\nstore: {sealed: {file: a, key_file: b}}":           {"server: is required"},
		"server:\nstore: {sealed: {file: a, key_file: b}}":                  {"server.cert_file: is required", "server.key_file: is required"},
		"server: {cert_file: c, key_file: k}\nstore: {vault: {address: A}}": {"store.vault.auth: is required for the server"},
	} {
		c, err := Parse([]byte("version: 1\nenvironment: prod\n"+strings.Replace(text, "address: A", `address: "https://v.example"`, 1)), "x.yaml", noEnv, "/d")
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		err = c.ValidateServer()
		for _, w := range want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q is missing from %v", text, w, err)
			}
		}
	}
	c, err := Default(vars("HOME", "/home/u"))
	if err != nil || c.ValidateServer() == nil {
		t.Errorf("the built-in default is no server's: %v", err)
	}
}

// A misspelt provider would never be asked for a key: it is noted.
func TestUnknownIssuerProviderIsNoted(t *testing.T) {
	const head = "version: 1\nenvironment: prod\nproxy_id: px_a\nstore: {sealed: {file: a, key_file: b}}\n"
	c, err := Parse([]byte(head+"issuers: [{provider: opnai, kind: openrouter, admin_key: issuers/a}]"), "x", noEnv, "/d")
	if err != nil || len(c.Notes) != 1 || c.Notes[0].Path != "issuers[0].provider" || !strings.Contains(c.Notes[0].Message, `did you mean "openai"`) {
		t.Errorf("%v %+v", err, c)
	}
	c, err = Parse([]byte(head+"providers: [{name: house, hosts: [llm.example], attach: {header: X-Key}}]\nissuers: [{provider: house, kind: openrouter, admin_key: issuers/a}]"), "x", noEnv, "/d")
	if err != nil || len(c.Notes) != 0 {
		t.Errorf("%v %+v", err, c)
	}
}

func TestServerDoesNotShareAListener(t *testing.T) {
	for _, listen := range []string{"{proxy: 127.0.0.1:8702}", "{admin: 127.0.0.1:8702}", "{admin: 0.0.0.0:8702}", `{proxy: "[::ffff:127.0.0.1]:8702"}`} {
		_, err := Parse([]byte("version: 1\nenvironment: prod\nserver: {cert_file: c, key_file: k}\nstore: {sealed: {file: a, key_file: b}}\nlisten: "+listen), "x", noEnv, "/d")
		if err == nil || !strings.Contains(err.Error(), "listens already: write another port") {
			t.Errorf("%s: %v", listen, err)
		}
	}
}
