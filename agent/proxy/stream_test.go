package proxy

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// paths are the ways by which a client reaches the upstream.
func (w *world) paths() map[string]*http.Client {
	route := w.client()
	forward := &http.Client{Transport: &http.Transport{
		DisableCompression: true,
		DialTLSContext:     func(context.Context, string, string) (net.Conn, error) { return w.tunnel(), nil },
	}}
	w.t.Cleanup(forward.CloseIdleConnections)
	return map[string]*http.Client{w.url("/openai"): route, "https://" + w.upHost: forward}
}

// Each event arrives before the next one is sent: nothing is held back, whatever the content type.
func TestStreamsAreFlushed(t *testing.T) {
	for _, ct := range []string{"text/event-stream", "application/x-ndjson", "application/json", ""} {
		next := make(chan struct{})
		w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			rw.Header()["Content-Type"] = []string{ct}
			for i := range 3 {
				fmt.Fprintf(rw, "data: %d\n\n", i)
				rw.(http.Flusher).Flush()
				select {
				case <-next:
				case <-r.Context().Done():
					return
				}
			}
		})
		for base, client := range w.paths() {
			resp, err := client.Get(base + "/v1/stream")
			if err != nil {
				t.Fatal(err)
			}
			br := bufio.NewReader(resp.Body)
			for i := range 3 {
				line, err := br.ReadString('\n')
				if err != nil || line != fmt.Sprintf("data: %d\n", i) {
					t.Fatalf("%s %s: event %d: %q, %v", base, ct, i, line, err)
				}
				br.ReadString('\n')
				next <- struct{}{}
			}
			readAll(t, resp)
		}
	}
}

// A client that leaves ends the request upstream.
func TestLeavingClientCancels(t *testing.T) {
	gone := make(chan struct{}, 1)
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Write([]byte("a"))
		rw.(http.Flusher).Flush()
		<-r.Context().Done()
		gone <- struct{}{}
	})
	for base, client := range w.paths() {
		ctx, cancel := context.WithCancel(context.Background())
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v1/stream", nil)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(resp.Body, make([]byte, 1))
		cancel()
		resp.Body.Close()
		select {
		case <-gone:
		case <-time.After(10 * time.Second):
			t.Errorf("%s: the upstream was not told", base)
		}
	}
}

// An answer that breaks off is not passed on as if it were whole.
func TestBrokenAnswerIsCutShort(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Length", "100")
		rw.Write([]byte("half"))
		rw.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	for base, client := range w.paths() {
		resp, err := client.Get(base + "/v1/models")
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%s: %q passed as whole", base, b)
		}
		resp.Body.Close()
	}
}

// zeros is a body of n bytes that is made while it is read.
type zeros struct{ n int64 }

func (z *zeros) Read(p []byte) (int, error) {
	if z.n == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), z.n)
	clear(p[:n])
	z.n -= n
	return int(n), nil
}

// Uploads stream: what passes is far more than what the process holds.
func TestUploadInConstantMemory(t *testing.T) {
	const size = 128 << 20
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		fmt.Fprintf(rw, "%d %x %v", n, h.Sum(nil), err)
	}, withKeys(key1, key2)) // two usable versions: bodies are captured, as far as they fit
	h := sha256.New()
	io.Copy(h, &zeros{size})
	want := fmt.Sprintf("%d %x <nil>", size, h.Sum(nil))
	for base, client := range w.paths() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		resp, err := client.Post(base+"/v1/files", "application/octet-stream", &zeros{size})
		if err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, resp); got != want {
			t.Errorf("%s: %s", base, got)
		}
		runtime.ReadMemStats(&after)
		if grown := int64(after.Sys) - int64(before.Sys); grown > 64<<20 {
			t.Errorf("%s: the process grew by %d MiB", base, grown>>20)
		}
	}
}

func TestWebSocket(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(rw, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionContextTakeover, InsecureSkipVerify: true})
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow()
		for {
			kind, b, err := c.Read(r.Context())
			if err != nil {
				return
			}
			if err := c.Write(r.Context(), kind, append(b, (" "+r.Header.Get("Authorization"))...)); err != nil {
				return
			}
		}
	})
	for base, client := range w.paths() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		c, _, err := websocket.Dial(ctx, strings.Replace(base, "http", "ws", 1)+"/v1/realtime", &websocket.DialOptions{
			HTTPClient: client, CompressionMode: websocket.CompressionContextTakeover,
			HTTPHeader: http.Header{"Authorization": {"Bearer attached-by-postern"}},
		})
		if err != nil {
			t.Fatalf("%s: %v", base, err)
		}
		for i := range 3 {
			if err := c.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
				t.Fatal(err)
			}
			_, b, err := c.Read(ctx)
			if err != nil {
				t.Fatal(err)
			}
			// The upstream had the key, and its echo was scrubbed.
			if got := string(b); !strings.HasPrefix(got, "hello Bearer ") || strings.Contains(got, key1[8:]) || len(got) != len("hello Bearer ")+len(key1) {
				t.Errorf("%s: message %d: %q", base, i, got)
			}
		}
		c.Close(websocket.StatusNormalClosure, "")
	}
	for _, r := range w.requests() {
		if got := r.Header["Authorization"]; len(got) != 1 || got[0] != "Bearer "+key1 {
			t.Errorf("the upstream saw %q", got)
		}
	}
}

