package wall_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// echo: a provider says the key back, and the client must not hear it. Every case
// is also held to what all are: no form of any key is in any byte that a client received.
var echo = &group{class: 10, name: "echo", says: "the key said back", cases: []kase{
	{name: "trace", inv: "I5", source: "RFC 9110 9.3.8", on: everyHTTP,
		send: "TRACE {/v1/models} HTTP/1.1\nHost: {host}", says: openai("HTTP/1.1 200 OK\r\nContent-Type: message/http\r\nContent-Length: {rawlen}\r\n\r\n{raw}"),
		want: attached().and(masked)},
	{name: "error-body", inv: "I5", source: "CWE-209", on: everyHTTP, send: models,
		says: openai("HTTP/1.1 400 Bad Request\r\nContent-Length: {len}\r\n\r\n{key}"), want: want{status: 400, n: 1, answer: masked}},
	{name: "refusal-body", inv: "I5", source: "CWE-209", on: everyHTTP, send: models,
		says: openai("HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{size}\r\n{key}\r\n0\r\n\r\n"), want: want{status: 401, n: 1, answer: masked}},
	said("json", `{"error": "bad key: {keyjson}"}`), said("base64", "{key64}"), said("base64-of-the-header", "{bearer64}"),
	said("base64url", "{keyurl64}"), said("percent", "?key={keyquery}"), said("percent-of-every-byte", "{keypercent}"),
	field5("set-cookie", "Set-Cookie: k={key}; Path=/"), field5("location", "Location: https://elsewhere.test/?key={keyquery}"),
	field5("www-authenticate", `WWW-Authenticate: Bearer error="{key}"`), field5("own-field", "X-Echo: {key64}"), field5("link", "Link: <https://elsewhere.test/{key}>; rel=next"),
	field5("two-of-a-name", "X-Echo: a\r\nX-Echo: {key}"),
	{name: "reason-phrase", inv: "I5", source: "RFC 9112 4", on: everyHTTP, send: models,
		says: openai("HTTP/1.1 400 Bad key {key}\r\nContent-Length: 0\r\n\r\n"), want: want{status: 400, n: 1}},
	{name: "field-name", inv: "I5", source: "RFC 9110 5.1", on: everyHTTP, send: models,
		says: openai("HTTP/1.1 200 OK\r\n{key}: a\r\nContent-Length: 2\r\n\r\n{}"), want: want{n: 1, anyhow: true}},
	{name: "early-hints", inv: "I5", source: "RFC 8297 2", on: everyHTTP, send: models,
		says: openai("HTTP/1.1 103 Early Hints\r\nLink: </{key}>; rel=preload\r\n\r\n" + plainAnswer), want: attached()},
	{name: "chunk-extension", inv: "I5", source: "RFC 9112 7.1.1", on: everyHTTP, send: models,
		says: openai("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;key={key}\r\n{}\r\n0;key=\"{key}\"\r\n\r\n"), want: attached()},
	{name: "across-chunks", inv: "I5", source: "RFC 9112 7.1", on: everyHTTP, send: models,
		says: openai("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{firstsize}\r\n{first}\r\n", "{secondsize}\r\n{second}\r\n0\r\n\r\n"), want: attached().and(masked)},
	{name: "byte-by-byte", inv: "I5", source: "RFC 9112 7.1", on: everyHTTP, send: models, says: map[string]answer{"api.openai.com": byteByByte}, want: attached().and(masked)},
	{name: "across-writes", inv: "I5", source: "RFC 9112 6.3", on: everyHTTP, send: models,
		says: openai("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n{first}", "{second}"), want: attached().and(masked)},
	{name: "until-the-connection-ends", inv: "I5", source: "RFC 9112 6.3", on: everyHTTP, send: models,
		says: map[string]answer{"api.openai.com": saysAndEnds("HTTP/1.1 200 OK\r\n\r\n{first}", "{second}")}, want: attached().and(masked)},
	{name: "cut-in-the-middle", inv: "I5", source: "RFC 9112 8", on: everyHTTP, send: models,
		says: map[string]answer{"api.openai.com": saysAndEnds("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{first}")}, want: want{n: 1, anyhow: true, answer: noHalf}},
	{name: "events", inv: "I5", source: "HTML Standard 9.2", on: everyHTTP, send: models,
		says: openai("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n6\r\ndata: \r\n{size}\r\n{key}\r\n2\r\n\n\n\r\n0\r\n\r\n"), want: attached().and(masked)},
	{name: "over-http2", inv: "I5", source: "RFC 9113 8.1", on: everyHTTP + " " + tunnelH2, to: "h2", send: models,
		says: map[string]answer{h2Host: says("HTTP/1.1 200 OK\r\nX-Echo: {key}\r\nContent-Length: {len}\r\n\r\n{key}")}, want: attached().and(masked)},
	{name: "the-key-of-another", inv: "I5", source: "CWE-200", on: everyHTTP, send: models,
		says: openai("HTTP/1.1 200 OK\r\nContent-Length: 46\r\n\r\n" + fmt.Sprintf("%-46s", fakeKey("gemini"))), want: attached().and(masked)},
	compressed("gzip", "gzip"), compressed("x-gzip", "x-gzip"), compressed("brotli", "br"), compressed("identity-and-gzip", "identity, gzip"), compressed("zstd", "zstd"),
	{name: "gzip-of-who-does-not-echo-passes", inv: "I5", source: "RFC 9110 8.4", on: everyHTTP,
		send: models, says: openai("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: " + fmt.Sprint(len(zipped("hello"))) + "\r\n\r\n" + zipped("hello")), want: attached().and(unzips("hello"))},
	{name: "client-asks-for-gzip", inv: "I5", source: "RFC 9110 12.5.3", on: everyHTTP,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nAccept-Encoding: gzip, br, zstd", want: attached(uncompressed)},
	{name: "websocket-frames", inv: "I5", source: "RFC 6455 5.1", on: everyWS, do: framesWithKey},
	{name: "websocket-cut-in-the-middle", inv: "I5", source: "RFC 6455 7.1.5", on: everyWS, do: framesCut},
	{name: "websocket-handshake", inv: "I5", source: "RFC 6455 4.2.2", on: everyWS, send: models,
		says: openai("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Echo: {key}\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"), want: attached()},
	{name: "websocket-compression-is-not-offered", inv: "I5", source: "RFC 7692 5", on: everyWS,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nSec-WebSocket-Extensions: permessage-deflate", want: attached(field("Sec-WebSocket-Extensions", ""))},
	{name: "websocket-compression-unasked", inv: "I5", source: "RFC 7692 5.1", on: everyWS, to: "echo", send: models,
		says: map[string]answer{"echo.test": saysAndEnds("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n")},
		want: want{status: 502, code: "unscrubbable", n: 1}},
}}

// openai is its answer.
func openai(pieces ...string) map[string]answer {
	return map[string]answer{"api.openai.com": says(pieces...)}
}

// said: a provider whose key every encoding changes puts it into a body.
func said(form, text string) kase {
	return kase{name: "as-" + form, inv: "I5", source: "RFC 4648 4", on: everyHTTP, to: "echo", send: models,
		says: map[string]answer{"echo.test": saysAndEnds("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + text)}, want: attached().and(masked)}
}

// field5: it stands in a field of the answer.
func field5(name, line string) kase {
	return kase{name: "field-" + name, inv: "I5", source: "RFC 9110 5", on: everyHTTP, to: "echo", send: models,
		says: map[string]answer{"echo.test": says("HTTP/1.1 200 OK\r\n" + line + "\r\nContent-Length: 2\r\n\r\n{}")}, want: attached().and(masked)}
}

// compressed: an answer that cannot be searched is refused where the provider is known to echo.
func compressed(name, coding string) kase {
	return kase{name: "compressed-" + name, inv: "I5", source: "RFC 9110 8.4", on: everyHTTP, to: "echo", send: models,
		says: map[string]answer{"echo.test": says("HTTP/1.1 200 OK\r\nContent-Encoding: " + coding + "\r\nContent-Length: 4\r\n\r\nabcd")},
		want: want{status: 502, code: "unscrubbable", n: 1}}
}

// masked: what was taken away was replaced byte for byte.
func masked(r *run, got *reply) {
	text := got.body
	for _, vs := range got.Header {
		text += strings.Join(vs, " ")
	}
	if got.err != nil || !strings.Contains(text, "********") {
		r.t.Errorf("nothing is masked: %v %q %v", got.Header, got.body, got.err)
	}
}

// noHalf: of a key that breaks off the client has at most its public beginning and 8 bytes.
func noHalf(r *run, got *reply) {
	if strings.Contains(r.heard.String(), r.p.key[:len("sk-")+8]) {
		r.t.Errorf("the client has heard %q", got.body)
	}
}

func byteByByte(r *request) ([]string, bool) {
	out := []string{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"}
	for _, b := range []byte(r.credential()) {
		out = append(out, fmt.Sprintf("1\r\n%c\r\n", b))
	}
	return append(out, "0\r\n\r\n"), false
}

func zipped(text string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	io.WriteString(z, text)
	z.Close()
	return b.String()
}

func unzips(want string) func(*run, *reply) {
	return func(r *run, got *reply) {
		if got.body != zipped(want) || got.Header.Get("Content-Encoding") != "gzip" {
			r.t.Errorf("it came as %q (%s)", got.body, got.Header.Get("Content-Encoding"))
		}
	}
}

func uncompressed(r *run, q *request) {
	if got := q.header("Accept-Encoding"); got != "" && got != "identity" {
		r.t.Errorf("the provider was offered %q", got)
	}
}

// framesWithKey: a provider's frames are not masked (RFC 6455), so the key would stand in them.
func framesWithKey(r *run) {
	text := func(q *request) string { return `{"type":"error","message":"bad key ` + q.credential() + `"}` }
	r.w.net.reset(map[string]answer{"api.openai.com": func(q *request) ([]string, bool) {
		t := text(q)
		frame := string([]byte{0x81, 126, byte(len(t) >> 8), byte(len(t))}) + t
		return []string{strings.TrimSuffix(switching, "\r\n") + "X-Echo: " + q.credential() + "\r\n\r\n", frame[:60], frame[60:] + "\x88\x00"}, true
	}})
	r.conn = r.open()
	got := r.ask(r.conn, models+"\n"+strings.TrimSuffix(handshake, "\n"))
	if got.StatusCode != http.StatusSwitchingProtocols {
		r.t.Fatalf("%d %s", got.StatusCode, got.body)
	}
	b, _ := io.ReadAll(r.conn.br)
	if !strings.HasSuffix(string(b), "\x88\x00") || !strings.Contains(string(b), "bad key ********") {
		r.t.Errorf("the frames came as %q", b)
	}
	r.fence()
	r.account(1, nil)
}

// framesCut: the provider's connection breaks off within the key.
func framesCut(r *run) {
	r.w.net.reset(map[string]answer{"api.openai.com": saysAndEnds(switching, "\x81\x7e\x01\x00bad key {first}")})
	r.conn = r.open()
	if got := r.ask(r.conn, models+"\n"+strings.TrimSuffix(handshake, "\n")); got.StatusCode != http.StatusSwitchingProtocols {
		r.t.Fatalf("%d %s", got.StatusCode, got.body)
	}
	b, _ := io.ReadAll(r.conn.br)
	if !strings.Contains(string(b), "bad key ") {
		r.t.Errorf("the frame came as %q", b)
	}
	noHalf(r, &reply{body: string(b)})
	r.fence()
	r.account(1, nil)
}
