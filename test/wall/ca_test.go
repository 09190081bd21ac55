package wall_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
)

// ca: the interception's authority.
var ca = &group{class: 15, name: "ca", says: "leaf floods, the CA's files", cases: []kase{
	{name: "flood-of-names-is-forgotten", inv: "I6", source: "CWE-770", on: direct, do: leafFlood},
	{name: "one-host-one-leaf", inv: "I6", source: "CWE-770", on: direct, do: leafTwice},
	{name: "no-leaf-for-a-stranger", inv: "I6", source: "VU#529496", on: direct, agent: "tunnel", do: leafForStranger},
	{name: "constrained-to-the-configured-hosts", inv: "I6", source: "RFC 5280 4.2.1.10", on: direct, do: constrained},
	{name: "key-is-nowhere", inv: "I6", source: "CWE-312", on: direct, agent: "none", do: caKeyNowhere},
	{name: "certificate-through-a-link", inv: "I6", source: "CWE-59", on: direct, agent: "none", do: throughLink("ca.pem")},
	{name: "bundle-through-a-link", inv: "I6", source: "CWE-59", on: direct, agent: "none", do: throughLink("bundle.pem")},
	{name: "state-through-a-link", inv: "I6", source: "CWE-59", on: direct, agent: "none", do: stateThroughLink},
	{name: "state-that-others-may-read", inv: "I6", source: "CWE-732", on: direct, agent: "none", do: stateForOthers},
	{name: "state-keeps-the-ca", inv: "I6", source: "CWE-312", on: direct, agent: "none", do: stateKept},
}}

// leaf is the certificate in a tunnel.
func (r *run) leaf(hostport, name string) *x509.Certificate {
	r.t.Helper()
	c, got := r.tunnel(hostport)
	if got.StatusCode != 200 {
		r.t.Fatalf("CONNECT %s: %s", hostport, got.Status)
	}
	in, err := r.secure(c, &tls.Config{ServerName: name})
	if err != nil {
		r.t.Fatalf("%s: %v", name, err)
	}
	c.Close()
	return in.Conn.(*tapedTLS).ConnectionState().PeerCertificates[0]
}

// leafFlood: certificates for as many names as a wildcard has are not all kept.
func leafFlood(r *run) {
	first := r.leaf("first.api.openai.com:443", "first.api.openai.com")
	for i := range 400 {
		name := fmt.Sprintf("flood-%d.api.openai.com", i)
		r.leaf(name+":443", name)
	}
	again := r.leaf("first.api.openai.com:443", "first.api.openai.com")
	if first.SerialNumber.Cmp(again.SerialNumber) == 0 {
		r.t.Error("400 names later the first one's certificate is still held")
	}
	r.fence()
	r.account(0, nil)
}

// leafTwice: many tunnels to one host cost one signature.
func leafTwice(r *run) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	serials := map[string]bool{}
	var conns []*client
	for range 20 {
		c, _ := r.tunnel("once.api.openai.com:443")
		conns = append(conns, c)
	}
	for _, c := range conns {
		wg.Go(func() {
			tc := tls.Client(c.Conn.(hearing).Conn, &tls.Config{ServerName: "once.api.openai.com", RootCAs: r.a.roots})
			if err := tc.Handshake(); err != nil {
				r.t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			serials[tc.ConnectionState().PeerCertificates[0].SerialNumber.String()] = true
		})
	}
	wg.Wait()
	if len(serials) != 1 {
		r.t.Errorf("%d certificates for one host", len(serials))
	}
	r.fence()
	r.account(0, nil)
}

// leafForStranger: who is not configured is not impersonated.
func leafForStranger(r *run) {
	c, _ := r.tunnel("elsewhere.test:443")
	if _, err := r.secure(c, hello("elsewhere.test")); err == nil {
		r.t.Error("the agent's own CA has signed for elsewhere.test")
	}
	r.fence()
	r.account(0, nil, "elsewhere.test:443")
}

func (r *run) authority() *x509.Certificate {
	r.t.Helper()
	_, text := r.a.Get(r.t, "/ca.pem")
	block, rest := pem.Decode([]byte(text))
	if block == nil || strings.TrimSpace(string(rest)) != "" || block.Type != "CERTIFICATE" {
		r.t.Fatalf("/ca.pem is %q", text)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		r.t.Fatal(err)
	}
	return cert
}

func constrained(r *run) {
	cert := r.authority()
	if !cert.PermittedDNSDomainsCritical || !slices.Contains(cert.PermittedDNSDomains, "api.anthropic.com") || slices.Contains(cert.PermittedDNSDomains, "") {
		r.t.Errorf("the CA may sign for %q (critical: %v)", cert.PermittedDNSDomains, cert.PermittedDNSDomainsCritical)
	}
	for _, d := range cert.PermittedDNSDomains {
		if strings.HasSuffix("evil.test", d) || strings.HasSuffix("elsewhere.test", d) || !strings.Contains(d, ".") {
			r.t.Errorf("the CA may sign for %q", d)
		}
	}
	if cert.MaxPathLen != 0 || !cert.MaxPathLenZero {
		r.t.Error("the CA may make further CAs")
	}
	for _, n := range cert.PermittedIPRanges {
		if ones, bits := n.Mask.Size(); ones != bits {
			r.t.Errorf("the CA may sign for all of %s", n)
		}
	}
	r.account(0, nil)
}

