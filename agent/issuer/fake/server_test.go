package fake

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const admin = "sk-admin-0123456789"

func start(t *testing.T, o Options) (*Server, *http.Client) {
	t.Helper()
	if o.Admin == "" {
		o.Admin = admin
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	transport := s.Transport()
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, &http.Client{Transport: transport}
}

// ask sends a request and reads the answer's JSON.
func ask(t *testing.T, c *http.Client, method, u, body string, header ...string) (*http.Response, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, u, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var out map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		t.Fatalf("%s %s: %v", method, u, err)
	}
	return resp, out
}

// at is a member of nested objects, "" if it is not there.
func at(m map[string]any, path string) any {
	var v any = m
	for name := range strings.SplitSeq(path, ".") {
		o, ok := v.(map[string]any)
		if !ok {
			return ""
		}
		v = o[name]
	}
	return v
}

const auth, withAdmin = "Authorization", "Bearer " + admin

func TestOpenAI(t *testing.T) {
	s, c := start(t, Options{Kind: "openai", PageSize: 2})
	base := "https://api.openai.com/v1/organization/projects/proj_test/service_accounts"
	resp, made := ask(t, c, "POST", base, `{"name":"Production App"}`, auth, withAdmin)
	key, _ := at(made, "api_key.value").(string)
	id, _ := made["id"].(string)
	if resp.StatusCode != 200 || made["object"] != "organization.project.service_account" || !strings.HasPrefix(key, "sk-svcacct-") || !strings.HasPrefix(id, "svc_acct_") ||
		resp.Header.Get("X-Ratelimit-Limit-Requests") == "" || resp.Header.Get("X-Request-Id") == "" {
		t.Errorf("%v %v", resp, made)
	}
	for _, name := range []string{"b", "c"} {
		s.Add(Key{Name: name})
	}
	_, page := ask(t, c, "GET", base+"?limit=100", "", auth, withAdmin)
	if data := page["data"].([]any); len(data) != 2 || page["has_more"] != true || page["first_id"] != id || at(data[0].(map[string]any), "api_key") != nil {
		t.Errorf("first page %v", page)
	}
	_, page = ask(t, c, "GET", base+"?limit=100&after="+url.QueryEscape(page["last_id"].(string)), "", auth, withAdmin)
	if data := page["data"].([]any); len(data) != 1 || page["has_more"] != false {
		t.Errorf("last page %v", page)
	}
	_, gone := ask(t, c, "DELETE", base+"/"+id, "", auth, withAdmin)
	if gone["deleted"] != true || gone["object"] != "organization.project.service_account.deleted" {
		t.Errorf("%v", gone)
	}
	for _, bad := range []struct {
		method, url, body, token string
		status                   int
		code                     any
	}{
		{"DELETE", base + "/" + id, "", withAdmin, 404, "not_found"},
		{"POST", base, `{}`, withAdmin, 400, "missing_required_parameter"},
		{"POST", base, `{"name":"x"}`, "Bearer sk-wrong-0123456789", 401, "invalid_api_key"},
		{"GET", base + "?limit=101", "", withAdmin, 400, "invalid_value"},
		{"GET", "https://api.openai.com/v1/organization/projects/other/service_accounts", "", withAdmin, 404, "not_found"},
		{"PUT", base, "", withAdmin, 405, nil},
	} {
		resp, out := ask(t, c, bad.method, bad.url, bad.body, auth, bad.token)
		if resp.StatusCode != bad.status || at(out, "error.code") != bad.code || at(out, "error.type") != "invalid_request_error" {
			t.Errorf("%s %s: %d %v", bad.method, bad.url, resp.StatusCode, out)
		}
	}
}

