package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
)

// serverFolder holds a server's configuration, whose Vault is not there.
func serverFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"tls.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		"tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}),
		"token":   []byte("hvs.0123456789abcdefghijklmn"),
		"server.yaml": []byte(`version: 1
environment: prod
server: {listen: "127.0.0.1:0", cert_file: tls.crt, key_file: tls.key}
store: {vault: {address: "http://127.0.0.1:1", auth: {token: {file: token}}}}
`),
		"sealed.yaml": []byte(`version: 1
environment: prod
server: {listen: "127.0.0.1:0", cert_file: tls.crt, key_file: tls.key}
store: {sealed: {file: s, key_file: k}}
`),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// The server runs until SIGTERM, and its log says where it listens and never what its token is.
func TestTheServersProcess(t *testing.T) {
	dir := serverFolder(t)
	cmd := exec.Command(agenttest.Binary(t), "server", "-c", filepath.Join(dir, "server.yaml"))
	cmd.Env = agenttest.Env(dir)
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	var log strings.Builder
	lines, address := bufio.NewScanner(pipe), ""
	for address == "" && lines.Scan() {
		log.WriteString(lines.Text() + "\n")
		var e struct{ Msg, Server string }
		if json.Unmarshal(lines.Bytes(), &e) == nil && e.Msg == "serving" {
			address = e.Server
		}
	}
	if address == "" {
		t.Fatalf("it does not serve: %s", log.String())
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	resp, err := client.Get("https://" + address + "/livez")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", resp, err)
	}
	resp.Body.Close()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
		log.WriteString(lines.Text() + "\n")
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	if !strings.Contains(log.String(), `"msg":"stopping"`) || strings.Contains(log.String(), "hvs.0123") {
		t.Error(log.String())
	}
}

func TestTheServerNeedsVault(t *testing.T) {
	dir := serverFolder(t)
	_, said, code := agenttest.Run(t, dir, "", "server", "-c", filepath.Join(dir, "sealed.yaml"))
	if code != exitFailed || !strings.Contains(said, "the server needs store.vault") {
		t.Errorf("%d: %s", code, said)
	}
	_, said, code = agenttest.Run(t, dir, "", "server", "now")
	if code != exitUsage || !strings.Contains(said, "takes no arguments") {
		t.Errorf("%d: %s", code, said)
	}
}
