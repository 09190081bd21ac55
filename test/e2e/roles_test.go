package e2e_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/roles"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// roleGrid is what each role may, verb by verb, as docs/ROLES.md says it.
var roleGrid = map[roles.Role]map[roles.Verb]string{
	roles.Developer: {roles.View: "yes"},
	roles.TeamLead:  {roles.View: "yes", roles.Rotate: "yes", roles.Revoke: "yes", roles.Audit: "partly"},
	roles.DevOps:    {roles.View: "yes", roles.Rotate: "yes", roles.Revoke: "yes", roles.Audit: "partly"},
	roles.Security: {
		roles.View: "yes", roles.Rotate: "yes", roles.Add: "yes", roles.Schedule: "yes", roles.Revoke: "yes", roles.Audit: "yes",
	},
	roles.Agent: {roles.Use: "yes", roles.View: "partly", roles.Validate: "partly"},
	roles.Server: {
		roles.View: "yes", roles.Rotate: "yes", roles.Revoke: "yes", roles.Validate: "yes", roles.Issue: "yes",
		roles.Use: "partly", roles.Add: "partly", roles.Audit: "partly",
	},
}

// mayOf is a cell of a grid; what is not mentioned is not possible.
func mayOf(grid map[roles.Verb]string, v roles.Verb) string {
	if may := grid[v]; may != "" {
		return may
	}
	return "no"
}

// realm is a Vault in which each role has a policy and a login.
type realm struct {
	*vaulttest.Vault
	t      *testing.T
	seq    int // of the record's last entry
	fresh  int
	entity map[string]string // by token
}

const roleScope = "prod/px_acme/"

func newRealm(t *testing.T) *realm {
	t.Helper()
	r := &realm{Vault: vaulttest.Start(t, vaulttest.Options{}), t: t, entity: map[string]string{}}
	r.EnableAuth("approle", "approle")
	for _, scope := range []string{"prod/px_acme/", "prod/px_beta/", "staging/px_acme/"} {
		r.seed(scope, "openai")
	}
	for _, env := range []string{"prod", "staging"} {
		r.KVPut("secret/postern/issuers/"+env+"/openai", map[string]string{"admin_key": "the admin's"})
		r.KVPut("secret/postern/audit/"+env+"/000000000001", map[string]string{"entry": "{}"})
	}
	r.seq = 1
	return r
}

// seed makes a key with two versions, and what a rotation leaves.
func (r *realm) seed(scope, name string) {
	for _, value := range []string{"first", "second"} {
		r.KVPut("secret/postern/provider-keys/"+scope+name, map[string]string{"api_key": value})
	}
	r.KVPut("secret/postern/rotations/"+scope+name, map[string]string{"phase": "done"})
	r.KVPut("secret/postern/acks/"+scope+"some-entity/some-agent", map[string]string{"agent": "some-agent"})
}

// login gives a policy's token to an entity of its own, without Vault's default policy.
func (r *realm) login(name, policy string) (token string) {
	r.t.Helper()
	r.Policy(name, policy)
	at := "auth/approle/role/" + name
	r.Do("POST", at, map[string]any{"token_policies": name, "token_no_default_policy": true, "token_ttl": "1h"})
	role, _ := r.Do("GET", at+"/role-id", nil)["role_id"].(string)
	secret, _ := r.Do("POST", at+"/secret-id", nil)["secret_id"].(string)
	return r.enter("auth/approle/login", map[string]any{"role_id": role, "secret_id": secret})
}

func (r *realm) enter(path string, body map[string]any) (token string) {
	r.t.Helper()
	status, answer, err := r.Try(context.Background(), "", "POST", path, body)
	if err != nil || status != http.StatusOK {
		r.t.Fatalf("%s: %d, %v %v", path, status, answer, err)
	}
	auth := answer["auth"].(map[string]any)
	token = auth["client_token"].(string)
	r.entity[token], _ = auth["entity_id"].(string)
	return token
}

