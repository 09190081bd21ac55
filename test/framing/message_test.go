package framing_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// message is a request or an answer as a strict reader of RFC 9112 reads it:
// one that knows a single way to read bytes, and refuses where there are two.
// It is written for these tests alone and shares nothing with the agent.
type message struct {
	start    string // the first line
	fields   []field
	body     []byte
	trailers []field
	untilEOF bool // an answer whose end is the connection's

	extensions bool // chunks may have some
}

type field struct{ name, value string }

// errIncomplete: the bytes end inside a message; nothing was wrong so far.
var errIncomplete = errors.New("the bytes end inside a message")

func (m message) method() string { s, _, _ := strings.Cut(m.start, " "); return s }
func (m message) target() string { return strings.Split(m.start, " ")[1] }

// status is an answer's.
func (m message) status() int { n, _ := strconv.Atoi(m.start[9:12]); return n }

func (m message) all(name string) []string {
	var vs []string
	for _, f := range m.fields {
		if strings.EqualFold(f.name, name) {
			vs = append(vs, f.value)
		}
	}
	return vs
}

func (m message) one(name string) string { return strings.Join(m.all(name), " and ") }

// lists reports whether a field that is a list of tokens holds this one.
func (m message) lists(name, token string) bool {
	for _, v := range m.all(name) {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.Trim(t, " \t"), token) {
				return true
			}
		}
	}
	return false
}

// readRequests reads requests until the bytes end, or one is malformed or incomplete.
func readRequests(b []byte) (all []message, rest []byte, err error) {
	for len(b) > 0 {
		m, n, err := readRequest(b)
		if err != nil {
			return all, b, err
		}
		all, b = append(all, m), b[n:]
	}
	return all, nil, nil
}

// readRequest takes one request off b, which holds n bytes of it.
func readRequest(b []byte) (m message, n int, err error) {
	h, err := m.head(b)
	if err != nil {
		return m, 0, err
	}
	parts := strings.Split(m.start, " ")
	if len(parts) != 3 || !isToken(parts[0]) || parts[1] == "" {
		return m, 0, fmt.Errorf("no request line: %.80q", m.start)
	}
	for _, c := range []byte(parts[1]) {
		if c <= ' ' || c >= 0x7f {
			return m, 0, fmt.Errorf("byte %#x in the target", c)
		}
	}
	if parts[2] != "HTTP/1.1" && parts[2] != "HTTP/1.0" {
		return m, 0, fmt.Errorf("version %.20q", parts[2])
	}
	if hosts := len(m.all("Host")); hosts > 1 || hosts == 0 && parts[2] == "HTTP/1.1" {
		return m, 0, fmt.Errorf("%d Host fields", hosts)
	}
	for _, f := range m.fields {
		// A disguise that some servers see through (CVE-2025-64484): with it, the framing has two readings.
		if n := strings.ToLower(f.name); n != "content-length" && n != "transfer-encoding" && slices.Contains([]string{"content-length", "transfer-encoding"}, strings.ReplaceAll(n, "_", "-")) {
			return m, 0, fmt.Errorf("a framing field in disguise: %q", f.name)
		}
	}
	n, err = m.content(b[h:], false)
	return m, h + n, err
}

// readAnswer takes one answer to a request with this method off b; ended says
// that nothing will follow b. Chunk extensions are for a provider, not for the agent.
func readAnswer(b []byte, method string, ended, extensions bool) (m message, n int, err error) {
	m.extensions = extensions
	h, err := m.head(b)
	if err != nil {
		return m, 0, err
	}
	s := m.start
	if len(s) < 13 || s[:9] != "HTTP/1.1 " && s[:9] != "HTTP/1.0 " || s[12] != ' ' || strings.Trim(s[9:12], "0123456789") != "" || s[9] == '0' {
		return m, 0, fmt.Errorf("no status line: %.80q", s)
	}
	if st := m.status(); method == "HEAD" || st < 200 || st == 204 || st == 304 {
		return m, h, nil
	}
	m.untilEOF = len(m.all("Content-Length")) == 0 && len(m.all("Transfer-Encoding")) == 0
	n, err = m.content(b[h:], ended)
	return m, h + n, err
}

// head reads the first line and the fields.
func (m *message) head(b []byte) (n int, err error) {
	line, n, err := takeLine(b)
	if err != nil {
		return 0, err
	}
	m.start = line
	var more int
	m.fields, more, err = takeFields(b[n:])
	return n + more, err
}

