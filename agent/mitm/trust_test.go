package mitm

import (
	"bytes"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// systemRoots makes SSL_CERT_FILE name a file with one root, and returns the root.
func systemRoots(t *testing.T, further ...string) []byte {
	t.Helper()
	root := newCA(t, Options{Hosts: []string{"system.test"}}).PEM()
	file := filepath.Join(t.TempDir(), "system.pem")
	if err := os.WriteFile(file, append(append([]byte(nil), root...), strings.Join(further, "\n")...), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSL_CERT_FILE", file)
	t.Setenv("SSL_CERT_DIR", "")
	return root
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestWriteTrust(t *testing.T) {
	old := syscall.Umask(0o077) // the clients run as somebody else
	defer syscall.Umask(old)
	system := systemRoots(t)
	ca := newCA(t, Options{Hosts: []string{"a.test"}})
	egress := newCA(t, Options{Hosts: []string{"egress.test"}}).PEM()
	dir := filepath.Join(t.TempDir(), "trust")
	if err := ca.WriteTrust(dir, egress, nil, system); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(dir, "ca.pem")); got != string(ca.PEM()) {
		t.Errorf("ca.pem: %s", got)
	}
	if got, want := read(t, filepath.Join(dir, "bundle.pem")), string(system)+string(egress)+string(ca.PEM()); got != want {
		t.Errorf("bundle.pem: %s", got)
	}
	for _, f := range []string{"ca.pem", "bundle.pem"} {
		if st, _ := os.Lstat(filepath.Join(dir, f)); st.Mode() != 0o644 {
			t.Errorf("%s: mode %v", f, st.Mode())
		}
	}
	// Again, after a crash that left a temporary file, and with our own bundle as the system's.
	if err := os.WriteFile(filepath.Join(dir, ".bundle.pem.new"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSL_CERT_FILE", filepath.Join(dir, "bundle.pem"))
	defer func(f []string) { systemFiles = f }(systemFiles)
	systemFiles = []string{filepath.Join(dir, "none"), filepath.Join(t.TempDir(), "usual.pem")}
	if err := os.WriteFile(systemFiles[1], system, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := ca.Reissue([]string{"b.test"}); err != nil {
		t.Fatal(err)
	}
	if err := ca.WriteTrust(dir + "/"); err != nil {
		t.Fatal(err)
	}
	if got, want := read(t, filepath.Join(dir, "bundle.pem")), string(system)+string(ca.PEM()); got != want {
		t.Errorf("our own old bundle was a source of the new one: %s", got)
	}
	if names, _ := os.ReadDir(dir); len(names) != 2 {
		t.Errorf("left behind: %v", names)
	}
}

func TestWriteTrustFindsTheSystemsRoots(t *testing.T) {
	usual := systemRoots(t)
	defer func(f []string) { systemFiles = f }(systemFiles)
	systemFiles = []string{filepath.Join(t.TempDir(), "none.pem"), os.Getenv("SSL_CERT_FILE")}
	t.Setenv("SSL_CERT_FILE", "")
	other := newCA(t, Options{Hosts: []string{"corp.test"}}).PEM()
	certs := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(certs, "corp.pem"), other, 0o644), os.Mkdir(filepath.Join(certs, "sub"), 0o755),
		os.Symlink("corp.pem", filepath.Join(certs, "deadbeef.0"))); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSL_CERT_DIR", certs+":/nonexistent")
	ca := newCA(t, Options{})
	dir := t.TempDir()
	if err := ca.WriteTrust(dir); err != nil {
		t.Fatal(err)
	}
	if got, want := read(t, filepath.Join(dir, "bundle.pem")), string(usual)+string(other)+string(ca.PEM()); got != want {
		t.Errorf("bundle.pem: %s", got)
	}
	systemFiles = nil
	t.Setenv("SSL_CERT_DIR", "")
	if err := ca.WriteTrust(dir); err == nil || !strings.Contains(err.Error(), "SSL_CERT_FILE") {
		t.Errorf("without any root: %v", err)
	}
	t.Setenv("SSL_CERT_FILE", "/nonexistent/roots.pem")
	if err := ca.WriteTrust(dir); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "SSL_CERT_FILE") {
		t.Errorf("a file that is not there: %v", err)
	}
	empty := filepath.Join(t.TempDir(), "empty.pem")
	os.WriteFile(empty, []byte("nothing"), 0o644)
	t.Setenv("SSL_CERT_FILE", empty)
	if err := ca.WriteTrust(dir); err == nil || !strings.Contains(err.Error(), "no PEM certificate") {
		t.Errorf("a file without certificates: %v", err)
	}
	t.Setenv("SSL_CERT_FILE", "/dev/zero")
	if err := ca.WriteTrust(dir); err == nil || !strings.Contains(err.Error(), "is not a file") {
		t.Errorf("a device: %v", err)
	}
}

// A private key that lies beside a certificate stays where it is.
func TestWriteTrustCopiesCertificatesAlone(t *testing.T) {
	secret := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("very secret bytes")}))
	systemRoots(t, secret, "and a comment")
	ca := newCA(t, Options{})
	dir := t.TempDir()
	more := append([]byte(secret), newCA(t, Options{}).PEM()...)
	if err := ca.WriteTrust(dir, more); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(dir, "bundle.pem")); strings.Contains(got, "PRIVATE") || strings.Contains(got, "comment") || strings.Count(got, "BEGIN CERTIFICATE") != 3 {
		t.Errorf("bundle.pem: %s", got)
	}
	if err := ca.WriteTrust(dir, []byte(secret)); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("further roots without a certificate: %v", err)
	}
}

