package e2e_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
)

// keyStore is a store as its operator sees it.
type keyStore interface {
	yaml() string   // for the agent's configuration
	shared() string // the same for agents in other folders
	put(name, key string) (version int)
}

// stores are the two kinds, for stories that are the same on both.
var stores = map[string]func(*world) keyStore{
	"vault":  func(w *world) keyStore { return w.vault(vaulttest.Options{}) },
	"sealed": func(w *world) keyStore { return w.sealed() },
}

// onBothStores tells a story once for each kind of store.
func onBothStores(t *testing.T, story func(*testing.T, *world, keyStore)) {
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			story(t, w, open(w))
		})
	}
}

// vaultStore is a Vault with a role for the agent, and what counts the requests to it.
type vaultStore struct {
	*vaulttest.Vault
	front *vaulttest.Front
	auth  string // YAML
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

// vault starts one whose tokens live an hour.
func (w *world) vault(o vaulttest.Options) *vaultStore { return w.vaultRole(o, "1h") }

func (w *world) vaultRole(o vaulttest.Options, ttl string) *vaultStore {
	w.t.Helper()
	s := &vaultStore{Vault: vaulttest.Start(w.t, o), dir: w.dir}
	s.front = vaulttest.NewFront(w.t, s.Vault)
	s.Policy("agent", agentPolicy)
	s.EnableAuth("approle", "approle")
	s.Do("POST", "auth/approle/role/agent", map[string]any{"token_policies": "agent", "token_ttl": ttl})
	role, _ := s.Do("GET", "auth/approle/role/agent/role-id", nil)["role_id"].(string)
	id, _ := s.Do("POST", "auth/approle/role/agent/secret-id", nil)["secret_id"].(string)
	write(w.t, w.path("secret-id"), id+"\n")
	s.auth = fmt.Sprintf("approle: {role_id: %s, secret_id_file: secret-id}", role)
	return s
}

func (s *vaultStore) yaml() string {
	return fmt.Sprintf("{vault: {address: %q, poll: 1s, auth: {%s}}}", s.front.URL, s.auth)
}

// keyPath is where a key lies.
func keyPath(environment, name string) string {
	return "secret/postern/provider-keys/" + environment + "/" + proxyID + "/" + name
}

func (s *vaultStore) put(name, key string) int {
	return s.KVPut(keyPath("staging", name), map[string]string{"api_key": key})
}

// logins is how often somebody tried to log in.
func (s *vaultStore) logins() int { return s.front.Count("auth/approle/login") }

// sealedStore is the embedded store, filled by the command that is made for it.
type sealedStore struct {
	w    *world
	file string // the operator's configuration
}

const sealedYAML = "{sealed: {file: postern.sealed, key_file: postern.key, poll: 1s}}"

func (w *world) sealed() *sealedStore {
	s := &sealedStore{w: w, file: w.path("keys.yaml")}
	c := w.config(s)
	c.providers = []string{"{name: openai}"}
	write(w.t, s.file, c.yaml())
	return s
}

func (s *sealedStore) yaml() string { return sealedYAML }

func (s *sealedStore) put(name, key string) int {
	t := s.w.t
	t.Helper()
	out, said, code := agenttest.Run(t, s.w.dir, key+"\n", "keys", "add", name, "-o", "json", "-c", s.file)
	var added struct{ Version int }
	if err := json.Unmarshal([]byte(out), &added); code != 0 || err != nil {
		t.Fatalf("postern keys add %s: exit code %d, %v\n%s%s", name, code, err, out, said)
	}
	return added.Version
}
