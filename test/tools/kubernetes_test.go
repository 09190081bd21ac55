package tools

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What the programs say they are is what they are built from.
func TestKubernetesVersionIsTheModules(t *testing.T) {
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile(filepath.Join(root, "test/tools/k8s/go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(mod), "k8s.io/kubernetes "+kubernetesVersion+" ") {
		t.Errorf("test/tools/k8s/go.mod has another k8s.io/kubernetes than %s", kubernetesVersion)
	}
	b := kubernetes("kubectl")
	for _, want := range []string{"gitVersion=" + kubernetesVersion, "gitMajor=1", "gitMinor="} {
		if !strings.Contains(b.LDFlags, "-X k8s.io/component-base/version."+want) {
			t.Errorf("%s is not set in %s", want, b.LDFlags)
		}
	}
}

// Two programs of one name would take each other's place.
func TestProgramsHaveNamesOfTheirOwn(t *testing.T) {
	var names []string
	for _, b := range slices.Concat(ControlPlane, Node) {
		names = append(names, b.Name)
	}
	for _, p := range Debian {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	if n := len(names); len(slices.Compact(names)) != n {
		t.Errorf("one stands twice: %v", names)
	}
}

func TestMissingPackageSaysWhy(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Setenv("PATH", t.TempDir()) // no apt-get
	}
	_, err := DebianProgram{Name: "no-such-program", Package: "no-such-package"}.Find()
	if err == nil || !strings.Contains(err.Error(), "no-such-program is missing") || !strings.Contains(err.Error(), "no-such-package") {
		t.Errorf("error %v", err)
	}
}
