package e2e_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
)

// gnarly is a key in which every encoding changes something.
func (w *world) gnarly() string {
	return w.Secret("sk-proj-" + rand.Text()[:10] + `/+"\<&%=~'` + rand.Text())
}

// parrot is a provider that says back what it was sent, in more ways than
// package fake's: raw status lines, early hints, streams that are cut at random
// places, WebSocket frames. It also repeats every other key that it was told of.
type parrot struct {
	mu   sync.Mutex
	more []string
}

// remembers makes it repeat a key that the request does not carry.
func (p *parrot) remembers(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.more = append(p.more, key)
}

// values are the credentials that it repeats.
func (p *parrot) values(r *http.Request) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return append([]string{key}, p.more...)
}

func (p *parrot) intercept(w http.ResponseWriter, r *http.Request) bool {
	values := p.values(r)
	switch r.URL.Path {
	case "/v1/events":
		p.events(w, r, values)
	case "/v1/hints":
		w.Header().Set("Link", "<https://"+r.Host+"/"+values[0]+">; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusOK)
	case "/v1/statusline":
		p.raw(w, "HTTP/1.1 401 Incorrect key "+values[0]+"\r\nContent-Length: 0\r\n\r\n")
	case "/v1/cut":
		// The connection ends in the middle of the key.
		p.raw(w, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\n"+values[0][:len(values[0])-3])
	case "/v1/socket":
		p.socket(w, r, values)
	case "/v1/memory":
		fmt.Fprintf(w, "the keys so far: %s\n", strings.Join(values, ", "))
	default:
		return false
	}
	return true
}

// raw writes to the connection itself and closes it.
func (p *parrot) raw(w http.ResponseWriter, text string) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	io.WriteString(conn, text)
}

// events streams server-sent events that hold the values in several forms, and
// flushes wherever the seed says.
func (p *parrot) events(w http.ResponseWriter, r *http.Request, values []string) {
	var b bytes.Buffer
	for _, v := range values {
		quoted, _ := json.Marshal(map[string]string{"error": "bad key: " + v})
		fmt.Fprintf(&b, "event: error\ndata: %s\n\ndata: %s\n\ndata: x%s\n\n", quoted, v, base64.StdEncoding.EncodeToString([]byte("Bearer "+v)))
	}
	seed, _ := strconv.ParseUint(r.URL.Query().Get("seed"), 10, 64)
	rng := mathrand.New(mathrand.NewPCG(seed, 1))
	w.Header().Set("Content-Type", "text/event-stream")
	for rest := b.Bytes(); len(rest) > 0; {
		n := min(1+rng.IntN(40), len(rest))
		w.Write(rest[:n])
		http.NewResponseController(w).Flush()
		rest = rest[n:]
	}
}

// socket sends the values in text frames, in TCP segments that are cut at random places.
func (p *parrot) socket(w http.ResponseWriter, r *http.Request, values []string) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Echo: %s\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n", values[0])
	for _, v := range values {
		text := `{"type":"error","message":"bad key: ` + v + `"}`
		b.Write([]byte{0x81, 126, byte(len(text) >> 8), byte(len(text))})
		b.WriteString(text)
	}
	b.Write([]byte{0x88, 0})
	for rest := b.Bytes(); len(rest) > 0; {
		n := min(1+mathrand.IntN(60), len(rest))
		conn.Write(rest[:n])
		time.Sleep(200 * time.Microsecond)
		rest = rest[n:]
	}
}

// parroting starts one as the provider of that name.
func (w *world) parroting(name string) (*provider, *parrot) {
	p := &parrot{}
	return w.Provider(name, fake.Options{Kind: "echo", Gap: time.Nanosecond, Intercept: p.intercept}), p
}

// wire keeps every byte that comes over a client's connections.
type wire struct {
	mu sync.Mutex
	b  bytes.Buffer
}

type tapped struct {
	net.Conn
	w *wire
}

func (c tapped) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.b.Write(p[:n])
	return n, err
}

func (x *wire) tap(tr *http.Transport) {
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, network, addr)
		return tapped{c, x}, err
	}
}

func (x *wire) bytes() []byte {
	x.mu.Lock()
	defer x.mu.Unlock()
	return bytes.Clone(x.b.Bytes())
}

// heard is all that a client could know of an answer: status line, fields,
// body, trailers, early hints. A body that breaks off counts as far as it came.
func heard(t *testing.T, client *http.Client, req *http.Request) (status int, text string) {
	t.Helper()
	var b strings.Builder
	trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		fmt.Fprintf(&b, "%d\n", code)
		http.Header(h).Write(&b)
		return nil
	}}
	resp, err := client.Do(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
	if err != nil {
		fmt.Fprintln(&b, err)
		return 0, b.String()
	}
	defer resp.Body.Close()
	fmt.Fprintln(&b, resp.Status)
	resp.Header.Write(&b)
	body, err := io.ReadAll(resp.Body)
	b.Write(body)
	if err != nil {
		fmt.Fprintln(&b, err)
	}
	resp.Trailer.Write(&b)
	return resp.StatusCode, b.String()
}

// upgrade opens a WebSocket by a route and returns all that comes until its end.
func upgrade(t *testing.T, a *agenttest.Agent, path string) string {
	t.Helper()
	conn, err := net.Dial("tcp", a.Proxy)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", path, a.Proxy)
	b, err := io.ReadAll(conn)
	if err != nil {
		t.Errorf("the WebSocket broke off: %v", err)
	}
	return string(b)
}
