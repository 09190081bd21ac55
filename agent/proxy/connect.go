package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/elazarl/goproxy"

	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/upstream"
)

// newFront makes the forward proxy's front: CONNECT, and absolute-form requests
// to hosts that are not configured. goproxy's own interception, its public CA,
// its transport and its reading of HTTPS_PROXY are all out of play: configured
// tunnels are hijacked and served by the exchange, every other connection is
// dialled by upstream.
func (s *Server) newFront() *goproxy.ProxyHttpServer {
	p := goproxy.NewProxyHttpServer()
	p.Verbose = false // its log prints whole URLs
	p.Logger = log.New(io.Discard, "", 0)
	p.KeepAcceptEncoding = true
	p.ConnectDial = nil // the constructor's reads HTTPS_PROXY
	p.ConnectDialWithReq = func(req *http.Request, _, addr string) (net.Conn, error) {
		return s.dialTunnel(req.Context(), addr)
	}
	p.ConnectionErrHandler = s.tunnelFailed
	p.Tr = &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return s.routing.Load().Dialer.Dial(ctx, addr)
		},
		DialTLSContext:        func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("plain HTTP only") },
		DisableCompression:    true,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       30 * time.Second,
		ResponseHeaderTimeout: 15 * time.Minute,
	}
	p.OnRequest().HandleConnectFunc(s.handleConnect)
	p.OnResponse().DoFunc(foreignAnswer)
	return p
}

// handleConnect decides on one CONNECT.
func (s *Server) handleConnect(target string, ctx *goproxy.ProxyCtx) (*goproxy.ConnectAction, string) {
	refuse := func(status int, code, msg string) (*goproxy.ConnectAction, string) {
		s.recordConnect(ctx.Req, code)
		ctx.Resp = problemResponse(status, code, msg)
		return goproxy.RejectConnect, target
	}
	host, port, err := authority(target, "")
	// Its Host field means nothing: the target is what counts (RFC 9112 section 3.2.2), and all that follows is held to it.
	if err != nil || ctx.Req.RequestURI != target {
		return refuse(http.StatusBadRequest, codeBadHost, "CONNECT takes host:port: "+errAuthority.Error())
	}
	hostport := net.JoinHostPort(host, port)
	rt := s.routing.Load()
	if rt.byHost(host, port) != nil {
		return &goproxy.ConnectAction{Action: goproxy.ConnectHijack, Hijack: func(_ *http.Request, client net.Conn, _ *goproxy.ProxyCtx) {
			s.intercept(client, host, port)
		}}, hostport
	}
	if !rt.Tunnel {
		return refuse(http.StatusForbidden, codeUnmatched, foreignText(hostport))
	}
	return &goproxy.ConnectAction{Action: goproxy.ConnectAccept}, hostport
}

func foreignText(hostport string) string {
	return hostport + " is not a configured provider, and unmatched: deny refuses all others; add it under providers or set unmatched: tunnel"
}

// intercept tells the client that its tunnel stands and hands it to the inner
// server, pinned to its host.
func (s *Server) intercept(client net.Conn, host, port string) {
	if _, err := io.WriteString(client, "HTTP/1.1 200 Connection Established\r\n\r\n"); err != nil {
		client.Close()
		return
	}
	s.Metrics.tunnels.WithLabelValues("intercepted").Inc()
	protocols := []string{"http/1.1"}
	if to := s.routing.Load().byHost(host, port); to != nil && to.t.Transport != nil {
		protocols = []string{protocolHTTP2, "http/1.1"}
	}
	secure := tls.Server(client, &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: protocols,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if hello.ServerName != "" && !strings.EqualFold(hello.ServerName, host) {
				s.Metrics.tunnels.WithLabelValues("sni_mismatch").Inc()
				return nil, errSNI
			}
			return s.Leaf(host)
		},
		SessionTicketsDisabled:      true, // a ticket would outlive the pin
		DynamicRecordSizingDisabled: true, // the client is a loopback away
	})
	s.run(secure, &pinned{
		host: host, port: port, hostport: net.JoinHostPort(host, port),
		header: hostHeader(s.scheme(net.JoinHostPort(host, port)), host, port),
	})
}

// scheme is how the provider at host:port is spoken to.
func (s *Server) scheme(hostport string) string {
	if p := s.routing.Load().hosts[hostport]; p != nil {
		return p.scheme
	}
	return "https"
}

var errSNI = errors.New("the TLS server name is not the host of CONNECT")

// pinned is the host:port of the CONNECT that a client's connection is inside
// of.
type pinned struct {
	host, port string
	hostport   string // host:port
	header     string // the same as the Host field says it
	streams    bool   // the client chose HTTP/2
}

// openTunnel serves a CONNECT on the listener: the connection is the tunnel's
// from there on, or is closed with an answer.
func (c *session) openTunnel() ending {
	w := c.newResponse()
	r, err := c.httpRequest()
	if err != nil {
		c.answer(http.StatusBadRequest, codeFraming, "the request cannot be read as HTTP/1.1")
		return endNow
	}
	c.s.front.ServeHTTP(w, r)
	if c.hijacked || !w.finish() {
		return endNow
	}
	return goOn
}

// prefixed is a hijacked connection that first yields what the session had read ahead.
type prefixed struct {
	net.Conn
	early []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.early) > 0 {
		n := copy(b, p.early)
		p.early = p.early[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// dialTunnel opens the far side of a tunnel to a host that is not configured.
func (s *Server) dialTunnel(ctx context.Context, hostport string) (net.Conn, error) {
	conn, err := s.routing.Load().Dialer.Dial(ctx, hostport)
	if err != nil {
		var ue *upstream.Error
		if errors.As(err, &ue) {
			s.Metrics.tunnels.WithLabelValues("failed_" + ue.Kind).Inc()
		}
		return nil, err
	}
	s.Metrics.tunnels.WithLabelValues("opened").Inc()
	t := &idleConn{Conn: conn, idle: tunnelIdle, onClose: s.conns.remove}
	s.conns.add(t)
	return t, nil
}

// CloseWrite ends the sending side only.
func (p *prefixed) CloseWrite() error { return closeWrite(p.Conn) }

// CloseRead ends the receiving side only.
func (p *prefixed) CloseRead() error { return closeRead(p.Conn) }

// tunnelFailed answers a CONNECT whose far side could not be opened.
func (s *Server) tunnelFailed(w io.Writer, ctx *goproxy.ProxyCtx, err error) {
	status, code := failure(err)
	s.recordConnect(ctx.Req, code)
	problemResponse(status, code, clientText(err)).Write(w)
}

// failure is the status and code for a host that could not be reached.
func failure(err error) (status int, code string) {
	var ue *upstream.Error
	if errors.As(err, &ue) {
		switch ue.Kind {
		case "timeout":
			return http.StatusGatewayTimeout, codeTimeout
		case "guard":
			return http.StatusForbidden, codeGuard
		}
	}
	return http.StatusBadGateway, codeUnreachable
}

// clientText is the part of an error that the client may read.
func clientText(err error) string {
	var ue *upstream.Error
	if errors.As(err, &ue) {
		return ue.Error()
	}
	return "the request could not be sent"
}

func problemResponse(status int, code, msg string) *http.Response {
	ct, body := provider.ErrorBody("problem", code, status, msg, false)
	h := http.Header{"Content-Type": {ct}, "Content-Length": {fmt.Sprint(len(body))}, errorField: {code}}
	return &http.Response{
		StatusCode: status, Status: fmt.Sprintf("%d %s", status, http.StatusText(status)),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: h, Close: true,
		ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body)),
	}
}
