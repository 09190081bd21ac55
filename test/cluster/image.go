//go:build linux

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/postern-proxy/postern/test/tools"
)

// Builder builds images from the project's Dockerfile without a network: the
// base image is made here, from busybox and this machine's Go, and modules come
// from this machine's module cache.
type Builder struct {
	dir     string // the builder's own image store, apart from the machine's
	buildah string
	source  string // what it builds from: as it was when the builder was made
	mounts  []string
}

// NewBuilder makes a builder with everything it keeps below dir. The error says
// what the machine lacks.
func NewBuilder(ctx context.Context, dir string) (*Builder, error) {
	b := &Builder{dir: dir, source: filepath.Join(dir, "source")}
	root, err := tools.Root()
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("only root can build images here")
	}
	if b.buildah, err = tools.Buildah.Find(); err != nil {
		return nil, err
	}
	busybox, err := tools.Busybox.Find()
	if err != nil {
		return nil, err
	}
	env, err := goEnv("GOROOT", "GOMODCACHE", "GOCACHE", "GOVERSION")
	if err != nil {
		return nil, err
	}
	// Overlays: what the build writes there is thrown away with it.
	b.mounts = []string{env[0] + ":/usr/local/go:ro", env[1] + ":/go/pkg/mod:O", env[2] + ":/root/.cache/go-build:O"}
	// Everything that the Dockerfile's `go mod download` wants has to be in the cache before.
	download := exec.CommandContext(ctx, "go", "mod", "download")
	download.Dir = root
	if out, err := download.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go mod download: %w\n%s", err, out)
	}
	if err := copySource(root, b.source); err != nil {
		return nil, err
	}
	return b, b.makeBase(ctx, busybox, env[3])
}

