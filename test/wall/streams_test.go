package wall_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// tunnelH2 is a tunnel in which the client speaks HTTP/2. A case's text is sent as
// frames; fields are the names and values of one that is to be sent as they are.
const tunnelH2 = "tunnel-h2"

const sequel = "HTTP/2: The Sequel is Always Worse" // James Kettle, 2021

// pseudo are the fields of a request that is in order, but for what is given anew.
func pseudo(but ...string) []string {
	all := []string{":method", "POST", ":scheme", "https", ":authority", "{provider}", ":path", "/v1/chat/completions"}
	for i := 0; i < len(but); i += 2 {
		for k := 0; k < len(all); k += 2 {
			if all[k] == but[i] {
				all[k+1] = but[i+1]
			}
		}
	}
	return all
}

// with is a request that is in order and these fields beside.
func with(more ...string) []string { return append(pseudo(), more...) }

// before is with, and the fields stand before all others.
func before(more ...string) []string { return append(more, pseudo()...) }

// downgraded is a request that must reach nobody as HTTP/1.1 or anything else:
// the stream gets one of these, net/http's own refusal (400 without a code) among them.
func downgraded(name, source string, fields []string, body string, outcomes ...string) kase {
	return kase{name: name, inv: "I13", source: source, on: tunnelH2, to: "h2", fields: fields, body: body,
		want: want{anyhow: true, answer: endsIn(outcomes...)}}
}

const (
	framingCode = "400 bad_framing"
	malformed   = "400 "
	protocol    = "PROTOCOL_ERROR"
	goneAway    = "GOAWAY PROTOCOL_ERROR"
)

// endsIn: the stream's outcome is a status with our code, or how it was reset.
func endsIn(outcomes ...string) func(*run, *reply) {
	return func(r *run, got *reply) {
		outcome := fmt.Sprintf("%d %s", got.StatusCode, got.Header.Get("Postern-Error"))
		if got.StatusCode == 0 {
			outcome = fmt.Sprint(got.err)
		}
		for _, o := range outcomes {
			if o == outcome {
				return
			}
		}
		r.t.Errorf("the stream ends in %q, want one of %q", outcome, outcomes)
	}
}

const smuggled = "0\r\n\r\nGET /v1/hidden HTTP/1.1\r\nHost: h2.test\r\n\r\n"

// overStreams: what HTTP/2 can say and HTTP/1.1 cannot, or says otherwise.
var overStreams = &group{class: 18, name: "stream", says: "HTTP/2 downgraded to HTTP/1.1", cases: []kase{
	downgraded("two-lengths", "CVE-2021-21295", with("content-length", "5", "content-length", "60"), "hello", framingCode),
	downgraded("two-equal-lengths", "RFC 9110 8.6", with("content-length", "5", "content-length", "5"), "hello", framingCode),
	downgraded("length-list", "RFC 9110 8.6", with("content-length", "5, 5"), "hello", framingCode, protocol),
	downgraded("length-with-sign", "RFC 9110 8.6", with("content-length", "+5"), "hello", framingCode, protocol),
	downgraded("length-and-no-body", "CVE-2021-21295", with("content-length", "60"), "", framingCode, protocol),
	downgraded("length-shorter-than-the-body", "CVE-2021-21295", with("content-length", "3"), smuggled, framingCode, protocol, "INTERNAL_ERROR"),
	// A request of no body is whole when its fields have come: the provider may have had it, as that.
	again(downgraded("length-of-nothing-and-a-body", "CVE-2021-21295", with("content-length", "0"), smuggled, framingCode, protocol, "INTERNAL_ERROR", "200 ")),
	downgraded("length-longer-than-the-body", "CVE-2021-21295", with("content-length", "60"), "hello", "INTERNAL_ERROR", protocol),
	downgraded("underscored-length", "CVE-2025-64484", with("content-length", "5", "content_length", "60"), "hello", framingCode),
	downgraded("underscored-transfer-encoding", "CVE-2025-64484", with("transfer_encoding", "chunked"), smuggled, framingCode),
	downgraded("transfer-encoding", sequel, with("transfer-encoding", "chunked"), smuggled, malformed, protocol),
	downgraded("transfer-encoding-in-a-value", sequel, with("x-a", "b\r\ntransfer-encoding: chunked"), smuggled, protocol, goneAway),
	downgraded("transfer-encoding-in-a-name", sequel, with("x-a: b\r\ntransfer-encoding", "chunked"), smuggled, protocol, goneAway),
	downgraded("colon-in-a-name", "RFC 9113 8.2.1", with("transfer-encoding:chunked x", "y"), "", protocol),
	downgraded("space-in-a-name", "RFC 9113 8.2.1", with("content-length ", "60"), "", protocol),
	downgraded("upper-case-in-a-name", "RFC 9113 8.2.1", with("Transfer-Encoding", "chunked"), "", protocol),
	downgraded("empty-name", "CVE-2023-25725", with("", "x"), "", protocol),
	downgraded("nul-in-a-value", "RFC 9113 8.2.1", with("x-a", "b\x00c"), "", protocol),
	downgraded("line-feed-in-a-value", "RFC 9113 8.2.1", with("x-a", "b\nx-hidden: yes"), "", protocol),
	downgraded("connection", "RFC 9113 8.2.2", with("connection", "authorization"), "", malformed, protocol),
	downgraded("keep-alive", "RFC 9113 8.2.2", with("keep-alive", "timeout=5"), "", malformed, protocol),
	downgraded("proxy-connection", "RFC 9113 8.2.2", with("proxy-connection", "authorization"), "", malformed, protocol),
	downgraded("upgrade", "RFC 9113 8.2.2", with("upgrade", "websocket"), "", malformed, protocol),
	downgraded("te-that-is-more-than-trailers", "RFC 9113 8.2.2", with("te", "trailers, chunked"), "", malformed, protocol),
	downgraded("method-with-a-request", "CVE-2021-33193", pseudo(":method", "GET /v1/hidden HTTP/1.1\r\nHost: h2.test\r\n\r\nPOST"), "", protocol),
	downgraded("method-with-a-target", "CVE-2021-33193", pseudo(":method", "GET /v1/hidden HTTP/1.1"), "", framingCode, protocol),
	downgraded("path-with-a-version", sequel, pseudo(":path", "/v1/hidden HTTP/1.1"), "", framingCode, protocol),
	downgraded("path-with-a-line", sequel, pseudo(":path", "/v1/hidden HTTP/1.1\r\nX-A: b"), "", protocol),
	downgraded("path-with-a-fragment", "RFC 9113 8.3.1", pseudo(":path", "/v1/models#x"), "", framingCode, protocol),
	downgraded("no-path", "RFC 9113 8.3.1", pseudo(":path", ""), "", protocol),
	downgraded("two-paths", sequel, before(":path", "/v1/hidden"), "", protocol),
	downgraded("two-methods", sequel, before(":method", "GET"), "", protocol),
	downgraded("pseudo-field-behind-others", "RFC 9113 8.3", before("x-a", "b"), "", protocol),
	downgraded("unknown-pseudo-field", "RFC 9113 8.3", before(":hidden", "yes"), "", protocol),
	downgraded("extended-connect", "RFC 8441 4", append(pseudo(":method", "CONNECT"), ":protocol", "websocket"), "", protocol),
	downgraded("connect", "RFC 9113 8.5", []string{":method", "CONNECT", ":authority", "evil.test:443"}, "", "400 bad_host"),
	downgraded("ten-thousand-fields", "CVE-2023-45288", with(strings.Split(strings.Repeat("x-a,b,", 10_000)+"x-a,b", ",")...), "", "431 ", framingCode, goneAway, "GOAWAY ENHANCE_YOUR_CALM"),
	downgraded("strange-expectation", "RFC 9110 10.1.1", with("expect", "the-worst"), "", "417 bad_framing"),

	misdirected("another-authority", pseudo(":authority", "api.openai.com"), "421 host_mismatch"),
	misdirected("another-port", pseudo(":authority", "{provider}:8443"), "421 host_mismatch"),
	misdirected("authority-with-a-user", pseudo(":authority", "api.openai.com@{provider}"), "421 host_mismatch", protocol),
	misdirected("two-authorities", before(":authority", "api.openai.com"), protocol),
	misdirected("host-beside-the-authority", with("host", "api.openai.com"), framingCode),
	misdirected("two-hosts", with("host", "{provider}", "host", "{provider}"), framingCode),
	misdirected("host-and-no-authority", []string{":method", "GET", ":scheme", "https", ":path", "/v1/models", "host", "api.openai.com"}, "421 host_mismatch"),
	misdirected("path-of-another-host", pseudo(":path", "https://api.openai.com/v1/models"), "421 host_mismatch"),
	misdirected("plain-scheme", pseudo(":scheme", "http"), "421 host_mismatch"),
	misdirected("scheme-with-a-host", pseudo(":scheme", "https://api.openai.com/"), protocol),

	{name: "page-of-another-site", inv: "I2", source: "CVE-2018-5702", on: tunnelH2, to: "h2", send: models + "\nSec-Fetch-Site: cross-site", want: refused(403, "cross_site")},
	{name: "page-of-another-origin", inv: "I2", source: "CVE-2018-5702", on: tunnelH2, to: "h2", send: models + "\nOrigin: https://evil.test", want: refused(403, "cross_site")},
	{name: "dot-segments", inv: "I2", source: "CWE-22", on: tunnelH2, to: "h2", send: "GET /v1/../hidden HTTP/1.1\nHost: {host}", want: refused(400, "bad_path")},
	{name: "trailers-of-a-request", inv: "I3", source: "RFC 9113 8.1", on: tunnelH2, to: "h2", do: trailersOfAStream},
	{name: "trailers-of-an-answer", inv: "I5", source: "RFC 9113 8.1", on: tunnelH2, to: "h2", send: models + "\nTE: trailers",
		says: map[string]answer{h2Host: says("HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\n\r\n{}" + trailerMark + "grpc-status: 0\r\ngrpc-message: {key}\r\nhttp2-settings: AAMAAABk")}, want: attached(field("Te", "trailers")).and(trailersMasked)},
	{name: "not-where-the-provider-has-none", inv: "I14", source: "RFC 7301 3.2", on: direct, do: onlyWhereItIsConfigured},
	{name: "not-on-the-listener", inv: "I14", source: "RFC 9113 3.3", on: direct, want: want{anyhow: true, answer: noPreface}, raw: http2.ClientPreface},
	{name: "rapid-reset", inv: "I14", source: "CVE-2023-44487", on: tunnelH2, to: "h2", do: rapidReset},
}}

// misdirected is downgraded for what names another host than the tunnel's.
func misdirected(name string, fields []string, outcomes ...string) kase {
	c := downgraded(name, openSandbox, fields, "", outcomes...)
	c.inv = "I2"
	return c
}

// streams is a client's side of a connection in frames.
type streams struct {
	f    *http2.Framer
	enc  *hpack.Encoder
	buf  bytes.Buffer
	last uint32
}

// openStreams is a tunnel to the provider in which HTTP/2 was chosen.
func (r *run) openStreams() *client {
	r.t.Helper()
	c, got := r.tunnel(r.p.hostport())
	if got.StatusCode != http.StatusOK {
		r.t.Fatalf("CONNECT: %s %s", got.Status, got.body)
	}
	in, err := r.secure(c, &tls.Config{ServerName: r.p.host, NextProtos: []string{"h2"}})
	if err != nil {
		r.t.Fatalf("TLS: %v", err)
	}
	io.WriteString(in, http2.ClientPreface)
	s := &streams{f: http2.NewFramer(in, in.br)}
	s.f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	s.f.AllowIllegalWrites = true
	s.enc = hpack.NewEncoder(&s.buf)
	s.f.WriteSettings()
	in.streams = s
	return in
}

// begin writes a stream's head.
func (s *streams) begin(fields []string, end bool) uint32 {
	s.last += max(1, min(2, s.last+1)) // 1, 3, 5, …
	s.buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		s.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	block, first := s.buf.Bytes(), true
	for first || len(block) > 0 {
		n := min(len(block), 16<<10)
		if first {
			s.f.WriteHeaders(http2.HeadersFrameParam{StreamID: s.last, BlockFragment: block[:n], EndHeaders: n == len(block), EndStream: end})
		} else {
			s.f.WriteContinuation(s.last, n == len(block), block[:n])
		}
		block, first = block[n:], false
	}
	return s.last
}

// stream sends one request in frames and reads what becomes of it.
func (r *run) stream(c *client, fields []string, body string) *reply {
	r.t.Helper()
	id := c.streams.begin(fields, body == "")
	if body != "" {
		c.streams.f.WriteData(id, true, []byte(body))
	}
	return r.outcome(c, id)
}

// outcome is what a stream gets; the status is 0 and the error says how where it was reset.
func (r *run) outcome(c *client, id uint32) *reply {
	r.t.Helper()
	got := &reply{Response: &http.Response{Header: http.Header{}, Trailer: http.Header{}}}
	for {
		fr, err := c.streams.f.ReadFrame()
		if err != nil {
			got.StatusCode, got.err = 0, err
			return got
		}
		switch fr := fr.(type) {
		case *http2.SettingsFrame:
			if !fr.IsAck() {
				c.streams.f.WriteSettingsAck()
			}
		case *http2.GoAwayFrame:
			return &reply{Response: &http.Response{Header: http.Header{}}, err: fmt.Errorf("GOAWAY %v", fr.ErrCode)}
		}
		if fr.Header().StreamID != id {
			continue
		}
		switch fr := fr.(type) {
		case *http2.RSTStreamFrame:
			return &reply{Response: &http.Response{Header: http.Header{}}, err: fmt.Errorf("%v", fr.ErrCode)}
		case *http2.MetaHeadersFrame:
			into := got.Header
			if got.StatusCode != 0 {
				into = got.Trailer
			} else {
				got.StatusCode, _ = strconv.Atoi(fr.PseudoValue("status"))
			}
			for _, f := range fr.RegularFields() {
				r.heard.WriteString(f.Name + ": " + f.Value + "\r\n")
				into.Add(f.Name, f.Value)
			}
		case *http2.DataFrame:
			got.body += string(fr.Data())
		}
		if end, ok := fr.(interface{ StreamEnded() bool }); ok && end.StreamEnded() {
			return got
		}
	}
}

