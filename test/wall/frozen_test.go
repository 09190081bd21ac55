package wall_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/postern-proxy/postern/agent/agenttest"
)

const session = "CWE-613" // what was allowed once stays allowed

// frozen: what was decided when a connection was opened does not hold for its next request.
var frozen = &group{class: 14, name: "frozen", says: "policy frozen at CONNECT", cases: []kase{
	{name: "revoked", inv: "I12", source: session, on: everyHTTP + " " + ws, agent: "none", do: revokedMeanwhile},
	{name: "rotated", inv: "I9", source: session, on: everyHTTP, agent: "none", do: rotatedMeanwhile},
	{name: "removed", inv: "I2", source: session, on: everyHTTP, agent: "none", do: removedMeanwhile},
	{name: "moved-to-another-key", inv: "I2", source: session, on: everyHTTP, agent: "none", do: movedMeanwhile},
	{name: "tunnels-closed-to-strangers", inv: "I14", source: session, on: absolute, agent: "none", do: closedMeanwhile},
}}

// own starts an agent for one case, with the store in a folder of its own and these providers.
func (r *run) own(names []string, lines ...string) (dir string) {
	r.t.Helper()
	dir = r.w.copyStore(r.t)
	r.a = r.w.start(r.t, dir, r.configOf(names, lines...))
	r.a.Ready(r.t)
	return dir
}

func (r *run) configOf(names []string, lines ...string) string {
	var entries []string
	for _, n := range names {
		entries = append(entries, r.w.providers[n].entry())
	}
	return r.w.yamlOf(entries, append([]string{fmt.Sprintf("egress: {ca_file: %q}", filepath.Join(r.w.dir, "world.pem"))}, lines...)...)
}

// reload gives the agent another configuration, and waits until it is in force.
func (r *run) reload(yaml string) {
	r.t.Helper()
	before := r.a.Metric(r.t, "postern_config_generation")
	file := filepath.Join(r.a.Dir, "postern.yaml")
	if err := os.WriteFile(file+".new", []byte(yaml), 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		r.t.Fatal(err)
	}
	r.until("the configuration is in force", func() bool { return r.a.Metric(r.t, "postern_config_generation") > before })
}

// head is a request as the path writes it, an upgrade where it is a WebSocket's.
func (r *run) head() string {
	if r.isWS() {
		return models + "\n" + strings.TrimSuffix(handshake, "\n")
	}
	return models
}

// begun opens the path's connection and shows that it serves. A WebSocket's is
// taken up by its first request, so a new one is opened for the next.
func (r *run) begun() *client {
	r.t.Helper()
	r.conn = r.open()
	if got := r.ask(r.conn, r.head()); got.StatusCode != http.StatusOK && got.StatusCode != http.StatusSwitchingProtocols {
		r.t.Fatalf("before: %d %s", got.StatusCode, got.body)
	}
	if r.isWS() {
		r.conn = r.open()
	}
	return r.conn
}

// freshly waits until a new connection's request is answered so.
func (r *run) freshly(what string, so func(*reply) bool) {
	r.t.Helper()
	on := r.on
	defer func() { r.on = on }()
	r.on = route
	r.until(what, func() bool { return so(r.ask(r.dial(), models+"\nConnection: close")) })
}

func (r *run) carrying(key string) int {
	requests, _ := r.w.net.seen()
	n := 0
	for _, q := range requests {
		if strings.Contains(string(q.raw), key) {
			n++
		}
	}
	return n
}

func revokedMeanwhile(r *run) {
	dir := r.own([]string{"openai"})
	c := r.begun()
	if out, said, code := agenttest.Run(r.t, dir, "", "keys", "revoke", "openai", "--all-versions", "--now", "--reason", "the wall", "-c", filepath.Join(dir, "keys.yaml")); code != 0 {
		r.t.Fatalf("postern keys revoke: %d\n%s%s", code, out, said)
	}
	r.freshly("new requests are refused", func(got *reply) bool { return got.StatusCode == http.StatusServiceUnavailable })
	before := r.carrying(r.p.key)
	if got := r.ask(c, r.head()); got.StatusCode != http.StatusServiceUnavailable || got.Header.Get("Postern-Error") != "no_usable_key" {
		r.t.Errorf("the connection from before: %d %s", got.StatusCode, got.body)
	}
	if after := r.carrying(r.p.key); after != before {
		r.t.Errorf("%d requests with the revoked key", after-before)
	}
}

func rotatedMeanwhile(r *run) {
	dir := r.own([]string{"openai"})
	c := r.begun()
	old, next := r.p.key, fakeKey("openai-next")
	r.w.add(r.t, dir, "openai", next)
	r.freshly("new requests carry the new key", func(*reply) bool { return r.carrying(next) > 1 }) // more than the probe
	before := r.carrying(old)
	if got := r.ask(c, r.head()); got.StatusCode != http.StatusOK {
		r.t.Errorf("the connection from before: %d %s", got.StatusCode, got.body)
	}
	if after := r.carrying(old); after != before {
		r.t.Error("it carried the old key")
	}
}

func removedMeanwhile(r *run) {
	r.own([]string{"openai", "anthropic"})
	c := r.begun()
	r.reload(r.configOf([]string{"anthropic"}))
	before := r.carrying(r.p.key)
	want := map[string]int{route: 404, absolute: 403, connect: 421}[r.on]
	if got := r.ask(c, r.head()); got.StatusCode != want {
		r.t.Errorf("the connection from before: %d %s, want %d", got.StatusCode, got.body, want)
	}
	if after := r.carrying(r.p.key); after != before {
		r.t.Error("it still carried the key")
	}
}

func movedMeanwhile(r *run) {
	r.own([]string{"openai", "anthropic"})
	c := r.begun()
	// The same host, and now it is given the key of another name.
	r.reload(strings.Replace(r.configOf([]string{"openai", "anthropic"}), "name: openai,", "name: openai, key: huggingface,", 1))
	before := r.carrying(r.p.key)
	if got := r.ask(c, r.head()); got.StatusCode != http.StatusOK {
		r.t.Errorf("the connection from before: %d %s", got.StatusCode, got.body)
	}
	if r.carrying(r.p.key) != before || r.carrying(fakeKey("huggingface")) == 0 {
		r.t.Error("it still carried the key from before")
	}
}

func closedMeanwhile(r *run) {
	r.own([]string{"openai"}, "unmatched: tunnel")
	c := r.dial()
	if got := r.ask(c, "GET http://elsewhere.test/ HTTP/1.1\nHost: elsewhere.test"); got.StatusCode != http.StatusOK {
		r.t.Fatalf("before: %d %s", got.StatusCode, got.body)
	}
	r.reload(r.configOf([]string{"openai"}, "unmatched: deny"))
	if got := r.ask(c, "GET http://elsewhere.test/ HTTP/1.1\nHost: elsewhere.test"); got.StatusCode != http.StatusForbidden {
		r.t.Errorf("the connection from before: %d %s", got.StatusCode, got.body)
	}
}
