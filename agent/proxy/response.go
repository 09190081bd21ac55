package proxy

import (
	"bufio"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// response writes an answer that goproxy makes. It is an http.ResponseWriter
// with what http.ResponseController asks for.
type response struct {
	c      *session
	bw     *bufio.Writer
	header http.Header

	wrote   bool // the head
	close   bool // the connection ends with this answer
	chunked bool
	empty   bool  // the status or HEAD allows no body
	left    int64 // of Content-Length; -1 where there is none
	err     error // of the first write that failed
}

func (c *session) newResponse() *response {
	return &response{c: c, bw: bufio.NewWriter(c.conn), header: http.Header{}, left: -1}
}

func (w *response) Header() http.Header { return w.header }

// WriteHeader writes the head with the status that ends the exchange.
func (w *response) WriteHeader(status int) {
	if w.wrote {
		return
	}
	w.wrote = true
	w.c.begin()
	w.frame(status)
	bw := w.bw
	bw.WriteString("HTTP/1.1 ")
	bw.WriteString(strconv.Itoa(status))
	bw.WriteByte(' ')
	bw.WriteString(http.StatusText(status))
	bw.WriteString("\r\n")
	for k, vs := range w.header {
		for _, v := range vs {
			if strings.ContainsAny(v, "\r\n\x00") {
				continue // it could only become another field
			}
			bw.WriteString(k)
			bw.WriteString(": ")
			bw.WriteString(v)
			bw.WriteString("\r\n")
		}
	}
	if _, ok := w.header["Date"]; !ok {
		bw.WriteString("Date: ")
		bw.Write(time.Now().UTC().AppendFormat(bw.AvailableBuffer(), http.TimeFormat))
		bw.WriteString("\r\n")
	}
	if w.chunked {
		bw.WriteString("Transfer-Encoding: chunked\r\n")
	}
	if w.close {
		bw.WriteString("Connection: close\r\n")
	}
	_, w.err = bw.WriteString("\r\n")
}

// frame decides how the body ends (RFC 9112 section 6.3).
func (w *response) frame(status int) {
	h := w.header
	w.close = w.c.req.Close || w.c.s.closing.Load()
	delete(h, "Connection")
	delete(h, "Transfer-Encoding")
	delete(h, "Trailer") // none are sent
	w.empty = view(w.c.req.Method) == http.MethodHead || status < 200 || status == http.StatusNoContent || status == http.StatusNotModified
	if n, err := strconv.ParseInt(first(h["Content-Length"]), 10, 64); err == nil && n >= 0 && len(h["Content-Length"]) == 1 {
		w.left = n
	} else {
		delete(h, "Content-Length")
	}
	switch {
	case status < 200 || status == http.StatusNoContent:
		delete(h, "Content-Length")
	case w.empty || w.left >= 0:
	case w.c.req.Minor == 1:
		w.chunked = true
	default:
		w.close = true // the end of the connection ends the body
	}
}

func first(vs []string) string {
	if len(vs) == 0 {
		return ""
	}
	return vs[0]
}

// Write writes a piece of the body.
func (w *response) Write(p []byte) (int, error) {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	switch {
	case w.err != nil:
		return 0, w.err
	case w.empty:
		return 0, http.ErrBodyNotAllowed
	case len(p) == 0:
		return 0, nil
	case w.left >= 0 && int64(len(p)) > w.left:
		return 0, http.ErrContentLength
	}
	bw := w.bw
	if w.chunked {
		bw.Write(strconv.AppendInt(bw.AvailableBuffer(), int64(len(p)), 16))
		bw.WriteString("\r\n")
	}
	n, err := bw.Write(p)
	if w.chunked && err == nil {
		_, err = bw.WriteString("\r\n")
	}
	if w.left >= 0 {
		w.left -= int64(n)
	}
	w.err = err
	return n, err
}

// FlushError sends what is written.
func (w *response) FlushError() error {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	if err := w.bw.Flush(); w.err == nil {
		w.err = err
	}
	return w.err
}

// Flush is FlushError for those who cannot hear of it.
func (w *response) Flush() { w.FlushError() }

// finish ends the answer and reports whether the connection can be used again.
func (w *response) finish() bool {
	if !w.wrote {
		w.header["Content-Length"] = []string{"0"}
		w.WriteHeader(http.StatusOK)
	}
	if w.chunked && !w.empty {
		w.bw.WriteString("0\r\n\r\n")
	}
	if err := w.bw.Flush(); err != nil || w.err != nil {
		return false
	}
	return w.empty || w.left <= 0 // an answer shorter than it said cannot be followed by another
}

// Hijack hands the connection over. What was read ahead comes out of it first.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c := w.c
	if c.hijacked {
		return nil, nil, http.ErrHijacked
	}
	c.stopWatch()
	c.hijacked = true
	c.conn.SetDeadline(time.Time{})
	conn := c.conn
	if c.r < c.w {
		conn = &prefixed{Conn: conn, early: c.in[c.r:c.w]}
	}
	return conn, bufio.NewReadWriter(bufio.NewReader(conn), w.bw), nil
}
