package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/postern-proxy/postern/agent/proxy/h1"
	"github.com/postern-proxy/postern/agent/redact"
)

// protocolHTTP2 is its name in TLS (RFC 9113 section 3.2). It is offered inside
// tunnels to providers that are spoken to by it, for clients of gRPC, which
// speak nothing else, and nowhere beside.
const protocolHTTP2 = "h2"

// maxStreams is how many requests a client's connection may have under way: what
// most servers allow, and the least that they should (RFC 9113 section 6.5.2).
const maxStreams = 100

// streamWindow is how much of a body is held that its session has not taken yet. A
// connection may hold as much for each stream: one that stalls stalls no other.
const streamWindow = 64 << 10

// streams is a client's connection on which HTTP/2 is spoken. net/http reads its
// frames. Each request goes on, as HTTP/1.1 and in memory, to a session of its
// own with the same pin, so that all that is read strictly, matched, stripped,
// attached, scrubbed and recorded is so by the same code.
type streams struct {
	c    *session
	http *http.Server
	open sync.WaitGroup
}

// choseHTTP2 makes the TLS handshake of a tunnel and reports whether the client
// chose HTTP/2.
func (c *session) choseHTTP2() bool {
	secure, ok := c.conn.(*tls.Conn)
	if !ok {
		return false
	}
	c.idle.Store(true)
	err := secure.Handshake()
	if !c.idle.CompareAndSwap(true, false) || err != nil {
		return false // the next read fails, too
	}
	c.pin.streams = secure.ConnectionState().NegotiatedProtocol == protocolHTTP2
	return c.pin.streams
}

// serveStreams runs until the connection and all its streams have ended.
func (c *session) serveStreams() {
	c.in = nil // each stream has its own
	c.enter(away, time.Now())
	h2 := &streams{c: c}
	h2.http = &http.Server{
		ConnState:      h2.state,
		IdleTimeout:    c.s.idleTimeout,
		MaxHeaderBytes: h1.MaxHead,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReadFrameSize: largeBuf,
			MaxReceiveBufferPerStream: streamWindow, MaxReceiveBufferPerConnection: maxStreams * streamWindow,
		},
		ErrorLog: log.New(io.Discard, "", 0), // it would print what clients send
	}
	c.idle.Store(true)
	c.streams.Store(h2)
	if c.s.closing.Load() {
		return
	}
	h2.http.Serve(nowhere{}) // sets HTTP/2 up, and accepts nothing
	if serve := h2.http.TLSNextProto[protocolHTTP2]; serve != nil {
		serve(h2.http, c.conn.(*tls.Conn), h2)
	}
	c.cut()
	h2.open.Wait()
}

// state hears from net/http whether any stream is open. Whoever makes idle false
// has the connection, as with HTTP/1.1.
func (h *streams) state(_ net.Conn, now http.ConnState) {
	switch now {
	case http.StateIdle:
		h.c.idle.Store(true)
	case http.StateActive:
		if !h.c.idle.CompareAndSwap(true, false) {
			h.c.cut() // a shutdown closes it: what came is not taken
		}
	}
}

// goAway tells the client to send no further requests; those under way go on.
func (h *streams) goAway() {
	h.http.Shutdown(h.c.ctx) // waits for nothing: it has accepted none
}

// admit counts a stream, unless the connection has ended.
func (h *streams) admit() bool {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	if h.c.cutOff {
		return false
	}
	h.open.Add(1)
	return true
}

// ServeHTTP serves one stream. An answer that breaks off resets it.
func (h *streams) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.admit() {
		panic(http.ErrAbortHandler)
	}
	defer h.open.Done()
	near, far := net.Pipe()
	end := &streamEnd{Conn: far, closed: make(chan struct{})}
	in := h.c.s.run(end, h.c.pin)
	giveUp := func() {
		in.cut()
		near.Close()
	}
	stop := context.AfterFunc(r.Context(), giveUp) // the client has reset the stream, or left
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		if sendStream(near, r) != nil {
			giveUp()
		}
	}()
	defer func() {
		stop()
		near.Close()
		r.Body.Close() // or the client may send on, and be waited for
		<-sent
		<-end.closed
	}()
	if err := answerStream(w, r.Method, near, in); err != nil {
		giveUp()
		panic(http.ErrAbortHandler)
	}
}

