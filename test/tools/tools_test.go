package tools

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

const key = "0123456789abcdef"

func TestCachedBuildsOnceForConcurrentAskers(t *testing.T) {
	t.Setenv("POSTERN_TEST_CACHE", t.TempDir())
	var builds atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			dir, err := Cached("thing", key, func(dir string) error {
				builds.Add(1)
				return os.WriteFile(filepath.Join(dir, "thing"), []byte("done"), 0o644)
			})
			if err != nil {
				t.Error(err)
				return
			}
			if content, err := os.ReadFile(filepath.Join(dir, "thing")); err != nil || string(content) != "done" {
				t.Errorf("content %q, error %v", content, err)
			}
		})
	}
	wg.Wait()
	if n := builds.Load(); n != 1 {
		t.Errorf("%d builds, want 1", n)
	}
}

func TestCachedLeavesNothingOfAFailedBuild(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("POSTERN_TEST_CACHE", cache)
	broken := errors.New("broken")
	_, err := Cached("thing", key, func(dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "half"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		return broken
	})
	if !errors.Is(err, broken) {
		t.Fatalf("error %v, want the build's", err)
	}
	left, err := os.ReadDir(cache)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range left {
		if entry.Name() != "build.lock" {
			t.Errorf("%s is left", entry.Name())
		}
	}
	if _, err := Cached("thing", key, func(string) error { return nil }); err != nil {
		t.Errorf("a second try: %v", err)
	}
}

func TestCachedRefusesNamesThatLeaveTheCache(t *testing.T) {
	t.Setenv("POSTERN_TEST_CACHE", t.TempDir())
	for _, c := range [][2]string{{"../thing", key}, {"", key}, {"thing", "short"}, {"thing", "../../../../../../tmp"}} {
		if _, err := Cached(c[0], c[1], func(string) error { return nil }); err == nil {
			t.Errorf("name %q key %q was accepted", c[0], c[1])
		}
	}
}

func TestGoBinaryKeyCoversSourcesAndFlags(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	keyOf := func(b GoBinary) string {
		t.Helper()
		k, err := b.key(dir)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	write("go.mod", "module x")
	write("go.sum", "")
	b := GoBinary{Name: "x"}
	seen := map[string]string{keyOf(b): "the first state"}
	expectNew := func(what, k string) {
		t.Helper()
		if before, ok := seen[k]; ok {
			t.Errorf("%s has the key of %s", what, before)
		}
		seen[k] = what
	}
	write("main.go", "package main")
	expectNew("a main.go", keyOf(b))
	write("go.sum", "x v1 h1:")
	expectNew("another go.sum", keyOf(b))
	write("go.mod", "module y")
	expectNew("another go.mod", keyOf(b))
	b.Tags = []string{"minimal"}
	expectNew("a tag", keyOf(b))
	b.LDFlags = "-X a=b"
	expectNew("a linker flag", keyOf(b))
	b.Package = "./cmd/x"
	expectNew("another package", keyOf(b))
}

func TestVaultRuns(t *testing.T) {
	out, err := exec.Command(Vault(t), "version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "Vault v1.") {
		t.Fatalf("vault version: %v: %s", err, out)
	}
}