// policyOf is what the command prints for a role of prod. Those who are for some proxy ids are for px_acme.
func (r *realm) policyOf(role roles.Role, more ...string) string {
	r.t.Helper()
	args := append([]string{"policy", "--role", string(role), "--environment", "prod"}, more...)
	if len(more) == 0 && (role == roles.Developer || role == roles.TeamLead || role == roles.Agent) {
		args = append(args, "--proxy-id", "px_acme")
	}
	out, said, code := agenttest.Run(r.t, r.t.TempDir(), "", args...)
	if code != 0 || said != "" {
		r.t.Fatalf("postern %s: exit code %d\n%s", strings.Join(args, " "), code, said)
	}
	return out
}

// roleCall is one request as postern's commands send it.
type roleCall struct {
	method, path string // below secret/, postern's prefix left out
	body         any
	core         bool // without it the verb is impossible
}

func kvData(fields map[string]string, cas int) any {
	return map[string]any{"data": fields, "options": map[string]any{"cas": cas}}
}

// kvAPI is a path of the KV v2 engine: data/audit/prod/1 is below postern's prefix.
func kvAPI(path string) string {
	kind, rest, _ := strings.Cut(path, "/")
	return "secret/" + kind + "/postern/" + rest
}

// send returns the status; anything but success, nothing there (404) and a refusal (403) fails the test.
func (r *realm) send(token string, c roleCall) int {
	r.t.Helper()
	status, answer, err := r.Try(r.t.Context(), token, c.method, kvAPI(c.path), c.body)
	if err != nil {
		r.t.Fatal(err)
	}
	if status >= 300 && status != http.StatusNotFound && status != http.StatusForbidden {
		r.t.Errorf("%s %s: %d %v", c.method, c.path, status, answer)
	}
	return status
}

