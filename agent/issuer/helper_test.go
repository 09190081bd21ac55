package issuer

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/postern-proxy/postern/agent/issuer/fake"
	"github.com/postern-proxy/postern/agent/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	adminKey = "sk-admin-canary-0000000000000000000000000000"
	label    = "postern prod px_acme openai 8"
)

// house is a fake vendor with an issuer in front of it.
type house struct {
	t *testing.T
	*fake.Server
	Issuer
	mu      sync.Mutex
	fetched []map[string]*secret.Value // what Admin gave
}

func newHouse(t *testing.T, o fake.Options, change ...func(*Options)) *house {
	t.Helper()
	if o.Admin == "" {
		o.Admin = adminKey
	}
	s, err := fake.New(o)
	if err != nil {
		t.Fatal(err)
	}
	transport := s.Transport()
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		s.Close()
	})
	h := &house{t: t, Server: s}
	opts := Options{
		Kind: o.Kind, Transport: transport, Admin: h.admin(map[string]string{"api_key": o.Admin}), BaseURL: s.URL(), Project: "proj_test",
		Subscription: "00000000-0000-0000-0000-000000000001", ResourceGroup: "rg-test", Account: "acme", LoginURL: s.URL(),
	}
	if o.Kind == Azure {
		opts.Admin = h.admin(map[string]string{"tenant_id": "tenant-test", "client_id": "client-test", "client_secret": o.Admin})
	}
	for _, f := range change {
		f(&opts)
	}
	if h.Issuer, err = New(opts); err != nil {
		t.Fatal(err)
	}
	return h
}

// admin hands out new values each time, and remembers them.
func (h *house) admin(fields map[string]string) func(context.Context) (map[string]*secret.Value, error) {
	return func(context.Context) (map[string]*secret.Value, error) {
		out := map[string]*secret.Value{}
		for name, text := range fields {
			v, err := secret.New([]byte(text))
			if err != nil {
				return nil, err
			}
			out[name] = v
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.fetched = append(h.fetched, out)
		return out, nil
	}
}

func (h *house) create(r Request) *Issued {
	h.t.Helper()
	i, err := h.Create(h.t.Context(), r)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(i.Destroy)
	return i
}

func (h *house) revoke(id string) {
	h.t.Helper()
	if err := h.Revoke(h.t.Context(), id); err != nil {
		h.t.Fatal(err)
	}
}

// live is the names (ids where there are none) of what the vendor accepts.
func (h *house) live() string {
	var out []string
	for _, k := range h.Live() {
		if k.Name == "" {
			k.Name = k.ID
		}
		out = append(out, k.Name)
	}
	return strings.Join(out, ",")
}

func reveal(v *secret.Value) string {
	var s string
	v.Use(func(b []byte) { s = string(b) })
	return s
}

// roundTrip is a transport of one function.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// answer is a transport that answers everything alike.
func answer(status int, body string) roundTrip {
	return func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
	}
}

// clean fails where an error tells what it must not.
func clean(t *testing.T, err error, secrets ...string) {
	t.Helper()
	if err == nil {
		return
	}
	for _, s := range append(secrets, adminKey, "canary") {
		if strings.Contains(err.Error(), s) {
			t.Errorf("the error holds %q: %v", s, err)
		}
	}
	if strings.ContainsAny(err.Error(), "\r\n") || len(err.Error()) > 600 {
		t.Errorf("the error is no short line: %q", err)
	}
}
