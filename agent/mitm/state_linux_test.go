package mitm

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// memory returns a new directory on a tmpfs.
func memory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "postern-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestARestartKeepsTheCA(t *testing.T) {
	clk := newClock()
	dir := filepath.Join(memory(t), "ca") // made by New
	hosts := []string{"a.test", "b.test", "10.0.0.1", "::1", "*.r.test"}
	ca := newCA(t, Options{Hosts: hosts, StateDir: dir, Now: clk.now})
	before := ca.PEM()
	ca.Close()
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Fatalf("%v %v", st, err)
	}
	if st, err := os.Stat(filepath.Join(dir, stateFile)); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", st, err)
	}
	slices.Reverse(hosts)
	again := newCA(t, Options{Hosts: hosts, StateDir: dir + "/", Now: clk.now})
	if !bytes.Equal(before, again.PEM()) {
		t.Error("the same hosts came back with another CA")
	}
	leaf, err := again.Leaf("a.test")
	if err != nil {
		t.Fatal(err)
	}
	if err := handshake(leaf, before, "a.test", clk.now); err != nil {
		t.Errorf("a running client: %v", err)
	}
	again.Close()
	// Other hosts: the same key, a new certificate, and it too is kept.
	other := newCA(t, Options{Hosts: []string{"a.test", "c.test"}, StateDir: dir, Now: clk.now})
	if bytes.Equal(before, other.PEM()) {
		t.Error("other hosts, the same constraints")
	}
	if leaf, err = other.Leaf("a.test"); err != nil {
		t.Fatal(err)
	}
	if err := handshake(leaf, before, "a.test", clk.now); err != nil {
		t.Errorf("a running client: %v", err)
	}
	if err := other.Reissue([]string{"d.test"}); err != nil {
		t.Fatal(err)
	}
	last := other.PEM()
	other.Close()
	same := newCA(t, Options{Hosts: []string{"d.test"}, StateDir: dir, Now: clk.now})
	if !bytes.Equal(last, same.PEM()) {
		t.Error("Reissue was not kept")
	}
	same.Close()
	clk.pass(340 * 24 * time.Hour)
	renewed := newCA(t, Options{Hosts: []string{"d.test"}, StateDir: dir, Now: clk.now})
	if bytes.Equal(last, renewed.PEM()) || renewed.Stats().NotAfter.Before(clk.now().Add(caLife-2*backdated)) {
		t.Error("a CA near its end was not renewed")
	}
	if names, _ := os.ReadDir(dir); len(names) != 1 {
		t.Errorf("left behind: %v", names)
	}
}