// calls are those of a verb, on a key and places in the record that are new.
func (r *realm) calls(v roles.Verb, entity string) []roleCall {
	r.t.Helper()
	r.fresh++
	name := "key" + strconv.Itoa(r.fresh)
	r.seed(roleScope, name)
	digest := fmt.Sprintf("%x", sha256.Sum256([]byte(name)))
	key, record, ack := "provider-keys/"+roleScope+name, "rotations/"+roleScope+name, "acks/"+roleScope+entity+"/agent-1"
	next := fmt.Sprintf("data/audit/prod/%012d", r.seq+1)
	recording := []roleCall{
		{"GET", "metadata/audit/prod/?list=true", nil, false},
		{"GET", fmt.Sprintf("data/audit/prod/%012d", r.seq), nil, false},
		{"POST", next, kvData(map[string]string{"entry": name}, 0), false},
	}
	look := []roleCall{{"GET", "metadata/" + key, nil, false}, {"GET", "data/" + record, nil, false}, {"GET", "metadata/" + record, nil, false}}
	claim := []roleCall{
		{"GET", "data/digests/" + digest, nil, false},
		{"POST", "data/digests/" + digest, kvData(map[string]string{"name": name}, 0), false},
		{"GET", "data/digests/" + digest, nil, false},
	}
	acks := []roleCall{
		{"GET", "metadata/acks/" + roleScope + "?list=true", nil, false},
		{"GET", "metadata/acks/" + roleScope + "some-entity/?list=true", nil, false},
		{"GET", "data/acks/" + roleScope + "some-entity/some-agent", nil, false},
	}
	destroy := roleCall{"PUT", "destroy/" + key, map[string]any{"versions": []int{1}}, false}
	write := roleCall{"POST", "data/" + record, kvData(map[string]string{"phase": "generate"}, 1), false}
	core := func(c roleCall) []roleCall { c.core = true; return []roleCall{c} }
	switch v {
	case roles.View:
		return slices.Concat(core(look[0]), look[1:], acks, []roleCall{
			{"GET", "metadata/provider-keys/" + roleScope + "?list=true", nil, false},
			{"GET", "metadata/rotations/" + roleScope + "?list=true", nil, false},
			{"GET", "data/halts/" + roleScope + name + "-2", nil, false},
		})
	case roles.Use:
		return slices.Concat(core(roleCall{"GET", "data/" + key, nil, true}), []roleCall{
			{"GET", "data/" + key + "?version=1", nil, false}, look[0], look[1],
			{"GET", "data/halts/" + roleScope + name + "-2", nil, false},
			{"POST", "data/halts/" + roleScope + name + "-2", kvData(map[string]string{"reason": "r"}, 0), false},
			{"POST", "data/" + ack, map[string]any{"data": map[string]string{"agent": "agent-1"}}, false},
			{"POST", "data/" + ack, map[string]any{"data": map[string]string{"agent": "agent-1"}}, false},
			{"DELETE", "metadata/" + ack, nil, false},
		})
	case roles.Rotate:
		first := roleCall{"POST", "data/rotations/" + roleScope + name + "-first", kvData(map[string]string{"phase": "generate"}, 0), false}
		return slices.Concat(look, recording, []roleCall{write, first}, claim,
			core(roleCall{"PATCH", "data/" + key, kvData(map[string]string{"api_key": "third"}, 2), true}), acks,
			[]roleCall{{"GET", "data/halts/" + roleScope + name + "-3", nil, false}, destroy})
	case roles.Add:
		added := key + "-added"
		return slices.Concat(core(roleCall{"POST", "data/" + key + "-bare", kvData(map[string]string{"api_key": "x"}, 0), true}), look, recording, claim, []roleCall{
			{"GET", "metadata/provider-keys/" + roleScope + "?list=true", nil, false},
			{"POST", "metadata/" + added, map[string]any{"custom_metadata": map[string]string{"label": "l"}, "max_versions": 100}, false},
			{"POST", "data/" + added, kvData(map[string]string{"api_key": "x"}, 0), false}, // there is metadata already
			{"PATCH", "data/" + key, kvData(map[string]string{"api_key": "third"}, 2), false},
			{"POST", "metadata/" + key, map[string]any{"max_versions": 100}, false},
		})
	case roles.Schedule:
		return slices.Concat(core(roleCall{"POST", "metadata/" + key, map[string]any{"custom_metadata": map[string]string{"rotate_every": "720h"}}, true}), look[:1], recording)
	case roles.Revoke:
		return slices.Concat(look, []roleCall{{"GET", "metadata/provider-keys/" + roleScope + "?list=true", nil, false}, claim[0]}, core(write), []roleCall{destroy}, recording)
	case roles.Validate:
		return slices.Concat(look[:2], core(roleCall{"GET", "data/" + key + "?version=1", nil, true}), []roleCall{{"GET", "metadata/provider-keys/" + roleScope + "?list=true", nil, false}}, recording)
	case roles.Audit:
		return []roleCall{
			{"GET", "data/audit/prod/000000000001", nil, true},
			{"GET", "metadata/audit/prod/?list=true", nil, false},
			{"GET", "metadata/audit/prod/000000000001", nil, false},
		}
	case roles.Issue:
		return slices.Concat(core(roleCall{"GET", "data/issuers/prod/openai", nil, true}), look, recording, []roleCall{write}, claim, []roleCall{
			{"PATCH", "data/" + key, kvData(map[string]string{"api_key": "third"}, 2), false},
			{"POST", "data/" + key, kvData(map[string]string{"api_key": "fourth"}, 3), false},
		})
	}
	r.t.Fatalf("no calls for %s", v)
	return nil
}

// does makes a verb's calls and says how much of it Vault let through.
func (r *realm) does(token string, v roles.Verb) (may string, refused []string) {
	r.t.Helper()
	may = "yes"
	for _, c := range r.calls(v, r.entity[token]) {
		switch status := r.send(token, c); {
		case status != http.StatusForbidden:
			if strings.HasPrefix(c.path, "data/audit/prod/") && c.method == "POST" {
				r.seq++
			}
			continue
		case c.core:
			may = "no"
		case may == "yes":
			may = "partly"
		}
		refused = append(refused, c.method+" "+c.path)
	}
	return may, refused
}

