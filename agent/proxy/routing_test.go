package proxy

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/provider/spec"
	"github.com/postern-proxy/postern/agent/proxy/h1"
)

func TestAuthority(t *testing.T) {
	for in, want := range map[string]string{
		"api.openai.com":      "api.openai.com 443",
		"API.OpenAI.com:443":  "api.openai.com 443",
		"localhost:8443":      "localhost 8443",
		"127.0.0.1:1":         "127.0.0.1 1",
		"[::1]:8443":          "::1 8443",
		"xn--bcher-kva.test":  "xn--bcher-kva.test 443",
		"a_b.test":            "a_b.test 443",
		"1password.com":       "1password.com 443",
		"bedrock.us-east-1.x": "bedrock.us-east-1.x 443",
	} {
		host, port, err := authority(in, "443")
		if got := host + " " + port; err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", ":443", "a:", "a:0", "a:65536", "a:+1", "a:0443", "a:443x", "a:4 3", "api.openai.com.", ".a", "a..b", "-a.test", "a-.test",
		"user@api.openai.com", "api.openai.com@evil.test", "api.openai.com:443@evil.test", "a/b", "a?b", "a#b", "a\\b", "a\x00.test", "a b", "a%2eb",
		"bücher.test", "ａpi.openai.com", "2130706433", "0x7f000001", "0x7f.1", "127.1", "127.0.0.01", "0177.0.0.1", "127.0.0.1.", "256.1.1.1",
		"[::1", "::1", "[::1%lo]", "[::ffff:127.0.0.1]", "[127.0.0.1]", "[]", strings.Repeat("a", 64) + ".test", strings.Repeat("a.", 130) + "a",
	} {
		if host, port, err := authority(in, "443"); err == nil {
			t.Errorf("%q passed as %q %q", in, host, port)
		}
	}
}

// FuzzAuthority: what CONNECT, Host and absolute URLs name is read as a model
// reads it that is made of other means.
func FuzzAuthority(f *testing.F) {
	for _, s := range []string{
		"api.openai.com:443", "[::1]:1", "a@b", "2130706433", "a.:1", "a-b_c.test:65535", "127.0.0.1:080", "1.2.3.4", "1.2.3.04:1", "[::ffff:1.2.3.4]", "[::1%25eth0]:443",
		"[1::]:", "[::1]443", "::1:443", "a..b:1", "-a:1", "a-:1", "0x7f.1", "x.0", "xn--e1a.test", "_a._b:2", "a:b:1", "[a]:1", "[::1]]:1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		host, port, err := authority(in, "443")
		if h, p, ok := modelAuthority(in); ok != (err == nil) || ok && (h != host || p != port) {
			t.Fatalf("%q: %q %q, %v; the model has %q %q, %v", in, host, port, err, h, p, ok)
		}
		if err != nil {
			return
		}
		// What passes means the same to net/url, and is its own canonical form.
		u, err := url.Parse("https://" + in + "/")
		if err != nil || !strings.EqualFold(u.Hostname(), host) && host != "::1" && !strings.Contains(host, ":") || u.User != nil {
			t.Fatalf("%q passed as %q; net/url: %v, %v", in, host, u, err)
		}
		h2, p2, err := authority(hostHeader("x", host, port), "443")
		if err != nil || h2 != host || p2 != port {
			t.Fatalf("%q → %q %q → %q %q, %v", in, host, port, h2, p2, err)
		}
	})
}

func TestStripSubprotocols(t *testing.T) {
	for in, want := range map[string]string{
		"realtime, openai-insecure-api-key.attached-by-postern": "realtime",
		"openai-beta.realtime-v1":                               "openai-beta.realtime-v1",
		"a,b , c":                                               "a, b, c",
		"OpenAI-Insecure-API-Key.sk":                            "",
	} {
		if got := subprotocols(in); got != want {
			t.Errorf("%q: left %q, want %q", in, got, want)
		}
	}
}

// stripped is what the query of a request to w's provider becomes.
func stripped(w *world, query string) string {
	x := &exchange{t: w.s.routing.Load().routes["openai"]}
	out, _ := appendQuery([]byte("/path"), []byte(query), x.credential)
	return strings.TrimPrefix(strings.TrimPrefix(string(out), "/path"), "?")
}

func TestStripQuery(t *testing.T) {
	w := newWorld(t, nil, withSpec(func(s *spec.Spec) { s.Strip.Query = []string{"key"} }))
	for in, want := range map[string]string{
		"":                      "",
		"key=AIza":              "",
		"alt=sse&key=AIza":      "alt=sse",
		"key=a&alt=sse&key=b":   "alt=sse",
		"Key=a&KEY=b&x=1":       "x=1",
		"%6bey=a&x=%20+%2B":     "x=%20+%2B",
		"k%65y&x":               "x",
		"%E2%84%AAey=a&x":       "x",
		"monkey=1&keys=2":       "monkey=1&keys=2",
		"x=%zz&a=b;c":           "x=%zz&a=b;c",
		"pageToken=key%3Dvalue": "pageToken=key%3Dvalue",
	} {
		if got := stripped(w, in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// Connection names what to strip before the key is attached, never after
// (golang/go#50580); credentials go in every spelling. What passes keeps its name's case.
func TestStripRequest(t *testing.T) {
	w := newWorld(t, nil)
	head := "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Custom\r\nconnection: Authorization\r\nX-CUSTOM: 1\r\nAuthorization: Bearer a\r\nAUTHORIZATION: b\r\n" +
		"X-Api-Key: a\r\nX_api_key: b\r\nX_API_KEY: c\r\nApi-Key: d\r\nProxy-Authorization: e\r\nX-Forwarded-For: f\r\nX_Forwarded_For: f\r\nTE: trailers\r\n" +
		"Upgrade: h2c\r\nHTTP2-Settings: x\r\nExpect: 100-continue\r\nAccept-Encoding: gzip\r\ncontent-TYPE: application/json\r\nCookie: a=b\r\nX-Api-Keys: mine\r\n\r\n"
	var r h1.Request
	if _, err := r.Parse([]byte(head)); err != nil {
		t.Fatal(err)
	}
	rt := w.s.routing.Load()
	x := &exchange{req: &r, rt: rt, t: rt.routes["openai"]}
	var left []string
	for i := range r.Fields {
		if v, ok := x.passed(&r.Fields[i]); ok {
			left = append(left, string(r.Fields[i].Name)+": "+v)
		}
	}
	if got := strings.Join(left, ", "); got != "content-TYPE: application/json, Cookie: a=b, X-Api-Keys: mine" {
		t.Errorf("left: %s", got)
	}
}

func TestTargets(t *testing.T) {
	for in, want := range map[string]string{
		"/": "/ ", "/a?b?c": "/a b?c", "*": "* ", "/a?": "/a ", "//host/a": "//host/a ",
		"http://h": "http h / ", "HTTPS://h:1?q": "HTTPS h:1 / q", "http://u@h/a?b": "http u@h /a b", "https:/a": "https   ", "https:": "https   ", "http:///a": "http  /a ",
		"a": "", "1a://h": "", "a b": "", "*a": "",
	} {
		got := ""
		if tg, ok := parseTarget([]byte(in)); ok && tg.absolute {
			got = fmt.Sprintf("%s %s %s %s", tg.scheme, tg.authority, tg.path, tg.query)
		} else if ok {
			got = fmt.Sprintf("%s %s", tg.path, tg.query)
		}
		if got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
