package framing_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// smuggled is the status of answers that nobody is to see: they stand in bodies
// and behind answers.
const smuggled = 299

var second = fmt.Sprintf("HTTP/1.1 %d Smuggled\r\nX-Nonce: smuggled\r\nContent-Length: 8\r\n\r\nsmuggled", smuggled)

// newAnswer makes an answer, most of the time with something wrong.
func newAnswer(r *rand.Rand) answer {
	a := answer{method: pick(r, "GET", "GET", "GET", "POST", "HEAD"), closes: r.IntN(6) == 0}
	if r.IntN(3) == 0 {
		a.write = 1 + r.IntN(40)
	}
	d := &draft{Rand: r, ver: "HTTP/1.1", method: pick(r, "200", "200", "200", "200", "201", "204", "304", "400", "401", "403", "404", "408", "429", "500", "503", "302", "205", "206"), target: pick(r, "OK", "OK", "", "No Reason At All", "\xe9"), end: "\r\n"}
	for range r.IntN(4) {
		d.add(pick(r, "X-Keep-1: one", "Content-Type: application/json", "Set-Cookie: a=b", "Set-Cookie: c=d", "X-Keep-4: \xe9\xff", "X-Keep-5:", "ETag: \"x\"", "Server: hostile", "Date: now", "Location: /elsewhere", "Vary: *", "Retry-After: 0"))
	}
	switch r.IntN(6) {
	case 0, 1:
		d.body = []string{answerBody(r)}
		d.add(fmt.Sprintf("Content-Length: %d", len(d.body[0])))
	case 2, 3:
		answerChunks(d)
	case 4:
		d.body = []string{answerBody(r)}
		a.closes = true
	}
	for range pick(r, 0, 1, 1, 1, 1, 2, 2) {
		pick(r, answerMutations...)(d)
	}
	a.pieces = d.answerPieces()
	if r.IntN(6) == 0 {
		scratch(r, a.pieces[len(a.pieces)/3:])
	}
	if r.IntN(3) == 0 {
		a.pieces = append(a.pieces, []byte(pick(r, second, second, second+second, "\r\n", "x", "\x00", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200", "0\r\n\r\n", "\r\n"+second, "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")))
	}
	if r.IntN(10) == 0 {
		a.pieces, a.closes = a.pieces[:1+r.IntN(len(a.pieces))], true
	}
	return a
}

func answerBody(r *rand.Rand) string {
	return pick(r, `{"ok":true}`, "", "x", second, "\r\n"+second, "0\r\n\r\n"+second, strings.Repeat("0123456789abcdef", 300), "5\r\nhello\r\n0\r\n\r\n", "\x00\xff\r\n")
}

func answerChunks(d *draft) {
	d.drop("Transfer-Encoding")
	d.add("Transfer-Encoding: chunked")
	d.body = nil
	for range 1 + d.IntN(3) {
		if data := answerBody(d.Rand); data != "" {
			d.body = append(d.body, fmt.Sprintf("%x\r\n", len(data)), data, "\r\n")
		}
	}
	d.body = append(d.body, "0\r\n", "\r\n")
}

// answerPieces writes a draft whose method is the status and whose target is the reason.
func (d *draft) answerPieces() [][]byte {
	out := [][]byte{[]byte(d.ver + " " + d.method + " " + d.target + "\r\n")}
	for _, part := range append(append(append([]string{}, d.fields...), d.end), d.body...) {
		out = append(out, []byte(part))
	}
	return out
}

var aboutAnswers = []func(*draft){
	func(d *draft) {
		d.ver = pick(d.Rand, "HTTP/1.0", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.2", "ICY", "http/1.1", "HTTP/1,1", "HTTP/1.1 ", " HTTP/1.1", "\r\nHTTP/1.1", "\nHTTP/1.1", "HTTP/01.1", "HTTP/1.1\x00", "")
	},
	func(d *draft) { // without a body: behind an interim answer it would be the next one
		d.method = pick(d.Rand, "100", "101", "102", "103", "199")
		d.fields, d.body = nil, nil
	},
	func(d *draft) {
		d.method = pick(d.Rand, "000", "042", "99", "1000", "20", "200x", "-200", "+200", "0200", "2 0", "600", "999", "", "2\x000", "204", "304", "205")
	},
	func(d *draft) { d.target = insert(d.Rand, d.target) },
	func(d *draft) {
		d.ver = pick(d.Rand, "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early\r\nLink: </x>\r\n\r\n", "HTTP/1.1 102 P\r\n\r\nHTTP/1.1 102 P\r\n\r\n", "HTTP/1.1 100 C\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n") + d.ver
	},
	func(d *draft) {
		d.add("Connection: " + pick(d.Rand, "close", "keep-alive", "content-length", "transfer-encoding", "x-nonce", "close, content-type", "upgrade"))
	},
	func(d *draft) {
		d.add("Content-Encoding: " + pick(d.Rand, "gzip", "identity", "br", "chunked", ""))
	},
	func(d *draft) {
		d.add(pick(d.Rand, "Trailer: X-Nonce", "Keep-Alive: timeout=1", "Upgrade: h2c", "Proxy-Connection: close", "Content-Range: bytes 0-1/2", "X-Nonce: mine"))
	},
	func(d *draft) {
		if n := len(d.body); n > 1 && d.body[n-1] == "\r\n" {
			d.body = append(d.body[:n-1], pick(d.Rand, "X-Nonce: trailer", "Set-Cookie: t=1", "Content-Length: 5", "X: a\r\n b", "no colon", "X : y", "X: a\rb", "X: "+strings.Repeat("a", 70<<10))+"\r\n", "\r\n")
		}
	},
	func(d *draft) { answerChunks(d) },
	func(d *draft) { d.add("X-Long: " + strings.Repeat("a", pick(d.Rand, 9<<10, 70<<10, 300<<10))) },
}
