package h1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// message is what a reader of one request or response takes from a connection.
type message struct {
	line   string // method and target, or status
	fields []string
	body   string
}

// read parses one message off raw, which comes in pieces of at most cut bytes.
// It returns what follows it. io.ErrUnexpectedEOF: raw ends too early.
func read(raw []byte, cut int, parse func(b []byte) (*Head, string, int, error)) (m message, rest []byte, err error) {
	var h *Head
	n := 0
	for have := 0; n == 0; {
		if have == len(raw) {
			return m, raw, io.ErrUnexpectedEOF
		}
		have = min(have+cut, len(raw))
		if h, m.line, n, err = parse(raw[:have]); err != nil {
			return m, raw, err
		}
	}
	for _, f := range h.Fields {
		m.fields = append(m.fields, fmt.Sprintf("%s: %s", f.Name, f.Value))
	}
	rest = raw[n:]
	switch {
	case h.Chunked:
		var c Chunked
		for !c.Ended() {
			if len(rest) == 0 {
				return m, rest, io.ErrUnexpectedEOF
			}
			piece := bytes.Clone(rest[:min(cut, len(rest))])
			data, k, err := c.Next(piece)
			m.body += string(data)
			if err != nil {
				return m, rest, err
			}
			rest = rest[k:]
		}
	case h.Length < 0:
		m.body, rest = string(rest), nil
	case int64(len(rest)) < h.Length:
		return m, rest, io.ErrUnexpectedEOF
	default:
		m.body, rest = string(rest[:h.Length]), rest[h.Length:]
	}
	return m, rest, nil
}

func readRequest(raw []byte, cut int) (message, []byte, error) {
	var r Request
	return read(raw, cut, func(b []byte) (*Head, string, int, error) {
		n, err := r.Parse(b)
		return &r.Head, string(r.Method) + " " + string(r.Target), n, err
	})
}

func readResponse(raw []byte, cut int, bodiless bool) (message, []byte, error) {
	var r Response
	return read(raw, cut, func(b []byte) (*Head, string, int, error) {
		n, err := r.Parse(b, bodiless)
		return &r.Head, fmt.Sprint(r.Status), n, err
	})
}

var good = []string{
	"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET / HTTP/1.0\r\n\r\n",
	"POST /v1/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
	"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: b\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\nA\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n",
	"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n",
	"GET http://a/ HTTP/1.1\r\nHost:\ta \r\nX: \r\nx-y_z: \t\xc3\xa9 b\t\r\nConnection: close\r\n\r\n",
}

// compare reads a sequence of requests, and net/http reads the same in it.
func compare(t *testing.T, raw []byte, cut int) {
	t.Helper()
	br := bufio.NewReaderSize(bytes.NewReader(raw), 128<<10)
	for rest := raw; len(rest) > 0; {
		m, next, err := readRequest(rest, cut)
		if err != nil {
			return
		}
		rest = next
		req, err := http.ReadRequest(br)
		if err != nil {
			return // net/http refuses more (a target that is no URL): nothing is read differently
		}
		body, err := io.ReadAll(req.Body)
		if err != nil || string(body) != m.body {
			t.Fatalf("%q: body %q, net/http's %q, %v", raw, m.body, body, err)
		}
		if req.Method+" "+req.RequestURI != m.line {
			t.Fatalf("%q: %q, net/http's %q %q", raw, m.line, req.Method, req.RequestURI)
		}
		sameFields(t, raw, m, req.Header, map[string]bool{"Host": true})
		if req.Method == http.MethodConnect {
			return
		}
	}
}

// sameFields compares the fields with net/http's, which takes some out.
func sameFields(t *testing.T, raw []byte, m message, theirs http.Header, taken map[string]bool) {
	t.Helper()
	ours := http.Header{}
	for _, f := range m.fields {
		k, v, _ := strings.Cut(f, ": ")
		if k = http.CanonicalHeaderKey(k); !taken[k] && k != "Transfer-Encoding" && k != "Trailer" && k != "Content-Length" {
			ours[k] = append(ours[k], v)
		}
	}
	theirs = theirs.Clone()
	theirs.Del("Content-Length")
	theirs.Del("Trailer")
	if pragma := ours["Pragma"]; len(pragma) > 0 && pragma[0] == "no-cache" && ours["Cache-Control"] == nil {
		theirs.Del("Cache-Control") // net/http adds it
	}
	if fmt.Sprint(ours) != fmt.Sprint(theirs) {
		t.Fatalf("%q: fields\n%q, net/http's\n%q", raw, ours, theirs)
	}
}

