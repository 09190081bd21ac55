package wall_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// fence is what the path of a request has that only shows that all before it is through.
const fence = "wall-fence-"

// request is one request as it arrived, byte by byte.
type request struct {
	conn   *conn
	raw    []byte // head and body as they came
	method string
	target string
	fields [][2]string // name as written, value without the space around it; of trailers too
	body   []byte
	bad    error // why it is no request
}

// values are those of a field in any spelling that some server reads alike.
func (r *request) values(name string) []string {
	var out []string
	for _, f := range r.fields {
		if alike(f[0]) == alike(name) {
			out = append(out, f[1])
		}
	}
	return out
}

func alike(name string) string { return strings.ToLower(strings.ReplaceAll(name, "_", "-")) }

// header is a field's only value; "" where there is none.
func (r *request) header(name string) string { return strings.Join(r.values(name), " AND ") }

// answer is what a host says to a request: pieces, each written by itself. The
// connection ends with it if close says so.
type answer func(*request) (pieces []string, end bool)

// says answers with this text, in which {key} and its encodings stand for the
// credential that the request carries.
func says(pieces ...string) answer {
	return func(r *request) ([]string, bool) { return r.fill(pieces), false }
}

// saysAndEnds is says, and the connection ends.
func saysAndEnds(pieces ...string) answer {
	return func(r *request) ([]string, bool) { return r.fill(pieces), true }
}

// credential is what the agent attached, without its scheme.
func (r *request) credential() string {
	for _, name := range credentialFields {
		if v := r.header(name); v != "" {
			return strings.TrimPrefix(v, "Bearer ")
		}
	}
	return ""
}

func (r *request) fill(pieces []string) []string {
	key := r.credential()
	quoted, _ := json.Marshal(key)
	every := ""
	for _, c := range []byte(key) {
		every += fmt.Sprintf("%%%02X", c)
	}
	half := len(key) / 2
	f := strings.NewReplacer(
		"{key}", key, "{bearer64}", base64.StdEncoding.EncodeToString([]byte("Bearer "+key)), "{key64}", base64.StdEncoding.EncodeToString([]byte(key)),
		"{keyurl64}", base64.RawURLEncoding.EncodeToString([]byte("x"+key)), "{keyquery}", url.QueryEscape(key), "{keypercent}", every,
		"{keylower}", strings.ToLower(url.QueryEscape(key)), "{keyjson}", string(quoted[1:len(quoted)-1]), "{keyhex}", hex.EncodeToString([]byte(key)),
		"{first}", key[:half], "{second}", key[half:], "{len}", strconv.Itoa(len(key)),
		"{firstsize}", strconv.FormatInt(int64(half), 16), "{secondsize}", strconv.FormatInt(int64(len(key)-half), 16), "{size}", strconv.FormatInt(int64(len(key)), 16),
		"{raw}", string(r.raw), "{rawlen}", strconv.Itoa(len(r.raw)),
	)
	out := make([]string, len(pieces))
	for i, p := range pieces {
		out[i] = f.Replace(p)
	}
	return out
}

const (
	plainAnswer = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
	switching   = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)

// usual is the answer of a host that has none of its own.
func usual(r *request) ([]string, bool) {
	if i := strings.Index(r.target, fence); i >= 0 {
		body, _, _ := strings.Cut(r.target[i:], "?") // where the query carries the key
		return []string{fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)}, false
	}
	if strings.EqualFold(r.header("Upgrade"), "websocket") {
		return []string{switching}, false
	}
	return []string{plainAnswer}, false
}

// http1 reads requests strictly, so that what one reader could take for two is two here.
func (w *internet) http1(c *conn, in io.Reader, out io.Writer) {
	br := bufio.NewReader(taped{w, c, in})
	for {
		r := readRequest(br)
		if r == nil {
			return
		}
		r.conn = c
		say := w.note(r)
		if r.bad != nil {
			return
		}
		if r.method == "CONNECT" {
			w.proxy(c, r.target, br, out)
			return
		}
		if say == nil {
			say = usual
		}
		pieces, end := say(r)
		for _, p := range pieces {
			if _, err := io.WriteString(out, p); err != nil {
				return
			}
		}
		if end {
			return
		}
		if len(pieces) > 0 && strings.HasPrefix(pieces[0], "HTTP/1.1 101") {
			io.Copy(io.Discard, br) // what comes is on the tape
			return
		}
	}
}

// proxy is a company's way out: what comes behind the CONNECT is its target's.
func (w *internet) proxy(c *conn, target string, br *bufio.Reader, out io.Writer) {
	nc, ok := out.(net.Conn)
	if !ok {
		return
	}
	if _, err := io.WriteString(nc, "HTTP/1.1 200 OK\r\n\r\n"); err == nil {
		w.meet(&conn{to: target}, nc, br)
	}
}

// readRequest is nil at the connection's end.
func readRequest(br *bufio.Reader) *request {
	r := &request{}
	defer func() { r.raw = bytes.Clone(r.raw) }()
	for !bytes.HasSuffix(r.raw, []byte("\r\n\r\n")) {
		b, err := br.ReadByte()
		if err != nil {
			if len(r.raw) == 0 {
				return nil
			}
			r.bad = errors.New("a head without an end")
			return r
		}
		r.raw = append(r.raw, b)
	}
	lines := strings.Split(strings.TrimSuffix(string(r.raw), "\r\n\r\n"), "\r\n")
	line := strings.Split(lines[0], " ")
	if len(line) != 3 || line[2] != "HTTP/1.1" {
		r.bad = fmt.Errorf("the request line %q", lines[0])
		return r
	}
	r.method, r.target = line[0], line[1]
	r.take(lines[1:])
	if r.bad == nil {
		r.readBody(br)
	}
	return r
}

