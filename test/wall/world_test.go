package wall_test

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest"
)

// credentialFields are all by which any provider takes a key.
var credentialFields = []string{
	"Authorization", "X-Api-Key", "Api-Key", "X-Goog-Api-Key", "Proxy-Authorization", "X-Amz-Security-Token", "X-Goog-IAM-Authorization-Token", "X-House-Key",
}

// canary marks a credential of the client's own.
const canary = "client-canary-"

// provider is one entry of the agents' configuration.
type provider struct {
	name, host string // host:port where the port is not 443
	field      string // that carries the key; "" where it is the query's
	format     string // of its value, {} being the key
	key        string
	more       string // YAML
	noKey      bool
}

// hostport always has a port.
func (p *provider) hostport() string {
	if strings.Contains(p.host, ":") {
		return p.host
	}
	return p.host + ":443"
}

// value is what the field must hold.
func (p *provider) value() string { return strings.ReplaceAll(p.format, "{}", p.key) }

// gnarly is a key in which every encoding changes something.
const gnarly = `wall-not-a-key-echo-/+"\<&%=~'-0123456789abcdef`

func fakeKey(name string) string { return "sk-proj-wall-not-a-key-" + name + "-0123456789abcdef" }

// providers are what the agents of the suite know.
func providers() map[string]*provider {
	list := []*provider{
		{name: "openai", host: "api.openai.com", field: "Authorization", format: "Bearer {}", more: `hosts: [api.openai.com, "*.api.openai.com"], base_url: "https://api.openai.com"`},
		{name: "anthropic", host: "api.anthropic.com", field: "x-api-key", format: "{}"},
		{name: "gemini", host: "generativelanguage.googleapis.com", field: "x-goog-api-key", format: "{}"},
		{name: "azure", host: "acme.openai.azure.com", field: "api-key", format: "{}", more: "provider: azure-openai, with: {resource: acme}"},
		{name: "huggingface", host: "router.huggingface.co", field: "Authorization", format: "Bearer {}"},
		{name: "bedrock", host: "bedrock-runtime.eu-central-1.amazonaws.com", field: "Authorization", format: "Bearer {}", more: "with: {region: eu-central-1}"},
		{name: "house", host: "house.test:8443", field: "X-House-Key", format: "{}"},
		{name: "basic", host: "basic.test", field: "Authorization"},
		{name: "query", host: "query.test"},
		{name: "echo", host: "echo.test", field: "Authorization", format: "Bearer {}", key: gnarly, more: "echoes: true"},
		{name: "h2", host: h2Host, field: "Authorization", format: "Bearer {}", more: "http2: true"},
		{name: "local", host: "127.0.0.1:9000", field: "Authorization", format: "Bearer {}", more: `allow_plaintext: true, base_url: "http://127.0.0.1:9000"`},
		{name: "keyless", host: "keyless.test", field: "Authorization", format: "Bearer {}", more: "optional: true", noKey: true},
		{name: "rebound", host: "rebound.test", field: "Authorization", format: "Bearer {}"},
	}
	for _, host := range []string{plainHost, expiredHost, futureHost, otherHost, strangerHost, selfHost, clientHost, oldHost} {
		list = append(list, &provider{name: strings.TrimSuffix(host, ".test"), host: host, field: "Authorization", format: "Bearer {}"})
	}
	all := map[string]*provider{}
	for _, p := range list {
		if p.key == "" {
			p.key = fakeKey(p.name)
		}
		switch p.name {
		case "basic":
			p.format = "Basic " + base64.StdEncoding.EncodeToString([]byte("wall:"+p.key))
			p.more = `attach: {basic: {username: wall, password: "{api_key}"}}`
		case "query":
			p.more = `attach: {query: token, format: "{api_key}"}`
		case "house":
			p.more = `attach: {header: X-House-Key, format: "{api_key}"}`
		}
		if strings.HasSuffix(p.host, ".test") && !strings.Contains(p.more, "attach") {
			p.more = strings.TrimPrefix(p.more+`, attach: {header: Authorization, format: "Bearer {api_key}"}`, ", ")
		}
		if p.name == "local" {
			p.more += `, attach: {header: Authorization, format: "Bearer {api_key}"}`
		}
		all[p.name] = p
	}
	return all
}

// entry is the provider's line in the configuration.
func (p *provider) entry() string {
	s := "name: " + p.name
	if !catalogued[p.name] {
		s += fmt.Sprintf(", hosts: [%q]", p.host)
	}
	if p.more != "" {
		s += ", " + p.more
	}
	return "{" + s + "}"
}

// catalogued providers have their hosts from postern's own catalog.
var catalogued = map[string]bool{"openai": true, "anthropic": true, "gemini": true, "azure": true, "huggingface": true, "bedrock": true}

// wall is the whole suite's world: what is outside, and the agents.
type wall struct {
	t         *testing.T
	net       *internet
	providers map[string]*provider
	dir       string // holds the store that all share
	agents    map[string]*agent
}

