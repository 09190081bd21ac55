package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// answers reads n answers from a connection and returns their bodies.
func answers(t *testing.T, br *bufio.Reader, n int) []string {
	t.Helper()
	var out []string
	for i := range n {
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		out = append(out, fmt.Sprintf("%d %s", resp.StatusCode, readAll(t, resp)))
	}
	return out
}

func echoPath(rw http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	fmt.Fprintf(rw, "%s %s", r.URL.Path, b)
}

// Requests sent ahead are answered one after another, in order.
func TestPipelining(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "slow") {
			time.Sleep(3 * watchAfter) // long enough that the watch sees the next request, which is no leaving
		}
		echoPath(rw, r)
	})
	c := w.dial()
	fmt.Fprintf(c, "GET /openai/v1/slow HTTP/1.1\r\nHost: %[1]s\r\n\r\nPOST /openai/v1/b HTTP/1.1\r\nHost: %[1]s\r\nContent-Length: 2\r\n\r\nhi"+
		"POST /openai/v1/c HTTP/1.1\r\nHost: %[1]s\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /nosuch HTTP/1.1\r\nHost: %[1]s\r\n\r\nGET /openai/v1/d HTTP/1.1\r\nHost: %[1]s\r\n\r\n", w.addr)
	got := answers(t, bufio.NewReader(c), 5)
	for i, want := range []string{"200 /v1/slow ", "200 /v1/b hi", "200 /v1/c abc", "404 ", "200 /v1/d "} {
		if !strings.HasPrefix(got[i], want) {
			t.Errorf("answer %d: %q, want %q", i, got[i], want)
		}
	}
}

// A client that asks first is told to go on when the body is wanted, and only then.
func TestContinue(t *testing.T) {
	w := newWorld(t, echoPath)
	c := w.dial()
	br := bufio.NewReader(c)
	fmt.Fprintf(c, "POST /openai/v1/a HTTP/1.1\r\nHost: %s\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", w.addr)
	if line, _ := br.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("got %q", line)
	}
	br.ReadString('\n')
	io.WriteString(c, "hello")
	if got := answers(t, br, 1)[0]; got != "200 /v1/a hello" {
		t.Errorf("got %q", got)
	}
	if w.only().Header.Get("Expect") != "" {
		t.Error("Expect reached the upstream")
	}

	fmt.Fprintf(c, "POST /nosuch HTTP/1.1\r\nHost: %s\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", w.addr)
	if got := answers(t, br, 1)[0]; !strings.HasPrefix(got, "404 ") {
		t.Errorf("refused: %q", got)
	}
	if _, err := br.ReadByte(); err != io.EOF {
		t.Errorf("the connection of a body that was never sent goes on: %v", err)
	}

	c = w.dial()
	fmt.Fprintf(c, "POST /openai/v1/a HTTP/1.1\r\nHost: %s\r\nContent-Length: 5\r\nExpect: tea\r\n\r\n", w.addr)
	if got := answers(t, bufio.NewReader(c), 1)[0]; !strings.HasPrefix(got, "417 ") {
		t.Errorf("an unknown expectation: %q", got)
	}
}

// HTTP/1.0 knows no chunks: the end of the connection ends the answer.
func TestHTTP10(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.(http.Flusher).Flush()
		echoPath(rw, r)
	})
	c := w.dial()
	fmt.Fprintf(c, "GET /openai/v1/a HTTP/1.0\r\nHost: %s\r\n\r\n", w.addr)
	raw, err := io.ReadAll(c)
	if err != nil || strings.Contains(string(raw), "chunked") || !strings.HasSuffix(string(raw), "\r\n\r\n/v1/a ") {
		t.Errorf("%q, %v", raw, err)
	}
}

// A body that nobody wanted is read over if it is short; a long one costs the connection.
func TestUnwantedBody(t *testing.T) {
	w := newWorld(t, nil)
	for size, reused := range map[int]bool{10: true, maxDrain: true, maxDrain + 1: false} {
		c := w.dial()
		br := bufio.NewReader(c)
		fmt.Fprintf(c, "POST /nosuch HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n", w.addr, size)
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			io.CopyN(c, &zeros{int64(size)}, int64(size))
		}()
		answers(t, br, 1)
		<-sent
		fmt.Fprintf(c, "GET /openai/v1/models HTTP/1.1\r\nHost: %s\r\n\r\n", w.addr)
		resp, err := http.ReadResponse(br, nil)
		if ok := err == nil && resp.StatusCode == 200; ok != reused {
			t.Errorf("%d bytes: reused %t (%v), want %t", size, ok, err, reused)
		}
	}
}

// Shutdown ends idle connections at once, and those in use after their answer.
func TestShutdownIsGraceful(t *testing.T) {
	release := make(chan struct{})
	started := make(chan struct{})
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		close(started)
		<-release
		io.WriteString(rw, "whole")
	})
	idle := w.dial()
	fmt.Fprintf(idle, "GET /nosuch HTTP/1.1\r\nHost: %s\r\n\r\n", w.addr)
	ibr := bufio.NewReader(idle)
	answers(t, ibr, 1)
	busy := w.dial()
	fmt.Fprintf(busy, "GET /openai/v1/a HTTP/1.1\r\nHost: %s\r\n\r\n", w.addr)
	<-started
	done := make(chan error, 1)
	go func() { done <- w.s.Shutdown(context.Background()) }()
	if _, err := ibr.ReadByte(); err != io.EOF {
		t.Errorf("the idle connection: %v", err)
	}
	select {
	case err := <-done:
		t.Fatalf("shutdown did not wait: %v", err)
	default:
	}
	close(release)
	br := bufio.NewReader(busy)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || !resp.Close || readAll(t, resp) != "whole" {
		t.Errorf("the busy connection: %v, %v", resp, err)
	}
	if err := <-done; err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

// Whatever an answer's fields hold, they stay within their lines.
func TestResponseFieldsCannotSplit(t *testing.T) {
	w := newWorld(t, nil)
	server, client := pipe(t)
	sess := newSession(w.s, server, nil)
	io.WriteString(client, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	if !sess.readHead() {
		t.Fatal("no head")
	}
	rw := sess.newResponse()
	rw.Header()["X-A"] = []string{"a\r\nX-B: b", "fine"}
	rw.WriteHeader(204)
	rw.finish()
	server.Close()
	b, _ := io.ReadAll(client)
	if head := string(b); strings.Contains(head, "X-B") || !strings.Contains(head, "X-A: fine\r\n") || strings.Contains(head, "Content-Length") {
		t.Errorf("%q", head)
	}
}

// pipe is a TCP connection's two ends.
func pipe(t *testing.T) (server, client net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return server, client
}
