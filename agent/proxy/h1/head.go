// Package h1 is a strict HTTP/1.1 codec (RFC 9112): where a message ends is
// read in one way only, and whatever two parsers could read differently is
// refused. It is pure: bytes in, parts of those bytes or an error out. What it
// parses it parses in place, and reused it allocates nothing.
package h1

import (
	"bytes"
	"strconv"
)

// Limits of a message's head.
const (
	MaxHead   = 64 << 10  // of a request, and of a trailer section
	MaxAnswer = 256 << 10 // of a response
	MaxFields = 256
)

// Error says what is wrong with a message's framing. The answer to a request's
// is a 400 and a closed connection (RFC 9112 sections 2.2 and 6.3). Its text
// repeats nothing of the message.
type Error string

func (e Error) Error() string { return "ambiguous HTTP/1.1 framing: " + string(e) }

// Field is one field line. The value is without the white space around it.
type Field struct{ Name, Value []byte }

// Head is what heads of requests and of responses have in common. All slices
// are parts of the buffer that was parsed, and valid as long as it is left alone.
type Head struct {
	Minor  byte // of the version: HTTP/1.1 or HTTP/1.0
	Fields []Field
	// Connection has the values of the Connection fields.
	Connection [][]byte
	// Length is the body's; 0 where there is none or it is chunked, -1 where
	// the connection's end ends it (responses only).
	Length  int64
	Chunked bool
	// Close: the connection ends with this message.
	Close bool

	seen int // bytes in which no end was found
	frame
}

// frame is what the field lines said of framing.
type frame struct {
	hosts, lengths, encodings int
	host, length, encoding    []byte
}

// Request is a request's head.
type Request struct {
	Head
	Method, Target []byte
	Host           []byte // nil where HTTP/1.0 has none
}

// Response is a response's head. Its reason phrase is checked and dropped.
type Response struct {
	Head
	Status int
	// Declared is its Content-Length, also where no body follows; -1 if it has none.
	Declared int64
}

var crlfcrlf = []byte("\r\n\r\n")

// Parse reads the head at b's beginning. n is its length; 0 without an error
// means that more is needed: call again with b and what came behind it.
func (r *Request) Parse(b []byte) (n int, err error) {
	end, line, rest, err := r.open(b, MaxHead)
	if end == 0 || err != nil {
		return 0, err
	}
	if err = r.line(line); err == nil {
		err = r.fields(rest)
	}
	if err == nil {
		err = r.framing()
	}
	if err != nil {
		return 0, err
	}
	r.Host = r.host
	return end, nil
}

// line checks method SP target SP HTTP/1.x.
func (r *Request) line(line []byte) error {
	method, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok || !token(method) {
		return Error("the request line has no valid method")
	}
	target, version, ok := bytes.Cut(rest, []byte{' '})
	if !ok || len(target) == 0 {
		return Error("the request line is not method, target and version with one space between")
	}
	for _, c := range target {
		if c <= ' ' || c >= 0x7f || c == '#' {
			return Error("the request target holds a fragment, a control character, a space or a byte outside ASCII")
		}
	}
	r.Method, r.Target = method, target
	return r.version(version)
}

func (h *Head) version(v []byte) error {
	switch string(v) {
	case "HTTP/1.1":
		h.Minor = 1
	case "HTTP/1.0":
		h.Minor = 0
	default:
		return Error("the version is neither HTTP/1.1 nor HTTP/1.0")
	}
	return nil
}

func (r *Request) framing() error {
	f := &r.frame
	r.Length, r.Chunked = 0, false
	r.Close = r.Minor == 0 || r.ends()
	switch {
	case f.hosts > 1 || f.hosts == 0 && r.Minor == 1:
		return Error("not exactly one Host")
	case f.lengths == 0 && f.encodings == 0:
		return nil
	}
	return r.sized()
}

// Parse is Request.Parse for a response. bodiless says that it answers HEAD.
// An interim response (1xx) is one like any other: the caller reads on.
func (r *Response) Parse(b []byte, bodiless bool) (n int, err error) {
	end, line, rest, err := r.open(b, MaxAnswer)
	if end == 0 || err != nil {
		return 0, err
	}
	if err = r.line(line); err == nil {
		err = r.fields(rest)
	}
	if err == nil {
		err = r.framing(bodiless)
	}
	if err != nil {
		return 0, err
	}
	return end, nil
}

// line checks HTTP/1.x SP status [SP reason].
func (r *Response) line(line []byte) error {
	version, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok || len(rest) < 3 || len(rest) > 3 && rest[3] != ' ' {
		return Error("the status line is not version, status and reason with one space between")
	}
	r.Status = 0
	for _, c := range rest[:3] {
		if c < '0' || c > '9' {
			return Error("a status that is not three digits")
		}
		r.Status = r.Status*10 + int(c-'0')
	}
	if r.Status < 100 {
		return Error("a status below 100")
	}
	if !text(rest[3:]) {
		return Error("a control character in the reason")
	}
	return r.version(version)
}

func (r *Response) framing(bodiless bool) error {
	f := &r.frame
	r.Length, r.Chunked, r.Declared = 0, false, -1
	r.Close = r.Minor == 0 || r.ends()
	if f.lengths+f.encodings > 0 {
		if err := r.sized(); err != nil {
			return err
		}
	}
	if f.lengths == 1 {
		r.Declared = r.Length
	}
	switch {
	case bodiless || r.Status < 200 || r.Status == 204 || r.Status == 304:
		r.Length, r.Chunked = 0, false
	case f.lengths+f.encodings == 0:
		r.Length, r.Close = -1, true
	}
	return nil
}

