package main

import (
	"path/filepath"
	"testing"

	"github.com/postern-proxy/postern/test/tools"
)

// The list must follow the code: an entry that matches nothing breaks nothing.
// (Whether a case notices takes a build each: `make mutants`.)
func TestEveryGuardIsWhereTheListSays(t *testing.T) {
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{root: root, dir: t.TempDir()}
	seen := map[string]bool{}
	for _, m := range mutants {
		if seen[m.name] {
			t.Errorf("two entries are named %s", m.name)
		}
		seen[m.name] = true
		if _, err := b.overlay(m); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
		for _, e := range m.edits {
			if filepath.ToSlash(e.file) != e.file || e.old == e.new {
				t.Errorf("%s: %s is not changed", m.name, e.file)
			}
		}
	}
	if len(seen) < 25 {
		t.Errorf("%d guards, want 25 or more", len(seen))
	}
}
