// Package vaulttest runs a real HashiCorp Vault server for a test: on a free
// loopback port, ready for use with a KV v2 engine at secret/, and gone with the
// test. Stop, Kill, Seal and Run again on the same port make outages.
//
// Its helpers speak Vault's HTTP API directly, so that tests write keys the way
// `vault kv put` does and share no code with what they test.
package vaulttest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-proxy/postern/test/tools"
)

// Options choose the kind of server. The zero value keeps everything in memory
// and serves plain HTTP.
type Options struct {
	// Persistent stores in files (integrated storage), so that what was written survives Stop and Run.
	Persistent bool
	// TLS serves HTTPS with a certificate of CAFile's; clients may present one of their own.
	TLS bool
}

// Vault is one running server. Its methods fail the test when the server does
// not do as told, and may be called from one goroutine at a time, but for the
// HTTP helpers, which may be called concurrently.
type Vault struct {
	Address   string // http://127.0.0.1:PORT, or https
	RootToken string
	CAFile    string // the root of the server's certificate; "" without TLS

	t         testing.TB
	opts      Options
	binary    string
	dir       string
	port      int
	unsealKey string
	client    *http.Client

	mu      sync.Mutex
	process *process // nil while stopped
}

// process is one life of the server.
type process struct {
	cmd    *exec.Cmd
	output *lockedBuffer
	exited chan struct{} // closed after the process was waited for
}

// startTimeout bounds how long a server may take to answer, also where all
// processors are busy with other tests.
const startTimeout = 60 * time.Second

// errPortTaken means another process listens on the chosen port.
var errPortTaken = errors.New("port taken")

// Start runs a server until the test ends. It is initialised, unsealed and has
// a KV v2 engine at secret/.
func Start(t testing.TB, opts Options) *Vault {
	t.Helper()
	v := &Vault{t: t, opts: opts, binary: tools.Vault(t), dir: t.TempDir()}
	transport := &http.Transport{MaxIdleConnsPerHost: 4}
	scheme := "http"
	if opts.TLS {
		scheme = "https"
		ca := NewCA(t)
		v.CAFile = ca.File
		ca.issueServer(t, v.dir)
		pool := x509.NewCertPool()
		pool.AddCert(ca.cert)
		transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	v.client = &http.Client{Transport: transport, Timeout: 30 * time.Second}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		v.Kill()
	})

	for attempt := 0; ; attempt++ {
		v.port = freePort(t)
		v.Address = fmt.Sprintf("%s://127.0.0.1:%d", scheme, v.port)
		v.writeConfig()
		err := v.launch()
		if err == nil {
			break
		}
		if !errors.Is(err, errPortTaken) || attempt == 10 {
			t.Fatalf("vaulttest: %v", err)
		}
	}
	v.initialise()
	v.Unseal()
	v.Do("POST", "sys/mounts/secret", map[string]any{"type": "kv", "options": map[string]string{"version": "2"}})
	v.waitForKV("secret")
	return v
}

func (v *Vault) writeConfig() {
	v.t.Helper()
	storage := `storage "inmem" {}`
	if v.opts.Persistent {
		data := filepath.Join(v.dir, "data")
		if err := os.MkdirAll(data, 0o700); err != nil {
			v.t.Fatalf("vaulttest: %v", err)
		}
		storage = fmt.Sprintf(`storage "raft" {
  path = %q
  node_id = "one"
  performance_multiplier = 1
}
cluster_addr = "https://127.0.0.1:%d"`, data, v.port+1)
	}
	tlsLines := "tls_disable = true"
	if v.opts.TLS {
		tlsLines = fmt.Sprintf("tls_cert_file = %q\n  tls_key_file = %q",
			filepath.Join(v.dir, "server.pem"), filepath.Join(v.dir, "server.key"))
	}
	config := fmt.Sprintf(`%s
listener "tcp" {
  address = "127.0.0.1:%d"
  cluster_address = "127.0.0.1:%d"
  %s
}
disable_mlock = true
api_addr = %q
`, storage, v.port, v.port+1, tlsLines, v.Address)
	if err := os.WriteFile(v.configFile(), []byte(config), 0o600); err != nil {
		v.t.Fatalf("vaulttest: %v", err)
	}
}

