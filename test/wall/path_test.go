package wall_test

// path: two readers see two paths.
var path = &group{class: 13, name: "path", says: "paths", cases: []kase{
	climbing("dot-segment", "CVE-2019-9901", "v1/../admin"), climbing("single-dot", "RFC 3986 5.2.4", "v1/./models"),
	climbing("encoded-dots", "CVE-2021-41773", "v1/%2e%2e/admin"), climbing("encoded-dots-and-slash", "CVE-2021-29492", "v1/%2E%2e%2fadmin"),
	climbing("encoded-slash-after-dots", "CVE-2021-29492", "v1/..%2fadmin"), climbing("one-encoded-dot", "CVE-2021-41773", "v1/.%2e/admin"),
	climbing("twice-encoded-dots", "CVE-2021-42013", "v1/%252e%252e/admin"), climbing("thrice-encoded-dots", "CVE-2021-42013", "v1/%25252e%25252e/admin"),
	climbing("dots-with-parameters", "CVE-2020-1957", "v1/..;/admin"), climbing("dots-with-longer-parameters", "CVE-2020-1957", "v1/..;a=b/admin"),
	climbing("backslashes", "CWE-29", `v1\..\admin`), climbing("encoded-backslashes", "CWE-29", "v1/..%5cadmin"),
	climbing("empty-segment", "RFC 3986 3.3", "v1//models"), climbing("trailing-dots", "RFC 3986 5.2.4", "v1/models/.."),
	climbing("encoded-nul", "CVE-2006-7243", "v1/models%00.json"), climbing("encoded-line-break", "CVE-2019-9740", "v1/models%0d%0aX-A:%20b"),
	climbing("twice-encoded-line-break", "CVE-2019-9740", "v1/models%250d%250aX-A:%2520b"),
	climbing("broken-escape", "RFC 3986 2.1", "v1/%zz"), climbing("cut-escape", "RFC 3986 2.1", "v1/%2"),
	unchanged("encoded-slash", "/v1/a%2Fb"), unchanged("encoded-space", "/v1/a%20b"), unchanged("lower-case-escape", "/v1/%c3%a9"),
	unchanged("colon-and-at", "/v1/models/ft:gpt@org~x"), unchanged("query-with-dots", "/v1/models?next=/../admin&u=http://evil.test//"),
	unchanged("question-marks", "/v1/models?a=?b?"), unchanged("three-dots", "/v1/.../models"), unchanged("trailing-slash", "/v1/models/"),
	{name: "climb-to-another-route", inv: "I2", source: "CVE-2019-9901", on: direct, raw: "GET /openai/../anthropic/v1/models HTTP/1.1\r\nHost: {agent}\r\n\r\n", want: want{status: 400, code: "bad_path"}},
	{name: "encoded-climb-to-another-route", inv: "I2", source: "CVE-2021-41773", on: direct, raw: "GET /openai/%2e%2e/anthropic/v1/models HTTP/1.1\r\nHost: {agent}\r\n\r\n", want: want{status: 400, code: "bad_path"}},
	{name: "route-in-upper-case", inv: "I2", source: "RFC 3986 6.2.2.1", on: direct, raw: "GET /OPENAI/v1/models HTTP/1.1\r\nHost: {agent}\r\n\r\n", want: refused(404, "no_such_route")},
	{name: "route-with-encoded-slash", inv: "I2", source: "CVE-2021-29492", on: direct, raw: "GET /openai%2fv1/models HTTP/1.1\r\nHost: {agent}\r\n\r\n", want: refused(404, "no_such_route")},
	{name: "route-with-encoded-letter", inv: "I2", source: "RFC 3986 6.2.2.2", on: direct, raw: "GET /%6fpenai/v1/models HTTP/1.1\r\nHost: {agent}\r\n\r\n", want: refused(404, "no_such_route")},
	{name: "route-with-parameter", inv: "I2", source: "CVE-2020-1957", on: direct, raw: "GET /openai;a=b/v1/models HTTP/1.1\r\nHost: {agent}\r\n\r\n", want: refused(404, "no_such_route")},
	{name: "route-behind-empty-segment", inv: "I2", source: "RFC 3986 3.3", on: direct, raw: "GET //openai/v1/models HTTP/1.1\r\nHost: {agent}\r\n\r\n", want: want{status: 404, code: "no_such_route|bad_path"}},
	{name: "route-of-nobody", inv: "I11", source: "CWE-284", on: direct, raw: "GET /nobody/v1/models HTTP/1.1\r\nHost: {agent}\r\n\r\n", want: refused(404, "no_such_route")},
	{name: "no-route", inv: "I11", source: "CWE-284", on: direct, raw: "GET /v1/models HTTP/1.1\r\nHost: {agent}\r\n\r\n", want: refused(404, "no_such_route")},
	{name: "star", inv: "I13", source: "RFC 9112 3.2.4", on: direct, raw: "OPTIONS * HTTP/1.1\r\nHost: {agent}\r\n\r\n", want: refused(404, "no_such_route")},
	{name: "fragment", inv: "I13", source: "RFC 9112 3.2", on: everyHTTP, raw: "GET {/v1/models}#/../admin HTTP/1.1\r\nHost: {host}\r\n\r\n", want: ambiguous()},
	{name: "control-character", inv: "I13", source: "CVE-2019-9740", on: everyHTTP, raw: "GET {/v1/mod}\x01els HTTP/1.1\r\nHost: {host}\r\n\r\n", want: ambiguous()},
	{name: "beyond-ascii", inv: "I13", source: "RFC 3986 2", on: everyHTTP, raw: "GET {/v1/mod}\xc3\xa9ls HTTP/1.1\r\nHost: {host}\r\n\r\n", want: ambiguous()},
}}

// climbing: what could mean another path to somebody else is refused.
func climbing(name, source, path string) kase {
	return kase{name: name, inv: "I2", source: source, on: everyHTTP, send: "GET {/" + path + "} HTTP/1.1\nHost: {host}", want: want{status: 400, code: "bad_path|bad_framing"}}
}

// unchanged: what means one thing arrives byte for byte.
func unchanged(name, path string) kase {
	return kase{name: "kept-" + name, inv: "I2", source: "RFC 9110 7.7", on: everyHTTP, to: "huggingface",
		send: "GET {" + path + "} HTTP/1.1\nHost: {host}", want: attached(line("GET", path))}
}
