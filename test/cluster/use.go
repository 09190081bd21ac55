//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Load makes an image of an archive known to the node.
func (c *Cluster) Load(ctx context.Context, archive string) error {
	if c.node == nil {
		return errors.New("there is no node to load images")
	}
	cmd := exec.CommandContext(ctx, c.bin["ctr"], "--address", c.node.path(containerdSocket), "--namespace", "k8s.io", "images", "import", archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("loading %s: %w\n%s", archive, err, out)
	}
	return nil
}

// Name makes a host name known to pods, beside the cluster's own, as one of the
// node's address. It needs [Full].
func (c *Cluster) Name(host string) error {
	f, err := os.OpenFile(filepath.Join(c.Dir, "hosts"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintln(f, c.IP, host)
	return err
}

// Command is a command with the cluster's network, kubeconfig and programs:
// kubectl, helm, a test binary.
func (c *Cluster) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	path := name
	if known, ok := c.bin[name]; ok {
		path = known
	}
	words := []string{path}
	if c.node != nil {
		words = []string{"nsenter", "--net=" + c.node.netFile, "--", path}
	}
	cmd := exec.CommandContext(ctx, words[0], append(words[1:], args...)...)
	var dirs []string
	for _, program := range c.bin {
		dirs = append(dirs, filepath.Dir(program))
	}
	slices.Sort(dirs)
	c.mu.Lock()
	defer c.mu.Unlock()
	cmd.Env = append(append(os.Environ(), c.env...),
		"KUBECONFIG="+c.Kubeconfig, "HOME="+c.Dir,
		"PATH="+strings.Join(slices.Compact(dirs), ":")+":"+os.Getenv("PATH"))
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// more is told to all further commands.
func (c *Cluster) more(env ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.env = append(c.env, env...)
}

// Logs are the last lines of every program's log.
func (c *Cluster) Logs() string {
	var out strings.Builder
	_ = filepath.WalkDir(filepath.Join(c.Dir, "log"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return nil
		}
		content, err := os.ReadFile(path)
		if err == nil {
			lines := strings.Split(strings.TrimSpace(string(content)), "\n")
			fmt.Fprintf(&out, "--- %s\n", entry.Name())
			for _, line := range lines[max(0, len(lines)-8):] {
				fmt.Fprintln(&out, line[:min(len(line), 300)])
			}
		}
		return nil
	})
	return out.String()
}
