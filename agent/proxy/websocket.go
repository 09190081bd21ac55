package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strings"
	"time"
)

// isWebSocket reports a client's opening handshake (RFC 6455 section 4.1). Any
// other upgrade is not passed on (h2c least of all), so that the request goes
// on as what it is.
func isWebSocket(r *http.Request) bool {
	return r.Method == http.MethodGet && r.ProtoAtLeast(1, 1) &&
		len(r.Header["Upgrade"]) == 1 && strings.EqualFold(r.Header["Upgrade"][0], "websocket") &&
		hasToken(r.Header["Connection"], "upgrade") && r.ContentLength == 0
}

// stripSubprotocols removes the subprotocols by which browsers, which can set no
// header on a WebSocket, send a key ("openai-insecure-api-key.sk-…", OpenAI's
// Realtime API with WebSockets).
func stripSubprotocols(h http.Header) {
	const f = "Sec-Websocket-Protocol"
	var kept []string
	for _, v := range h[f] {
		for p := range strings.SplitSeq(v, ",") {
			if p = textproto.TrimString(p); p != "" && !strings.Contains(strings.ToLower(p), "api-key") {
				kept = append(kept, p)
			}
		}
	}
	delete(h, f)
	if len(kept) > 0 {
		h[f] = []string{strings.Join(kept, ", ")}
	}
}

func hasToken(values []string, token string) bool {
	for _, v := range values {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(textproto.TrimString(t), token) {
				return true
			}
		}
	}
	return false
}

// relay joins both sides of an upgraded connection until one of them ends. The
// server's frames are scrubbed: they are not masked, so a value stands in them as it is.
func (x *exchange) relay(resp *http.Response) {
	up, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || !strings.EqualFold(resp.Header.Get("Upgrade"), "websocket") {
		x.refuse(http.StatusBadGateway, codeUnreachable, "the provider answered an upgrade it was not asked for", nil)
		return
	}
	defer up.Close()
	compressed := resp.Header.Get("Sec-Websocket-Extensions") != ""
	if compressed {
		x.t.metrics.opaque.Inc()
		if x.t.Provider.Spec().Echoes {
			x.refuse(http.StatusBadGateway, codeUnscrubbable, "the provider compresses its frames although it was not offered to, so they cannot be checked for the key", nil)
			return
		}
	}
	client, brw, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		x.fail(codeUnreachable, err)
		return
	}
	opaque(client)
	client.SetDeadline(time.Time{})
	x.s.conns.add(client)
	defer x.s.conns.remove(client)
	defer client.Close()
	x.passHeaders(http.Header{}, resp)
	resp.Header["Connection"] = []string{"Upgrade"}
	resp.Header["Upgrade"] = []string{"websocket"}
	x.status = http.StatusSwitchingProtocols
	x.wrote = time.Now()
	if err := writeSwitching(client, resp.Header); err != nil {
		x.fail(codeClientGone, nil)
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		copyClient(up, client, brw.Reader)
		up.Close()
	}()
	x.copyFrames(client, up, compressed)
	client.Close()
	up.Close()
	<-done
}

func writeSwitching(w io.Writer, h http.Header) error {
	bw := bufio.NewWriter(w)
	bw.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	h.Write(bw)
	bw.WriteString("\r\n")
	return bw.Flush()
}

// copyClient passes on what the server had read ahead, then the rest.
func copyClient(up io.Writer, client net.Conn, ahead *bufio.Reader) {
	if n := ahead.Buffered(); n > 0 {
		b, _ := ahead.Peek(n)
		if _, err := up.Write(b); err != nil {
			return
		}
	}
	io.Copy(up, client)
}

func (x *exchange) copyFrames(client io.Writer, up io.Reader, compressed bool) {
	if compressed {
		io.Copy(client, up)
		return
	}
	buf := bufPool.Get().(*[]byte)
	defer bufPool.Put(buf)
	st := x.s.known.NewStream("websocket")
	defer func() { x.masked += st.Hits() }()
	for {
		n, err := up.Read(*buf)
		if n > 0 {
			if _, werr := client.Write(st.Next((*buf)[:n])); werr != nil {
				return
			}
		}
		if err != nil {
			st.Close() // what is held is no close frame, so the connection broke off, perhaps within a key
			return
		}
	}
}
