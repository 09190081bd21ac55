package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Each kind, as the standard library reports it, and the word of its hint that says what to do.
func TestErrorsSayWhatToCheck(t *testing.T) {
	op := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)}
	}
	for _, c := range []struct {
		err        error
		kind, says string
	}{
		{op(syscall.ECONNREFUSED), "refused", "port"},
		{op(syscall.ENETUNREACH), "unreachable", "egress.proxy"},
		{op(syscall.EHOSTUNREACH), "unreachable", "egress.proxy"},
		{op(syscall.ETIMEDOUT), "timeout", "egress.proxy"},
		{op(syscall.ECONNRESET), "reset", "reset"},
		{op(syscall.EMFILE), "other", "file descriptor"},
		{&net.DNSError{Err: "no such host", Name: "api.test", IsNotFound: true}, "dns", "spelling"},
		{&net.DNSError{Err: "server misbehaving", Name: "api.test", IsTemporary: true}, "dns", "resolver"},
		{&net.DNSError{Err: "i/o timeout", Name: "api.test", IsTimeout: true}, "dns", "resolver"},
		{context.DeadlineExceeded, "timeout", "firewall"},
		{os.ErrDeadlineExceeded, "timeout", "firewall"},
		{io.EOF, "closed", "closed"},
		{fmt.Errorf("read: %w", io.ErrUnexpectedEOF), "closed", "closed"},
		{errors.New("http: server closed idle connection"), "closed", "closed"},
		{errors.New("http2: server sent GOAWAY and closed the connection; LastStreamID=1"), "closed", "closed"},
		{errors.New("stream error: stream ID 3; INTERNAL_ERROR; received from peer"), "reset", "reset"},
		{errors.New(`net/http: HTTP/1.x transport connection broken: malformed HTTP response "sk-proj-secret"`), "protocol", "not valid HTTP"},
		{errors.New("sk-proj-secret"), "other", "errorString"},
		{&url.Error{Op: "Get", URL: "https://api.test/?key=sk-proj-secret", Err: errors.New("sk-proj-secret")}, "other", "errorString"},
	} {
		err := Explain("api.test:443", c.err)
		if kind(err) != c.kind || !strings.Contains(err.Error(), c.says) || !strings.HasPrefix(err.Error(), "cannot reach api.test:443: ") {
			t.Errorf("%v: %v (kind %s), want kind %s and %q", c.err, err, kind(err), c.kind, c.says)
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("%v repeats what the other side or the URL said", err)
		}
		if !errors.Is(err, c.err) {
			t.Errorf("%v hides its cause", err)
		}
	}
}

func TestExplainLeavesAlone(t *testing.T) {
	if err := Explain("a:1", nil); err != nil {
		t.Error(err)
	}
	gone := fmt.Errorf("round trip: %w", context.Canceled)
	if err := Explain("a:1", gone); err != gone {
		t.Errorf("a client that left: %v", err)
	}
	first := Explain("a:1", io.EOF)
	if err := Explain("b:2", fmt.Errorf("again: %w", first)); err != first {
		t.Errorf("explained twice: %v", err)
	}
}

func TestWhatCannotBeReached(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	d := dialer(t, Options{})
	newNames(nil).use(d)
	tr := transport(t, d, TransportOptions{})
	if _, err := get(t, tr, "https://"+free.Addr().String()); kind(err) != "refused" {
		t.Errorf("nobody listens: %v", err)
	}
	if _, err := get(t, tr, "https://nosuch.test"); kind(err) != "dns" {
		t.Errorf("no such name: %v", err)
	}
}

// A provider that takes the connection and says nothing holds nobody longer than the caller waits.
func TestAProviderThatSaysNothing(t *testing.T) {
	ca := newAuthority(t)
	asked, left := make(chan struct{}, 64), make(chan struct{}, 64)
	s := provider(t, ca.leaf("127.0.0.1"), func(s *httptest.Server) {
		s.Config.Handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			asked <- struct{}{}
			<-r.Context().Done()
			left <- struct{}{}
			panic(http.ErrAbortHandler) // an answer could still reach a client that is leaving
		})
	})
	tr := transport(t, dialer(t, Options{Roots: ca.pem()}), TransportOptions{})
	for wait := 100 * time.Millisecond; len(asked) == 0; wait *= 2 { // until the request is sent before its time is over
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, s.URL, nil)
		_, err := tr.RoundTrip(req)
		cancel()
		if err = Explain(req.URL.Host, err); kind(err) != "timeout" {
			t.Fatalf("%v (kind %s)", err, kind(err))
		}
	}
	select {
	case <-left:
	case <-time.After(10 * time.Second):
		t.Error("the provider was not told that the client left")
	}
}
