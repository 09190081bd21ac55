package upstream

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"
)

func getCarrying(t *testing.T, p *PerKey, ctx context.Context, url, key string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(Carrying(ctx, key), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := p.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// Requests with one key share a connection, those with another have their own;
// and while one key's is in use, the other's can be closed.
func TestAConnectionCarriesOneKey(t *testing.T) {
	ca := newAuthority(t)
	s := newCounted(t, ca, true, 1)
	p, err := dialer(t, Options{Roots: ca.pem()}).PerKey(TransportOptions{HTTP2: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.CloseIdleConnections)
	ask := func(key string, handshakes int32) {
		t.Helper()
		resp := getCarrying(t, p, t.Context(), s.URL, key)
		if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "HTTP/2.0" {
			t.Errorf("%q, %v", b, err)
		}
		resp.Body.Close()
		if n := s.handshakes.Load(); n != handshakes {
			t.Errorf("key %s: %d handshakes so far, want %d", key, n, handshakes)
		}
	}
	ask("a", 1)
	ask("a", 1)
	ask("b", 2)
	ask("a", 2)
	p.CloseIdleConnections()
	ask("a", 3)
	for i := range 2 * keysAtOnce { // no more than so many are kept
		ask(fmt.Sprint(i), int32(4+i))
	}
	ask("a", 4+2*keysAtOnce)
	if n := len(p.made); n != keysAtOnce {
		t.Errorf("connections for %d keys are kept, want %d", n, keysAtOnce)
	}
}