func (r *request) take(lines []string) {
	for _, l := range lines {
		name, value, ok := strings.Cut(l, ":")
		if !ok || name == "" || name != strings.TrimSpace(name) || strings.ContainsAny(l, "\r\n\x00") {
			r.bad = fmt.Errorf("the field line %q", l)
			return
		}
		r.fields = append(r.fields, [2]string{name, textproto.TrimString(value)})
	}
}

func (r *request) readBody(br *bufio.Reader) {
	lengths, codings := r.values("Content-Length"), r.values("Transfer-Encoding")
	switch {
	case len(lengths)+len(codings) == 0:
	case len(lengths) == 1 && len(codings) == 0:
		n, err := strconv.ParseUint(lengths[0], 10, 31)
		if err != nil {
			r.bad = err
			return
		}
		r.body = make([]byte, n)
		if _, err := io.ReadFull(br, r.body); err != nil {
			r.bad = fmt.Errorf("the body: %w", err)
		}
		r.raw = append(r.raw, r.body...)
	case len(codings) == 1 && len(lengths) == 0 && codings[0] == "chunked":
		for r.chunk(br) {
		}
	default:
		r.bad = fmt.Errorf("framed as %q and %q", lengths, codings)
	}
}

// chunk reads one chunk; false after the last, whose trailers count as fields.
func (r *request) chunk(br *bufio.Reader) bool {
	line := func() string {
		l, err := br.ReadString('\n')
		r.raw = append(r.raw, l...)
		if err != nil || !strings.HasSuffix(l, "\r\n") {
			r.bad = fmt.Errorf("the chunk line %q", l)
		}
		return strings.TrimSuffix(l, "\r\n")
	}
	n, err := strconv.ParseUint(line(), 16, 31)
	if err != nil || r.bad != nil {
		r.bad = errors.Join(r.bad, err)
		return false
	}
	if n == 0 {
		for l := line(); l != "" && r.bad == nil; l = line() {
			r.take([]string{l})
		}
		return false
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(br, b); err != nil {
		r.bad = fmt.Errorf("a chunk: %w", err)
		return false
	}
	r.body, r.raw = append(r.body, b...), append(r.raw, b...)
	return line() == "" && r.bad == nil
}

// http2 takes the same requests in frames.
func (w *internet) http2(c *conn, rw io.ReadWriter) {
	in := taped{w, c, rw}
	if _, err := io.ReadFull(in, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	f := http2.NewFramer(rw, in)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.WriteSettings()
	streams := map[uint32]*request{}
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			return
		}
		ended := false
		switch fr := fr.(type) {
		case *http2.SettingsFrame:
			if !fr.IsAck() {
				f.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !fr.IsAck() {
				f.WritePing(true, fr.Data)
			}
		case *http2.MetaHeadersFrame:
			r := streams[fr.StreamID]
			if r == nil {
				r = &request{conn: c}
				streams[fr.StreamID] = r
			}
			r.pairs(fr.Fields)
			ended = fr.StreamEnded()
		case *http2.DataFrame:
			if r := streams[fr.StreamID]; r != nil {
				r.body, r.raw = append(r.body, fr.Data()...), append(r.raw, fr.Data()...)
			}
			ended = fr.StreamEnded()
		}
		if ended {
			id := fr.Header().StreamID
			r := streams[id]
			delete(streams, id)
			say := w.note(r)
			if say == nil {
				say = usual
			}
			pieces, _ := say(r)
			answerFrames(f, id, strings.Join(pieces, ""))
		}
	}
}

func (r *request) pairs(fields []hpack.HeaderField) {
	for _, h := range fields {
		r.raw = append(r.raw, h.Name+": "+h.Value+"\r\n"...)
		switch h.Name {
		case ":method":
			r.method = h.Value
		case ":path":
			r.target = h.Value
		case ":authority":
			r.fields = append(r.fields, [2]string{"Host", h.Value})
		case ":scheme":
		default:
			r.fields = append(r.fields, [2]string{h.Name, h.Value})
		}
	}
}

// answerFrames sends a textual answer as frames.
func answerFrames(f *http2.Framer, id uint32, text string) {
	head, body, _ := strings.Cut(text, "\r\n\r\n")
	body, trailers, trailing := strings.Cut(body, trailerMark)
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i, l := range strings.Split(head, "\r\n") {
		if i == 0 {
			enc.WriteField(hpack.HeaderField{Name: ":status", Value: strings.Fields(l)[1]})
			continue
		}
		name, value, _ := strings.Cut(l, ": ")
		enc.WriteField(hpack.HeaderField{Name: strings.ToLower(name), Value: value})
	}
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true})
	f.WriteData(id, !trailing, []byte(body))
	if !trailing {
		return
	}
	block.Reset()
	for l := range strings.SplitSeq(trailers, "\r\n") {
		name, value, _ := strings.Cut(l, ": ")
		enc.WriteField(hpack.HeaderField{Name: name, Value: value})
	}
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
}
