package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/keys"
)

// console is where an operator works: a folder and a configuration of its own,
// and on Vault a token that may do what its roles may.
type console struct {
	w    *world
	file string
	env  []string
}

// agentsEnvironment is where the agents of a vaultStore may read.
const agentsEnvironment = "staging"

// console opens one. With a Vault the token's policies are what `postern policy`
// prints for the roles, and the agents' policy is replaced by the printed one.
func (w *world) console(st keyStore, c config, roles ...string) *console {
	w.t.Helper()
	dir := w.t.TempDir()
	o := &console{w: w, file: filepath.Join(dir, "postern.yaml"), env: agenttest.Env(dir)}
	c.store, c.audit = st.shared(), filepath.Join(dir, "audit.jsonl")
	write(w.t, o.file, c.yaml())
	if v, ok := st.(*vaultStore); ok {
		if c.environment == agentsEnvironment {
			v.Policy("agent", o.must("", "policy", "--role", "agent"))
		}
		var policies []string
		for _, role := range roles {
			name := c.environment + "-" + role
			v.Policy(name, o.must("", "policy", "--role", role))
			policies = append(policies, name)
		}
		o.env = append(o.env, "VAULT_TOKEN="+v.Token(vaulttest.TokenOptions{Policies: policies}))
	}
	return o
}

// auditor is a console that may compare the record of operations with what Vault itself recorded.
func (w *world) auditor(st keyStore) *console {
	w.t.Helper()
	c := w.config(st)
	c.providers = []string{"{name: openai}"}
	return w.console(st, c, "security")
}

func (o *console) run(stdin string, args ...string) (out, said string, code int) {
	o.w.t.Helper()
	return agenttest.RunEnv(o.w.t, o.env, stdin, append(args, "-c", o.file)...)
}

// must runs a command that has to succeed, and returns what it printed.
func (o *console) must(stdin string, args ...string) string {
	o.w.t.Helper()
	out, said, code := o.run(stdin, args...)
	o.w.clean("postern "+strings.Join(args, " "), []byte(out+said))
	if code != 0 {
		o.w.t.Fatalf("postern %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, said)
	}
	return out
}

// show is `postern keys show`.
func (o *console) show(name string) keys.Info {
	o.w.t.Helper()
	return parsed[keys.Info](o.w.t, o.must("", "keys", "show", name, "-o", "json"))
}

// state is what the store says of one version of a key.
func (o *console) state(name string, n int) string {
	o.w.t.Helper()
	for _, v := range o.show(name).Versions {
		if v.Number == n {
			return v.State
		}
	}
	return ""
}

// command is one that runs beside the story.
type command struct {
	*exec.Cmd
	t         *testing.T
	line      string
	out, said bytes.Buffer
	done      chan struct{}
}

func (o *console) start(stdin string, args ...string) *command {
	o.w.t.Helper()
	args = append(args, "-c", o.file)
	c := &command{Cmd: exec.Command(agenttest.Binary(o.w.t), args...), t: o.w.t, line: strings.Join(args, " "), done: make(chan struct{})}
	c.Env, c.Stdin = o.env, strings.NewReader(stdin)
	c.Stdout, c.Stderr = &c.out, &c.said
	if err := c.Start(); err != nil {
		o.w.t.Fatal(err)
	}
	go func() {
		c.Wait()
		close(c.done)
	}()
	o.w.t.Cleanup(func() {
		c.Process.Kill()
		<-c.done
		o.w.clean("postern "+c.line, append(c.out.Bytes(), c.said.Bytes()...))
	})
	return c
}

// end waits for the command and returns its exit code, -1 where a signal ended it.
func (c *command) end() int {
	<-c.done
	return c.ProcessState.ExitCode()
}

// rotation is what `keys rotate -o json` printed at its end.
func (c *command) rotation() keys.Rotation {
	c.t.Helper()
	return parsed[keys.Rotation](c.t, c.out.String())
}

func parsed[T any](t *testing.T, out string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("no JSON: %v\n%s", err, out)
	}
	return v
}

// twin is a second world with the same secrets, for another agent on the same store.
func (w *world) twin() *world {
	w.t.Helper()
	o := newWorld(w.t)
	o.secrets = append([]string{}, w.secrets...)
	return o
}

// shared is yaml with files named so that an agent in any folder can use it.
func (s *vaultStore) shared() string {
	return fmt.Sprintf("{vault: {address: %q, poll: 1s, auth: {%s}}}", s.front.URL, strings.Replace(s.auth, "secret-id", s.dir+"/secret-id", 1))
}

func (s *sealedStore) shared() string {
	return fmt.Sprintf("{sealed: {file: %q, key_file: %q, poll: 1s}}", s.w.path("postern.sealed"), s.w.path("postern.key"))
}
