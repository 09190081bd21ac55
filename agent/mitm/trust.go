package mitm

import (
	"bytes"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// systemFiles are where systems keep their roots, the first that is there counts.
var systemFiles = []string{
	"/etc/ssl/certs/ca-certificates.crt",                // Debian, Alpine, distroless
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // Fedora, RHEL
	"/etc/pki/tls/certs/ca-bundle.crt",                  // older RHEL, Amazon Linux
	"/etc/ssl/ca-bundle.pem",                            // SUSE
	"/etc/ssl/cert.pem",                                 // macOS, the BSDs
}

const (
	caFile, bundleFile = "ca.pem", "bundle.pem"
	maxRoots           = 16 << 20
)

// WriteTrust writes what clients of CONNECT need into dir: ca.pem, the CA alone,
// for variables that add a root, and bundle.pem, for variables that replace all
// roots: the system's (SSL_CERT_FILE and SSL_CERT_DIR are followed), those in
// more, and the CA. Both are mode 0644 and replaced atomically. Only
// certificates are copied, whatever else the sources hold. dir is made if its last
// element is missing; it must be no symbolic link and not the state directory.
func (c *CA) WriteTrust(dir string, more ...[]byte) error {
	if err := c.writeTrust(filepath.Clean(dir), more); err != nil {
		return fmt.Errorf("ca.dir %s: %w", dir, err)
	}
	return nil
}

func (c *CA) writeTrust(dir string, more [][]byte) error {
	own := c.PEM()
	if own == nil {
		return ErrClosed
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	root, info, err := openDir(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if c.state != nil && os.SameFile(info, c.state.info) {
		return errors.New("is ca.state_dir too: clients must not be able to read that one, name another")
	}
	previous, _ := root.Lstat(bundleFile)
	b, err := systemBundle(previous)
	if err != nil {
		return err
	}
	for _, roots := range more {
		if b.add(roots) == 0 && len(bytes.TrimSpace(roots)) > 0 {
			return errors.New("the further roots hold no PEM certificate")
		}
	}
	b.add(own)
	if err := replace(root, bundleFile, b.out.Bytes(), 0o644); err != nil {
		return err
	}
	return replace(root, caFile, own, 0o644)
}

// bundle collects certificates, each once.
type bundle struct {
	out  bytes.Buffer
	seen map[[sha256.Size]byte]bool
}

// add takes the certificates out of PEM text and returns how many there were.
func (b *bundle) add(text []byte) (found int) {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return found
		}
		text = rest
		if block.Type != certBlock {
			continue
		}
		found++
		if sum := sha256.Sum256(block.Bytes); !b.seen[sum] {
			b.seen[sum] = true
			pem.Encode(&b.out, &pem.Block{Type: certBlock, Bytes: block.Bytes})
		}
	}
}

// systemBundle reads the system's roots as crypto/x509 finds them, except from
// previous: a bundle that we wrote is no source for the next.
func systemBundle(previous fs.FileInfo) (*bundle, error) {
	b := &bundle{seen: make(map[[sha256.Size]byte]bool)}
	file := os.Getenv("SSL_CERT_FILE")
	if file != "" {
		text, err := readRoots(file, previous)
		if err != nil {
			return nil, fmt.Errorf("SSL_CERT_FILE: %w", err)
		}
		if text != nil && b.add(text) == 0 {
			return nil, fmt.Errorf("SSL_CERT_FILE: %s holds no PEM certificate", file)
		}
	}
	for _, f := range systemFiles {
		if len(b.seen) > 0 {
			break
		}
		if text, err := readRoots(f, previous); err == nil {
			b.add(text)
		}
	}
	for _, dir := range filepath.SplitList(os.Getenv("SSL_CERT_DIR")) {
		entries, _ := os.ReadDir(dir) // as crypto/x509: a directory that is not there gives none
		for _, e := range entries {
			if text, err := readRoots(filepath.Join(dir, e.Name()), previous); err == nil {
				b.add(text)
			}
		}
	}
	if len(b.seen) == 0 {
		return nil, errors.New("no system roots found for bundle.pem: set SSL_CERT_FILE to a PEM file of roots")
	}
	return b, nil
}

// readRoots reads a regular file, links followed; nil if it is the one to leave out.
func readRoots(path string, except fs.FileInfo) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxRoots {
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("is not a file of at most %d bytes", maxRoots)}
	}
	if except != nil && os.SameFile(info, except) {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxRoots))
}
