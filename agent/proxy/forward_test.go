package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestConnectAttaches(t *testing.T) {
	w := newWorld(t, nil)
	c := w.tunnel()
	for i := range 3 {
		resp := w.raw(c, "GET /v1/models HTTP/1.1\r\nHost: "+w.upHost+"\r\nAuthorization: Bearer attached-by-postern\r\n\r\n")
		if readAll(t, resp); resp.StatusCode != 200 {
			t.Fatalf("request %d: %s", i, resp.Status)
		}
	}
	for _, r := range w.requests() {
		if got := r.Header["Authorization"]; len(got) != 1 || got[0] != "Bearer "+key1 || r.URL.Path != "/v1/models" || r.Host != w.upHost {
			t.Errorf("%s%s: %q", r.Host, r.URL.Path, got)
		}
	}
}

// The default prefix belongs to routes: in a tunnel the client's path is the provider's.
func TestConnectLeavesThePathAlone(t *testing.T) {
	w := newWorld(t, nil)
	readAll(t, w.raw(w.tunnel(), "GET /dashboard/billing?a=b HTTP/1.1\r\nHost: "+w.upHost+"\r\n\r\n"))
	if r := w.only(); r.URL.Path != "/dashboard/billing" || r.URL.RawQuery != "a=b" {
		t.Errorf("%s?%s", r.URL.Path, r.URL.RawQuery)
	}
}

// I2: another host inside the tunnel is 421 and carries no key (goproxy sent it there with the tunnel's key).
func TestConnectPinsTheHost(t *testing.T) {
	w := newWorld(t, nil)
	other := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the other host was reached") }))
	defer other.Close()
	elsewhere := other.Listener.Addr().String()
	_, port, _ := net.SplitHostPort(w.upHost)
	for _, head := range []string{
		"GET /v1/models HTTP/1.1\r\nHost: " + elsewhere + "\r\n",
		"GET /v1/models HTTP/1.1\r\nHost: evil.test\r\n",
		"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:1\r\n",
		"GET /v1/models HTTP/1.1\r\nHost: localhost:" + port + "\r\n",
		"GET https://" + elsewhere + "/v1/models HTTP/1.1\r\nHost: " + w.upHost + "\r\n",
		"GET http://" + w.upHost + "/v1/models HTTP/1.1\r\nHost: " + w.upHost + "\r\n",
		"GET /v1/models HTTP/1.1\r\nHost: user@" + w.upHost + "\r\n",
	} {
		resp := w.raw(w.tunnel(), head+"\r\n")
		readAll(t, resp)
		if resp.StatusCode != http.StatusMisdirectedRequest && resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%q: %s", head, resp.Status)
		}
	}
	if len(w.requests()) != 0 {
		t.Errorf("%d requests were forwarded", len(w.requests()))
	}
	// The absolute form that names the tunnel's own host is the same request.
	resp := w.raw(w.tunnel(), "GET https://"+w.upHost+"/v1/models HTTP/1.1\r\nHost: "+w.upHost+"\r\n\r\n")
	if readAll(t, resp); resp.StatusCode != 200 {
		t.Errorf("absolute form of the same host: %s", resp.Status)
	}
}

// A browser that uses the agent as its proxy sends a page's requests through tunnels.
func TestTunnelIsNotForWebPages(t *testing.T) {
	w := newWorld(t, nil)
	for fields, want := range map[string]string{
		"":                                     "",
		"Sec-Fetch-Mode: cors\r\n":             "",
		"Origin: https://" + w.upHost + "\r\n": "",
		"Sec-Fetch-Site: cross-site\r\n":       codeCrossSite,
		"Sec-Fetch-Dest: document\r\n":         codeCrossSite,
		"Origin: http://evil.test\r\n":         codeCrossSite,
		"Origin: null\r\n":                     codeCrossSite,
	} {
		before := len(w.requests())
		resp := w.raw(w.tunnel(), "GET /v1/models HTTP/1.1\r\nHost: "+w.upHost+"\r\n"+fields+"\r\n")
		if got := resp.Header.Get(errorField); got != want {
			t.Errorf("%q: %s %q, want %q", fields, resp.Status, got, want)
		}
		if forwarded := len(w.requests()) > before; forwarded != (want == "") {
			t.Errorf("%q: forwarded is %t", fields, forwarded)
		}
	}
}

