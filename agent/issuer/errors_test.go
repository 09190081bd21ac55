package issuer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-proxy/postern/agent/issuer/fake"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// operation is one that asks the vendor for something.
type operation struct {
	name, kind string
	do         func(context.Context, Issuer) error
}

func operations() []operation {
	create := func(ctx context.Context, i Issuer) error {
		_, err := i.Create(ctx, Request{Label: label, Current: "key1"})
		return err
	}
	revoke := func(ctx context.Context, i Issuer) error { return i.Revoke(ctx, "key1") }
	list := func(ctx context.Context, i Issuer) error { return i.Sweep(ctx, label, nil) }
	return []operation{
		{"create", OpenAI, create},
		{"revoke", OpenAI, revoke},
		{"sweep", OpenAI, list},
		{"create", OpenRouter, create},
		{"revoke", OpenRouter, revoke},
		{"sweep", OpenRouter, list},
		{"revoke", Anthropic, revoke},
		{"create", Azure, create},
		{"revoke", Azure, revoke},
	}
}

// Every status has its reason, for each operation of each vendor, and the answer's words stay where they are.
func TestStatuses(t *testing.T) {
	for _, op := range operations() {
		t.Run(op.kind+" "+op.name, func(t *testing.T) {
			h := newHouse(t, fake.Options{Kind: op.kind})
			for status, want := range map[int]error{
				301: ErrRefused, 302: ErrRefused, 307: ErrRefused, 400: ErrRefused, 401: ErrRefused, 402: ErrRefused, 403: ErrRefused, 404: ErrRefused, 409: ErrRefused,
				413: ErrRefused, 422: ErrRefused, 408: ErrLimited, 429: ErrLimited, 500: ErrLimited, 502: ErrLimited, 503: ErrLimited, 529: ErrLimited,
			} {
				if status == 404 && op.name == "revoke" {
					continue // has tests of its own
				}
				h.Fail(fake.Failure{Status: status, Header: http.Header{"Location": {h.URL() + "/elsewhere"}, "Retry-After": {"7"}}})
				before := len(h.Requests())
				err := op.do(t.Context(), h)
				e, ok := errors.AsType[*Error](err)
				if !ok || !errors.Is(err, want) || e.Status != status {
					t.Errorf("%d: %v", status, err)
					continue
				}
				clean(t, err)
				if n := len(h.Requests()) - before; n != 1 {
					t.Errorf("%d: %d requests", status, n)
				}
				if wait := 7 * time.Second; (e.RetryAfter == wait) != (want == ErrLimited) || want == ErrLimited && !strings.Contains(err.Error(), "try again in 7s") {
					t.Errorf("%d: RetryAfter %v: %v", status, e.RetryAfter, err)
				}
				if !strings.Contains(err.Error(), fmt.Sprint(status)) || !strings.HasPrefix(err.Error(), op.kind+": ") {
					t.Errorf("%d: %v", status, err)
				}
			}
		})
	}
}

// The vendors' own words for a mistake, as their fakes give them.
func TestVendorCodes(t *testing.T) {
	for _, c := range []struct {
		kind   string
		status int
		want   string
	}{
		{OpenAI, 429, "rate_limit_exceeded"},
		{OpenAI, 403, "invalid_request_error"},
		{OpenRouter, 429, "429"},
		{Anthropic, 429, "rate_limit_error"},
		{Anthropic, 529, "overloaded_error"},
		{Anthropic, 403, "permission_error"},
		{Azure, 503, "temporarily_unavailable"},
	} {
		h := newHouse(t, fake.Options{Kind: c.kind})
		h.Fail(fake.Failure{Status: c.status})
		err := h.Revoke(t.Context(), "key1")
		e, _ := errors.AsType[*Error](err)
		if e == nil || e.Code != c.want || !strings.Contains(err.Error(), "("+c.want+")") {
			t.Errorf("%s %d: %v", c.kind, c.status, err)
		}
	}
	h := newHouse(t, fake.Options{Kind: Azure})
	h.Fail(fake.Failure{Path: "/subscriptions/", Status: 403})
	if err := h.Revoke(t.Context(), "key1"); err == nil || !strings.Contains(err.Error(), "(AuthorizationFailed)") {
		t.Errorf("%v", err)
	}
}