func TestStateDirRefuses(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not root: another owner cannot be tried")
	}
	shm := memory(t)
	disk := t.TempDir()
	if err := os.Chmod(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	var fsys unix.Statfs_t
	if err := unix.Statfs(disk, &fsys); err != nil || int64(fsys.Type) == unix.TMPFS_MAGIC {
		disk = "/proc" // where even temporary files are in memory: some other file system
	}
	seed := newCA(t, Options{Hosts: []string{"a.test"}, StateDir: filepath.Join(shm, "seed")})
	good, err := os.ReadFile(filepath.Join(shm, "seed", stateFile))
	if err != nil {
		t.Fatal(err)
	}
	seed.Close()
	stranger, err := newCA(t, Options{Hosts: []string{"a.test"}}).issuer.marshal()
	if err != nil {
		t.Fatal(err)
	}
	keyEnd := bytes.Index(good, []byte("-----BEGIN CERT"))
	put := func(content []byte, perm os.FileMode) func(string) error {
		return func(dir string) error {
			file := filepath.Join(dir, stateFile)
			return errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(file, content, 0o600), os.Chmod(file, perm))
		}
	}
	cases := map[string]struct {
		dir  string // "": a new name in shm
		make func(dir string) error
		want string
	}{
		"a disk":            {disk, nil, "is not on a tmpfs"},
		"a new one on disk": {filepath.Join(disk, "new"), nil, "is not on a tmpfs"},
		"no parent":         {filepath.Join(shm, "no", "dir"), nil, "no such"},
		"a file":            {"", func(d string) error { return os.WriteFile(d, nil, 0o600) }, "not a directory"},
		"open to the group": {"", func(d string) error { return errors.Join(os.Mkdir(d, 0o700), os.Chmod(d, 0o710)) }, "0710"},
		"open to others":    {"", func(d string) error { return errors.Join(os.Mkdir(d, 0o700), os.Chmod(d, 0o1777)) }, "group or others"},
		"a link to a good one": {"", func(d string) error {
			return errors.Join(os.Mkdir(d+".real", 0o700), os.Symlink(d+".real", d))
		}, "symbolic link"},
		"a dangling link": {"", func(d string) error { return os.Symlink(d+".none", d) }, "symbolic link"},
		"a readable key":  {"", put(good, 0o640), "0640"},
		"a linked key": {"", func(d string) error {
			return errors.Join(os.Mkdir(d, 0o700), os.WriteFile(d+".key", good, 0o600), os.Symlink("../"+filepath.Base(d)+".key", filepath.Join(d, stateFile)))
		}, "not a regular file"},
		"a key with two names": {"", func(d string) error {
			return errors.Join(put(good, 0o600)(d), os.Link(filepath.Join(d, stateFile), d+".other"))
		}, "hard link"},
		"a pipe": {"", func(d string) error {
			return errors.Join(os.Mkdir(d, 0o700), syscall.Mkfifo(filepath.Join(d, stateFile), 0o600))
		}, "not a regular file"},
		"a huge file":        {"", put(make([]byte, 1<<20), 0o600), "larger"},
		"an empty file":      {"", put(nil, 0o600), "does not hold"},
		"half a file":        {"", put(good[:len(good)/2], 0o600), "does not hold"},
		"a bad key":          {"", put(bytes.Replace(good, good[60:70], []byte("AAAAAAAAAA"), 1), 0o600), "P-256"},
		"another's CA":       {"", put(append(slices.Clone(good[:keyEnd]), stranger[bytes.Index(stranger, []byte("-----BEGIN CERT")):]...), 0o600), "not the CA of its key"},
		"a leaf for a CA":    {"", put(append(slices.Clone(good[:keyEnd]), leafPEM(t)...), 0o600), "not the CA of its key"},
		"key and key":        {"", put(append(slices.Clone(good[:keyEnd]), good[:keyEnd]...), 0o600), "does not hold"},
		"the key comes last": {"", put(append(slices.Clone(good[keyEnd:]), good[:keyEnd]...), 0o600), "does not hold"},
	}
	if os.Geteuid() == 0 {
		cases["another's directory"] = struct {
			dir  string
			make func(dir string) error
			want string
		}{"", func(d string) error { return errors.Join(os.Mkdir(d, 0o700), os.Chown(d, 65532, 65532)) }, "another user"}
		cases["another's key"] = struct {
			dir  string
			make func(dir string) error
			want string
		}{"", func(d string) error {
			return errors.Join(put(good, 0o600)(d), os.Chown(filepath.Join(d, stateFile), 65532, 65532))
		}, "another user"}
	}
	secrets := strings.Split(string(good[:keyEnd]), "\n")[1:3]
	for name, c := range cases {
		dir := c.dir
		if dir == "" {
			dir = filepath.Join(shm, strings.NewReplacer(" ", "-", "'", "").Replace(name))
		}
		if c.make != nil {
			if err := c.make(dir); err != nil {
				t.Fatal(err)
			}
		}
		ca, err := New(Options{Hosts: []string{"a.test"}, StateDir: dir})
		if err == nil {
			ca.Close()
			t.Errorf("%s: accepted", name)
			continue
		}
		if !strings.Contains(err.Error(), "ca.state_dir "+dir) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want something about %q", name, err, c.want)
		}
		for _, s := range secrets {
			if strings.Contains(err.Error(), s) {
				t.Errorf("%s: the key stands in the error", name)
			}
		}
	}
	if _, err := os.Lstat(filepath.Join(disk, "new")); !os.IsNotExist(err) {
		t.Error("a directory was made before it was refused")
	}
}

func leafPEM(t *testing.T) []byte {
	l, err := newCA(t, Options{Hosts: []string{"a.test"}}).Leaf("a.test")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Appendf(nil, "-----BEGIN CERTIFICATE-----\n%s\n-----END CERTIFICATE-----\n", base64.StdEncoding.EncodeToString(l.Certificate[0]))
}

func TestWhatCannotBeKeptChangesNothing(t *testing.T) {
	dir := filepath.Join(memory(t), "ca")
	ca := newCA(t, Options{Hosts: []string{"a.test"}, StateDir: dir})
	before := ca.PEM()
	held, _ := os.ReadFile(filepath.Join(dir, stateFile))
	if err := os.MkdirAll(filepath.Join(dir, "."+stateFile+".new", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	err := ca.Reissue([]string{"b.test"})
	if err == nil || !strings.Contains(err.Error(), "ca.state_dir") {
		t.Errorf("%v", err)
	}
	now, _ := os.ReadFile(filepath.Join(dir, stateFile))
	if !bytes.Equal(before, ca.PEM()) || !bytes.Equal(held, now) {
		t.Error("something changed")
	}
	if _, err := ca.Leaf("a.test"); err != nil {
		t.Error(err)
	}
	// A directory that was moved away is still the one that was opened.
	os.RemoveAll(filepath.Join(dir, "."+stateFile+".new"))
	if err := errors.Join(os.Rename(dir, dir+".moved"), os.Symlink("/", dir)); err != nil {
		t.Fatal(err)
	}
	if err := ca.Reissue([]string{"b.test"}); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir+".moved", stateFile)); !bytes.Contains(b, ca.PEM()) {
		t.Error("not where the directory went")
	}
}

func TestTrustAndStateAreNotOneDirectory(t *testing.T) {
	systemRoots(t)
	dir := filepath.Join(memory(t), "ca")
	ca := newCA(t, Options{StateDir: dir})
	if err := ca.WriteTrust(dir); err == nil || !strings.Contains(err.Error(), "ca.state_dir") {
		t.Errorf("%v", err)
	}
	if names, _ := os.ReadDir(dir); len(names) != 1 {
		t.Errorf("%v", names)
	}
}