func TestOpenRouter(t *testing.T) {
	s, c := start(t, Options{Kind: "openrouter", PageSize: 2})
	base := "https://openrouter.ai/api/v1/keys"
	resp, made := ask(t, c, "POST", base, `{"name":"a"}`, auth, withAdmin)
	hash, _ := at(made, "data.hash").(string)
	if key, _ := made["key"].(string); resp.StatusCode != 201 || len(hash) != 64 || !strings.HasPrefix(key, "sk-or-v1-") || at(made, "data.name") != "a" || at(made, "data.label") == key {
		t.Errorf("%d %v", resp.StatusCode, made)
	}
	s.Add(Key{Name: "b"})
	s.Add(Key{Name: "c"})
	var names []string
	for _, offset := range []string{"", "?offset=2", "?offset=4"} {
		_, page := ask(t, c, "GET", base+offset, "", auth, withAdmin)
		for _, k := range page["data"].([]any) {
			names = append(names, k.(map[string]any)["name"].(string))
		}
	}
	if !slices.Equal(names, []string{"c", "b", "a"}) {
		t.Errorf("listed %v", names)
	}
	if _, out := ask(t, c, "DELETE", base+"/"+hash, "", auth, withAdmin); out["deleted"] != true {
		t.Errorf("%v", out)
	}
	for _, bad := range []struct {
		method, url, body, token string
		status                   int
	}{
		{"DELETE", base + "/" + hash, "", withAdmin, 404},
		{"POST", base, `[]`, withAdmin, 400},
		{"GET", base, "", "Bearer x", 401},
		{"GET", base + "?offset=x", "", withAdmin, 400},
		{"PUT", base, "", withAdmin, 405},
		{"GET", "https://openrouter.ai/api/v1/models", "", withAdmin, 404},
	} {
		resp, out := ask(t, c, bad.method, bad.url, bad.body, auth, bad.token)
		if resp.StatusCode != bad.status || at(out, "error.code") != float64(bad.status) {
			t.Errorf("%s %s: %d %v", bad.method, bad.url, resp.StatusCode, out)
		}
	}
}

func TestAnthropic(t *testing.T) {
	s, c := start(t, Options{Kind: "anthropic"})
	base := "https://api.anthropic.com/v1/organizations/api_keys/"
	k := s.Add(Key{ID: "apikey_1", Name: "prod"})
	if !strings.HasPrefix(k.Value, "sk-ant-api03-") {
		t.Errorf("%+v", k)
	}
	for range 2 {
		resp, out := ask(t, c, "POST", base+"apikey_1", `{"status":"inactive"}`, "X-Api-Key", admin, "Anthropic-Version", "2023-06-01")
		if resp.StatusCode != 200 || out["status"] != "inactive" || out["type"] != "api_key" || out["id"] != "apikey_1" || out["partial_key_hint"] == k.Value {
			t.Errorf("%d %v", resp.StatusCode, out)
		}
	}
	for _, bad := range []struct {
		url, body, key, version string
		status                  int
		kind                    string
	}{
		{base + "apikey_2", `{"status":"inactive"}`, admin, "v", 404, "not_found_error"},
		{base + "apikey_1", `{"status":"gone"}`, admin, "v", 400, "invalid_request_error"},
		{base + "apikey_1", `{"status":"inactive"}`, "x", "v", 401, "authentication_error"},
		{base + "apikey_1", `{"status":"inactive"}`, admin, "", 400, "invalid_request_error"},
		{"https://api.anthropic.com/v1/models", `{}`, admin, "v", 404, "not_found_error"},
	} {
		resp, out := ask(t, c, "POST", bad.url, bad.body, "X-Api-Key", bad.key, "Anthropic-Version", bad.version)
		if resp.StatusCode != bad.status || at(out, "error.type") != bad.kind || out["type"] != "error" {
			t.Errorf("%s: %d %v", bad.url, resp.StatusCode, out)
		}
	}
}