// Every verb of every role, with the requests that postern makes: what Vault
// lets through, what it refuses, and what whoami says about it beforehand.
func TestRolesGrid(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	var grid strings.Builder
	tab := tabwriter.NewWriter(&grid, 0, 0, 2, ' ', 0)
	fmt.Fprint(tab, "\nROLE")
	for _, v := range roles.Verbs() {
		fmt.Fprintf(tab, "\t%s", strings.ToUpper(string(v)))
	}
	for _, role := range roles.Roles() {
		token := r.login(string(role), r.policyOf(role))
		said := r.whoami(token)
		fmt.Fprintf(tab, "\n%s", role)
		for _, v := range roles.Verbs() {
			may, refused := r.does(token, v)
			fmt.Fprintf(tab, "\t%s", may)
			if want := mayOf(roleGrid[role], v); may != want {
				t.Errorf("%s may %s: %s, want %s; refused: %q", role, v, may, want, refused)
			}
			if said[v].May != may {
				t.Errorf("whoami says that %s may %s: %s, but it is %s; refused: %q; missing: %v", role, v, said[v].May, may, refused, said[v].Missing)
			}
		}
	}
	tab.Flush()
	t.Log(grid.String())

	// A verb's own grants are enough for it, without those that other verbs of a role bring.
	for _, v := range []roles.Verb{roles.Rotate, roles.Add, roles.Schedule, roles.Revoke, roles.Validate, roles.Audit} {
		token := r.login("with-"+string(v), r.policyOf(roles.Developer, "--proxy-id", "px_acme", "--with", string(v)))
		if may, refused := r.does(token, v); may != "yes" {
			t.Errorf("a developer with %s may %s: %s; refused: %q", v, v, may, refused)
		}
	}
}

// whoami is what the command says to the owner of a token.
func (r *realm) whoami(token string) map[roles.Verb]roles.Answer {
	r.t.Helper()
	dir := r.t.TempDir()
	file := filepath.Join(dir, "postern.yaml")
	e2etest.Write(r.t, file, fmt.Sprintf("version: 1\nenvironment: prod\nproxy_id: px_acme\nstore: {vault: {address: %q}}\nproviders: [{name: openai}]\n", r.Address))
	out, said, code := agenttest.RunEnv(r.t, agenttest.Env(dir, "VAULT_TOKEN="+token), "", "whoami", "-o", "json", "-c", file)
	var who struct {
		Kind     string         `json:"kind"`
		EntityID string         `json:"entity_id"`
		Verbs    []roles.Answer `json:"verbs"`
	}
	if err := json.Unmarshal([]byte(out), &who); code != 0 || err != nil {
		r.t.Fatalf("postern whoami: exit code %d, %v\n%s%s", code, err, out, said)
	}
	if who.Kind != "vault" || who.EntityID != r.entity[token] {
		r.t.Errorf("whoami takes the entity %s for %s, in a store of kind %s", r.entity[token], who.EntityID, who.Kind)
	}
	all := map[roles.Verb]roles.Answer{}
	for _, a := range who.Verbs {
		all[a.Verb] = a
	}
	return all
}

