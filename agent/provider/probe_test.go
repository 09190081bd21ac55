package provider

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-proxy/postern/agent/provider/spec"
	"github.com/postern-proxy/postern/agent/rotation"
)

type trip func(*http.Request) (*http.Response, error)

func (f trip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func answer(status int, body string) trip {
	return func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}, nil
	}
}

func TestProbeVerdicts(t *testing.T) {
	const live, dead, unknown = rotation.VerdictLive, rotation.VerdictDead, rotation.VerdictUnknown
	echo := `{"error":{"message":"Incorrect API key provided: ` + key + `"}}`
	rows := []struct {
		provider string
		status   int
		body     string
		want     rotation.Verdict
		means    string
	}{
		{"openai", 200, `{"data":[]}`, live, meansLive},
		{"openai", 401, echo, dead, meansDead},
		{"openai", 403, echo, live, meansRestricted},
		{"openai", 429, `{"error":{"code":"insufficient_quota"}}`, live, meansLimited},
		{"openai", 500, echo, unknown, "unknown: status 500 says nothing about the key"},
		{"openai", 503, "", unknown, "unknown: status 503 says nothing about the key"},
		{"openai", 400, "", unknown, "unknown: status 400 says nothing about the key"},
		{"openai", 404, "", unknown, "unknown: status 404 says nothing about the key"},
		{"openai", 302, "", unknown, "unknown: status 302, a redirect, which a key does not follow"},
		{"openai", 204, "", unknown, "unknown: status 204 says nothing about the key"},
		{"anthropic", 401, "", dead, meansDead},
		// xAI refuses an unknown key with a 400 and reports a blocked one with a 200.
		{"xai", 400, `{"code":"invalid-argument","error":"Incorrect API key provided: xa***9a."}`, dead, meansDead},
		{"xai", 401, "", dead, meansDead},
		{"xai", 200, `{"api_key_disabled":false,"api_key_blocked":false,"team_blocked":false}`, live, meansLive},
		{"xai", 200, `{"api_key_disabled":true}`, dead, meansDisabled},
		{"xai", 200, `{"team_blocked":true}`, dead, meansDisabled},
		{"xai", 200, `<html>`, unknown, meansOdd},
		// Cohere answers 200 either way.
		{"cohere", 200, `{"valid":true}`, live, meansLive},
		{"cohere", 200, `{"valid":false}`, dead, meansDead},
		{"cohere", 200, `{}`, unknown, meansOdd},
		{"cohere", 200, `{"valid":"no"}`, unknown, meansOdd},
		{"cohere", 200, `nonsense`, unknown, meansOdd},
		{"cohere", 401, "", dead, meansDead},
		// Gemini's 400 is about the key only where it says so.
		{"gemini", 400, `{"error":{"code":400,"details":[{"reason":"API_KEY_INVALID"}]}}`, dead, meansDead},
		{"gemini", 400, `{"error":{"status":"FAILED_PRECONDITION","message":"User location is not supported"}}`, unknown, "unknown: status 400 says nothing about the key"},
		{"gemini", 403, `{"error":{"message":"Your API key was reported as leaked."}}`, dead, meansDead},
		{"gemini", 403, `{"error":{"status":"PERMISSION_DENIED"}}`, live, meansRestricted},
		{"bedrock", 403, `{"Message":"Authentication failed: Please make sure your API Key is valid."}`, dead, meansDead},
		{"bedrock", 403, `{"message":"not authorized to perform: bedrock:ListFoundationModels"}`, live, meansRestricted},
		{"bedrock", 200, `{"modelSummaries":[]}`, live, meansLive},
	}
	for _, row := range rows {
		r := catalog(t, row.provider, spec.Spec{}).Probe(t.Context(), answer(row.status, row.body), fields(t, "api_key", key))
		if r.Verdict != row.want || r.Meaning != row.means || r.Status != row.status || r.Err != nil {
			t.Errorf("%s %d %s: %+v, want %v %q", row.provider, row.status, row.body, r, row.want, row.means)
		}
	}
}

