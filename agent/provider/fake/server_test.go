package fake

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	good = "sk-live-0123456789abcdef"
	bad  = "sk-f23aa0000000000000cda9"
)

// client talks to one Server.
type client struct {
	t testing.TB
	s *Server
	c *http.Client
}

func start(t testing.TB, o Options) *client {
	t.Helper()
	if o.Keys == nil {
		o.Keys = []string{good}
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	tr := s.Transport()
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &client{t, s, &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// do sends a request; headers are "Name: value".
func (c *client) do(method, path, body string, headers ...string) (*http.Response, string) {
	c.t.Helper()
	target := path
	if strings.HasPrefix(path, "/") {
		target = c.s.URL() + path
	}
	req, err := http.NewRequest(method, target, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		req.Header.Add(k, v)
	}
	resp, err := c.c.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp, string(b)
}

// get walks a JSON document: "choices.0.message.content".
func get(t testing.TB, doc, path string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(doc), &v); err != nil {
		t.Fatalf("%v in %s", err, doc)
	}
	for name := range strings.SplitSeq(path, ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[name]
		case []any:
			i := int(name[0] - '0')
			if i >= len(at) {
				t.Fatalf("no %s in %s", path, doc)
			}
			v = at[i]
		default:
			t.Fatalf("no %s in %s", path, doc)
		}
	}
	return v
}

// events splits a stream into its events' names and data.
func events(t testing.TB, stream string) (names, data []string) {
	t.Helper()
	for block := range strings.SplitSeq(strings.TrimSuffix(stream, "\n\n"), "\n\n") {
		name, d := "", ""
		for line := range strings.SplitSeq(block, "\n") {
			if v, ok := strings.CutPrefix(line, "event: "); ok {
				name = v
			} else if v, ok := strings.CutPrefix(line, "data: "); ok {
				d = v
			} else {
				t.Fatalf("odd line %q in a stream", line)
			}
		}
		names, data = append(names, name), append(data, d)
	}
	return names, data
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Options{Kind: "nobody"}); err == nil || !strings.Contains(err.Error(), "qubittron") {
		t.Errorf("%v does not say which kinds there are", err)
	}
	if _, err := New(Options{Kind: "openai", Addr: "256.0.0.1:0"}); err == nil {
		t.Error("listened nowhere")
	}
}

func TestCertificateAndTransport(t *testing.T) {
	ca, err := NewCA()
	if err != nil {
		t.Fatal(err)
	}
	c := start(t, Options{Kind: "openai", CA: ca, Hosts: []string{"api.openai.com", "*.api.openai.com"}})
	for _, host := range []string{"api.openai.com", "eu.api.openai.com", "localhost", "127.0.0.1"} {
		resp, _ := c.do("GET", "https://"+host+"/v1/models", "", "Authorization: Bearer "+good)
		if resp.StatusCode != 200 || resp.ProtoMajor != 2 {
			t.Errorf("%s: %s %s", host, resp.Proto, resp.Status)
		}
		if r := last(c.s); r.Host != host || host != "127.0.0.1" && r.SNI != host {
			t.Errorf("recorded host %q, SNI %q, want %s", r.Host, r.SNI, host)
		}
	}
	if _, err := c.c.Get("https://api.anthropic.com/"); err == nil {
		t.Error("a name that the certificate lacks was trusted")
	}
	if string(c.s.CAPEM()) != string(ca.PEM()) {
		t.Error("CAPEM is not the CA's")
	}
	// HTTP/1.1 for those who ask for nothing else.
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("https://" + c.s.Addr() + "/v1/models")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.ProtoMajor != 1 || resp.StatusCode != 401 {
		t.Errorf("%s %s", resp.Proto, resp.Status)
	}
	if other := start(t, Options{Kind: "openai"}); string(other.s.CAPEM()) == string(ca.PEM()) {
		t.Error("two Servers share a CA that they were not given")
	}
}

func last(s *Server) Request {
	all := s.Requests()
	return all[len(all)-1]
}