// beyond are requests that Vault refuses to whoever has one role, and to whom it does not.
var beyond = []struct {
	what    string
	calls   []roleCall
	allowed []roles.Role
}{
	{"rewrite an entry of the record", []roleCall{
		{"POST", "data/audit/prod/000000000001", kvData(map[string]string{"entry": "forged"}, 1), false},
		{"POST", "data/audit/prod/000000000001", map[string]any{"data": map[string]string{"entry": "forged"}}, false},
		{"PUT", "data/audit/prod/000000000001", map[string]any{"data": map[string]string{"entry": "forged"}}, false},
		{"PATCH", "data/audit/prod/000000000001", map[string]any{"data": map[string]string{"entry": "forged"}}, false},
	}, nil},
	{"delete an entry", []roleCall{
		{"DELETE", "data/audit/prod/000000000001", nil, false},
		{"POST", "delete/audit/prod/000000000001", map[string]any{"versions": []int{1}}, false},
		{"POST", "undelete/audit/prod/000000000001", map[string]any{"versions": []int{1}}, false},
		{"POST", "destroy/audit/prod/000000000001", map[string]any{"versions": []int{1}}, false},
		{"PUT", "destroy/audit/prod/000000000001", map[string]any{"versions": []int{1}}, false},
		{"DELETE", "metadata/audit/prod/000000000001", nil, false},
	}, nil},
	{"change an entry's metadata", []roleCall{
		{"POST", "metadata/audit/prod/000000000001", map[string]any{"max_versions": 1}, false},
		{"PUT", "metadata/audit/prod/000000000001", map[string]any{"delete_version_after": "1s"}, false},
		{"PATCH", "metadata/audit/prod/000000000001", map[string]any{"max_versions": 1}, false},
		{"POST", "metadata/audit/prod/000000009999", map[string]any{"max_versions": 1}, false},
	}, nil},
	{"set how many versions of a key are kept", []roleCall{
		{"POST", "metadata/provider-keys/prod/px_acme/openai", map[string]any{"max_versions": 9}, false},
	}, []roles.Role{roles.Security}},
	{"read a key", []roleCall{
		{"GET", "data/provider-keys/prod/px_acme/openai", nil, false},
		{"GET", "data/provider-keys/prod/px_acme/openai?version=1", nil, false},
	}, []roles.Role{roles.Agent, roles.Server}},
	{"see which fields a key has", []roleCall{{"GET", "subkeys/provider-keys/prod/px_acme/openai", nil, false}}, nil},
	{"delete a key", []roleCall{
		{"DELETE", "data/provider-keys/prod/px_acme/openai", nil, false},
		{"DELETE", "metadata/provider-keys/prod/px_acme/openai", nil, false},
		{"POST", "delete/provider-keys/prod/px_acme/openai", map[string]any{"versions": []int{1}}, false},
		{"POST", "undelete/provider-keys/prod/px_acme/openai", map[string]any{"versions": []int{1}}, false},
		{"PATCH", "metadata/provider-keys/prod/px_acme/openai", map[string]any{"max_versions": 1}, false},
	}, nil},
	{"delete a rotation's record", []roleCall{
		{"DELETE", "data/rotations/prod/px_acme/openai", nil, false},
		{"DELETE", "metadata/rotations/prod/px_acme/openai", nil, false},
		{"POST", "destroy/rotations/prod/px_acme/openai", map[string]any{"versions": []int{1}}, false},
	}, nil},
	{"acknowledge for others", []roleCall{
		{"POST", "data/acks/prod/px_acme/some-entity/agent", map[string]any{"data": map[string]string{"agent": "x"}}, false},
		{"DELETE", "metadata/acks/prod/px_acme/some-entity/some-agent", nil, false},
	}, nil},
	{"read an admin credential", []roleCall{{"GET", "data/issuers/prod/openai", nil, false}}, []roles.Role{roles.Server}},
	{"see or change admin credentials", []roleCall{
		{"GET", "metadata/issuers/prod/?list=true", nil, false},
		{"GET", "metadata/issuers/prod/openai", nil, false},
		{"POST", "data/issuers/prod/openai", map[string]any{"data": map[string]string{"admin_key": "x"}}, false},
		{"GET", "data/issuers/staging/openai", nil, false},
	}, nil},
	{"see a key of another proxy id", []roleCall{
		{"GET", "metadata/provider-keys/prod/px_beta/openai", nil, false},
		{"GET", "metadata/provider-keys/prod/px_beta/?list=true", nil, false},
		{"GET", "data/rotations/prod/px_beta/openai", nil, false},
		{"GET", "metadata/provider-keys/prod/?list=true", nil, false},
	}, []roles.Role{roles.DevOps, roles.Security, roles.Server}},
	{"rotate a key of another proxy id", []roleCall{
		{"PATCH", "data/provider-keys/prod/px_beta/openai", map[string]any{"data": map[string]string{"api_key": "x"}}, false},
		{"POST", "data/rotations/prod/px_beta/openai", map[string]any{"data": map[string]string{"phase": "x"}}, false},
		{"POST", "destroy/provider-keys/prod/px_beta/openai", map[string]any{"versions": []int{1}}, false},
	}, []roles.Role{roles.DevOps, roles.Security, roles.Server}},
	{"read a key of another proxy id", []roleCall{{"GET", "data/provider-keys/prod/px_beta/openai", nil, false}}, []roles.Role{roles.Server}},
	{"touch another environment", []roleCall{
		{"GET", "data/provider-keys/staging/px_acme/openai", nil, false},
		{"GET", "metadata/provider-keys/staging/px_acme/openai", nil, false},
		{"PATCH", "data/provider-keys/staging/px_acme/openai", map[string]any{"data": map[string]string{"api_key": "x"}}, false},
		{"GET", "data/rotations/staging/px_acme/openai", nil, false},
		{"POST", "data/rotations/staging/px_acme/openai", map[string]any{"data": map[string]string{"phase": "x"}}, false},
		{"POST", "data/audit/staging/000000000002", kvData(map[string]string{"entry": "x"}, 0), false},
		{"GET", "data/audit/staging/000000000001", nil, false},
		{"GET", "metadata/audit/staging/?list=true", nil, false},
	}, nil},
}

