package framing_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Mutations are what is known to have split a proxy from its peer, or looks as
// if it could: RFC 9112 sections 2.2, 3, 5 and 6.3, CVE-2022-1705,
// CVE-2025-22871, CVE-2025-64484, golang/go#50580.
var (
	requestMutations = slices.Concat(framingMutations, aboutRequests)
	answerMutations  = slices.Concat(framingMutations, aboutAnswers, aboutAnswers)
)

// framingMutations are of lines, fields, lengths and chunks, in requests and answers.
var framingMutations = []func(*draft){
	// lines
	func(d *draft) { d.fields = ending(d, d.fields) },
	func(d *draft) { d.body = ending(d, d.body) },
	func(d *draft) {
		d.end = pick(d.Rand, "\n", "\r", "\r\r\n", "\n\r\n", " \r\n", "\t\r\n", "\r\n\r\n", "\x00\r\n")
	},
	func(d *draft) { d.method = pick(d.Rand, "\r\n", "\n", "\r", " ", "\t", "\r\n\r\n", "\x00") + d.method },

	// fields
	func(d *draft) {
		d.field(func(l string) string {
			return strings.Replace(l, ":", pick(d.Rand, " :", "\t:", "\x0b:", "\x00:", "\xa0:", "", "::", ";"), 1)
		})
	},
	func(d *draft) {
		d.field(func(l string) string { return pick(d.Rand, " ", "\t", "\x00", ":", "\x0b") + l })
	},
	func(d *draft) {
		d.field(func(l string) string {
			return strings.Replace(l, ": ", ":"+pick(d.Rand, "\r\n ", "\r\n\t", "\n ", "\r ", "\x0b", "\x00", "\xa0", ""), 1)
		})
	},
	func(d *draft) { d.field(func(l string) string { return insert(d.Rand, l) }) },
	func(d *draft) { d.field(func(l string) string { return l + l }) },
	func(d *draft) { d.field(strings.ToUpper) },
	func(d *draft) { d.field(strings.ToLower) },
	func(d *draft) {
		d.add("X-Keep-6: a\r\n" + pick(d.Rand, " ", "\t", "  ", " \t") + pick(d.Rand, "b", "Content-Length: 5", "Transfer-Encoding: chunked", ""))
	},
	func(d *draft) {
		d.add(pick(d.Rand, "no colon", ": no name", "X Y: z", "X(: z", "X\xe9: z", "", "\x00", "X-Keep-7: \x00", "X-Keep-7: a\rb", "X-Keep-7: \x7f"))
	},
	func(d *draft) {
		d.add("X-Long: " + strings.Repeat("a", pick(d.Rand, 4<<10, 9<<10, 20<<10, 62<<10, 66<<10)))
	},
	func(d *draft) {
		d.add(strings.TrimSuffix(strings.Repeat("X-Many: a\r\n", pick(d.Rand, 90, 240, 257, 1200)), "\r\n"))
	},
	func(d *draft) { d.add(strings.Repeat("N", pick(d.Rand, 250, 5000)) + ": long name") },

	// Content-Length
	func(d *draft) { d.lengths("%d", "%d") },
	func(d *draft) { d.lengths("%d", pick(d.Rand, "0", "1", "5", "99", "", "-1")) },
	func(d *draft) { d.lengths(pick(d.Rand, "0", "5", "99", "", "-1"), "%d") },
	func(d *draft) {
		d.lengths(pick(d.Rand, "%d, %d", "%d,%d", "%d, 0", "0, %d", "%d,", ",%d", "%d %d", "%d;%d"))
	},
	func(d *draft) {
		d.lengths(pick(d.Rand, "+%d", "-%d", "0x%x", "%d.0", "%de0", "0%d", "00000000000000000000000%d", "%d\x0b", "\x0c%d", "%d\x00", " %d ", "\t%d\t", "\"%d\"", "%d_", "1_0", "٥", "%d\xa0"))
	},
	func(d *draft) {
		d.lengths(pick(d.Rand, "18446744073709551616", "18446744073709551621", "9223372036854775807", "9223372036854775808", "4294967301", "999999999999999999", "99999999999999999999999999"))
	},
	func(d *draft) {
		d.lengths(strconv.Itoa(max(0, len(strings.Join(d.body, ""))+pick(d.Rand, -1, 1, 2, -5, 40))))
	},
	func(d *draft) {
		d.add(pick(d.Rand, "Content_Length: 5", "Content-Length : 5", "Content-Length\t: 5", "X: y\rContent-Length: 5", "X: y\nContent-Length: 5", "\x00Content-Length: 5", "Content-Length\x00: 5", "Content-Length:5", "content-length: 0"))
	},
	func(d *draft) { d.drop("Content-Length") },

	// Transfer-Encoding
	func(d *draft) {
		d.coding(pick(d.Rand, "chunked, chunked", "xchunked", "\x0bchunked", "identity", "Chunked", "CHUNKED", "chunked\x00", "chunked;q=1", "chunked, identity", "identity, chunked", "gzip, chunked", "chunked, gzip", "\"chunked\"", "chunk", "", ",chunked", "chunked,", "chunked \t", "cow", "chunKed\x0b", "chu\r\n nked", "deflate", "trailers", "chunked\xa0"))
	},
	func(d *draft) {
		d.add(pick(d.Rand, "Transfer-Encoding: chunked", "Transfer-Encoding: identity", "Transfer-Encoding: x", "Transfer-encoding:", "Transfer_Encoding: chunked", "Transfer-Encoding : chunked", "Transfer-Encoding\t: chunked", " Transfer-Encoding: chunked", "Transfer-Encoding:\r\n chunked", "X: y\rTransfer-Encoding: chunked", "X: y\nTransfer-Encoding: chunked", "Transfer-Encoding\x00: chunked", "TE: chunked", "Content-Encoding: chunked"))
	},
	func(d *draft) { d.fields = append([]string{"Transfer-Encoding: chunked\r\n"}, d.fields...) },
	func(d *draft) { d.chunked() },
	func(d *draft) { d.add("Content-Length: " + strconv.Itoa(len(strings.Join(d.body, "")))) },
	func(d *draft) { d.drop("Transfer-Encoding") },

	// chunks
	func(d *draft) {
		d.size(func(s string) string {
			return s + pick(d.Rand, ";a=b", ";a=\"\r\n\"", ";a=\"b;c\"", ";", " ;a", ";a=\nb", ";\x00", ";a=\r", " ", "\t", "\x0b", ";"+strings.Repeat("a", 9000))
		})
	},
	func(d *draft) {
		d.size(func(s string) string {
			return pick(d.Rand, "0x", "0X", "+", "-", " ", "\t", "00000", strings.Repeat("0", 30), "\r\n", "\n", "_", "g") + s
		})
	},
	func(d *draft) {
		d.size(func(string) string {
			return pick(d.Rand, "FFFFFFFFFFFFFFFF", "10000000000000005", "100000005", "7FFFFFFFFFFFFFFF", "-1", "", "0", "5", "1", "fffffffff", "1_0", "０")
		})
	},
	func(d *draft) { d.size(func(s string) string { return strings.ToUpper(s) }) },
	func(d *draft) {
		d.size(func(s string) string {
			n, _ := strconv.ParseInt(s, 16, 64)
			return fmt.Sprintf("%x", max(0, n+pick(d.Rand, int64(-1), 1, 2, -2)))
		})
	},
	func(d *draft) { d.oneBody(func(string) string { return "" }) },
	func(d *draft) { d.oneBody(func(s string) string { return s + s }) },
	func(d *draft) { d.oneBody(func(s string) string { return insert(d.Rand, s) }) },
	func(d *draft) {
		if n := len(d.body); n > 1 {
			d.body = d.body[:n-1-d.IntN(2)]
		}
	},
}

