package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	testName = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	wallName = regexp.MustCompile(`&group\{class: \d+, name: "([a-z-]+)"`)
	linked   = regexp.MustCompile("`((?:Test|Fuzz)\\w+|wall/[a-z-]+)`")
)

// Every claim of THREATS.md has tests behind it that are there, and every class
// of the wall's attacks has a claim.
func TestThreatsAreShown(t *testing.T) {
	known := cases(t)
	_, claims, ok := strings.Cut(read(t, "docs/THREATS.md"), "\n## Who may be hostile")
	claims, _, more := strings.Cut(claims, "\n## What does not hold\n")
	if !ok || !more {
		t.Fatal("docs/THREATS.md has other chapters than this test knows")
	}
	named := map[string]bool{}
	n := 0
	for line := range strings.Lines(claims) {
		if !strings.HasPrefix(line, "- ") {
			continue
		}
		n++
		links := linked.FindAllStringSubmatch(line, -1)
		if len(links) == 0 {
			t.Errorf("nothing shows this: %s", line)
		}
		for _, l := range links {
			named[l[1]] = true
			if !known[l[1]] {
				t.Errorf("there is no %s: %s", l[1], line)
			}
		}
	}
	if n < 30 {
		t.Errorf("%d claims were found, which cannot be all", n)
	}
	for name := range known {
		if strings.HasPrefix(name, "wall/") && !named[name] {
			t.Errorf("no claim names %s", name)
		}
	}
}

// cases are the tests of the tree by their names, and the wall's classes.
func cases(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	err := filepath.WalkDir(root(t), func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains([]string{".git", "node_modules", "testdata"}, d.Name()):
			return filepath.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range testName.FindAllSubmatch(b, -1) {
			out[string(m[1])] = true
		}
		for _, m := range wallName.FindAllSubmatch(b, -1) {
			out["wall/"+string(m[1])] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
