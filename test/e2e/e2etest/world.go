package e2etest

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
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent"
	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/agent/sync"
)

// World is what one story plays in. Its folder is the agent's.
type World struct {
	T       *testing.T
	Dir     string
	Secrets []string // what must be seen nowhere
}

// New makes one.
func New(t *testing.T) *World {
	t.Helper()
	w := &World{T: t, Dir: t.TempDir()}
	if err := os.Mkdir(w.Path("ca"), 0o755); err != nil {
		t.Fatal(err)
	}
	return w
}

// Path is of a file in the folder.
func (w *World) Path(name string) string { return filepath.Join(w.Dir, name) }

// Key makes a provider key that must be seen nowhere.
func (w *World) Key() string { return w.Secret("sk-proj-" + rand.Text() + rand.Text()) }

// Secret notes what must be seen nowhere.
func (w *World) Secret(s string) string {
	w.Secrets = append(w.Secrets, s)
	return s
}

// Provider is a fake that runs, as the configuration names it.
type Provider struct {
	*fake.Server
	Name string
	Host string // host:port, for the configuration and for CONNECT
	CA   string // file
}

// Provider starts one. Unless told otherwise it speaks OpenAI's format and its
// streams last a quarter of a second.
func (w *World) Provider(name string, o fake.Options) *Provider {
	w.T.Helper()
	if o.Kind == "" {
		o.Kind = "openai"
	}
	if o.Gap == 0 {
		o.Gap = streamGap
	}
	s, err := fake.New(o)
	if err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(func() { s.Close() })
	p := &Provider{Server: s, Name: name, Host: strings.TrimPrefix(s.URL(), "https://"), CA: w.Path(name + "-ca.pem")}
	Write(w.T, p.CA, string(s.CAPEM()))
	return p
}

// Entry is the provider's line in the configuration; more is what follows in it.
func (p *Provider) Entry(more string) string {
	return fmt.Sprintf(`{name: %s, provider: openai, hosts: [%q], base_url: "https://%s", ca_file: %q%s}`, p.Name, p.Host, p.Host, p.CA, more)
}

// Config is a configuration of the agent, as far as stories differ in it.
type Config struct {
	Environment  string
	Proxy, Admin string // listen
	Hosts        []string
	UIDs         []int
	Store        string
	Providers    []string
	Rotation     string
	StateDir     string
	Audit        string
	More         string // whole lines
}

// Config is one with the providers given and everything else as most stories have it.
func (w *World) Config(st Store, providers ...*Provider) Config {
	c := Config{
		Environment: "staging", Proxy: "127.0.0.1:0", Admin: "127.0.0.1:0",
		Store: st.YAML(), Rotation: "{grace: 5s}", Audit: "audit.jsonl",
	}
	for _, p := range providers {
		c.Providers = append(c.Providers, p.Entry(""))
	}
	return c
}

// ProxyID is the scope of every agent.
const ProxyID = "px_e2e"

// YAML is the configuration file.
func (c Config) YAML() string {
	return fmt.Sprintf(`version: 1
environment: %s
proxy_id: %s
listen: {proxy: %q, admin: %q, hosts: [%s], allow_uids: %s}
store: %s
rotation: %s
ca: {dir: ca, state_dir: %q}
audit: {file: %q}
%s
providers:
  - %s
`, c.Environment, ProxyID, c.Proxy, c.Admin, strings.Join(c.Hosts, ", "), strings.ReplaceAll(fmt.Sprint(c.UIDs), " ", ", "), c.Store, c.Rotation, c.StateDir, c.Audit, c.More, strings.Join(c.Providers, "\n  - "))
}

// Start starts an agent and waits until it is ready. When the test ends, it
// must have kept every secret to itself.
func (w *World) Start(c Config, env ...string) *agenttest.Agent {
	w.T.Helper()
	a := agenttest.Start(w.T, w.Dir, c.YAML(), env...)
	w.KeepsSecrets(a)
	a.Ready(w.T)
	return a
}