func TestConnectRefusesAnotherServerName(t *testing.T) {
	w := newWorld(t, nil)
	c, _ := w.connect(w.upHost)
	if err := tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: "evil.test"}).Handshake(); err == nil {
		t.Error("the handshake for another server name succeeded")
	}
}

// Bytes that are no TLS inside an intercepted tunnel are refused there.
func TestConnectWantsTLS(t *testing.T) {
	w := newWorld(t, nil)
	c, _ := w.connect(w.upHost)
	io.WriteString(c, "GET /v1/models HTTP/1.1\r\nHost: "+w.upHost+"\r\n\r\n")
	got, _ := io.ReadAll(c)
	if bytes.Contains(got, []byte("200 OK")) || len(w.requests()) != 0 {
		t.Errorf("plain HTTP in a tunnel was served: %q", got)
	}
}

func TestConnectTargets(t *testing.T) {
	w := newWorld(t, nil)
	host, port, _ := net.SplitHostPort(w.upHost)
	for target, want := range map[string]string{
		"evil.test:443":                codeUnmatched,
		host + ":1":                    codeUnmatched,
		"2130706433:" + port:           codeBadHost,
		"0x7f.1:" + port:               codeBadHost,
		"user@" + w.upHost:             codeBadHost,
		host + ".:" + port:             codeBadHost,
		host:                           codeBadHost,
		"[::ffff:127.0.0.1]:" + port:   codeBadHost,
		"api.openai.com:443@evil.test": codeBadHost,
	} {
		c := w.dial()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Errorf("%s: %v", target, err)
			continue
		}
		// net/http itself refuses some of them, with a 400 of its own.
		if got := resp.Header.Get(errorField); got != want && !(want == codeBadHost && got == "" && resp.StatusCode == 400) {
			t.Errorf("%s: %s %q, want %q", target, resp.Status, got, want)
		}
	}
	// Host must say what the target says.
	c := w.dial()
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: evil.test:443\r\n\r\n", w.upHost)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode == 200 && len(w.requests()) > 0 {
		t.Errorf("CONNECT with another Host: %v, %v", resp, err)
	}
	if len(w.requests()) != 0 {
		t.Error("something was forwarded")
	}
}

// What is not configured passes untouched where the configuration says so, without a key.
func TestTunnelOfAnotherHost(t *testing.T) {
	other := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		io.WriteString(rw, r.Header.Get("Authorization"))
	}))
	defer other.Close()
	w := newWorld(t, nil, withTunnel)
	c, resp := w.connect(other.Listener.Addr().String())
	if resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	conf := other.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	conf.ServerName = "example.com"
	if got := readAll(t, w.raw(tls.Client(c, conf), "GET / HTTP/1.1\r\nHost: x\r\nAuthorization: mine\r\nConnection: close\r\n\r\n")); got != "mine" {
		t.Errorf("got %q", got)
	}
}

// Shutdown ends tunnels that stay idle: none of their goroutines is left (the world's end checks).
func TestShutdownEndsTunnels(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(io.Discard, c); c.Close() }()
		}
	}()
	w := newWorld(t, nil, withTunnel)
	for range 20 {
		if _, resp := w.connect(ln.Addr().String()); resp.StatusCode != 200 {
			t.Fatal(resp.Status)
		}
		w.tunnel()
	}
}