var aboutRequests = []func(*draft){
	// trailers
	func(d *draft) {
		if n := len(d.body); n > 1 && d.body[n-1] == "\r\n" {
			d.body = append(d.body[:n-1], pick(d.Rand, credential(d.Rand), "X-Sum: 1", "Content-Length: 5", "Transfer-Encoding: chunked", "Host: other", "X-Keep-8: a\r\n b", "X : y", "X: a\rb", "no colon", "Trailer: x", "Connection: close", "X: "+strings.Repeat("a", 70<<10))+"\r\n", "\r\n")
			d.add("Trailer: X-Sum, Authorization")
		}
	},

	// the request line
	func(d *draft) {
		d.method = pick(d.Rand, "get", "Get", "G\x00T", "G ET", "GET\t", "", "CONNECT", "TRACE", "PRI", "M-SEARCH", "QUERY", "PROPFIND", "A!#$%&'*+-.^_`|~", "(", "GET:", "\xff", strings.Repeat("M", 300), "OPTIONS", "PURGE", "LIST")
	},
	func(d *draft) { d.target = insert(d.Rand, d.target) },
	func(d *draft) {
		d.target += pick(d.Rand, "/%", "/%zz", "/%00", "/%0d%0aX:y", "/../x", "/%2e%2e/x", "//x", "/..;/x", "/%2f", "/%5c", "/%252e", "#f", "?#", "?a=%zz", "?a=\"<>", "?"+strings.Repeat("q", 9000), "/"+strings.Repeat("p", 30<<10), "/[x]", "/{x}|", "/a^b`c", "/%E2%82", "?a?b", "/;", "/a%2Fb?c%2Fd", "?a=b+c")
	},
	func(d *draft) {
		d.target = pick(d.Rand, "*", "", "?", "//", "/", "x", "http://", "https://"+d.to.host, "http://other.test/v1/x", "https://u:p@"+d.to.host+"/v1/x", "https://"+d.to.host+"?q", "HTTPS://"+d.to.host+"/v1/x", d.to.host, "https://"+d.to.host+":/v1/x", "//"+d.to.host+"/v1/x", "ftp://"+d.to.host+"/v1", "https:/v1/x", "/http://"+d.to.host+"/v1")
	},
	func(d *draft) {
		d.ver = pick(d.Rand, "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.2", "HTTP/1.10", "HTTP/01.1", "http/1.1", "HTTP/1,1", "HTTP/1.1 ", " HTTP/1.1", "HTTP/1", "", "HTTP/3", "HTTPS/1.1", "ICY", "HTTP/1.1\x00", "HTTP/1.1\t", "HTTP/1.1 HTTP/1.1", "HTTP/-1.1", "HTTP/1.1\r", "HTTP/1.01")
	},
	func(d *draft) {
		d.ver = "HTTP/1.0"
		d.add(pick(d.Rand, "Connection: keep-alive", "Connection: close", "Proxy-Connection: keep-alive"))
	},

	// Host
	func(d *draft) { d.drop("Host") },
	func(d *draft) { d.add("Host: " + pick(d.Rand, d.to.host, "other.test", "")) },
	func(d *draft) {
		d.drop("Host")
		d.add("Host: " + pick(d.Rand, "", "other.test", "u@"+d.to.host, d.to.host+",x", d.to.host+" ", d.to.host+"/x", d.to.host+":1", "a b", "\x00", d.to.host+"\t", d.to.host+".", "[::1]", "[::1", d.to.host+"#"))
	},
	func(d *draft) {
		d.add(pick(d.Rand, "X-Forwarded-Host: other.test", "Host_: x", "hOST: "+d.to.host, "Host : other.test"))
	},

	// the connection
	func(d *draft) {
		d.add("Connection: " + pick(d.Rand, "close", "keep-alive", "authorization", "host", "content-length", "transfer-encoding", "x-keep-1", "X-Keep-1, X-Keep-2", "close, authorization", "keep-alive, content-length, host", "upgrade", "", ",", "user-agent, accept", "accept-encoding"))
	},
	func(d *draft) {
		d.add("Expect: " + pick(d.Rand, "100-continue", "100-Continue", "200-ok", "100-continue, x", "", "\x00"))
	},
	func(d *draft) {
		d.add("Upgrade: " + pick(d.Rand, "h2c", "websocket", "TLS/1.0", "h2c, websocket", ""))
		d.add("Connection: Upgrade")
		d.add("HTTP2-Settings: AAMAAABkAAQAAP__")
	},
	func(d *draft) {
		d.add(pick(d.Rand, "TE: trailers", "Keep-Alive: timeout=5", "Proxy-Connection: close", "Via: 1.1 x", "X-Forwarded-For: 1.2.3.4", "Forwarded: for=1", "Max-Forwards: 0", "X-HTTP-Method-Override: PUT", "Accept-Encoding: gzip", "Content-Encoding: gzip", "Range: bytes=0-1", "If-None-Match: *"))
	},
	func(d *draft) { d.add(credential(d.Rand)) },
}