// KeepsSecrets looks, when the test ends, through everything that an agent says
// and writes.
func (w *World) KeepsSecrets(a *agenttest.Agent) {
	w.T.Cleanup(func() {
		was := Running(a)
		if a.Admin != "" && was {
			for _, path := range []string{"/metrics", "/status", "/readyz", "/livez", "/ca.pem"} {
				_, body := a.Get(w.T, path)
				w.Clean("the body of "+path, []byte(body))
			}
		}
		a.Stop(w.T)
		if err := a.ExitErr(); was && err != nil {
			w.T.Errorf("the agent ended with %v", err)
		}
		if w.T.Failed() {
			w.T.Logf("the agent's log without its requests:\n%s", History(a))
		}
		w.Clean("the log", []byte(a.Log.String()))
		w.Clean("standard output", []byte(a.Out.String()))
		err := filepath.WalkDir(w.Dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				w.Clean(path, Read(w.T, path))
			}
			return err
		})
		if err != nil {
			w.T.Error(err)
		}
	})
}

// History is an agent's log without the lines of requests.
func History(a *agenttest.Agent) string {
	var b strings.Builder
	for line := range strings.Lines(a.Log.String()) {
		if !strings.Contains(line, `"msg":"request"`) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// SaysSo waits until an agent's log holds all of these texts; its lines come in batches.
func SaysSo(t *testing.T, a *agenttest.Agent, texts ...string) {
	t.Helper()
	for _, text := range texts {
		agenttest.Eventually(t, 20*time.Second, "the log says: "+text, func() bool { return strings.Contains(a.Log.String(), text) })
	}
}

// Running reports whether an agent has not ended.
func Running(a *agenttest.Agent) bool {
	select {
	case <-a.Done():
		return false
	default:
		return true
	}
}

// Clean fails the test where text holds a secret, as it is or in base64. (The
// other encodings change no character of these.)
func (w *World) Clean(what string, text []byte) {
	w.T.Helper()
	for i, s := range w.Secrets {
		for _, form := range forms(s) {
			if bytes.Contains(text, []byte(form)) {
				w.T.Errorf("%s holds secret %d of %d", what, i+1, len(w.Secrets))
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

// Status is what `postern status` reads.
func Status(t *testing.T, a *agenttest.Agent) agent.Status {
	t.Helper()
	code, body := a.Get(t, "/status")
	var st agent.Status
	if err := json.Unmarshal([]byte(body), &st); err != nil {
		t.Fatalf("/status: %d: %v\n%s", code, err, body)
	}
	return st
}

// Version is what the agent says of one version of a key; its state is "" where it says nothing.
func Version(t *testing.T, a *agenttest.Agent, key string, n int) sync.VersionStatus {
	t.Helper()
	for _, k := range Status(t, a).Keys {
		for _, v := range k.Versions {
			if k.Name == key && v.Number == n {
				return v
			}
		}
	}
	return sync.VersionStatus{}
}

// Operator is a configuration file for commands that talk to a running agent.
func (w *World) Operator(c Config, a *agenttest.Agent) string {
	if c.Admin = a.Admin; !strings.HasPrefix(c.Proxy, "unix://") {
		c.Proxy = a.Proxy
	}
	file := w.Path("operator.yaml")
	Write(w.T, file, c.YAML())
	return file
}

var freePorts atomic.Int64 // the last one that was looked at

func init() { freePorts.Store(12000 + int64(os.Getpid()%4000)) }

// FreePort is an address that nobody listens on. It lies below the range that
// the kernel hands out by itself, so that it stays free while an agent is away,
// and nobody else in this process gets it.
func FreePort(t *testing.T) string {
	t.Helper()
	for port := freePorts.Add(1); port < 20000; port = freePorts.Add(1) {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no free port between 12000 and 20000")
	return ""
}