func TestWriteTrustNeverGoesThroughALink(t *testing.T) {
	systemRoots(t)
	ca := newCA(t, Options{})
	base := t.TempDir()
	victim := filepath.Join(base, "victim")
	real := filepath.Join(base, "real")
	link := filepath.Join(base, "link")
	if err := errors.Join(os.WriteFile(victim, []byte("mine"), 0o600), os.Mkdir(real, 0o755), os.Symlink("real", link)); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{link, link + "/", link + "/."} {
		if err := ca.WriteTrust(dir); err == nil || !strings.Contains(err.Error(), "ca.dir") || !strings.Contains(err.Error(), "symbolic link") {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if err := ca.WriteTrust(victim); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("a file: %v", err)
	}
	if err := ca.WriteTrust(filepath.Join(base, "no", "dir")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a parent that is not there: %v", err)
	}
	for _, name := range []string{"ca.pem", "bundle.pem", ".ca.pem.new", ".bundle.pem.new"} {
		if err := os.Symlink("../victim", filepath.Join(real, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := ca.WriteTrust(real); err != nil {
		t.Fatal(err)
	}
	if got := read(t, victim); got != "mine" {
		t.Errorf("the file behind the link now says %q", got)
	}
	for _, f := range []string{"ca.pem", "bundle.pem"} {
		if st, _ := os.Lstat(filepath.Join(real, f)); !st.Mode().IsRegular() {
			t.Errorf("%s: %v", f, st.Mode())
		}
	}
	// What cannot be replaced is an error and leaves nothing half done.
	os.Remove(filepath.Join(real, "bundle.pem"))
	if err := os.MkdirAll(filepath.Join(real, "bundle.pem", "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := ca.WriteTrust(real); err == nil {
		t.Error("a directory was replaced")
	}
	if _, err := os.Lstat(filepath.Join(real, ".bundle.pem.new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

// Readers see a whole file at every moment.
func TestWriteTrustIsAtomic(t *testing.T) {
	systemRoots(t)
	ca := newCA(t, Options{})
	dir := t.TempDir()
	if err := ca.WriteTrust(dir); err != nil {
		t.Fatal(err)
	}
	want := read(t, filepath.Join(dir, "bundle.pem"))
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if b, err := os.ReadFile(filepath.Join(dir, "bundle.pem")); err != nil || !bytes.Equal(b, []byte(want)) {
				t.Errorf("%d bytes, %v", len(b), err)
				return
			}
		}
	}()
	for range 30 {
		if err := ca.WriteTrust(dir); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	<-done
}