func TestRequestsThatAreCertain(t *testing.T) {
	for _, raw := range good {
		for _, cut := range []int{1, 7, len(raw)} {
			rest := []byte(raw)
			for len(rest) > 0 {
				var err error
				if _, rest, err = readRequest(rest, cut); err != nil {
					t.Errorf("%q by %d: %v", raw, cut, err)
					break
				}
			}
			compare(t, []byte(raw), cut)
		}
	}
}

func TestRequestsThatAreAmbiguous(t *testing.T) {
	const post = "POST / HTTP/1.1\r\nHost: a\r\n"
	for name, raw := range map[string]string{
		"bare LF":                      "GET / HTTP/1.1\nHost: a\n\n",
		"bare LF after a field":        "GET / HTTP/1.1\r\nHost: a\n\r\n",
		"bare CR in a value":           "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
		"NUL in a value":               "GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
		"space before the colon":       "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
		"folded line":                  "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
		"empty name":                   "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
		"no colon":                     "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
		"empty line first":             "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"two spaces":                   "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
		"space in the target":          "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
		"tab in the request line":      "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"non-ASCII target":             "GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
		"HTTP/0.9":                     "GET /\r\n\r\n",
		"HTTP/2.0":                     "PRI * HTTP/2.0\r\n\r\n",
		"HTTP/1.2":                     "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
		"no Host":                      "GET / HTTP/1.1\r\n\r\n",
		"two Hosts":                    "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
		"length and chunked":           post + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"chunked and length":           post + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
		"two lengths":                  post + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
		"a list of lengths":            post + "Content-Length: 5, 5\r\n\r\nhello",
		"a signed length":              post + "Content-Length: +5\r\n\r\nhello",
		"a negative length":            post + "Content-Length: -5\r\n\r\nhello",
		"a hexadecimal length":         post + "Content-Length: 0x5\r\n\r\nhello",
		"an empty length":              post + "Content-Length:\r\n\r\nhello",
		"a huge length":                post + "Content-Length: 99999999999999999999\r\n\r\nhello",
		"length with underscore":       post + "Content_Length: 5\r\n\r\nhello",
		"length twice, once disguised": post + "Content-Length: 5\r\nContent_Length: 5\r\n\r\nhello",
		"encoding with underscore":     post + "Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n",
		"encoding xchunked":            post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"encoding gzip, chunked":       post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"encoding identity":            post + "Transfer-Encoding: identity\r\n\r\n",
		"encoding twice":               post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"encoding with a vertical tab": post + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
		"chunked in HTTP/1.0":          "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"chunk size with an extension": post + "Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
		"chunk size with a space":      post + "Transfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n",
		"chunk size with a sign":       post + "Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
		"chunk size 0x5":               post + "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
		"chunk size with bare LF":      post + "Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
		"empty chunk size":             post + "Transfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n",
		"chunk longer than its size":   post + "Transfer-Encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n",
		"chunk ends in LF":             post + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n",
		"trailer Content-Length":       post + "Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
		"trailer Host":                 post + "Transfer-Encoding: chunked\r\n\r\n0\r\nHost: b\r\n\r\n",
		"trailer folded":               post + "Transfer-Encoding: chunked\r\n\r\n0\r\nX: a\r\n b\r\n\r\n",
		"a head without end":           "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("a", MaxHead) + "\r\n\r\n",
		"too many fields":              "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: a\r\n", MaxFields) + "\r\n",
		"garbage":                      "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
	} {
		for _, cut := range []int{1, len(raw)} {
			m, _, err := readRequest([]byte(raw), cut)
			if !errors.As(err, new(Error)) {
				t.Errorf("%s, by %d: %q passed as %q, %v", name, cut, raw, m, err)
			}
		}
	}
}

