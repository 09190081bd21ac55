//go:build linux

package cluster_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"debug/elf"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/postern-proxy/postern/test/cluster"
)

// most is what an image may weigh to pull, in bytes.
const most = 12 << 20

var buildArgs = []string{"VERSION=test", "REVISION=0123abc"}

// built is the agent's image, which all tests of this package share.
type built struct {
	builder *cluster.Builder
	archive string
	missing error // what the machine lacks for it
}

// injectorImage builds the injector's, as postern-injector:dev, once; its builder is the agent's, which is there.
var injectorImage = sync.OnceValues(func() (string, error) {
	agent, err := agentImage()
	if err != nil {
		return "", err
	}
	archive := filepath.Join(scratch, "injector.tar")
	return archive, agent.builder.Build(context.Background(), cluster.Target{Name: "injector", Image: "postern-injector:dev", Args: buildArgs}, archive)
})

// scratch is the folder that lives as long as the tests.
var scratch string

// agentImage builds the image as postern:dev once.
var agentImage = sync.OnceValues(func() (built, error) {
	b := built{archive: filepath.Join(scratch, "agent.tar")}
	if b.builder, b.missing = cluster.NewBuilder(context.Background(), filepath.Join(scratch, "builder")); b.missing != nil {
		return b, nil
	}
	return b, b.builder.Build(context.Background(), cluster.Target{Name: "agent", Image: "postern:dev", Args: buildArgs}, b.archive)
})

// An image is its program and the CA certificates, and the same sources give the
// same one again.
func TestImages(t *testing.T) {
	agent, err := agentImage()
	if err != nil {
		t.Fatal(err)
	}
	if agent.missing != nil {
		lacks(t, "images", agent.missing)
		return
	}
	injector, err := injectorImage()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		target, program, first string
		arguments              []string
	}{
		{"agent", "postern", agent.archive, []string{"agent"}},
		{"injector", "postern-injector", injector, nil},
	} {
		t.Run(c.target, func(t *testing.T) {
			archive := filepath.Join(t.TempDir(), "second.tar")
			if err := agent.builder.Build(t.Context(), cluster.Target{Name: c.target, Image: c.program + ":second", Args: buildArgs}, archive); err != nil {
				t.Fatal(err)
			}
			first, second := open(t, c.first), open(t, archive)
			if !slices.Equal(first.Layers, second.Layers) || len(first.Layers) == 0 {
				t.Errorf("the layers of two builds: %v and %v, want the same", first.Layers, second.Layers)
			}
			fmt.Printf("%s image: %.1f MB to pull\n", c.target, float64(first.Compressed)/1e6)
			if first.Compressed > most {
				t.Errorf("%d bytes to pull, at most %d are allowed", first.Compressed, most)
			}
			holdsOnly(t, first, "/"+c.program)
			if got := first.Config; got.User != "65532:65532" || !slices.Equal(got.Entrypoint, []string{"/" + c.program}) || !slices.Equal(got.Cmd, c.arguments) {
				t.Errorf("user %q, entry point %q, arguments %q", got.User, got.Entrypoint, got.Cmd)
			}
			if first.Architecture != runtime.GOARCH {
				t.Errorf("for %s, this is %s", first.Architecture, runtime.GOARCH)
			}
			labelled(t, first, map[string]string{
				"title": c.program, "version": "test", "revision": "0123abc", "licenses": "Apache-2.0",
				"source": "https://github.com/postern-proxy/postern",
			})
		})
	}
	if os.Getenv("POSTERN_E2E_LONG") == "1" { // minutes; that the program builds is linted
		t.Run("another architecture", func(t *testing.T) { otherArchitecture(t, agent.builder) })
	}
}

func open(t *testing.T, archive string) *cluster.Image {
	t.Helper()
	image, err := cluster.ReadImage(archive)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// holdsOnly: a static program that anybody may run, the certificates, and nothing else.
func holdsOnly(t *testing.T, image *cluster.Image, name string) {
	t.Helper()
	want := []string{"/", "/etc", "/etc/ssl", "/etc/ssl/certs", "/etc/ssl/certs/ca-certificates.crt", name}
	got := slices.Sorted(maps.Keys(image.Files))
	if got[0] != "/" { // builders differ in whether a layer names its root
		want = want[1:]
	}
	if !slices.Equal(got, want) {
		t.Errorf("in the image: %v, want %v", got, want)
	}
	if mode := image.Files[name].Mode; mode != 0o755 {
		t.Errorf("the program's mode is %v, want %v: no special bits, and everybody may run it", mode, os.FileMode(0o755))
	}
	for _, section := range parse(t, image, name).Progs {
		if section.Type == elf.PT_INTERP {
			t.Error("the program is not static: it needs a loader, which the image does not have")
		}
	}
	if certificates := image.Files["/etc/ssl/certs/ca-certificates.crt"].Content; !x509.NewCertPool().AppendCertsFromPEM(certificates) {
		t.Error("no CA certificates")
	}
}

func labelled(t *testing.T, image *cluster.Image, want map[string]string) {
	t.Helper()
	const prefix = "org.opencontainers.image."
	for label, want := range want {
		if got := image.Config.Labels[prefix+label]; got != want {
			t.Errorf("label %s is %q, want %q", label, got, want)
		}
	}
	if image.Config.Labels[prefix+"description"] == "" {
		t.Error("no description")
	}
}

// parse reads a program of the image.
func parse(t *testing.T, image *cluster.Image, name string) *elf.File {
	t.Helper()
	parsed, err := elf.NewFile(bytes.NewReader(image.Files[name].Content))
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// otherArchitecture builds the image for the architecture that this machine has not.
func otherArchitecture(t *testing.T, builder *cluster.Builder) {
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	archive := filepath.Join(t.TempDir(), "other.tar")
	if err := builder.Build(t.Context(), cluster.Target{Name: "agent", Image: "postern:other", Platform: "linux/" + other}, archive); err != nil {
		t.Fatal(err)
	}
	image := open(t, archive)
	parsed := parse(t, image, "/postern")
	machine := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[other]
	if image.Architecture != other || parsed.Machine != machine {
		t.Errorf("asked for %s: the image says %s, the program is for %v", other, image.Architecture, parsed.Machine)
	}
	fmt.Printf("agent image for %s: %.1f MB to pull\n", other, float64(image.Compressed)/1e6)
}
