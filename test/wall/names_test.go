package wall_test

import "fmt"

// spelling is a host that two parsers could read differently.
type spelling struct{ name, host, source string }

var spellings = []spelling{
	{"trailing-dot", "api.openai.com.", "CVE-2022-24825"},
	{"brackets", "[api.openai.com]", "CVE-2022-29188"},
	{"userinfo", "user@api.openai.com", "RFC 3986 7.6"},
	{"userinfo-with-password", "user:secret@api.openai.com", "RFC 3986 7.6"},
	{"userinfo-that-is-a-provider", "api.openai.com@evil.test", "RFC 3986 7.6"},
	{"backslash", `api.openai.com\@evil.test`, "CVE-2021-27515"},
	{"encoded-nul", "api.openai.com%00.evil.test", "CVE-2009-2408"},
	{"encoded-dot", "api%2eopenai%2ecom", "RFC 3986 3.2.2"},
	{"encoded-at", "evil.test%40api.openai.com", "RFC 3986 3.2.2"},
	{"underscored-punycode", "xn--.api.openai.com", "RFC 5890 2.3.1"},
	{"empty-label", "api..openai.com", "RFC 1035 2.3.1"},
	{"leading-dot", ".api.openai.com", "RFC 1035 2.3.1"},
	{"semicolon", "api.openai.com;evil.test", "RFC 3986 3.2.2"},
	{"comma", "api.openai.com,evil.test", "RFC 3986 3.2.2"},
	{"star", "*.api.openai.com", "CWE-155"},
	{"decimal-address", "2852039166", "CVE-2021-28918"},
	{"hexadecimal-address", "0xa9fea9fe", "CVE-2021-28918"},
	{"octal-address", "0251.0376.0251.0376", "CVE-2021-29923"},
	{"address-with-leading-zeros", "169.254.169.0254", "CVE-2021-29923"},
	{"short-address", "169.16689662", "CVE-2021-28918"},
	{"mapped-address", "[::ffff:169.254.169.254]", "CVE-2024-24790"},
	{"zone", "[fe80::1%25lo]", "CVE-2025-22870"},
	{"zone-that-is-a-provider", "[::1%25.api.openai.com]", "CVE-2025-22870"},
	{"only-a-port", "", "RFC 9112 3.2.3"},
}