// sized reads the one Content-Length or the one Transfer-Encoding.
func (h *Head) sized() error {
	f := &h.frame
	switch {
	case f.lengths > 1:
		return Error("more than one Content-Length")
	case f.encodings > 1:
		return Error("more than one Transfer-Encoding")
	case f.encodings == 1 && f.lengths == 1:
		return Error("both Content-Length and Transfer-Encoding")
	case f.encodings == 1 && h.Minor == 0:
		return Error("Transfer-Encoding in HTTP/1.0")
	case f.encodings == 1:
		if !bytes.EqualFold(f.encoding, []byte("chunked")) {
			return Error("a Transfer-Encoding other than chunked")
		}
		h.Chunked = true
		return nil
	}
	var err error
	h.Length, err = contentLength(f.length)
	return err
}

// ends reports whether Connection says close.
func (h *Head) ends() bool {
	for _, v := range h.Connection {
		if HasToken(v, "close") {
			return true
		}
	}
	return false
}

// Get returns the first value of a field, and how many it has.
func (h *Head) Get(name string) (value []byte, n int) {
	for i := range h.Fields {
		if f := &h.Fields[i]; len(f.Name) == len(name) && equalFold(f.Name, name) {
			if n == 0 {
				value = f.Value
			}
			n++
		}
	}
	return value, n
}

// Reset forgets what was seen of a head that never came whole.
func (h *Head) Reset() { h.seen = 0 }

// open finds the end of the head at b's beginning, and its first line. end is 0
// where more is needed.
func (h *Head) open(b []byte, limit int) (end int, line, rest []byte, err error) {
	if end, err = h.end(b, limit); end == 0 {
		return 0, nil, nil, err
	}
	h.seen = 0
	h.Fields = h.Fields[:0]
	h.Connection = h.Connection[:0]
	h.frame = frame{}
	line, rest, err = firstLine(b[:end])
	return end, line, rest, err
}

// end finds the head's end in b: the index after its empty line, or 0 if it has not come.
func (h *Head) end(b []byte, limit int) (int, error) {
	from := max(0, h.seen-len(crlfcrlf)+1)
	if i := bytes.Index(b[from:], crlfcrlf); i >= 0 {
		if end := from + i + len(crlfcrlf); end <= limit {
			return end, nil
		}
		return 0, errLong
	}
	if err := early(b, from); err != nil {
		return 0, err
	}
	h.seen = len(b)
	if len(b) >= limit {
		return 0, errLong
	}
	return 0, nil
}

const errLong = Error("a head, trailer or chunk size that is too long")

// early refuses a line feed without its carriage return as soon as it is seen:
// whoever ends lines so would otherwise be waited for until the timeout.
func early(b []byte, from int) error {
	for i := from; ; i++ {
		j := bytes.IndexByte(b[i:], '\n')
		if j < 0 {
			return nil
		}
		if i += j; i == 0 || b[i-1] != '\r' {
			return errBareLF
		}
	}
}

const errBareLF = Error("a line feed without a carriage return")

// firstLine cuts a head that has its end at its first line feed.
func firstLine(b []byte) (line, rest []byte, err error) {
	i := bytes.IndexByte(b, '\n')
	if i == 0 || b[i-1] != '\r' {
		return nil, nil, errBareLF
	}
	return b[:i-1], b[i+1:], nil
}

// fields reads field lines up to the empty line that ends them, which is there.
func (h *Head) fields(b []byte) error {
	for {
		i := bytes.IndexByte(b, '\n')
		if i <= 0 || b[i-1] != '\r' {
			return errBareLF
		}
		line := b[:i-1]
		if len(line) == 0 {
			return nil
		}
		b = b[i+1:]
		if len(h.Fields) == MaxFields {
			return Error("more than " + strconv.Itoa(MaxFields) + " fields")
		}
		if err := h.field(line); err != nil {
			return err
		}
	}
}

func (h *Head) field(line []byte) error {
	n := 0
	for n < len(line) && chars[line[n]]&isToken != 0 {
		n++
	}
	if n == 0 || n == len(line) || line[n] != ':' {
		return Error("a field name that is no token (a folded line, or a space before the colon)")
	}
	name, value := line[:n], line[n+1:]
	if !text(value) {
		return Error("a control character in a field value")
	}
	value = TrimSpace(value)
	h.Fields = append(h.Fields, Field{name, value})
	h.note(name, value)
	return nil
}

// note keeps what framing needs to know of a field.
func (h *Head) note(name, value []byte) {
	f := &h.frame
	switch len(name) {
	case len("Host"):
		if equalFold(name, "host") {
			f.hosts++
			f.host = value
		}
	case len("Connection"):
		if equalFold(name, "connection") {
			h.Connection = append(h.Connection, value)
		}
	case len("Content-Length"):
		if Same(name, "content-length") {
			f.lengths++
			f.length = value
			if name[7] != '-' {
				f.lengths++ // some servers take '_' for '-': framing in disguise
			}
		}
	case len("Transfer-Encoding"):
		if Same(name, "transfer-encoding") {
			f.encodings++
			f.encoding = value
			if name[8] != '-' {
				f.encodings++
			}
		}
	}
}

func contentLength(v []byte) (int64, error) {
	if len(v) == 0 || len(v) > 18 {
		return 0, Error("a Content-Length that is not 1 to 18 digits")
	}
	var n int64
	for _, c := range v {
		if c < '0' || c > '9' {
			return 0, Error("a Content-Length that is not 1 to 18 digits")
		}
		n = n*10 + int64(c-'0')
	}
	return n, nil
}
