package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// Every command does its work, and so does every operation of the management
// server, on keys that are known. No output, no log, nothing that the store holds
// beside the keys, and nothing that the processes show of themselves has one.
func TestCanaryOfTheCommands(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.Vault(vaulttest.Options{})
	var all []string
	for range 6 {
		all = append(all, w.Key())
	}
	p := w.Provider("openai", fake.Options{Keys: all})
	cfg := w.Config(st, p)
	cfg.Rotation = "{grace: 2s}"
	op := w.console(st, cfg, "security", "devops")
	st.Policy("staging-devops", op.must("", "policy", "--role", "devops", "--with", "validate"))
	token := w.Secret(op.token())
	m := w.server(st, op, p)
	ids := []string{w.Path("secret-id"), w.Path("server-secret-id")}
	h := newHunt(append(all, token)...)
	for _, file := range ids {
		h.forms = append(h.forms, encodings(strings.TrimSpace(string(e2etest.Read(t, file))))...)
	}

	c := &commands{hunt: h, ran: map[string]bool{"agent": true, "server": true}}
	c.do(t, op, all[0], "keys add openai --label staging-canary")
	a := w.Start(cfg)
	w.Ways(a, p)[0].Must(t)
	c.all(t, op, all[1:4])
	w.Ways(a, p)[0].Must(t)
	for _, o := range []string{" -o text", " -o json"} {
		c.do(t, &console{w: w, file: w.Operator(cfg, a), env: op.env}, "", "status"+o)
		c.do(t, w.auditor(st), "", "audit verify"+o)
	}
	for _, leaf := range leaves(t, w) {
		if !c.ran[leaf] {
			t.Errorf("postern %s was not tried: add it here", leaf)
		}
	}
	operations(t, m, h, token, all[4], all[5])

	h.look("what the store holds beside keys", everything(t, st, "postern/"))
	h.process(t, "the server", m.cmd.Process.Pid)
	h.process(t, "the agent", a.PID())
	m.cmd.Process.Signal(syscall.SIGQUIT) // its end shows what a crash would show
	e2etest.Await(t, m.done, 20*time.Second, "the server's end")
	if !strings.Contains(m.log.String(), "goroutine ") {
		t.Error("the server's end shows no goroutine")
	}
	a.Stop(t)
	h.look("the server's log", []byte(m.log.String()))
	h.look("the agent's log", []byte(a.Log.String()+a.Out.String()))
	for _, file := range ids {
		os.Remove(file) // this test wrote it there
	}
	h.files(t, w.Dir)
	h.files(t, filepath.Dir(op.file))
	h.report(t)
}

// commands are run one after another, and all that they print is searched.
type commands struct {
	*hunt
	ran map[string]bool // by name
}

// all gives every command that needs no console of its own something to do. The
// key `openai` has a version already; the next ones are written in turn.
func (c *commands) all(t *testing.T, op *console, next []string) {
	t.Helper()
	for _, o := range []string{" -o text", " -o json"} {
		for _, line := range []string{
			"keys list", "keys show openai", "keys validate openai", "keys schedule openai --every 30d", "keys schedule openai --off",
			"check --probe", "version", "whoami",
		} {
			c.do(t, op, "", line+o)
		}
	}
	c.do(t, op, next[0], "keys rotate openai --detach --grace 1s --reason old")
	c.do(t, op, "", "keys resume openai")
	c.do(t, op, next[1], "keys rotate openai --now -o json")
	c.do(t, op, next[1], "keys show --leaked")
	c.do(t, op, next[2], "keys add spare --provider openai -o json")
	c.do(t, op, "", "keys revoke spare --now --reason drill")
	c.do(t, op, "", "policy --role server")
	c.do(t, op, "", "audit show -o text")
	c.do(t, op, "", "audit show -o json")
	c.do(t, &console{w: op.w, file: op.file, env: op.env[:len(op.env)-1]}, "", "exec -v -- env") // it needs no token, and would pass it on
	c.do(t, op, "", "demo --for 1s")
}

// do runs a command that must succeed.
func (c *commands) do(t *testing.T, at *console, key, line string) {
	t.Helper()
	args := strings.Fields(line)
	out, said, code := agenttest.RunEnv(t, at.env, key+"\n", append([]string{"-c", at.file}, args...)...)
	if code != 0 || out == "" {
		t.Errorf("postern %s: exit code %d\n%s%s", line, code, out, said)
	}
	c.look("standard output of "+line, []byte(out))
	c.look("standard error of "+line, []byte(said))
	c.ran[args[0]] = true
	if len(args) > 1 {
		c.ran[args[0]+" "+args[1]] = true
	}
}