func TestRequestHead(t *testing.T) {
	var r Request
	raw := []byte("POST /a?b HTTP/1.1\r\nhost:a:1\r\nCONNECTION: x, Close\r\nConnection: y\r\nX-A: 1\r\nX-A:2\r\nContent-Length: 5\r\n\r\nhello")
	n, err := r.Parse(raw)
	if err != nil || n != len(raw)-5 || string(r.Method) != "POST" || string(r.Target) != "/a?b" || string(r.Host) != "a:1" ||
		r.Minor != 1 || !r.Close || r.Length != 5 || len(r.Connection) != 2 || len(r.Fields) != 6 {
		t.Errorf("%d, %v, %+v", n, err, r)
	}
	if v, n := r.Get("x-a"); string(v) != "1" || n != 2 {
		t.Errorf("Get: %q, %d", v, n)
	}
	raw = []byte("GET / HTTP/1.0\r\n\r\n")
	if n, err := r.Parse(raw); err != nil || n != len(raw) || r.Host != nil || !r.Close || r.Length != 0 || r.Fields == nil || len(r.Fields)+len(r.Connection) != 0 {
		t.Errorf("reused: %d, %v, %+v", n, err, r)
	}
	if allocs := testing.AllocsPerRun(100, func() { r.Parse(raw) }); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func TestResponses(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for name, c := range map[string]struct {
		raw    string
		head   bool
		body   string
		rest   string
		refuse bool
	}{
		"length":                      {raw: ok + "Content-Length: 2\r\n\r\nokX", body: "ok", rest: "X"},
		"chunked":                     {raw: ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-A: b\r\n\r\nX", body: "ok", rest: "X"},
		"until the end":               {raw: ok + "\r\nok", body: "ok"},
		"no reason":                   {raw: "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"},
		"an empty reason":             {raw: "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n"},
		"to HEAD":                     {raw: ok + "Content-Length: 2\r\n\r\nX", head: true, rest: "X"},
		"to HEAD, chunked":            {raw: ok + "Transfer-Encoding: chunked\r\n\r\nX", head: true, rest: "X"},
		"interim":                     {raw: "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nX", rest: "X"},
		"no content":                  {raw: "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\nX", rest: "X"},
		"not modified":                {raw: "HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\nX", rest: "X"},
		"HTTP/1.0":                    {raw: "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", body: "ok"},
		"bare LF":                     {raw: "HTTP/1.1 200 OK\nContent-Length: 2\n\nok", refuse: true},
		"bare LF after a field":       {raw: ok + "Content-Length: 2\n\r\nok", refuse: true},
		"folded":                      {raw: ok + "X: a\r\n b\r\nContent-Length: 2\r\n\r\nok", refuse: true},
		"space before the colon":      {raw: ok + "Content-Length : 2\r\n\r\nok", refuse: true},
		"no colon":                    {raw: ok + "sk-proj\r\n\r\nok", refuse: true},
		"both framings":               {raw: ok + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", refuse: true},
		"both framings, to HEAD":      {raw: ok + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", head: true, refuse: true},
		"two lengths":                 {raw: ok + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", refuse: true},
		"a list of lengths":           {raw: ok + "Content-Length: 2, 2\r\n\r\nok", refuse: true},
		"no length":                   {raw: ok + "Content-Length: x\r\n\r\nok", refuse: true},
		"coded chunks":                {raw: ok + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", refuse: true},
		"identity":                    {raw: ok + "Transfer-Encoding: identity\r\n\r\nok", refuse: true},
		"length in disguise":          {raw: ok + "Content_Length: 2\r\n\r\nok", refuse: true},
		"chunked in HTTP/1.0":         {raw: "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", refuse: true},
		"a chunk size with a space":   {raw: ok + "Transfer-Encoding: chunked\r\n\r\n2 \r\nok\r\n0\r\n\r\n", refuse: true},
		"status 99":                   {raw: "HTTP/1.1 99 X\r\n\r\n", refuse: true},
		"status 042":                  {raw: "HTTP/1.1 042 X\r\n\r\n", refuse: true},
		"status 2000":                 {raw: "HTTP/1.1 2000 X\r\n\r\n", refuse: true},
		"status +20":                  {raw: "HTTP/1.1 +20 X\r\n\r\n", refuse: true},
		"two spaces":                  {raw: "HTTP/1.1  200 X\r\n\r\n", refuse: true},
		"HTTP/2":                      {raw: "HTTP/2 200 X\r\n\r\n", refuse: true},
		"ICY":                         {raw: "ICY 200 OK\r\n\r\n", refuse: true},
		"a control character":         {raw: ok + "X: a\x00\r\n\r\n", refuse: true},
		"a control character, reason": {raw: "HTTP/1.1 200 a\x01\r\n\r\n", refuse: true},
		"an empty line first":         {raw: "\r\n" + ok + "\r\n", refuse: true},
		"no end":                      {raw: ok + "X: " + strings.Repeat("a", MaxAnswer), refuse: true},
	} {
		for _, cut := range []int{1, len(c.raw)} {
			m, rest, err := readResponse([]byte(c.raw), cut, c.head)
			if c.refuse {
				if !errors.As(err, new(Error)) {
					t.Errorf("%s, by %d: passed as %q, %v", name, cut, m, err)
				}
				continue
			}
			if err != nil || m.body != c.body || string(rest) != c.rest {
				t.Errorf("%s, by %d: %q, rest %q, %v", name, cut, m, rest, err)
			}
		}
		if !c.refuse && !strings.HasPrefix(name, "interim") {
			compareResponse(t, []byte(c.raw), c.head)
		}
	}
}

// compareResponse: what is read of a response, net/http reads too.
func compareResponse(t *testing.T, raw []byte, head bool) {
	t.Helper()
	m, _, err := readResponse(raw, len(raw), head)
	if err != nil {
		return
	}
	req := &http.Request{Method: http.MethodGet}
	if head {
		req.Method = http.MethodHead
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(bytes.NewReader(raw), 512<<10), req)
	if err != nil {
		return // it refuses more
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != m.body || fmt.Sprint(resp.StatusCode) != m.line {
		t.Fatalf("%q: %s %q, net/http's %d %q, %v", raw, m.line, m.body, resp.StatusCode, body, err)
	}
	sameFields(t, raw, m, resp.Header, nil)
}

// FuzzRequest: what is accepted, net/http reads as the same, however the bytes were cut.
func FuzzRequest(f *testing.F) {
	for _, s := range good {
		f.Add([]byte(s), uint8(7))
	}
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), uint8(1))
	f.Fuzz(func(t *testing.T, raw []byte, cut uint8) {
		whole, wholeRest, err := readRequest(raw, max(len(raw), 1))
		pieces, piecesRest, cutErr := readRequest(raw, int(cut)%64+1)
		if ok := err == nil; ok != (cutErr == nil) || ok && (fmt.Sprint(whole) != fmt.Sprint(pieces) || !bytes.Equal(wholeRest, piecesRest)) {
			t.Fatalf("whole: %q, %v\ncut by %d: %q, %v", whole, err, int(cut)%64+1, pieces, cutErr)
		}
		compare(t, raw, int(cut)%64+1)
	})
}

func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
		"HTTP/1.0 404 No\r\n\r\nbody", "HTTP/1.1 204 No\r\nX-A: a\r\n\r\n", "HTTP/1.1 103 Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
	} {
		f.Add([]byte(s), uint8(3), false)
	}
	f.Fuzz(func(t *testing.T, raw []byte, cut uint8, head bool) {
		whole, wholeRest, err := readResponse(raw, max(len(raw), 1), head)
		pieces, piecesRest, cutErr := readResponse(raw, int(cut)%64+1, head)
		if ok := err == nil; ok != (cutErr == nil) || ok && (fmt.Sprint(whole) != fmt.Sprint(pieces) || !bytes.Equal(wholeRest, piecesRest)) {
			t.Fatalf("whole: %q, %v\ncut by %d: %q, %v", whole, err, int(cut)%64+1, pieces, cutErr)
		}
		compareResponse(t, raw, head)
	})
}

func BenchmarkRequest(b *testing.B) {
	raw := []byte("POST /openai/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8700\r\nUser-Agent: OpenAI/JS\r\nAccept: application/json\r\nContent-Type: application/json\r\nAuthorization: Bearer attached-by-postern\r\nX-Stainless-Lang: js\r\nX-Stainless-OS: Linux\r\nAccept-Encoding: gzip\r\nContent-Length: 100\r\n\r\n" + strings.Repeat("x", 100))
	var r Request
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Parse(raw); err != nil {
			b.Fatal(err)
		}
	}
}
