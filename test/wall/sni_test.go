package wall_test

import (
	"crypto/tls"
	"io"
	"net/http"
	"strings"
)

const fronting = "CVE-2025-23419" // a session of one virtual server resumed at another

// sni: TLS names another host than the request, at either side.
var sni = &group{class: 2, name: "sni", says: "SNI mismatch, fronting", cases: []kase{
	{name: "client-names-another-provider", inv: "I2", source: "MITRE T1090.004", on: direct, do: helloWith("api.anthropic.com", false)},
	{name: "client-names-nobody-s-host", inv: "I2", source: "MITRE T1090.004", on: direct, do: helloWith("evil.test", false)},
	{name: "client-names-a-longer-host", inv: "I2", source: "MITRE T1090.004", on: direct, do: helloWith("api.openai.com.evil.test", false)},
	{name: "client-names-a-listed-sibling", inv: "I2", source: "MITRE T1090.004", on: direct, do: helloWith("eu.api.openai.com", false)},
	{name: "client-names-it-in-upper-case", inv: "I2", source: "RFC 6066 3", on: direct, do: helloWith("API.OpenAI.COM", true)},
	{name: "client-names-nothing", inv: "I2", source: "RFC 6066 3", on: direct, do: helloWith("", true)},
	{name: "session-of-another-tunnel", inv: "I2", source: fronting, on: direct, do: resumeElsewhere},
	{name: "client-offers-only-http2", inv: "I13", source: "RFC 7301 3.2", on: direct, do: onlyHTTP2},
	{name: "tunnel-without-tls", inv: "I1", source: "RFC 9110 9.3.6", on: direct, do: plainInTunnel},
	{name: "tunnel-with-another-protocol", inv: "I1", source: "VU#150227", on: direct, do: inTunnelSays("SSH-2.0-OpenSSH_9.9\r\n")},
	{name: "tunnel-with-tls-1.1", inv: "I1", source: "RFC 8996", on: direct, do: oldTLS},
	{name: "upstream-expired", inv: "I1", source: "RFC 5280 6.1.3", on: every, to: "expired", send: models, want: unreached(expiredHost)},
	{name: "upstream-not-yet-valid", inv: "I1", source: "RFC 5280 6.1.3", on: route, to: "future", send: models, want: unreached(futureHost)},
	{name: "upstream-of-another-name", inv: "I1", source: "RFC 6125 6.1", on: every, to: "other-name", send: models, want: unreached(otherHost)},
	{name: "upstream-of-unknown-authority", inv: "I1", source: "elazarl/goproxy 1.8.3", on: every, to: "stranger", send: models, want: unreached(strangerHost)},
	{name: "upstream-self-signed", inv: "I1", source: "elazarl/goproxy 1.8.3", on: every, to: "self-signed", send: models, want: unreached(selfHost)},
	{name: "upstream-certificate-for-clients", inv: "I1", source: "RFC 5280 4.2.1.12", on: route, to: "client-cert", send: models, want: unreached(clientHost)},
	{name: "upstream-tls-1.1", inv: "I1", source: "RFC 8996", on: route + " " + connect, to: "tls11", send: models, want: unreached(oldHost)},
	{name: "upstream-without-tls", inv: "I1", source: "RFC 9110 4.2.2", on: every, to: "plain", send: models, want: unreached(plainHost)},
}}

const models = "GET {/v1/models} HTTP/1.1\nHost: {host}"

// unreached: the provider's connection does not get as far as a request, so no key has left.
func unreached(host string) want {
	return want{status: 502, code: "upstream_unreachable", answer: func(r *run, got *reply) {
		if !strings.Contains(got.body, r.p.hostport()) {
			r.t.Errorf("the error does not name %s: %s", r.p.hostport(), got.body)
		}
		_, conns := r.w.net.seen()
		reached := false
		for _, c := range conns {
			reached = reached || c.host() == host
			if c.host() == host && c.sni != "" && c.text.Len() > 0 {
				r.t.Errorf("it was sent %q", c.text.String())
			}
		}
		if !reached {
			r.t.Errorf("nobody came to %s", host)
		}
	}}
}

// helloWith opens a tunnel to OpenAI and names another server in TLS.
func helloWith(name string, taken bool) func(*run) {
	return func(r *run) {
		c, got := r.tunnel("api.openai.com:443")
		if got.StatusCode != http.StatusOK {
			r.t.Fatal(got.Status)
		}
		in, err := r.secure(c, &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if (err == nil) != taken {
			r.t.Fatalf("the handshake: %v", err)
		}
		n := 0
		if taken {
			n = 1
			r.on = connect
			if got := r.ask(in, models); got.StatusCode != http.StatusOK {
				r.t.Errorf("%d %s", got.StatusCode, got.body)
			}
		}
		r.fence()
		r.account(n, nil)
	}
}

// resumeElsewhere takes a tunnel's session to another one.
func resumeElsewhere(r *run) {
	conf := &tls.Config{RootCAs: r.a.roots, ServerName: "api.openai.com", ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	c, _ := r.tunnel("api.openai.com:443")
	in, err := r.secure(c, conf)
	if err != nil {
		r.t.Fatal(err)
	}
	r.on = connect
	if got := r.ask(in, models); got.StatusCode != http.StatusOK { // a ticket would come with it
		r.t.Fatal(got.Status)
	}
	c, _ = r.tunnel("api.anthropic.com:443")
	if _, err := r.secure(c, conf); err == nil {
		r.t.Error("the session of one tunnel was taken up in another")
	}
	r.fence()
	r.account(1, nil)
}

func onlyHTTP2(r *run) {
	c, _ := r.tunnel("api.openai.com:443")
	in, err := r.secure(c, &tls.Config{ServerName: "api.openai.com", NextProtos: []string{"h2"}})
	if err == nil {
		if p := in.Conn.(*tapedTLS).ConnectionState().NegotiatedProtocol; p != "" {
			r.t.Errorf("%q was negotiated", p)
		}
	}
	r.fence()
	r.account(0, nil)
}

func plainInTunnel(r *run) {
	inTunnelSays("GET /v1/models HTTP/1.1\r\nHost: api.openai.com\r\n\r\n")(r)
}

// inTunnelSays writes into a tunnel what is no TLS; nothing of it goes anywhere.
func inTunnelSays(text string) func(*run) {
	return func(r *run) {
		c, got := r.tunnel("api.openai.com:443")
		if got.StatusCode != http.StatusOK {
			r.t.Fatal(got.Status)
		}
		r.write(c, text)
		if b, _ := io.ReadAll(c.br); strings.Contains(string(b), "200 OK") {
			r.t.Errorf("it was answered %q", b)
		}
		r.fence()
		r.account(0, nil)
	}
}

func oldTLS(r *run) {
	c, _ := r.tunnel("api.openai.com:443")
	if _, err := r.secure(c, &tls.Config{ServerName: "api.openai.com", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		r.t.Error("TLS 1.1 was spoken")
	}
	r.fence()
	r.account(0, nil)
}

func hello(name string) *tls.Config { return &tls.Config{ServerName: name} }