// caKeyNowhere: no file that the agent wrote, and nothing that it says, holds the CA's private key.
func caKeyNowhere(r *run) {
	dir := r.own([]string{"openai"})
	r.leaf("api.openai.com:443", "api.openai.com")
	var texts []string
	for _, path := range []string{"/ca.pem", "/metrics", "/status", "/readyz"} {
		_, text := r.a.Get(r.t, path)
		texts = append(texts, text)
	}
	r.files(dir, func(_ string, b []byte) { texts = append(texts, string(b)) })
	for _, text := range append(texts, r.a.Log.String(), r.a.Out.String()) {
		if strings.Contains(text, "PRIVATE KEY") {
			r.t.Errorf("a private key is in %q", text)
		}
	}
}

// files reads every file below a folder.
func (r *run) files(dir string, read func(path string, b []byte)) {
	r.t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		read(path, b)
		return err
	})
	if err != nil {
		r.t.Error(err)
	}
}

// throughLink: a link that somebody left in ca.dir is not written through.
func throughLink(name string) func(*run) {
	return func(r *run) {
		dir := r.w.copyStore(r.t)
		r.w.write(dir, "victim", "precious")
		if err := os.Symlink(filepath.Join(dir, "victim"), filepath.Join(dir, "ca", name)); err != nil {
			r.t.Fatal(err)
		}
		a := agenttest.Launch(r.t, dir, r.configOf([]string{"openai"}))
		select {
		case <-a.Done(): // refusing is as good
		case <-serving(a):
			if info, err := os.Lstat(filepath.Join(dir, "ca", name)); err != nil || !info.Mode().IsRegular() {
				r.t.Errorf("%s: %v, %v", name, info, err)
			}
		}
		if b, err := os.ReadFile(filepath.Join(dir, "victim")); err != nil || string(b) != "precious" {
			r.t.Errorf("what the link led to is %q, %v", b, err)
		}
	}
}

// serving is closed when an agent's log says that it serves.
func serving(a *agenttest.Agent) <-chan struct{} {
	yes := make(chan struct{})
	go func() {
		defer close(yes)
		for end := time.Now().Add(patience); time.Now().Before(end); {
			changed := a.Log.Changed()
			if strings.Contains(a.Log.String(), `"msg":"serving"`) {
				return
			}
			select {
			case <-changed:
			case <-a.Done():
				return
			}
		}
	}()
	return yes
}

// refusesState: an agent does not start with such a state directory.
func (r *run) refusesState(state string) {
	r.t.Helper()
	a := agenttest.Launch(r.t, r.w.copyStore(r.t), r.configOf([]string{"openai"}, fmt.Sprintf("ca: {state_dir: %q}", state)))
	select {
	case <-a.Done():
	case <-time.After(patience):
		r.t.Fatal("it has started")
	}
	if a.ExitErr() == nil || !strings.Contains(a.Log.String(), "ca.state_dir") {
		r.t.Errorf("it ended with %v and said %s", a.ExitErr(), a.Log.String())
	}
}

func stateThroughLink(r *run) {
	mem := memoryDir(r)
	if err := os.Mkdir(filepath.Join(mem, "real"), 0o700); err != nil {
		r.t.Fatal(err)
	}
	victim := filepath.Join(mem, "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(mem, "real", "postern-ca.pem")); err != nil {
		r.t.Fatal(err)
	}
	r.refusesState(filepath.Join(mem, "real"))
	if b, err := os.ReadFile(victim); err != nil || string(b) != "precious" {
		r.t.Errorf("what the link led to is %q, %v", b, err)
	}
}

func stateForOthers(r *run) {
	dir := filepath.Join(memoryDir(r), "open")
	if err := os.Mkdir(dir, 0o700); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		r.t.Fatal(err)
	}
	r.refusesState(dir)
}

// stateKept: in memory, for its owner alone, and the next process has the same CA.
func stateKept(r *run) {
	state := filepath.Join(memoryDir(r), "state")
	dir := r.own([]string{"openai"}, fmt.Sprintf("ca: {state_dir: %q}", state))
	first := r.authority()
	r.a.Stop(r.t)
	found := 0
	r.files(state, func(path string, _ []byte) {
		found++
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			r.t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	})
	if found == 0 {
		r.t.Error("nothing was kept")
	}
	r.a = r.w.start(r.t, dir, r.configOf([]string{"openai"}, fmt.Sprintf("ca: {state_dir: %q}", state)))
	if !first.Equal(r.authority()) {
		r.t.Error("the next process has another CA")
	}
}
