package proxy

import (
	"bufio"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/keyring"
)

// matched is a request that has been matched and has not picked a version yet.
func (w *world) matched(t *testing.T, via string, to *place) (x *exchange, answer func() *http.Response) {
	t.Helper()
	server, client := pipe(t)
	c := newSession(w.s, server, nil)
	io.WriteString(client, "GET /v1/models HTTP/1.1\r\nHost: "+w.upHost+"\r\n\r\n")
	if !c.readHead() || c.body.begin() != nil {
		t.Fatal("no request")
	}
	c.lent = borrow(smallBuf)
	c.out = (*c.lent)[:0]
	x = c.open(time.Now(), via)
	x.target, _ = parseTarget(c.req.Target)
	x.path, x.t, x.to = x.target.path, to.t, to
	return x, func() *http.Response {
		t.Helper()
		defer c.end()
		defer server.Close()
		resp, err := http.ReadResponse(bufio.NewReader(client), nil)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
}

// A request is matched, then the generation that it was matched in is replaced
// and lets go of its keys, then the request picks a version.
func TestRequestOvertakenByAGeneration(t *testing.T) {
	for _, via := range []string{viaRoute, viaConnect, viaAbsolute} {
		t.Run(via, func(t *testing.T) {
			w := newWorld(t, nil)
			old := w.s.routing.Load()
			defer w.closeIdle(old)
			overtaken, first := w.matched(t, via, old.hosts[w.upHost])
			moved, second := w.matched(t, via, old.hosts[w.upHost])
			w.key.Install(nil)

			w.key = keyring.NewKey("openai")
			w.install(key2)
			w.s.Swap(w.routing(worldConfig{}))
			overtaken.serve()
			if resp := first(); resp.StatusCode != http.StatusOK || w.only().Header.Get("Authorization") != "Bearer "+key2 {
				t.Errorf("status %d", resp.StatusCode)
			}

			// A generation without this provider has no key for the request.
			none, err := NewRouting(nil)
			if err != nil {
				t.Fatal(err)
			}
			now := w.s.routing.Load()
			w.s.Swap(none)
			moved.serve()
			if resp := second(); resp.StatusCode != http.StatusServiceUnavailable || len(w.requests()) != 1 {
				t.Errorf("without a match: status %d, %d requests sent", resp.StatusCode, len(w.requests()))
			}
			w.s.Swap(now) // whose connections are closed with the test
		})
	}
}

// A key never follows a request to a host that its new generation does not list.
func TestOvertakenRequestKeepsToListedHosts(t *testing.T) {
	w := newWorld(t, nil)
	old := w.s.routing.Load()
	defer w.closeIdle(old)
	x, answer := w.matched(t, viaConnect, newPlace(old.routes["openai"], "https", "elsewhere.example", "443"))
	w.key.Install(nil)
	w.key = keyring.NewKey("openai")
	w.install(key2)
	w.s.Swap(w.routing(worldConfig{}))
	x.serve()
	if resp := answer(); resp.StatusCode != http.StatusServiceUnavailable || len(w.requests()) != 0 {
		t.Errorf("status %d, %d requests sent", resp.StatusCode, len(w.requests()))
	}
}
