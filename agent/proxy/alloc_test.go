package proxy

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// Finding a request's target allocates nothing, whatever is configured.
func TestMatchingAllocatesNothing(t *testing.T) {
	w := newWorld(t, nil)
	rt := w.s.routing.Load()
	path := []byte("/openai/v1/chat/completions")
	if n := testing.AllocsPerRun(100, func() {
		if tg, rest := rt.byRoute(path); tg == nil || string(rest) != "/v1/chat/completions" {
			t.Error("no match")
		}
		if rt.at(w.upHost, "", "") == nil {
			t.Error("no match")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestHTTP2Upstream(t *testing.T) {
	for _, on := range []bool{false, true} {
		w := newWorld(t, nil, func(c *worldConfig) { c.http2 = on })
		resp, err := w.client().Get(w.url("/openai/v1/models"))
		if err != nil {
			t.Fatal(err)
		}
		readAll(t, resp)
		if got := w.only().ProtoMajor == 2; got != on || w.only().Header.Get("Authorization") != "Bearer "+key1 {
			t.Errorf("http2 %t: %s, %q", on, w.only().Proto, w.only().Header["Authorization"])
		}
	}
}

// What net/http takes from a server that speaks HTTP/1.1 all the same is not passed on.
func TestHTTP2UpstreamThatIsNone(t *testing.T) {
	for field, want := range map[string]int{"X-A: b": 200, "Content-Length : 1": 502, "X y: b": 502} {
		w := newWorld(t, nil)
		w.rawUpstream(t, says(func() string { return "HTTP/1.1 200 OK\r\n" + field + "\r\nContent-Length: 2\r\n\r\nok" }))
		w.s.Swap(w.routing(worldConfig{http2: true}))
		resp, err := w.client().Get(w.url("/openai/v1/models"))
		if err != nil {
			t.Fatal(err)
		}
		if readAll(t, resp); resp.StatusCode != want {
			t.Errorf("%q: %s", field, resp.Status)
		}
	}
}

// A Unix socket serves the users that are listed, and no Host is asked of them.
func TestUnixSocketChecksUsers(t *testing.T) {
	for _, c := range []struct {
		uids   []int
		served bool
	}{{[]int{os.Getuid()}, true}, {[]int{os.Getuid() + 1}, false}, {nil, false}} {
		w := newWorld(t, nil)
		path := filepath.Join(t.TempDir(), "s")
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		s := New(w.s.Options)
		s.routing.Store(w.s.routing.Load())
		served := make(chan error, 1)
		go func() { served <- s.Serve(ln, c.uids) }()
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte("GET /openai/v1/models HTTP/1.1\r\nHost: anything\r\nConnection: close\r\n\r\n"))
		b := make([]byte, 64)
		n, _ := conn.Read(b)
		conn.Close()
		if ok := n > 0 && string(b[9:12]) == "200"; ok != c.served || (len(w.requests()) == 1) != c.served {
			t.Errorf("users %v: %q", c.uids, b[:n])
		}
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}
