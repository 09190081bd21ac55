package vault

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/hashicorp/vault/api"
)

// client is a connection pool to Vault. It is replaced when the files that it
// was made from have changed.
type client struct {
	api       *api.Client
	transport *http.Transport
	files     [sha256.Size]byte // of the root and client certificates
}

func (c *client) close() {
	if c != nil {
		c.transport.CloseIdleConnections()
	}
}

// connections is the pool in use.
func (s *Store) connections() *client {
	if s.parent != nil {
		return s.parent.connections()
	}
	return s.client.Load()
}

// maxFile bounds the files that are read here, in bytes.
const maxFile = 1 << 20

// connect makes a client from the files as they are now, unless there is one
// already. A Store that As made leaves that to the one it was made from.
func (s *Store) connect() error {
	if s.parent != nil {
		return nil
	}
	var ca, cert, key []byte
	var err error
	if file := s.cfg.CAFile; file != "" {
		if ca, err = readFile(file); err != nil {
			return fmt.Errorf("store.vault.ca_file: %w", err)
		}
	}
	if a := s.cfg.Auth.Cert; a != nil {
		if cert, err = readFile(a.CertFile); err != nil {
			return fmt.Errorf("store.vault.auth.cert.cert_file: %w", err)
		}
		if key, err = readFile(a.KeyFile); err != nil {
			return fmt.Errorf("store.vault.auth.cert.key_file: %w", err)
		}
		defer clear(key)
	}
	h := sha256.New()
	for _, b := range [][]byte{ca, cert, key} {
		fmt.Fprintf(h, "%d:", len(b))
		h.Write(b)
	}
	files := [sha256.Size]byte(h.Sum(nil))
	old := s.client.Load()
	if old != nil && old.files == files {
		return nil
	}

	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != nil {
		tlsConfig.RootCAs = x509.NewCertPool()
		if !tlsConfig.RootCAs.AppendCertsFromPEM(ca) {
			return fmt.Errorf("store.vault.ca_file: %s holds no PEM certificate", s.cfg.CAFile)
		}
	}
	if cert != nil {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return fmt.Errorf("store.vault.auth.cert: cert_file and key_file are no pair of PEM files: %w", err)
		}
		tlsConfig.Certificates = []tls.Certificate{pair}
	}
	next, err := s.newClient(tlsConfig)
	if err != nil {
		return err
	}
	next.files = files
	s.client.Store(next)
	old.close()
	return nil
}

func (s *Store) newClient(tlsConfig *tls.Config) (*client, error) {
	dialer := &net.Dialer{Timeout: s.opts.Timeout}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return wiping{conn}, nil
	}
	transport := &http.Transport{
		Proxy:       s.opts.Proxy,
		DialContext: dial,
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return dialTLS(ctx, dial, network, address, tlsConfig)
		},
		TLSClientConfig:     tlsConfig, // where a proxy stands between
		TLSHandshakeTimeout: s.opts.Timeout,
		DisableCompression:  true,
		MaxIdleConnsPerHost: 16, // as many as read a record at once
		IdleConnTimeout:     90 * time.Second,
		// No HTTP/2: its tables and frame buffers keep copies of headers and bodies.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
	config := &api.Config{
		Address: s.cfg.Address,
		HttpClient: &http.Client{
			Transport:     exchanger{transport},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		CheckRetry:       func(context.Context, *http.Response, error) (bool, error) { return false, nil },
		DisableRedirects: true,
	}
	c, err := api.NewClient(config)
	if err == nil {
		err = config.Error
	}
	if err != nil {
		// The library reads VAULT_* by itself for defaults that are not used here.
		return nil, fmt.Errorf("the environment holds VAULT_* variables that Vault's library refuses, correct or unset them: %s", clean(err.Error()))
	}
	// Likewise: whatever it took from the environment is replaced.
	c.ClearToken()
	headers := http.Header{"X-Vault-Request": {"true"}, "User-Agent": {s.opts.UserAgent}}
	if s.cfg.Namespace != "" {
		headers.Set(api.NamespaceHeaderName, s.cfg.Namespace)
	}
	c.SetHeaders(headers)
	c.SetWrappingLookupFunc(func(string, string) string { return "" })
	return &client{api: c, transport: transport}, nil
}

func dialTLS(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error), network, address string, config *tls.Config) (net.Conn, error) {
	raw, err := dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		raw.Close()
		return nil, err
	}
	config = config.Clone()
	config.ServerName = host
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return wiping{conn}, nil
}

// wiping clears a read buffer before the connection fills it. The readers above
// it (net/http's bufio.Reader, crypto/tls's record buffer) ask for the next
// bytes with their whole, spent buffer as soon as an answer was consumed, so
// that the last answer does not stay in memory while a connection is idle.
type wiping struct{ net.Conn }

func (w wiping) Read(p []byte) (int, error) {
	clear(p)
	return w.Conn.Read(p)
}

var errFileTooLarge = errors.New("the file is larger than 1 MiB")

// readFile reads a small file without leaving copies behind; the caller clears
// what it returns if that is a secret.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%s: %w", name, errFileTooLarge)
	}
	b, err := readAll(f, int(info.Size())+1, maxFile)
	if errors.Is(err, errTooLarge) {
		err = errFileTooLarge
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

var errTooLarge = errors.New("too large")

// readAll reads to the end, at most limit bytes, and wipes every buffer that it
// outgrows. On an error nothing is left.
func readAll(r io.Reader, expected, limit int) ([]byte, error) {
	b := make([]byte, 0, min(max(expected, 512), limit+1))
	for {
		if len(b) == cap(b) {
			if len(b) > limit {
				clear(b)
				return nil, errTooLarge
			}
			next := append(make([]byte, 0, min(2*cap(b), limit+1)), b...)
			clear(b)
			b = next
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case len(b) > limit:
			clear(b)
			return nil, errTooLarge
		case err == io.EOF:
			return b, nil
		case err != nil:
			clear(b)
			return nil, err
		}
	}
}
