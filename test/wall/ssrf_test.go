package wall_test

import (
	"fmt"
	"net/http"
	"strings"
)

const (
	metadata = "CVE-2021-22214" // a server is made to ask its cloud's metadata service
	rbndr    = "taviso/rbndr"
)

// ssrf: addresses that nobody may be led to.
var ssrf = &group{class: 11, name: "ssrf", says: "SSRF", cases: append(ssrfCases(), []kase{
	{name: "name-of-metadata-connect", inv: "I1", source: metadata, on: direct, agent: "tunnel", names: map[string]string{"meta.test": "169.254.169.254"},
		send: "CONNECT meta.test:80 HTTP/1.1\nHost: meta.test:80", want: refused(403, "address_refused")},
	{name: "name-of-metadata-absolute", inv: "I1", source: metadata, on: absolute + " " + wsAbs, agent: "tunnel", names: map[string]string{"meta.test": "169.254.169.254"},
		send: "GET http://meta.test/latest/meta-data/ HTTP/1.1\nHost: meta.test", want: guarded("address_refused")},
	{name: "name-of-metadata-over-ipv6", inv: "I1", source: metadata, on: direct, agent: "tunnel", names: map[string]string{"meta6.test": "fd00:ec2::254"},
		send: "CONNECT meta6.test:80 HTTP/1.1\nHost: meta6.test:80", want: refused(403, "address_refused")},
	{name: "name-of-metadata-behind-nat64", inv: "I1", source: "RFC 6052 5.1", on: direct, agent: "tunnel", names: map[string]string{"meta64.test": "64:ff9b::a9fe:a9fe"},
		send: "CONNECT meta64.test:80 HTTP/1.1\nHost: meta64.test:80", want: refused(403, "address_refused")},
	{name: "rebound-between-tunnels", inv: "I1", source: rbndr, on: direct, agent: "tunnel", names: map[string]string{"rebind.test": "own 169.254.169.254"}, do: rebound},
	{name: "rebound-between-requests", inv: "I1", source: rbndr, on: direct, agent: "tunnel", names: map[string]string{"rebind2.test": "own 169.254.169.254"}, do: reboundRequests},
	{name: "provider-that-is-metadata", inv: "I1", source: metadata, on: every, to: "rebound", names: map[string]string{"rebound.test": "169.254.169.254"},
		send: models, want: guarded("address_refused|upstream_unreachable")},
	{name: "provider-that-is-metadata-over-ipv6", inv: "I1", source: metadata, on: every, to: "rebound", names: map[string]string{"rebound.test": "fd00:ec2::254"},
		send: models, want: guarded("address_refused|upstream_unreachable")},
	{name: "provider-that-is-the-agent", inv: "I1", source: "RFC 9110 7.6.3", on: direct, agent: "none", do: providerThatIsTheAgent},
	{name: "own-proxy-connect", inv: "I1", source: "RFC 9110 7.6.3", on: direct, agent: "tunnel",
		send: "CONNECT {agent} HTTP/1.1\nHost: {agent}", want: refused(403, "address_refused")},
	{name: "own-proxy-absolute", inv: "I1", source: "RFC 9110 7.6.3", on: direct, agent: "tunnel",
		send: "GET http://{agent}/openai/v1/models HTTP/1.1\nHost: {agent}", want: refused(403, "address_refused")},
	{name: "own-proxy-by-another-loopback", inv: "I1", source: "CVE-2021-29923", on: direct, agent: "tunnel",
		send: "CONNECT 127.0.0.2:{port} HTTP/1.1\nHost: 127.0.0.2:{port}", want: refused(403, "address_refused")},
	{name: "own-proxy-by-ipv6-loopback", inv: "I1", source: "RFC 9110 7.6.3", on: direct, agent: "tunnel",
		send: "CONNECT [::1]:{port} HTTP/1.1\nHost: [::1]:{port}", want: refused(403, "address_refused")},
	{name: "own-proxy-by-name", inv: "I1", source: rbndr, on: direct, agent: "tunnel", names: map[string]string{"own.test": "127.0.0.1"},
		send: "CONNECT own.test:{port} HTTP/1.1\nHost: own.test:{port}", want: refused(403, "address_refused")},
	{name: "own-admin-connect", inv: "I1", source: "RFC 9110 7.6.3", on: direct, agent: "tunnel",
		send: "CONNECT 127.0.0.1:{admin} HTTP/1.1\nHost: 127.0.0.1:{admin}", want: refused(403, "address_refused")},
	{name: "own-admin-absolute", inv: "I1", source: "RFC 9110 7.6.3", on: absolute + " " + wsAbs, agent: "tunnel",
		send: "GET http://127.0.0.1:{admin}/metrics HTTP/1.1\nHost: 127.0.0.1:{admin}", want: guarded("address_refused")},
	{name: "metadata-behind-an-egress-proxy-connect", inv: "I1", source: metadata, on: direct, agent: "egress",
		send: "CONNECT 169.254.169.254:80 HTTP/1.1\nHost: 169.254.169.254:80", want: refused(403, "address_refused")},
	{name: "metadata-behind-an-egress-proxy-absolute", inv: "I1", source: metadata, on: absolute + " " + wsAbs, agent: "egress",
		send: "GET http://169.254.169.254/ HTTP/1.1\nHost: 169.254.169.254", want: guarded("address_refused")},
	{name: "egress-proxy-is-metadata", inv: "I1", source: metadata, on: everyHTTP, agent: "egress", to: "rebound", names: map[string]string{"egress.test": "169.254.169.254"},
		send: models, want: guarded("address_refused|upstream_unreachable")},
	{name: "egress-proxy-sees-no-key", inv: "I1", source: "RFC 9110 9.3.6", on: everyHTTP, agent: "egress", to: "anthropic",
		send: models, want: attached().and(egressSawNoKey)},
	{name: "page-of-another-site", inv: "I2", source: "CVE-2018-5702", on: route + " " + absolute + " " + ws + " " + wsAbs,
		send: models + "\nSec-Fetch-Site: cross-site\nSec-Fetch-Mode: no-cors", want: refused(403, "cross_site")},
	{name: "page-of-another-origin", inv: "I2", source: "CVE-2018-5702", on: route + " " + absolute + " " + ws + " " + wsAbs,
		send: models + "\nOrigin: https://evil.test", want: refused(403, "cross_site")},
	{name: "page-without-origin", inv: "I2", source: "CVE-2018-5702", on: route + " " + absolute + " " + ws + " " + wsAbs,
		send: models + "\nOrigin: null", want: refused(403, "cross_site")},
	{name: "denied-before-it-is-resolved", inv: "I14", source: "CWE-918", on: direct, names: map[string]string{"meta.test": "169.254.169.254"},
		send: "CONNECT meta.test:80 HTTP/1.1\nHost: meta.test:80", want: refused(403, "unmatched_denied")},
}...)}

