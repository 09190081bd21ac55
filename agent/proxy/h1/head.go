// Package h1 is strict HTTP/1.1 framing (RFC 9112): where a request ends is
// read in one way only, and whatever two parsers could read differently is
// refused. It is pure: bytes in, bytes or an error out.
package h1

import (
	"bytes"
	"strconv"
)

// Limits of a request head.
const (
	MaxHead   = 64 << 10
	MaxFields = 256
)

// Error says what is wrong with a message's framing. The answer to it is a 400
// and a closed connection (RFC 9112 sections 2.2 and 6.3).
type Error string

func (e Error) Error() string { return "ambiguous HTTP/1.1 framing: " + string(e) }

// Framing is what a head says about what follows it.
type Framing struct {
	Length  int64 // of the body; 0 where there is none or it is chunked
	Chunked bool
}

var (
	crlf     = []byte("\r\n")
	crlfcrlf = []byte("\r\n\r\n")
)

// RequestHead checks a whole request head, its empty line included, and
// returns how its body is framed.
func RequestHead(b []byte) (Framing, error) {
	line, rest, ok := bytes.Cut(b, crlf)
	if !ok {
		return Framing{}, Error("a line without CRLF")
	}
	minor, err := requestLine(line)
	if err != nil {
		return Framing{}, err
	}
	var f fields
	if err := f.read(rest); err != nil {
		return Framing{}, err
	}
	return f.framing(minor)
}

// requestLine checks method SP target SP HTTP/1.x and returns x.
func requestLine(line []byte) (minor byte, err error) {
	method, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok || !token(method) {
		return 0, Error("the request line has no valid method")
	}
	target, version, ok := bytes.Cut(rest, []byte{' '})
	if !ok || len(target) == 0 {
		return 0, Error("the request line is not method, target and version with one space between")
	}
	for _, c := range target {
		if c <= ' ' || c >= 0x7f || c == '#' {
			return 0, Error("the request target holds a fragment, a control character, a space or a byte outside ASCII")
		}
	}
	switch string(version) {
	case "HTTP/1.1":
		return 1, nil
	case "HTTP/1.0":
		return 0, nil
	}
	return 0, Error("the version is neither HTTP/1.1 nor HTTP/1.0")
}

// fields is what framing needs to know of the field lines.
type fields struct {
	hosts, lengths, encodings int
	length                    []byte
	encoding                  []byte
}

// read checks field lines up to and including the empty line that ends them.
func (f *fields) read(b []byte) error {
	for n := 0; ; n++ {
		line, rest, ok := bytes.Cut(b, crlf)
		if !ok {
			return Error("a line without CRLF")
		}
		b = rest
		if len(line) == 0 {
			if len(b) > 0 {
				return Error("bytes after the head's end")
			}
			return nil
		}
		if n == MaxFields {
			return Error("more than " + strconv.Itoa(MaxFields) + " fields")
		}
		if err := f.line(line); err != nil {
			return err
		}
	}
}

func (f *fields) line(line []byte) error {
	name, value, ok := bytes.Cut(line, []byte{':'})
	if !ok || !token(name) {
		return Error("a field name that is no token (a folded line, or a space before the colon)")
	}
	for _, c := range value {
		if c < ' ' && c != '\t' || c == 0x7f {
			return Error("a control character in a field value")
		}
	}
	value = bytes.Trim(value, " \t")
	switch len(name) {
	case len("Host"):
		if bytes.EqualFold(name, []byte("Host")) {
			f.hosts++
		}
	case len("Content-Length"):
		if bytes.EqualFold(name, []byte("Content-Length")) {
			f.lengths++
			f.length = value
		}
	case len("Transfer-Encoding"):
		if bytes.EqualFold(name, []byte("Transfer-Encoding")) {
			f.encodings++
			f.encoding = value
		}
		// Some servers take '_' for '-': a second framing field in disguise.
		if sameDashed(name, "Transfer-Encoding") {
			f.encodings += 2
		}
	}
	if len(name) == len("Content-Length") && sameDashed(name, "Content-Length") {
		f.lengths += 2
	}
	return nil
}

// sameDashed reports whether name is want with '_' for '-'.
func sameDashed(name []byte, want string) bool {
	if bytes.IndexByte(name, '_') < 0 {
		return false
	}
	return bytes.EqualFold(bytes.ReplaceAll(name, []byte{'_'}, []byte{'-'}), []byte(want))
}

func (f *fields) framing(minor byte) (Framing, error) {
	switch {
	case f.hosts > 1 || f.hosts == 0 && minor == 1:
		return Framing{}, Error("not exactly one Host")
	case f.lengths > 1:
		return Framing{}, Error("more than one Content-Length")
	case f.encodings > 1:
		return Framing{}, Error("more than one Transfer-Encoding")
	case f.encodings == 1 && f.lengths == 1:
		return Framing{}, Error("both Content-Length and Transfer-Encoding")
	case f.encodings == 1 && minor == 0:
		return Framing{}, Error("Transfer-Encoding in HTTP/1.0")
	case f.encodings == 1:
		if !bytes.EqualFold(f.encoding, []byte("chunked")) {
			return Framing{}, Error("a Transfer-Encoding other than chunked")
		}
		return Framing{Chunked: true}, nil
	case f.lengths == 1:
		n, err := contentLength(f.length)
		return Framing{Length: n}, err
	}
	return Framing{}, nil
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

// chunkSize reads a chunk's first line, without its CRLF: hexadecimal digits
// and nothing else. Extensions are refused: nobody needs them, and parsers differ on them.
func chunkSize(line []byte) (int64, error) {
	if len(line) == 0 || len(line) > 15 {
		return 0, Error("a chunk size that is not 1 to 15 hexadecimal digits")
	}
	var n int64
	for _, c := range line {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, Error("a chunk size that is not 1 to 15 hexadecimal digits")
		}
		n = n<<4 | int64(c)
	}
	return n, nil
}

// trailers checks a trailer section, its empty line included: fields that
// frame, route or authenticate have no place there (RFC 9110 section 6.5.1).
func trailers(b []byte) error {
	var f fields
	if err := f.read(b); err != nil {
		return err
	}
	if f.hosts+f.lengths+f.encodings > 0 {
		return Error("a trailer that frames or routes the message")
	}
	return nil
}

// tokenChars marks the characters of a token (RFC 9110 section 5.6.2).
var tokenChars = func() (t [256]bool) {
	for _, c := range []byte("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") {
		t[c] = true
	}
	return t
}()

func token(b []byte) bool {
	for _, c := range b {
		if !tokenChars[c] {
			return false
		}
	}
	return len(b) > 0
}
