// Package wall_test is what stands between a key and whoever wants it, tried
// from outside: the built binary, clients that write bytes, upstreams that
// write down what they were really sent. Nothing in it knows how the agent is made.
//
// It runs in a network namespace in which every address of the world is local
// and leads to one recorder, so that whatever a broken guard lets through is
// seen there and goes nowhere. `make wall` prints all cases.
package wall_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest"
)

// insideVar names the file into which the process in the namespace says why it
// could not set itself up; it is set there only.
const insideVar = "POSTERN_WALL_INSIDE"

func TestMain(m *testing.M) {
	if file := os.Getenv(insideVar); file != "" {
		if err := settle(); err != nil {
			os.WriteFile(file, []byte(err.Error()), 0o600)
			os.Exit(1)
		}
	}
	code := m.Run()
	agenttest.Cleanup()
	os.Exit(code)
}

// TestWall runs every case, each over every path it names, and prints the table.
func TestWall(t *testing.T) {
	if os.Getenv(insideVar) == "" {
		runInside(t)
		return
	}
	w := newWall(t)
	var rows []row
	for _, c := range all(t) {
		for _, on := range c.paths() {
			name := c.full(on)
			ran := t.Run(strings.TrimPrefix(name, "wall/"), func(t *testing.T) {
				rows = append(rows, row{c, on, "FAILED"})
				w.try(t, c, on)
				if !t.Failed() {
					rows[len(rows)-1].result = "passed"
				}
			})
			if !ran && t.Failed() && os.Getenv("POSTERN_WALL_FIRST") != "" {
				printTable(rows)
				return
			}
		}
	}
	printTable(rows)
}

// all are the cases in the order of their classes. A name is there once.
func all(t *testing.T) []*kase {
	t.Helper()
	var list []*kase
	seen := map[string]bool{}
	for _, group := range groups {
		for i := range group.cases {
			c := &group.cases[i]
			c.group = group
			if c.inv == "" || c.source == "" || c.name == "" {
				t.Fatalf("case %q of %s: it needs a name, an invariant and a source", c.name, group.name)
			}
			for _, on := range c.paths() {
				if name := c.full(on); seen[name] {
					t.Fatalf("two cases are named %s", name)
				} else {
					seen[name] = true
				}
			}
			list = append(list, c)
		}
	}
	return list
}

// row is one line of the table.
type row struct {
	c      *kase
	on     string
	result string
}

func printTable(rows []row) {
	head := []string{"class", "case", "path", "invariant", "source", "result"}
	lines := [][]string{head}
	failed, classes := 0, map[int]bool{}
	for _, r := range rows {
		if r.result != "passed" {
			failed++
		}
		classes[r.c.group.class] = true
		lines = append(lines, []string{fmt.Sprintf("%d %s", r.c.group.class, r.c.group.says), r.c.base(), r.on, r.c.inv, r.c.source, r.result})
	}
	width := make([]int, len(head))
	for _, l := range lines {
		for i, s := range l {
			width[i] = max(width[i], len(s))
		}
	}
	var b strings.Builder
	for _, l := range lines {
		for i, s := range l {
			b.WriteString(s + strings.Repeat(" ", width[i]-len(s)+2))
		}
		b.WriteString("\n")
	}
	fmt.Print(strings.ReplaceAll(b.String(), " \n", "\n"))
	names := map[string]bool{}
	for _, r := range rows {
		names[r.c.base()] = true
	}
	fmt.Printf("wall: %d cases (%d distinct, each over its paths) of %d classes, %d failed\n", len(rows), len(names), len(classes), failed)
	if i := slices.IndexFunc(rows, func(r row) bool { return r.result != "passed" }); i >= 0 {
		fmt.Printf("first that failed: %s\n", rows[i].c.full(rows[i].on))
	}
}