// ssrfCases: addresses in the form of which there is one.
func ssrfCases() []kase {
	var list []kase
	for _, a := range []struct{ name, host, source string }{
		{"link-local", "169.254.169.254", metadata}, {"link-local-credentials", "169.254.170.2", metadata}, {"link-local-any", "169.254.0.1", "RFC 3927 2.7"},
		{"alibaba", "100.100.100.200", metadata}, {"azure-wire-server", "168.63.129.16", metadata}, {"oracle", "192.0.0.192", metadata},
		{"aws-ipv6", "[fd00:ec2::254]", metadata}, {"google-ipv6", "[fd20:ce::254]", metadata}, {"link-local-ipv6", "[fe80::1]", "RFC 4291 2.5.6"},
		{"nat64", "[64:ff9b::a9fe:a9fe]", "RFC 6052 5.1"}, {"6to4", "[2002:a9fe:a9fe::1]", "RFC 3964 3.1"}, {"ipv4-compatible", "[::a9fe:a9fe]", "RFC 4291 2.5.5.1"},
		{"unspecified", "0.0.0.0", "CVE-2024-24790"}, {"unspecified-ipv6", "[::]", "CVE-2024-24790"}, {"multicast", "224.0.0.1", "RFC 1112 4"},
	} {
		list = append(list,
			kase{name: a.name + "-connect", inv: "I1", source: a.source, on: direct, agent: "tunnel",
				send: fmt.Sprintf("CONNECT %[1]s:80 HTTP/1.1\nHost: %[1]s:80", a.host), want: refused(403, "address_refused")},
			kase{name: a.name + "-absolute", inv: "I1", source: a.source, on: absolute + " " + wsAbs, agent: "tunnel",
				send: fmt.Sprintf("GET http://%[1]s/latest/meta-data/ HTTP/1.1\nHost: %[1]s", a.host), want: guarded("address_refused")})
	}
	return list
}

