package e2e_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/agent/roles"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// verbCommands are what people do. KEY is a key's name, NEW one that there is none of.
var verbCommands = []struct {
	verb  roles.Verb
	args  []string
	stdin string // "": none; else what the key is to be
}{
	{roles.View, []string{"keys", "list"}, ""},
	{roles.View, []string{"keys", "show", "KEY"}, ""},
	{roles.Validate, []string{"keys", "validate", "KEY"}, ""},
	{roles.Add, []string{"keys", "add", "NEW", "--provider", "openai"}, "new"},
	{roles.Schedule, []string{"keys", "schedule", "KEY", "--every", "720h"}, ""},
	{roles.Rotate, []string{"keys", "rotate", "KEY", "--now"}, "rotated"},
	{roles.Revoke, []string{"keys", "revoke", "KEY", "--now", "--reason", "a drill"}, ""},
	{roles.Audit, []string{"audit", "show"}, ""},
}

// The same cells by the commands: what a role is for is done, and what it is
// not for Vault refuses, so that nothing of the key changes.
func TestRolesCommands(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Provider("openai", fake.Options{})
	r := &realm{Vault: vaulttest.Start(t, vaulttest.Options{}), t: t, entity: map[string]string{}}
	r.EnableAuth("approle", "approle")
	file := w.Path("postern.yaml")
	e2etest.Write(t, file, fmt.Sprintf("version: 1\nenvironment: prod\nproxy_id: px_acme\nstore: {vault: {address: %q, poll: 1s}}\nproviders:\n  - %s\n", r.Address, p.Entry("")))
	as := func(token, stdin string, args ...string) (said string, code int) {
		out, errs, code := agenttest.RunEnv(t, agenttest.Env(w.Dir, "VAULT_TOKEN="+token), stdin, append(args, "-c", file)...)
		w.Clean("the output of "+strings.Join(args, " "), []byte(out+errs))
		return out + errs, code
	}
	live := func() string {
		k := w.Key()
		p.Allow(k)
		return k + "\n"
	}
	for _, role := range []roles.Role{roles.Developer, roles.TeamLead, roles.DevOps, roles.Security} {
		t.Run(string(role), func(t *testing.T) {
			token := r.login(string(role), r.policyOf(role))
			key := "key-" + string(role)
			if said, code := as(r.RootToken, live(), "keys", "add", key, "--provider", "openai"); code != 0 {
				t.Fatalf("keys add: exit code %d\n%s", code, said)
			}
			state := func() string {
				return fmt.Sprint(r.Do("GET", kvAPI("metadata/provider-keys/"+roleScope+key), nil), r.Do("GET", kvAPI("metadata/provider-keys/"+roleScope+"?list=true"), nil))
			}
			for _, c := range verbCommands {
				args := slices.Clone(c.args)
				for i := range args {
					args[i] = strings.NewReplacer("KEY", key, "NEW", key+"-new").Replace(args[i])
				}
				stdin := c.stdin
				if stdin != "" {
					stdin = live()
				}
				may, before := mayOf(roleGrid[role], c.verb), state()
				said, code := as(token, stdin, args...)
				if (code == 0) != (may != "no") {
					t.Errorf("%s (%s: %s): exit code %d\n%s", strings.Join(args, " "), c.verb, may, code, said)
				}
				if may != "no" {
					continue
				}
				if !strings.Contains(said, "permission denied") && !strings.Contains(said, "policy") {
					t.Errorf("%s does not say that Vault refused it:\n%s", strings.Join(args, " "), said)
				}
				if after := state(); after != before {
					t.Errorf("%s was refused and changed\n%s\nto\n%s", strings.Join(args, " "), before, after)
				}
			}
		})
	}

	// What all of them have done is one record, which those who may see who wrote it find to be whole.
	token := r.login("auditor", r.policyOf(roles.Security))
	if said, code := as(token, "", "audit", "verify"); code != 0 || !strings.Contains(said, "intact") {
		t.Errorf("audit verify: exit code %d\n%s", code, said)
	}
}
