package wall_test

import (
	"net/http"
	"strings"
)

// hidden is a request that must be nobody's: it stands where one reader sees a body, or nothing.
const hidden = "GET {/v1/hidden} HTTP/1.1\r\nHost: {host}\r\n\r\n"

// post begins a request in which fields may follow.
const post = "POST {/v1/chat/completions} HTTP/1.1\r\nHost: {host}\r\n"

// framed is a case of what two parsers read differently, by every way in.
func framed(name, source, raw string) kase {
	return kase{name: name, inv: "I13", source: source, on: everyHTTP, raw: raw, want: ambiguous()}
}

// broken is framed where the fault shows only when a part may be on its way.
func broken(name, source, raw string) kase {
	c := framed(name, source, raw)
	c.want.cut = true
	return c
}

// smuggling: where one request ends and the next begins.
var smuggling = &group{class: 7, name: "smuggling", says: "request smuggling", cases: []kase{
	framed("length-and-chunked", "CVE-2019-20445", post+"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"+hidden),
	framed("chunked-and-length", "CVE-2020-10109", post+"Transfer-Encoding: chunked\r\nContent-Length: 300\r\n\r\n0\r\n\r\n"+hidden),
	framed("two-lengths", "CVE-2020-10108", post+"Content-Length: 0\r\nContent-Length: 60\r\n\r\n"+hidden),
	framed("two-equal-lengths", "RFC 9112 6.3", post+"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
	framed("length-list", "RFC 9110 8.6", post+"Content-Length: 5, 5\r\n\r\nhello"),
	framed("length-with-sign", "CVE-2022-24761", post+"Content-Length: +5\r\n\r\nhello"),
	framed("negative-length", "RFC 9110 8.6", post+"Content-Length: -1\r\n\r\n"+hidden),
	framed("hexadecimal-length", "RFC 9110 8.6", post+"Content-Length: 0x5\r\n\r\nhello"),
	framed("length-with-underscore", "CVE-2022-24761", post+"Content-Length: 1_0\r\n\r\nhellohello"),
	framed("empty-length", "CVE-2023-40225", post+"Content-Length: \r\n\r\n"+hidden),
	framed("length-with-inner-space", "RFC 9110 8.6", post+"Content-Length: 1 0\r\n\r\n"+hidden),
	framed("length-that-overflows", "CVE-2021-40346", post+"Content-Length: 18446744073709551621\r\n\r\nhello"),
	framed("underscored-length", "CVE-2025-64484", post+"Content-Length: 5\r\nContent_Length: 60\r\n\r\nhello"),
	framed("underscored-transfer-encoding", "CVE-2025-64484", post+"Content-Length: 5\r\nTransfer_Encoding: chunked\r\n\r\nhello"),
	framed("unknown-transfer-encoding", "CVE-2022-1705", post+"Transfer-Encoding: identity, chunked, identity\r\n\r\n0\r\n\r\n"+hidden),
	framed("chunked-with-vertical-tab", "CVE-2022-1705", post+"Transfer-Encoding: \x0bchunked\r\nContent-Length: 5\r\n\r\nhello"),
	framed("quoted-chunked", "CVE-2024-1135", post+"Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n"+hidden),
	framed("xchunked", "CVE-2019-16786", post+"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"+hidden),
	framed("two-transfer-encodings", "CVE-2022-32215", post+"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"+hidden),
	framed("chunked-twice", "RFC 9112 6.1", post+"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"+hidden),
	framed("chunked-in-http-1.0", "RFC 9112 6.1", "POST {/v1/chat/completions} HTTP/1.0\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"+hidden),
	framed("space-before-colon", "CVE-2019-16276", post+"Content-Length : 60\r\n\r\n"+hidden),
	framed("tab-before-colon", "CVE-2021-22959", post+"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n"+hidden),
	framed("folded-line", "CVE-2022-32215", post+"Transfer-Encoding: chunked\r\n , identity\r\n\r\n0\r\n\r\n"+hidden),
	framed("folded-first-line", "CVE-2024-27982", "POST {/v1/chat/completions} HTTP/1.1\r\n Content-Length: 60\r\nHost: {host}\r\n\r\n"+hidden),
	framed("line-without-colon", "CVE-2019-20444", post+"Content-Length\r\nContent-Length: 5\r\n\r\nhello"),
	framed("empty-field-name", "CVE-2023-25725", post+": \r\nContent-Length: 5\r\n\r\nhello"),
	framed("bare-lf-in-head", "CVE-2019-16785", "POST {/v1/chat/completions} HTTP/1.1\nHost: {host}\nContent-Length: 5\n\nhello"),
	framed("bare-lf-before-a-field", "CVE-2019-16785", post+"X-A: b\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello"),
	framed("bare-cr-in-value", "CVE-2023-30589", post+"X-A: b\rTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello"),
	framed("nul-in-value", "RFC 9110 5.5", post+"X-A: b\x00c\r\nContent-Length: 5\r\n\r\nhello"),
	framed("lf-before-the-request-line", "RFC 9112 2.2", "\n"+post+"Content-Length: 5\r\n\r\nhello"),
	framed("two-hosts", "RFC 9112 3.2", post+"Host: api.anthropic.com\r\nContent-Length: 5\r\n\r\nhello"),
	framed("tab-in-the-request-line", "RFC 9112 3", "POST\t{/v1/chat/completions}\tHTTP/1.1\r\nHost: {host}\r\n\r\n"),
	framed("space-in-the-target", "CVE-2021-33193", "GET {/v1/models} HTTP/1.1 HTTP/1.1\r\nHost: {host}\r\n\r\n"),
	framed("http-0.9", "RFC 9112 2.3", "GET {/v1/models}\r\n\r\n"),
	framed("http-1.2", "RFC 9112 2.3", "GET {/v1/models} HTTP/1.2\r\nHost: {host}\r\n\r\n"),
	framed("http-2-preface", "RFC 9113 3.4", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
	broken("chunk-extension-without-end", "CVE-2023-39326", post+"Transfer-Encoding: chunked\r\n\r\n5;a\nhello\r\n0\r\n\r\n"+hidden),
	broken("chunk-extension", "CVE-2021-22960", post+"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n"),
	broken("bare-lf-after-chunk-size", "CVE-2025-22871", post+"Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n"+hidden),
	broken("bare-lf-after-chunk", "CVE-2025-22871", post+"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n"+hidden),
	broken("chunk-longer-than-its-size", "RFC 9112 7.1", post+"Transfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n"+hidden),
	broken("chunk-size-that-overflows", "CVE-2013-2028", post+"Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n"+hidden),
	broken("chunk-size-with-0x", "CVE-2022-24761", post+"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n"+hidden),
	broken("chunk-size-with-space", "RFC 9112 7.1", post+"Transfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n"+hidden),
	broken("negative-chunk-size", "RFC 9112 7.1", post+"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n"+hidden),
	broken("empty-chunk-size", "RFC 9112 7.1", post+"Transfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n"+hidden),
	{name: "request-in-a-body", inv: "I13", source: "RFC 9112 6.3", on: everyHTTP,
		send: "POST {/v1/chat/completions} HTTP/1.1\nHost: {host}\nContent-Length: 42", body: "GET /v1/hidden HTTP/1.1\r\nHost: evil.test\r\n\r\n"[:42],
		want: want{status: 200, n: 1, closes: false, check: body("GET /v1/hidden HTTP/1.1\r\nHost: evil.test\r\n\r\n"[:42])}},
	{name: "request-in-a-chunked-body", inv: "I13", source: "CVE-2022-24766", on: everyHTTP,
		send: "POST {/v1/chat/completions} HTTP/1.1\nHost: {host}\nTransfer-Encoding: chunked", body: "1d\r\nGET /v1/hidden HTTP/1.1\r\n\r\n\r\n\r\n0\r\n\r\n",
		want: attached(body("GET /v1/hidden HTTP/1.1\r\n\r\n\r\n"))},
	{name: "body-of-a-get", inv: "I13", source: "RFC 9110 9.3.1", on: everyHTTP,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nContent-Length: 5", body: "hello", want: attached(body("hello"))},
	{name: "two-pipelined", inv: "I13", source: "RFC 9112 9.3.2", on: everyHTTP, do: pipelined},
	{name: "pipelined-behind-what-is-refused", inv: "I13", source: "RFC 9112 9.6", on: everyHTTP,
		raw: post + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello" + hidden + hidden, want: ambiguous()},
	{name: "behind-connect-to-a-provider", inv: "I13", source: "RFC 9110 9.3.6", on: direct, do: behindConnect},
	{name: "behind-connect-that-is-refused", inv: "I13", source: "RFC 9110 9.3.6", on: direct, do: behindRefusedConnect},
	{name: "body-of-a-connect", inv: "I13", source: "RFC 9110 9.3.6", on: direct, do: bodyOfConnect},
	{name: "expect-and-no-body", inv: "I13", source: "CVE-2024-24791", on: everyHTTP, do: expectWithoutBody},
	{name: "unknown-expectation", inv: "I13", source: "RFC 9110 10.1.1", on: everyHTTP,
		send: "POST {/v1/chat/completions} HTTP/1.1\nHost: {host}\nExpect: 200-maybe\nContent-Length: 5", body: "hello", want: want{status: 417, code: "bad_framing", closes: true}},
	{name: "answer-to-head-with-a-body", inv: "I13", source: "RFC 9110 9.3.2", on: everyHTTP, do: headWithBody},
}}

// pipelined requests are answered in order, each with its own answer.
func pipelined(r *run) {
	r.conn = r.open()
	r.write(r.conn, r.fill("GET {/v1/a} HTTP/1.1\r\nHost: {host}\r\n\r\nGET {/v1/b} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {client}\r\n\r\n"))
	for range 2 {
		if got := r.read(r.conn, "GET"); got.StatusCode != http.StatusOK {
			r.t.Errorf("%d %s", got.StatusCode, got.body)
		}
	}
	r.fence()
	r.account(2, nil)
}

// behindConnect: what is written behind a CONNECT is the tunnel's, and no request of the listener's.
func behindConnect(r *run) {
	c := r.dial()
	r.write(c, r.fill("CONNECT api.openai.com:443 HTTP/1.1\r\nHost: api.openai.com:443\r\n\r\nGET /openai/v1/hidden HTTP/1.1\r\nHost: {agent}\r\n\r\n"))
	r.read(c, "CONNECT")
	if got := r.read(c, "GET"); got.StatusCode == http.StatusOK {
		r.t.Errorf("it was answered %q", got.body)
	}
	r.fence()
	r.account(0, nil)
}

func behindRefusedConnect(r *run) {
	c := r.dial()
	r.write(c, r.fill("CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\nGET /openai/v1/hidden HTTP/1.1\r\nHost: {agent}\r\n\r\n"))
	if got := r.read(c, "GET"); got.StatusCode != http.StatusForbidden {
		r.t.Errorf("the CONNECT: %d", got.StatusCode)
	}
	if !r.ended(c) {
		r.t.Error("what stands behind a refused CONNECT is answered")
	}
	r.fence()
	r.account(0, nil)
}

// bodyOfConnect: a CONNECT has no body; one that says so is no plain request.
func bodyOfConnect(r *run) {
	c := r.dial()
	r.write(c, r.fill("CONNECT api.openai.com:443 HTTP/1.1\r\nHost: api.openai.com:443\r\nContent-Length: 58\r\n\r\nGET /openai/v1/hidden HTTP/1.1\r\nHost: {agent}\r\n\r\n"))
	r.read(c, "CONNECT")
	if got := r.read(c, "GET"); got.StatusCode == http.StatusOK {
		r.t.Errorf("it was answered %q", got.body)
	}
	r.fence()
	r.account(0, nil)
}

// expectWithoutBody: the client asked whether to send, was answered, and goes on
// with the next request: that is none, or the body, and never both.
func expectWithoutBody(r *run) {
	r.w.net.reset(map[string]answer{"api.openai.com": saysAndEnds("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")})
	r.conn = r.open()
	r.write(r.conn, r.fill(post+"Expect: 100-continue\r\nContent-Length: 20\r\n\r\n"))
	r.write(r.conn, r.fill(hidden))
	r.read(r.conn, "POST")
	r.fence()
	requests, _ := r.w.net.seen()
	for _, q := range requests {
		if strings.Contains(q.target, "hidden") {
			r.t.Errorf("the provider was sent %q", q.raw)
		}
	}
}

// headWithBody: bytes behind an answer that has no body are nobody's answer.
func headWithBody(r *run) {
	r.w.net.reset(map[string]answer{"api.openai.com": says("HTTP/1.1 200 OK\r\nContent-Length: 56\r\n\r\nHTTP/1.1 200 OK\r\nX-Hidden: yes\r\nContent-Length: 4\r\n\r\nevil")})
	r.conn = r.open()
	r.write(r.conn, r.fill("HEAD {/v1/models} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
	if got := r.read(r.conn, "HEAD"); got.StatusCode != http.StatusOK || got.Header.Get("X-Hidden") != "" {
		r.t.Errorf("%d %v", got.StatusCode, got.Header)
	}
	r.w.net.reset(nil)
	if got := r.ask(r.conn, models); got.StatusCode != http.StatusOK || got.body != "{}" {
		r.t.Errorf("the next answer is %d %q", got.StatusCode, got.body)
	}
	r.fence()
	r.account(1, nil)
}
