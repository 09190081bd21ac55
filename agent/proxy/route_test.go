package proxy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/keyring"
	"github.com/postern-proxy/postern/agent/provider/spec"
)

// I3: whatever the client sends as a credential, the upstream gets ours, once.
func TestRouteAttachesExactlyOneKey(t *testing.T) {
	w := newWorld(t, nil)
	req, _ := http.NewRequest(http.MethodPost, w.url("/openai/chat/completions?x=1&api-version=2"), strings.NewReader(`{"a":1}`))
	for _, h := range []string{"Authorization", "X-Api-Key", "Api-Key", "X-Goog-Api-Key", "Proxy-Authorization"} {
		req.Header.Add(h, "Bearer attached-by-postern")
		req.Header.Add(h, "another")
	}
	req.Header["X_Api_Key"] = []string{"smuggled"}
	req.Header.Set("Connection", "authorization, x-drop-me")
	req.Header.Set("X-Drop-Me", "1")
	req.Header.Set("Content-Type", "application/json")
	resp, err := w.client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, resp); resp.StatusCode != 200 || got != "{}" {
		t.Fatalf("%s %q", resp.Status, got)
	}
	up := w.only()
	if got := up.Header["Authorization"]; len(got) != 1 || got[0] != "Bearer "+key1 {
		t.Errorf("Authorization: %q", got)
	}
	for _, h := range []string{"X-Api-Key", "Api-Key", "X-Goog-Api-Key", "Proxy-Authorization", "X_Api_Key", "X-Drop-Me"} {
		if up.Header[h] != nil {
			t.Errorf("%s reached the upstream: %q", h, up.Header[h])
		}
	}
	if up.URL.Path != "/v1/chat/completions" || up.URL.RawQuery != "x=1&api-version=2" || up.Host != w.upHost {
		t.Errorf("%s %s?%s", up.Host, up.URL.Path, up.URL.RawQuery)
	}
	if up.Header.Get("Accept-Encoding") != "identity" {
		t.Errorf("Accept-Encoding %q", up.Header.Get("Accept-Encoding"))
	}
}

// A second route name, a missing one, ambiguous paths: nothing is forwarded.
func TestRouteRefusals(t *testing.T) {
	w := newWorld(t, nil)
	for path, want := range map[string]string{
		"/":                           codeNoRoute,
		"/nosuch/v1/models":           codeNoRoute,
		"/OpenAI/v1/models":           codeNoRoute,
		"/openai/v1/../../admin":      codeBadPath,
		"/openai/v1/%2e%2e/admin":     codeBadPath,
		"/openai//v1/models":          codeBadPath,
		"/openai/v1%2f..%2f..%2fkeys": codeBadPath,
		`/openai/v1\models`:           codeBadPath,
		`/openai/{v1}\models`:         codeBadPath,
	} {
		c := w.dial()
		resp := w.raw(c, "GET "+path+" HTTP/1.1\r\nHost: "+w.addr+"\r\n\r\n")
		if got := resp.Header.Get(errorField); got != want {
			t.Errorf("%s: %s %q, want %q", path, resp.Status, got, want)
		}
		if resp.Header.Get("X-Should-Retry") != "false" {
			t.Errorf("%s: a permanent error without x-should-retry: false", path)
		}
	}
	if n := len(w.requests()); n != 0 {
		t.Errorf("%d requests were forwarded", n)
	}
}

