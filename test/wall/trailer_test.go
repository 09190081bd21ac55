package wall_test

const chunkedPost = "POST {/v1/chat/completions} HTTP/1.1\nHost: {host}\nTransfer-Encoding: chunked"

// trailer: what comes behind a body is neither a credential nor a frame.
var trailer = &group{class: 9, name: "trailer", says: "credentials in trailers", cases: []kase{
	{name: "authorization", inv: "I3", source: "RFC 9110 6.5.1", on: everyHTTP,
		send: chunkedPost, body: "5\r\nhello\r\n0\r\nAuthorization: Bearer " + canary + "0\r\n\r\n", want: attached(body("hello"))},
	{name: "announced-authorization", inv: "I3", source: "RFC 9110 6.6.2", on: everyHTTP,
		send: chunkedPost + "\nTrailer: Authorization, X-Api-Key", body: "5\r\nhello\r\n0\r\nAuthorization: Bearer " + canary + "0\r\nX-Api-Key: " + canary + "1\r\n\r\n", want: attached(body("hello"))},
	{name: "x-api-key", inv: "I3", source: "RFC 9110 6.5.1", on: everyHTTP, to: "anthropic",
		send: chunkedPost, body: "5\r\nhello\r\n0\r\nx-api-key: " + canary + "0\r\nX_Api_Key: " + canary + "1\r\n\r\n", want: attached(body("hello"))},
	{name: "over-http2", inv: "I3", source: "RFC 9113 8.1", on: everyHTTP, to: "h2",
		send: chunkedPost + "\nTrailer: Authorization", body: "5\r\nhello\r\n0\r\nAuthorization: Bearer " + canary + "0\r\n\r\n", want: attached(body("hello"))},
	{name: "te-trailers", inv: "I4", source: "RFC 9110 10.1.4", on: everyHTTP,
		send: "GET {/v1/models} HTTP/1.1\nHost: {host}\nTE: trailers, deflate;q=0.5\nConnection: TE", want: attached()},
	trailing("length", "RFC 9110 6.5.1", "0\r\nContent-Length: 60\r\n\r\n"+hidden),
	trailing("transfer-encoding", "RFC 9110 6.5.1", "0\r\nTransfer-Encoding: chunked\r\n\r\n"+hidden),
	trailing("host", "RFC 9110 6.5.1", "0\r\nHost: api.anthropic.com\r\n\r\n"),
	trailing("space-before-colon", "CVE-2019-16276", "0\r\nX-A : b\r\n\r\n"+hidden),
	trailing("folded", "CVE-2022-32215", "0\r\nX-A: b\r\n c\r\n\r\n"+hidden),
	trailing("bare-lf", "CVE-2025-22871", "0\r\nX-A: b\n\r\n"+hidden),
	{name: "of-an-answer", inv: "I5", source: "RFC 9110 6.5.1", on: everyHTTP, send: models,
		says: map[string]answer{"api.openai.com": says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Key\r\n\r\n2\r\n{}\r\n0\r\nX-Key: {key}\r\nX-Key64: {key64}\r\n\r\n")}, want: attached().and(untrailed)},
}}

// trailing is a chunked body that ends wrongly.
func trailing(name, source, end string) kase {
	c := broken("bad-"+name, source, post+"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"+end)
	return c
}

func untrailed(r *run, got *reply) {
	if len(got.Trailer) > 0 {
		r.t.Errorf("the client has trailers: %v", got.Trailer)
	}
}
