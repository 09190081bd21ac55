package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// listen opens a TCP address, or a Unix socket whose users are checked on each connection.
func listen(address string) (net.Listener, error) {
	path, socket := strings.CutPrefix(address, "unix://")
	if !socket {
		return net.Listen("tcp", address)
	}
	// Of two agents that start at once, one must not take away the other's new socket as a stale one.
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir.Name(), err)
	}
	switch err := socketFree(path); {
	case errors.Is(err, errStale):
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	}
	// Everyone may connect as far as the file goes: who stays is decided by user
	// id. The mode is the file's from its first moment on: a chmod afterwards would follow
	// a link that somebody put in its place.
	mask := unix.Umask(0)
	defer unix.Umask(mask)
	return net.Listen("unix", path)
}

// errStale: a socket is there on which nobody listens any more.
var errStale = errors.New("a stale socket")

// socketFree looks at the place of a socket, and changes nothing.
func socketFree(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case fi.Mode()&os.ModeSocket == 0:
		return fmt.Errorf("%s exists and is no socket", path)
	}
	c, err := net.Dial("unix", path)
	switch {
	case err == nil:
		c.Close()
	case errors.Is(err, syscall.EAGAIN): // its queue is full
	case errors.Is(err, syscall.ECONNREFUSED):
		return errStale
	default:
		return err
	}
	return fmt.Errorf("%s is in use by another process (%w)", path, syscall.EADDRINUSE)
}

// canListen tries an address, and leaves nothing behind.
func canListen(address string) error {
	path, socket := strings.CutPrefix(address, "unix://")
	if !socket {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		return ln.Close()
	}
	if err := socketFree(path); err != nil && !errors.Is(err, errStale) {
		return err
	}
	return unix.Access(filepath.Dir(path), unix.W_OK|unix.X_OK)
}

// replaceable says who could put another socket in the place of a listener's,
// "" where nobody can but its owner and root.
func replaceable(address string) string {
	path, socket := strings.CutPrefix(address, "unix://")
	if !socket {
		return ""
	}
	dir := filepath.Dir(path)
	fi, err := os.Stat(dir)
	if err != nil || fi.Mode().Perm()&0o022 == 0 || fi.Mode()&os.ModeSticky != 0 {
		return ""
	}
	return "listen.proxy: whoever may write to " + dir + " can put another socket in its place and read what applications send; a folder that only the agent's user may write to prevents it"
}
