package wall_test

import (
	"crypto/tls"
	"net/http"
	"strings"
)

const (
	openSandbox = "OpenSandbox#1193"
	targetWins  = "RFC 9112 3.2.2"
)

// host: the request names one host and would be sent to another.
var host = &group{class: 1, name: "host", says: "host is not the dialled one", cases: []kase{
	{name: "connect-inner-host-mismatch", inv: "I2", source: openSandbox, on: inTunnel,
		send: "GET {/v1/models} HTTP/1.1\nHost: api.anthropic.com", want: refused(421, "host_mismatch")},
	{name: "connect-inner-host-unknown", inv: "I2", source: openSandbox, on: inTunnel,
		send: "GET {/v1/models} HTTP/1.1\nHost: evil.test", want: refused(421, "host_mismatch")},
	{name: "connect-inner-other-port", inv: "I2", source: openSandbox, on: inTunnel,
		send: "GET {/v1/models} HTTP/1.1\nHost: api.openai.com:8443", want: refused(421, "host_mismatch")},
	{name: "connect-inner-sibling-host", inv: "I2", source: openSandbox, on: inTunnel, to: "huggingface",
		send: "GET {/v1/models} HTTP/1.1\nHost: huggingface.co", want: refused(421, "host_mismatch")},
	{name: "connect-inner-sibling-of-wildcard", inv: "I2", source: openSandbox, on: direct, do: siblingOfWildcard},
	{name: "connect-inner-absolute-other-host", inv: "I2", source: targetWins, on: inTunnel,
		send: "GET https://api.anthropic.com/v1/models HTTP/1.1\nHost: api.openai.com", want: refused(421, "host_mismatch")},
	{name: "connect-inner-absolute-beside-other-host", inv: "I2", source: targetWins, on: connect,
		send: "GET https://api.openai.com/v1/models HTTP/1.1\nHost: api.openai.com", want: attached(line("GET", "/v1/models"))},
	{name: "connect-inner-absolute-plain", inv: "I2", source: targetWins, on: inTunnel,
		send: "GET http://api.openai.com/v1/models HTTP/1.1\nHost: api.openai.com", want: refused(421, "host_mismatch")},
	{name: "connect-target-beats-host", inv: "I2", source: targetWins, on: direct, do: targetBeatsHost},
	{name: "absolute-target-beats-host", inv: "I2", source: targetWins, on: absolute + " " + wsAbs,
		send: "GET {/v1/models} HTTP/1.1\nHost: api.anthropic.com", want: attached(field("Host", "api.openai.com"))},
	{name: "absolute-host-of-nobody", inv: "I2", source: targetWins, on: absolute + " " + wsAbs, agent: "tunnel",
		send: "GET {/v1/models} HTTP/1.1\nHost: evil.test", want: attached(field("Host", "api.openai.com"))},
	{name: "absolute-two-hosts-on-one-connection", inv: "I2", source: openSandbox, on: direct, do: twoHostsOnOneConnection},
	{name: "absolute-unknown-host", inv: "I1", source: openSandbox, on: direct,
		send: "GET http://evil.test/v1/models HTTP/1.1\nHost: api.openai.com", want: refused(403, "unmatched_denied")},
	{name: "absolute-unknown-host-tunnelled-without-key", inv: "I1", source: openSandbox, on: direct, agent: "tunnel",
		send: "GET http://evil.test/v1/models HTTP/1.1\nHost: api.openai.com", want: reachedOnly(200, "evil.test:80")},
	{name: "route-under-another-host", inv: "I2", source: "CVE-2018-5702", on: route + " " + ws,
		send: "GET {/v1/models} HTTP/1.1\nHost: evil.test", want: refused(421, "host_not_allowed")},
	{name: "route-under-the-provider-s-host", inv: "I2", source: openSandbox, on: route + " " + ws,
		send: "GET {/v1/models} HTTP/1.1\nHost: api.openai.com", want: refused(421, "host_not_allowed")},
	{name: "route-without-host", inv: "I13", source: "RFC 9112 3.2", on: every,
		send: "GET {/v1/models} HTTP/1.1\nAccept: */*", want: ambiguous()},
	{name: "forwarded-host-fields", inv: "I2", source: "RFC 7239 8.1", on: every,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nX-Forwarded-Host: evil.test\nForwarded: host=evil.test\nX_Forwarded_Host: evil.test\nX-Forwarded-Proto: http",
		want: attached(field("X-Forwarded-Host", ""), field("Forwarded", ""), field("X-Forwarded-Proto", ""))},
	{name: "wildcard-covers-one-label-only", inv: "I1", source: "RFC 6125 6.4.3", on: direct,
		send: "CONNECT a.b.api.openai.com:443 HTTP/1.1\nHost: a.b.api.openai.com:443", want: refused(403, "unmatched_denied")},
	{name: "host-that-ends-like-a-provider-s", inv: "I1", source: "CWE-183", on: direct,
		send: "CONNECT evilapi.openai.com:443 HTTP/1.1\nHost: evilapi.openai.com:443", want: refused(403, "unmatched_denied")},
	{name: "host-that-begins-like-a-provider-s", inv: "I1", source: "CWE-183", on: direct,
		send: "CONNECT api.openai.com.evil.test:443 HTTP/1.1\nHost: api.openai.com.evil.test:443", want: refused(403, "unmatched_denied")},
	{name: "authority-over-http2", inv: "I2", source: openSandbox, on: everyHTTP, to: "h2",
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\n:authority: evil.test", want: ambiguous()},
	{name: "authority-over-http2-is-the-host", inv: "I2", source: openSandbox, on: everyHTTP + " " + tunnelH2, to: "h2",
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nX-Host: evil.test", want: attached(field("Host", h2Host))},
}}

// siblingOfWildcard: both names are the provider's, but only one is the tunnel's.
func siblingOfWildcard(r *run) {
	c, got := r.tunnel("eu.api.openai.com:443")
	if got.StatusCode != http.StatusOK {
		r.t.Fatal(got.Status)
	}
	in, err := r.secure(c, &tls.Config{ServerName: "eu.api.openai.com"})
	if err != nil {
		r.t.Fatal(err)
	}
	if got := r.ask(in, "GET /v1/models HTTP/1.1\nHost: us.api.openai.com"); got.StatusCode != 421 {
		r.t.Errorf("another label: %d", got.StatusCode)
	}
	if got := r.ask(in, "GET /v1/models HTTP/1.1\nHost: eu.api.openai.com"); got.StatusCode != 200 {
		r.t.Errorf("its own label: %d %s", got.StatusCode, got.body)
	}
	r.fence()
	r.account(1, func(r *run, q *request) {
		if q.conn.to != "eu.api.openai.com:443" {
			r.t.Errorf("it went to %s", q.conn.to)
		}
	})
}

// targetBeatsHost: the Host of a CONNECT means nothing, the tunnel is to its target.
func targetBeatsHost(r *run) {
	c := r.dial()
	r.write(c, "CONNECT api.openai.com:443 HTTP/1.1\r\nHost: api.anthropic.com:443\r\n\r\n")
	if got := r.read(c, "CONNECT"); got.StatusCode != http.StatusOK {
		r.t.Fatal(got.Status)
	}
	if _, err := r.secure(c, &tls.Config{ServerName: "api.anthropic.com"}); err == nil {
		r.t.Error("the tunnel is one to its Host")
	}
	r.on = connect
	in := r.open()
	for host, status := range map[string]int{"api.anthropic.com": 421, "api.openai.com": 200} {
		if got := r.ask(in, "GET /v1/models HTTP/1.1\nHost: "+host); got.StatusCode != status {
			r.t.Errorf("Host %s: %d", host, got.StatusCode)
		}
	}
	r.fence()
	r.account(1, nil)
}

// twoHostsOnOneConnection: each request has its own host's key.
func twoHostsOnOneConnection(r *run) {
	c := r.dial()
	for _, name := range []string{"openai", "anthropic", "openai", "gemini"} {
		r.p, r.on = r.w.providers[name], absolute
		if got := r.ask(c, "GET {/v1/models} HTTP/1.1\nHost: {host}"); got.StatusCode != 200 {
			r.t.Errorf("%s: %d", name, got.StatusCode)
		}
	}
	requests, _ := r.w.net.seen()
	var to []string
	for _, q := range requests {
		r.p = r.w.owner(q.conn.to)
		r.noStrayKeys(q)
		r.inOrder(q)
		to = append(to, r.p.name)
	}
	if got := strings.Join(to, " "); got != "openai anthropic openai gemini" {
		r.t.Errorf("asked were %s", got)
	}
}