func TestAzure(t *testing.T) {
	issued := map[string]string{}
	s, c := start(t, Options{Kind: "azure", OnIssue: func(id, key string) { issued[id] = key }})
	one, _ := s.Find("key1")
	two, _ := s.Find("key2")
	if issued["key1"] != one.Value || issued["key2"] != two.Value || one.Value == two.Value {
		t.Errorf("issued %v", issued)
	}
	login := func(id, key, grant, scope string) (*http.Response, map[string]any) {
		form := url.Values{"client_id": {id}, "client_secret": {key}, "grant_type": {grant}, "scope": {scope}}
		return ask(t, c, "POST", "https://login.microsoftonline.com/tenant-test/oauth2/v2.0/token", form.Encode(), "Content-Type", "application/x-www-form-urlencoded")
	}
	const grant, scope = "client_credentials", "https://management.azure.com/.default"
	_, out := login("client-test", admin, grant, scope)
	token, _ := out["access_token"].(string)
	if token == "" || out["token_type"] != "Bearer" {
		t.Fatalf("%v", out)
	}
	for code, args := range map[string][4]string{
		"invalid_client": {"client-test", "x", grant, scope}, "unauthorized_client": {"x", admin, grant, scope},
		"unsupported_grant_type": {"client-test", admin, "password", scope}, "invalid_scope": {"client-test", admin, grant, "x"},
	} {
		resp, out := login(args[0], args[1], args[2], args[3])
		if resp.StatusCode < 400 || out["error"] != code || out["access_token"] != nil {
			t.Errorf("%s: %d %v", code, resp.StatusCode, out)
		}
	}
	account := "https://management.azure.com/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/rg-test/providers/Microsoft.CognitiveServices/accounts/acme/"
	_, keys := ask(t, c, "POST", account+"regenerateKey?api-version=2023-05-01", `{"keyName":"Key2"}`, auth, "Bearer "+token)
	if keys["key1"] != one.Value || keys["key2"] == two.Value || keys["key2"] != issued["key2"] {
		t.Errorf("%v", keys)
	}
	if k, _ := s.Find(two.Value); !k.Revoked {
		t.Error("the old key2 lives on")
	}
	if _, listed := ask(t, c, "POST", account+"listKeys?api-version=2023-05-01", "", auth, "Bearer "+token); listed["key2"] != keys["key2"] || listed["key1"] != one.Value {
		t.Errorf("%v", listed)
	}
	for _, bad := range []struct {
		url, body, token string
		status           int
		code             string
	}{
		{account + "regenerateKey?api-version=2023-05-01", `{"keyName":"Key3"}`, token, 400, "InvalidKeyName"},
		{account + "regenerateKey", `{"keyName":"Key1"}`, token, 400, "MissingApiVersionParameter"},
		{account + "listKeys?api-version=1", "", "x", 401, "InvalidAuthenticationToken"},
		{account + "other?api-version=1", "", token, 404, "ResourceNotFound"},
		{strings.Replace(account, "acme", "b", 1) + "listKeys?api-version=1", "", token, 404, "ResourceNotFound"},
	} {
		resp, out := ask(t, c, "POST", bad.url, bad.body, auth, "Bearer "+bad.token)
		if resp.StatusCode != bad.status || at(out, "error.code") != bad.code {
			t.Errorf("%s: %d %v", bad.url, resp.StatusCode, out)
		}
	}
}

// Failures are for the requests that they name, once each.
func TestFailures(t *testing.T) {
	var ended []string
	s, c := start(t, Options{Kind: "openrouter", OnRevoke: func(id, _ string) { ended = append(ended, id) }})
	base := "https://openrouter.ai/api/v1/keys"
	s.Fail(
		Failure{Method: "DELETE", Status: 503},
		Failure{Path: "/nowhere", Status: 500},
		Failure{Method: "POST", Status: 429, Header: http.Header{"retry-after": {"3"}}, Code: "slow_down"},
		Failure{Method: "POST", Body: `{"odd":1}`},
	)
	if resp, out := ask(t, c, "GET", base, "", auth, withAdmin); resp.StatusCode != 200 {
		t.Errorf("a failure for others: %v", out)
	}
	if resp, out := ask(t, c, "POST", base, `{"name":"a"}`, auth, withAdmin); resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "3" || at(out, "error.code") != "slow_down" {
		t.Errorf("%d %v", resp.StatusCode, out)
	}
	if resp, out := ask(t, c, "POST", base, `{"name":"a"}`, auth, withAdmin); resp.StatusCode != 200 || out["odd"] != 1.0 || len(s.Keys()) != 0 {
		t.Errorf("%d %v", resp.StatusCode, out)
	}
	if resp, _ := ask(t, c, "DELETE", base+"/x", "", auth, withAdmin); resp.StatusCode != 503 {
		t.Errorf("%d", resp.StatusCode)
	}
	// Lost: done, and nobody is told.
	s.Fail(Failure{Lose: true})
	req, _ := http.NewRequestWithContext(t.Context(), "POST", base, strings.NewReader(`{"name":"lost"}`))
	req.Header.Set(auth, withAdmin)
	if resp, err := c.Do(req); err == nil {
		resp.Body.Close()
		t.Error("an answer came")
	}
	if live := s.Live(); len(live) != 1 || live[0].Name != "lost" {
		t.Errorf("live %+v", live)
	}
	if r := s.Requests(); r[len(r)-1].Status != 0 || r[1].Status != 429 || r[1].Method != "POST" || r[1].Path != "/api/v1/keys" {
		t.Errorf("%+v", r)
	}
	// What is added under an id that is taken replaces it.
	k := s.Live()[0]
	s.Add(Key{ID: k.ID, Name: "again"})
	if live := s.Live(); len(live) != 1 || live[0].Name != "again" || !slices.Equal(ended, []string{k.ID}) {
		t.Errorf("live %+v, ended %v", live, ended)
	}
}