// guarded: refused with one of the codes, whatever was asked for, and nobody was reached.
func guarded(codes string) want {
	return want{anyhow: true, answer: func(r *run, got *reply) {
		code := got.Header.Get("Postern-Error")
		if !strings.Contains("|"+codes+"|", "|"+code+"|") || got.StatusCode != http.StatusForbidden && got.StatusCode != http.StatusBadGateway {
			r.t.Errorf("the answer is %d %q (%s), want %s", got.StatusCode, got.body, code, codes)
		}
	}}
}

// egressSawNoKey: what a company's proxy was sent is CONNECTs and TLS.
func egressSawNoKey(r *run, _ *reply) {
	r.w.net.mu.Lock()
	defer r.w.net.mu.Unlock()
	came := 0
	for _, c := range r.w.net.ever {
		if c.to == "egress.test:3128" {
			came++
			r.keyless(c.text.String(), "the egress proxy")
		}
	}
	if came == 0 {
		r.t.Error("nobody came to the egress proxy")
	}
}

// rebound: what a name led to when the first tunnel was opened says nothing about the second.
func rebound(r *run) {
	if _, got := r.tunnel("rebind.test:443"); got.StatusCode != http.StatusOK {
		r.t.Errorf("the first: %d %s", got.StatusCode, got.body)
	}
	if _, got := r.tunnel("rebind.test:443"); got.StatusCode != http.StatusForbidden {
		r.t.Errorf("the second: %d", got.StatusCode)
	}
	r.fence()
	r.account(0, nil, "rebind.test:443")
}

func reboundRequests(r *run) {
	r.w.net.mu.Lock()
	r.w.net.answers = map[string]answer{"rebind2.test": saysAndEnds(strings.Replace(plainAnswer, "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1))}
	r.w.net.mu.Unlock()
	c := r.dial()
	for i, want := range []int{http.StatusOK, http.StatusForbidden} {
		if got := r.ask(c, "GET http://rebind2.test/ HTTP/1.1\nHost: rebind2.test"); got.StatusCode != want {
			r.t.Errorf("request %d: %d %s", i+1, got.StatusCode, got.body)
		}
	}
	r.fence()
	r.account(0, nil, "rebind2.test:80")
}

// providerThatIsTheAgent: a configured host whose name leads back to the agent's own port.
func providerThatIsTheAgent(r *run) {
	r.w.net.names.give("loop.test", "127.0.0.1")
	const own = "127.0.0.1:18700"
	r.a = r.w.start(r.t, r.w.copyStore(r.t), r.w.yamlOf(
		[]string{`{name: openai, hosts: ["loop.test:18700"], base_url: "https://loop.test:18700"}`}, "listen: {proxy: "+own+", admin: 127.0.0.1:0}", "ca: {dir: ca}"))
	r.a.Ready(r.t)
	for _, on := range []string{route, ws} {
		r.on = on
		got := r.ask(r.dial(), models)
		if code := got.Header.Get("Postern-Error"); got.StatusCode != http.StatusBadGateway && got.StatusCode != http.StatusForbidden || code != "address_refused" && code != "upstream_unreachable" {
			r.t.Errorf("%s: %d %s", on, got.StatusCode, code)
		}
	}
	r.account(0, nil)
}