// content reads what follows the head.
func (m *message) content(b []byte, ended bool) (n int, err error) {
	lengths, encodings := m.all("Content-Length"), m.all("Transfer-Encoding")
	switch {
	case len(lengths)+len(encodings) > 1:
		return 0, errors.New("the body is framed twice")
	case len(encodings) == 1 && strings.Contains(m.start, "HTTP/1.0"): // RFC 9112 section 6.1
		return 0, errors.New("Transfer-Encoding in HTTP/1.0")
	case len(encodings) == 1:
		if !strings.EqualFold(encodings[0], "chunked") {
			return 0, fmt.Errorf("Transfer-Encoding %.40q", encodings[0])
		}
		return m.chunks(b)
	case len(lengths) == 1:
		size, err := strconv.Atoi(lengths[0])
		if err != nil || strings.Trim(lengths[0], "0123456789") != "" {
			return 0, fmt.Errorf("Content-Length %.40q", lengths[0])
		}
		m.body = b[:min(size, len(b))]
		if len(b) < size {
			return 0, errIncomplete
		}
		return size, nil
	case m.untilEOF:
		m.body = b
		if !ended {
			return 0, errIncomplete
		}
		return len(b), nil
	}
	return 0, nil
}

func (m *message) chunks(b []byte) (n int, err error) {
	for {
		line, took, err := takeLine(b[n:])
		if err != nil {
			return 0, err
		}
		digits := line
		if parts := sizeLine.FindStringSubmatch(line); m.extensions && parts != nil && len(parts[2]) <= 1<<10 {
			digits = parts[1]
		}
		if len(digits) == 0 || len(digits) > 15 || strings.Trim(digits, "0123456789abcdefABCDEF") != "" {
			return 0, fmt.Errorf("chunk size %.40q", line)
		}
		size, _ := strconv.ParseInt(digits, 16, 64)
		if n += took; size == 0 {
			m.trailers, took, err = takeFields(b[n:])
			return n + took, err
		}
		if int64(len(b)-n) < size {
			m.body = append(m.body, b[n:]...)
			return 0, errIncomplete
		}
		m.body = append(m.body, b[n:n+int(size)]...)
		n += int(size)
		if end := b[n:]; !bytes.HasPrefix(end, []byte("\r\n")) {
			if len(end) == 0 || string(end) == "\r" {
				return 0, errIncomplete
			}
			return 0, errors.New("no CRLF behind a chunk")
		}
		n += 2
	}
}

// sizeLine is a chunk's size and its extensions (RFC 9112 section 7.1.1).
var sizeLine = func() *regexp.Regexp {
	const blanks, token = `[ \t]*`, "[!#$%&'*+.^_`|~0-9A-Za-z-]+"
	const quoted = `"(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[^\x00-\x08\x0a-\x1f\x7f])*"`
	value := "(?:" + token + "|" + quoted + ")"
	return regexp.MustCompile("^([0-9a-fA-F]+)((?:" + blanks + ";" + blanks + token + "(?:" + blanks + "=" + blanks + value + ")?)*)$")
}()

// takeLine takes a line that ends in CRLF and holds no other CR or LF.
func takeLine(b []byte) (line string, n int, err error) {
	i := bytes.IndexAny(b, "\r\n")
	switch {
	case i < 0 || i == len(b)-1 && b[i] == '\r':
		return "", 0, errIncomplete
	case b[i] == '\n' || b[i+1] != '\n':
		return "", 0, errors.New("a bare CR or LF")
	}
	return string(b[:i]), i + 2, nil
}

// takeFields takes field lines and the empty line behind them.
func takeFields(b []byte) (fs []field, n int, err error) {
	for {
		line, took, err := takeLine(b[n:])
		if err != nil {
			return fs, 0, err
		}
		if n += took; line == "" {
			return fs, n, nil
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || !isToken(name) {
			return fs, 0, fmt.Errorf("no field name: %.40q", line)
		}
		for _, c := range []byte(value) {
			if c < ' ' && c != '\t' || c == 0x7f {
				return fs, 0, fmt.Errorf("byte %#x in the value of %.40q", c, name)
			}
		}
		fs = append(fs, field{name, strings.Trim(value, " \t")})
	}
}

func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	})
}

// between are fields that concern one connection: each side writes its own.
var between = []string{"connection", "content-length", "transfer-encoding", "te", "keep-alive", "expect", "upgrade", "trailer"}

// seen is the text that every upstream writes of a request it saw; only its
// digest travels. testdata/server.js makes the same.
func seen(method, target string, fields []field, body []byte) string {
	var kept []field
	for _, f := range fields {
		if f.name = strings.ToLower(f.name); !slices.Contains(between, f.name) {
			kept = append(kept, f)
		}
	}
	slices.SortStableFunc(kept, func(a, b field) int { return strings.Compare(a.name, b.name) })
	var b strings.Builder
	b.WriteString(method + "\n" + target + "\n")
	for _, f := range kept {
		b.WriteString(f.name + ": " + f.value + "\n")
	}
	sum := sha256.Sum256(body)
	fmt.Fprintf(&b, "%d bytes %s\n", len(body), hex.EncodeToString(sum[:]))
	return b.String()
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}