func TestSlowAnswersEndWithTheirClientOrTheServer(t *testing.T) {
	arrived := make(chan struct{}, 3)
	s, c := start(t, Options{Kind: "openrouter", Intercept: func(http.ResponseWriter, *http.Request) bool {
		arrived <- struct{}{}
		return false
	}})
	s.Fail(Failure{Delay: time.Hour}, Failure{Delay: time.Millisecond}, Failure{Delay: time.Hour})
	get := func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, "GET", "https://openrouter.ai/api/v1/keys", nil)
		if err != nil {
			return err
		}
		req.Header.Set(auth, withAdmin)
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := get(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if err := get(t.Context()); err != nil {
		t.Error(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := get(t.Context()); err == nil {
			t.Error("an answer came from a server that is closed")
		}
	})
	for range 3 {
		<-arrived
	}
	s.Close()
	wg.Wait()
}

func TestNewAndIntercept(t *testing.T) {
	if _, err := New(Options{Kind: "acme"}); err == nil || !strings.Contains(err.Error(), "acme") {
		t.Errorf("%v", err)
	}
	if _, err := New(Options{Kind: "openai", Addr: "256.0.0.1:1"}); err == nil {
		t.Error("an address that is none")
	}
	s, c := start(t, Options{Kind: "openai", Intercept: func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(http.StatusTeapot)
		w.Write([]byte("{}"))
		return true
	}})
	if resp, _ := ask(t, c, "GET", s.URL()+"/x", ""); resp.StatusCode != http.StatusTeapot || s.Requests()[0].Status != http.StatusTeapot {
		t.Errorf("%+v", s.Requests())
	}
	if !strings.Contains(string(s.CAPEM()), "BEGIN CERTIFICATE") || !strings.HasSuffix(s.URL(), s.Addr()[strings.LastIndex(s.Addr(), ":"):]) {
		t.Errorf("%s %s", s.URL(), s.Addr())
	}
}

// Many at once: each key is issued once and ended once.
func TestConcurrent(t *testing.T) {
	var mu sync.Mutex
	issued, ended := map[string]int{}, map[string]int{}
	count := func(m map[string]int) func(id, key string) {
		return func(id, _ string) { mu.Lock(); defer mu.Unlock(); m[id]++ }
	}
	s, c := start(t, Options{Kind: "openai", OnIssue: count(issued), OnRevoke: count(ended)})
	base := s.URL() + "/v1/organization/projects/proj_test/service_accounts"
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				req, _ := http.NewRequestWithContext(t.Context(), "POST", base, strings.NewReader(`{"name":"x"}`))
				req.Header.Set(auth, withAdmin)
				resp, err := c.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
				for _, k := range s.Live() {
					req, _ := http.NewRequestWithContext(t.Context(), "DELETE", base+"/"+k.ID, nil)
					req.Header.Set(auth, withAdmin)
					if resp, err := c.Do(req); err == nil {
						resp.Body.Close()
					}
				}
			}
		})
	}
	wg.Wait()
	if len(issued) != 40 || len(s.Live()) != 0 {
		t.Errorf("%d issued, %d live", len(issued), len(s.Live()))
	}
	for id, n := range ended {
		if n != 1 || issued[id] != 1 {
			t.Errorf("%s: issued %d times, ended %d times", id, issued[id], n)
		}
	}
}
