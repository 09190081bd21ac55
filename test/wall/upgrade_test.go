package wall_test

import (
	"net/http"
	"strings"
)

const (
	h2c       = "BishopFox/h2csmuggler"
	wsSmuggle = "0ang3el/websocket-smuggle"
)

// upgrade: only WebSocket, and bytes are relayed only once the provider agreed.
var upgrade = &group{class: 8, name: "upgrade", says: "upgrades", cases: []kase{
	{name: "h2c", inv: "I13", source: h2c, on: everyHTTP,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nConnection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", want: attached()},
	{name: "h2c-without-connection", inv: "I13", source: h2c, on: everyHTTP,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", want: attached()},
	{name: "h2c-beside-websocket", inv: "I13", source: h2c, on: everyHTTP,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nConnection: Upgrade\nUpgrade: websocket, h2c\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", want: attached()},
	{name: "two-upgrade-fields", inv: "I13", source: h2c, on: everyHTTP,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nConnection: Upgrade\nUpgrade: websocket\nUpgrade: h2c\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", want: attached()},
	{name: "tls", inv: "I13", source: "RFC 2817 3", on: everyHTTP,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nConnection: Upgrade\nUpgrade: TLS/1.0", want: attached()},
	{name: "connect-udp", inv: "I13", source: "RFC 9298 3.2", on: everyHTTP,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nConnection: Upgrade\nUpgrade: connect-udp\nCapsule-Protocol: ?1", want: attached()},
	{name: "websocket-by-post", inv: "I13", source: "RFC 6455 4.1", on: everyHTTP,
		send: "POST {/v1/models} HTTP/1.1\nHost: {host}\n" + strings.TrimSuffix(handshake, "\n") + "\nContent-Length: 0", want: attached()},
	{name: "websocket-with-a-body", inv: "I13", source: "RFC 6455 4.1", on: everyHTTP,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\n" + handshake + "Content-Length: 5", body: "hello", want: attached(body("hello"))},
	{name: "websocket-without-connection", inv: "I13", source: "RFC 6455 4.1", on: everyHTTP,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", want: attached()},
	{name: "relayed-after-101", inv: "I2", source: "RFC 6455 4.2.2", on: everyWS, do: relayed},
	{name: "refused-and-then-a-request", inv: "I3", source: wsSmuggle, on: everyWS, do: afterRefusal("HTTP/1.1 426 Upgrade Required\r\nSec-WebSocket-Version: 13\r\nContent-Length: 0\r\n\r\n", 426)},
	{name: "answered-200-and-then-a-request", inv: "I3", source: wsSmuggle, on: everyWS, do: afterRefusal(plainAnswer, 200)},
	{name: "refused-and-then-frames", inv: "I13", source: wsSmuggle, on: everyWS, do: framesAfterRefusal},
	{name: "agreed-to-h2c", inv: "I13", source: h2c, on: everyWS, send: models,
		says: map[string]answer{"api.openai.com": saysAndEnds("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")}, want: badAnswer()},
	{name: "agreed-to-nothing-named", inv: "I13", source: "RFC 6455 4.1", on: everyWS, send: models,
		says: map[string]answer{"api.openai.com": saysAndEnds("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n")}, want: badAnswer()},
	{name: "connect-in-a-tunnel", inv: "I2", source: "RFC 9110 9.3.6", on: connect,
		send: "CONNECT evil.test:443 HTTP/1.1\nHost: evil.test:443", want: want{status: 400, code: "bad_host|bad_framing"}},
	{name: "connect-in-a-tunnel-to-itself", inv: "I2", source: "RFC 9110 9.3.6", on: connect,
		send: "CONNECT api.openai.com:443 HTTP/1.1\nHost: api.openai.com:443", want: want{status: 400, code: "bad_host|bad_framing"}},
	{name: "connect-with-a-path", inv: "I13", source: "RFC 9110 9.3.6", on: connect,
		send: "CONNECT /v1/models HTTP/1.1\nHost: api.openai.com\nTransfer-Encoding: chunked", body: "0\r\n\r\n", want: want{status: 400, code: "bad_host|bad_framing"}},
	{name: "of-a-host-that-is-not-ours", inv: "I13", source: wsSmuggle, on: direct, agent: "tunnel",
		send: "GET http://elsewhere.test/ HTTP/1.1\nHost: elsewhere.test\n" + strings.TrimSuffix(handshake, "\n"), want: reachedOnly(200, "elsewhere.test:80")},
}}

// badAnswer: the provider was asked, and what it said is not passed on.
func badAnswer() want { return want{status: 502, code: "upstream_unreachable", n: 1} }

// relayed: what the client writes after the 101 arrives as it is, and only then.
func relayed(r *run) {
	r.conn = r.open()
	got := r.ask(r.conn, models+"\n"+strings.TrimSuffix(handshake, "\n"))
	if got.StatusCode != http.StatusSwitchingProtocols || got.Header.Get("Upgrade") != "websocket" {
		r.t.Fatalf("%d %s", got.StatusCode, got.body)
	}
	frames := "\x81\x85abcd" + hidden + "\x00\xff"
	r.write(r.conn, frames)
	r.until("the frames have come", func() bool {
		requests, _ := r.w.net.seen()
		r.w.net.mu.Lock()
		defer r.w.net.mu.Unlock()
		return len(requests) == 1 && strings.HasSuffix(requests[0].conn.text.String(), "\r\n\r\n"+frames)
	})
	r.fence()
	r.account(1, nil)
}

// afterRefusal: a provider that does not upgrade is still asked request by request,
// each without what the client calls a credential.
func afterRefusal(text string, status int) func(*run) {
	return func(r *run) {
		r.w.net.reset(map[string]answer{"api.openai.com": says(text)})
		r.conn = r.open()
		if got := r.ask(r.conn, models+"\n"+handshake+"X-First: yes"); got.StatusCode != status {
			r.t.Fatalf("%d", got.StatusCode)
		}
		r.w.net.mu.Lock()
		r.w.net.answers = nil
		r.w.net.mu.Unlock()
		if got := r.ask(r.conn, "GET {/v1/second} HTTP/1.1\nHost: {host}\nAuthorization: Bearer {client}\nX-Api-Key: {client}"); got.StatusCode != http.StatusOK {
			r.t.Errorf("the next: %d %s", got.StatusCode, got.body)
		}
		r.fence()
		r.account(2, nil)
	}
}

// framesAfterRefusal: bytes that are no request are refused, and reach nobody.
func framesAfterRefusal(r *run) {
	r.w.net.reset(map[string]answer{"api.openai.com": says("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")})
	r.conn = r.open()
	r.write(r.conn, r.fill(strings.ReplaceAll(models+"\n"+handshake, "\n", "\r\n")+"\r\n"+"\x81\x85WXYZ\x01\x02\r\n\r\n"))
	if got := r.read(r.conn, "GET"); got.StatusCode != http.StatusForbidden {
		r.t.Errorf("the upgrade: %d", got.StatusCode)
	}
	if got := r.read(r.conn, "GET"); got.StatusCode != http.StatusBadRequest {
		r.t.Errorf("the frames: %d", got.StatusCode)
	}
	r.fence()
	r.account(1, func(r *run, q *request) {
		r.w.net.mu.Lock()
		defer r.w.net.mu.Unlock()
		if strings.Contains(q.conn.text.String(), "WXYZ") {
			r.t.Errorf("the frames have reached the provider: %q", q.conn.text.String())
		}
	})
}
