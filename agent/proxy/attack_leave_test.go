package proxy

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A client may leave at any point, in any way; nothing of it stays: no
// connection, no goroutine (the world's end checks), no body, no lease.
func TestLeavingLeavesNothingBehind(t *testing.T) {
	stop := make(chan struct{})
	stall := func(r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-stop: // net/http hears of no leaving while there is a body to read
		}
	}
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/stall":
			stall(r)
		case "/v1/half":
			io.WriteString(rw, "half")
			rw.(http.Flusher).Flush()
			stall(r)
		case "/v1/ws":
			if c, _, err := rw.(http.Hijacker).Hijack(); err == nil {
				io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
				io.Copy(io.Discard, c)
				c.Close()
			}
		case "/v1/dead":
			rw.WriteHeader(http.StatusUnauthorized)
		default:
			io.Copy(io.Discard, r.Body)
		}
	}, withKeys(key1, key2))
	t.Cleanup(func() { close(stop) })
	const post = "POST PRE/v1/x HTTP/1.1\r\nHost: HOST\r\n"
	for _, s := range []struct{ name, text, read string }{
		{"at once", "", ""},
		{"in a head", "GET PRE/v1/x HTTP/1.1\r\nHo", ""},
		{"in a body", post + "Content-Length: 100\r\n\r\nabc", ""},
		{"in a chunk size", post + "Transfer-Encoding: chunked\r\n\r\n5", ""},
		{"in a chunk", post + "Transfer-Encoding: chunked\r\n\r\n5\r\nab", ""},
		{"in the trailers", post + "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-A", ""},
		{"told to go on", post + "Content-Length: 100\r\nExpect: 100-continue\r\n\r\n", "100 Continue"},
		{"in a body that nobody reads", "POST PRE/v1/stall HTTP/1.1\r\nHost: HOST\r\nContent-Length: 100\r\n\r\nabc", ""},
		{"in a body that is refused", "POST PRE/v1/dead HTTP/1.1\r\nHost: HOST\r\nContent-Length: 100\r\n\r\nabc", ""},
		{"before the answer", "GET PRE/v1/stall HTTP/1.1\r\nHost: HOST\r\n\r\n", ""},
		{"in the answer", "GET PRE/v1/half HTTP/1.1\r\nHost: HOST\r\n\r\n", "half"},
		{"with a request ahead", "GET PRE/v1/half HTTP/1.1\r\nHost: HOST\r\n\r\nGET PRE/v1/x HTTP/1.1\r\nHost: HOST\r\n\r\n", "half"},
		{"with garbage ahead", "GET PRE/v1/stall HTTP/1.1\r\nHost: HOST\r\n\r\n\x00\n", ""},
		{"before the upgrade", "GET PRE/v1/stall HTTP/1.1\r\nHost: HOST\r\n" + wsHead, ""},
		{"upgraded", "GET PRE/v1/ws HTTP/1.1\r\nHost: HOST\r\n" + wsHead, "101 Switching"},
		{"in a frame", "GET PRE/v1/ws HTTP/1.1\r\nHost: HOST\r\n" + wsHead + "\x81\x85", "101 Switching"},
	} {
		for _, end := range []string{"fin", "rst", "half"} {
			for _, inside := range []bool{false, true} {
				y := w.way(inside)
				before := len(w.requests())
				io.WriteString(y, y.fill(s.text))
				switch {
				case s.read != "":
					if err := readUntil(y, s.read); err != nil {
						t.Fatalf("%s, in a tunnel %t: %v", s.name, inside, err)
					}
				case strings.Contains(s.text, "\r\n\r\n"):
					until(t, s.name+": not forwarded", func() bool { return len(w.requests()) > before })
				}
				leave(y.raw, end)
				w.settled(t, fmt.Sprintf("%s, %s, in a tunnel %t", s.name, end, inside))
				y.raw.Close()
			}
		}
	}
	// The steps of a tunnel's beginning.
	for _, hello := range []string{"", "\x16\x03\x01\x02\x00\x01\x00", "GET / HTTP/1.1\r\n\r\n"} {
		for _, end := range []string{"fin", "rst", "half"} {
			c, _ := w.connect(w.upHost)
			io.WriteString(c, hello)
			leave(c.(*net.TCPConn), end)
			w.settled(t, fmt.Sprintf("a tunnel after %q, %s", hello, end))
			c.Close()
		}
	}
}

// leave ends a client's side: properly, by a reset, or the sending side alone.
func leave(c *net.TCPConn, how string) {
	switch how {
	case "rst":
		c.SetLinger(0)
		c.Close()
	case "fin":
		c.Close()
	case "half":
		c.CloseWrite()
	}
}

// An upstream may fail at any point, too.
func TestFailingUpstreamLeavesNothingBehind(t *testing.T) {
	for name, f := range map[string]func(c net.Conn, br *bufio.Reader){
		"at once":        func(net.Conn, *bufio.Reader) {},
		"after the head": func(_ net.Conn, br *bufio.Reader) { http.ReadRequest(br) },
		"in its head":    func(c net.Conn, br *bufio.Reader) { http.ReadRequest(br); io.WriteString(c, "HTTP/1.1 200 OK\r\nX-") },
		"in its body": func(c net.Conn, br *bufio.Reader) {
			http.ReadRequest(br)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
		},
		"after a refusal": func(c net.Conn, br *bufio.Reader) {
			http.ReadRequest(br)
			io.WriteString(c, "HTTP/1.1 401 No\r\nContent-Length: 9\r\n\r\nabc")
		},
		"upgraded": func(c net.Conn, br *bufio.Reader) {
			http.ReadRequest(br)
			io.WriteString(c, "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x85ab")
		},
		"before its time": func(c net.Conn, br *bufio.Reader) {
			io.WriteString(c, "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
		},
	} {
		for _, end := range []string{"fin", "rst"} {
			w := newWorld(t, nil, withKeys(key1, key2))
			w.rawUpstream(t, func(c net.Conn) {
				f(c, bufio.NewReader(c))
				if end == "rst" {
					c.(*tls.Conn).NetConn().(*net.TCPConn).SetLinger(0)
					c.(*tls.Conn).NetConn().Close()
				}
			})
			for _, text := range []string{
				"GET PRE/v1/x HTTP/1.1\r\nHost: HOST\r\n\r\n",
				"GET PRE/v1/x HTTP/1.1\r\nHost: HOST\r\n" + wsHead,
				"POST PRE/v1/x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 3\r\n\r\nabc",
			} {
				for _, y := range w.ways() {
					y.SetDeadline(time.Now().Add(10 * time.Second))
					io.WriteString(y, y.fill(text))
					y.Read(make([]byte, 1)) // an answer or the end
					y.raw.Close()
				}
				w.settled(t, name+", "+end)
			}
		}
	}
}
