package proxy

import (
	"bytes"
	"crypto/tls"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/postern-proxy/postern/agent/proxy/h1"
)

// frames are a client's, written by hand.
type frames struct {
	t   *testing.T
	f   *http2.Framer
	enc *hpack.Encoder
	buf bytes.Buffer
}

func (w *world) frames() *frames {
	w.t.Helper()
	tc := w.secure("h2")
	tc.SetDeadline(time.Now().Add(20 * time.Second))
	w.t.Cleanup(func() { tc.Close() })
	io.WriteString(tc, http2.ClientPreface)
	f := &frames{t: w.t.(*testing.T), f: http2.NewFramer(tc, tc)}
	f.f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.f.AllowIllegalWrites = true
	f.enc = hpack.NewEncoder(&f.buf)
	f.f.WriteSettings()
	return f
}

// settle waits until the other side has read the settings.
func (f *frames) settle() {
	for {
		if s, ok := f.next().(*http2.SettingsFrame); ok && s.IsAck() {
			return
		}
	}
}

func (f *frames) next() http2.Frame {
	f.t.Helper()
	fr, err := f.f.ReadFrame()
	if err != nil {
		f.t.Fatal(err)
	}
	if s, ok := fr.(*http2.SettingsFrame); ok && !s.IsAck() {
		f.f.WriteSettingsAck()
	}
	return fr
}

// ask begins a stream; fields are names and values in turn.
func (f *frames) ask(id uint32, end bool, fields ...string) {
	f.t.Helper()
	f.buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		f.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	if err := f.f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: f.buf.Bytes(), EndHeaders: true, EndStream: end}); err != nil {
		f.t.Fatal(err)
	}
}

// outcome is the status that a stream gets, or how it was reset.
func (f *frames) outcome(id uint32) string {
	f.t.Helper()
	for {
		switch fr := f.next().(type) {
		case *http2.MetaHeadersFrame:
			if fr.StreamID == id {
				return fr.PseudoValue("status")
			}
		case *http2.RSTStreamFrame:
			if fr.StreamID == id {
				return fr.ErrCode.String()
			}
		case *http2.GoAwayFrame:
			return "GOAWAY " + fr.ErrCode.String()
		}
	}
}

// pseudo begins a request that is in order.
func (w *world) pseudo(more ...string) []string {
	return append([]string{":method", "POST", ":scheme", "https", ":authority", w.upHost, ":path", "/v1/x"}, more...)
}