// The same four states, in each vendor's words.
func TestKeyStates(t *testing.T) {
	type want struct {
		status int
		says   string
	}
	vendors := []struct {
		kind, header, work, body, list string
		extra                          []string
		missing, revoked               want
		forbidden, limited             want
	}{
		{"openai", "Authorization: Bearer ", "/v1/chat/completions", `{"model":"m","messages":[{}]}`, "/v1/models", nil,
			want{401, "invalid_request_error"}, want{401, "Incorrect API key provided: sk-f23aa***cda9"}, want{403, "missing_scope"}, want{429, "insufficient_quota"}},
		{"qubittron", "Authorization: Bearer ", "/v1/chat/completions", `{"model":"m","messages":[{}]}`, "/v1/models", nil,
			want{401, "invalid_request_error"}, want{401, "sk-f23aa***cda9"}, want{403, "missing_scope"}, want{429, "insufficient_quota"}},
		{"anthropic", "x-api-key: ", "/v1/messages", `{"model":"m","max_tokens":9,"messages":[{}]}`, "/v1/models", []string{"anthropic-version: 2023-06-01"},
			want{401, "authentication_error"}, want{401, `"type":"error"`}, want{403, "permission_error"}, want{429, "rate_limit_error"}},
		{"anthropic", "Authorization: Bearer ", "/v1/messages", `{"model":"m","max_tokens":9,"messages":[{}]}`, "/v1/models", []string{"anthropic-version: 2023-06-01"},
			want{401, "authentication_error"}, want{401, "authentication_error"}, want{403, "permission_error"}, want{429, "rate_limit_error"}},
		{"gemini", "x-goog-api-key: ", "/v1beta/models/g:generateContent", `{"contents":[{}]}`, "/v1beta/models", nil,
			want{403, "PERMISSION_DENIED"}, want{400, "API_KEY_INVALID"}, want{403, "PERMISSION_DENIED"}, want{429, "RESOURCE_EXHAUSTED"}},
	}
	for _, v := range vendors {
		c := start(t, Options{Kind: v.kind})
		ask := func(key string, w want) {
			t.Helper()
			resp, body := c.do("POST", v.work, v.body, append(v.extra, v.header+key)...)
			if resp.StatusCode != w.status || !strings.Contains(body, w.says) || resp.Header.Get("Content-Type") != "application/json" {
				t.Errorf("%s: %d %s, want %d and %s", v.kind, resp.StatusCode, body, w.status, w.says)
			}
			if strings.Contains(body, bad) {
				t.Errorf("%s repeats the key: %s", v.kind, body)
			}
		}
		list := func(key string, status int) {
			t.Helper()
			if resp, body := c.do("GET", v.list, "", append(v.extra, v.header+key)...); resp.StatusCode != status {
				t.Errorf("%s: listing models: %d %s, want %d", v.kind, resp.StatusCode, body, status)
			}
		}
		ask("", v.missing)
		ask(bad, v.revoked)
		ask(good, want{200, ""})
		list(bad, v.revoked.status)
		list(good, 200)
		c.s.Forbid(good)
		ask(good, v.forbidden)
		list(good, 200)
		c.s.Limit(good)
		ask(good, v.limited)
		list(good, 200)
		c.s.Revoke(good)
		ask(good, want{v.revoked.status, ""})
		c.s.Allow(bad)
		ask(bad, want{200, ""})
		if got, want := c.s.Counts(good), (Counts{Requests: 7, OK: 4, Unauthorized: 1, Forbidden: 1, Limited: 1}); got != want {
			t.Errorf("%s: %+v, want %+v", v.kind, got, want)
		}
		if c.s.State(good) != Revoked || c.s.State(bad) != Live || c.s.State("nobody's") != Revoked || c.s.KeysSeen() != 2 {
			t.Errorf("%s: %v %v, %d keys", v.kind, c.s.State(good), c.s.State(bad), c.s.KeysSeen())
		}
		if Live.String() != "live" || Limited.String() != "limited" {
			t.Error("states print wrong")
		}
	}
}

func TestCohereSaysWhetherAKeyIsValid(t *testing.T) {
	c := start(t, Options{Kind: "cohere"})
	for _, row := range []struct {
		method, path, key string
		status            int
		says              string
	}{
		{"POST", "/v1/check-api-key", good, 200, `"valid":true`},
		{"POST", "/v1/check-api-key", bad, 200, `"valid":false`},
		{"POST", "/v1/check-api-key", "", 401, "message"},
		{"GET", "/v1/check-api-key", good, 405, "POST"},
		{"POST", "/v2/chat", good, 404, "unknown"},
	} {
		resp, body := c.do(row.method, row.path, "", "Authorization: Bearer "+row.key)
		if resp.StatusCode != row.status || !strings.Contains(body, row.says) {
			t.Errorf("%+v: %d %s", row, resp.StatusCode, body)
		}
	}
	if n := c.s.KeysSeen(); n != 0 {
		t.Errorf("a check is no use: %d", n)
	}
}

