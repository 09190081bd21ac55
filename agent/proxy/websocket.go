package proxy

import (
	"io"
	"net/http"
	"time"

	"github.com/postern-proxy/postern/agent/proxy/h1"
	"github.com/postern-proxy/postern/agent/redact"
)

// relay joins both sides of an upgraded connection until one of them ends. The
// server's frames are scrubbed: they are not masked, so a value stands in them as it is.
func (x *exchange) relay() {
	c, t := x.c, x.trip
	if protocol, _ := t.res.Get("Upgrade"); !h1.EqualFold(protocol, "websocket") {
		x.refuse(http.StatusBadGateway, codeUnreachable, "the provider answered an upgrade it was not asked for", nil)
		return
	}
	_, extensions := t.res.Get("Sec-WebSocket-Extensions")
	compressed := extensions > 0
	if compressed {
		x.t.metrics.opaque.Inc()
		if x.t.Provider.Spec().Echoes {
			x.refuse(http.StatusBadGateway, codeUnscrubbable, "the provider compresses its frames although it was not offered to, so they cannot be checked for the key", nil)
			return
		}
	}
	t.res.Length, t.left, t.res.Close = -1, -1, true // what follows is no HTTP any more
	c.stopWatch()
	x.status = http.StatusSwitchingProtocols
	x.beginHead(x.status)
	x.passFields()
	c.out = append(c.out, "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"...)
	x.wrote = time.Now()
	x.aborted = true // when it is over, so is the connection
	if err := c.flush(); err != nil {
		x.fail(codeClientGone, nil)
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		copyClient(t.up, c)
		t.up.SetDeadline(time.Unix(1, 0)) // the other side has nothing to wait for
	}()
	x.copyFrames(compressed)
	t.up.SetDeadline(time.Unix(1, 0))
	c.conn.SetReadDeadline(time.Unix(1, 0))
	<-done
}

// copyClient passes on what the session had read ahead, then the rest.
func copyClient(up io.Writer, c *session) {
	if c.r < c.w {
		if _, err := up.Write(c.in[c.r:c.w]); err != nil {
			return
		}
	}
	io.Copy(up, c.conn)
}

// copyFrames passes on the provider's frames until they end.
func (x *exchange) copyFrames(compressed bool) {
	t := x.trip
	var st *redact.Stream
	if !compressed {
		st = x.s.known.NewStream("websocket")
		defer func() { x.masked += st.Hits() }()
	}
	for {
		data, end, err := t.next()
		if err != nil {
			return // and what was held back stays so: it may be a key's beginning
		}
		if st != nil {
			data = st.Next(data)
		}
		if _, err := x.c.conn.Write(data); err != nil {
			return
		}
		if end {
			return // likewise: what is held is no close frame, so the connection broke off
		}
	}
}
