package e2e_test

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/agent/server"
	postern "github.com/postern-proxy/postern/config"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// notRefused fails the test where a program's log says that its policy lacks something.
func notRefused(t *testing.T, log string) {
	t.Helper()
	for _, said := range []string{"permission denied", "forbidden", "do not allow"} {
		if strings.Contains(log, said) {
			t.Errorf("the policy lacks something:\n%s", log)
			return
		}
	}
}

// An agent under the policy that is printed for it starts, serves, takes part in
// a rotation and says so, and is refused nothing.
func TestRolesAgentAtWork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Provider("openai", fake.Options{})
	v := w.Vault(vaulttest.Options{})
	v.Do("POST", "auth/approle/role/agent", map[string]any{"token_policies": "agent", "token_no_default_policy": true, "token_ttl": "1h"})
	c := w.Config(v, p)
	c.Rotation = "{grace: 3s}"
	file := w.Path("operator.yaml")
	e2etest.Write(t, file, c.YAML())
	policy, said, code := agenttest.Run(t, w.Dir, "", "policy", "--role", "agent", "-c", file)
	if code != 0 {
		t.Fatalf("postern policy: exit code %d\n%s", code, said)
	}
	v.Policy("agent", policy)
	root := func(stdin string, args ...string) string {
		out, said, code := agenttest.RunEnv(t, agenttest.Env(w.Dir, "VAULT_TOKEN="+v.RootToken), stdin, append(args, "-c", file)...)
		if code != 0 {
			t.Fatalf("postern %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, said)
		}
		return out
	}
	old, fresh := w.Key(), w.Key()
	p.Allow(old)
	p.Allow(fresh)
	root(old+"\n", "keys", "add", "openai")
	if out, said, code := agenttest.Run(t, w.Dir, "", "check", "--probe", "-c", file); code != 0 {
		t.Errorf("postern check: exit code %d\n%s%s", code, out, said)
	}
	a := w.Start(c)
	acked := make(chan bool, 1)
	go func() { // the entry is there while the rotation is
		for range 600 {
			if status, _, err := v.Try(t.Context(), v.RootToken, "GET", "secret/metadata/postern/acks/staging/"+e2etest.ProxyID+"/?list=true", nil); err == nil && status == 200 {
				acked <- true
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		acked <- false
	}()
	root(fresh+"\n", "keys", "rotate", "openai")
	if !e2etest.Await(t, acked, 20*time.Second, "the agent's acknowledgement is looked for") {
		t.Error("the agent acknowledged nothing")
	}
	agenttest.Eventually(t, 20*time.Second, "version 2 is in use", func() bool { return e2etest.Version(t, a, "openai", 2).State == "active" })
	agenttest.Eventually(t, 20*time.Second, "the acknowledgement is taken back", func() bool {
		status, _, err := v.Try(t.Context(), v.RootToken, "GET", "secret/metadata/postern/acks/staging/"+e2etest.ProxyID+"/?list=true", nil)
		return err == nil && status == 404
	})
	notRefused(t, e2etest.History(a))
}

// serve runs a management server until the test ends.
func (w *world) serve(file string) *agenttest.Buffer {
	w.T.Helper()
	cfg, err := postern.Load(file, os.Getenv)
	if err != nil {
		w.T.Fatal(err)
	}
	log := &agenttest.Buffer{}
	s, err := server.New(server.Options{Config: cfg, Log: log})
	if err != nil {
		w.T.Fatal(err)
	}
	if err := s.Start(w.T.Context()); err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(func() {
		s.Stop()
		if w.T.Failed() {
			w.T.Logf("the server's log:\n%s", log.String())
		}
		w.Clean("the server's log", []byte(log.String()))
	})
	return log
}

// A server under the policy that is printed for it makes keys at a provider,
// the first version too, moves traffic to them, and destroys what they replace.
func TestRolesServerAtWork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Provider("openai", fake.Options{})
	v := w.Vault(vaulttest.Options{})
	vendor, line := w.vendor(v, p)
	v.Do("POST", "auth/approle/role/agent", map[string]any{"token_policies": "server", "token_no_default_policy": true, "token_ttl": "1h"})
	vaulttest.NewCA(t).IssueClient(t, "localhost", w.Path("cert.pem"), w.Path("key.pem"))
	c := w.Config(v, p)
	c.Rotation = "{grace: 2s}"
	c.More = `server: {listen: "127.0.0.1:0", cert_file: cert.pem, key_file: key.pem}` + "\n" + line
	file := w.Path("server.yaml")
	e2etest.Write(t, file, c.YAML())
	as := func(token, stdin string, args ...string) string {
		out, said, code := agenttest.RunEnv(t, agenttest.Env(w.Dir, "VAULT_TOKEN="+token), stdin, append(args, "-c", file)...)
		w.Clean("the output of "+strings.Join(args, " "), []byte(out+said))
		if code != 0 {
			t.Errorf("postern %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, said)
		}
		return out
	}
	v.Policy("server", as("", "", "policy", "--role", "server"))
	v.Policy("devops", as("", "", "policy", "--role", "devops"))
	devops := v.Token(vaulttest.TokenOptions{Policies: []string{"devops"}, NoDefault: true})

	// A key that has a place and no version yet, and one that somebody stored.
	first := w.Key()
	p.Allow(first)
	v.Do("POST", "secret/metadata/postern/provider-keys/staging/"+e2etest.ProxyID+"/bare", map[string]any{"max_versions": 100, "custom_metadata": map[string]string{"provider": "openai", "environment": "staging"}})
	as(v.RootToken, first+"\n", "keys", "add", "openai")
	names := []string{"openai", "bare"}
	for _, name := range names {
		as(devops, "", "keys", "rotate", name, "--managed", "--now", "--detach")
	}

	log := w.serve(file)
	var done sync.WaitGroup
	for _, name := range names {
		done.Go(func() { as(devops, "", "keys", "resume", name) })
	}
	done.Wait()
	if live := vendor.Live(); len(live) != 2 {
		t.Errorf("%d keys live at the vendor, want one for each of two", len(live))
	}
	for name, want := range map[string]int{"openai": 2, "bare": 1} {
		if md := v.Do("GET", "secret/metadata/postern/provider-keys/staging/"+e2etest.ProxyID+"/"+name, nil); fmt.Sprint(md["current_version"]) != fmt.Sprint(want) {
			t.Errorf("%s is at version %v, want %d", name, md["current_version"], want)
		}
	}
	versions := v.Do("GET", "secret/metadata/postern/provider-keys/staging/"+e2etest.ProxyID+"/openai", nil)["versions"].(map[string]any)
	if one := versions["1"].(map[string]any); one["destroyed"] != true {
		t.Errorf("version 1 is %v", one)
	}
	as(v.RootToken, "", "audit", "verify")
	notRefused(t, log.String())
}
