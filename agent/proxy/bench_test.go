package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
)

// One request after another on one connection, by route and in a tunnel. The
// client and the upstream run in the same process: compare, do not quote.
func BenchmarkExchange(b *testing.B) {
	for _, name := range []string{"route", "connect"} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b, nil)
			w.s.Lines = &Lines{Write: func([]byte) {}}
			var c net.Conn = w.dial()
			path, host := "/openai/v1/models", w.addr
			if name == "connect" {
				c, path, host = w.tunnel(), "/v1/models", w.upHost
			}
			req := []byte("GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\nUser-Agent: bench\r\nAuthorization: Bearer attached-by-postern\r\n\r\n")
			br := bufio.NewReader(c)
			b.ReportAllocs()
			for b.Loop() {
				c.Write(req)
				resp, err := http.ReadResponse(br, nil)
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
			}
		})
	}
}
