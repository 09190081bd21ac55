package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A connection that the provider has closed meanwhile is not the client's to
// hear of, where the request can be sent once more: nothing of it went out, or
// its method means the same done twice. A POST that the provider may have seen
// is not repeated (RFC 9110 section 9.2.2).
func TestConnectionThatWentStale(t *testing.T) {
	for _, c := range []struct {
		head     string
		repeated bool
	}{
		{"GET PRE/v1/x HTTP/1.1\r\nHost: HOST\r\n\r\n", true},
		{"DELETE PRE/v1/x HTTP/1.1\r\nHost: HOST\r\n\r\n", true},
		{"PUT PRE/v1/x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\n\r\nhi", true},
		{"POST PRE/v1/x HTTP/1.1\r\nHost: HOST\r\nIdempotency-Key: a\r\nContent-Length: 2\r\n\r\nhi", true},
		{"POST PRE/v1/x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\n\r\nhi", false},
	} {
		for _, inside := range []bool{false, true} {
			w := newWorld(t, nil)
			var conns, seen atomic.Int32
			w.rawUpstream(t, func(c net.Conn) {
				// The first connection takes one request and leaves at the next.
				first := conns.Add(1) == 1
				br := bufio.NewReader(c)
				for n := 0; ; n++ {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					io.Copy(io.Discard, r.Body)
					seen.Add(1)
					if first && n == 1 {
						return
					}
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				}
			})
			y := w.way(inside)
			y.SetDeadline(time.Now().Add(10 * time.Second))
			br := bufio.NewReader(y)
			for i, want := range []int{200, map[bool]int{true: 200, false: 502}[c.repeated]} {
				io.WriteString(y, y.fill(c.head))
				resp, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Fatalf("%q, request %d: %v", c.head, i, err)
				}
				if readAll(t, resp); resp.StatusCode != want {
					t.Errorf("%q, request %d: %s, want %d", c.head, i, resp.Status, want)
				}
			}
			if want := map[bool]int32{true: 3, false: 2}[c.repeated]; seen.Load() != want {
				t.Errorf("%q: the provider saw %d requests, want %d", c.head, seen.Load(), want)
			}
		}
	}
}

// One that closed while it was idle, however short a time that was, is noticed
// before anything is sent.
func TestConnectionThatClosedWhileIdle(t *testing.T) {
	w := newWorld(t, nil)
	closed := make(chan struct{}, 1)
	w.rawUpstream(t, func(c net.Conn) {
		if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			io.Copy(io.Discard, r.Body)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
		c.Close()
		closed <- struct{}{}
	})
	y := w.way(false)
	br := bufio.NewReader(y)
	for range 3 {
		io.WriteString(y, y.fill("POST PRE/v1/x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\n\r\nhi"))
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		readAll(t, resp)
		<-closed
	}
}

// A body that comes in its own time goes on in that time, be it short, chunked
// or long, and the next request behind it is not lost.
func TestBodyInPieces(t *testing.T) {
	w := newWorld(t, echoPath)
	long := strings.Repeat("x", 3*largeBuf)
	for i, pieces := range [][]string{
		{"Content-Length: 10\r\n\r\n", "01234", "56789"},
		{"Content-Length: 10\r\n\r\n01234", "PAUSE", "56789GET PRE/next HTTP/1.1\r\nHost: HOST\r\n\r\n"},
		{"Transfer-Encoding: chunked\r\n\r\n5\r\n012", "34\r\n5\r\n56", "PAUSE", "789\r\n0\r\n\r\n", "GET PRE/next HTTP/1.1\r\nHost: HOST\r\n\r\n"},
		{"Transfer-Encoding: chunked\r\n\r\n5\r\n012", "34\r\n5\r\n56", "789\r\n0\r\nX-A: b\r\n\r\nGET PRE/next HTTP/1.1\r\nHost: HOST\r\n\r\n"},
		{"Transfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\nGET PRE/next HTTP/1.1\r\nHost: HOST\r\n\r\n"},
		{fmt.Sprintf("Content-Length: %d\r\n\r\n%s", 10+len(long), long), "01234", "56789GET PRE/next HTTP/1.1\r\nHost: HOST\r\n\r\n"},
	} {
		for _, y := range w.ways() {
			before := len(w.requests())
			y.SetDeadline(time.Now().Add(10 * time.Second))
			io.WriteString(y, y.fill("POST PRE/v1/x HTTP/1.1\r\nHost: HOST\r\n"))
			for _, p := range pieces {
				if p == "PAUSE" {
					until(t, "not forwarded before its body is whole", func() bool { return len(w.requests()) > before })
					continue
				}
				io.WriteString(y, y.fill(p))
			}
			br := bufio.NewReader(y)
			got := answers(t, br, 1)[0]
			if !strings.HasPrefix(got, "200 /v1/x ") || !strings.HasSuffix(got, "0123456789") {
				t.Errorf("%d: %.100q", i, got)
			}
			if strings.Contains(strings.Join(pieces, ""), "next") {
				if got := answers(t, br, 1)[0]; got != "200 /v1/next " && got != "200 /next " {
					t.Errorf("%d: what follows: %q", i, got)
				}
			}
		}
	}
}
