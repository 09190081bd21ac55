package wall_test

import (
	"fmt"
	"strings"
)

const (
	curlRedirect = "CVE-2018-1000007"
	goRedirect   = "CVE-2024-45336"
)

// redirect: a key does not follow where a provider points.
var redirect = &group{class: 6, name: "redirect", says: "redirects followed with the key", cases: append(redirectCases(), []kase{
	{name: "to-plain-http", inv: "I1", source: "CVE-2018-18074", on: everyHTTP, send: models,
		says: points(302, "http://api.openai.com/v1/models"), want: passedOn(302)},
	{name: "to-another-provider", inv: "I1", source: goRedirect, on: everyHTTP, send: models,
		says: points(307, "https://api.anthropic.com/v1/models"), want: passedOn(307)},
	{name: "to-metadata", inv: "I1", source: "CWE-918", on: everyHTTP, send: models,
		says: points(302, "http://169.254.169.254/latest/meta-data/"), want: passedOn(302)},
	{name: "of-a-post", inv: "I1", source: goRedirect, on: everyHTTP,
		send: "POST {/v1/chat/completions} HTTP/1.1\nHost: {host}\nContent-Length: 5", body: "hello",
		says: points(308, "https://elsewhere.test/v1"), want: passedOn(308)},
	{name: "refresh-field", inv: "I1", source: "HTML Standard 4.2.5.3", on: everyHTTP, send: models,
		says: map[string]answer{"api.openai.com": says("HTTP/1.1 200 OK\r\nRefresh: 0; url=https://elsewhere.test/\r\nContent-Length: 0\r\n\r\n")}, want: passedOn(200)},
	{name: "of-an-upgrade", inv: "I1", source: "RFC 6455 4.1", on: everyWS, send: models,
		says: points(302, "https://elsewhere.test/v1"), want: passedOn(302)},
	{name: "over-http2", inv: "I1", source: goRedirect, on: everyHTTP + " " + tunnelH2, to: "h2", send: models,
		says: map[string]answer{h2Host: says("HTTP/1.1 302 Found\r\nLocation: https://elsewhere.test/\r\nContent-Length: 0\r\n\r\n")}, want: passedOn(302)},
	{name: "back-to-itself-stays-on-the-route", inv: "I1", source: "RFC 9110 10.2.2", on: route, send: models,
		says: points(302, "https://api.openai.com/v1/elsewhere"), want: passedOn(302).and(location("http://{agent}/openai/v1/elsewhere"))},
	{name: "back-to-itself-stays-in-the-tunnel", inv: "I1", source: "RFC 9110 10.2.2", on: connect, send: models,
		says: points(302, "https://api.openai.com/v1/elsewhere"), want: passedOn(302).and(location("https://api.openai.com/v1/elsewhere"))},
	{name: "to-userinfo-is-not-rewritten", inv: "I1", source: "RFC 3986 7.6", on: route, send: models,
		says: points(302, "https://api.openai.com@evil.test/v1"), want: passedOn(302).and(location("https://api.openai.com@evil.test/v1"))},
	{name: "of-the-probe", inv: "I1", source: curlRedirect, on: direct, agent: "none", do: probeRedirect},
	{name: "of-vault", inv: "I1", source: "CVE-2018-1000007", on: direct, agent: "none", do: vaultRedirect},
}...)}

// redirectCases: every status that a client follows by itself, to a host of somebody else's.
func redirectCases() []kase {
	var list []kase
	for _, status := range []int{301, 302, 303, 307, 308} {
		list = append(list, kase{name: fmt.Sprintf("%d", status), inv: "I1", source: curlRedirect, on: everyHTTP, send: models,
			says: points(status, "https://elsewhere.test/v1/models"), want: passedOn(status)})
	}
	return list
}

// points is OpenAI answering with a redirect.
func points(status int, to string) map[string]answer {
	return map[string]answer{"api.openai.com": says(fmt.Sprintf("HTTP/1.1 %d Elsewhere\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n", status, to))}
}

// passedOn: the provider was asked once, and the client has its answer.
func passedOn(status int) want { return want{status: status, n: 1} }

func location(want string) func(*run, *reply) {
	return func(r *run, got *reply) {
		if l := got.Header.Get("Location"); l != r.fill(want) {
			r.t.Errorf("Location is %q, want %q", l, r.fill(want))
		}
	}
}

// probeRedirect: a probe carries the key, and goes no further than its host.
func probeRedirect(r *run) {
	r.w.net.reset(map[string]answer{"api.openai.com": says("HTTP/1.1 307 Elsewhere\r\nLocation: https://elsewhere.test/v1/models\r\nContent-Length: 0\r\n\r\n")})
	r.a = r.w.start(r.t, r.w.copyStore(r.t), r.w.yaml(r.w.dir))
	r.a.Ready(r.t)
	requests, conns := r.w.net.seen()
	probes := 0
	for _, q := range requests {
		r.noStrayKeys(q)
		if q.conn.host() == "api.openai.com" && found(string(q.raw), r.p.key) != "" {
			probes++
		}
	}
	if probes == 0 {
		r.t.Error("there was no probe")
	}
	for _, c := range conns {
		if c.host() == "elsewhere.test" {
			r.t.Error("the probe was followed by a connection to elsewhere.test")
		}
	}
}

// vaultRedirect: the agent's own login goes to Vault, and not to where a false Vault points.
func vaultRedirect(r *run) {
	const login = "wall-not-a-vault-token-0123456789abcdef"
	r.w.net.reset(map[string]answer{"vault.test": says("HTTP/1.1 307 Temporary Redirect\r\nLocation: https://elsewhere.test:8200/v1/\r\nContent-Length: 0\r\n\r\n")})
	dir := r.w.copyStore(r.t)
	r.w.write(dir, "token", login+"\n")
	r.a = r.w.start(r.t, dir, r.w.yaml(dir, fmt.Sprintf("egress: {ca_file: %q}", r.w.dir+"/world.pem"),
		fmt.Sprintf("store: {vault: {address: \"https://vault.test:8200\", ca_file: %q, auth: {token: {file: token}}, poll: 1s}}", r.w.dir+"/world.pem")))
	r.until("the agent has asked its Vault", func() bool {
		requests, _ := r.w.net.seen()
		asked := 0
		for _, q := range requests {
			if q.conn.host() == "vault.test" {
				asked++
			}
		}
		return asked > 1
	})
	requests, conns := r.w.net.seen()
	for _, q := range requests {
		if q.conn.host() != "vault.test" && strings.Contains(string(q.raw), login) {
			r.t.Errorf("%s was sent the token", q.conn.to)
		}
	}
	for _, c := range conns {
		if c.host() == "elsewhere.test" {
			r.t.Error("the redirect was followed")
		}
	}
}
