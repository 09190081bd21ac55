package wall_test

import (
	"net/http"
	"strings"
)

// hostile is an answer that two clients could read differently. The client gets
// an error, a cut connection, or one answer in which nothing of the second one
// is; and what comes next has its own answer.
func hostile(name, source string, pieces ...string) kase {
	return kase{name: name, inv: "I13", source: source, on: everyHTTP, send: models,
		says: map[string]answer{"api.openai.com": says(pieces...)},
		want: want{n: 1, anyhow: true, answer: oneAnswer}}
}

// ending is hostile, and the provider closes the connection behind it.
func ending(name, source string, pieces ...string) kase {
	c := hostile(name, source, pieces...)
	c.says = map[string]answer{"api.openai.com": saysAndEnds(pieces...)}
	return c
}

// again: a connection that ended may be tried anew, once, since the request is one that may.
func again(c kase) kase {
	c.want.again = true
	return c
}

const evil = "HTTP/1.1 200 OK\r\nX-Hidden: yes\r\nContent-Length: 4\r\n\r\nevil"

// answers: where an answer of a provider's ends. The same class from the other side.
var answers = &group{class: 7, name: "answer", says: "response smuggling", cases: []kase{
	hostile("two-in-one", "CWE-444", plainAnswer+evil),
	hostile("length-and-chunked", "RFC 9112 6.3", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
	hostile("two-lengths", "RFC 9112 6.3", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 60\r\n\r\n{}"+evil),
	hostile("negative-length", "RFC 9110 8.6", "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}"+evil),
	hostile("length-with-sign", "RFC 9110 8.6", "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n{}"+evil),
	ending("unknown-transfer-encoding", "RFC 9112 6.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"+evil),
	ending("bad-chunk-size", "RFC 9112 7.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"+evil),
	{name: "space-before-colon", inv: "I13", source: "RFC 9112 5.1", on: everyHTTP, send: models,
		says: map[string]answer{"api.openai.com": saysAndEnds("HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\n{}and more")}, want: want{n: 1, anyhow: true, answer: framedOnce}},
	ending("nul-in-value", "RFC 9110 5.5", "HTTP/1.1 200 OK\r\nX-A: b\x00c\r\nContent-Length: 2\r\n\r\n{}"),
	ending("bare-cr-in-value", "RFC 9110 5.5", "HTTP/1.1 200 OK\r\nX-A: b\rX-Hidden: yes\r\nContent-Length: 2\r\n\r\n{}"),
	ending("line-without-colon", "RFC 9112 5", "HTTP/1.1 200 OK\r\nX-Hidden yes\r\nContent-Length: 2\r\n\r\n{}"),
	ending("no-status", "RFC 9112 4", "HTTP/1.1 OK\r\nContent-Length: 2\r\n\r\n{}"),
	ending("status-99", "RFC 9110 15", "HTTP/1.1 099 Low\r\nContent-Length: 2\r\n\r\n{}"),
	ending("status-of-four-digits", "RFC 9110 15", "HTTP/1.1 2000 High\r\nContent-Length: 2\r\n\r\n{}"),
	ending("another-protocol", "RFC 9112 2.3", "SSH-2.0-OpenSSH_9.9\r\n\r\n"),
	again(ending("no-answer", "RFC 9110 9.2.2", "")),
	ending("head-without-end", "RFC 9112 9.6", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"),
	hostile("switching-unasked", "RFC 9110 15.2.2", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"+evil),
	hostile("hints-and-then-an-answer", "RFC 8297 2", "HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n"+plainAnswer),
	hostile("body-of-no-content", "RFC 9110 15.3.5", "HTTP/1.1 204 No Content\r\nContent-Length: 56\r\n\r\n"+evil),
	hostile("body-of-not-modified", "RFC 9110 15.4.5", "HTTP/1.1 304 Not Modified\r\n\r\n"+evil),
	ending("head-of-a-megabyte", "CWE-770", "HTTP/1.1 200 OK\r\nX-A: "+strings.Repeat("a", 1<<20)+"\r\nContent-Length: 2\r\n\r\n{}"),
	ending("a-hundred-thousand-fields", "CWE-770", "HTTP/1.1 200 OK\r\n"+strings.Repeat("X-A: b\r\n", 100_000)+"Content-Length: 2\r\n\r\n{}"),
	ending("endless-hints", "CWE-835", strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n", 10_000)),
	{name: "cut-short-by-length", inv: "I13", source: "RFC 9112 8", on: everyHTTP, send: models,
		says: map[string]answer{"api.openai.com": saysAndEnds("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")}, want: want{n: 1, anyhow: true, answer: brokenOff}},
	{name: "cut-short-in-a-chunk", inv: "I13", source: "RFC 9112 8", on: everyHTTP, send: models,
		says: map[string]answer{"api.openai.com": saysAndEnds("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf")}, want: want{n: 1, anyhow: true, answer: brokenOff}},
	{name: "cut-short-between-chunks", inv: "I13", source: "RFC 9112 8", on: everyHTTP, send: models,
		says: map[string]answer{"api.openai.com": saysAndEnds("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")}, want: want{n: 1, anyhow: true, answer: brokenOff}},
	{name: "foreign-space-before-colon", inv: "I13", source: "RFC 9112 5.1", on: direct, agent: "tunnel", send: "GET http://elsewhere.test/ HTTP/1.1\nHost: elsewhere.test",
		says: map[string]answer{"elsewhere.test": saysAndEnds("HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\n{}and more")},
		want: want{anyhow: true, answer: framedOnce, foreign: []string{"elsewhere.test:80"}}},
}}

// oneAnswer: whatever the client got, it got one.
func oneAnswer(r *run, got *reply) {
	if strings.Contains(r.heard.String(), "X-Hidden: yes\r\n") || got.Header.Get("X-Hidden") != "" || strings.Contains(got.body, "evil") {
		r.t.Errorf("the client has heard the second answer: %q", r.heard.String())
	}
	switch got.StatusCode {
	case 0, http.StatusOK, http.StatusNoContent, http.StatusNotModified:
	case http.StatusBadGateway:
		if code := got.Header.Get("Postern-Error"); code != "upstream_unreachable" {
			r.t.Errorf("Postern-Error is %q", code)
		}
	default:
		r.t.Errorf("the answer is %d", got.StatusCode)
	}
	if got.StatusCode == http.StatusOK && got.err == nil && got.body != "{}" && got.body != "" {
		r.t.Errorf("the answer's body is %q", got.body)
	}
}

// framedOnce: no field that some clients take for a second Content-Length has come through.
func framedOnce(r *run, got *reply) {
	if strings.Contains(r.heard.String(), "Content-Length :") {
		r.t.Errorf("the client has heard %q", r.heard.String())
	}
	for name := range got.Header {
		if strings.TrimSpace(name) != name {
			r.t.Errorf("the client has a field named %q", name)
		}
	}
	if got.StatusCode != http.StatusBadGateway && (got.StatusCode != http.StatusOK || got.err != nil) {
		r.t.Errorf("the answer is %d %q %v", got.StatusCode, got.body, got.err)
	}
}

// brokenOff: an answer that is not whole does not look whole.
func brokenOff(r *run, got *reply) {
	if got.StatusCode == http.StatusOK && got.err == nil {
		r.t.Errorf("%q passes as whole", got.body)
	}
}