// Wherever a vendor repeats what it was sent, or a key, no error does.
func TestErrorsHoldNoSecret(t *testing.T) {
	const key = "sk-svcacct-canary-1111111111111111111111"
	onlyLetters := "canaryCanaryCanaryCanary"
	for _, admin := range []string{adminKey, onlyLetters} {
		for _, echo := range []string{admin, key, admin[:8], admin[4:], "line\\nbreak", "\\u0041canary", strings.Repeat("c", 200)} {
			for _, body := range []string{
				`{"error":{"message":"%s","type":"%s","code":"%s"}}`,
				`{"error":"%s","error_description":"%s %s"}`,
				`{"type":"error","error":{"type":"%s","message":"%s","code":null},"request_id":"%s"}`,
				`{"error":{"code":{"%s":"%s"},"type":["%s"]}}`,
				`%s%s%s`, `"%s%s%s"`, `{"error":%s%s%s`,
			} {
				for _, op := range operations() {
					for _, status := range []int{400, 401, 429, 500} {
						h := newHouse(t, fake.Options{Kind: op.kind, Admin: admin}, func(o *Options) { o.Transport = answer(status, fmt.Sprintf(body, echo, echo, echo)) })
						err := op.do(t.Context(), h)
						if err == nil {
							t.Fatalf("%s %s: no error", op.kind, op.name)
						}
						clean(t, err, key, admin, "break", strings.Repeat("c", 70))
						if e, ok := errors.AsType[*Error](err); !ok || strings.Contains(e.Code, "canary") {
							t.Errorf("code %q", e.Code)
						}
					}
				}
			}
		}
	}
}

// What a transport says is told in words of our own.
func TestTransportErrors(t *testing.T) {
	for _, op := range operations() {
		for want, err := range map[string]error{
			"connection refused; check":                         &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED},
			"the connection was closed before an answer came":   io.ErrUnexpectedEOF,
			"cannot reach localhost:1: the exchange failed (*e": errors.New("a header of " + adminKey + " is not valid"),
			"no answer in time":                                 context.DeadlineExceeded,
		} {
			h := newHouse(t, fake.Options{Kind: op.kind}, func(o *Options) {
				o.BaseURL, o.LoginURL = "https://localhost:1", "https://localhost:1"
				o.Transport = roundTrip(func(*http.Request) (*http.Response, error) { return nil, err })
			})
			err := op.do(t.Context(), h)
			if !errors.Is(err, ErrLimited) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s %s: %v", op.kind, op.name, err)
			}
			clean(t, err)
		}
	}
	// A certificate that nobody trusts: no credential goes out.
	h := newHouse(t, fake.Options{Kind: OpenAI}, func(o *Options) {
		strange := &http.Transport{}
		o.Transport = strange
		t.Cleanup(strange.CloseIdleConnections)
	})
	if _, err := h.Create(t.Context(), Request{Label: label}); !errors.Is(err, ErrLimited) || !strings.Contains(err.Error(), "certificate") || len(h.Requests()) != 0 {
		t.Errorf("%v, %d requests", err, len(h.Requests()))
	}
}

func TestSlowVendors(t *testing.T) {
	for _, op := range operations() {
		synctest.Test(t, func(t *testing.T) {
			i, err := New(Options{
				Kind: op.kind, Project: "p", Subscription: "s", ResourceGroup: "r", Account: "a", Admin: (&house{}).admin(map[string]string{"api_key": adminKey, "tenant_id": "t", "client_id": "c", "client_secret": adminKey}),
				Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
					<-r.Context().Done()
					return nil, r.Context().Err()
				}),
			})
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			err = op.do(t.Context(), i)
			if !errors.Is(err, ErrLimited) || errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 30*time.Second {
				t.Errorf("%s %s: %v after %v", op.kind, op.name, err, time.Since(start))
			}
			// The caller's own end is the caller's, and no reason of the vendor's.
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			err = op.do(ctx, i)
			if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrLimited) || errors.Is(err, ErrRefused) {
				t.Errorf("%s %s: %v", op.kind, op.name, err)
			}
		})
	}
	// An answer that never ends is cut off too.
	h := newHouse(t, fake.Options{Kind: OpenAI}, func(o *Options) { o.Timeout = 50 * time.Millisecond })
	h.Fail(fake.Failure{Delay: time.Hour})
	if _, err := h.Create(t.Context(), Request{Label: label}); !errors.Is(err, ErrLimited) || !strings.Contains(err.Error(), "no answer in time") {
		t.Errorf("%v", err)
	}
}

// endless is a body that goes on and on.
type endless struct{ n int }

func (e *endless) Read(p []byte) (int, error) { e.n += len(p); return len(p), nil }
func (e *endless) Close() error               { return nil }