// Routes are for programs: other Host values and what browsers send for pages are refused.
func TestRouteIsNotForWebPages(t *testing.T) {
	w := newWorld(t, nil)
	for _, c := range []struct {
		host, fields, want string
	}{
		{w.addr, "", ""},
		{w.addr, "Sec-Fetch-Mode: cors\r\n", ""}, // Node's fetch
		{w.addr, "Sec-Fetch-Site: same-origin\r\nOrigin: http://" + w.addr + "\r\n", ""},
		{"rebound.evil.test", "", codeHost},
		{"localhost:1", "", codeHost},
		{w.addr, "Sec-Fetch-Site: cross-site\r\n", codeCrossSite},
		{w.addr, "Sec-Fetch-Site: same-site\r\n", codeCrossSite},
		{w.addr, "Origin: https://evil.test\r\n", codeCrossSite},
		{w.addr, "Origin: null\r\n", codeCrossSite},
		{w.addr, "Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n", codeCrossSite}, // typed, or redirected from what was typed
		{w.addr, "Sec-Fetch-Site: none\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: empty\r\n", ""},                // Electron's net.fetch
		{w.addr, "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Dest: image\r\n", codeCrossSite},                         // the icon of a window that was refused
		{w.addr, "Origin: http://127.0.0.1:1\r\n", codeCrossSite},
	} {
		before := len(w.requests())
		resp := w.raw(w.dial(), "GET /openai/v1/models HTTP/1.1\r\nHost: "+c.host+"\r\n"+c.fields+"\r\n")
		if got := resp.Header.Get(errorField); got != c.want {
			t.Errorf("Host %s, %q: %s %q, want %q", c.host, c.fields, resp.Status, got, c.want)
		}
		if forwarded := len(w.requests()) > before; forwarded != (c.want == "") {
			t.Errorf("Host %s, %q: forwarded is %t", c.host, c.fields, forwarded)
		}
	}
}

// I11: no usable key, nothing forwarded; the SDK's own shape says why.
func TestNoUsableKey(t *testing.T) {
	w := newWorld(t, nil)
	w.key.Install(nil)
	resp, err := w.client().Get(w.url("/openai/v1/models"))
	if err != nil {
		t.Fatal(err)
	}
	var e struct {
		Error struct{ Message, Type, Code string }
	}
	if err := json.Unmarshal([]byte(readAll(t, resp)), &e); err != nil || resp.StatusCode != 503 {
		t.Fatalf("%s, %v", resp.Status, err)
	}
	if !strings.Contains(e.Error.Message, "openai") || resp.Header.Get(errorField) != codeNoKey || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%+v %v", e, resp.Header)
	}
	if len(w.requests()) != 0 {
		t.Error("it was forwarded")
	}
}

// Redirects are the client's to follow, and lead back through the route.
func TestRouteRewritesURLs(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		up := "https://" + r.Host
		rw.Header().Set("Location", up+"/v1/files/1?x=1")
		rw.Header().Set("Content-Location", "/v1/files/1")
		rw.Header().Set("X-Goog-Upload-URL", "HTTPS://"+strings.ToUpper(r.Host)+"/upload/v1/files")
		rw.Header().Set("Operation-Location", "https://elsewhere.test/v1")
		rw.Header().Set("Link", "<"+up+"/v1/a>; rel=next, <https://elsewhere.test/b>; rel=prev, </v1/c>; rel=first")
		rw.WriteHeader(http.StatusTemporaryRedirect)
	})
	resp, err := w.client().Get(w.url("/openai/v1/files"))
	if err != nil {
		t.Fatal(err)
	}
	readAll(t, resp)
	route := w.url("/openai")
	for h, want := range map[string]string{
		"Location":           route + "/v1/files/1?x=1",
		"Content-Location":   "/openai/v1/files/1",
		"X-Goog-Upload-Url":  route + "/upload/v1/files",
		"Operation-Location": "https://elsewhere.test/v1",
		"Link":               "<" + route + "/v1/a>; rel=next, <https://elsewhere.test/b>; rel=prev, </openai/v1/c>; rel=first",
	} {
		if got := resp.Header.Get(h); got != want {
			t.Errorf("%s: %q, want %q", h, got, want)
		}
	}
	if len(w.requests()) != 1 {
		t.Error("the redirect was followed")
	}
}

// What echoes the key is scrubbed, byte for byte, in fields and bodies.
func TestAnswersAreScrubbed(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("X-Echo", r.Header.Get("Authorization"))
		rw.Header().Set("Set-Cookie", "k="+key1)
		rw.WriteHeader(http.StatusBadRequest)
		for _, b := range []byte(`{"you_sent":"` + key1 + `"}`) {
			rw.Write([]byte{b})
			rw.(http.Flusher).Flush()
		}
	})
	resp, err := w.client().Get(w.url("/openai/v1/models"))
	if err != nil {
		t.Fatal(err)
	}
	got := readAll(t, resp)
	all := got + fmt.Sprint(resp.Header)
	if strings.Contains(all, key1[8:20]) {
		t.Errorf("the key came through: %s", all)
	}
	if len(got) != len(`{"you_sent":""}`)+len(key1) {
		t.Errorf("the length changed: %q", got)
	}
}

