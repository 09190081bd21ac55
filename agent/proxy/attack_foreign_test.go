package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// foreignHost is a host that is not configured and speaks bytes.
func foreignHost(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	acceptAll(t, ln, f)
	return ln.Addr().String()
}

// A host that is not configured answers before the request's body has ended,
// and closes. When the exchange is over nobody reads from its client but the
// session, in whatever part of the framing the body stands.
func TestForeignAnswerBeforeTheBodyEnds(t *testing.T) {
	hung := make(chan struct{}, 16)
	host := foreignHost(t, func(c net.Conn) {
		if err := readUntil(c, "\r\n\r\n"); err != nil {
			return
		}
		c.SetReadDeadline(time.Time{})
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		io.Copy(io.Discard, c)
		hung <- struct{}{}
	})
	w := newWorld(t, nil, withTunnel)
	for _, head := range []string{
		"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5",
		"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5\r\nde",
		"Connection: close\r\nContent-Length: 100000\r\n\r\nabc",
		"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5",
		"Content-Length: 100000\r\n\r\nabc",
	} {
		c := w.dial()
		fmt.Fprintf(c, "POST http://%s/ HTTP/1.1\r\nHost: %s\r\n%s", host, host, head)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("%q: %v", head, err)
		}
		if got := readAll(t, resp); got != "ok" {
			t.Errorf("%q: %q", head, got)
		}
		<-hung // the transport has given the connection up, and with it the answer is over
		for range 20 {
			c.Write(make([]byte, 900)) // what a reader that was left behind would stumble over
			time.Sleep(time.Millisecond)
		}
		c.Close()
	}
	until(t, "a connection is left", func() bool { return w.s.conns.count.Load() == 0 })
}

// No upgrade passes to a host that is not configured, so none comes back.
func TestForeignUpgradeIsNoUpgrade(t *testing.T) {
	for answer, want := range map[string]int{
		"HTTP/1.1 200 OK\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nok":   200,
		"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00": 502,
		"HTTP/1.1 042 X\r\n\r\n": 502,
	} {
		host := foreignHost(t, says(func() string { return answer }))
		w := newWorld(t, nil, withTunnel)
		resp := w.raw(w.dial(), fmt.Sprintf("GET http://%s/ HTTP/1.1\r\nHost: %s\r\n%s", host, host, wsHead))
		readAll(t, resp)
		if resp.StatusCode != want || resp.Header.Get("Upgrade") != "" || strings.Contains(w.log.String(), codePanic) {
			t.Errorf("%q: %s %v %s", answer, resp.Status, resp.Header, w.log.String())
		}
	}
}

// Whoever asks for a metadata service is on record, whichever way was tried.
func TestAddressGuardIsRecorded(t *testing.T) {
	for _, text := range []string{
		"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 169.254.169.254:80\r\n\r\n",
		"GET http://169.254.169.254/latest/meta-data/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
	} {
		w := newWorld(t, nil, withTunnel)
		resp := w.raw(w.dial(), text)
		readAll(t, resp)
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("%q: %s", text, resp.Status)
		}
		until(t, "no audit entry", func() bool { return strings.Join(w.audit.reasons(), " ") == codeGuard })
		if !strings.Contains(w.log.String(), codeGuard) {
			t.Errorf("%q: the log says %s", text, w.log.String())
		}
	}
}

// What a client sent behind its CONNECT belongs to the tunnel, which can be
// ended on one side like any other.
func TestTunnelIsHalfClosed(t *testing.T) {
	host := foreignHost(t, func(c net.Conn) {
		b, _ := io.ReadAll(c)
		fmt.Fprintf(c, "got %q", b)
	})
	w := newWorld(t, nil, withTunnel)
	for _, early := range []string{"", "\x16\x03", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"} {
		c := w.dial()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n%s", host, host, early)
		br := bufio.NewReader(c)
		if resp, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect}); err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		io.WriteString(c, "late")
		closeWrite(c)
		got, err := io.ReadAll(br)
		if want := fmt.Sprintf("got %q", early+"late"); err != nil || string(got) != want {
			t.Errorf("%q: %q, %v", early, got, err)
		}
	}
}
