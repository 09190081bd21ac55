package e2e_test

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// The API, asked by somebody who means no good: nothing that is wrong is taken,
// nothing that is asked is repeated, and it goes on serving.
func TestServerUnderAttack(t *testing.T) {
	w := newWorld(t)
	st := w.Vault(vaulttest.Options{})
	live := w.Key()
	st.Put("openai", live)
	p := w.Provider("openai", fake.Options{Keys: []string{live}})
	op := w.console(st, w.Config(st, p), "security", "devops")
	m := w.server(st, op, p)
	token := w.Secret(op.token())
	key := w.Key()
	id := "staging." + e2etest.ProxyID + ".openai"
	for name, c := range wrongRequests(token, key, id) {
		status, body := m.ask(token, c.method, c.path, c.body, c.header...)
		if status != c.want {
			t.Errorf("%s: %d, want %d: %.300s", name, status, c.want, body)
		}
	}
	w.raw(t, m, token)
	if status, body := m.ask(token, "GET", "/v1/provider-keys/"+id, ""); status != http.StatusOK || !bytes.Contains(body, []byte(`"active"`)) {
		t.Errorf("the key after it all: %d %s", status, body)
	}
	if bytes.Contains(everything(t, st, "postern/"), []byte("px_a")) {
		t.Error("something was created")
	}
	w.Clean("what the store holds beside keys", everything(t, st, "postern/"))

	// An Idempotency-Key that comes again with another body changes nothing.
	next, third := w.Key(), w.Key()
	p.Allow(next)
	p.Allow(third)
	var first keys.Rotation
	for i, k := range []string{next, third} {
		status, body := m.ask(token, "POST", "/v1/provider-keys/"+id+"/rotate", fmt.Sprintf(`{"api_key":%q,"grace":"1s"}`, k), "Idempotency-Key", "once")
		var r keys.Rotation
		if err := json.Unmarshal(body, &r); status != http.StatusAccepted || err != nil || r.To != 2 {
			t.Errorf("%d %s", status, body)
		}
		if i == 0 {
			first = r
		} else if !r.RequestedAt.Equal(first.RequestedAt) {
			t.Errorf("another rotation began: %s", body)
		}
	}
	if searchable(t, m.cmd.Process.Pid) {
		noneOf(t, m.cmd.Process.Pid, []string{next, third}, soon)
		noneOf(t, m.cmd.Process.Pid, []string{token}, soon, inHeap) // a connection to Vault keeps what it sent last until it sends more
	}
}

// wrong is a request, and the status that it has to be answered with.
type wrong struct {
	method, path, body string
	header             []string
	want               int
}