// What the provider compressed unasked cannot be scrubbed: refused where it is known to echo, passed elsewhere.
func TestCompressedAnswers(t *testing.T) {
	for _, echoes := range []bool{false, true} {
		w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Encoding", "gzip")
			rw.Write([]byte("\x1f\x8b not really"))
		}, withSpec(func(s *spec.Spec) { s.Echoes = echoes }))
		resp, err := w.client().Get(w.url("/openai/v1/models"))
		if err != nil {
			t.Fatal(err)
		}
		readAll(t, resp)
		if want := map[bool]int{false: 200, true: 502}[echoes]; resp.StatusCode != want {
			t.Errorf("echoes %t: %s", echoes, resp.Status)
		}
	}
}

// A version that draws 401 is followed once by the other usable one, the body whole.
func TestRetryWithTheOtherVersion(t *testing.T) {
	big := bytes.Repeat([]byte("x"), maxBody+1)
	for _, c := range []struct {
		name    string
		status  int // drawn by the first version
		second  int // drawn by the other
		body    []byte
		chunked bool
		early   bool // the upstream refuses before it reads
		tries   int
		want    int
	}{
		{"401 without a body", 401, 200, nil, false, false, 2, 200},
		{"401 with a body", 401, 200, []byte("hello"), false, false, 2, 200},
		{"401 with a chunked body", 401, 200, bytes.Repeat([]byte("abc"), 10000), true, false, 2, 200},
		{"401 before the body is read", 401, 200, bytes.Repeat([]byte("abc"), 100000), false, true, 2, 200},
		{"403 is a suspicion", 403, 200, []byte("hello"), false, false, 2, 200},
		{"403 on both", 403, 403, []byte("hello"), false, false, 2, 403},
		{"429 is not", 429, 200, []byte("hello"), false, false, 1, 429},
		{"a body over 1 MiB", 401, 200, big, false, false, 1, 401},
		{"a chunked body over 1 MiB", 401, 200, big, true, false, 1, 401},
	} {
		t.Run(c.name, func(t *testing.T) {
			var bodies [][]byte
			w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
				first := r.Header.Get("Authorization") == "Bearer "+key1
				if first && c.early {
					rw.WriteHeader(c.status)
					return
				}
				b, _ := io.ReadAll(r.Body)
				bodies = append(bodies, b)
				if first {
					rw.WriteHeader(c.status)
				} else {
					rw.WriteHeader(c.second)
				}
			}, withKeys(key1, key2))
			var rd io.Reader = bytes.NewReader(c.body)
			if c.chunked {
				rd = struct{ io.Reader }{rd}
			}
			resp, err := w.client().Post(w.url("/openai/v1/chat/completions"), "text/plain", rd)
			if err != nil {
				t.Fatal(err)
			}
			readAll(t, resp)
			if resp.StatusCode != c.want || len(w.requests()) != c.tries {
				t.Errorf("%s after %d tries, want %d after %d", resp.Status, len(w.requests()), c.want, c.tries)
			}
			for i, b := range bodies {
				if !bytes.Equal(b, c.body) {
					t.Errorf("try %d saw %d bytes of %d", i, len(b), len(c.body))
				}
			}
			if c.tries == 2 {
				if got := w.requests()[1].Header["Authorization"]; len(got) != 1 || got[0] != "Bearer "+key2 {
					t.Errorf("the second try carried %q", got)
				}
			}
			_, failed := w.key.Entries()[0].Version.Counts()
			if evidence := failed == 1; evidence != (c.tries == 2 && c.second == 200) {
				t.Errorf("evidence against the first version: %d", failed)
			}
			// The client has its answer a moment before the exchange is over.
			until(t, "bytes of bodies are still accounted for", func() bool { return w.s.bodies.used.Load() == 0 })
		})
	}
}

