// Package examples_test runs what stands in the folders of examples by the
// programs that it is for. What needs a cluster runs in test/cluster.
package examples_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/test/tools"
)

func TestMain(m *testing.M) {
	code := m.Run()
	agenttest.Cleanup()
	os.Exit(code)
}

// example is a path below the folder of examples.
func example(t *testing.T, elem ...string) string {
	t.Helper()
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(append([]string{root, "examples"}, elem...)...)
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// operator runs commands in a folder, with postern and vault in the PATH, as somebody with Vault's root token.
type operator struct {
	dir string
	env []string
}

func newOperator(t *testing.T, v *vaulttest.Vault) operator {
	t.Helper()
	o := operator{dir: t.TempDir()}
	o.env = agenttest.Env(o.dir, "VAULT_ADDR="+v.Address, "VAULT_TOKEN="+v.RootToken)
	o.env[0] = "PATH=" + strings.Join([]string{filepath.Dir(agenttest.Binary(t)), filepath.Dir(tools.Vault(t)), os.Getenv("PATH")}, ":")
	return o
}

// run runs a program with some more of an environment, and returns all that it printed.
func (o operator) run(env []string, program string, args ...string) (string, error) {
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Env = o.dir, append(o.env[:len(o.env):len(o.env)], env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
