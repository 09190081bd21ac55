package proxy

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/postern-proxy/postern/agent/keyring"
)

// A request is matched, then the generation that it was matched in is replaced
// and lets go of its keys, then the request picks a version.
func TestRequestOvertakenByAGeneration(t *testing.T) {
	for _, via := range []string{viaRoute, viaConnect, viaAbsolute} {
		t.Run(via, func(t *testing.T) {
			w := newWorld(t, nil)
			old := w.s.routing.Load()
			begin := func() (*exchange, *httptest.ResponseRecorder) {
				answer := httptest.NewRecorder()
				x := w.s.begin(old, answer, httptest.NewRequest("GET", "https://"+w.upHost+"/v1/models", nil), via)
				x.t = old.routes["openai"]
				return x, answer
			}
			overtaken, first := begin()
			moved, second := begin()
			w.key.Install(nil)

			w.key = keyring.NewKey("openai")
			w.install(key2)
			w.s.Swap(w.routing(worldConfig{}))
			overtaken.serve("/v1/models")
			if first.Code != http.StatusOK || w.only().Header.Get("Authorization") != "Bearer "+key2 {
				t.Errorf("status %d, %s", first.Code, first.Body)
			}

			// A generation without this provider has no key for the request.
			none, err := NewRouting(nil)
			if err != nil {
				t.Fatal(err)
			}
			now := w.s.routing.Load()
			w.s.Swap(none)
			moved.serve("/v1/models")
			if second.Code != http.StatusServiceUnavailable || len(w.requests()) != 1 {
				t.Errorf("without a match: status %d, %d requests sent", second.Code, len(w.requests()))
			}
			w.s.Swap(now) // whose connections are closed with the test
		})
	}
}

// A key never follows a request to a host that its new generation does not list.
func TestOvertakenRequestKeepsToListedHosts(t *testing.T) {
	w := newWorld(t, nil)
	old := w.s.routing.Load()
	answer := httptest.NewRecorder()
	x := w.s.begin(old, answer, httptest.NewRequest("GET", "https://elsewhere.example/v1/models", nil), viaConnect)
	x.t = old.routes["openai"]
	w.key.Install(nil)
	w.key = keyring.NewKey("openai")
	w.install(key2)
	w.s.Swap(w.routing(worldConfig{}))
	x.serve("/v1/models")
	if answer.Code != http.StatusServiceUnavailable || len(w.requests()) != 0 {
		t.Errorf("status %d, %d requests sent", answer.Code, len(w.requests()))
	}
}
