package framing_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest"
)

// lanes is how many inputs are tried side by side. Each lane has a provider of
// its own, so that what arrives there belongs to its input.
const lanes = 16

// providerKey is what the agent attaches; planted is what clients try to pass beside it.
const (
	providerKey = "sk-fake-framing-0000000000000000000000000000"
	planted     = "planted-by-the-client"
)

// world is the folder, certificate and agent of one test.
type world struct {
	t                 *testing.T
	dir               string
	cert              tls.Certificate
	certFile, keyFile string
	agent             *agenttest.Agent
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir()}
	s := httptest.NewUnstartedServer(nil) // for its certificate of 127.0.0.1
	s.StartTLS()
	defer s.Close()
	w.cert = s.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(w.cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	w.certFile = w.write("cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.cert.Certificate[0]})))
	w.keyFile = w.write("key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
	return w
}

func (w *world) write(name, content string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// start starts the agent with a provider lane0, lane1, … at each of these addresses.
func (w *world) start(addrs []string, hosts ...string) {
	w.t.Helper()
	entries := make([]string, len(addrs))
	for i, a := range addrs {
		entries[i] = fmt.Sprintf(`{name: lane%d, hosts: [%q], base_url: "https://%s", attach: {header: Authorization, format: "Bearer {api_key}"}, key: lane, ca_file: cert.pem}`, i, a, a)
	}
	quoted := make([]string, len(hosts))
	for i, h := range hosts {
		quoted[i] = fmt.Sprintf("%q", h)
	}
	yaml := fmt.Sprintf(`version: 1
environment: framing
proxy_id: px_framing
listen: {proxy: "127.0.0.1:0", admin: "127.0.0.1:0", hosts: [%s]}
store: {sealed: {file: postern.sealed, key_file: postern.key}}
audit: {file: audit.jsonl}
providers:
  - %s
`, strings.Join(quoted, ", "), strings.Join(entries, "\n  - "))
	file := w.write("keys.yaml", yaml)
	if out, said, code := agenttest.Run(w.t, w.dir, providerKey+"\n", "keys", "add", "lane", "--provider", "lane0", "-c", file); code != 0 {
		w.t.Fatalf("postern keys add: exit code %d\n%s%s", code, out, said)
	}
	w.agent = agenttest.Start(w.t, w.dir, yaml)
	w.agent.Ready(w.t)
}

// intact fails the test if the agent has fallen, or says that it has panicked.
func (w *world) intact() {
	w.t.Helper()
	select {
	case <-w.agent.Done():
		w.t.Errorf("the agent ended: %v", w.agent.ExitErr())
	default:
	}
	for line := range strings.Lines(w.agent.Log.String()) {
		if strings.Contains(line, "panic") {
			w.t.Errorf("the agent's log: %s", line)
		}
	}
}

// listen opens a listener on loopback that is closed with the test; each
// connection is handled on a goroutine of its own.
func listen(t *testing.T, secure *tls.Config, handle func(net.Conn)) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if secure != nil {
				c = tls.Server(c, secure)
			}
			go handle(c)
		}
	}()
	return ln.Addr().String()
}

// halfClose says that nothing more will be written.
func halfClose(c net.Conn) {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		h.CloseWrite()
	}
}

// quote prints bytes so that they can be read, one line of them a line.
func quote(b []byte) string {
	var out strings.Builder
	for line := range bytes.Lines(b) {
		if len(line) > 300 {
			fmt.Fprintf(&out, "  %q… (%d bytes) …%q\n", line[:100], len(line), line[len(line)-20:])
			continue
		}
		fmt.Fprintf(&out, "  %q\n", line)
	}
	return out.String()
}