// copySource copies what images are built from: what .dockerignore lets through, and how.
func copySource(root, to string) error {
	ignore, err := os.ReadFile(filepath.Join(root, ".dockerignore"))
	if err != nil {
		return err
	}
	names := []string{"Dockerfile", ".dockerignore"}
	for line := range strings.Lines(string(ignore)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "!"); ok {
			names = append(names, name)
		}
	}
	for _, name := range names {
		from := filepath.Join(root, name)
		info, err := os.Stat(from)
		if err != nil {
			return err
		}
		if info.IsDir() {
			err = os.CopyFS(filepath.Join(to, name), os.DirFS(from))
		} else if err = os.MkdirAll(to, 0o755); err == nil {
			err = copyFile(from, filepath.Join(to, name), 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func goEnv(names ...string) ([]string, error) {
	out, err := exec.Command("go", append([]string{"env"}, names...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	values := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	if len(values) != len(names) {
		return nil, fmt.Errorf("go env %v: %q", names, out)
	}
	return values, nil
}

// run is one of buildah's commands; it returns standard output.
func (b *Builder) run(ctx context.Context, args ...string) (string, error) {
	global := []string{
		"--root", filepath.Join(b.dir, "store"), "--runroot", filepath.Join(b.dir, "run"),
		"--storage-driver", "overlay", "--log-level", "error",
	}
	cmd := exec.CommandContext(ctx, b.buildah, append(global, args...)...)
	cmd.Dir = b.source
	cmd.Env = append(os.Environ(), "BUILDAH_ISOLATION=chroot", "TMPDIR="+b.dir)
	// What it mounts is gone with it, however it ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("buildah %s: %w\n%s%s", strings.Join(args, " "), err, lastLines(out.String()), lastLines(said.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// makeBase makes the image that the Dockerfile begins with: a shell, its
// tools, the CA certificates. Go itself is mounted into the build.
func (b *Builder) makeBase(ctx context.Context, busybox, goVersion string) error {
	container, err := b.run(ctx, "from", "scratch")
	if err != nil {
		return err
	}
	names, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("%s --list: %w", busybox, err)
	}
	tree := filepath.Join(b.dir, "base")
	for _, dir := range []string{"bin", "etc/ssl/certs", "tmp", "root/.cache/go-build", "go/pkg/mod", "usr/local/go"} {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			return err
		}
	}
	if err := copyFile(busybox, filepath.Join(tree, "bin/busybox"), 0o755); err != nil {
		return err
	}
	for _, name := range strings.Fields(string(names)) {
		if name == "busybox" {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(tree, "bin", name)); err != nil {
			return err
		}
	}
	if err := copyFile(caCertificates, filepath.Join(tree, caCertificates), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tree, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\n"), 0o644); err != nil {
		return err
	}
	version, _, _ := strings.Cut(strings.TrimPrefix(goVersion, "go"), " ")
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return fmt.Errorf("no version of Go in %q", goVersion)
	}
	for _, args := range [][]string{
		{"copy", container, tree, "/"},
		{
			"config", "--env", "PATH=/usr/local/go/bin:/bin", "--env", "GOPATH=/go", "--env", "GOPROXY=off", "--env", "GOSUMDB=off",
			"--env", "GOTOOLCHAIN=local", "--env", "HOME=/root", container,
		},
		{"run", container, "--", "/bin/true"}, // whether commands can be run here at all
		{"commit", "--rm", "--quiet", container, "docker.io/library/golang:" + parts[0] + "." + parts[1]},
	} {
		if _, err := b.run(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

const caCertificates = "/etc/ssl/certs/ca-certificates.crt"

func copyFile(from, to string, mode os.FileMode) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, mode)
}

// Target is what to build.
type Target struct {
	Name     string   // the target in the Dockerfile
	Image    string   // what the image is called, as in postern:dev
	Platform string   // as in linux/arm64; empty means this machine's
	Args     []string // build arguments, as in VERSION=1.2
}

// programs are the targets' own.
var programs = map[string]string{"agent": "postern", "injector": "postern-injector"}

// Build builds a target and writes it to the archive file, which [Cluster.Load] takes.
func (b *Builder) Build(ctx context.Context, target Target, archive string) error {
	name := fullName(target.Image)
	args := []string{
		"bud", "--pull-never", "--no-cache", "--target", target.Name, "--tag", name,
		"--ulimit", "nofile=20000:20000", "--ulimit", "nproc=8192:8192", // more than these may not be allowed here
	}
	if target.Platform != "" {
		// Older builders do not know by themselves what they run on.
		args = append(args, "--platform", target.Platform, "--build-arg", "BUILDPLATFORM=linux/"+runtime.GOARCH)
	}
	for _, mount := range b.mounts {
		args = append(args, "--volume", mount)
	}
	program, ok := programs[target.Name]
	if !ok {
		return fmt.Errorf("the Dockerfile has no target %q", target.Name)
	}
	for _, arg := range append(target.Args, "PROGRAMS="+program) {
		args = append(args, "--build-arg", arg)
	}
	if _, err := b.run(ctx, append(args, ".")...); err != nil {
		return err
	}
	_, err := b.run(ctx, "push", "--quiet", "--format", "oci", name, "oci-archive:"+archive+":"+name)
	return err
}

// lastLines is the end of a program's output.
func lastLines(s string) string {
	const most = 4 << 10
	if len(s) > most {
		s = s[len(s)-most:]
	}
	return s
}

// Image is what an archive of one image holds.
type Image struct {
	Layers     []string // digests, as pulled
	Compressed int64    // bytes of all layers
	Config     struct {
		User       string            `json:"User"`
		Env        []string          `json:"Env"`
		Entrypoint []string          `json:"Entrypoint"`
		Cmd        []string          `json:"Cmd"`
		Labels     map[string]string `json:"Labels"`
	}
	Architecture string
	Files        map[string]File // by path, of all layers
}

// File is one entry of an image's layers.
type File struct {
	Mode    os.FileMode
	Content []byte
}

// ReadImage reads an archive that [Builder.Build] has written.
func ReadImage(archive string) (*Image, error) {
	blobs, err := readTar(archive)
	if err != nil {
		return nil, err
	}
	blob := func(digest string) []byte { return blobs["blobs/"+strings.Replace(digest, ":", "/", 1)] }
	var index struct{ Manifests []struct{ Digest string } }
	if err := json.Unmarshal(blobs["index.json"], &index); err != nil || len(index.Manifests) != 1 {
		return nil, fmt.Errorf("%s: no index of one image: %v", archive, err)
	}
	var manifest struct {
		Config struct{ Digest string }
		Layers []struct {
			Digest string
			Size   int64
		}
	}
	if err := json.Unmarshal(blob(index.Manifests[0].Digest), &manifest); err != nil {
		return nil, fmt.Errorf("%s: manifest: %w", archive, err)
	}
	image := &Image{Files: map[string]File{}}
	if err := json.Unmarshal(blob(manifest.Config.Digest), image); err != nil {
		return nil, fmt.Errorf("%s: configuration: %w", archive, err)
	}
	for _, layer := range manifest.Layers {
		image.Layers = append(image.Layers, layer.Digest)
		image.Compressed += layer.Size
		if err := readLayer(blob(layer.Digest), image.Files); err != nil {
			return nil, fmt.Errorf("%s: layer %s: %w", archive, layer.Digest, err)
		}
	}
	return image, nil
}
