package wall_test

const (
	hopGo    = "golang/go#50580"
	hopFabio = "CVE-2025-48865" // the client's Connection removed what the proxy had added
)

// connection: the client's Connection names what the agent attaches.
var connection = &group{class: 4, name: "connection", says: "Connection deletes what was attached", cases: []kase{
	{name: "authorization", inv: "I4", source: hopGo, on: every,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nConnection: authorization", want: attached()},
	{name: "authorization-in-upper-case", inv: "I4", source: hopGo, on: every,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nCONNECTION: keep-alive, AUTHORIZATION ,close", want: attached()},
	{name: "in-two-fields", inv: "I4", source: hopFabio, on: everyHTTP,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nConnection: keep-alive\nConnection: Authorization", want: attached()},
	{name: "x-api-key", inv: "I4", source: hopFabio, on: everyHTTP, to: "anthropic",
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nConnection: x-api-key", want: attached()},
	{name: "api-key", inv: "I4", source: hopFabio, on: everyHTTP, to: "azure",
		send: "GET {/openai/models} HTTP/1.1\nHost: {host}\nConnection: Api-Key", want: attached()},
	{name: "x-goog-api-key", inv: "I4", source: hopFabio, on: everyHTTP, to: "gemini",
		send: "GET {/v1beta/models} HTTP/1.1\nHost: {host}\nConnection: X-Goog-Api-Key", want: attached()},
	{name: "basic-authorization", inv: "I4", source: hopFabio, on: everyHTTP, to: "basic",
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nConnection: authorization", want: attached()},
	{name: "a-house-s-own-header", inv: "I4", source: hopFabio, on: everyHTTP, to: "house",
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nConnection: x-house-key, x_house_key", want: attached()},
	{name: "over-http2", inv: "I4", source: hopGo, on: everyHTTP, to: "h2",
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nConnection: authorization, te\nTE: trailers", want: attached()},
	{name: "proxy-connection", inv: "I4", source: "RFC 9112 C.2.2", on: everyHTTP,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nProxy-Connection: authorization\nKeep-Alive: authorization", want: attached()},
	{name: "host", inv: "I4", source: "RFC 9110 7.6.1", on: every,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nConnection: host", want: attached()},
	{name: "content-length", inv: "I4", source: "RFC 9110 7.6.1", on: everyHTTP,
		send: "POST {/v1/chat/completions} HTTP/1.1\nHost: {host}\nConnection: content-length\nContent-Length: 5", body: "hello", want: attached(body("hello"))},
	{name: "transfer-encoding", inv: "I4", source: "RFC 9110 7.6.1", on: everyHTTP,
		send: "POST {/v1/chat/completions} HTTP/1.1\nHost: {host}\nConnection: transfer-encoding\nTransfer-Encoding: chunked", body: "5\r\nhello\r\n0\r\n\r\n", want: attached(body("hello"))},
	{name: "names-a-field-of-the-client", inv: "I4", source: "RFC 9110 7.6.1", on: every,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nConnection: x-hop\nX-Hop: here only\nX-End: goes on", want: attached(field("X-Hop", ""), field("X-End", "goes on"))},
}}
