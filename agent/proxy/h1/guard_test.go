package h1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

// through sends raw through a guard in the manner of wrap and returns what came out.
func through(raw string, wrap func(io.Reader) io.Reader) (string, error) {
	out, err := io.ReadAll(NewGuard(wrap(strings.NewReader(raw))))
	return string(out), err
}

func whole(r io.Reader) io.Reader { return r }

var good = []string{
	"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET / HTTP/1.0\r\n\r\n",
	"POST /v1/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
	"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: b\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\nA\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n",
	"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n",
	"GET http://a/ HTTP/1.1\r\nHost:\ta \r\nX: \r\n\r\n",
}

func TestGuardPassesWhatIsCertain(t *testing.T) {
	for _, raw := range good {
		for name, wrap := range map[string]func(io.Reader) io.Reader{"whole": whole, "bytewise": iotest.OneByteReader, "half": iotest.HalfReader, "with the error": iotest.DataErrReader} {
			out, err := through(raw, wrap)
			if err != nil || out != raw {
				t.Errorf("%s %q: got %q, %v", name, raw, out, err)
			}
		}
	}
}

func TestGuardRefusesWhatIsAmbiguous(t *testing.T) {
	const post = "POST / HTTP/1.1\r\nHost: a\r\n"
	for name, raw := range map[string]string{
		"bare LF":                           "GET / HTTP/1.1\nHost: a\n\n",
		"bare LF after a field":             "GET / HTTP/1.1\r\nHost: a\n\r\n",
		"bare CR in a value":                "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
		"NUL in a value":                    "GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
		"space before the colon":            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
		"folded line":                       "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
		"empty name":                        "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
		"no colon":                          "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
		"empty line first":                  "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"two spaces":                        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
		"space in the target":               "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
		"tab in the request line":           "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"non-ASCII target":                  "GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
		"HTTP/0.9":                          "GET /\r\n\r\n",
		"HTTP/2.0":                          "PRI * HTTP/2.0\r\n\r\n",
		"HTTP/1.2":                          "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
		"no Host":                           "GET / HTTP/1.1\r\n\r\n",
		"two Hosts":                         "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
		"length and chunked":                post + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"chunked and length":                post + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
		"two lengths":                       post + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
		"a list of lengths":                 post + "Content-Length: 5, 5\r\n\r\nhello",
		"a signed length":                   post + "Content-Length: +5\r\n\r\nhello",
		"a negative length":                 post + "Content-Length: -5\r\n\r\nhello",
		"a hexadecimal length":              post + "Content-Length: 0x5\r\n\r\nhello",
		"an empty length":                   post + "Content-Length:\r\n\r\nhello",
		"a huge length":                     post + "Content-Length: 99999999999999999999\r\n\r\nhello",
		"length with underscore":            post + "Content_Length: 5\r\n\r\nhello",
		"length twice, once disguised":      post + "Content-Length: 5\r\nContent_Length: 5\r\n\r\nhello",
		"encoding with underscore":          post + "Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n",
		"encoding xchunked":                 post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"encoding gzip, chunked":            post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"encoding identity":                 post + "Transfer-Encoding: identity\r\n\r\n",
		"encoding twice":                    post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"encoding with a vertical tab":      post + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
		"chunked in HTTP/1.0":               "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"chunk size with an extension":      post + "Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
		"chunk size with a space":           post + "Transfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n",
		"chunk size with a sign":            post + "Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
		"chunk size 0x5":                    post + "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
		"chunk size with bare LF":           post + "Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
		"empty chunk size":                  post + "Transfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n",
		"chunk longer than its size":        post + "Transfer-Encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n",
		"chunk ends in LF":                  post + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n",
		"trailer Content-Length":            post + "Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
		"trailer Host":                      post + "Transfer-Encoding: chunked\r\n\r\n0\r\nHost: b\r\n\r\n",
		"trailer folded":                    post + "Transfer-Encoding: chunked\r\n\r\n0\r\nX: a\r\n b\r\n\r\n",
		"a head without end":                "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("a", MaxHead) + "\r\n\r\n",
		"too many fields":                   "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: a\r\n", MaxFields) + "\r\n",
		"garbage":                           "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
		"smuggled behind a refused request": post + "Content-Length: 5\r\n\r\nhelloX\n\n",
	} {
		for way, wrap := range map[string]func(io.Reader) io.Reader{"whole": whole, "bytewise": iotest.OneByteReader} {
			out, err := through(raw, wrap)
			var e Error
			if !errors.As(err, &e) {
				t.Errorf("%s (%s): %q passed as %q, %v", name, way, raw, out, err)
			}
			if name != "smuggled behind a refused request" && strings.Contains(out, "\r\n\r\nhello") {
				t.Errorf("%s (%s): %q came through", name, way, out)
			}
		}
	}
}