// spelled: a host of which two parsers could make two is refused before anybody
// is asked, even where hosts that are not configured are passed on.
var spelled = &group{class: 3, name: "name", says: "hostname parsers", cases: append(spelledCases(), []kase{
	{name: "upper-case-connect", inv: "I2", source: "RFC 3986 6.2.2.1", on: direct, do: upperCase},
	{name: "upper-case-absolute", inv: "I2", source: "RFC 3986 6.2.2.1", on: absolute,
		send: "GET HTTPS://API.OpenAI.COM/v1/models HTTP/1.1\nHost: API.OpenAI.COM", want: attached(field("Host", "api.openai.com"))},
	{name: "upper-case-inside", inv: "I2", source: "RFC 3986 6.2.2.1", on: inTunnel,
		send: "GET {/v1/models} HTTP/1.1\nHost: API.OpenAI.COM", want: attached(field("Host", "api.openai.com"))},
	{name: "trailing-dot-inside", inv: "I2", source: "CVE-2022-24825", on: inTunnel,
		send: "GET {/v1/models} HTTP/1.1\nHost: api.openai.com.", want: refused(421, "host_mismatch")},
	{name: "userinfo-inside", inv: "I2", source: "RFC 3986 7.6", on: inTunnel,
		send: "GET {/v1/models} HTTP/1.1\nHost: user@api.openai.com", want: want{status: 421, code: "host_mismatch|bad_framing"}},
	{name: "own-port-inside", inv: "I2", source: "RFC 9112 3.2", on: inTunnel,
		send: "GET {/v1/models} HTTP/1.1\nHost: api.openai.com:443", want: attached(field("Host", "api.openai.com"))},
	{name: "port-with-leading-zero-inside", inv: "I2", source: "RFC 3986 3.2.3", on: inTunnel,
		send: "GET {/v1/models} HTTP/1.1\nHost: api.openai.com:0443", want: refused(421, "host_mismatch")},
	{name: "nul-in-target", inv: "I13", source: "CVE-2009-2408", on: direct, agent: "tunnel",
		raw: "CONNECT api.openai.com\x00.evil.test:443 HTTP/1.1\r\nHost: api.openai.com:443\r\n\r\n", want: ambiguous()},
	{name: "idn-in-target", inv: "I13", source: "CVE-2019-9636", on: direct, agent: "tunnel",
		raw: "CONNECT api。openai。com:443 HTTP/1.1\r\nHost: api.openai.com:443\r\n\r\n", want: ambiguous()},
	{name: "fullwidth-in-absolute", inv: "I13", source: "CVE-2019-9636", on: direct, agent: "tunnel",
		raw: "GET http://ａpi.openai.com/v1/models HTTP/1.1\r\nHost: api.openai.com\r\n\r\n", want: ambiguous()},
	{name: "idn-inside", inv: "I2", source: "CVE-2019-9636", on: connect,
		raw: "GET /v1/models HTTP/1.1\r\nHost: api.openai.com\xe3\x80\x82\r\n\r\n", want: want{status: 421, code: "host_mismatch|bad_framing"}},
	{name: "two-ports", inv: "I2", source: "RFC 3986 3.2", on: direct, agent: "tunnel",
		send: "CONNECT api.openai.com:443:443 HTTP/1.1\nHost: api.openai.com:443", want: want{status: 400, code: "bad_host|bad_framing"}},
	{name: "port-with-leading-zero", inv: "I2", source: "RFC 3986 3.2.3", on: direct, agent: "tunnel",
		send: "CONNECT api.openai.com:0443 HTTP/1.1\nHost: api.openai.com:0443", want: want{status: 400, code: "bad_host|bad_framing"}},
	{name: "port-too-large", inv: "I2", source: "CWE-190", on: direct, agent: "tunnel",
		send: "CONNECT api.openai.com:65979 HTTP/1.1\nHost: api.openai.com:65979", want: want{status: 400, code: "bad_host|bad_framing"}},
	{name: "port-with-sign", inv: "I2", source: "CVE-2022-24761", on: direct, agent: "tunnel",
		send: "CONNECT api.openai.com:+443 HTTP/1.1\nHost: api.openai.com:443", want: want{status: 400, code: "bad_host|bad_framing"}},
	{name: "no-port", inv: "I2", source: "RFC 9112 3.2.3", on: direct, agent: "tunnel",
		send: "CONNECT api.openai.com HTTP/1.1\nHost: api.openai.com", want: want{status: 400, code: "bad_host|bad_framing"}},
	{name: "path-in-connect", inv: "I2", source: "RFC 9112 3.2.3", on: direct, agent: "tunnel",
		send: "CONNECT api.openai.com:443/v1 HTTP/1.1\nHost: api.openai.com:443", want: want{status: 400, code: "bad_host|bad_framing"}},
	{name: "url-in-connect", inv: "I2", source: "RFC 9112 3.2.3", on: direct, agent: "tunnel",
		send: "CONNECT https://api.openai.com:443 HTTP/1.1\nHost: api.openai.com:443", want: want{status: 400, code: "bad_host|bad_framing"}},
	{name: "fragment-before-host", inv: "I2", source: "CVE-2016-8624", on: direct, agent: "tunnel",
		send: "GET http://evil.test#@api.openai.com/v1/models HTTP/1.1\nHost: api.openai.com", want: want{status: 400, code: "bad_host|bad_framing"}},
	{name: "route-host-as-name", inv: "I2", source: "CVE-2018-5702", on: route + " " + ws,
		send: "GET {/v1/models} HTTP/1.1\nHost: localhost:{port}", want: refused(421, "host_not_allowed")},
	{name: "route-host-with-trailing-dot", inv: "I2", source: "CVE-2018-5702", on: route + " " + ws,
		send: "GET {/v1/models} HTTP/1.1\nHost: 127.0.0.1.:{port}", want: refused(421, "host_not_allowed")},
	{name: "route-host-in-another-notation", inv: "I2", source: "CVE-2021-29923", on: route + " " + ws,
		send: "GET {/v1/models} HTTP/1.1\nHost: 127.1:{port}", want: refused(421, "host_not_allowed")},
	{name: "route-host-with-userinfo", inv: "I2", source: "RFC 3986 7.6", on: route,
		send: "GET {/v1/models} HTTP/1.1\nHost: a@{agent}", want: want{status: 421, code: "host_not_allowed|bad_framing"}},
}...)}

// spelledCases asks for each spelling in CONNECT and in an absolute URL.
func spelledCases() []kase {
	var list []kase
	for _, s := range spellings {
		no := want{status: 400, code: "bad_host|bad_framing"}
		list = append(list,
			kase{name: s.name + "-connect", inv: "I2", source: s.source, on: direct, agent: "tunnel",
				send: fmt.Sprintf("CONNECT %[1]s:443 HTTP/1.1\nHost: %[1]s:443", s.host), want: no},
			kase{name: s.name + "-absolute", inv: "I2", source: s.source, on: absolute, agent: "tunnel",
				send: fmt.Sprintf("GET http://%s/v1/models HTTP/1.1\nHost: api.openai.com", s.host), want: no})
	}
	return list
}

// upperCase: names are the same in any case; the provider sees them in one.
func upperCase(r *run) {
	c, got := r.tunnel("API.OpenAI.COM:443")
	if got.StatusCode != 200 {
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