func (v *Vault) configFile() string { return filepath.Join(v.dir, "vault.hcl") }

// Run starts a stopped server again on the same port and unseals it. Without
// [Options.Persistent] it comes back empty, so that only persistent servers may be run again.
func (v *Vault) Run() {
	v.t.Helper()
	v.RunSealed()
	v.Unseal()
}

// RunSealed is Run without unsealing.
func (v *Vault) RunSealed() {
	v.t.Helper()
	if !v.opts.Persistent {
		v.t.Fatal("vaulttest: a server without Options.Persistent cannot be run again")
	}
	if err := v.launch(); err != nil {
		v.t.Fatalf("vaulttest: %v", err)
	}
}

// launch starts the process and waits until it answers on its port.
func (v *Vault) launch() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.process != nil {
		return errors.New("the server is running")
	}
	p := &process{output: &lockedBuffer{}, exited: make(chan struct{})}
	p.cmd = exec.Command(v.binary, "server", "-config", v.configFile())
	p.cmd.Env = []string{"HOME=" + v.dir, "PATH=" + os.Getenv("PATH")}
	p.cmd.Dir = v.dir
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	if err := startAttached(p.cmd, p.exited); err != nil {
		return err
	}
	v.process = p

	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		select {
		case <-p.exited:
			tick.Stop()
			v.process = nil
			if strings.Contains(p.output.String(), "address already in use") {
				return errPortTaken
			}
			return fmt.Errorf("vault server ended: %v\n%s", p.cmd.ProcessState, p.output.tail())
		case <-ctx.Done():
			tick.Stop()
			return fmt.Errorf("vault server does not answer on %s after %v\n%s", v.Address, startTimeout, p.output.tail())
		case <-tick.C:
			if status, _, err := v.Try(ctx, "", "GET", "sys/seal-status", nil); err == nil && status == http.StatusOK {
				tick.Stop()
				return nil
			}
		}
	}
}

// Stop ends the server as an operator does and waits until it is gone. Its port then refuses connections.
func (v *Vault) Stop() { v.end(signalTerm) }

// Kill ends the server at once and waits until it is gone.
func (v *Vault) Kill() { v.end(signalKill) }

func (v *Vault) end(signal func(*exec.Cmd)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := v.process
	if p == nil {
		return
	}
	v.process = nil
	signal(p.cmd)
	select {
	case <-p.exited:
	case <-time.After(20 * time.Second):
		signalKill(p.cmd)
		<-p.exited
	}
	if v.t.Failed() {
		v.t.Logf("vaulttest: the server's last lines:\n%s", p.output.tail())
	}
}

// Pid is the server's process id, 0 while it is stopped.
func (v *Vault) Pid() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.process == nil {
		return 0
	}
	return v.process.cmd.Process.Pid
}

// Port is where the server listens on 127.0.0.1, also while it is stopped.
func (v *Vault) Port() int { return v.port }

// freePort picks a port which is free, like the one after it (Vault's cluster
// port). Both lie below the range that the kernel hands out by itself, so that
// nothing takes them while the server is stopped.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 20000 + 2*rand.IntN(6000)
		if isFree(port) && isFree(port+1) {
			return port
		}
	}
	t.Fatal("vaulttest: no free port between 20000 and 32000")
	return 0
}

func isFree(port int) bool {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err == nil {
		l.Close()
	}
	return err == nil
}

// lockedBuffer takes the output of a process while others read it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *lockedBuffer) tail() string {
	s := b.String()
	const most = 4 << 10
	if len(s) > most {
		s = s[len(s)-most:]
	}
	return s
}
