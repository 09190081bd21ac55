package wall_test

import "strings"

const underscore = "CVE-2025-64484" // X_Auth_Request_User is read as X-Auth-Request-User

// credentials: what the client sends of its own never arrives beside what is attached.
var credentials = &group{class: 5, name: "credential", says: "duplicate and disguised credentials", cases: []kase{
	{name: "placeholder", inv: "I3", source: "CWE-201", on: every,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nAuthorization: Bearer attached-by-postern", want: attached()},
	{name: "own-bearer", inv: "I3", source: underscore, on: every,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nAuthorization: Bearer {client}", want: attached()},
	{name: "twice", inv: "I3", source: "RFC 9110 5.3", on: every,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nAuthorization: Bearer {client}\nAuthorization: Basic {client}", want: attached()},
	{name: "mixed-case", inv: "I3", source: "RFC 9110 5.1", on: every,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\naUTHORIZATION: Bearer {client}\nAUTHORIZATION: {client}", want: attached()},
	{name: "underscore", inv: "I3", source: underscore, on: every, to: "anthropic",
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nX_Api_Key: {client}\nx_api-key: {client}\nX-Api_Key: {client}", want: attached()},
	{name: "underscore-house", inv: "I3", source: underscore, on: everyHTTP, to: "house",
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nX_House_Key: {client}\nX-HOUSE_KEY: {client}", want: attached()},
	{name: "x-api-key-beside-bearer", inv: "I3", source: "CWE-441", on: every,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nX-Api-Key: {client}\nAuthorization: Bearer {client}", want: attached()},
	{name: "bearer-beside-x-api-key", inv: "I3", source: "CWE-441", on: every, to: "anthropic",
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nAuthorization: Bearer {client}\nX-Api-Key: {client}", want: attached()},
	{name: "every-known-field", inv: "I3", source: "CWE-201", on: every,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nApi-Key: {client}\nX-Goog-Api-Key: {client}\nX-Api-Key: {client}\nX-Amz-Security-Token: {client}\n" +
			"X-Goog-Iam-Authorization-Token: {client}\nX-House-Key: {client}\nAuthorization: {client}", want: attached()},
	{name: "proxy-authorization", inv: "I3", source: "CVE-2023-32681", on: every,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nProxy-Authorization: Basic {client}\nProxy_Authorization: Basic {client}", want: attached()},
	{name: "proxy-authorization-of-connect", inv: "I3", source: "CVE-2023-32681", on: direct, do: connectWithCredentials},
	{name: "over-http2", inv: "I3", source: underscore, on: everyHTTP + " " + tunnelH2, to: "h2",
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nAUTHORIZATION: Bearer {client}\nX_Api_Key: {client}\nAuthorization: {client}", want: attached()},
	{name: "basic", inv: "I3", source: "RFC 7617 2", on: every, to: "basic",
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nAuthorization: Basic {client}", want: attached()},
	{name: "gemini-query", inv: "I3", source: "RFC 6750 2.3", on: every, to: "gemini",
		send: "GET {/v1beta/models?key={client}&alt=sse} HTTP/1.1\nHost: {host}", want: attached(query("alt=sse"))},
	{name: "gemini-query-in-upper-case", inv: "I3", source: "RFC 6750 2.3", on: everyHTTP, to: "gemini",
		send: "GET {/v1beta/models?KEY={client}&Key={client}} HTTP/1.1\nHost: {host}", want: attached(query(""))},
	{name: "gemini-query-encoded", inv: "I3", source: "RFC 3986 2.1", on: everyHTTP, to: "gemini",
		send: "GET {/v1beta/models?%6bey={client}&a=b&k%65y={client}} HTTP/1.1\nHost: {host}", want: attached(query("a=b"))},
	{name: "gemini-query-behind-semicolon", inv: "I3", source: "CVE-2021-23336", on: everyHTTP, to: "gemini",
		send: "GET {/v1beta/models?a=b;key={client};c=d} HTTP/1.1\nHost: {host}", want: attached()},
	{name: "gemini-access-token", inv: "I3", source: "RFC 6750 2.3", on: everyHTTP, to: "gemini",
		send: "GET {/v1beta/models?access_token={client}} HTTP/1.1\nHost: {host}", want: attached(query(""))},
	{name: "azure-query-on-websocket", inv: "I3", source: "RFC 6750 2.3", on: every, to: "azure",
		send: "GET {/openai/realtime?api-key={client}&deployment=d} HTTP/1.1\nHost: {host}", want: attached(query("deployment=d"))},
	{name: "query-provider-s-own", inv: "I3", source: "CVE-2022-2880", on: every, to: "query",
		send: "GET {/v1/models?token={client}&a=b&TOKEN={client}&t%6fken={client}} HTTP/1.1\nHost: {host}", want: attached(hasQuery("a=b"))},
	{name: "query-provider-with-broken-escapes", inv: "I3", source: "CVE-2022-2880", on: everyHTTP, to: "query",
		send: "GET {/v1/models?a=%zz&token={client}&%zz=b} HTTP/1.1\nHost: {host}", want: attached()},
	{name: "query-provider-behind-semicolon", inv: "I3", source: "CVE-2021-23336", on: everyHTTP, to: "query",
		send: "GET {/v1/models?a=b;token={client}} HTTP/1.1\nHost: {host}", want: attached()},
	{name: "websocket-subprotocol", inv: "I3", source: "OpenAI Realtime with WebSockets", on: everyWS,
		send: "GET {/v1/realtime} HTTP/1.1\nHost: {host}\nSec-WebSocket-Protocol: realtime, openai-insecure-api-key.{client}, openai-beta.realtime-v1", want: attached(field("Sec-WebSocket-Protocol", "realtime, openai-beta.realtime-v1"))},
	{name: "websocket-subprotocol-in-two-fields", inv: "I3", source: "OpenAI Realtime with WebSockets", on: everyWS,
		send: "GET {/v1/realtime} HTTP/1.1\nHost: {host}\nSec-WebSocket-Protocol: OPENAI-INSECURE-API-KEY.{client}\nsec-websocket-protocol: realtime", want: attached(field("Sec-WebSocket-Protocol", "realtime"))},
	{name: "aws-signature-in-query", inv: "I3", source: "RFC 6750 2.3", on: everyHTTP, to: "bedrock",
		send: "GET {/model/m/converse?X-Amz-Credential={client}&X-Amz-Signature={client}&x-amz-security-token={client}} HTTP/1.1\nHost: {host}", want: attached(query(""))},
	{name: "none-where-no-key-is-usable", inv: "I11", source: "CWE-636", on: every, to: "keyless",
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nAuthorization: Bearer {client}", want: refused(503, "no_usable_key")},
	{name: "kept-for-a-host-that-is-not-ours", inv: "I3", source: "RFC 9110 11.6.2", on: direct, agent: "tunnel",
		send: "GET http://elsewhere.test/v1 HTTP/1.1\nHost: elsewhere.test\nAuthorization: Bearer {client}\nProxy-Authorization: Basic {client}", want: reachedOnly(200, "elsewhere.test:80").and(onlyAuthorization)},
}}

func query(want string) func(*run, *request) {
	return func(r *run, q *request) {
		_, got, _ := strings.Cut(q.target, "?")
		if got != want {
			r.t.Errorf("the query is %q, want %q", got, want)
		}
	}
}

func hasQuery(want string) func(*run, *request) {
	return func(r *run, q *request) {
		if _, got, _ := strings.Cut(q.target, "?"); !strings.Contains("&"+got+"&", "&"+want+"&") {
			r.t.Errorf("the query %q has no %s", got, want)
		}
	}
}

// connectWithCredentials: what authenticates to a proxy ends at it.
func connectWithCredentials(r *run) {
	c := r.dial()
	r.write(c, r.fill("CONNECT api.openai.com:443 HTTP/1.1\r\nHost: api.openai.com:443\r\nProxy-Authorization: Basic {client}\r\nAuthorization: Bearer {client}\r\n\r\n"))
	if got := r.read(c, "CONNECT"); got.StatusCode != 200 {
		r.t.Fatal(got.Status)
	}
	in, err := r.secure(c, hello("api.openai.com"))
	if err != nil {
		r.t.Fatal(err)
	}
	r.on = connect
	if got := r.ask(in, models); got.StatusCode != 200 {
		r.t.Errorf("%d %s", got.StatusCode, got.body)
	}
	r.fence()
	r.account(1, nil)
}

// onlyAuthorization: a foreign host gets what the client meant for it, and not what it meant for the proxy.
func onlyAuthorization(r *run, _ *reply) {
	requests, _ := r.w.net.seen()
	for _, q := range requests {
		if q.header("Authorization") != r.fill("Bearer {client}") || q.header("Proxy-Authorization") != "" {
			r.t.Errorf("it was sent %q", q.raw)
		}
	}
}
