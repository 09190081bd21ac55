package wall_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
)

const anyPort = "VU#150227" // proxies that connect anywhere

// port: a key goes to its host's own port and over TLS.
var port = &group{class: 12, name: "port", says: "other ports, plain HTTP, unsafe settings", cases: append([]kase{
	{name: "connect-to-another-port", inv: "I1", source: anyPort, on: direct,
		send: "CONNECT api.openai.com:8443 HTTP/1.1\nHost: api.openai.com:8443", want: refused(403, "unmatched_denied")},
	{name: "connect-to-port-80", inv: "I1", source: anyPort, on: direct,
		send: "CONNECT api.openai.com:80 HTTP/1.1\nHost: api.openai.com:80", want: refused(403, "unmatched_denied")},
	{name: "connect-to-the-usual-port-of-an-unusual-provider", inv: "I1", source: anyPort, on: direct,
		send: "CONNECT house.test:443 HTTP/1.1\nHost: house.test:443", want: refused(403, "unmatched_denied")},
	{name: "connect-to-mail", inv: "I14", source: anyPort, on: direct,
		send: "CONNECT mail.test:25 HTTP/1.1\nHost: mail.test:25", want: refused(403, "unmatched_denied")},
	{name: "tunnel-to-another-port-has-no-key", inv: "I1", source: anyPort, on: direct, agent: "tunnel", do: tunnelToAnotherPort},
	{name: "absolute-to-another-port", inv: "I1", source: anyPort, on: absolute + " " + wsAbs,
		send: "GET https://api.openai.com:8443/v1/models HTTP/1.1\nHost: api.openai.com:8443", want: refused(403, "unmatched_denied")},
	{name: "absolute-to-port-80", inv: "I1", source: "RFC 9110 4.2.2", on: absolute + " " + wsAbs,
		send: "GET http://api.openai.com:80/v1/models HTTP/1.1\nHost: api.openai.com:80", want: refused(403, "unmatched_denied")},
	{name: "absolute-to-port-80-has-no-key", inv: "I1", source: "RFC 9110 4.2.2", on: direct, agent: "tunnel",
		send: "GET http://api.openai.com:80/v1/models HTTP/1.1\nHost: api.openai.com:80", want: reachedOnly(200, "api.openai.com:80")},
	{name: "plain-url-goes-over-tls", inv: "I1", source: "RFC 6797 7.2", on: absolute + " " + wsAbs,
		send: "GET http://api.openai.com/v1/models HTTP/1.1\nHost: api.openai.com", want: attached(line("GET", "/v1/models"))},
	{name: "own-port-of-a-provider", inv: "I1", source: anyPort, on: every, to: "house", send: models, want: attached()},
	{name: "loopback-that-allows-it", inv: "I1", source: "RFC 8252 8.3", on: every, to: "local", send: models, want: attached()},
	{name: "scheme-of-its-own", inv: "I1", source: "RFC 9110 4.2", on: direct, agent: "tunnel",
		send: "GET ftp://api.openai.com:443/v1/models HTTP/1.1\nHost: api.openai.com", want: want{status: 400, code: "bad_host|bad_framing"}},
	{name: "websocket-scheme", inv: "I1", source: "RFC 6455 3", on: direct, agent: "tunnel",
		send: "GET wss://api.openai.com:443/v1/models HTTP/1.1\nHost: api.openai.com", want: want{status: 400, code: "bad_host|bad_framing"}},
}, unsafeCases()...)}

// unsafe is a configuration that must be refused, with the name of the field.
type unsafe struct{ name, source, provider, line, env, field string }

