package proxy

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/provider/spec"
)

// What a request's target or method could mean to somebody else is refused, and
// nothing of it is forwarded. net/http would send a CONNECT's body unframed: it
// would be read as further requests on a connection that others use.
func TestTargetsThatMeanTwoThings(t *testing.T) {
	smuggled := "GET /v1/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
	chunked := fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(smuggled), smuggled)
	w := newWorld(t, nil)
	for _, c := range []struct {
		line, rest string
		inside     bool // a tunnel only
	}{
		{"CONNECT PRE/v1/models", chunked, true},
		{"CONNECT PRE/v1/models", "\r\n", true},
		{"CONNECT HOST", chunked, true},
		{"CONNECT evil.test:443", "\r\n", true},
		{"GET http://PRE/v1/models", "\r\n", false},
		{"GET https://PRE/v1/models", "\r\n", false},
		{"GET https:PRE/v1/models", "\r\n", false},
		{"GET https:models", "\r\n", false},
		{"GET ftp://HOSTPRE/v1/models", "\r\n", false},
		{"GET ftp://" + w.upHost + "/v1/models", "\r\n", false},
		{"GET s://" + w.upHost + "/", "\r\n", false},
		{"GET https://@" + w.upHost + "/v1/models", "\r\n", false},
		{"GET https://u:p@" + w.upHost + "/v1/models", "\r\n", false},
		{`GET PRE/v1\models`, "\r\n", false},
		{"GET PRE/v1/models#fragment", "\r\n", false},
		{"GET PRE/v1/models?a=b#fragment", "\r\n", false},
		{"GET *", "\r\n", false},
		{"GET PRE//v1/models", "\r\n", false},
		{"GET //HOSTPRE/v1/models", "\r\n", false},
		{"GET PRE/v1/models;/..;/admin", "\r\n", false},
	} {
		for i, y := range w.ways() {
			if c.inside && i == 0 {
				continue
			}
			io.WriteString(y, y.fill(c.line+" HTTP/1.1\r\nHost: HOST\r\n"+c.rest))
			resp, err := http.ReadResponse(bufio.NewReader(y), nil)
			if err != nil {
				t.Errorf("%q, way %d: %v", c.line, i, err)
				continue
			}
			if readAll(t, resp); resp.StatusCode < 400 || resp.StatusCode > 499 {
				t.Errorf("%q, way %d: %s", c.line, i, resp.Status)
			}
		}
	}
	for _, r := range w.requests() {
		t.Errorf("forwarded: %s %s", r.Method, r.RequestURI)
	}
}

// I3: a credential in the query goes, whichever separator its neighbours have.
func TestCredentialsInTheQuery(t *testing.T) {
	w := newWorld(t, nil, withSpec(func(s *spec.Spec) { s.Strip.Query = []string{"key"} }))
	for _, q := range []string{"a=b;key=mine", "a;key=mine;c=d", "key=mine;a=b", ";key=mine", "a=b&c;KEY=mine&d", "a=b;%6bey=mine"} {
		resp, err := w.client().Get(w.url("/openai/v1/models?" + q))
		if err != nil {
			t.Fatal(err)
		}
		readAll(t, resp)
	}
	for _, r := range w.requests() {
		if strings.Contains(r.RequestURI, "mine") || !strings.Contains("a=b a;c=d a=b&c&d", r.URL.RawQuery) {
			t.Errorf("the upstream saw %s", r.RequestURI)
		}
	}
	for in, want := range map[string]string{"a;b": "a;b", "a&b;c&": "a&b;c&", "&&": "&&", "a;key": "a", "key;a": "a", "a&key;b": "a;b", "key&key": "", ";key": ""} {
		if got := stripped(w, in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// A tunnel lives on when a reload changes how its host is spoken to. The port
// does not change with the scheme (I2), although Host leaves it out.
func TestTunnelKeepsItsPortAcrossGenerations(t *testing.T) {
	w := newWorld(t, nil)
	good := w.s.routing.Load()
	defer w.s.routing.Store(good)
	for _, c := range []struct{ port, scheme, want string }{
		{"443", "http", "http://127.0.0.1:443/v1/models"},
		{"80", "https", "https://127.0.0.1:80/v1/models"},
		{"443", "https", "https://127.0.0.1/v1/models"},
	} {
		s, problems := spec.Resolve(spec.Spec{
			Name: "openai", Hosts: []string{"127.0.0.1:" + c.port}, BaseURL: c.scheme + "://127.0.0.1:" + c.port, AllowPlaintext: true,
		}, "openai", nil)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		p, err := provider.New(s)
		if err != nil {
			t.Fatal(err)
		}
		var sent string
		rt, err := NewRouting([]*Target{{Name: "openai", Provider: p, Key: w.key, Forward: true, Transport: tripper(func(r *http.Request) (*http.Response, error) {
			sent = r.URL.String()
			return nil, io.EOF
		})}})
		if err != nil {
			t.Fatal(err)
		}
		w.s.Swap(rt)
		server, client := pipe(t)
		io.WriteString(client, "GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
		client.(*net.TCPConn).CloseWrite()
		newSession(w.s, server, &pinned{host: "127.0.0.1", port: c.port, hostport: "127.0.0.1:" + c.port, header: "127.0.0.1"}).serve()
		if sent != c.want {
			t.Errorf("port %s by %s: sent to %q, want %q", c.port, c.scheme, sent, c.want)
		}
	}
}

type tripper func(*http.Request) (*http.Response, error)

func (f tripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Server names are compared as names are: in any case.
func TestServerNameInAnyCase(t *testing.T) {
	w := newWorld(t, nil, withSpec(func(s *spec.Spec) {
		_, port, _ := net.SplitHostPort(s.Hosts[0])
		s.Hosts, s.BaseURL = []string{"localhost:" + port}, "https://localhost:"+port
	}))
	_, port, _ := net.SplitHostPort(w.upHost)
	for name, ok := range map[string]bool{"LocalHost": true, "localhost": true, "localhost.evil.test": false} {
		c, resp := w.connect("localhost:" + port)
		if resp.StatusCode != 200 {
			t.Fatal(resp.Status)
		}
		err := tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: name}).Handshake()
		if (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A request sent ahead of its answer does not hide that its client leaves.
func TestPipeliningClientThatLeaves(t *testing.T) {
	gone := make(chan struct{}, 1)
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Write([]byte("half"))
		rw.(http.Flusher).Flush()
		<-r.Context().Done()
		gone <- struct{}{}
	}, withKeys(key1, key2))
	for _, y := range w.ways() {
		io.WriteString(y, y.fill(strings.Repeat("GET PRE/v1/x HTTP/1.1\r\nHost: HOST\r\n\r\n", 3)))
		if err := readUntil(y, "half"); err != nil {
			t.Fatal(err)
		}
		y.raw.Close()
		select {
		case <-gone:
		case <-time.After(10 * time.Second):
			t.Fatal("the upstream was not told")
		}
	}
}