func TestAnswersAreBounded(t *testing.T) {
	for _, op := range operations() {
		for _, status := range []int{200, 400, 500} {
			var body endless
			h := newHouse(t, fake.Options{Kind: op.kind}, func(o *Options) {
				o.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
					return &http.Response{StatusCode: status, Header: http.Header{}, Body: &body, Request: r}, nil
				})
			})
			if err := op.do(t.Context(), h); err == nil || body.n > 3*maxAnswer {
				t.Errorf("%s %s %d: %v after %d bytes", op.kind, op.name, status, err, body.n)
			}
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		header map[string]string
		want   time.Duration
	}{
		"nothing":         {nil, 0},
		"seconds":         {map[string]string{"Retry-After": "12"}, 12 * time.Second},
		"a fraction":      {map[string]string{"Retry-After": "0.5"}, time.Second / 2},
		"a date":          {map[string]string{"Retry-After": "Sun, 01 Mar 2026 12:01:30 GMT"}, 90 * time.Second},
		"a date gone by":  {map[string]string{"Retry-After": "Sun, 01 Mar 2026 11:00:00 GMT"}, 0},
		"a year":          {map[string]string{"Retry-After": "31536000"}, maxRetryAfter},
		"infinity":        {map[string]string{"Retry-After": "1e400"}, 0},
		"not a number":    {map[string]string{"Retry-After": "NaN"}, 0},
		"negative":        {map[string]string{"Retry-After": "-3"}, 0},
		"nonsense":        {map[string]string{"Retry-After": "soon"}, 0},
		"milliseconds":    {map[string]string{"Retry-After-Ms": "1500"}, 1500 * time.Millisecond},
		"OpenAI's":        {map[string]string{"X-Ratelimit-Reset-Requests": "6m0s"}, 6 * time.Minute},
		"seconds win":     {map[string]string{"Retry-After": "2", "X-Ratelimit-Reset-Requests": "6m0s"}, 2 * time.Second},
		"OpenAI nonsense": {map[string]string{"X-Ratelimit-Reset-Requests": "x"}, 0},
	} {
		h := http.Header{}
		for k, v := range c.header {
			h.Set(k, v)
		}
		if got := retryAfter(h, now); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// The admin credential is read for each operation, and gone after it.
func TestAdminCredentialIsNotKept(t *testing.T) {
	for _, op := range operations() {
		h := newHouse(t, fake.Options{Kind: op.kind})
		for n := 1; n <= 2; n++ {
			if n == 2 {
				h.Fail(fake.Failure{Status: 500})
			}
			op.do(t.Context(), h)
			if len(h.fetched) != n {
				t.Fatalf("%s %s: read %d times, want %d", op.kind, op.name, len(h.fetched), n)
			}
			for _, fields := range h.fetched {
				for name, v := range fields {
					if v.Use(func([]byte) {}) {
						t.Errorf("%s %s: %s was not destroyed", op.kind, op.name, name)
					}
				}
			}
		}
	}
}

func TestAdminCredentialThatCannotBeUsed(t *testing.T) {
	storeError := func(reason error) error { return fmt.Errorf("issuers/prod/openai: %w", reason) }
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx    context.Context
		fields map[string]string
		err    error
		want   error
		say    string
	}{
		"not there":         {err: storeError(store.ErrNotFound), want: ErrRefused, say: "issuers/prod/openai"},
		"deleted":           {err: storeError(store.ErrDeleted), want: ErrRefused, say: "admin_key"},
		"forbidden":         {err: storeError(store.ErrForbidden), want: ErrRefused, say: "admin_key"},
		"no store":          {err: storeError(store.ErrUnavailable), want: ErrLimited, say: "admin_key"},
		"not logged in":     {err: storeError(store.ErrUnauthenticated), want: ErrLimited, say: "admin_key"},
		"cancelled":         {ctx: cancelled, err: context.Canceled, want: context.Canceled, say: "admin_key"},
		"another field":     {fields: map[string]string{"key": adminKey}, want: ErrRefused, say: "no field api_key"},
		"empty":             {fields: map[string]string{"api_key": ""}, want: ErrRefused, say: "visible ASCII"},
		"a line break":      {fields: map[string]string{"api_key": adminKey + "\r\nX: y"}, want: ErrRefused, say: "visible ASCII"},
		"a line's own end":  {fields: map[string]string{"api_key": adminKey + "\n"}, want: ErrRefused, say: "visible ASCII"},
		"other than ASCII":  {fields: map[string]string{"api_key": "canary-ключ"}, want: ErrRefused, say: "visible ASCII"},
		"destroyed already": {fields: map[string]string{}, want: ErrRefused, say: "no field api_key"},
	} {
		for _, kind := range []string{OpenAI, OpenRouter, Anthropic} {
			h := newHouse(t, fake.Options{Kind: kind}, func(o *Options) {
				hidden := (&house{}).admin(c.fields)
				o.Admin = func(ctx context.Context) (map[string]*secret.Value, error) {
					if c.err != nil {
						return nil, c.err
					}
					return hidden(ctx)
				}
			})
			ctx := c.ctx
			if ctx == nil {
				ctx = t.Context()
			}
			err := h.Revoke(ctx, "id")
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.say) {
				t.Errorf("%s, %s: %v", name, kind, err)
			}
			clean(t, err)
			if n := len(h.Requests()); n != 0 {
				t.Errorf("%s, %s: %d requests", name, kind, n)
			}
		}
	}
}

