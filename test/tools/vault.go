package tools

import "testing"

var vault = GoBinary{Name: "vault", Module: "vault", Tags: []string{"minimal"}}

// BuildVault returns the path of a HashiCorp Vault binary with the auth methods
// approle, cert, jwt, kubernetes, token and userpass and the engines kv, pki,
// ssh and transit.
func BuildVault() (string, error) { return vault.Build() }

// Vault is [BuildVault] for a test, which fails if there is none to be had.
func Vault(t testing.TB) string {
	t.Helper()
	path, err := BuildVault()
	if err != nil {
		t.Fatalf("no Vault to test against: %v", err)
	}
	return path
}
