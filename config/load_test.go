package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const minimal = "version: 1\nenvironment: NAME\nproxy_id: px_a\nstore: {sealed: {file: a.sealed, key_file: a.key}}\nproviders: [{name: openai}]\n"

func minimalFor(name string) string { return strings.Replace(minimal, "NAME", name, 1) }

func vars(pairs ...string) func(string) string {
	return func(k string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == k {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	dir, err := os.Getwd() // as the program sees it, links followed
	if err != nil {
		t.Fatal(err)
	}
	write(t, "sub/other.yaml", minimalFor("file"))
	home := vars("HOME", "/home/u")
	for _, c := range []struct {
		name, ref      string
		env            func(string) string
		want, key, src string
	}{
		{"a file, relative to itself", "sub/other.yaml", home, "file", dir + "/sub/a.key", "sub/other.yaml"},
		{"a variable", "env:YAML", vars("YAML", minimalFor("variable")), "variable", dir + "/a.key", "env:YAML"},
		{"$POSTERN_CONFIG is a file", "", vars("POSTERN_CONFIG", "sub/other.yaml"), "file", dir + "/sub/a.key", "sub/other.yaml"},
		{"$POSTERN_CONFIG names a variable", "", vars("POSTERN_CONFIG", "env:Y", "Y", minimalFor("variable")), "variable", dir + "/a.key", "env:Y"},
		{"$POSTERN_CONFIG is the YAML", "", vars("POSTERN_CONFIG", minimalFor("inline")), "inline", dir + "/a.key", "env:POSTERN_CONFIG"},
		{"nothing", "", home, "dev", "", "built-in default"},
		{"the argument wins", "sub/other.yaml", vars("POSTERN_CONFIG", "nowhere"), "file", dir + "/sub/a.key", "sub/other.yaml"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Load(c.ref, c.env)
			if err != nil {
				t.Fatal(err)
			}
			if want := strings.TrimSuffix(c.key, "a.key") + "other.yaml"; strings.HasSuffix(c.src, ".yaml") && got.File() != want || !strings.HasSuffix(c.src, ".yaml") && got.File() != "" {
				t.Errorf("file %q, want %q", got.File(), want)
			}
			if got.Environment != c.want || got.Source != c.src || c.key != "" && got.Store.Sealed.KeyFile != c.key {
				t.Errorf("%s from %s, key %s", got.Environment, got.Source, got.Store.Sealed.KeyFile)
			}
		})
	}
	write(t, "postern.yaml", minimalFor("here"))
	got, err := Load("", home)
	if err != nil || got.Environment != "here" {
		t.Errorf("./postern.yaml was not taken: %v", err)
	}
}

func TestLoadSaysWhy(t *testing.T) {
	t.Chdir(t.TempDir())
	for ref, want := range map[string]string{
		"nowhere.yaml": "configuration file nowhere.yaml: no such file",
		".":            "is a directory",
		"env:NOPE":     "the variable NOPE is not set or empty",
		"env:":         "write env:NAME",
		"env:a b":      "write env:NAME",
	} {
		if _, err := Load(ref, noEnv); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", ref, err, want)
		}
	}
	if _, err := Load("", noEnv); err == nil || !strings.Contains(err.Error(), "HOME is not set") {
		t.Errorf("no home: %v", err)
	}
	// What is there but cannot be used is never passed over for the default.
	if err := os.Symlink("nowhere", "postern.yaml"); err != nil {
		t.Fatal(err)
	}
	if c, err := Load("", vars("HOME", "/home/u")); err == nil {
		t.Errorf("a dangling postern.yaml was passed over for %s", c.Source)
	}
}

func TestDefault(t *testing.T) {
	c, err := Default(vars("HOME", "/home/u", "VAULT_ADDR", "https://vault.example:8200"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Environment != "dev" || c.ProxyID != "px_local" || c.Store.Vault != nil || c.Listen.Proxy != "127.0.0.1:8700" || c.Unmatched != "deny" {
		t.Errorf("%+v", c)
	}
	if err := c.ValidateAgent(); err != nil {
		t.Error(err)
	}
	if !c.BuiltIn() || c.File() != "" || c.Poll() != time.Second {
		t.Errorf("built in: %v, file %q, poll %v", c.BuiltIn(), c.File(), c.Poll())
	}
	have := map[string]Provider{}
	for _, p := range c.Providers {
		have[p.Name] = p
		if !p.Optional || p.Key != p.Name || p.Provider != p.Name || p.BaseURL == "" {
			t.Errorf("%s: %+v", p.Name, p)
		}
	}
	if _, ok := have["openai"]; !ok || len(have) < 10 {
		t.Errorf("%d providers", len(have))
	}
	if _, ok := have["azure-openai"]; ok {
		t.Error("azure-openai has no resource to go to")
	}
}

func TestDataDir(t *testing.T) {
	for _, c := range []struct {
		env        func(string) string
		goos, want string
	}{
		{vars("HOME", "/home/u"), "linux", "/home/u/.local/share/postern"},
		{vars("HOME", "/Users/u"), "darwin", "/Users/u/Library/Application Support/postern"},
		{vars("HOME", "/home/u", "XDG_DATA_HOME", "/data"), "linux", "/data/postern"},
		{vars("HOME", "/home/u", "XDG_DATA_HOME", "relative"), "linux", "/home/u/.local/share/postern"},
		{vars("HOME", "relative"), "linux", ""},
	} {
		got, err := dataDir(c.env, c.goos)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v; want %q", c.goos, got, err, c.want)
		}
	}
}
