package e2etest

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
)

// Store is a store as its operator sees it.
type Store interface {
	YAML() string   // for the agent's configuration
	Shared() string // the same for agents in other folders
	Put(name, key string) (version int)
}

// VaultStore is a Vault with a role for the agent, and what counts the requests to it.
type VaultStore struct {
	*vaulttest.Vault
	Front *vaulttest.Front
	Auth  string // YAML
	mount string // of the auth method
	dir   string // of the files that auth names
}

// agentPolicy is what an agent needs, and one path of another layout.
const agentPolicy = `
path "secret/data/postern/provider-keys/*"     { capabilities = ["read"] }
path "secret/metadata/postern/provider-keys/*" { capabilities = ["read"] }
path "secret/data/postern/rotations/*"         { capabilities = ["read"] }
path "secret/data/postern/halts/*"             { capabilities = ["create", "read"] }
path "secret/data/team/*"                      { capabilities = ["read"] }
`

// Vault starts one whose tokens live an hour.
func (w *World) Vault(o vaulttest.Options) *VaultStore { return w.VaultRole(o, "1h") }

// VaultRole is Vault with tokens that live so long.
func (w *World) VaultRole(o vaulttest.Options, ttl string) *VaultStore {
	w.T.Helper()
	return w.On(vaulttest.Start(w.T, o), "approle", map[string]any{"token_ttl": ttl})
}

// On is a Vault that runs already. Who logs in at the mount, which is made, gets a token of these settings.
func (w *World) On(v *vaulttest.Vault, mount string, token map[string]any) *VaultStore {
	w.T.Helper()
	s := &VaultStore{Vault: v, Front: vaulttest.NewFront(w.T, v), mount: mount, dir: w.Dir}
	s.Policy("agent", agentPolicy)
	s.EnableAuth(mount, "approle")
	settings := map[string]any{"token_policies": "agent"}
	maps.Copy(settings, token)
	s.Do("POST", "auth/"+mount+"/role/agent", settings)
	role, _ := s.Do("GET", "auth/"+mount+"/role/agent/role-id", nil)["role_id"].(string)
	id, _ := s.Do("POST", "auth/"+mount+"/role/agent/secret-id", nil)["secret_id"].(string)
	Write(w.T, w.Path("secret-id"), id+"\n")
	s.Auth = fmt.Sprintf("approle: {mount: %s, role_id: %s, secret_id_file: secret-id}", mount, role)
	return s
}

// YAML leads the agent to Vault.
func (s *VaultStore) YAML() string { return s.With(s.Auth) }

// With is the store for a configuration that logs in so: what stands before
// Vault, or, where it speaks TLS, itself.
func (s *VaultStore) With(auth string) string {
	if s.CAFile != "" {
		return fmt.Sprintf("{vault: {address: %q, ca_file: %q, poll: 1s, auth: {%s}}}", s.Address, s.CAFile, auth)
	}
	return fmt.Sprintf("{vault: {address: %q, poll: 1s, auth: {%s}}}", s.Front.URL, auth)
}

// KeyPath is where a key lies.
func KeyPath(environment, name string) string {
	return "secret/postern/provider-keys/" + environment + "/" + ProxyID + "/" + name
}

// Put writes the next version of a key.
func (s *VaultStore) Put(name, key string) int {
	return s.KVPut(KeyPath("staging", name), map[string]string{"api_key": key})
}

// Logins is how often somebody tried to log in.
func (s *VaultStore) Logins() int { return s.Front.Count("auth/" + s.mount + "/login") }

// SealedStore is the embedded store, filled by the command that is made for it.
type SealedStore struct {
	w    *World
	File string // the operator's configuration
}

// SealedYAML is a SealedStore, for an agent in the same folder.
const SealedYAML = "{sealed: {file: postern.sealed, key_file: postern.key, poll: 1s}}"

// Sealed makes one that is empty.
func (w *World) Sealed() *SealedStore {
	s := &SealedStore{w: w, File: w.Path("keys.yaml")}
	c := w.Config(s)
	c.Providers = []string{"{name: openai}"}
	Write(w.T, s.File, c.YAML())
	return s
}

// YAML is SealedYAML.
func (s *SealedStore) YAML() string { return SealedYAML }

// Put adds the next version of a key.
func (s *SealedStore) Put(name, key string) int {
	t := s.w.T
	t.Helper()
	out, said, code := agenttest.Run(t, s.w.Dir, key+"\n", "keys", "add", name, "-o", "json", "-c", s.File)
	var added struct{ Version int }
	if err := json.Unmarshal([]byte(out), &added); code != 0 || err != nil {
		t.Fatalf("postern keys add %s: exit code %d, %v\n%s%s", name, code, err, out, said)
	}
	return added.Version
}

// Shared is YAML with files named so that an agent in any folder can use it.
func (s *VaultStore) Shared() string {
	return s.With(strings.Replace(s.Auth, "secret-id", s.dir+"/secret-id", 1))
}

func (s *SealedStore) Shared() string {
	return fmt.Sprintf("{sealed: {file: %q, key_file: %q, poll: 1s}}", s.w.Path("postern.sealed"), s.w.Path("postern.key"))
}
