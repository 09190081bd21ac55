package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// rawCodec has messages that are bytes, so that no schema is needed.
type rawCodec struct{}

func (rawCodec) Name() string                       { return "raw" }
func (rawCodec) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = bytes.Clone(data); return nil }

// talking is a provider of gRPC: it says each message back until the client has
// none, and ends as the method is named. gone gets a word for each call that was given up.
func talking(key string, gone chan<- string) *grpc.Server {
	return grpc.NewServer(grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		md, _ := metadata.FromIncomingContext(s.Context())
		if got := md.Get("authorization"); len(got) != 1 || got[0] != "Bearer "+key {
			return status.Errorf(codes.Unauthenticated, "%d values of authorization", len(got))
		}
		method, _ := grpc.MethodFromServerStream(s)
		s.SetTrailer(metadata.Pairs("x-last", "word "+key))
		for {
			var said []byte
			switch err := s.RecvMsg(&said); {
			case err == io.EOF && method == "/test.Talk/Fails":
				return status.Error(codes.NotFound, "nothing is known of "+key)
			case err == io.EOF:
				return nil
			case err != nil:
				gone <- method
				return err
			}
			if err := s.SendMsg(&said); err != nil {
				return err
			}
		}
	}))
}

// grpcClient is an application's, inside tunnels of the agent.
func (w *world) grpcClient(a *agenttest.Agent, p *provider) *grpc.ClientConn {
	w.T.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(e2etest.Read(w.T, w.Path("ca/ca.pem"))) {
		w.T.Fatal("ca.pem holds no certificate")
	}
	cc, err := grpc.NewClient("passthrough:///"+p.Host,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots})),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})),
		grpc.WithContextDialer(func(ctx context.Context, host string) (net.Conn, error) { return tunnelTo(ctx, a.Proxy, host) }))
	if err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(func() { cc.Close() })
	return cc
}

// tunnelTo opens a tunnel as gRPC does where HTTPS_PROXY is set, which it minds for no loopback address.
func tunnelTo(ctx context.Context, proxy, host string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", proxy)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", host, host)
	res, err := http.ReadResponse(bufio.NewReaderSize(c, 16), &http.Request{Method: http.MethodConnect})
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(res.Status)
	}
	return c, err
}

// talk is one call of a method to whose messages the provider answers.
func talk(ctx context.Context, t *testing.T, cc *grpc.ClientConn, method string) grpc.ClientStream {
	t.Helper()
	s, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/test.Talk/"+method)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func says(t *testing.T, s grpc.ClientStream, text string) {
	t.Helper()
	out, in := []byte(text), []byte(nil)
	if err := s.SendMsg(&out); err != nil {
		t.Fatal(err)
	}
	if err := s.RecvMsg(&in); err != nil || string(in) != text {
		t.Fatalf("%d bytes come back as %d, %v", len(text), len(in), err)
	}
}

// A client of gRPC calls a provider inside a tunnel: messages go both ways in
// turn, the status comes through with the key starred out, a call that is given up ends
// at the provider, and a shutdown lets the one under way end.
func TestGRPCInATunnel(t *testing.T) {
	w := newWorld(t)
	key, gone := w.Key(), make(chan string, 1)
	srv := talking(key, gone)
	p := w.Provider("speech", fake.Options{Keys: []string{key}, Intercept: func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			return false
		}
		srv.ServeHTTP(rw, r)
		return true
	}})
	st := w.Sealed()
	st.Put("speech", key)
	conf := w.Config(st)
	conf.Providers = []string{p.Entry(", http2: true")}
	a := w.Start(conf)
	cc := w.grpcClient(a, p)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	var back []byte
	hello := []byte("hello")
	if err := cc.Invoke(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer the-client's-own"), "/test.Talk/Once", &hello, &back); err != nil || string(back) != "hello" {
		t.Fatalf("a call of one message: %q, %v", back, err)
	}

	s := talk(ctx, t, cc, "Well")
	for _, text := range []string{"one", "", strings.Repeat("long ", 300_000), "four"} {
		says(t, s, text)
	}
	s.CloseSend()
	var none []byte
	if err := s.RecvMsg(&none); err != io.EOF {
		t.Errorf("it ends with %v", err)
	}
	if got := s.Trailer().Get("x-last"); len(got) != 1 || got[0] != "word "+strings.Repeat("*", len(key)) {
		t.Errorf("x-last is %q", got)
	}

	s = talk(ctx, t, cc, "Fails")
	says(t, s, "one")
	s.CloseSend()
	if err := s.RecvMsg(&none); status.Code(err) != codes.NotFound || !strings.HasSuffix(status.Convert(err).Message(), "of "+strings.Repeat("*", len(key))) {
		t.Errorf("it fails with %v", err)
	}

	some, giveUp := context.WithCancel(ctx)
	s = talk(some, t, cc, "GivenUp")
	says(t, s, "one")
	giveUp()
	if got := e2etest.Await(t, gone, time.Minute, "the provider to hear that the call was given up"); got != "/test.Talk/GivenUp" {
		t.Errorf("%s was given up", got)
	}

	s = talk(ctx, t, cc, "LastOne")
	says(t, s, "one")
	a.Signal(syscall.SIGTERM)
	agenttest.Eventually(t, time.Minute, "the agent stops", func() bool { return strings.Contains(e2etest.History(a), `"stopping"`) })
	says(t, s, "two")
	s.CloseSend()
	if err := s.RecvMsg(&none); err != io.EOF {
		t.Errorf("the last one ends with %v", err)
	}
	e2etest.Await(t, a.Done(), time.Minute, "the agent to stop")
}