// ending ends one of these lines in another way.
func ending(d *draft, lines []string) []string {
	if len(lines) > 0 {
		i := d.IntN(len(lines))
		lines[i] = strings.TrimSuffix(lines[i], "\r\n") + pick(d.Rand, "\n", "\r", "\r\r\n", "\n\r", "\r\n\n", "", " \r\n", "\x00\r\n")
	}
	return lines
}

// field changes one field line.
func (d *draft) field(f func(string) string) {
	if len(d.fields) > 0 {
		i := d.IntN(len(d.fields))
		d.fields[i] = f(d.fields[i])
	}
}

// lengths says the body's length, or something else, once for each format.
func (d *draft) lengths(formats ...string) {
	d.drop("Content-Length")
	n := len(strings.Join(d.body, ""))
	if n == 0 {
		d.body = []string{"hello"}
		n = 5
	}
	for _, f := range formats {
		d.add("Content-Length: " + strings.NewReplacer("%d", strconv.Itoa(n), "%x", strconv.FormatInt(int64(n), 16)).Replace(f))
	}
}

// coding frames the body in chunks and calls it something else.
func (d *draft) coding(name string) {
	d.drop("Transfer-Encoding")
	if d.IntN(2) == 0 {
		d.drop("Content-Length")
	}
	d.chunked()
	d.fields[len(d.fields)-1] = "Transfer-Encoding: " + name + "\r\n"
}

// size changes one chunk's size line.
func (d *draft) size(f func(string) string) {
	var at []int
	for i := 0; i < len(d.body); i += 3 {
		at = append(at, i)
	}
	if len(d.body) < 2 {
		return
	}
	i := pick(d.Rand, at...)
	d.body[i] = f(strings.TrimSuffix(d.body[i], "\r\n")) + "\r\n"
}

func (d *draft) oneBody(f func(string) string) {
	if len(d.body) > 0 {
		i := d.IntN(len(d.body))
		d.body[i] = f(d.body[i])
	}
}
