package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/postern-proxy/postern/agent/provider/spec"
)

func withHTTP2(c *worldConfig) { c.http2 = true }

// secure opens an intercepted tunnel in which the client offers these protocols.
func (w *world) secure(protocols ...string) *tls.Conn {
	w.t.Helper()
	c, resp := w.connect(w.upHost)
	if resp.StatusCode != http.StatusOK {
		w.t.Fatalf("CONNECT: %s", resp.Status)
	}
	tc := tls.Client(c, &tls.Config{RootCAs: w.ca, ServerName: "127.0.0.1", NextProtos: protocols})
	if err := tc.Handshake(); err != nil {
		w.t.Fatal(err)
	}
	return tc
}

// http2 is a client's connection in a tunnel, as a client of gRPC has it.
func (w *world) http2() *http.ClientConn {
	w.t.Helper()
	tr := &http.Transport{DisableCompression: true, ForceAttemptHTTP2: true, DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
		tc := w.secure("h2")
		return tc, tc.SetDeadline(time.Time{})
	}}
	cc, err := tr.NewClientConn(context.Background(), "https", w.upHost)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { cc.Close() })
	return cc
}

// call makes a request as clients of gRPC do.
func (w *world) call(ctx context.Context, body io.Reader) *http.Request {
	w.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+w.upHost+"/test.Echo/Talk", body)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header = http.Header{"Te": {"trailers"}, "Content-Type": {"application/grpc"}, "Grpc-Accept-Encoding": {"gzip"}, "Authorization": {"Bearer the-client's-own"}}
	return req
}

// Both sides of a stream talk in turn, before either has ended, and what gRPC
// says last, in trailers, comes through.
func TestStreamsTalkBothWays(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Trailer", "Grpc-Status")
		rw.WriteHeader(http.StatusOK)
		http.NewResponseController(rw).Flush()
		buf := make([]byte, 64)
		for {
			n, err := r.Body.Read(buf)
			if n > 0 {
				io.WriteString(rw, "heard "+string(buf[:n]))
				http.NewResponseController(rw).Flush()
			}
			if err != nil {
				break
			}
		}
		rw.Header().Set("Grpc-Status", "0")
		rw.Header().Set(http.TrailerPrefix+"Grpc-Message", "with "+key1)
		rw.Header().Set(http.TrailerPrefix+"Http2-Settings", "AAMAAABk")
	}, withHTTP2)
	out, in := io.Pipe()
	res, err := w.http2().RoundTrip(w.call(t.Context(), out))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	for i := range 3 {
		said := fmt.Sprintf("word %d", i)
		go io.WriteString(in, said)
		got := make([]byte, len("heard "+said))
		if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != "heard "+said {
			t.Fatalf("the answer is %q, %v", got, err)
		}
	}
	in.Close()
	if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
		t.Errorf("the rest of the answer is %q, %v", rest, err)
	}
	want := "with " + strings.Repeat("*", len(key1))
	if res.Trailer.Get("Grpc-Status") != "0" || res.Trailer.Get("Grpc-Message") != want || len(res.Trailer) != 2 {
		t.Errorf("the trailers are %q", res.Trailer)
	}
	q := w.only()
	if q.ProtoMajor != 2 || q.Header.Get("Te") != "trailers" || q.Header.Get("Grpc-Accept-Encoding") != "" || q.Host != w.upHost {
		t.Errorf("the provider was asked by %s, of %s, with %q", q.Proto, q.Host, q.Header)
	}
	if got := q.Header["Authorization"]; len(got) != 1 || got[0] != "Bearer "+key1 {
		t.Errorf("Authorization is %q", got)
	}
}

// An answer of fields alone ends with them: clients of gRPC read its status there only then.
func TestStreamOfFieldsAlone(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) { rw.Header().Set("Grpc-Status", "12") }, withHTTP2)
	f := w.frames()
	f.ask(1, true, w.pseudo()...)
	for {
		if h, ok := f.next().(*http2.MetaHeadersFrame); ok {
			if !h.StreamEnded() {
				t.Error("more follows the head")
			}
			return
		}
	}
}

// HTTP/2 is offered where the provider is spoken to by it; who does not choose it
// is served as ever, and gets no trailers.
func TestHTTP2IsOfferedWhereTheProviderSpeaksIt(t *testing.T) {
	trailing := func(rw http.ResponseWriter, r *http.Request) {
		io.WriteString(rw, "{}")
		http.NewResponseController(rw).Flush()
		rw.Header().Set(http.TrailerPrefix+"X-Last", "word")
	}
	for _, on := range []bool{false, true} {
		w := newWorld(t, trailing, func(c *worldConfig) { c.http2 = on })
		want := map[bool]string{false: "http/1.1", true: "h2"}[on]
		if got := w.secure("h2", "http/1.1").ConnectionState().NegotiatedProtocol; got != want {
			t.Errorf("http2 %t: %q was chosen", on, got)
		}
		res := w.raw(w.secure("http/1.1"), "GET /v1/models HTTP/1.1\r\nHost: "+w.upHost+"\r\nTE: trailers\r\n\r\n")
		if body := readAll(t, res); body != "{}" || len(res.Trailer) > 0 || w.only().Header.Get("Te") != "" {
			t.Errorf("http2 %t: %s %q, trailers %q, TE %q", on, res.Status, body, res.Trailer, w.only().Header.Get("Te"))
		}
	}
}

