//go:build linux

package cluster

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
)

// Archive describes an image FROM scratch for a test's own programs: no builder
// is needed for one.
type Archive struct {
	Name       string            // as in app:1. Without a tag, or with latest, Kubernetes would try to pull it
	Files      map[string]string // path in the image: path here
	Links      map[string]string // path in the image: what it links to
	Entrypoint []string
	Cmd        []string
}

// Write writes the archive in the form that `docker save` has.
func (a Archive) Write(file string) error {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, name := range sortedKeys(a.Files) {
		content, err := os.ReadFile(a.Files[name])
		if err != nil {
			return err
		}
		if err := addFile(w, strings.TrimPrefix(name, "/"), content, 0o755); err != nil {
			return err
		}
	}
	for _, name := range sortedKeys(a.Links) {
		header := &tar.Header{Typeflag: tar.TypeSymlink, Name: strings.TrimPrefix(name, "/"), Linkname: a.Links[name], Mode: 0o777}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	layerID := hexDigest(layer.Bytes())
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": "1970-01-01T00:00:00Z",
		"config": map[string]any{
			"Entrypoint": a.Entrypoint, "Cmd": a.Cmd, "User": "65532:65532", "Env": []string{"PATH=/bin:/"},
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + layerID}},
	})
	if err != nil {
		return err
	}
	configFile := hexDigest(config) + ".json"
	manifest, err := json.Marshal([]map[string]any{{"Config": configFile, "RepoTags": []string{fullName(a.Name)}, "Layers": []string{layerID + "/layer.tar"}}})
	if err != nil {
		return err
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	whole := tar.NewWriter(out)
	if err := errors.Join(
		addFile(whole, layerID+"/layer.tar", layer.Bytes(), 0o644),
		addFile(whole, configFile, config, 0o644),
		addFile(whole, "manifest.json", manifest, 0o644),
		whole.Close(),
	); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return out.Close()
}

// fullName is what a container runtime takes a short name for.
func fullName(name string) string {
	first, _, more := strings.Cut(name, "/")
	switch {
	case !more:
		return "docker.io/library/" + name
	case first != "localhost" && !strings.ContainsAny(first, ".:"):
		return "docker.io/" + name
	}
	return name
}

func addFile(w *tar.Writer, name string, content []byte, mode int64) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), Mode: mode}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

func hexDigest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// readTar reads the files of an archive.
func readTar(file string) (map[string][]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	files := map[string][]byte{}
	for r := tar.NewReader(f); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		if files[path.Clean(header.Name)], err = io.ReadAll(r); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
}

// readLayer adds the entries of a gzipped layer.
func readLayer(layer []byte, to map[string]File) error {
	unpacked, err := gzip.NewReader(bytes.NewReader(layer))
	if err != nil {
		return err
	}
	for r := tar.NewReader(unpacked); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		to[path.Join("/", header.Name)] = File{Mode: header.FileInfo().Mode(), Content: content}
	}
}