// wrongRequests are what somebody might try who has a token, a new key and the id of another one.
func wrongRequests(token, key, id string) map[string]wrong {
	create := fmt.Sprintf(`{"provider":"acme","api_key":%q,"proxy_id":"px_a"}`, key)
	cursor := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	return map[string]wrong{
		"a token in the query":              {"GET", "/v1/provider-keys?token=" + token, "", []string{"Authorization", ""}, 400},
		"a token in another header":         {"GET", "/v1/provider-keys", "", []string{"Authorization", "", "X-Vault-Token", token}, 401},
		"another scheme":                    {"GET", "/v1/provider-keys", "", []string{"Authorization", "Basic " + token}, 401},
		"a token twice in one header":       {"GET", "/v1/provider-keys", "", []string{"Authorization", "Bearer " + token + ", Bearer " + token}, 401},
		"an encoded slash":                  {"GET", "/v1/provider-keys/staging." + e2etest.ProxyID + "%2f..%2fopenai", "", nil, 404},
		"encoded dots":                      {"GET", "/v1/provider-keys/%2e%2e%2f%2e%2e", "", nil, 404},
		"dots":                              {"GET", "/v1/provider-keys/../audit", "", nil, 404},
		"a double slash":                    {"GET", "/v1//audit", "", nil, 404},
		"another environment":               {"GET", "/v1/provider-keys/prod." + e2etest.ProxyID + ".openai", "", nil, 404},
		"a key as an id":                    {"GET", "/v1/provider-keys/" + key, "", nil, 404},
		"an id with a wildcard":             {"GET", "/v1/provider-keys/staging.+.openai", "", nil, 404},
		"an id of the record":               {"DELETE", "/v1/provider-keys/staging.px_x.." + "%2f%2e%2e", "", nil, 404},
		"another wire format":               {"POST", "/v1/provider-keys", "provider=acme&api_key=" + key, []string{"Content-Type", "application/x-www-form-urlencoded"}, 415},
		"text":                              {"POST", "/v1/provider-keys", create, []string{"Content-Type", "text/plain"}, 415},
		"compressed":                        {"POST", "/v1/provider-keys", create, []string{"Content-Encoding", "gzip"}, 415},
		"a member twice":                    {"POST", "/v1/provider-keys", `{"proxy_id":"px_b",` + create[1:], nil, 400},
		"a member in another case":          {"POST", "/v1/provider-keys", strings.Replace(create, `"proxy_id"`, `"Proxy_ID"`, 1), nil, 400},
		"a member escaped":                  {"POST", "/v1/provider-keys", strings.Replace(create, `"proxy_id"`, `"proxy\u005fid":"px_c","proxy_id"`, 1), nil, 400},
		"deep":                              {"POST", "/v1/provider-keys", `{"provider":` + strings.Repeat("[", 50000) + strings.Repeat("]", 50000) + `}`, nil, 400},
		"a key as a member":                 {"POST", "/v1/provider-keys", fmt.Sprintf(`{%q:1}`, key), nil, 400},
		"a key as the provider":             {"POST", "/v1/provider-keys", fmt.Sprintf(`{"provider":%q,"api_key":%q,"proxy_id":"px_a"}`, key, key), nil, 400},
		"a key as the label":                {"POST", "/v1/provider-keys", fmt.Sprintf(`{"provider":"acme","label":%q,"api_key":%q,"proxy_id":"px_a"}`, key, key), nil, 400},
		"a token as the label":              {"POST", "/v1/provider-keys", fmt.Sprintf(`{"provider":"acme","label":%q,"api_key":%q,"proxy_id":"px_a"}`, "hvs."+strings.Repeat("Ab3", 20), key), nil, 400},
		"a key as the reason":               {"POST", "/v1/provider-keys/" + id + "/revoke", fmt.Sprintf(`{"reason":%q}`, key), nil, 400},
		"a key as the reason, in the query": {"DELETE", "/v1/provider-keys/" + id + "?reason=" + key, "", nil, 400},
		"an escape sequence as the reason":  {"POST", "/v1/provider-keys/" + id + "/revoke", `{"reason":"\u001b[2J"}`, nil, 400},
		"a key as the Idempotency-Key":      {"POST", "/v1/provider-keys/" + id + "/rotate", fmt.Sprintf(`{"api_key":%q}`, key), []string{"Idempotency-Key", key}, 400},
		"a long body":                       {"POST", "/v1/provider-keys", `{"provider":"` + strings.Repeat("x", 1<<20) + `"}`, nil, 413},
		"a body where none belongs":         {"GET", "/v1/provider-keys", "{}", nil, 400},
		"a forged cursor":                   {"GET", "/v1/provider-keys?cursor=" + cursor("listProviderKeys:../../audit/staging/1"), "", nil, 200},
		"a cursor of another operation":     {"GET", "/v1/provider-keys?cursor=" + cursor("listAudit:7"), "", nil, 400},
		"a cursor that is no number":        {"GET", "/v1/audit?cursor=" + cursor("listAudit:-7"), "", nil, 400},
		"a cursor at the end of numbers":    {"GET", "/v1/audit?cursor=" + cursor("listAudit:18446744073709551615"), "", nil, 200},
		"a proxy id that is a path":         {"GET", "/v1/provider-keys?proxy_id=../audit", "", nil, 400},
		"a limit below zero":                {"GET", "/v1/audit?limit=-1", "", nil, 400},
		"a ramp that is no time":            {"POST", "/v1/provider-keys/" + id + "/rotate", fmt.Sprintf(`{"api_key":%q,"ramp":[{"weight":1,"for":"-1s"}]}`, key), nil, 400},
		"a ramp of a thousand steps":        {"POST", "/v1/provider-keys/" + id + "/rotate", fmt.Sprintf(`{"api_key":%q,"ramp":[%s{"weight":1,"for":"1s"}]}`, key, strings.Repeat(`{"weight":1,"for":"1s"},`, 999)), nil, 400},
		"a method of another kind":          {"PATCH", "/v1/provider-keys/" + id, "", nil, 405},
		"a page of another site":            {"GET", "/v1/provider-keys", "", []string{"Origin", "https://evil.example"}, 403},
		"a method in a header":              {"GET", "/v1/provider-keys/" + id, "", []string{"X-HTTP-Method-Override", "DELETE"}, 200},
	}
}

// raw sends what no HTTP library sends.
func (w *world) raw(t *testing.T, m *manager, token string) {
	t.Helper()
	address := strings.TrimPrefix(m.url, "https://")
	roots := m.http.Transport.(*http.Transport).TLSClientConfig
	for name, c := range map[string]struct {
		send, want string
	}{
		"HTTP/1.0":               {"GET /livez HTTP/1.0\r\n\r\n", "200"},
		"huge headers":           {"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 200<<10) + "\r\n\r\n", "431"},
		"two lengths":            {"POST /v1/provider-keys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + "\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", "400"},
		"a length and chunks":    {"POST /v1/provider-keys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + "\r\nContent-Type: application/json\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "400"},
		"two tokens":             {"GET /v1/provider-keys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer hvs.wrong\r\nAuthorization: Bearer " + token + "\r\n\r\n", "401"},
		"no host":                {"GET /v1/provider-keys HTTP/1.1\r\n\r\n", "400"},
		"an absolute form":       {"GET https://x/livez HTTP/1.1\r\nHost: x\r\n\r\n", "200"},
		"CONNECT":                {"CONNECT vault:8200 HTTP/1.1\r\nHost: vault:8200\r\n\r\n", "404"},
		"a body that never ends": {"POST /v1/provider-keys HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{", "401"},
	} {
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", address, roots)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		conn.Write([]byte(c.send))
		buf := make([]byte, 4096)
		n, err := conn.Read(buf)
		conn.Close()
		if err != nil && !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		line, _, _ := strings.Cut(string(buf[:n]), "\r\n")
		if !strings.Contains(line, " "+c.want) {
			t.Errorf("%s: %q, want %s", name, line, c.want)
		}
		w.Clean(name, buf[:n])
	}
	plain := &http.Client{Timeout: 5 * time.Second}
	req, err := http.NewRequest("GET", "http://"+address+"/v1/provider-keys", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if resp, err := plain.Do(req); err == nil {
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			t.Errorf("in the clear: %d %s", resp.StatusCode, b)
		}
		w.Clean("in the clear", b)
	}
}