// All bodies together are bounded: over that a request is not retried, and nothing else happens to it.
func TestRetryBudget(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		rw.WriteHeader(401)
	}, withKeys(key1, key2))
	w.s.bodies.used.Store(maxBodies)
	resp, err := w.client().Post(w.url("/openai/v1/chat/completions"), "text/plain", strings.NewReader(strings.Repeat("x", 2*shortBody)))
	if err != nil {
		t.Fatal(err)
	}
	readAll(t, resp)
	if len(w.requests()) != 1 || resp.StatusCode != 401 {
		t.Errorf("%s after %d tries", resp.Status, len(w.requests()))
	}
	w.s.bodies.used.Store(0)
}

// The lease is held until the answer's end, and released then.
func TestLeaseEndsWithTheAnswer(t *testing.T) {
	release := make(chan struct{})
	started := make(chan struct{})
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Write([]byte("a"))
		rw.(http.Flusher).Flush()
		close(started)
		<-release
		rw.Write([]byte("b"))
	})
	resp, err := w.client().Get(w.url("/openai/v1/models"))
	if err != nil {
		t.Fatal(err)
	}
	<-started
	v := w.key.Entries()[0].Version
	w.key.Install([]keyring.Entry{})
	wiped := v.Close()
	select {
	case <-wiped:
		t.Error("wiped under a request")
	default:
	}
	close(release)
	if got := readAll(t, resp); got != "ab" {
		t.Errorf("got %q", got)
	}
	<-wiped
}

func TestUnreachableUpstream(t *testing.T) {
	w := newWorld(t, nil)
	w.upstream.Close()
	resp, err := w.client().Get(w.url("/openai/v1/models"))
	if err != nil {
		t.Fatal(err)
	}
	got := readAll(t, resp)
	if resp.StatusCode != 502 || resp.Header.Get(errorField) != codeUnreachable || !strings.Contains(got, w.upHost) || !strings.Contains(got, "connection refused") {
		t.Errorf("%s %s", resp.Status, got)
	}
}

// The upstream's certificate is verified, always (I1).
func TestUntrustedUpstream(t *testing.T) {
	w := newWorld(t, nil)
	w.s.Swap(w.routing(worldConfig{untrusted: true}))
	resp, err := w.client().Get(w.url("/openai/v1/models"))
	if err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, resp); resp.StatusCode != 502 || !strings.Contains(got, "unknown authority") || len(w.requests()) != 0 {
		t.Errorf("%s %s; %d requests arrived", resp.Status, got, len(w.requests()))
	}
}

// The log line names what happened and holds neither query nor key.
func TestLogLine(t *testing.T) {
	w := newWorld(t, nil)
	resp, err := w.client().Get(w.url("/openai/v1/models?secret=in-the-query"))
	if err != nil {
		t.Fatal(err)
	}
	readAll(t, resp)
	until(t, "no line", func() bool { return w.log.String() != "" })
	line := w.log.String()
	for _, want := range []string{`"via":"route"`, `"provider":"openai"`, `"status":200`, `"key_version":1`} {
		if !strings.Contains(line, want) {
			t.Errorf("no %s in %s", want, line)
		}
	}
	if strings.Contains(line, "in-the-query") || strings.Contains(line, key1) {
		t.Errorf("the log tells too much: %s", line)
	}
}

// The agent never connects to itself, nor to metadata services, whoever is asked for.
func TestAddressGuard(t *testing.T) {
	var w *world
	w = newWorld(t, nil, withTunnel, func(c *worldConfig) {
		c.own = func(ap netip.AddrPort) bool { return ap.String() == w.addr }
	})
	for _, target := range []string{"169.254.169.254:80", "[fe80::1]:80", "0.0.0.0:80", "[fd00:ec2::254]:80", w.addr} {
		_, resp := w.connect(target)
		if resp.StatusCode != http.StatusForbidden || resp.Header.Get(errorField) != codeGuard {
			t.Errorf("CONNECT %s: %s %s", target, resp.Status, resp.Header.Get(errorField))
		}
	}
}