// sendStream writes a stream's request as HTTP/1.1. The error is the stream's: its
// request is not whole.
func sendStream(to net.Conn, r *http.Request) error {
	head, chunked, err := streamHead(r)
	if err != nil {
		return err
	}
	if _, err := to.Write(head); err != nil {
		return nil // its answer says why
	}
	_, err = writeBody(to, r.Body, chunked, smallBuf)
	return err
}

// streamHead is the request's head as the strict parser wants it. Nothing is
// made good here: what does not fit into HTTP/1.1 is written as it is, and
// refused there. Host and length are those that net/http has acted on; where
// the client gave another one beside, both are written, which is refused as well.
// The error is what could be read as another line: net/http has refused it before.
func streamHead(r *http.Request) (head []byte, chunked bool, err error) {
	target := r.RequestURI
	if r.TLS == nil && r.Method != http.MethodConnect {
		target = "http://" + r.Host + target // as the stream's :scheme said
	}
	length := strconv.FormatInt(r.ContentLength, 10)
	chunked = r.ContentLength < 0
	head = append(append(append(append(head, r.Method...), ' '), target...), " HTTP/1.1\r\n"...)
	put := func(name, value string) {
		head = appendField(head, name, value)
		if f := (h1.Field{Name: []byte(name), Value: []byte(value)}); !f.Valid() {
			err = errStream
		}
	}
	put("Host", r.Host)
	if chunked {
		put("Transfer-Encoding", "chunked")
	}
	for name, values := range r.Header {
		if name == "Content-Length" && !chunked && values[0] != length {
			put(name, length)
		}
		for i, v := range values {
			if i > 0 || name != "Host" || v != r.Host {
				put(name, v)
			}
		}
	}
	if strings.ContainsAny(r.Method+target, "\r\n") {
		err = errStream
	}
	return append(head, "\r\n"...), chunked, err
}

const errStream = clientError("a stream's field that is none")

// answerStream passes the session's answer on, as it comes.
func answerStream(w http.ResponseWriter, method string, from net.Conn, in *session) error {
	res, err := http.ReadResponse(bufio.NewReaderSize(from, smallBuf), &http.Request{Method: method})
	if err != nil {
		return err
	}
	header := w.Header()
	for name, values := range res.Header {
		header[name] = values
	}
	delete(header, "Connection")
	if _, ok := header["Content-Type"]; !ok {
		header["Content-Type"] = nil // or net/http would guess one
	}
	w.WriteHeader(res.StatusCode)
	out := http.NewResponseController(w)
	buf := borrow(smallBuf)
	defer func() { giveBack(buf) }()
	for n := 0; ; {
		if res.ContentLength != 0 { // or the head ends the stream: such is gRPC's answer that is trailers alone
			if err := out.Flush(); err != nil {
				return err
			}
		}
		if n == len(*buf) && n < largeBuf {
			giveBack(buf)
			buf = borrow(largeBuf)
		}
		n, err = res.Body.Read(*buf)
		if n > 0 {
			if _, err := w.Write((*buf)[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	for _, f := range in.trailers {
		header.Add(http.TrailerPrefix+string(f.Name), string(f.Value))
	}
	return nil
}

// takeTrailers keeps the trailers of an answer over HTTP/2 for a client that
// speaks it as well, scrubbed like fields. All others are dropped, and so are
// those behind a body whose length was known before.
func (x *exchange) takeTrailers() {
	if x.trip.trailer == nil {
		return
	}
	for k, vs := range *x.trip.trailer {
		for _, v := range vs {
			f := h1.Field{Name: []byte(k), Value: []byte(v)}
			if !f.Valid() || stripAnswer.has(f.Name) {
				continue
			}
			x.masked += x.s.known.Mask(f.Value, redact.WhereHeader)
			x.c.trailers = append(x.c.trailers, f)
		}
	}
}

// streamEnd is the session's end of what joins it with its stream.
type streamEnd struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (e *streamEnd) Close() error {
	err := e.Conn.Close()
	e.once.Do(func() { close(e.closed) })
	return err
}

// nowhere is a listener that nothing comes from.
type nowhere struct{}

func (nowhere) Accept() (net.Conn, error) { return nil, net.ErrClosed }

func (nowhere) Addr() net.Addr { return &net.TCPAddr{} }

func (nowhere) Close() error { return nil }