// Only websocket is an upgrade; the JDK's offer of h2c is dropped, the request goes on.
func TestOtherUpgradesAreDropped(t *testing.T) {
	w := newWorld(t, nil)
	resp := w.raw(w.dial(), "GET /openai/v1/models HTTP/1.1\r\nHost: "+w.addr+"\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n")
	if readAll(t, resp); resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	for _, h := range []string{"Upgrade", "Http2-Settings"} {
		if w.only().Header.Get(h) != "" {
			t.Errorf("%s reached the upstream", h)
		}
	}
}

// A 101 that nobody asked for is no answer.
func TestUnaskedUpgrade(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, _ *http.Request) {
		c, _, err := rw.(http.Hijacker).Hijack()
		if err == nil {
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"+key1)
			c.Close()
		}
	})
	resp, err := w.client().Get(w.url("/openai/v1/models"))
	if err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, resp); resp.StatusCode != 502 || strings.Contains(got, key1) {
		t.Errorf("%s %q", resp.Status, got)
	}
}

func TestHeadAndTrailers(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if len(r.Trailer) > 0 {
			t.Errorf("trailers reached the upstream: %v", r.Trailer)
		}
		rw.Header().Set("Trailer", "X-Key")
		rw.Header().Set("Content-Type", "text/plain")
		if r.Method == http.MethodHead {
			rw.Header().Set("Content-Length", "5")
			return
		}
		io.WriteString(rw, "hello")
		rw.Header().Set("X-Key", key1)
	})
	resp, err := w.client().Head(w.url("/openai/v1/models"))
	if err != nil || resp.ContentLength != 5 {
		t.Fatalf("HEAD: %v, %v", resp, err)
	}
	got := w.raw(w.dial(), "POST /openai/v1/x HTTP/1.1\r\nHost: "+w.addr+"\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n1\r\na\r\n0\r\nAuthorization: Bearer mine\r\n\r\n")
	if b := readAll(t, got); b != "hello" || len(got.Trailer) != 0 {
		t.Errorf("%q, trailers %v", b, got.Trailer)
	}
}

// A panic in an exchange ends that connection only, and is recorded.
func TestPanicIsContained(t *testing.T) {
	w := newWorld(t, nil)
	good := w.s.routing.Load()
	bad := *good.routes["openai"]
	bad.Transport = panicking{}
	rt, err := NewRouting([]*Target{&bad})
	if err != nil {
		t.Fatal(err)
	}
	w.s.Swap(rt)
	if _, err := w.client().Get(w.url("/openai/v1/models")); err == nil {
		t.Error("a panic became an answer")
	}
	w.s.routing.Store(good)
	resp, err := w.client().Get(w.url("/openai/v1/models"))
	if err != nil {
		t.Fatal(err)
	}
	readAll(t, resp)
	if !strings.Contains(w.log.String(), "panic") {
		t.Error("the panic was not logged")
	}
	v := w.key.Entries()[0].Version
	w.key.Install(nil)
	<-v.Close() // the lease was released, or this would hang
}

type panicking struct{}

func (panicking) RoundTrip(*http.Request) (*http.Response, error) { panic("boom") }

// Both directions at once: the answer begins before the body has ended, and
// nobody takes the rest of the body from the upstream.
func TestAnswerBeforeTheBodyEnds(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		http.NewResponseController(rw).EnableFullDuplex()
		half := make([]byte, 1000)
		io.ReadFull(r.Body, half)
		rw.Write([]byte("half "))
		rw.(http.Flusher).Flush()
		rest, err := io.ReadAll(r.Body)
		fmt.Fprintf(rw, "%d %v", len(rest), err)
	})
	for base, client := range w.paths() {
		for range 20 {
			pr, pw := io.Pipe()
			go pw.Write(make([]byte, 1000))
			resp, err := client.Post(base+"/v1/x", "application/octet-stream", pr)
			if err != nil {
				t.Fatal(err)
			}
			first := make([]byte, 5)
			if _, err := io.ReadFull(resp.Body, first); err != nil {
				t.Fatalf("%s: %v", base, err)
			}
			go func() {
				pw.Write(make([]byte, 500))
				pw.Close()
			}()
			if got := readAll(t, resp); got != "500 <nil>" {
				t.Fatalf("%s: %q", base, got)
			}
		}
	}
}

// An answer that does not wait for the body ends the exchange, though the
// client still sends; the server is left with nobody reading.
func TestAnswerWithoutReadingTheBody(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		http.NewResponseController(rw).EnableFullDuplex() // or the test's own server would wait for the body
		rw.Header().Set("Content-Length", "0")
		rw.WriteHeader(http.StatusRequestEntityTooLarge)
		rw.(http.Flusher).Flush()
	})
	for base, client := range w.paths() {
		for range 20 {
			pr, pw := io.Pipe()
			go pw.Write([]byte("some")) // and never the rest
			resp, err := client.Post(base+"/v1/x", "application/octet-stream", pr)
			if err != nil {
				t.Fatalf("%s: %v", base, err)
			}
			if readAll(t, resp); resp.StatusCode != http.StatusRequestEntityTooLarge {
				t.Fatalf("%s: %s", base, resp.Status)
			}
			pw.Close()
		}
	}
	if strings.Contains(w.log.String(), "panic") {
		t.Error(w.log.String())
	}
}