func unsafeCases() []kase {
	var list []kase
	for _, u := range []unsafe{
		{name: "plain-http", source: "CWE-319", provider: `{name: openai, hosts: [llm.test], base_url: "http://llm.test"}`, field: "base_url"},
		{name: "plain-http-on-loopback-unasked", source: "CWE-319", provider: `{name: openai, hosts: ["127.0.0.1:80"], base_url: "http://127.0.0.1"}`, field: "base_url"},
		{name: "plain-http-allowed-elsewhere", source: "CWE-319", provider: `{name: openai, hosts: ["10.0.0.1:80"], base_url: "http://10.0.0.1", allow_plaintext: true}`, field: "base_url"},
		{name: "plain-http-to-localhost-by-name", source: "RFC 8252 8.3", provider: `{name: openai, hosts: ["localhost:80"], base_url: "http://localhost", allow_plaintext: true}`, field: "base_url"},
		{name: "wildcard-of-customers", source: "CWE-183", provider: `{name: azure, provider: azure-openai, hosts: ["*.openai.azure.com"], base_url: "https://acme.openai.azure.com"}`, field: "hosts"},
		{name: "wildcard-of-everything", source: "CWE-183", provider: `{name: openai, hosts: ["*.com"], base_url: "https://a.com"}`, field: "hosts"},
		{name: "metadata-as-a-provider", source: metadata, provider: `{name: openai, hosts: [169.254.169.254], base_url: "https://169.254.169.254"}`, field: "hosts"},
		{name: "itself-as-a-provider", source: "RFC 9110 7.6.3", provider: `{name: openai, hosts: ["127.0.0.1:8700"], base_url: "https://127.0.0.1:8700"}`, line: "listen: {proxy: 127.0.0.1:8700, admin: 127.0.0.1:8701}", field: "hosts"},
		{name: "itself-as-egress-proxy", source: "RFC 9110 7.6.3", line: "listen: {proxy: 127.0.0.1:8700, admin: 127.0.0.1:8701}\negress: {proxy: \"http://127.0.0.1:8700\"}", field: "egress.proxy"},
		{name: "key-in-a-hop-by-hop-field", source: hopGo, provider: `{name: openai, attach: {header: Connection, format: "{api_key}"}}`, field: "attach.header"},
		{name: "key-in-host", source: openSandbox, provider: `{name: openai, attach: {header: Host, format: "{api_key}"}}`, field: "attach.header"},
		{name: "two-owners-of-a-host", source: "CWE-436", provider: "{name: openai}\n  - {name: second, provider: openai, key: openai}", field: "forward"},
		{name: "listener-for-everybody", source: "CWE-1327", line: "listen: {proxy: 0.0.0.0:8700}", field: "listen.proxy"},
		{name: "socket-for-everybody", source: "CWE-732", line: "listen: {proxy: unix:///tmp/postern.sock}", field: "listen.allow_uids"},
		{name: "misspelt-setting", source: "CWE-1188", line: "unmached: deny", field: "unmached"},
		{name: "unmatched-anything", source: "CWE-1188", line: "unmatched: allow", field: "unmatched"},
		{name: "api-keys-required-but-not-there", source: "CWE-636", line: "require_api_key: true", field: "require_api_key"},
		{name: "vault-over-plain-http", source: "CWE-319", line: `store: {vault: {address: "http://vault.test:8200", auth: {token: {file: t}}}}`, field: "store.vault.address"},
		{name: "vault-unverified", source: "CWE-295", line: `store: {vault: {address: "https://vault.test:8200", auth: {token: {file: t}}}}`, env: "VAULT_SKIP_VERIFY=1", field: "VAULT_SKIP_VERIFY"},
		{name: "http2-debugging", source: "CWE-532", env: "GODEBUG=http2debug=2", field: "GODEBUG"},
		{name: "ca-key-on-a-disk", source: "CWE-312", line: "ca: {state_dir: state}", field: "ca.state_dir"},
	} {
		list = append(list, kase{name: "refuses-" + u.name, inv: "I14", source: u.source, on: direct, agent: "none", do: u.refused})
	}
	return list
}

// refused: an agent does not start on it.
func (u unsafe) refused(r *run) {
	if u.provider == "" {
		u.provider = "{name: openai}"
	}
	var lines []string
	if u.line != "" {
		lines = strings.Split(u.line, "\n")
	}
	dir := r.w.copyStore(r.t)
	if strings.Contains(u.line, "state_dir") {
		dir = onDisk(r)
	}
	r.w.write(dir, "t", "wall-not-a-token\n")
	var env []string
	if u.env != "" {
		env = append(env, u.env)
	}
	a := agenttest.Launch(r.t, dir, r.w.yamlOf([]string{u.provider}, lines...), env...)
	select {
	case <-a.Done():
	case <-time.After(patience):
		r.t.Fatal("it has started")
	}
	if said := a.Log.String(); a.ExitErr() == nil || !strings.Contains(said, u.field) {
		r.t.Errorf("it ended with %v, and what it says does not name %s:\n%s", a.ExitErr(), u.field, said)
	}
	if _, conns := r.w.net.seen(); len(conns) > 0 {
		r.t.Errorf("connections were opened, the first to %s", conns[0].to)
	}
}

// onDisk is copyStore in a folder that is no tmpfs, next to the tests.
func onDisk(r *run) string {
	dir, err := os.MkdirTemp(".", ".state-")
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { os.RemoveAll(dir) })
	dir, err = filepath.Abs(dir)
	if err != nil {
		r.t.Fatal(err)
	}
	return dir
}

// tunnelToAnotherPort: the same name at another port is a stranger, whom the client may reach and to whom no key goes.
func tunnelToAnotherPort(r *run) {
	c, got := r.tunnel("api.openai.com:8443")
	if got.StatusCode != http.StatusOK {
		r.t.Fatal(got.Status)
	}
	conf := hello("api.openai.com")
	conf.InsecureSkipVerify = true // the world's own certificate, not the agent's
	in, err := r.secure(c, conf)
	if err != nil {
		r.t.Fatal(err)
	}
	if got := r.ask(in, "GET /v1/models HTTP/1.1\nHost: api.openai.com:8443\nAuthorization: Bearer {client}"); got.StatusCode != http.StatusOK {
		r.t.Errorf("%d", got.StatusCode)
	}
	if iss := in.Conn.(*tapedTLS).ConnectionState().PeerCertificates[0].Issuer.CommonName; iss != "the wall's root" {
		r.t.Errorf("the agent has intercepted it: %q", iss)
	}
	r.fence()
	r.account(0, nil, "api.openai.com:8443")
}
