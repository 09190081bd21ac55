package config

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
)

// FuzzParse: whatever comes in, the answer is a configuration that is safe to
// use or a list of mistakes, each on one line.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/*.yaml", "testdata/bad/*.yaml"} {
		for _, file := range glob(f, pattern) {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Add([]byte("{version: 1, environment: a, proxy_id: px_a, store: {vault: }}"))
	f.Add([]byte("? !!merge <<\n: &a [*a]\n"))
	env := vars("VAULT_ADDR", "https://vault.example", "HTTPS_PROXY", "http://u:p@proxy.example:1")
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data, "fuzz", env, "/etc/postern")
		if err == nil {
			safe(t, c)
			return
		}
		list, ok := errors.AsType[*Errors](err)
		if !ok || c != nil || len(list.List) == 0 || len(list.List) > maxErrors+1 {
			t.Fatalf("config %v, error %T", c != nil, err)
		}
		for _, e := range list.List {
			if strings.ContainsFunc(e.Error(), func(r rune) bool { return !unicode.IsPrint(r) }) || e.Message == "" {
				t.Errorf("a message is not plain text: %q", e.Error())
			}
		}
		again, err2 := Parse(data, "fuzz", env, "/etc/postern")
		if again != nil || err2 == nil || err2.Error() != err.Error() {
			t.Errorf("a second look differs:\n%v\n%v", err, err2)
		}
	})
}

// safe checks what must hold for every configuration that was accepted.
func safe(t *testing.T, c *Config) {
	t.Helper()
	if (c.Store.Vault == nil) == (c.Store.Sealed == nil) {
		t.Error("not exactly one store")
	}
	if v := c.Store.Vault; v != nil && !strings.HasPrefix(v.Address, "https://") && !strings.HasPrefix(v.Address, "http://127.") && !strings.HasPrefix(v.Address, "http://[::1]") && !strings.HasPrefix(v.Address, "http://localhost") {
		t.Errorf("vault at %s", v.Address)
	}
	if a, err := netip.ParseAddrPort(c.Listen.Proxy); err == nil && !a.Addr().Unmap().IsLoopback() && !c.Listen.AllowRemote {
		t.Errorf("listens on %s", c.Listen.Proxy)
	}
	if strings.HasPrefix(c.Listen.Proxy, unixScheme) && len(c.Listen.AllowUIDs) == 0 {
		t.Error("a socket for everyone")
	}
	if c.RequireAPIKey || c.Version != 1 || c.Environment == "" || c.ProxyID == "" && (c.Server == nil || c.ValidateAgent() == nil || c.ValidateScope() == nil) {
		t.Errorf("%+v", c)
	}
	if c.Rotation.Grace < 2*c.Poll() || c.Poll() < 200*time.Millisecond || c.Rotation.RejectRatio <= 0 {
		t.Errorf("rotation %+v, poll %v", c.Rotation, c.Poll())
	}
	for _, i := range c.Issuers {
		if i.Provider == "" || !slices.Contains(kinds, i.Kind) || (i.Kind == KindVault) != (i.AdminKey == "") || i.Kind == KindVault && c.Store.Vault == nil {
			t.Errorf("issuer %+v", i)
		}
		for _, u := range []string{i.BaseURL, i.LoginURL} {
			if u != "" && (!strings.HasPrefix(u, "https://") || strings.ContainsAny(u, "?#@")) {
				t.Errorf("issuer at %q", u)
			}
		}
		if p := i.AdminPath(c.Environment); i.AdminKey != "" && (!strings.HasPrefix(p, "issuers/"+c.Environment+"/") || strings.Count(p, "/") != 2) {
			t.Errorf("admin credential at %q", p)
		}
	}
	names := map[string]bool{}
	for _, p := range c.Providers {
		if names[p.Name] || p.Name == "" || len(p.Hosts) == 0 || p.Forward == nil || p.BaseURL == "" || (p.Key == "") == (p.VaultPath == "") {
			t.Errorf("provider %+v", p)
		}
		names[p.Name] = true
	}
}
