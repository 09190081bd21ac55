package server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/config"
)

// writeCertificate writes a self-signed certificate for 127.0.0.1 and its key.
func writeCertificate(t *testing.T, dir string, serial int64) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "postern server"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	writeFile(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	writeFile(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})))
	return certFile, keyFile
}

func parsed(t *testing.T, dir, yaml string) *config.Config {
	t.Helper()
	cfg, err := config.Parse([]byte(yaml), "server.yaml", func(string) string { return "" }, dir)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// away is a server's configuration whose Vault is not there.
const away = `version: 1
environment: prod
server: {listen: "127.0.0.1:0", cert_file: tls.crt, key_file: tls.key}
store: {vault: {address: "http://127.0.0.1:1", auth: {token: {file: token}}}}
`

// What it cannot run with is said before it listens, by the setting's name.
func TestWhatTheServerRefuses(t *testing.T) {
	dir := t.TempDir()
	writeCertificate(t, dir, 1)
	writeFile(t, filepath.Join(dir, "broken.key"), "-----BEGIN PRIVATE KEY-----\n")
	writeFile(t, filepath.Join(dir, "admin.pem"), "nothing")
	for _, c := range []struct{ name, yaml, want string }{
		{"a sealed file", strings.Replace(away, `vault: {address: "http://127.0.0.1:1", auth: {token: {file: token}}}`, "sealed: {file: s, key_file: k}", 1), "needs store.vault"},
		{"no server section", strings.Replace(away, "server:", "# server:", 1) + "proxy_id: px_a\n", "server: is required"},
		{"no certificate", strings.Replace(away, "cert_file: tls.crt", "cert_file: none.crt", 1), "server.cert_file"},
		{"no pair", strings.Replace(away, "key_file: tls.key", "key_file: broken.key", 1), "server.cert_file and server.key_file are no pair"},
		{"no identity", strings.Replace(away, ", auth: {token: {file: token}}", "", 1), "store.vault.auth"},
		{"no roots for an issuer", away + "issuers: [{provider: openai, kind: openai, project: p, admin_key: issuers/openai, ca_file: admin.pem}]\n", "issuers[0] (openai): ca_file"},
		{"no egress roots", away + "egress: {ca_file: none.pem}\n", "egress.ca_file"},
	} {
		s, err := New(Options{Config: parsed(t, dir, c.yaml), Log: io.Discard})
		if err == nil {
			s.Stop()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	env := func(string) string { return "http2debug=2" }
	if _, err := New(Options{Config: parsed(t, dir, away), Log: io.Discard, Getenv: env}); err == nil || !strings.Contains(err.Error(), "GODEBUG") {
		t.Errorf("GODEBUG: %v", err)
	}
}

// What the configuration says of an issuer reaches it, whatever is added to either.
func TestIssuersAreAsConfigured(t *testing.T) {
	var c config.Issuer
	given := reflect.ValueOf(&c).Elem()
	for i := range given.NumField() {
		given.Field(i).SetString(given.Type().Field(i).Name)
	}
	got, compared := reflect.ValueOf(issuerOptions(c)), 0
	for f := range given.Type().Fields() {
		o := got.FieldByName(f.Name)
		if !o.IsValid() {
			continue // it is said by another member
		}
		compared++
		if o.String() != f.Name {
			t.Errorf("%s is lost", f.Name)
		}
	}
	if compared < 10 {
		t.Errorf("only %d fields compared", compared)
	}
}

// started runs a server in process until the test ends.
func started(t *testing.T, cfg *config.Config, log io.Writer) *Server {
	t.Helper()
	s, err := New(Options{Config: cfg, Log: log, Version: "test", Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// clientOf trusts the certificate in dir.
func clientOf(t *testing.T, dir string) *http.Client {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "tls.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(b)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 60 * time.Second}
}

// Without its Vault the server lives, is not ready, and says so.
func TestAServerWithoutItsVault(t *testing.T) {
	dir := t.TempDir()
	writeCertificate(t, dir, 1)
	writeFile(t, filepath.Join(dir, "token"), "hvs.0123456789abcdefghijklmn")
	log := &lockedBuffer{}
	s := started(t, parsed(t, dir, away), log)
	client, base := clientOf(t, dir), "https://"+s.Addr().String()
	if got := send(t, client, base, ask{method: "GET", path: "/livez", token: "-"}); got.status != http.StatusOK {
		t.Errorf("/livez: %d", got.status)
	}
	if got := send(t, client, base, ask{method: "GET", path: "/readyz", token: "-"}); got.status != http.StatusServiceUnavailable {
		t.Errorf("/readyz: %d", got.status)
	}
	got := send(t, client, base, ask{method: "GET", path: "/v1/provider-keys"})
	if got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, codeUnavailable) || got.header.Get("Retry-After") == "" {
		t.Errorf("%d %s", got.status, got.body)
	}
	if got := send(t, client, base, ask{method: "GET", path: "/metrics", token: "-"}); !strings.Contains(got.body, "postern_api_requests_total") {
		t.Errorf("/metrics: %d %s", got.status, got.body)
	}
	s.Stop()
	if !strings.Contains(log.String(), "cannot log in to Vault") || strings.Contains(log.String(), "hvs.0123") {
		t.Error(log.String())
	}
}

// A token never crosses the network in the clear or by old TLS, and one that is
// sent so all the same reaches no handler.
func TestTheListenerSpeaksTLSOnly(t *testing.T) {
	dir := t.TempDir()
	writeCertificate(t, dir, 1)
	writeFile(t, filepath.Join(dir, "token"), "hvs.0123456789abcdefghijklmn")
	s := started(t, parsed(t, dir, away), io.Discard)
	plain := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := plain.Get("http://" + s.Addr().String() + "/livez")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(b), "HTTPS") {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
	for version, want := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		conn, err := tls.Dial("tcp", s.Addr().String(), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: version, NextProtos: []string{"h2", "http/1.1"}})
		if (err == nil) != want {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil {
			if p := conn.ConnectionState().NegotiatedProtocol; p != "http/1.1" {
				t.Errorf("speaks %q", p)
			}
			conn.Close()
		}
	}
}

// A certificate that was replaced on disk is the next handshake's; one that is no good changes nothing.
func TestTheCertificateIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := writeCertificate(t, dir, 1)
	writeFile(t, filepath.Join(dir, "token"), "hvs.0123456789abcdefghijklmn")
	log := &lockedBuffer{}
	s := started(t, parsed(t, dir, away), log)
	serial := func() int64 {
		t.Helper()
		conn, err := tls.Dial("tcp", s.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	later := time.Now()
	touch := func() { // a clock's tick later, whatever the file system's clock can tell apart
		later = later.Add(time.Minute)
		for _, f := range []string{certFile, keyFile} {
			if err := os.Chtimes(f, later, later); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := serial(); n != 1 {
		t.Fatalf("serial %d", n)
	}
	writeCertificate(t, dir, 2)
	touch()
	if n := serial(); n != 2 {
		t.Errorf("serial %d after the files were replaced", n)
	}
	writeFile(t, keyFile, "nothing")
	touch()
	for range 2 {
		if n := serial(); n != 2 {
			t.Errorf("serial %d with files that are no pair", n)
		}
	}
	if n := strings.Count(log.String(), "cannot be used"); n != 1 {
		t.Errorf("told %d times", n)
	}
	os.Remove(certFile)
	if n := serial(); n != 2 {
		t.Errorf("serial %d while the file is away", n)
	}
	writeCertificate(t, dir, 3)
	touch()
	if n := serial(); n != 3 {
		t.Errorf("serial %d after all", n)
	}
}

// Stop waits for requests that are under way.
func TestStopDrains(t *testing.T) {
	r := newRig(t)
	r.add("openai", seedKey)
	inside, goOn := make(chan struct{}), make(chan struct{})
	r.intercept(func(_ context.Context, method, _ string) error {
		if method == "identity" {
			close(inside)
			<-goOn
		}
		return nil
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile := writeCertificate(t, dir, 1)
	cert, err := newCertificate(certFile, keyFile, quiet())
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{cfg: parsed(t, dir, away), ln: ln, cert: cert, log: quiet(), registry: r.registry, figures: r.figures, failed: make(chan error, 1)}
	s.listen(r.api)
	client := clientOf(t, dir)
	status := make(chan int)
	go func() {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "https://"+ln.Addr().String()+"/v1/provider-keys", nil)
		req.Header.Set("Authorization", "Bearer "+operator)
		resp, err := client.Do(req)
		if err != nil {
			status <- 0
			return
		}
		resp.Body.Close()
		status <- resp.StatusCode
	}()
	<-inside
	stopped := make(chan struct{})
	go func() {
		s.Stop()
		close(stopped)
	}()
	for { // the listener is closed first
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			break
		}
		conn.Close()
	}
	select {
	case <-stopped:
		t.Fatal("stopped with a request under way")
	default:
	}
	close(goOn)
	if got := <-status; got != http.StatusOK {
		t.Errorf("the request under way: %d", got)
	}
	<-stopped
}

// Whatever is sent as a body, nothing is taken that is not described, nothing
// panics, and no part of a key is repeated.
func FuzzBody(f *testing.F) {
	for _, s := range []string{seeded(""), seeded(`,"name":"x"`), `{"api_key":"sk-\u0070roj-\ud83d\ude00aaaaaaaaaaaa"}`, `{"a":[{"b":"}"}],"c":1}`, `{"api_key":"\`, `{"managed":true,"ramp":[{"weight":1,"for":"1s"}]}`, " {\n} ", `{"":""}`, `[`, `{"versions":[1,2],"reason":"x","all":false}`} {
		f.Add([]byte(s))
	}
	a := &api{o: apiOptions{Scrub: func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("sk-"), []byte("[redacted]")) }}}
	f.Fuzz(func(t *testing.T, body []byte) {
		var key secretField
		var provider, reason string
		var list []int
		var all bool
		err := decode(body, setters{
			"provider": a.text(&provider, 64), "api_key": key.UnmarshalJSON, "reason": a.text(&reason, 100),
			"versions": versions(&list), "all": boolean(&all),
		})
		defer key.value.Destroy()
		if err != nil {
			if p := explain(err); p.Code != codeInvalid {
				t.Errorf("%s: %v", p.Code, err)
			}
			key.value.Use(func(b []byte) {
				if len(b) >= 16 && strings.Contains(err.Error(), string(b)) {
					t.Errorf("%q repeats the key", err)
				}
			})
			return
		}
		var want struct {
			Provider string `json:"provider"`
			Key      string `json:"api_key"`
			Reason   string `json:"reason"`
			Versions []int  `json:"versions"`
			All      bool   `json:"all"`
		}
		if len(body) > 0 {
			if err := strictJSON(body, &want); err != nil {
				t.Fatalf("taken, though encoding/json says %v: %q", err, body)
			}
		}
		key.value.Use(func(b []byte) {
			if string(b) != want.Key {
				t.Errorf("the key is %q, want %q", b, want.Key)
			}
		})
		if provider != want.Provider || reason != want.Reason || all != want.All || fmt.Sprint(list) != fmt.Sprint(want.Versions) {
			t.Errorf("%q %q %v %v, want %+v", provider, reason, all, list, want)
		}
	})
}

// strictJSON is encoding/json's idea of a body.
func strictJSON(body []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	return d.Decode(into)
}
