package e2e_test

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent"
	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/agent/sync"
)

// world is what one story plays in. Its folder is the agent's.
type world struct {
	t       *testing.T
	dir     string
	secrets []string // what must be seen nowhere
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir()}
	if err := os.Mkdir(w.path("ca"), 0o755); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// key makes a provider key that must be seen nowhere.
func (w *world) key() string { return w.secret("sk-proj-" + rand.Text() + rand.Text()) }

func (w *world) secret(s string) string {
	w.secrets = append(w.secrets, s)
	return s
}

// provider is a fake that runs, as the configuration names it.
type provider struct {
	*fake.Server
	name string
	host string // host:port, for the configuration and for CONNECT
	ca   string // file
}

// provider starts one. Unless told otherwise it speaks OpenAI's format and its
// streams last a quarter of a second.
func (w *world) provider(name string, o fake.Options) *provider {
	w.t.Helper()
	if o.Kind == "" {
		o.Kind = "openai"
	}
	if o.Gap == 0 {
		o.Gap = streamGap
	}
	s, err := fake.New(o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { s.Close() })
	p := &provider{Server: s, name: name, host: strings.TrimPrefix(s.URL(), "https://"), ca: w.path(name + "-ca.pem")}
	write(w.t, p.ca, string(s.CAPEM()))
	return p
}

// entry is the provider's line in the configuration; more is what follows in it.
func (p *provider) entry(more string) string {
	return fmt.Sprintf(`{name: %s, provider: openai, hosts: [%q], base_url: "https://%s", ca_file: %q%s}`, p.name, p.host, p.host, p.ca, more)
}

// config is a configuration of the agent, as far as stories differ in it.
type config struct {
	environment  string
	proxy, admin string // listen
	store        string
	providers    []string
	rotation     string
	stateDir     string
	audit        string
	more         string // whole lines
}

// config is one with the providers given and everything else as most stories have it.
func (w *world) config(st keyStore, providers ...*provider) config {
	c := config{
		environment: "staging", proxy: "127.0.0.1:0", admin: "127.0.0.1:0",
		store: st.yaml(), rotation: "{grace: 5s}", audit: "audit.jsonl",
	}
	for _, p := range providers {
		c.providers = append(c.providers, p.entry(""))
	}
	return c
}

const proxyID = "px_e2e"

func (c config) yaml() string {
	return fmt.Sprintf(`version: 1
environment: %s
proxy_id: %s
listen: {proxy: %q, admin: %q}
store: %s
rotation: %s
ca: {dir: ca, state_dir: %q}
audit: {file: %q}
%s
providers:
  - %s
`, c.environment, proxyID, c.proxy, c.admin, c.store, c.rotation, c.stateDir, c.audit, c.more, strings.Join(c.providers, "\n  - "))
}

// start starts an agent and waits until it is ready. When the test ends, it
// must have kept every secret to itself.
func (w *world) start(c config, env ...string) *agenttest.Agent {
	w.t.Helper()
	a := agenttest.Start(w.t, w.dir, c.yaml(), env...)
	w.keepsSecrets(a)
	a.Ready(w.t)
	return a
}

// keepsSecrets looks, when the test ends, through everything that an agent says
// and writes.
func (w *world) keepsSecrets(a *agenttest.Agent) {
	w.t.Cleanup(func() {
		was := running(a)
		if a.Admin != "" && was {
			for _, path := range []string{"/metrics", "/status", "/readyz", "/livez", "/ca.pem"} {
				_, body := a.Get(w.t, path)
				w.clean("the body of "+path, []byte(body))
			}
		}
		a.Stop(w.t)
		if err := a.ExitErr(); was && err != nil {
			w.t.Errorf("the agent ended with %v", err)
		}
		if w.t.Failed() {
			w.t.Logf("the agent's log without its requests:\n%s", history(a))
		}
		w.clean("the log", []byte(a.Log.String()))
		w.clean("standard output", []byte(a.Out.String()))
		err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				w.clean(path, read(w.t, path))
			}
			return err
		})
		if err != nil {
			w.t.Error(err)
		}
	})
}

// history is an agent's log without the lines of requests.
func history(a *agenttest.Agent) string {
	var b strings.Builder
	for line := range strings.Lines(a.Log.String()) {
		if !strings.Contains(line, `"msg":"request"`) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// saysSo waits until an agent's log holds all of these texts; its lines come in batches.
func saysSo(t *testing.T, a *agenttest.Agent, texts ...string) {
	t.Helper()
	for _, text := range texts {
		agenttest.Eventually(t, 20*time.Second, "the log says: "+text, func() bool { return strings.Contains(a.Log.String(), text) })
	}
}

func running(a *agenttest.Agent) bool {
	select {
	case <-a.Done():
		return false
	default:
		return true
	}
}

// clean fails the test where text holds a secret, as it is or in base64. (The
// other encodings change no character of these.)
func (w *world) clean(what string, text []byte) {
	w.t.Helper()
	for i, s := range w.secrets {
		for _, form := range forms(s) {
			if bytes.Contains(text, []byte(form)) {
				w.t.Errorf("%s holds secret %d of %d", what, i+1, len(w.secrets))
				break
			}
		}
	}
}

// forms are a secret and the parts of its three base64 alignments that do not depend on what stands around it.
func forms(s string) []string {
	out := []string{s}
	for skip := range 3 {
		b := []byte(s)[(3-skip)%3:]
		out = append(out, base64.StdEncoding.EncodeToString(b[:len(b)/3*3]))
	}
	return out
}

// status is what `postern status` reads.
func status(t *testing.T, a *agenttest.Agent) agent.Status {
	t.Helper()
	code, body := a.Get(t, "/status")
	var st agent.Status
	if err := json.Unmarshal([]byte(body), &st); err != nil {
		t.Fatalf("/status: %d: %v\n%s", code, err, body)
	}
	return st
}

// version is what the agent says of one version of a key; its state is "" where it says nothing.
func version(t *testing.T, a *agenttest.Agent, key string, n int) sync.VersionStatus {
	t.Helper()
	for _, k := range status(t, a).Keys {
		for _, v := range k.Versions {
			if k.Name == key && v.Number == n {
				return v
			}
		}
	}
	return sync.VersionStatus{}
}

// operator is a configuration file for commands that talk to a running agent.
func (w *world) operator(c config, a *agenttest.Agent) string {
	c.proxy, c.admin = a.Proxy, a.Admin
	file := w.path("operator.yaml")
	write(w.t, file, c.yaml())
	return file
}

// freePort is an address that nobody listens on. It lies below the range that
// the kernel hands out by itself, so that it stays free while an agent is away.
func freePort(t *testing.T) string {
	t.Helper()
	for port := 12000 + os.Getpid()%4000; port < 20000; port++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no free port between 12000 and 20000")
	return ""
}
