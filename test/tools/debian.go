package tools

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// DebianProgram is a program that comes from a Debian package, because it is
// not a Go module or cannot be built without a C compiler.
type DebianProgram struct {
	Name    string // the program's file name
	Package string
	Dir     string // where it lies, if no PATH leads there
}

// The programs that run containers, build images, check alerts, ask for things and open pages, and that the agent is measured against or stands in front of.
var (
	Runc     = DebianProgram{Name: "runc", Package: "runc"}
	Bridge   = DebianProgram{Name: "bridge", Package: "containernetworking-plugins", Dir: "/usr/lib/cni"}
	IPTables = DebianProgram{Name: "iptables", Package: "iptables"}
	IP       = DebianProgram{Name: "ip", Package: "iproute2"}
	Buildah  = DebianProgram{Name: "buildah", Package: "buildah"}
	Busybox  = DebianProgram{Name: "busybox", Package: "busybox-static"}
	Promtool = DebianProgram{Name: "promtool", Package: "prometheus"}
	Nginx    = DebianProgram{Name: "nginx", Package: "nginx-light"}
	HAProxy  = DebianProgram{Name: "haproxy", Package: "haproxy"}
	Curl     = DebianProgram{Name: "curl", Package: "curl"}
	Chromium = DebianProgram{Name: "chromium", Package: "chromium"}
)

// Debian are all of them.
var Debian = []DebianProgram{Runc, Bridge, IPTables, IP, Buildah, Busybox, Promtool, Nginx, HAProxy, Curl, Chromium}

// Find returns the program's path. A missing package is installed if this
// process may do so, which is what a machine of CI is like; the error says why
// there is none otherwise.
func (p DebianProgram) Find() (string, error) {
	if path, ok := p.look(); ok {
		return path, nil
	}
	if os.Geteuid() != 0 {
		return "", fmt.Errorf("%s is missing, and only root may install Debian's package %s", p.Name, p.Package)
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil {
		return "", fmt.Errorf("%s is missing, and without apt-get there is no package %s to install", p.Name, p.Package)
	}
	unlock, err := lock("packages") // not the builds': an installation takes seconds, and nobody need wait for a build of minutes
	if err != nil {
		return "", err
	}
	defer unlock()
	if path, ok := p.look(); ok { // another process has installed it meanwhile
		return path, nil
	}
	for _, args := range [][]string{{"update", "-q"}, {"install", "-y", "-q", "--no-install-recommends", p.Package}} {
		cmd := exec.Command(apt, args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s is missing, and %s: %w\n%s", p.Name, strings.Join(cmd.Args, " "), err, tail(out))
		}
	}
	path, ok := p.look()
	if !ok {
		return "", errors.New(p.Package + " is installed and has no " + p.Name)
	}
	return path, nil
}

// look searches the folders of administrators' programs too, which are not in everybody's PATH.
func (p DebianProgram) look() (string, bool) {
	dirs := append(filepath.SplitList(os.Getenv("PATH")), "/usr/local/sbin", "/usr/sbin", "/sbin")
	if p.Dir != "" {
		dirs = []string{p.Dir}
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, p.Name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, true
		}
	}
	return "", false
}