// agent is one that runs.
type agent struct {
	*agenttest.Agent
	roots *x509.CertPool // its interception's
}

func newWall(t *testing.T) *wall {
	t.Helper()
	w := &wall{t: t, net: serveInternet(t), providers: providers(), dir: t.TempDir(), agents: map[string]*agent{}}
	w.write(w.dir, "world.pem", string(w.net.certs.pem()))
	w.write(w.dir, "keys.yaml", w.yaml(w.dir, "unmatched: deny"))
	for name, p := range w.providers {
		if !p.noKey {
			w.add(t, w.dir, name, p.key)
		}
	}
	return w
}

func (w *wall) write(dir, name, text string) {
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// add stores the next version of a key in the sealed file of a folder.
func (w *wall) add(t *testing.T, dir, name, key string) {
	t.Helper()
	if out, said, code := agenttest.Run(t, dir, key+"\n", "keys", "add", name, "-c", filepath.Join(dir, "keys.yaml")); code != 0 {
		t.Fatalf("postern keys add %s: exit code %d\n%s%s", name, code, out, said)
	}
}

// sealedStore is the store of a folder.
const sealedStore = "store: {sealed: {file: postern.sealed, key_file: postern.key, poll: 200ms}}"

// yaml is a configuration with all providers; lines replace the ones that begin alike.
func (w *wall) yaml(dir string, lines ...string) string {
	var entries []string
	for _, p := range w.providers {
		entries = append(entries, p.entry())
	}
	return w.yamlOf(entries, append([]string{fmt.Sprintf("egress: {ca_file: %q}", filepath.Join(w.dir, "world.pem"))}, lines...)...)
}

func (w *wall) yamlOf(entries []string, lines ...string) string {
	all := []string{
		"version: 1", "environment: wall", "proxy_id: px_wall", "listen: {proxy: 127.0.0.1:0, admin: 127.0.0.1:0}",
		sealedStore, "rotation: {grace: 5s}", "ca: {dir: ca}", "audit: {file: audit.jsonl}", "log: {level: debug}",
	}
	for _, l := range lines {
		field, _, _ := strings.Cut(l, ":")
		kept := all[:0]
		for _, a := range all {
			if !strings.HasPrefix(a, field+":") {
				kept = append(kept, a)
			}
		}
		all = append(kept, l)
	}
	return strings.Join(all, "\n") + "\nproviders:\n  - " + strings.Join(entries, "\n  - ") + "\n"
}

// agent is the one of a name, started when it is first wanted: deny refuses
// hosts that no provider lists, tunnel passes them on.
func (w *wall) agent(name string) *agent {
	if a := w.agents[name]; a != nil {
		return a
	}
	lines := map[string][]string{
		"deny":   {"unmatched: deny"},
		"tunnel": {"unmatched: tunnel"},
		"egress": {"unmatched: tunnel", fmt.Sprintf("egress: {ca_file: %q, proxy: \"http://egress.test:3128\"}", filepath.Join(w.dir, "world.pem"))},
	}[name]
	if lines == nil {
		w.t.Fatalf("no agent is named %s", name)
	}
	a := w.start(w.t, w.copyStore(w.t), w.yaml(w.dir, lines...))
	a.Ready(w.t)
	w.agents[name] = a
	return a
}

// copyStore is a new folder that holds all keys, and a place for the CA.
func (w *wall) copyStore(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"postern.sealed", "postern.key", "keys.yaml"} {
		b, err := os.ReadFile(filepath.Join(w.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		w.write(dir, name, string(b))
	}
	if err := os.Mkdir(filepath.Join(dir, "ca"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// start starts an agent and reads its CA.
func (w *wall) start(t *testing.T, dir, yaml string, env ...string) *agent {
	t.Helper()
	a := &agent{Agent: agenttest.Start(t, dir, yaml, env...), roots: x509.NewCertPool()}
	_, pem := a.Get(t, "/ca.pem")
	if !a.roots.AppendCertsFromPEM([]byte(pem)) {
		t.Fatal("/ca.pem holds no certificate")
	}
	return a
}

// forms are the encodings in which a key must not be found.
func forms(key string) map[string]string {
	out := map[string]string{"raw": key, "percent": url.QueryEscape(key), "percent, a path's": url.PathEscape(key)}
	for skip := range 3 { // what does not depend on the bytes around it
		b := []byte(key)[(3-skip)%3:]
		b = b[:len(b)/3*3]
		out[fmt.Sprintf("base64, alignment %d", skip)] = base64.StdEncoding.EncodeToString(b)
		out[fmt.Sprintf("base64url, alignment %d", skip)] = base64.RawURLEncoding.EncodeToString(b)
	}
	quoted, _ := json.Marshal(key)
	out["JSON"] = string(quoted[1 : len(quoted)-1])
	return out
}

// found names the first form of a key that is in a text; "" for none.
func found(text, key string) string {
	for name, form := range forms(key) {
		if strings.Contains(text, form) {
			return name
		}
	}
	return ""
}
