package chart_test

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/test/tools"
)

// TestUnits runs the chart's own tests by helm-unittest: releases and values beside the rendered sets.
func TestUnits(t *testing.T) {
	program, err := tools.HelmUnittest.Build()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--color=false", "--strict", path(t, "charts", "postern"))
	cmd.Env = []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("helm unittest: %v\n%s", err, out)
	}
}

// What is packed is the chart, with the test that `helm test` runs and without what only developers use.
func TestPackage(t *testing.T) {
	dir := t.TempDir()
	if out, err := helm(t, "package", "charts/postern", "--destination", dir); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	packed, err := filepath.Glob(filepath.Join(dir, "postern-*.tgz"))
	if err != nil || len(packed) != 1 {
		t.Fatalf("%q, %v", packed, err)
	}
	f, err := os.Open(packed[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unpacked, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for r := tar.NewReader(unpacked); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(h.Name, "postern/")
		names[name] = true
		for _, dir := range []string{"ci/", "tests/"} {
			if strings.HasPrefix(name, dir) {
				t.Errorf("%s is packed", name)
			}
		}
	}
	for _, want := range []string{"Chart.yaml", "values.yaml", "values.schema.json", "README.md", "templates/NOTES.txt", "templates/tests/injection.yaml", "files/dashboard.json"} {
		if !names[want] {
			t.Errorf("%s is not packed", want)
		}
	}
}