var commandLine = regexp.MustCompile(`(?m)^  ([a-z]+)  +\S`)

// leaves are all commands that do something, as --help names them.
func leaves(t *testing.T, w *world) []string {
	t.Helper()
	var out []string
	var walk func(path ...string)
	walk = func(path ...string) {
		help, _, _ := agenttest.Run(t, w.Dir, "", append(slices.Clone(path), "--help")...)
		_, list, sub := strings.Cut(help, "Available Commands:\n")
		if !sub {
			out = append(out, strings.Join(path, " "))
			return
		}
		list, _, _ = strings.Cut(list, "\n\n")
		for _, m := range commandLine.FindAllStringSubmatch(list, -1) {
			if m[1] != "help" {
				walk(append(slices.Clone(path), m[1])...)
			}
		}
	}
	walk()
	if len(out) < 15 {
		t.Errorf("the help names %d commands: %v", len(out), out)
	}
	return out
}

// operations asks the server for everything that its description names, and for
// some things that it refuses, with keys where they belong and where they do not.
func operations(t *testing.T, m *manager, h *hunt, token, next, other string) {
	t.Helper()
	const key, spare = "/v1/provider-keys/staging." + e2etest.ProxyID + ".openai", "/v1/provider-keys/staging." + e2etest.ProxyID + ".more"
	asked := map[string]bool{}
	ask := func(method, path, body string, want int) []byte {
		t.Helper()
		status, answer := m.ask(token, method, path, body)
		what := method + " " + strings.ReplaceAll(path, other, "KEY")
		if status != want {
			t.Errorf("%s: %d, want %d\n%s", what, status, want, answer)
		}
		h.look("the server's answer to "+what, answer)
		path, _, _ = strings.Cut(path, "?")
		asked[method+" "+strings.NewReplacer(key, "/v1/provider-keys/{id}", spare, "/v1/provider-keys/{id}").Replace(path)] = true
		return answer
	}
	ask("POST", "/v1/provider-keys", fmt.Sprintf(`{"provider":"openai","name":"more","api_key":%q,"proxy_id":%q}`, other, e2etest.ProxyID), 201)
	ask("POST", "/v1/provider-keys", fmt.Sprintf(`{"provider":"openai","name":"more","api_key":%q,"proxy_id":%q}`, other, e2etest.ProxyID), 409)
	ask("POST", key+"/rotate", fmt.Sprintf(`{"api_key":%q,"grace":"1s"}`, next), 202)
	ask("GET", "/v1/provider-keys", "", 200)
	ask("GET", key, "", 200)
	ask("POST", spare+"/validate", "", 200)
	ask("POST", spare+"/revoke", `{"versions":[1],"reason":"drill"}`, 200)
	ask("DELETE", spare+"?reason=drill", "", 200)
	agenttest.Eventually(t, 60*time.Second, "the server ends the rotation", func() bool {
		var page struct{ Rotations []keys.Rotation }
		if err := json.Unmarshal(ask("GET", "/v1/rotations?proxy_id="+e2etest.ProxyID, "", 200), &page); err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(page.Rotations, func(r keys.Rotation) bool { return r.Name == "openai" && r.To == 4 && r.Phase == rotation.PhaseDone })
	})
	ask("GET", "/v1/audit", "", 200)
	for _, path := range []string{"/openapi.json", "/livez", "/readyz", "/metrics"} {
		ask("GET", path, "", 200)
	}
	// Where it does not belong.
	ask("GET", "/v1/provider-keys/"+other, "", 404)
	ask("GET", "/v1/provider-keys?proxy_id="+other, "", 400)
	ask("POST", "/v1/provider-keys", other, 400)
	ask("POST", key+"/rotate", `{"api_key":["`+other+`"]}`, 400)
	ask("GET", "/", "", 404)
	ask("GET", "/debug/pprof/heap", "", 404)
	ask("TRACE", "/v1/provider-keys?"+other, "", 405)

	var described struct{ Paths map[string]map[string]any }
	_, text := m.ask(token, "GET", "/openapi.json", "")
	if err := json.Unmarshal(text, &described); err != nil || len(described.Paths) == 0 {
		t.Fatalf("%v: %s", err, text)
	}
	for path, methods := range described.Paths {
		for method := range methods {
			if what := strings.ToUpper(method) + " " + path; method != "parameters" && !asked[what] {
				t.Errorf("%s was not tried: add it here", what)
			}
		}
	}
}
