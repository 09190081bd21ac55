package e2e_test

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
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
	w.T.Helper()
	dir := w.T.TempDir()
	o := &console{w: w, file: filepath.Join(dir, "postern.yaml"), env: agenttest.Env(dir)}
	c.Store, c.Audit = st.Shared(), filepath.Join(dir, "audit.jsonl")
	e2etest.Write(w.T, o.file, c.YAML())
	if v, ok := st.(*vaultStore); ok {
		if c.Environment == agentsEnvironment {
			v.Policy("agent", o.must("", "policy", "--role", "agent"))
		}
		var policies []string
		for _, role := range roles {
			name := c.Environment + "-" + role
			v.Policy(name, o.must("", "policy", "--role", role))
			policies = append(policies, name)
		}
		o.env = append(o.env, "VAULT_TOKEN="+v.Token(vaulttest.TokenOptions{Policies: policies}))
	}
	return o
}

// token is the operator's, on Vault.
func (o *console) token() string {
	return strings.TrimPrefix(o.env[len(o.env)-1], "VAULT_TOKEN=")
}

// auditor is a console that may compare the record of operations with what Vault itself recorded.
func (w *world) auditor(st keyStore) *console {
	w.T.Helper()
	c := w.Config(st)
	c.Providers = []string{"{name: openai}"}
	return w.console(st, c, "security")
}

func (o *console) run(stdin string, args ...string) (out, said string, code int) {
	o.w.T.Helper()
	return agenttest.RunEnv(o.w.T, o.env, stdin, append(args, "-c", o.file)...)
}

// must runs a command that has to succeed, and returns what it printed.
func (o *console) must(stdin string, args ...string) string {
	o.w.T.Helper()
	out, said, code := o.run(stdin, args...)
	o.w.Clean("postern "+strings.Join(args, " "), []byte(out+said))
	if code != 0 {
		o.w.T.Fatalf("postern %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, said)
	}
	return out
}

// show is `postern keys show`.
func (o *console) show(name string) keys.Info {
	o.w.T.Helper()
	return parsed[keys.Info](o.w.T, o.must("", "keys", "show", name, "-o", "json"))
}

// state is what the store says of one version of a key.
func (o *console) state(name string, n int) string {
	o.w.T.Helper()
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
	o.w.T.Helper()
	return o.startUnder(nil, stdin, args...)
}

// startUnder is start with the command line behind another one's (a shell's that sets limits and execs).
func (o *console) startUnder(prefix []string, stdin string, args ...string) *command {
	o.w.T.Helper()
	line := slices.Concat(prefix, []string{agenttest.Binary(o.w.T)}, args, []string{"-c", o.file})
	c := &command{Cmd: exec.Command(line[0], line[1:]...), t: o.w.T, line: strings.Join(args, " "), done: make(chan struct{})}
	c.Env, c.Stdin = o.env, strings.NewReader(stdin)
	c.Stdout, c.Stderr = &c.out, &c.said
	if err := c.Start(); err != nil {
		o.w.T.Fatal(err)
	}
	go func() {
		c.Wait()
		close(c.done)
	}()
	o.w.T.Cleanup(func() {
		c.Process.Kill()
		<-c.done
		o.w.Clean("postern "+c.line, append(c.out.Bytes(), c.said.Bytes()...))
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
	w.T.Helper()
	o := newWorld(w.T)
	o.Secrets = append([]string{}, w.Secrets...)
	return o
}
