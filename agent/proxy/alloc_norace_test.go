//go:build !race

// The race detector makes pools forget at random.

package proxy

import (
	"bytes"
	"net"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/provider/spec"
)

// A request on a route allocates nothing once its connection is warm: neither
// the session, nor the exchange, nor the log line.
func TestExchangeAllocatesNothing(t *testing.T) {
	for name, c := range map[string]struct{ request, answer string }{
		"GET":     {"GET /openai/v1/models?a=b HTTP/1.1\r\nHost: HOST\r\nConnection: keep-alive\r\nAuthorization: Bearer attached-by-postern\r\nAccept-Encoding: gzip\r\n\r\n", "Content-Length: 2\r\n\r\n{}"},
		"POST":    {"POST /openai/chat/completions HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"},
		"chunked": {"POST /openai/v1/chat HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "Date: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.plainUpstream(t, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"+c.answer)
			w.s.Lines = &Lines{Write: func([]byte) {}}
			conn := w.dial()
			request, buf := []byte(strings.ReplaceAll(c.request, "HOST", w.addr)), make([]byte, 4096)
			// The collector empties pools, and a machine that is busy makes a request one that
			// is watched: a few tries, of which one has to be without.
			var n float64
			for try := 0; try == 0 || n > 0 && try < 10; try++ {
				n = testing.AllocsPerRun(200, func() { roundTrip(t, conn, request, buf) })
			}
			if n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

// roundTrip sends a request and reads an answer that holds {}, with what ends it.
func roundTrip(t *testing.T, conn net.Conn, request, buf []byte) {
	conn.Write(request)
	for n := 0; ; {
		k, err := conn.Read(buf[n:])
		n += k
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(buf[:n], []byte("{}")) && (!bytes.Contains(buf[:n], []byte("chunked")) || bytes.HasSuffix(buf[:n], []byte("0\r\n\r\n"))) {
			return
		}
	}
}

// plainUpstream puts an upstream in place of the world's that is spoken to
// without TLS, answers every request with text, and allocates nothing for it.
func (w *world) plainUpstream(t *testing.T, text string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	acceptAll(t, ln, func(c net.Conn) {
		answer, buf := []byte(text), make([]byte, 4096)
		for {
			if n, err := c.Read(buf); err != nil || n == 0 {
				return
			}
			c.Write(answer)
		}
	})
	w.upHost = ln.Addr().String()
	w.s.Swap(w.routing(worldConfig{spec: func(s *spec.Spec) { s.BaseURL, s.AllowPlaintext = "http://"+w.upHost, true }}))
}