// What HTTP/2 can carry and HTTP/1.1 cannot, or could be read by two as two
// things, reaches nobody (RFC 9113 sections 8.1.1, 8.2.1 and 10.3).
func TestDowngradeSmuggling(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
	}, withHTTP2)
	with := func(i int, value string) []string {
		p := w.pseudo()
		p[2*i+1] = value
		return p
	}
	const hidden = "GET /v1/hidden HTTP/1.1\r\nHost: x\r\n\r\n"
	cases := map[string]struct {
		fields []string
		body   string
		want   string // outcomes with | between
	}{
		"length too short": {w.pseudo("content-length", "3", "x-cut", "yes"), "hello", "INTERNAL_ERROR|PROTOCOL_ERROR"},
		"length too long":  {w.pseudo("content-length", "60", "x-cut", "yes"), "hello", "INTERNAL_ERROR"}, // its beginning may be on its way

		"length without a body":      {w.pseudo("content-length", "60"), "", "400|PROTOCOL_ERROR"},
		"two lengths":                {w.pseudo("content-length", "5", "content-length", "60"), "hello", "400"},
		"two equal lengths":          {w.pseudo("content-length", "5", "content-length", "5"), "hello", "400"},
		"length list":                {w.pseudo("content-length", "5, 5"), "hello", "400|PROTOCOL_ERROR"},
		"length with sign":           {w.pseudo("content-length", "+5"), "hello", "400|PROTOCOL_ERROR"},
		"underscored length":         {w.pseudo("content-length", "5", "content_length", "60"), "hello", "400"},
		"underscored coding":         {w.pseudo("transfer_encoding", "chunked"), "0\r\n\r\n" + hidden, "400"},
		"transfer-encoding":          {w.pseudo("transfer-encoding", "chunked"), "0\r\n\r\n" + hidden, "400|PROTOCOL_ERROR"},
		"connection":                 {w.pseudo("connection", "authorization"), "", "400|PROTOCOL_ERROR"},
		"keep-alive":                 {w.pseudo("keep-alive", "1"), "", "400|PROTOCOL_ERROR"},
		"proxy-connection":           {w.pseudo("proxy-connection", "keep-alive"), "", "400|PROTOCOL_ERROR"},
		"upgrade":                    {w.pseudo("upgrade", "websocket"), "", "400|PROTOCOL_ERROR"},
		"te":                         {w.pseudo("te", "trailers, deflate"), "", "400|PROTOCOL_ERROR"},
		"line end in a value":        {w.pseudo("x-a", "b\r\ntransfer-encoding: chunked"), "0\r\n\r\n" + hidden, "PROTOCOL_ERROR|GOAWAY PROTOCOL_ERROR"},
		"line feed in a value":       {w.pseudo("x-a", "b\nx-b: c"), "", "PROTOCOL_ERROR"},
		"nul in a value":             {w.pseudo("x-a", "b\x00c"), "", "PROTOCOL_ERROR"},
		"line end in a name":         {w.pseudo("x-a: b\r\nx-b", "c"), "", "PROTOCOL_ERROR"},
		"colon in a name":            {w.pseudo("transfer-encoding: chunked, x", "c"), "", "PROTOCOL_ERROR"},
		"space in a name":            {w.pseudo("transfer-encoding ", "chunked"), "", "PROTOCOL_ERROR"},
		"upper case in a name":       {w.pseudo("Transfer-Encoding", "chunked"), "", "PROTOCOL_ERROR"},
		"empty name":                 {w.pseudo("", "x"), "", "PROTOCOL_ERROR"},
		"method with a line":         {with(0, "GET /v1/hidden HTTP/1.1\r\nX: "), "", "PROTOCOL_ERROR"},
		"method with a target":       {with(0, "GET /v1/hidden HTTP/1.1"), "", "400|PROTOCOL_ERROR"},
		"path with a version":        {with(3, "/v1/x HTTP/1.1"), "", "400|PROTOCOL_ERROR"},
		"path with a line":           {with(3, "/v1/x HTTP/1.1\r\nX: y"), "", "PROTOCOL_ERROR"},
		"path with a fragment":       {with(3, "/v1/x#y"), "", "400|PROTOCOL_ERROR"},
		"path of another host":       {with(3, "https://evil.example/v1/x"), "", "421"},
		"no path":                    {with(3, ""), "", "PROTOCOL_ERROR"},
		"another authority":          {with(2, "evil.example"), "", "421"},
		"authority with a name":      {with(2, "user@"+w.upHost), "", "421|PROTOCOL_ERROR"},
		"plain scheme":               {with(1, "http"), "", "421"},
		"strange scheme":             {with(1, "ftp"), "", "PROTOCOL_ERROR"},
		"scheme with a line":         {with(1, "https://evil.example/\r\nx: y"), "", "PROTOCOL_ERROR"},
		"host beside the authority":  {w.pseudo("host", "evil.example"), "", "400"},
		"two hosts":                  {w.pseudo("host", w.upHost, "host", w.upHost), "", "400"},
		"two authorities":            {append([]string{":authority", "evil.example"}, w.pseudo()...), "", "PROTOCOL_ERROR"},
		"two paths":                  {append([]string{":path", "/v1/hidden"}, w.pseudo()...), "", "PROTOCOL_ERROR"},
		"pseudo field behind others": {append([]string{"x-a", "b"}, w.pseudo()...), "", "PROTOCOL_ERROR"},
		"unknown pseudo field":       {append([]string{":x", "b"}, w.pseudo()...), "", "PROTOCOL_ERROR"},
		"a status":                   {append([]string{":status", "200"}, w.pseudo()...), "", "PROTOCOL_ERROR"},
		"extended CONNECT":           {append([]string{":protocol", "websocket"}, with(0, "CONNECT")...), "", "PROTOCOL_ERROR"},
		"CONNECT":                    {[]string{":method", "CONNECT", ":authority", w.upHost}, "", "400"},
		"expectation":                {w.pseudo("expect", "x"), "", "417"},
		"another site's page":        {w.pseudo("sec-fetch-site", "cross-site"), "", "403"},
		"a head that is too long":    {w.pseudo("x-a", strings.Repeat("a", 70<<10)), "", "GOAWAY FRAME_SIZE_ERROR"},
		"a head of many fields":      {w.pseudo(strings.Split(strings.Repeat("x-a,"+strings.Repeat("a", 300)+",", 250)+"x-a,b", ",")...), "", "431"},
		"too many fields":            {w.pseudo(strings.Split(strings.Repeat("x-a,b,", 300)+"x-a,b", ",")...), "", "400"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f := w.frames()
			f.t = t
			f.ask(1, c.body == "", c.fields...)
			if c.body != "" {
				f.f.WriteData(1, true, []byte(c.body))
			}
			if got := f.outcome(1); !strings.Contains("|"+c.want+"|", "|"+got+"|") {
				t.Errorf("the stream gets %s, want %s", got, c.want)
			}
			if strings.Contains(c.want, "GOAWAY") {
				return // or it has ended
			}
			// The connection goes on, and the next stream is its own.
			f.ask(3, true, append(w.pseudo(), "x-own", "yes")...)
			if got := f.outcome(3); got != "200" {
				t.Errorf("the next stream gets %s", got)
			}
		})
	}
	for _, q := range w.requests() {
		if q.Header.Get("X-Own") != "yes" && q.Header.Get("X-Cut") != "yes" {
			t.Errorf("the provider was asked %s %s with %q", q.Method, q.RequestURI, q.Header)
		}
	}
}

