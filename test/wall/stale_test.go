package wall_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
)

const envoy = "envoyproxy/envoy#44674" // an expired token goes on while its issuer is down

// stale: a real Vault that is away, and keys that end meanwhile.
var stale = &group{class: 16, name: "stale", says: "expired credentials, issuer down", cases: []kase{
	{name: "vault-down-keys-serve", inv: "I10", source: "hashicorp/vault#20645", on: direct, agent: "none", do: vaultDownServes},
	{name: "vault-down-too-long", inv: "I10", source: envoy, on: direct, agent: "none", do: vaultDownTooLong},
	{name: "lease-ended-while-vault-is-down", inv: "I10", source: envoy, on: direct, agent: "none", do: leaseEnded},
	{name: "line-break-in-vault", inv: "I5", source: crlf, on: direct, agent: "none", do: lineBreakInVault("sk-proj-wall-not-a-key\r\nX-Injected: yes")},
	{name: "line-feed-at-the-end-in-vault", inv: "I5", source: crlf, on: direct, agent: "none", do: lineBreakInVault("sk-proj-wall-not-a-key-0123456789\n")},
	{name: "placeholder-in-vault", inv: "I11", source: "CWE-1392", on: direct, agent: "none", do: lineBreakInVault("attached-by-postern")},
	{name: "another-environment-s-key", inv: "I11", source: "CWE-668", on: direct, agent: "none", do: anotherEnvironment},
	{name: "dead-key-is-not-promoted", inv: "I8", source: "CWE-636", on: direct, agent: "none", do: deadKey},
}}

const vaultKey = "secret/postern/provider-keys/wall/px_wall/openai"

// vaulted starts an agent on a Vault that holds OpenAI's key. store says more of the store, entry of the provider.
func (r *run) vaulted(v *vaulttest.Vault, store, entry string) {
	r.t.Helper()
	dir := r.w.copyStore(r.t)
	r.w.write(dir, "token", v.RootToken+"\n")
	r.a = r.w.start(r.t, dir, r.w.yamlOf([]string{"{name: openai" + entry + "}"},
		fmt.Sprintf("egress: {ca_file: %q}", filepath.Join(r.w.dir, "world.pem")),
		fmt.Sprintf("store: {vault: {address: %q, poll: 1s, auth: {token: {file: token}}%s}}", v.Address, store)))
}

// everywhere asks over every path.
func (r *run) everywhere(status int) {
	r.t.Helper()
	for _, on := range strings.Fields(every) {
		r.on = on
		want := status
		if r.isWS() && status == http.StatusOK {
			want = http.StatusSwitchingProtocols
		}
		if got := r.ask(r.open(), r.head()); got.StatusCode != want {
			r.t.Errorf("%s: %d %s, want %d", on, got.StatusCode, got.body, want)
		} else if status == http.StatusServiceUnavailable && got.Header.Get("Postern-Error") != "no_usable_key" {
			r.t.Errorf("%s: %s", on, got.Header.Get("Postern-Error"))
		}
	}
}

// refusedEverywhere waits until the key is gone, and then nobody is sent it.
func (r *run) refusedEverywhere(what, key string) {
	r.t.Helper()
	r.freshly(what, func(got *reply) bool { return got.StatusCode == http.StatusServiceUnavailable })
	before := r.carrying(key)
	r.everywhere(http.StatusServiceUnavailable)
	if after := r.carrying(key); after != before {
		r.t.Errorf("%d requests carried it", after-before)
	}
}

func vaultDownServes(r *run) {
	v := vaulttest.Start(r.t, vaulttest.Options{})
	v.KVPut(vaultKey, map[string]string{"api_key": r.p.key})
	r.vaulted(v, "", "")
	r.a.Ready(r.t)
	v.Stop()
	r.until("the agent has missed its Vault", func() bool { return r.a.Metric(r.t, `postern_store_reads_total{outcome="unavailable"}`) > 0 })
	r.everywhere(http.StatusOK)
	if status, _ := r.a.Get(r.t, "/readyz"); status != http.StatusOK {
		r.t.Errorf("/readyz: %d", status)
	}
}