func TestAbsoluteForm(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(rw, "%s %s", r.Host, r.Header.Get("Authorization"))
	}))
	defer plain.Close()
	plainHost := plain.Listener.Addr().String()
	for _, c := range []struct {
		name, line, host string
		tunnel           bool
		status           int
		code             string
		reached          bool // the provider
	}{
		{"a provider by https", "https://UP/v1/models", "UP", false, 200, "", true},
		{"Host differs: the target counts", "https://UP/v1/models", "evil.test", false, 200, "", true},
		{"user information", "https://u:p@UP/v1/models", "UP", false, 400, codeBadHost, false},
		{"another port", "https://127.0.0.1:1/v1/models", "127.0.0.1:1", false, 403, codeUnmatched, false},
		{"another host, denied", "http://PLAIN/", "PLAIN", false, 403, codeUnmatched, false},
		{"another host, passed", "http://PLAIN/", "PLAIN", true, 200, "", false},
		{"another host by https", "https://PLAIN/", "PLAIN", true, 400, codeBadHost, false},
		{"metadata", "http://169.254.169.254/latest/meta-data/", "169.254.169.254", true, 403, codeGuard, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var opts []worldOption
			if c.tunnel {
				opts = append(opts, withTunnel)
			}
			w := newWorld(t, nil, opts...)
			sub := strings.NewReplacer("UP", w.upHost, "PLAIN", plainHost)
			resp := w.raw(w.dial(), sub.Replace("GET "+c.line+" HTTP/1.1\r\nHost: "+c.host+"\r\nAuthorization: mine\r\nConnection: close\r\n\r\n"))
			got := readAll(t, resp)
			if resp.StatusCode != c.status || resp.Header.Get(errorField) != c.code {
				t.Errorf("%s %q %q", resp.Status, resp.Header.Get(errorField), got)
			}
			if (len(w.requests()) == 1) != c.reached {
				t.Errorf("the provider saw %d requests", len(w.requests()))
			}
			if c.reached && (w.only().Header.Get("Authorization") != "Bearer "+key1 || w.only().Host != w.upHost) {
				t.Errorf("the provider saw %q %q", w.only().Host, w.only().Header["Authorization"])
			}
			if c.status == 200 && !c.reached && got != plainHost+" mine" {
				t.Errorf("the other host saw %q", got)
			}
		})
	}
}

// I13: what net/http would read leniently never reaches it, on any connection.
func TestAmbiguousFramingIsRefused(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		if b, err := io.ReadAll(r.Body); err == nil {
			t.Errorf("the upstream saw a whole request with the body %q", b)
		}
		panic(http.ErrAbortHandler)
	})
	for name, text := range map[string]string{
		"both framings":   "POST /openai/v1/x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"bare LF":         "GET /openai/v1/x HTTP/1.1\nHost: HOST\n\n",
		"two lengths":     "POST /openai/v1/x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
		"space and colon": "GET /openai/v1/x HTTP/1.1\r\nHost: HOST\r\nX : y\r\n\r\n",
		"chunk extension": "POST /openai/v1/x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\nabcd\r\n0\r\n\r\n",
	} {
		for _, inside := range []bool{false, true} {
			var c net.Conn = w.dial()
			host := w.addr
			if inside {
				c, host = w.tunnel(), w.upHost
			}
			c.SetDeadline(time.Now().Add(10 * time.Second))
			io.WriteString(c, strings.ReplaceAll(text, "HOST", host))
			br := bufio.NewReader(c)
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Errorf("%s, in a tunnel %t: %v", name, inside, err)
				continue
			}
			readAll(t, resp)
			if _, err := br.ReadByte(); resp.StatusCode != 400 || err == nil {
				t.Errorf("%s, in a tunnel %t: %s, closed: %t", name, inside, resp.Status, err != nil)
			}
		}
	}
}

// A refusal becomes an audit entry, off the request's path.
func TestRefusalsAreRecorded(t *testing.T) {
	w := newWorld(t, nil)
	w.connect("evil.test:443")
	w.raw(w.tunnel(), "GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n")
	deadline := time.Now().Add(5 * time.Second)
	for len(w.audit.reasons()) < 2 {
		if time.Now().After(deadline) {
			t.Fatalf("entries: %v", w.audit.reasons())
		}
		time.Sleep(time.Millisecond)
	}
	if got := strings.Join(w.audit.reasons(), " "); got != codeUnmatched+" "+codeMisdirected {
		t.Errorf("entries: %s", got)
	}
}