// Every probe of the catalog goes to a listed host, over TLS, with the key and nothing of a client's.
func TestProbeRequests(t *testing.T) {
	for _, s := range spec.Catalog() {
		p := catalog(t, s.Name, spec.Spec{})
		var got *http.Request
		r := p.Probe(t.Context(), trip(func(req *http.Request) (*http.Response, error) {
			got = req
			return answer(200, `{"valid":true}`)(req)
		}), fields(t, "api_key", key))
		if s.Probe.Path == "" {
			if got != nil || r.Verdict != rotation.VerdictUnknown || r.Meaning != meansNoProbe || r.Err != nil {
				t.Errorf("%s has no probe, but: %+v", s.Name, r)
			}
			continue
		}
		host, port := got.URL.Hostname(), got.URL.Port()
		if port == "" {
			port = "443"
		}
		if got.URL.Scheme != "https" || !p.Lists(host, port) || got.Host != got.URL.Host {
			t.Errorf("%s asks %s", s.Name, got.URL)
		}
		if v := got.Header.Values(s.Attach.Header); len(v) != 1 || !strings.Contains(v[0], key) {
			t.Errorf("%s: %s: %q", s.Name, s.Attach.Header, v)
		}
		if got.Header.Get("Accept-Encoding") != "identity" || got.Header.Get("User-Agent") != "postern" {
			t.Errorf("%s: %v", s.Name, got.Header)
		}
		if r.Verdict != rotation.VerdictLive {
			t.Errorf("%s: %+v", s.Name, r)
		}
	}
}

func TestProbeSendsWhatTheSpecSays(t *testing.T) {
	var got string
	record := trip(func(req *http.Request) (*http.Response, error) {
		b, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		got = fmt.Sprint(req.Method, " ", req.URL, " ", req.Header.Get("X-Version"), " ", req.Header.Get("Content-Type"), " ", string(b))
		return answer(418, "")(req)
	})
	p := catalog(t, "openai", spec.Spec{
		BaseURL: "https://api.openai.com/corp", Attach: spec.Attach{Query: "key"},
		Probe: spec.Probe{Method: "POST", Path: "/ping?a=b", Headers: map[string]string{"x-version": "7"}, Body: `{"x":1}`, Live: []int{418}, Dead: []int{402}},
	})
	if r := p.Probe(t.Context(), record, fields(t, "api_key", key)); r.Verdict != rotation.VerdictLive {
		t.Errorf("%+v", r)
	}
	if want := `POST https://api.openai.com/corp/ping?a=b&key=` + key + ` 7 application/json {"x":1}`; got != want {
		t.Errorf("sent %s\nwant %s", got, want)
	}
	if r := p.Probe(t.Context(), answer(402, ""), fields(t, "api_key", key)); r.Verdict != rotation.VerdictDead {
		t.Errorf("%+v", r)
	}
	if r := p.Probe(t.Context(), answer(200, ""), fields(t, "api_key", key)); r.Verdict != rotation.VerdictUnknown {
		t.Errorf("%+v", r)
	}
}

// slow is a body that yields its text, then waits or breaks.
type slow struct {
	text string
	wait <-chan struct{}
	err  error
}

func (s *slow) Read(b []byte) (int, error) {
	if s.text != "" {
		n := copy(b, s.text)
		s.text = s.text[n:]
		return n, nil
	}
	if s.wait != nil {
		<-s.wait
	}
	return 0, s.err
}

func (s *slow) Close() error { return nil }

func TestProbeIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := trip(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		p := catalog(t, "openai", spec.Spec{Probe: spec.Probe{Timeout: 3 * time.Second}})
		start := time.Now()
		r := p.Probe(t.Context(), hang, fields(t, "api_key", key))
		if took := time.Since(start); took != 3*time.Second || r.Verdict != rotation.VerdictUnknown || !errors.Is(r.Err, context.DeadlineExceeded) || r.Latency != took {
			t.Errorf("%v: %+v", took, r)
		}
		if want := "probe: api.openai.com did not answer within 3s"; !strings.Contains(r.Err.Error(), want) {
			t.Errorf("%q does not say %q", r.Err, want)
		}

		// The status is enough where the body decides nothing.
		stuck := trip(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 401, Body: &slow{text: "{", wait: r.Context().Done(), err: context.DeadlineExceeded}}, nil
		})
		if r := p.Probe(t.Context(), stuck, fields(t, "api_key", key)); r.Verdict != rotation.VerdictDead || r.Err != nil {
			t.Errorf("%+v", r)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if r := p.Probe(ctx, hang, fields(t, "api_key", key)); !errors.Is(r.Err, context.Canceled) || r.Verdict != rotation.VerdictUnknown {
			t.Errorf("%+v", r)
		}
	})
	broken := func(status int) trip {
		return func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: status, Body: &slow{text: `{"valid":`, err: io.ErrUnexpectedEOF}}, nil
		}
	}
	for name, status := range map[string]int{"cohere": 200, "xai": 200, "bedrock": 403, "gemini": 400} {
		r := catalog(t, name, spec.Spec{}).Probe(t.Context(), broken(status), fields(t, "api_key", key))
		if r.Verdict != rotation.VerdictUnknown || r.Err == nil || r.Status != status {
			t.Errorf("%s: an answer whose body decides broke off: %+v", name, r)
		}
	}
	endless := trip(func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Body: io.NopCloser(zeros{})}, nil
	})
	if r := catalog(t, "cohere", spec.Spec{}).Probe(t.Context(), endless, fields(t, "api_key", key)); r.Verdict != rotation.VerdictUnknown || r.Meaning != meansOdd {
		t.Errorf("an endless body: %+v", r)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

func TestProbeErrorsHoldNoKey(t *testing.T) {
	secretErr := func(text string) error {
		return &url.Error{Op: "Get", URL: "https://x/?key=" + key, Err: errors.New(text)}
	}
	p := house(t, spec.Attach{Query: "key"})
	p.spec.Probe = spec.Probe{Method: "GET", Path: "/", Live: []int{200}, Dead: []int{401}, Timeout: time.Second}
	enc := base64.StdEncoding.EncodeToString([]byte(key))
	for _, text := range []string{"malformed response " + key, "x " + enc + "x", "plain"} {
		r := p.Probe(t.Context(), trip(func(*http.Request) (*http.Response, error) { return nil, secretErr(text) }), fields(t, "api_key", key, "team", "x"))
		if r.Err == nil || r.Verdict != rotation.VerdictUnknown || r.Meaning != meansNoAnswer {
			t.Fatalf("%+v", r)
		}
		for _, form := range []string{fmt.Sprint(r), fmt.Sprintf("%+v", r), fmt.Sprintf("%#v", r.Err), fmt.Sprintf("%+v", errors.Unwrap(r.Err))} {
			if strings.Contains(form, key) || strings.Contains(form, enc) {
				t.Errorf("%s", form)
			}
		}
		if !strings.Contains(r.Err.Error(), "llm.corp.example") || text == "plain" != strings.Contains(r.Err.Error(), "plain") {
			t.Errorf("%v", r.Err)
		}
	}
	r := p.Probe(t.Context(), answer(200, ""), nil)
	if r.Err == nil || !strings.Contains(r.Err.Error(), `"api_key"`) || r.Meaning != meansNotAsked || r.Latency != 0 {
		t.Errorf("%+v", r)
	}
	// A real transport, nobody listening.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	p = catalog(t, "openai", spec.Spec{Hosts: []string{addr}})
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	r = p.Probe(t.Context(), tr, fields(t, "api_key", key))
	if r.Err == nil || !strings.Contains(r.Err.Error(), addr) || !strings.Contains(r.Err.Error(), "refused") {
		t.Errorf("%+v", r)
	}
}

// The buffer that read an answer is wiped: it may repeat the key.
func TestProbeWipesTheAnswer(t *testing.T) {
	var seen []byte
	body := readerFunc(func(b []byte) (int, error) {
		seen = b
		return copy(b, key), io.EOF
	})
	rt := trip(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 401, Body: io.NopCloser(body)}, nil
	})
	catalog(t, "openai", spec.Spec{}).Probe(t.Context(), rt, fields(t, "api_key", key))
	if len(seen) == 0 || bytes.Contains(seen, []byte(key[:8])) {
		t.Errorf("the buffer still holds %q", seen[:40])
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }
