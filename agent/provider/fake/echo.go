package fake

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// echo repeats what it was sent, whatever the path, so that a proxy's
// scrubbing has something to find. It judges no key; the query says how:
//
//	in=body      (default) one JSON document: method, path, query, headers, body
//	in=raw       the request's body, byte for byte, as it comes
//	in=header    every credential in X-Echo-…, Set-Cookie, Location and Link
//	in=sse       the document as server-sent events of size bytes each
//	in=chunks    the document in chunks of size bytes, flushed one by one
//	in=trailer   every credential in the trailers
//	as=base64, percent, json or gzip    how the document is encoded: gzip also says so
//	size=N       bytes of one piece; default 7
//	status=N     of the answer; default 200
func (s *Server) echo(x *exchange) {
	q := x.r.URL.Query()
	if c := credentials(x.r); len(c) > 0 {
		x.key = c[0].Value[strings.LastIndexByte(c[0].Value, ' ')+1:]
	}
	status, err := strconv.Atoi(q.Get("status"))
	if err != nil || status < 200 || status > 599 {
		status = http.StatusOK
	}
	size, err := strconv.Atoi(q.Get("size"))
	if err != nil || size < 1 {
		size = 7
	}
	switch q.Get("in") {
	case "raw":
		x.Header().Set("Content-Type", "application/octet-stream")
		x.WriteHeader(status)
		x.copy(x.r.Body)
	case "header":
		x.echoHeaders(status)
	case "sse":
		doc := bytes.ReplaceAll(bytes.TrimSpace(x.document(q.Get("as"))), []byte("\n"), []byte(" "))
		x.stream()
		for piece := range pieces(doc, size) {
			if !x.raw("", piece) {
				return
			}
		}
	case "chunks":
		x.Header().Set("Content-Type", "text/plain")
		doc := x.document(q.Get("as"))
		x.WriteHeader(status)
		for piece := range pieces(doc, size) {
			if !x.send(piece) {
				return
			}
		}
	case "trailer":
		x.echoTrailers(status)
	default:
		doc := x.document(q.Get("as"))
		x.Header().Set("Content-Type", "application/json")
		x.WriteHeader(status)
		x.Write(doc)
	}
}

// document is what was sent, in the encoding asked for.
func (x *exchange) document(as string) []byte {
	body, err := io.ReadAll(http.MaxBytesReader(x.ResponseWriter, x.r.Body, maxJSON))
	if err != nil {
		body = []byte(err.Error())
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(obj{
		"method": x.r.Method, "host": x.r.Host, "path": x.r.URL.EscapedPath(), "query": x.r.URL.RawQuery, "headers": x.r.Header, "body": string(body),
	}); err != nil {
		panic(err)
	}
	switch doc := b.Bytes(); as {
	case "base64":
		// Once for each position of a value relative to base64's groups of three.
		e := base64.StdEncoding
		return []byte(e.EncodeToString(doc) + "\n" + e.EncodeToString(doc[1:]) + "\n" + e.EncodeToString(doc[2:]) + "\n")
	case "percent":
		return []byte(url.QueryEscape(string(doc)))
	case "json":
		quoted, err := json.Marshal(string(doc))
		if err != nil {
			panic(err)
		}
		return quoted
	case "gzip":
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		w.Write(doc)
		w.Close()
		x.Header().Set("Content-Encoding", "gzip")
		return z.Bytes()
	default:
		return doc
	}
}

// pieces yields b in parts of n bytes.
func pieces(b []byte, n int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(b) > 0 {
			m := min(n, len(b))
			if !yield(b[:m]) {
				return
			}
			b = b[m:]
		}
	}
}

// copy streams r to the client as it comes.
func (x *exchange) copy(r io.Reader) {
	// An HTTP/1 server otherwise reads the rest of the body before the first answer goes out.
	http.NewResponseController(x.ResponseWriter).EnableFullDuplex()
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, err := x.Write(buf[:n]); err != nil {
				return
			}
			x.Flush()
		}
		if err != nil {
			return
		}
	}
}

func (x *exchange) echoHeaders(status int) {
	h := x.Header()
	for _, c := range credentials(x.r) {
		_, name, _ := strings.Cut(c.In, " ")
		h.Add("X-Echo-"+name, c.Value)
		h.Add("Set-Cookie", "echo="+c.Value+"; Path=/")
		h.Set("Location", "https://"+x.r.Host+"/next?key="+url.QueryEscape(c.Value))
		h.Add("Link", "<https://"+x.r.Host+"/next?key="+url.QueryEscape(c.Value)+`>; rel="next"`)
	}
	h.Set("Content-Length", "0")
	x.WriteHeader(status)
}

func (x *exchange) echoTrailers(status int) {
	x.WriteHeader(status)
	io.WriteString(x, "see the trailers\n")
	x.Flush() // an answer whose length is known has no trailers
	for _, c := range credentials(x.r) {
		_, name, _ := strings.Cut(c.In, " ")
		x.Header().Add(http.TrailerPrefix+"X-Echo-"+name, c.Value)
	}
}