// Whatever a stream's request says, its head is read as that, or refused.
func FuzzStreamHead(f *testing.F) {
	f.Add("POST", "/v1/x", "api.openai.com", "X-A", "b", "", int64(5))
	f.Add("GET /y HTTP/1.1\r\nX:", "/x", "h", "a: b\r\nTransfer-Encoding", "chunked", "5", int64(-1))
	f.Add("GET", "/x HTTP/1.1\r\n\r\nGET /y", "h\r\nX: y", "Content-Length", "60", "h", int64(0))
	f.Add("GET", "/x", "h", "A", "b\r\nX-Hidden: yes", "", int64(0))
	f.Add("GET", "/x", "h\r\nX-Hidden: yes", "A", "b", "", int64(0))
	f.Add("GET", "/x HTTP/1.1\r\nX-Hidden: yes\r\nX:", "h", "A", "b", "", int64(0))
	f.Add("GET", "/x", "h", "Content_Length", "60\r\n\r\n", "other", int64(60))
	f.Fuzz(func(t *testing.T, method, target, host, name, value, other string, length int64) {
		r := &http.Request{Method: method, RequestURI: target, Host: host, TLS: &tls.ConnectionState{}, ContentLength: length, Header: http.Header{name: {value}}}
		if other != "" {
			r.Header["Host"] = []string{other}
		}
		head, chunked, err := streamHead(r)
		if err != nil {
			return
		}
		var q h1.Request
		n, err := q.Parse(head)
		if err != nil {
			return
		}
		if n != len(head) {
			t.Fatalf("%q is read as a head of %d bytes, or none", head, n)
		}
		if string(q.Method) != method || string(q.Target) != target || string(q.Host) != strings.Trim(host, " \t") {
			t.Errorf("%q %q of %q is read as %q %q of %q", method, target, host, q.Method, q.Target, q.Host)
		}
		if q.Chunked != chunked || !chunked && q.Length != 0 && q.Length != length {
			t.Errorf("a body of %d is read as one of %d, chunked %t", length, q.Length, q.Chunked)
		}
		if other != "" && other != host {
			t.Errorf("%q beside %q passes", other, host)
		}
		for _, field := range q.Fields {
			switch is := string(field.Name); {
			case is == "Host" || is == "Transfer-Encoding" && chunked || is == "Content-Length":
			case is != name || string(field.Value) != strings.Trim(value, " \t"):
				t.Errorf("%q: %q is read as %q: %q", name, value, field.Name, field.Value)
			}
		}
	})
}