func TestRequestsAreRecorded(t *testing.T) {
	c := start(t, Options{Kind: "gemini", Records: 3})
	for i := range 5 {
		c.do("POST", fmt.Sprintf("/v1beta/models/m%%2F%d:countTokens?key=%s&a=1", i, bad), "{}", "x-goog-api-key: "+good, "x-goog-api-key: second", "Authorization: Bearer third", "Cookie: c=d", "X-Mine: yes")
	}
	all := c.s.Requests()
	if len(all) != 3 || c.s.Total() != 5 {
		t.Fatalf("%d kept of %d", len(all), c.s.Total())
	}
	for i, r := range all {
		if want := fmt.Sprintf("/v1beta/models/m%%2F%d:countTokens", i+2); r.Path != want || r.Query != "key="+bad+"&a=1" {
			t.Errorf("%d: %s?%s, want %s", i, r.Path, r.Query, want)
		}
		if got, want := fmt.Sprint(r.Credentials), fmt.Sprint([]Credential{
			{"header Authorization", "Bearer third"}, {"header X-Goog-Api-Key", good}, {"header X-Goog-Api-Key", "second"}, {"header Cookie", "c=d"}, {"query key", bad},
		}); got != want {
			t.Errorf("credentials %s, want %s", got, want)
		}
		if r.Method != "POST" || r.Status != 200 || r.Key != good || r.Header.Get("X-Mine") != "yes" || r.Proto != "HTTP/2.0" || time.Since(r.Time) > time.Minute {
			t.Errorf("%+v", r)
		}
	}
}

func TestFirstUse(t *testing.T) {
	c := start(t, Options{Kind: "openai", Keys: []string{good}})
	first := c.s.FirstUse(bad)
	work := func(key string) {
		c.do("POST", "/v1/chat/completions", `{"model":"m","messages":[{}]}`, "Authorization: Bearer "+key)
	}
	work(good)
	work(bad) // refused
	c.s.Allow(bad)
	c.do("GET", "/v1/models", "", "Authorization: Bearer "+bad) // a probe
	select {
	case <-first:
		t.Fatal("a refusal or a probe counted as use")
	default:
	}
	before := time.Now()
	work(bad)
	at := <-first
	if at.Before(before) || at.After(time.Now()) {
		t.Errorf("used at %v, asked at %v", at, before)
	}
	work(bad)
	if again := <-c.s.FirstUse(bad); !again.Equal(at) {
		t.Errorf("%v, then %v", at, again)
	}
}

func TestIntercept(t *testing.T) {
	c := start(t, Options{Kind: "openai", Intercept: func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/odd" {
			return false
		}
		w.WriteHeader(http.StatusTeapot)
		return true
	}})
	if resp, _ := c.do("GET", "/odd", ""); resp.StatusCode != http.StatusTeapot || last(c.s).Status != http.StatusTeapot {
		t.Error(resp.Status)
	}
	if resp, _ := c.do("GET", "/v1/models", "", "Authorization: Bearer "+good); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
}

// A stream comes piece by piece, and ends when its client leaves or the Server closes.
func TestStreamsAreLiveAndEnd(t *testing.T) {
	s, err := New(Options{Kind: "openai", Keys: []string{good}, Gap: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	tr := s.Transport()
	open := func(ctx context.Context) *http.Response {
		req, err := http.NewRequestWithContext(ctx, "POST", s.URL()+"/v1/chat/completions", strings.NewReader(`{"model":"m","stream":true,"messages":[{}]}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+good)
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(resp.Body).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "data: {") {
			t.Fatalf("%q %v", line, err)
		}
		return resp
	}
	ctx, leave := context.WithCancel(t.Context())
	gone, stays := open(ctx), open(t.Context())
	leave()
	gone.Body.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Close()
		s.Close()
	}()
	io.Copy(io.Discard, stays.Body) // ends, rather than in an hour
	stays.Body.Close()
	<-done
	tr.CloseIdleConnections()
	if _, err := tr.RoundTrip(mustRequest(t, s.URL()+"/v1/models")); err == nil {
		t.Error("a closed Server answered")
	}
}

func mustRequest(t *testing.T, url string) *http.Request {
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func TestManyAtOnce(t *testing.T) {
	c := start(t, Options{Kind: "openai", Records: 10})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 25 {
				c.do("POST", "/v1/chat/completions", `{"model":"m","messages":[{}]}`, "Authorization: Bearer "+good)
				c.s.Requests()
				c.s.Counts(good)
				c.s.Allow(fmt.Sprint("sk-another-0123456789-", i))
			}
		})
	}
	wg.Wait()
	if got := c.s.Counts(good); got.OK != 200 || c.s.Total() != 200 || len(c.s.Requests()) != 10 {
		t.Errorf("%+v, %d in all", got, c.s.Total())
	}
}

// The demo is a product: it must not carry the testing package's flags.
func TestDoesNotImportTesting(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		ast, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range ast.Imports {
			if p := strings.Trim(i.Path.Value, `"`); p == "testing" || p == "net/http/httptest" {
				t.Errorf("%s imports %s", f, p)
			}
		}
	}
}

func BenchmarkChat(b *testing.B) {
	c := start(b, Options{Kind: "openai"})
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			c.do("POST", "/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"hi"}]}`, "Authorization: Bearer "+good)
		}
	})
}