// pairs are a textual head's fields as HTTP/2 has them.
func pairs(head string) []string {
	lines := strings.Split(head, "\n")
	line := strings.Fields(lines[0])
	var host string
	var rest []string
	for _, l := range lines[1:] {
		name, value, _ := strings.Cut(l, ": ")
		if name == "Host" {
			host = value
		} else {
			rest = append(rest, strings.ToLower(name), value)
		}
	}
	return append([]string{":method", line[0], ":scheme", "https", ":authority", host, ":path", line[1]}, rest...)
}

// requestFields are those of the case.
func (r *run) requestFields() []string {
	if r.c.fields == nil {
		return pairs(r.fill(r.c.send))
	}
	var fields []string
	for _, f := range r.c.fields {
		fields = append(fields, r.fill(f))
	}
	return fields
}

// trailerMark stands before an answer's trailers where it is sent in frames.
const trailerMark = "\r\n--trailers--\r\n"

func trailersMasked(r *run, got *reply) {
	message := got.Trailer.Get("grpc-message")
	if got.Trailer.Get("grpc-status") != "0" || message != strings.Repeat("*", len(r.p.key)) || len(got.Trailer) != 2 {
		r.t.Errorf("the trailers are %q", got.Trailer)
	}
}

// trailersOfAStream: what comes behind a request's body reaches nobody.
func trailersOfAStream(r *run) {
	c := r.openStreams()
	id := c.streams.begin([]string{":method", "POST", ":scheme", "https", ":authority", r.p.host, ":path", "/v1/x", "trailer", "x-api-key"}, false)
	c.streams.f.WriteData(id, false, []byte("hello"))
	c.streams.buf.Reset()
	c.streams.enc.WriteField(hpack.HeaderField{Name: "x-api-key", Value: r.fill("{client}")})
	c.streams.f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.streams.buf.Bytes(), EndHeaders: true, EndStream: true})
	if got := r.outcome(c, id); got.StatusCode != http.StatusOK || got.err != nil {
		r.t.Errorf("the answer is %d %v", got.StatusCode, got.err)
	}
	r.fence()
	r.account(1, body("hello"))
}

// onlyWhereItIsConfigured: a provider without http2 is spoken to by HTTP/1.1 on both sides.
func onlyWhereItIsConfigured(r *run) {
	c, _ := r.tunnel(r.p.hostport())
	in, err := r.secure(c, &tls.Config{ServerName: r.p.host, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		r.t.Fatal(err)
	}
	if got := in.Conn.(*tapedTLS).ConnectionState().NegotiatedProtocol; got != "http/1.1" {
		r.t.Errorf("%q was chosen", got)
	}
	c, _ = r.tunnel(r.p.hostport())
	if _, err := r.secure(c, &tls.Config{ServerName: r.p.host, NextProtos: []string{"h2"}}); err == nil {
		r.t.Error("a client of HTTP/2 alone was let in")
	}
	r.fence()
	r.account(0, nil)
}

// noPreface: the listener takes the preface for what it is in HTTP/1.1.
func noPreface(r *run, got *reply) {
	if got.StatusCode != http.StatusBadRequest {
		r.t.Errorf("the answer is %d", got.StatusCode)
	}
}

// rapidReset: streams that are reset as soon as they begin hold nothing, and the
// agent goes on for everybody else.
func rapidReset(r *run) {
	c := r.openStreams()
	go io.Copy(io.Discard, c.br)
	for range 5000 {
		id := c.streams.begin([]string{":method", "GET", ":scheme", "https", ":authority", r.p.host, ":path", "/v1/models"}, true)
		if c.streams.f.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			break // it is told to calm down
		}
	}
	r.fence()
	c.Close()
	c = r.openStreams()
	if got := r.ask(c, "GET /v1/models HTTP/1.1\nHost: {host}"); got.StatusCode != http.StatusOK {
		r.t.Errorf("the next client gets %d %v", got.StatusCode, got.err)
	}
	requests, _ := r.w.net.seen()
	for _, q := range requests {
		r.noStrayKeys(q)
	}
}
