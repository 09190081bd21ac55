package vaulttest

import (
	"context"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestMemoryServerServesKV(t *testing.T) {
	v := Start(t, Options{})
	if n := v.KVPut("secret/app/key", map[string]string{"api_key": "one"}); n != 1 {
		t.Errorf("first version is %d", n)
	}
	if n := v.KVPatch("secret/app/key", map[string]string{"note": "x"}); n != 2 {
		t.Errorf("second version is %d", n)
	}
	data, _ := v.Do("GET", "secret/data/app/key", nil)["data"].(map[string]any)
	if data["api_key"] != "one" || data["note"] != "x" {
		t.Errorf("read %v", data)
	}
	if out := v.CLI("", "kv", "get", "-field=api_key", "secret/app/key"); strings.TrimSpace(out) != "one" {
		t.Errorf("vault kv get printed %q", out)
	}
}

func TestTLSServerNeedsItsRoot(t *testing.T) {
	v := Start(t, Options{TLS: true})
	v.KVPut("secret/app/key", map[string]string{"api_key": "one"})
	if !strings.HasPrefix(v.Address, "https://") || v.CAFile == "" {
		t.Errorf("address %s, root %q", v.Address, v.CAFile)
	}
	if _, err := http.Get(v.Address + "/v1/sys/health"); err == nil {
		t.Error("a client without the root was served")
	}
}

func TestPersistentServerKeepsItsDataOverAnOutage(t *testing.T) {
	v := Start(t, Options{Persistent: true})
	v.KVPut("secret/app/key", map[string]string{"api_key": "one"})
	read := func() (int, error) {
		status, _, err := v.Try(context.Background(), v.RootToken, "GET", "secret/data/app/key", nil)
		return status, err
	}

	v.Seal()
	if status, err := read(); err != nil || status != 503 {
		t.Errorf("sealed: status %d, error %v", status, err)
	}
	v.Unseal()
	if status, err := read(); err != nil || status != 200 {
		t.Errorf("unsealed: status %d, error %v", status, err)
	}

	for _, end := range []func(){v.Stop, v.Kill} {
		end()
		if _, err := read(); err == nil {
			t.Error("a stopped server answered")
		}
		v.Run()
		if status, err := read(); err != nil || status != 200 {
			t.Errorf("run again: status %d, error %v", status, err)
		}
	}
}

func TestTokensEndAsTold(t *testing.T) {
	v := Start(t, Options{})
	v.Policy("reader", `path "secret/data/*" { capabilities = ["read"] }`)
	v.KVPut("secret/app/key", map[string]string{"api_key": "one"})
	status := func(token, path string) int {
		t.Helper()
		status, _, err := v.Try(context.Background(), token, "GET", path, nil)
		if err != nil {
			t.Fatal(err)
		}
		return status
	}

	token := v.Token(TokenOptions{Policies: []string{"reader"}, NoDefault: true, TTL: time.Hour})
	if s := status(token, "secret/data/app/key"); s != 200 {
		t.Errorf("its own path: %d", s)
	}
	if s := status(token, "auth/token/lookup-self"); s != 403 {
		t.Errorf("lookup-self without the default policy: %d", s)
	}
	v.RevokeToken(token)
	if s := status(token, "secret/data/app/key"); s != 403 {
		t.Errorf("revoked: %d", s)
	}
}

func TestServerEndsWithItsTest(t *testing.T) {
	var pid int
	t.Run("inner", func(t *testing.T) { pid = Start(t, Options{}).Pid() })
	if pid == 0 {
		t.Fatal("no process id")
	}
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("process %d is still there: %v", pid, err)
	}
}

func TestFrontCountsAndIntercepts(t *testing.T) {
	v := Start(t, Options{})
	f := NewFront(t, v)
	get := func() int {
		t.Helper()
		resp, err := http.Get(f.URL + "/v1/sys/health?x=1")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if status := get(); status != 200 {
		t.Errorf("passed on: %d", status)
	}
	f.Intercept(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusTeapot)
		return true
	})
	if status := get(); status != http.StatusTeapot {
		t.Errorf("intercepted: %d", status)
	}
	if n := f.Count("sys/health"); n != 2 || f.Requests()[0].Query != "x=1" {
		t.Errorf("saw %d: %+v", n, f.Requests())
	}
	f.Reset()
	if n := f.Count(""); n != 0 {
		t.Errorf("%d left after Reset", n)
	}
}
