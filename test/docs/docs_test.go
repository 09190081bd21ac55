// Package docs_test holds the documents against what they describe.
package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/test/tools"
)

func TestMain(m *testing.M) {
	code := m.Run()
	agenttest.Cleanup()
	os.Exit(code)
}

// root is the project's root folder.
func root(t *testing.T) string {
	t.Helper()
	dir, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{root(t)}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// ofTheAgent is the part of a document that speaks of the agent; agent/server
// holds the other part against the management server.
func ofTheAgent(t *testing.T, path string) string {
	t.Helper()
	agents, _, ok := strings.Cut(read(t, path), "\n# The management server\n")
	if !ok {
		t.Errorf("%s says nothing of the management server", path)
	}
	return agents
}

// rows are the cells of every table row of a document whose first cell begins with a backquote.
func rows(doc string) [][]string {
	var out [][]string
	for line := range strings.Lines(doc) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		line = strings.ReplaceAll(strings.Trim(line, "|"), `\|`, "\x00")
		var cells []string
		for cell := range strings.SplitSeq(line, "|") {
			cells = append(cells, strings.ReplaceAll(strings.TrimSpace(cell), "\x00", "|"))
		}
		out = append(out, cells)
	}
	return out
}

var quoted = regexp.MustCompile("^`([^`]+)`")

// named is what a row's first cell names.
func named(cells []string) string { return quoted.FindStringSubmatch(cells[0])[1] }

// same compares what a document lists with what there is.
func same(t *testing.T, doc string, listed, there []string) {
	t.Helper()
	for i, name := range listed {
		if slices.Contains(listed[:i], name) {
			t.Errorf("%s lists %s twice", doc, name)
		}
		if !slices.Contains(there, name) {
			t.Errorf("%s lists %s, which does not exist", doc, name)
		}
	}
	for _, name := range there {
		if !slices.Contains(listed, name) {
			t.Errorf("%s lacks %s", doc, name)
		}
	}
	if len(there) == 0 {
		t.Errorf("%s: nothing to compare with", doc)
	}
}

// Every code that the agent answers with is explained, and no other.
func TestEveryErrorCodeIsDocumented(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root(t), "agent/proxy/record.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var codes []string
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		for i, name := range v.Names {
			if lit, ok := v.Values[min(i, len(v.Values)-1)].(*ast.BasicLit); ok && strings.HasPrefix(name.Name, "code") {
				code, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Error(err)
				}
				codes = append(codes, code)
			}
		}
		return false
	})
	var listed []string
	for _, r := range rows(ofTheAgent(t, "docs/ERRORS.md")) {
		listed = append(listed, named(r))
		if len(r) != 4 || r[2] == "" || r[3] == "" {
			t.Errorf("the row of %s lacks something: %q", named(r), r)
		}
	}
	same(t, "docs/ERRORS.md", listed, codes)
}

var link = regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`)

// Every link between the documents leads somewhere.
func TestLinksLeadSomewhere(t *testing.T) {
	docs, err := filepath.Glob(filepath.Join(root(t), "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, doc := range append(docs, filepath.Join(root(t), "README.md")) {
		b, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(b), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			n++
			if _, err := os.Stat(filepath.Join(filepath.Dir(doc), m[1])); err != nil {
				t.Errorf("%s: %v", filepath.Base(doc), err)
			}
		}
	}
	if n < 5 {
		t.Errorf("only %d links found", n)
	}
}