// A provider that is to be spoken to by HTTP/2 and does not is asked all the same; its trailers stay.
func TestStreamToAProviderOfHTTP1(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		io.WriteString(rw, "{}")
		http.NewResponseController(rw).Flush()
		rw.Header().Set(http.TrailerPrefix+"X-Last", "word")
	}, withHTTP2, func(c *worldConfig) { c.onlyHTTP1 = true })
	res, err := w.http2().RoundTrip(w.call(t.Context(), strings.NewReader("hello")))
	if err != nil {
		t.Fatal(err)
	}
	if body := readAll(t, res); res.StatusCode != http.StatusOK || body != "{}" || len(res.Trailer) > 0 || w.only().ProtoMajor != 1 {
		t.Errorf("%s %q, trailers %q, asked by %s", res.Status, body, res.Trailer, w.only().Proto)
	}
}

// A client that gives up one stream ends its request at the provider, and no
// other's, whether it has sent all of it or not.
func TestResetStreamCancelsItsRequest(t *testing.T) {
	given, begun := make(chan struct{}), make(chan struct{})
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/test.Echo/Talk" {
			begun <- struct{}{}
			<-r.Context().Done()
			given <- struct{}{}
		}
	}, withHTTP2)
	cc := w.http2()
	out, in := io.Pipe()
	defer in.Close()
	for name, body := range map[string]io.Reader{"open": out, "ended": strings.NewReader("hello")} {
		ctx, cancel := context.WithCancel(t.Context())
		failed := make(chan error)
		go func() {
			_, err := cc.RoundTrip(w.call(ctx, body))
			failed <- err
		}()
		<-begun
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: the stream ended with %v", name, err)
		}
		<-given
	}
	req := w.call(t.Context(), nil)
	req.URL.Path = "/test.Echo/Else"
	res, err := cc.RoundTrip(req)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("the next one gets %v, %v", res, err)
	}
	res.Body.Close()
}

// An answer may end before the client has said all that it would.
func TestStreamAnsweredEarly(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, "enough") }, withHTTP2)
	out, in := io.Pipe()
	defer in.Close()
	go io.WriteString(in, "hello")
	res, err := w.http2().RoundTrip(w.call(t.Context(), out))
	if err != nil {
		t.Fatal(err)
	}
	if body := readAll(t, res); body != "enough" {
		t.Errorf("the answer is %q", body)
	}
}

// An answer that breaks off does not look whole.
func TestStreamCutShort(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		io.WriteString(rw, "half")
		http.NewResponseController(rw).Flush()
		panic(http.ErrAbortHandler)
	}, withHTTP2)
	res, err := w.http2().RoundTrip(w.call(t.Context(), nil))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	if string(b) != "half" || err == nil {
		t.Errorf("the answer is %q, %v", b, err)
	}
	res.Body.Close()
}

// Many streams share a connection, which counts as one.
func TestStreamsAreOneConnection(t *testing.T) {
	const n = 20
	var here sync.WaitGroup
	here.Add(n)
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		here.Done()
		here.Wait() // all of them are under way
		io.Copy(rw, r.Body)
	}, withHTTP2)
	cc := w.http2()
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			said := strings.Repeat(fmt.Sprint(i), 100_000)
			res, err := cc.RoundTrip(w.call(t.Context(), strings.NewReader(said)))
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close()
			if b, err := io.ReadAll(res.Body); err != nil || string(b) != said {
				t.Errorf("stream %d has %d bytes, %v", i, len(b), err)
			}
		})
	}
	here.Wait()
	if got := w.s.conns.count.Load(); got != 1 {
		t.Errorf("%d connections are counted", got)
	}
	all.Wait()
}

// A shutdown says so, lets the stream under way end, and closes what is idle.
func TestShutdownGoesAway(t *testing.T) {
	begun, on := make(chan struct{}), make(chan struct{})
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.WriteHeader(http.StatusOK)
		http.NewResponseController(rw).Flush()
		close(begun)
		<-on
		io.WriteString(rw, "whole")
	}, withHTTP2)
	idle, busy := w.frames(), w.frames()
	idle.settle()
	busy.ask(1, true, w.pseudo()...)
	<-begun
	down := make(chan error, 1)
	go func() { down <- w.s.Shutdown(context.Background()) }()
	away := func(f *frames) *http2.GoAwayFrame {
		for {
			if g, ok := f.next().(*http2.GoAwayFrame); ok {
				return g
			}
		}
	}
	if g := away(idle); g.ErrCode != http2.ErrCodeNo {
		t.Errorf("an idle client hears %v", g)
	}
	if g := away(busy); g.ErrCode != http2.ErrCodeNo || g.LastStreamID < 1 {
		t.Errorf("a client with a stream hears %v", g)
	}
	close(on)
	got := ""
	for {
		d, ok := busy.next().(*http2.DataFrame)
		if !ok {
			continue
		}
		if got += string(d.Data()); d.StreamEnded() {
			break
		}
	}
	if got != "whole" {
		t.Errorf("the stream under way ends with %q", got)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
	if _, err := idle.f.ReadFrame(); err == nil {
		t.Error("the idle connection goes on")
	}
}

// Messages that are compressed cannot be scrubbed.
func TestCompressedMessages(t *testing.T) {
	for _, echoes := range []bool{false, true} {
		w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Grpc-Encoding", "gzip")
			io.WriteString(rw, "{}")
		}, withHTTP2, withSpec(func(s *spec.Spec) { s.Echoes = echoes }))
		res, err := w.http2().RoundTrip(w.call(t.Context(), nil))
		if err != nil {
			t.Fatal(err)
		}
		readAll(t, res)
		if want := map[bool]int{false: http.StatusOK, true: http.StatusBadGateway}[echoes]; res.StatusCode != want {
			t.Errorf("of a provider that echoes (%t): %s", echoes, res.Status)
		}
	}
}
