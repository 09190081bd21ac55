package tools

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// GoBinary describes a program that is built from a nested module of this
// folder, whose go.mod and go.sum pin every version.
type GoBinary struct {
	Name    string   // the program's file name, and the artefact's
	Module  string   // the nested module's folder below test/tools
	Package string   // what to build in it; empty means "."
	Tags    []string // build tags
	LDFlags string   // beside -s -w
}

// Build returns the path of the finished program, building it on a miss.
// The key covers go.mod, go.sum, main.go if there is one, the Go version, the
// platform and the flags.
func (b GoBinary) Build() (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	module := filepath.Join(root, "test", "tools", filepath.FromSlash(b.Module))
	key, err := b.key(module)
	if err != nil {
		return "", err
	}
	dir, err := Cached(b.Name, key, func(dir string) error {
		cmd := exec.Command("go", append(b.args(), "-o", filepath.Join(dir, b.Name), b.pkg())...)
		cmd.Dir = module
		cmd.Env = append(os.Environ(), b.env()...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s in %s: %w\n%s", strings.Join(cmd.Args, " "), module, err, tail(out))
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, b.Name), nil
}

func (b GoBinary) key(module string) (string, error) {
	parts := [][]byte{
		[]byte(runtime.Version()), []byte(runtime.GOOS), []byte(runtime.GOARCH),
		[]byte(strings.Join(b.env(), " ")), []byte(strings.Join(b.args(), " ")), []byte(b.pkg()),
	}
	for _, name := range []string{"go.mod", "go.sum", "main.go"} {
		content, err := os.ReadFile(filepath.Join(module, name))
		if err != nil && (name != "main.go" || !os.IsNotExist(err)) {
			return "", err
		}
		parts = append(parts, content)
	}
	return Key(parts...), nil
}

func (b GoBinary) args() []string {
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", strings.TrimSpace("-s -w " + b.LDFlags)}
	if len(b.Tags) > 0 {
		args = append(args, "-tags", strings.Join(b.Tags, ","))
	}
	return args
}

func (b GoBinary) env() []string {
	return []string{"CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off"}
}

func (b GoBinary) pkg() string {
	if b.Package == "" {
		return "."
	}
	return b.Package
}
