// Package tools provides the real programs that tests run against (a Vault
// server and the like), built from pinned sources and kept as finished
// artefacts outside the tree.
//
// A test asks for a tool by its function, such as [Vault]. What is missing is
// built then, one build at a time on a machine, which can take minutes: `go run
// ./test/tools/cmd/tools` does it beforehand.
package tools

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

// modulePath tells the project's root from a nested module's.
const modulePath = "github.com/postern-proxy/postern"

// CacheDir is the folder that holds finished artefacts: $POSTERN_TEST_CACHE, or
// postern-test below the user's cache folder.
func CacheDir() (string, error) {
	if dir := os.Getenv("POSTERN_TEST_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache folder, set POSTERN_TEST_CACHE: %w", err)
	}
	return filepath.Join(dir, "postern-test"), nil
}

// Root is the project's root folder, found from the working directory upwards.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && moduleLine.Match(mod) {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("no go.mod of %s in the working directory or above it", modulePath)
		}
		dir = parent
	}
}

var moduleLine = regexp.MustCompile(`(?m)^module ` + regexp.QuoteMeta(modulePath) + `\s*$`)

// Key hashes everything that an artefact depends on to a cache key.
func Key(parts ...[]byte) string {
	h := sha256.New()
	for _, part := range parts {
		fmt.Fprintf(h, "%d:", len(part))
		h.Write(part)
	}
	return hex.EncodeToString(h.Sum(nil))
}

var safeName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*$`)

// Cached returns the folder that holds the artefact name in the state that key
// describes. On a miss build fills the empty folder it is given, which becomes
// visible only when build succeeds; a failed build leaves nothing behind. Builds
// of all processes on a machine wait for each other. Name consists of lower-case
// letters, digits, dots and dashes; key is [Key]'s, or at least 16 such characters.
func Cached(name, key string, build func(dir string) error) (string, error) {
	if !safeName.MatchString(name) || !safeName.MatchString(key) || len(key) < 16 {
		return "", fmt.Errorf("artefact name %q or key %q: want lower-case letters, digits, dots, dashes and a key of 16 or more", name, key)
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	slot := filepath.Join(cache, name+"-"+key[:16])
	if found, err := exists(slot); found || err != nil {
		return slot, err
	}

	unlock, err := lock("build")
	if err != nil {
		return "", err
	}
	defer unlock()
	if found, err := exists(slot); found || err != nil { // another process has built it meanwhile
		return slot, err
	}

	partial, err := os.MkdirTemp(cache, ".building-"+name+"-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(partial)
	if err := build(partial); err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	if err := os.Chmod(partial, 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(partial, slot); err != nil {
		return "", err
	}
	return slot, nil
}

func exists(dir string) (bool, error) {
	_, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// tail is the end of a build's output, which is where compilers say what is wrong.
func tail(out []byte) []byte {
	const most = 4 << 10
	if len(out) > most {
		out = out[len(out)-most:]
	}
	return bytes.TrimSpace(out)
}
