package wall_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"

	"github.com/postern-proxy/postern/agent/agenttest"
)

const crlf = "CVE-2019-9740" // a line break in a value becomes a field of its own

// secrets: what a stored value, a format or a query can do.
var secrets = &group{class: 17, name: "secret", says: "line breaks in secrets, placeholders, logs", cases: []kase{
	refusedKey("line-break", crlf, "sk-proj-wall-not-a-key-\r\nX-Injected: yes"),
	refusedKey("line-feed", crlf, "sk-proj-wall-not-a-key\nX-Injected: yes"),
	refusedKey("space", "RFC 9110 5.5", "sk-proj-wall not-a-key-0123456789"),
	refusedKey("nul", "RFC 9110 5.5", "sk-proj-wall-not-a-key\x00-0123456789"),
	refusedKey("beyond-ascii", "RFC 9110 5.5", "sk-proj-wall-not-a-key-ü-0123456789"),
	refusedKey("short", "CWE-521", "sk-short"),
	refusedKey("placeholder", "CWE-1392", "attached-by-postern"),
	refusedKey("unresolved-template", "CWE-1392", "${OPENAI_API_KEY_FROM_CI}"),
	{name: "optional-field-without-value", inv: "I3", source: "CWE-116", on: every,
		send: models, want: attached(field("OpenAI-Organization", ""), field("OpenAI-Project", ""))},
	{name: "required-field-without-value", inv: "I11", source: "CWE-116", on: direct, agent: "none", do: missingField},
	{name: "query-is-not-logged", inv: "I5", source: "CWE-532", on: every,
		send: "GET {/v1/models?session=client-canary-query-0123} HTTP/1.1\nHost: {host}", do: logged("client-canary-query-0123")},
	{name: "credentials-are-not-logged", inv: "I5", source: "CWE-532", on: every, do: logged("client-canary-0123456789abcdef"),
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nAuthorization: Bearer {client}\nX-Api-Key: {client}\nCookie: a={client}"},
	{name: "refused-request-is-not-logged", inv: "I5", source: "CWE-532", on: everyHTTP, do: logged("client-canary-0123456789abcdef"),
		send: "GET {/v1/../{client}?key={client}} HTTP/1.1\nHost: {host}\nX-Api-Key: {client}"},
	{name: "unknown-host-s-query-is-not-logged", inv: "I5", source: "CWE-532", on: direct, agent: "tunnel", do: logged("client-canary-0123456789abcdef"),
		send: "GET http://elsewhere.test/?key={client} HTTP/1.1\nHost: elsewhere.test\nAuthorization: Bearer {client}"},
	{name: "log-injection", inv: "I5", source: "CWE-117", on: direct, do: logged("\nFORGED"),
		raw: "GET /openai/v1/%0aFORGED HTTP/1.1\r\nHost: {agent}\r\nUser-Agent: a\\nFORGED\r\n\r\n"},
	{name: "nothing-that-was-said-or-written-holds-a-key", inv: "I5", source: "CWE-532", on: direct, agent: "none", do: nothingWritten},
}}

// refusedKey: the command does not store it, does not repeat it, and nobody is asked.
func refusedKey(name, source, value string) kase {
	return kase{name: "add-refuses-" + name, inv: "I5", source: source, on: direct, agent: "none", do: func(r *run) {
		dir := r.w.copyStore(r.t)
		out, said, code := agenttest.Run(r.t, dir, value, "keys", "add", "openai", "-c", filepath.Join(dir, "keys.yaml"))
		if code == 0 {
			r.t.Errorf("it was stored: %s", out)
		}
		if value != "attached-by-postern" && strings.Contains(out+said, value) {
			r.t.Errorf("it was repeated: %s%s", out, said)
		}
		if _, conns := r.w.net.seen(); len(conns) > 0 {
			r.t.Errorf("%s was asked", conns[0].to)
		}
	}}
}

// missingField: a format that refers to what the secret does not have attaches nothing.
func missingField(r *run) {
	dir := r.w.copyStore(r.t)
	r.a = r.w.start(r.t, dir, r.w.yamlOf([]string{`{name: openai, attach: {header: Authorization, format: "Bearer {tenant}.{api_key}"}}`},
		fmt.Sprintf("egress: {ca_file: %q}", filepath.Join(r.w.dir, "world.pem"))))
	for _, on := range strings.Fields(every) {
		r.on = on
		r.until(on+" is refused", func() bool {
			got := r.ask(r.open(), r.head())
			return got.StatusCode == http.StatusServiceUnavailable && got.Header.Get("Postern-Error") == "no_usable_key"
		})
	}
	requests, _ := r.w.net.seen()
	for _, q := range requests {
		if strings.Contains(string(q.raw), "{tenant}") || strings.Contains(string(q.raw), r.p.key) {
			r.t.Errorf("the provider was sent %q", q.raw)
		}
	}
}

// logged: the request is in the log, and what it held is not.
func logged(secret string) func(*run) {
	return func(r *run) {
		before := len(r.a.Log.String())
		r.conn = r.open()
		r.send(r.conn)
		r.read(r.conn, "GET")
		r.conn.Close()
		r.until("the request is in the log", func() bool {
			return strings.Contains(r.a.Log.String()[before:], `"msg":"request"`)
		})
		if text := r.a.Log.String()[before:] + r.a.Out.String(); strings.Contains(text, secret) {
			r.t.Errorf("the log holds %q:\n%s", secret, text)
		}
	}
}

// nothingWritten: after all cases no agent has said or written a key, nor a client's credential.
func nothingWritten(r *run) {
	for name, a := range r.w.agents {
		r.a = a
		texts := map[string]string{"log": a.Log.String(), "standard output": a.Out.String()}
		for _, path := range []string{"/metrics", "/status", "/readyz", "/livez", "/ca.pem"} {
			_, texts[path] = a.Get(r.t, path)
		}
		r.files(a.Dir, func(path string, b []byte) { texts[path] = string(b) })
		if len(texts["log"]) == 0 || len(texts["/metrics"]) == 0 || len(texts[filepath.Join(a.Dir, "audit.jsonl")]) == 0 {
			r.t.Errorf("the agent %s has written no log, metric or audit entry: nothing was searched", name)
		}
		for what, text := range texts {
			r.keyless(text, "the agent "+name+"'s "+what)
			if strings.Contains(text, canary) {
				r.t.Errorf("the agent %s's %s holds a client's credential", name, what)
			}
		}
	}
}
