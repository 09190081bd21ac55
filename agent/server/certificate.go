package server

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificate is the server's, read again when its files have changed. A new one
// that cannot be used changes nothing and is said once.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate
	seen    [2]stamp // of the files, as they were last read, whether that worked or not
}

// stamp tells whether a file is the one that was read.
type stamp struct {
	modified time.Time
	size     int64
}

// newCertificate reads the files. The error names the setting.
func newCertificate(certFile, keyFile string, log *slog.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log}
	var err error
	if c.seen, err = c.stamps(); err != nil {
		return nil, err
	}
	if c.current, err = c.read(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *certificate) stamps() (s [2]stamp, err error) {
	for i, f := range []struct{ setting, name string }{{"server.cert_file", c.certFile}, {"server.key_file", c.keyFile}} {
		fi, err := os.Stat(f.name)
		if err != nil {
			return s, fmt.Errorf("%s: %w", f.setting, err)
		}
		s[i] = stamp{fi.ModTime(), fi.Size()}
	}
	return s, nil
}

func (c *certificate) read() (*tls.Certificate, error) {
	cert, err := os.ReadFile(c.certFile)
	if err != nil {
		return nil, fmt.Errorf("server.cert_file: %w", err)
	}
	key, err := os.ReadFile(c.keyFile)
	if err != nil {
		return nil, fmt.Errorf("server.key_file: %w", err)
	}
	defer clear(key)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("server.cert_file and server.key_file are no pair of PEM files: %w", err)
	}
	return &pair, nil
}

// get is the certificate as it is now.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, err := c.stamps()
	if err != nil || now == c.seen { // files that are away for a moment are being replaced
		return c.current, nil
	}
	next, err := c.read()
	c.seen = now
	if err != nil {
		c.log.Error("the new certificate cannot be used; the old one serves on", "error", err)
		return c.current, nil
	}
	c.current = next
	c.log.Info("the server's certificate was replaced", "serial", next.Leaf.SerialNumber.String(), "ends", next.Leaf.NotAfter)
	return c.current, nil
}

func (c *certificate) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get, NextProtos: []string{"http/1.1"}}
}