func vaultDownTooLong(r *run) {
	v := vaulttest.Start(r.t, vaulttest.Options{})
	v.KVPut(vaultKey, map[string]string{"api_key": r.p.key})
	r.vaulted(v, ", max_stale: 3s", "")
	r.a.Ready(r.t)
	r.everywhere(http.StatusOK)
	v.Stop()
	r.refusedEverywhere("the key is too old", r.p.key)
}

// leaseEnded: a dynamic engine's credential ends with its lease, whoever is away.
func leaseEnded(r *run) {
	v := vaulttest.Start(r.t, vaulttest.Options{})
	v.Mount("dynamic", "kv", map[string]string{"version": "1", "leased_passthrough": "true"})
	v.Do("PUT", "dynamic/openai", map[string]any{"api_key": r.p.key, "ttl": "6s"})
	r.vaulted(v, "", ", vault_path: dynamic/openai, field: api_key")
	r.a.Ready(r.t)
	r.everywhere(http.StatusOK)
	v.Stop()
	r.refusedEverywhere("the lease has ended", r.p.key)
}

// lineBreakInVault: a value that cannot be a key is never sent, whoever stored it.
func lineBreakInVault(value string) func(*run) {
	return func(r *run) {
		v := vaulttest.Start(r.t, vaulttest.Options{})
		v.KVPut(vaultKey, map[string]string{"api_key": value})
		r.vaulted(v, "", "")
		r.freshly("it is refused", func(got *reply) bool {
			return got.StatusCode == http.StatusServiceUnavailable && got.Header.Get("Retry-After") == ""
		})
		r.everywhere(http.StatusServiceUnavailable)
		requests, _ := r.w.net.seen()
		for _, q := range requests {
			r.t.Errorf("%s was sent %q", q.conn.to, q.raw)
		}
		if strings.Contains(r.heard.String()+r.a.Log.String(), "X-Injected") {
			r.t.Error("the value was repeated")
		}
	}
}

func anotherEnvironment(r *run) {
	v := vaulttest.Start(r.t, vaulttest.Options{})
	v.KVPut(vaultKey, map[string]string{"api_key": r.p.key})
	v.Do("POST", strings.Replace(vaultKey, "secret/", "secret/metadata/", 1), map[string]any{"custom_metadata": map[string]string{"environment": "production"}})
	r.vaulted(v, "", "")
	r.freshly("it is refused", func(got *reply) bool {
		return got.StatusCode == http.StatusServiceUnavailable && got.Header.Get("Retry-After") == ""
	})
	r.everywhere(http.StatusServiceUnavailable)
	if n := r.carrying(r.p.key); n > 0 {
		r.t.Errorf("%d requests carried a key of another environment", n)
	}
}

// deadKey: the provider refuses the new version, so the old one stays.
func deadKey(r *run) {
	v := vaulttest.Start(r.t, vaulttest.Options{})
	v.KVPut(vaultKey, map[string]string{"api_key": r.p.key})
	r.vaulted(v, "", "")
	r.a.Ready(r.t)
	dead := fakeKey("openai-dead")
	r.w.net.reset(map[string]answer{"api.openai.com": func(q *request) ([]string, bool) {
		if q.credential() == dead {
			return []string{"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"}, false
		}
		return usual(q)
	}})
	v.KVPut(vaultKey, map[string]string{"api_key": dead})
	r.until("the new version is probed", func() bool { return r.carrying(dead) > 0 })
	r.until("and rejected", func() bool { _, s := r.a.Get(r.t, "/status"); return strings.Contains(s, "rejected") })
	probes := r.carrying(dead)
	r.everywhere(http.StatusOK)
	if n := r.carrying(dead); n != probes {
		r.t.Errorf("%d requests carried the dead key", n-probes)
	}
}
