package docs_test

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
)

// metric is one family of a real answer.
type metric struct {
	kind   string
	labels map[string]bool
}

var (
	typeLine = regexp.MustCompile(`^# TYPE (\S+) (\S+)$`)
	sample   = regexp.MustCompile(`^([a-z_]+)(?:\{(.*)\})? \S+$`)
	labelSet = regexp.MustCompile(`([a-z_]+)="`)
)

// scrape adds what an agent's /metrics shows to the metrics found so far.
func scrape(t *testing.T, a *agenttest.Agent, found map[string]*metric) {
	t.Helper()
	_, body := a.Get(t, "/metrics")
	for sc := bufio.NewScanner(strings.NewReader(body)); sc.Scan(); {
		line := sc.Text()
		if m := typeLine.FindStringSubmatch(line); m != nil {
			if !strings.HasPrefix(m[1], "go_") && !strings.HasPrefix(m[1], "process_") && found[m[1]] == nil {
				found[m[1]] = &metric{m[2], map[string]bool{}}
			}
			continue
		}
		m := sample.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		f := found[m[1]]
		if f == nil {
			f = found[regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(m[1], "")]
		}
		if f == nil {
			continue
		}
		for _, l := range labelSet.FindAllStringSubmatch(m[2], -1) {
			if l[1] != "le" {
				f.labels[l[1]] = true
			}
		}
	}
}

// Every metric that agents show is documented with its type and labels, and no
// other. Two agents have to be made to show all of them: one that everything
// happens to, and one with a Vault that is not there and users it does not know.
func TestEveryMetricIsDocumented(t *testing.T) {
	found := map[string]*metric{}
	a := busy(t)
	scrape(t, a, found)
	scrape(t, lonely(t), found)

	doc := ofTheAgent(t, "docs/METRICS.md")
	var listed []string
	for _, r := range rows(doc) {
		if len(r) != 4 {
			continue // an alert
		}
		name := named(r)
		listed = append(listed, name)
		f := found[name]
		if f == nil {
			continue // said below
		}
		if r[1] != f.kind {
			t.Errorf("docs/METRICS.md: %s is a %s, not a %s", name, f.kind, r[1])
		}
		if labels := strings.Join(slices.Sorted(maps.Keys(f.labels)), ", "); r[2] != labels {
			t.Errorf("docs/METRICS.md: %s has the labels %q, not %q", name, labels, r[2])
		}
	}
	same(t, "docs/METRICS.md", listed, slices.Sorted(maps.Keys(found)))

	// Expressions name metrics that exist, and labels that they have.
	for _, m := range regexp.MustCompile(`(postern_[a-z_]+)(?:\{([a-z_]+)[!=])?`).FindAllStringSubmatch(doc, -1) {
		name := m[1]
		if found[name] == nil {
			name = strings.TrimSuffix(name, "_bucket")
		}
		if f := found[name]; f == nil || m[2] != "" && !f.labels[m[2]] {
			t.Errorf("docs/METRICS.md: %s does not exist, or has no label %s", m[0], m[2])
		}
	}
}

// busy is an agent to which everything has happened that a metric counts.
func busy(t *testing.T) *agenttest.Agent {
	t.Helper()
	const key = "sk-proj-0123456789abcdefghij"
	dir := t.TempDir()
	start := func(name, kind string) *fake.Server {
		s, err := fake.New(fake.Options{Kind: kind, Keys: []string{key}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		if err := os.WriteFile(filepath.Join(dir, name+".pem"), s.CAPEM(), 0o600); err != nil {
			t.Fatal(err)
		}
		return s
	}
	openai, echo := start("openai", "openai"), start("echo", "echo")
	entry := func(name string, s *fake.Server) string {
		return fmt.Sprintf(`{name: %s, provider: openai, hosts: [%q], base_url: %q, ca_file: %s.pem}`, name, strings.TrimPrefix(s.URL(), "https://"), s.URL(), name)
	}
	yaml := fmt.Sprintf(`version: 1
environment: dev
proxy_id: px_docs
listen: {proxy: "127.0.0.1:0", admin: "127.0.0.1:0"}
store: {sealed: {file: postern.sealed, key_file: postern.key, poll: 200ms}}
rotation: {grace: 1s}
unmatched: tunnel
audit: {file: audit.jsonl}
providers:
  - %s
  - %s
`, entry("openai", openai), entry("echo", echo))
	keys := filepath.Join(dir, "keys.yaml")
	if err := os.WriteFile(keys, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"openai", "echo"} {
		if _, said, code := agenttest.Run(t, dir, key+"\n", "keys", "add", name, "-c", keys); code != 0 {
			t.Fatal(said)
		}
	}
	a := agenttest.Start(t, dir, yaml)
	a.Ready(t)
	get := func(client *http.Client, url string) {
		if resp, err := client.Get(url); err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	}
	direct := &http.Client{Timeout: 10 * time.Second}
	through := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: a.Proxy})}}
	get(direct, a.URL("/openai/v1/models"))
	get(direct, a.URL("/echo/v1/x"))                  // scrubbed
	get(direct, a.URL("/echo/v1/x?as=gzip"))          // cannot be
	get(through, "http://127.0.0.1:1/")               // unmatched
	get(through, "https://127.0.0.1:1/")              // a tunnel
	openai.Close()                                    // unreachable
	get(direct, a.URL("/openai/v1/chat/completions")) //
	a.Signal(syscall.SIGHUP)                          // nothing new
	if err := os.WriteFile(a.Config, []byte(yaml+"nonsense: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	agenttest.Eventually(t, 20*time.Second, "the bad configuration was looked at", func() bool {
		return a.Metric(t, "postern_config_reloads_total") > 0
	})
	return a
}

// lonely is an agent without its Vault, on a socket that this user may not use.
func lonely(t *testing.T) *agenttest.Agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "postern-docs-") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte("hvs.0123456789abcdefghij"), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "proxy.sock")
	a := agenttest.Start(t, dir, fmt.Sprintf(`version: 1
environment: dev
proxy_id: px_docs
listen: {proxy: "unix://%s", allow_uids: [%d], admin: "127.0.0.1:0"}
store: {vault: {address: "http://127.0.0.1:1", auth: {token: {file: token}}}}
providers: [{name: openai}]
`, socket, os.Getuid()+1))
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Read(make([]byte, 1)) // until it is closed
	for _, name := range []string{"postern_vault_requests_total", "postern_vault_logins_total", "postern_store_reads_total", "postern_refused_connections_total"} {
		agenttest.Eventually(t, 20*time.Second, name, func() bool { return a.Metric(t, name) > 0 })
	}
	return a
}