// memory is a body that remembers every buffer that it filled.
type memory struct {
	r    io.Reader
	read [][]byte
}

func (m *memory) Read(p []byte) (int, error) {
	n, err := m.r.Read(p[:min(len(p), 1000)])
	m.read = append(m.read, p[:n])
	return n, err
}
func (m *memory) Close() error { return nil }

// The bytes of answers and requests are wiped, those of a buffer that was outgrown too.
func TestBuffersAreWiped(t *testing.T) {
	pad := strings.Repeat(" ", 100<<10)
	for kind, body := range map[string]string{
		OpenAI:     `{"id":"svc_acct_1","api_key":{"value":"sk-canary-0123456789abcdef"}` + pad + `}`,
		OpenRouter: `{"data":{"hash":"h1"},"key":"sk-canary-0123456789abcdef"` + pad + `}`,
		Azure:      `{"key1":"canary-0123456789abcdef","key2":"canary-0123456789abcdef","access_token":"canary-0123456789abcdef"` + pad + `}`,
	} {
		for _, status := range []int{200, 500} {
			var bodies []*memory
			var sent []io.ReadCloser
			h := newHouse(t, fake.Options{Kind: kind}, func(o *Options) {
				o.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
					m := &memory{r: strings.NewReader(body)}
					bodies = append(bodies, m)
					sent = append(sent, r.Body)
					return &http.Response{StatusCode: status, Header: http.Header{}, Body: m, Request: r}, nil
				})
			})
			i, err := h.Create(t.Context(), Request{Label: label, Current: "key1"})
			if (err == nil) != (status == 200) {
				t.Fatalf("%s %d: %v", kind, status, err)
			}
			if err == nil && !strings.Contains(reveal(i.Fields["api_key"]), "canary-0123456789abcdef") {
				t.Errorf("%s: the key is %q", kind, reveal(i.Fields["api_key"]))
			}
			i.Destroy()
			for _, m := range bodies {
				for _, b := range m.read {
					if strings.Trim(string(b), "\x00") != "" {
						t.Fatalf("%s %d: %q is left", kind, status, b)
					}
				}
			}
			for _, b := range sent {
				if rest, err := io.ReadAll(b); err == nil || len(rest) > 0 {
					t.Errorf("%s %d: the request's body can still be read: %q", kind, status, rest)
				}
			}
		}
	}
}

func TestNew(t *testing.T) {
	admin := (&house{}).admin(nil)
	good := Options{Transport: answer(200, ""), Admin: admin, Project: "p", Subscription: "s", ResourceGroup: "r", Account: "a", Leases: &lender{}, Path: "a/b"}
	for _, kind := range []string{OpenAI, OpenRouter, Anthropic, Azure, Vault} {
		o := good
		o.Kind = kind
		if i, err := New(o); err != nil || i == nil {
			t.Errorf("%s: %v", kind, err)
		}
		for what, change := range map[string]func(*Options){
			"transport":      func(o *Options) { o.Transport = nil },
			"admin_key":      func(o *Options) { o.Admin = nil },
			"base_url":       func(o *Options) { o.BaseURL = "http://plain.example" },
			"base_url ":      func(o *Options) { o.BaseURL = "https://user:canary@host" },
			"login_url":      func(o *Options) { o.LoginURL = "https://" },
			"project":        func(o *Options) { o.Project = "a/b" },
			"subscription":   func(o *Options) { o.Subscription = "" },
			"resource_group": func(o *Options) { o.ResourceGroup = ".." },
			"account":        func(o *Options) { o.Account = "" },
			"spare":          func(o *Options) { o.Spare = "key3" },
			"store.vault":    func(o *Options) { o.Leases = nil },
			"path":           func(o *Options) { o.Path = "/" },
		} {
			o := good
			o.Kind = kind
			change(&o)
			what = strings.TrimSpace(what)
			concerns := map[string]string{"project": OpenAI, "subscription": Azure, "resource_group": Azure, "account": Azure, "spare": Azure, "login_url": Azure, "store.vault": Vault, "path": Vault}
			of, special := concerns[what]
			fails := special && of == kind || !special && kind != Vault
			i, err := New(o)
			if (err != nil) != fails || fails && (!strings.Contains(err.Error(), what) || i != nil) {
				t.Errorf("%s without %s: %v, %v", kind, what, i, err)
			}
			clean(t, err)
		}
	}
	if _, err := New(Options{Kind: "acme"}); err == nil || !strings.Contains(err.Error(), "kind") {
		t.Errorf("%v", err)
	}
}
