// Command mutants shows that the wall can fall: it breaks one guard of the agent
// at a time, and at least one case must fail for each. The guards are in list.go.
//
//	go run ./test/wall/mutants [-only TEXT]
//
// The tree stays as it is: the compiler is given the broken file in place of
// the real one (go build -overlay). What no longer matches the code, and what
// no longer compiles or starts, is an error of the list and said so.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/postern-proxy/postern/test/tools"
)

func main() {
	only := flag.String("only", "", "break only guards whose name contains this")
	flag.Parse()
	if err := run(*only); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(only string) error {
	root, err := tools.Root()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "postern-mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{root: root, dir: dir, suite: filepath.Join(dir, "wall.test")}
	if out, err := b.command("go", "test", "-c", "-o", b.suite, "./test/wall").CombinedOutput(); err != nil {
		return fmt.Errorf("building ./test/wall: %w\n%s", err, out)
	}
	if fell, err := b.try(mutant{name: "none"}); err != nil || fell != "" {
		return fmt.Errorf("with every guard in place the wall does not stand: %s: %w", fell, err)
	}
	caught, survived, broken := 0, 0, 0
	for _, m := range mutants {
		if !strings.Contains(m.name, only) {
			continue
		}
		start := time.Now()
		fell, err := b.try(m)
		took := time.Since(start).Round(time.Second)
		switch {
		case err != nil:
			broken++
			fmt.Printf("ERROR     %-44s %v\n", m.name, err)
		case fell == "":
			survived++
			fmt.Printf("SURVIVED  %-44s %s\n", m.name, took)
		default:
			caught++
			fmt.Printf("caught    %-44s %-58s %s\n", m.name, fell, took)
		}
	}
	fmt.Printf("guards: %d broken one at a time, %d noticed, %d not, %d could not be broken\n", caught+survived+broken, caught, survived, broken)
	if survived+broken > 0 || caught == 0 {
		return errors.New("each guard needs a case that fails without it")
	}
	return nil
}

// bench builds broken agents and runs the wall on them.
type bench struct{ root, dir, suite string }

func (b *bench) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = b.root
	return cmd
}

// try returns the first case that fails on the broken agent; "" if none does.
func (b *bench) try(m mutant) (fell string, err error) {
	overlay, err := b.overlay(m)
	if err != nil {
		return "", err
	}
	bin := filepath.Join(b.dir, "postern")
	if out, err := b.command("go", "build", "-overlay", overlay, "-ldflags", "-s -w", "-o", bin, "./cmd/postern").CombinedOutput(); err != nil {
		return "", fmt.Errorf("it does not compile: %s", bytes.TrimSpace(out))
	}
	if m.cases != "" {
		if fell, err = b.wall(bin, "TestWall/"+m.cases); fell != "" || err != nil {
			return fell, err
		}
	}
	return b.wall(bin, "TestWall")
}

// overlay writes the broken files and the list that tells the compiler of them.
func (b *bench) overlay(m mutant) (string, error) {
	replace := map[string]string{}
	for i, e := range m.edits {
		path := filepath.Join(b.root, filepath.FromSlash(e.file))
		from := path
		if mutated, ok := replace[path]; ok {
			from = mutated
		}
		text, err := os.ReadFile(from)
		if err != nil {
			return "", err
		}
		if n := strings.Count(string(text), e.old); n != 1 {
			return "", fmt.Errorf("%s holds %d times, and not once: %q; point the entry in list.go at where the guard is now", e.file, n, e.old)
		}
		replace[path] = filepath.Join(b.dir, fmt.Sprintf("edit-%d.go", i))
		if err := os.WriteFile(replace[path], []byte(strings.Replace(string(text), e.old, e.new, 1)), 0o600); err != nil {
			return "", err
		}
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	file := filepath.Join(b.dir, "overlay.json")
	return file, os.WriteFile(file, list, 0o600)
}

var (
	firstFailed = regexp.MustCompile(`(?m)^first that failed: wall/(\S+)$`)
	summary     = regexp.MustCompile(`(?m)^wall: (\d+) cases`)
)

// wall runs the cases that match and stops at the first that fails.
func (b *bench) wall(bin, pattern string) (fell string, err error) {
	cmd := b.command(b.suite, "-test.run", pattern, "-test.timeout", "10m")
	cmd.Dir = filepath.Join(b.root, "test", "wall")
	cmd.Env = append(os.Environ(), "POSTERN_BINARY="+bin, "POSTERN_WALL_FIRST=1")
	out, err := cmd.CombinedOutput()
	if m := firstFailed.FindSubmatch(out); m != nil {
		return string(m[1]), nil
	}
	ran := summary.FindSubmatch(out)
	switch {
	case err != nil:
		return "", fmt.Errorf("the suite itself failed: %w: %s", err, tail(out))
	case ran == nil || string(ran[1]) == "0":
		return "", fmt.Errorf("no case has run: %s", tail(out))
	}
	return "", nil
}

func tail(out []byte) []byte {
	const most = 2 << 10
	return bytes.TrimSpace(out[max(0, len(out)-most):])
}
