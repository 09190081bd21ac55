package fake

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxJSON bounds the bodies that are decoded, in bytes.
const maxJSON = 64 << 20

type obj = map[string]any

// exchange is one request and its answer. As a ResponseWriter it records the
// request at the moment its status is decided.
type exchange struct {
	http.ResponseWriter
	s       *Server
	r       *http.Request
	at      time.Time
	key     string
	refused bool // the key is revoked or unknown
	probe   bool // merely tests the key
	noted   bool
	sent    bool // a piece of the stream
}

func (x *exchange) WriteHeader(status int) {
	if status >= 200 {
		x.note(status)
	}
	x.ResponseWriter.WriteHeader(status)
}

func (x *exchange) Write(b []byte) (int, error) {
	x.note(http.StatusOK)
	return x.ResponseWriter.Write(b)
}

// Flush sends what was written.
func (x *exchange) Flush() {
	x.note(http.StatusOK)
	http.NewResponseController(x.ResponseWriter).Flush()
}

// Unwrap is for http.ResponseController.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// note records the request, once.
func (x *exchange) note(status int) {
	if x.noted {
		return
	}
	x.noted = true
	r := x.r
	rec := Request{
		Time: x.at, Host: r.Host, Proto: r.Proto, Method: r.Method, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery,
		Header: r.Header, Credentials: credentials(r), Key: x.key, Status: status,
	}
	if r.TLS != nil {
		rec.SNI = r.TLS.ServerName
	}
	x.s.remember(rec, x.refused, x.probe)
}

var credentialHeaders = []string{
	"Authorization", "X-Api-Key", "Api-Key", "X-Goog-Api-Key", "Proxy-Authorization", "Cookie", "X-Amz-Security-Token", "X-Auth-Token",
}

var credentialParams = []string{"key", "api_key", "api-key", "access_token", "token"}

// credentials lists everything in a request that could identify it.
func credentials(r *http.Request) []Credential {
	var out []Credential
	for _, name := range credentialHeaders {
		for _, v := range r.Header[name] {
			out = append(out, Credential{"header " + name, v})
		}
	}
	if r.URL.RawQuery == "" {
		return out
	}
	q := r.URL.Query()
	for _, name := range credentialParams {
		for _, v := range q[name] {
			out = append(out, Credential{"query " + name, v})
		}
	}
	return out
}

// bearer is the credential of an Authorization field, "" without one.
func bearer(r *http.Request) string {
	scheme, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(key)
}

// judge says what a key is worth for this request. lists: the request only
// lists models or tests the key.
func (x *exchange) judge(key string, lists bool) State {
	st := x.s.State(key)
	x.key, x.probe, x.refused = key, lists, st == Revoked
	if lists && st != Revoked {
		return Live
	}
	return st
}

// mask is how a refused key is repeated in a message: sk-f23aa***cda9.
func mask(key string) string {
	if len(key) < 16 {
		return strings.Repeat("*", len(key))
	}
	return key[:8] + "***" + key[len(key)-4:]
}

// pause waits, and reports false where the client left or the Server closed meanwhile.
func (x *exchange) pause(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-x.r.Context().Done():
	case <-x.s.done:
	}
	return false
}

// decode reads a JSON body into v.
func (x *exchange) decode(v any) error {
	b, err := io.ReadAll(http.MaxBytesReader(x.ResponseWriter, x.r.Body, maxJSON))
	if err != nil {
		return fmt.Errorf("the body could not be read: %w", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("the body is not the JSON that was expected: %w", err)
	}
	return nil
}

// json answers with a document.
func (x *exchange) json(status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // made of this package's own values
	}
	h := x.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	x.WriteHeader(status)
	x.Write(b)
}

// stream begins a stream of server-sent events.
func (x *exchange) stream() {
	h := x.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("Cache-Control", "no-cache")
	x.WriteHeader(http.StatusOK)
	x.Flush()
}

// event sends one event, the first at once and each further after the gap. It
// reports false where the stream must end. An empty name leaves the event field out.
func (x *exchange) event(name string, v any) bool {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return x.raw(name, b)
}

func (x *exchange) raw(name string, data []byte) bool {
	var out []byte
	if name != "" {
		out = append(append(append(out, "event: "...), name...), '\n')
	}
	return x.send(append(append(append(out, "data: "...), data...), "\n\n"...))
}

// send sends one piece of a stream.
func (x *exchange) send(piece []byte) bool {
	if x.sent && !x.pause(x.s.o.Gap) {
		return false
	}
	x.sent = true
	if _, err := x.Write(piece); err != nil {
		return false
	}
	x.Flush()
	return x.r.Context().Err() == nil
}
