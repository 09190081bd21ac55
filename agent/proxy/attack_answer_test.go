package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/provider/spec"
)

// Whatever an upstream says, the client hears nothing of the key, nor does the
// log, and the connection is whole or cut, never desynchronised. Some of it is
// more than a head may be.
func TestWhatAnUpstreamMaySay(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	endless := func(head, line string) string { return head + strings.Repeat(line, 1<<20/len(line)) }
	for _, c := range []struct {
		name, text string
		status     int    // 0: the connection is cut
		body       string // of a 200
	}{
		{"hints first", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 P\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <" + key1 + ">\r\n\r\n" + ok + "Content-Length: 2\r\n\r\nok", 200, "ok"},
		{"hints for ever", endless("", "HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n"), 502, ""},
		{"fields for ever", endless(ok, "X-A: "+strings.Repeat("a", 1000)+"\r\n"), 502, ""},
		{"a line for ever", endless("", "HTTP/1.1"), 502, ""},
		{"status 042", "HTTP/1.1 042 X\r\nContent-Length: 2\r\n\r\nok", 502, ""},
		{"status 000", "HTTP/1.1 000 X\r\nContent-Length: 2\r\n\r\nok", 502, ""},
		{"status 99", "HTTP/1.1 99 X\r\n\r\n", 502, ""},
		{"an upgrade to something else", "HTTP/1.1 101 X\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", 502, ""},
		{"the key as reason", "HTTP/1.1 200 " + key1 + "\r\nContent-Length: 2\r\n\r\nok", 200, "ok"},
		{"the key as status", "HTTP/1.1 " + key1 + "\r\n\r\n", 502, ""},
		{"the key as a line", key1 + "\r\n\r\n", 502, ""},
		{"the key as a field", ok + key1 + "\r\n\r\n", 502, ""},
		{"the key as length", ok + "Content-Length: " + key1 + "\r\n\r\n", 502, ""},
		{"the key as encoding", ok + "Transfer-Encoding: " + key1 + "\r\n\r\n", 502, ""},
		{"the key as trailer", ok + "Trailer: X-A\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-A: " + key1 + "\r\n\r\n", 200, "ok"},
		{"the key as chunk size", ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n" + key1 + "\r\n\r\n", 0, ""},
		{"the key in every field", ok + "Set-Cookie: a=" + key1 + "\r\nX-A: a\r\nX-A: Bearer " + key1 + "\r\nContent-Length: 2\r\n\r\nok", 200, "ok"},
		{"two lengths", ok + "Content-Length: 2\r\nContent-Length: 3\r\n\r\nokX", 502, ""},
		{"a length with a space before its colon", ok + "Content-Length : 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 502, ""},
		{"a long head and nothing behind it", ok + strings.Repeat("X-A: "+strings.Repeat("a", 100)+"\r\n", 60) + "Transfer-Encoding: chunked\r\n\r\n", 0, ""},
		{"a length and chunks", ok + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 502, ""},
		{"a folded field", ok + "X-A: a\r\n b\r\nContent-Length: 2\r\n\r\nok", 502, ""},
		{"bare line feeds", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok", 502, ""},
		{"a chunk with an extension", ok + "Transfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0;c=\"d;\"\r\n\r\n", 200, "ok"},
		{"the key as a chunk's extension", ok + "Transfer-Encoding: chunked\r\n\r\n2;a=" + key1 + "\r\nok\r\n0;" + key1 + "\r\n\r\n", 200, "ok"},
		{"a chunk with half an extension", ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0;a=\"\r\n\r\n", 0, ""},
		{"an extension for ever", endless(ok+"Transfer-Encoding: chunked\r\n\r\n2;", strings.Repeat("a", 1000)), 0, ""},
		{"a chunk that is longer than its size", ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nokX\r\n0\r\n\r\n", 0, ""},
		{"more bytes than said", ok + "Content-Length: 2\r\n\r\nokX", 200, "ok"},
		{"coded chunks", ok + "Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 502, ""},
		{"a second content coding", ok + "Content-Encoding: identity\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok", 502, ""},
		{"fewer bytes than said", ok + "Content-Length: 5\r\n\r\nok", 0, ""},
		{"no content", "HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n", 204, ""},
		{"not modified", "HTTP/1.1 304 No\r\nContent-Length: 5\r\nETag: x\r\n\r\n", 304, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.rawUpstream(t, func(c2 net.Conn) {
				if _, err := http.ReadRequest(bufio.NewReader(c2)); err == nil {
					io.WriteString(c2, c.text)
				}
			})
			echoing := *w.s.routing.Load().routes["openai"]
			s := echoing.Provider.Spec()
			s.Echoes = true
			w.s.Swap(w.routing(worldConfig{spec: func(to *spec.Spec) { *to = s }}))
			for i, y := range w.ways() {
				y.SetDeadline(time.Now().Add(10 * time.Second))
				io.WriteString(y, y.fill("GET PRE/v1/models HTTP/1.1\r\nHost: HOST\r\n\r\n"))
				var all bytes.Buffer
				br := bufio.NewReader(io.TeeReader(y, &all))
				resp, err := http.ReadResponse(br, nil)
				var body []byte
				if err == nil {
					body, err = io.ReadAll(resp.Body)
				}
				switch {
				case c.status == 0:
					if err == nil {
						t.Errorf("way %d: whole: %q", i, all.String())
					}
					if !strings.Contains(all.String(), "\r\n\r\n") { // curl takes half a head for a whole answer
						t.Errorf("way %d: cut inside the head: %q", i, all.String())
					}
				case err != nil || resp.StatusCode != c.status || c.status < 300 && string(body) != c.body:
					t.Errorf("way %d: %q, %v", i, all.String(), err)
				default:
					io.WriteString(y, y.fill("GET PRE//refused HTTP/1.1\r\nHost: HOST\r\n\r\n"))
					if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 400 {
						t.Errorf("way %d: what follows: %v, %v", i, resp, err)
					}
				}
				if strings.Contains(all.String(), " :") {
					t.Errorf("way %d: a name with a space: %q", i, all.String())
				}
				if strings.Contains(all.String()+w.log.String(), key1[8:]) {
					t.Errorf("way %d: the key came through: %q\n%s", i, all.String(), w.log.String())
				}
			}
		})
	}
}

// A client that has ended its own side alone reads on. What it is given is not
// passed as whole when the request is given up for it.
func TestHalfClosingClientSeesTheCut(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		io.WriteString(rw, "half")
		rw.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	for i, y := range w.ways() {
		io.WriteString(y, y.fill("GET PRE/v1/stream HTTP/1.1\r\nHost: HOST\r\n\r\n"))
		y.SetDeadline(time.Now().Add(10 * time.Second))
		resp, err := http.ReadResponse(bufio.NewReader(y), nil)
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(resp.Body, make([]byte, 4))
		if h, ok := y.Conn.(interface{ CloseWrite() error }); ok {
			h.CloseWrite()
		}
		if rest, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("way %d: %q passed as the whole rest", i, rest)
		}
	}
	until(t, "not recorded", func() bool { return strings.Count(w.log.String(), codeClientGone) == 2 })
}

// An answer that comes before the body has ended is there for a client that
// reads only when it has sent all of it.
func TestEarlyAnswerIsNotResetAway(t *testing.T) {
	const size = 3 << 20
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.WriteHeader(http.StatusRequestEntityTooLarge)
		io.WriteString(rw, "too long")
	})
	for i, y := range w.ways() {
		y.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(y, y.fill("POST PRE/v1/files HTTP/1.1\r\nHost: HOST\r\nContent-Length: %d\r\n\r\n"), size)
		if n, err := io.CopyN(y, &zeros{size}, size); err != nil {
			t.Errorf("way %d: %d bytes sent: %v", i, n, err)
			continue
		}
		resp, err := http.ReadResponse(bufio.NewReader(y), nil)
		if err != nil {
			t.Errorf("way %d: %v", i, err)
			continue
		}
		if got := readAll(t, resp); resp.StatusCode != http.StatusRequestEntityTooLarge || got != "too long" {
			t.Errorf("way %d: %s %q", i, resp.Status, got)
		}
	}
}