func TestRolesGoNoFurther(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	for _, role := range roles.Roles() {
		token := r.login(string(role), r.policyOf(role))
		for _, b := range beyond {
			may := slices.Contains(b.allowed, role)
			for _, c := range b.calls {
				if refused := r.send(token, c) == http.StatusForbidden; refused == may {
					t.Errorf("%s: %s (%s %s): refused is %t", role, b.what, c.method, c.path, refused)
				}
			}
		}
		for _, path := range []string{"secret/config", "sys/policies/acl/" + string(role), "auth/approle/role/" + string(role)} {
			if status, _, _ := r.Try(t.Context(), token, "POST", path, map[string]any{}); status != http.StatusForbidden {
				t.Errorf("%s: POST %s: %d", role, path, status)
			}
		}
		for path, method := range map[string]string{"auth/token/lookup-self": "GET", "auth/token/renew-self": "POST"} {
			if status, answer, _ := r.Try(t.Context(), token, method, path, nil); status != http.StatusOK {
				t.Errorf("%s: %s: %d %v", role, path, status, answer)
			}
		}
	}

	// Nobody but those above has touched anything.
	if entry := r.Do("GET", kvAPI("data/audit/prod/000000000001"), nil)["data"]; fmt.Sprint(entry) != "map[entry:{}]" {
		t.Errorf("the first entry is %v", entry)
	}
	if md := r.Do("GET", kvAPI("metadata/audit/prod/000000000001"), nil); fmt.Sprint(md["current_version"]) != "1" {
		t.Errorf("its metadata is %v", md)
	}
	if md := r.Do("GET", kvAPI("metadata/provider-keys/staging/px_acme/openai"), nil); fmt.Sprint(md["current_version"]) != "2" {
		t.Errorf("staging's key was written: %v", md)
	}
}

// A policy for everything below the mount, given beside a role's, opens neither
// the record nor admin credentials: Vault follows the most specific path.
func TestRolesWithABroaderPolicy(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	r.Policy("everything", `path "secret/*" { capabilities = ["create", "read", "update", "patch", "delete", "list"] }`)
	for _, role := range []roles.Role{roles.TeamLead, roles.DevOps, roles.Security, roles.Server} {
		r.Policy(string(role), r.policyOf(role))
		token := r.Token(vaulttest.TokenOptions{Policies: []string{string(role), "everything"}, NoDefault: true})
		for _, b := range beyond {
			if !strings.Contains(b.what, "entry") && !strings.Contains(b.what, "admin credential") {
				continue
			}
			may := slices.Contains(b.allowed, role)
			for _, c := range b.calls {
				if refused := r.send(token, c) == http.StatusForbidden; refused == may {
					t.Errorf("%s: %s (%s %s): refused is %t", role, b.what, c.method, c.path, refused)
				}
			}
		}
	}
}

// Vault's own formatter leaves the printed policies as they are.
func TestRolesPoliciesAreFormatted(t *testing.T) {
	r := newRealm(t)
	for _, role := range roles.Roles() {
		text := r.policyOf(role)
		file := filepath.Join(t.TempDir(), string(role)+".hcl")
		e2etest.Write(t, file, text)
		r.CLI("", "policy", "fmt", file)
		if got, _ := os.ReadFile(file); string(got) != text {
			t.Errorf("vault policy fmt makes of %s:\n%s", role, got)
		}
	}
}