// What was held back when the protocol changed comes through first.
func TestGuardOpaque(t *testing.T) {
	r, w := io.Pipe()
	g := NewGuard(r)
	const head = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
	go func() { io.WriteString(w, head) }()
	b := make([]byte, 4096)
	n, err := g.Read(b)
	if err != nil || string(b[:n]) != head {
		t.Fatalf("head: %q, %v", b[:n], err)
	}
	g.Opaque()
	go func() { w.Write([]byte{0x81, 0x85, '\n', 0, 1}) }()
	if n, err = g.Read(b); err != nil || n != 5 {
		t.Fatalf("frame: % x, %v", b[:n], err)
	}
}

func TestGuardStaysShut(t *testing.T) {
	g := NewGuard(strings.NewReader("GET / HTTP/1.1\nHost: a\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"))
	b := make([]byte, 4096)
	for range 3 {
		n, err := g.Read(b)
		var e Error
		if n != 0 || !errors.As(err, &e) {
			t.Fatalf("read %q, %v", b[:n], err)
		}
	}
}

// What came behind a CONNECT is nothing that could be wrong as HTTP, once the connection is the tunnel's.
func TestGuardOpensAfterAnError(t *testing.T) {
	const head, hello = "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", "\x16\x03\x01\n\x00"
	g := NewGuard(strings.NewReader(head + hello))
	b := make([]byte, 4096)
	if n, err := g.Read(b); err != nil || string(b[:n]) != head {
		t.Fatalf("head: %q, %v", b[:n], err)
	}
	if g.Failed() == nil {
		t.Fatal("the guard took it for HTTP")
	}
	g.Opaque()
	if rest, err := io.ReadAll(g); err != nil || string(rest) != hello {
		t.Fatalf("%q, %v", rest, err)
	}
}

// FuzzGuard: what passes, net/http reads as the same sequence of requests with
// nothing left over, however the bytes were cut.
func FuzzGuard(f *testing.F) {
	for _, s := range good {
		f.Add([]byte(s), uint8(7))
	}
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), uint8(1))
	f.Fuzz(func(t *testing.T, raw []byte, cut uint8) {
		out, err := io.ReadAll(NewGuard(bytes.NewReader(raw)))
		cutOut, cutErr := io.ReadAll(NewGuard(&cutting{raw, int(cut)%64 + 1}))
		if !bytes.Equal(out, cutOut) || (err == nil) != (cutErr == nil) {
			t.Fatalf("whole: %q, %v\ncut by %d: %q, %v", out, err, int(cut)%64+1, cutOut, cutErr)
		}
		if !bytes.HasPrefix(raw, out) {
			t.Fatalf("%q became %q", raw, out)
		}
		if err != nil || !bytes.Equal(raw, out) {
			return
		}
		br := bufio.NewReaderSize(bytes.NewReader(out), 128<<10)
		for {
			req, err := http.ReadRequest(br)
			if err == io.EOF {
				return
			}
			if err != nil {
				return // net/http refuses more (a target that is no URL): nothing is read differently
			}
			framing := req.Header.Get("Content-Length") != "" && len(req.TransferEncoding) > 0
			if framing {
				t.Fatalf("%q: both framings", out)
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil && !strings.Contains(err.Error(), "EOF") { // the input may just end
				t.Fatalf("%q: body: %v", out, err)
			}
			if req.Method == http.MethodConnect {
				return
			}
		}
	})
}

// cutting yields at most n bytes a read.
type cutting struct {
	b []byte
	n int
}

func (c *cutting) Read(p []byte) (int, error) {
	if len(c.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.n)], c.b)
	c.b = c.b[n:]
	return n, nil
}

func BenchmarkGuard(b *testing.B) {
	raw := []byte("POST /openai/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8700\r\nUser-Agent: OpenAI/JS\r\nAccept: application/json\r\nContent-Type: application/json\r\nAuthorization: Bearer attached-by-postern\r\nX-Stainless-Lang: js\r\nX-Stainless-OS: Linux\r\nAccept-Encoding: gzip\r\nContent-Length: 100\r\n\r\n" + strings.Repeat("x", 100))
	r := bytes.NewReader(raw)
	g := NewGuard(r)
	buf := make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		r.Reset(raw)
		if n, err := g.Read(buf); n != len(raw) || err != nil {
			b.Fatal(n, err)
		}
	}
}
