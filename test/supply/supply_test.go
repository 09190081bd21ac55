// Package supply_test holds what is delivered against what it is made of: the
// same sources give the same programs, and each says truly what is in it.
package supply_test

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/test/tools"
)

var programs = []string{"postern", "postern-injector"}

// Two builds, from different folders, on what could be two machines, are equal
// byte for byte. (They share the compiler's cache, whose keys hold everything that a
// package is made from: what is compared is what the sources, the flags and the
// linker make of the place, the time and the user.)
func TestBuildIsReproducible(t *testing.T) {
	root, files := sources(t)
	base := t.TempDir()
	dirs := []string{filepath.Join(base, "a"), filepath.Join(base, "another/and/deeper/folder")}
	for i, dir := range dirs {
		copyTree(t, root, dir, files)
		run(t, dir, []string{"TZ=" + []string{"UTC", "Asia/Tokyo"}[i], "USER=user" + dir[len(dir)-1:]}, "make", "build", "VERSION=v1.2.3")
	}
	for _, p := range programs {
		var sums [2][32]byte
		for i, dir := range dirs {
			b, err := os.ReadFile(filepath.Join(dir, "bin", p))
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(b, []byte(base)) || bytes.Contains(b, []byte(root+"/")) {
				t.Errorf("%s says where it was built", p)
			}
			if !bytes.Contains(b, []byte("v1.2.3")) {
				t.Errorf("%s does not hold its version", p)
			}
			sums[i] = sha256.Sum256(b)
		}
		if sums[0] != sums[1] {
			t.Errorf("%s: %x from one folder, %x from another", p, sums[0], sums[1])
		}
	}
	for _, p := range programs {
		t.Run(p, func(t *testing.T) { billIsTrue(t, filepath.Join(dirs[0], "bin", p)) })
	}
	t.Run("licenses", func(t *testing.T) {
		licensesAreAllowed(t, filepath.Join(root, "test/tools/supply/allowed.txt"), filepath.Join(dirs[0], "bin", programs[0]), filepath.Join(dirs[0], "bin", programs[1]))
	})
}

// billIsTrue: the bill of materials has every module of the program, each with
// its hash and a license, and nothing else; and it is the same the next time.
func billIsTrue(t *testing.T, program string) {
	text := run(t, "", nil, tools.Supply(t), "sbom", program, "v1.2.3")
	if again := run(t, "", nil, tools.Supply(t), "sbom", program, "v1.2.3"); !bytes.Equal(text, again) {
		t.Error("two bills of one program differ")
	}
	var bill struct {
		BOMFormat, SpecVersion string
		Metadata               struct {
			Component struct{ Name, Version string }
		}
		Components []struct {
			Name, Version, Purl string
			Hashes              []struct{ Alg, Content string }
			Evidence            struct{ Licenses []any }
		}
	}
	if err := json.Unmarshal(text, &bill); err != nil {
		t.Fatal(err)
	}
	if c := bill.Metadata.Component; bill.BOMFormat != "CycloneDX" || c.Name != filepath.Base(program) || c.Version != "v1.2.3" {
		t.Errorf("format %q, program %q, version %q", bill.BOMFormat, c.Name, c.Version)
	}
	listed := map[string]bool{}
	for _, c := range bill.Components {
		listed[c.Name+"@"+c.Version] = true
		if c.Purl != "pkg:golang/"+c.Name+"@"+c.Version || len(c.Evidence.Licenses) == 0 {
			t.Errorf("%s: purl %q, licenses %v", c.Name, c.Purl, c.Evidence.Licenses)
		}
		if c.Name != "std" && (len(c.Hashes) != 1 || len(c.Hashes[0].Content) != 64) {
			t.Errorf("%s: hashes %v", c.Name, c.Hashes)
		}
	}
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range info.Deps {
		if !listed[d.Path+"@"+d.Version] {
			t.Errorf("%s %s is in the program and not in the bill", d.Path, d.Version)
		}
	}
	if want := len(info.Deps) + 1; len(listed) != want { // and the standard library
		t.Errorf("%d components, want %d", len(listed), want)
	}
}

func licensesAreAllowed(t *testing.T, allowed string, programs ...string) {
	args := append([]string{"licenses", allowed}, programs...)
	out := run(t, "", nil, tools.Supply(t), args...)
	for _, want := range []string{"github.com/hashicorp/vault/api", "MPL-2.0", "k8s.io/api", "Apache-2.0", "std"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("the report has no %s:\n%s", want, out)
		}
	}
	// One that the list does not have is named, with its module.
	args[1] = filepath.Join(t.TempDir(), "allowed.txt")
	if err := os.WriteFile(args[1], []byte("MIT\nBSD-3-Clause\nApache-2.0 # but not MPL-2.0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	refused(t, args, "github.com/hashicorp/vault/api v", ": MPL-2.0")
}

// A program that is made of a folder, or of a module without a license, has no bill.
func TestWhatCannotBeNamedIsRefused(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":       "module example.test/program\n\ngo 1.26.0\n\nrequire example.test/local v1.0.0\n\nreplace example.test/local => ./local\n",
		"main.go":      "package main\n\nimport _ \"example.test/local\"\n\nfunc main() {}\n",
		"local/go.mod": "module example.test/local\n\ngo 1.26.0\n",
		"local/l.go":   "package local\n",
	} {
		write(t, filepath.Join(dir, name), text)
	}
	program := filepath.Join(dir, "program")
	run(t, dir, nil, "go", "build", "-o", program, ".")
	refused(t, []string{"sbom", program, "v1"}, "made of the folder ./local")
	refused(t, []string{"sbom", filepath.Join(dir, "main.go"), "v1"}, "main.go")
	refused(t, []string{"sbom"}, "usage")
}

func refused(t *testing.T, args []string, want ...string) {
	t.Helper()
	out, err := exec.Command(tools.Supply(t), args...).CombinedOutput()
	for _, w := range want {
		if err == nil || !bytes.Contains(out, []byte(w)) {
			t.Errorf("supply %s: %v, without %q:\n%s", args[0], err, w, out)
		}
	}
}

// sources are the project's own files.
func sources(t *testing.T) (root string, files []string) {
	t.Helper()
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	out := run(t, root, nil, "git", "ls-files", "-z", "-co", "--exclude-standard")
	return root, strings.Split(strings.TrimRight(string(out), "\x00"), "\x00")
}

func copyTree(t *testing.T, from, to string, files []string) {
	t.Helper()
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(from, f))
		if os.IsNotExist(err) {
			continue // removed, and not committed yet
		}
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(to, f), string(b))
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// run is a command's standard output; the test fails with what it said if it fails.
func run(t *testing.T, dir string, env []string, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, said.String())
	}
	return out.Bytes()
}
