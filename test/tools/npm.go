package tools

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// NodeModules returns the folder of the npm packages that test/sdk/node pins: the
// SDKs and, for linux/amd64, a Node that heeds proxy variables.
func NodeModules() (string, error) {
	npm, err := exec.LookPath("npm")
	if err != nil {
		return "", errors.New("npm is not installed")
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	files := map[string][]byte{"package.json": nil, "package-lock.json": nil}
	for name := range files {
		if files[name], err = os.ReadFile(filepath.Join(root, "test", "sdk", "node", name)); err != nil {
			return "", err
		}
	}
	dir, err := Cached("npm-sdks", Key(files["package-lock.json"], files["package.json"]), func(dir string) error {
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
				return err
			}
		}
		cmd := exec.Command(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier")
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("npm ci: %w\n%s", err, tail(out))
		}
		return nil
	})
	return filepath.Join(dir, "node_modules"), err
}
