package server

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/store"
)

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

const openaiID = "prod.px_acme_prod.openai"

// The body of the product's first document works as it stands.
func TestTheSeedsRequest(t *testing.T) {
	r := newRig(t)
	got := r.want(http.StatusCreated, ask{method: "POST", path: "/v1/provider-keys", body: seeded("")})
	if loc := got.header.Get("Location"); loc != "/v1/provider-keys/"+openaiID {
		t.Errorf("Location %q", loc)
	}
	key := got.json(t)
	if key["id"] != openaiID || key["provider"] != "openai" || key["label"] != "OpenAI Production" || key["proxy_id"] != "px_acme_prod" {
		t.Errorf("%s", got.body)
	}
	if w := fmt.Sprint(key["warnings"]); !strings.Contains(w, "prod-<service>") {
		t.Errorf("the label's rule is not told: %s", got.body)
	}
	shown := r.want(http.StatusOK, ask{method: "GET", path: got.header.Get("Location")})
	if v := shown.json(t)["versions"].([]any); len(v) != 1 {
		t.Errorf("%s", shown.body)
	}
	sec, err := r.store.Get(t.Context(), "provider-keys/prod/px_acme_prod/openai", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer sec.Destroy()
	sec.Fields["api_key"].Use(func(b []byte) {
		if string(b) != seedKey {
			t.Error("what was stored is not what was sent")
		}
	})
	for _, e := range r.entries() {
		if e.Actor != "operator" || e.Source != "127.0.0.1" {
			t.Errorf("%+v", e)
		}
	}
}

func TestAKeyThatExists(t *testing.T) {
	r := newRig(t)
	r.add("openai", seedKey)
	p := r.refused(codeExists, ask{method: "POST", path: "/v1/provider-keys", body: seeded("")})
	if !strings.Contains(p["detail"].(string), "/v1/provider-keys/"+openaiID+"/rotate") {
		t.Errorf("no hint to rotate: %v", p)
	}
	md, err := r.store.Metadata(t.Context(), "provider-keys/prod/px_acme_prod/openai")
	if err != nil || md.Current != 1 || md.Custom["label"] != "prod-openai" {
		t.Errorf("it was changed: %+v, %v", md, err)
	}
}

// Two who create a key at the same time: one is told, and neither replaces the other's.
func TestTwoCreations(t *testing.T) {
	r := newRig(t)
	first := true
	r.intercept(func(ctx context.Context, method, path string) error {
		if method == "put" && strings.HasPrefix(path, "provider-keys/") && first {
			first = false
			r.intercept(nil)
			r.add("openai", nextKey)
		}
		return nil
	})
	r.refused(codeConflict, ask{method: "POST", path: "/v1/provider-keys", body: seeded("")})
	if md, err := r.store.Metadata(t.Context(), "provider-keys/prod/px_acme_prod/openai"); err != nil || md.Current != 1 {
		t.Errorf("%+v, %v", md, err)
	}
}

// After all versions were revoked, a key may be stored again.
func TestDeleteAndCreateAgain(t *testing.T) {
	r := newRig(t)
	r.add("openai", seedKey)
	got := r.want(http.StatusOK, ask{method: "DELETE", path: "/v1/provider-keys/" + openaiID + "?reason=leaked"})
	if v := got.json(t); fmt.Sprint(v["versions"]) != "[1]" || fmt.Sprint(v["destroyed"]) != "[1]" || v["remaining"] != 0. {
		t.Errorf("%s", got.body)
	}
	shown := r.want(http.StatusOK, ask{method: "GET", path: "/v1/provider-keys/" + openaiID}).body
	if !strings.Contains(shown, "prod-openai") || !strings.Contains(shown, `"readable":false`) {
		t.Errorf("what was written about the key is gone: %s", shown)
	}
	found := false
	for _, e := range r.entries() {
		found = found || e.Event.Event == keys.EventRevoke && e.Reason == "leaked" && e.Actor == "operator"
	}
	if !found {
		t.Error("the record does not say who revoked it and why")
	}
	r.refused(codeRefused, ask{method: "POST", path: "/v1/provider-keys", body: seeded("")}) // its value is burnt
	r.want(http.StatusCreated, ask{method: "POST", path: "/v1/provider-keys", body: strings.Replace(seeded(""), seedKey, nextKey, 1)})
}

func TestRotation(t *testing.T) {
	r := newRig(t)
	r.add("openai", seedKey)
	path := "/v1/provider-keys/" + openaiID + "/rotate"
	body := fmt.Sprintf(`{"api_key":%q,"ramp":[{"weight":10,"for":"30s"}],"grace":"1m","reason":"quarterly"}`, nextKey)
	again := map[string]string{"Idempotency-Key": "6f1c-1"}
	first := r.want(http.StatusAccepted, ask{method: "POST", path: path, body: body, header: again})
	rot := first.json(t)
	if rot["phase"] != "migrate" || rot["from"] != 1. || rot["to"] != 2. || rot["grace"] != "1m0s" || rot["reason"] != "quarterly" || rot["actor"] != "operator" {
		t.Errorf("%s", first.body)
	}
	if len(r.pending) != 1 || r.pending[0].name != "openai" {
		t.Errorf("the scheduler was not told: %v", r.pending)
	}
	second := r.want(http.StatusAccepted, ask{method: "POST", path: path, body: body, header: again}).json(t)
	if second["to"] != 2. || second["requested_at"] != rot["requested_at"] {
		t.Errorf("the same request began another: %v", second)
	}
	p := r.refused(codeOpen, ask{method: "POST", path: path, body: body})
	if !strings.Contains(p["detail"].(string), "operator") {
		t.Errorf("whose rotation it is is not told: %v", p)
	}
	list := r.want(http.StatusOK, ask{method: "GET", path: "/v1/rotations?open=true"}).json(t)
	if l := list["rotations"].([]any); len(l) != 1 || l[0].(map[string]any)["id"] != openaiID {
		t.Errorf("%v", list)
	}
}

func TestAKeyThatTheProviderRefuses(t *testing.T) {
	r := newRig(t)
	r.add("openai", seedKey)
	p := r.refused(codeKeyRejected, ask{method: "POST", path: "/v1/provider-keys/" + openaiID + "/rotate", body: fmt.Sprintf(`{"api_key":%q}`, deadKey)})
	if !strings.Contains(p["detail"].(string), "401") {
		t.Errorf("%v", p)
	}
	if l := r.want(http.StatusOK, ask{method: "GET", path: "/v1/rotations?open=true"}).json(t)["rotations"].([]any); len(l) != 0 {
		t.Errorf("%v", l)
	}
}

// What no issuer makes cannot be asked for.
func TestAManagedRotationNeedsAnIssuer(t *testing.T) {
	r := newRig(t)
	r.want(http.StatusCreated, ask{method: "POST", path: "/v1/provider-keys", body: strings.Replace(seeded(""), `"openai"`, `"gemini"`, 1)})
	p := r.refused(codeRefused, ask{method: "POST", path: "/v1/provider-keys/prod.px_acme_prod.gemini/rotate", body: `{"managed":true}`})
	if !strings.Contains(p["detail"].(string), "gemini") {
		t.Errorf("%v", p)
	}
	r.add("openai", nextKey)
	r.want(http.StatusAccepted, ask{method: "POST", path: "/v1/provider-keys/" + openaiID + "/rotate", body: `{"managed":true}`})
}

// A caller who hangs up does not leave a rotation half begun.
func TestACallerWhoHangsUp(t *testing.T) {
	r := newRig(t)
	r.add("openai", seedKey)
	ctx, hangUp := context.WithCancel(t.Context())
	done := make(chan struct{})
	r.intercept(func(own context.Context, method, path string) error {
		switch {
		case method == "patch":
			hangUp()
			<-ctx.Done()
		case method == "put" && strings.HasPrefix(path, "rotations/"):
			if own.Err() != nil {
				t.Error("the operation was cut off")
			}
		}
		return nil
	})
	handler := r.api
	rec := httptest.NewRecorder()
	req := httptest.NewRequestWithContext(ctx, "POST", "/v1/provider-keys/"+openaiID+"/rotate", strings.NewReader(fmt.Sprintf(`{"api_key":%q}`, nextKey)))
	req.Header.Set("Authorization", "Bearer "+operator)
	req.Header.Set("Content-Type", "application/json")
	go func() {
		defer close(done)
		handler.ServeHTTP(rec, req)
	}()
	<-done
	if rec.Code != http.StatusAccepted || ctx.Err() == nil {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

// A stranger's body is not waited for.
func TestAStrangersBodyIsNotRead(t *testing.T) {
	r := newRig(t)
	body := &watchedBody{}
	req := httptest.NewRequest("POST", "/v1/provider-keys", body)
	req.Header.Set("Authorization", "Bearer hvs.stranger000000000000000000")
	req.Header.Set("Content-Type", "application/json")
	rec := httptest.NewRecorder()
	r.api.ServeHTTP(rec, req)
	if rec.Code != http.StatusUnauthorized || body.read {
		t.Errorf("%d, read: %v", rec.Code, body.read)
	}
}

type watchedBody struct{ read bool }

func (w *watchedBody) Read([]byte) (int, error) {
	w.read = true
	return 0, io.EOF
}

// A caller who may not read a key may have it validated; the answer tells nothing of its value.
func TestValidate(t *testing.T) {
	r := newRig(t)
	r.add("openai", seedKey)
	path := "/v1/provider-keys/" + openaiID + "/validate"
	got := r.want(http.StatusOK, ask{method: "POST", path: path, token: viewer})
	v := got.json(t)["validations"].([]any)[0].(map[string]any)
	if v["verdict"] != "live" || v["status"] != 200. || v["version"] != 1. {
		t.Errorf("%s", got.body)
	}
	last := r.entries()[len(r.entries())-1]
	if last.Event.Event != keys.EventValidate || last.Actor != "viewer" {
		t.Errorf("the record says %+v", last)
	}
	for range 2 {
		r.want(http.StatusOK, ask{method: "POST", path: path})
	}
	r.refused(codeLimited, ask{method: "POST", path: path})
	r.mu.Lock()
	r.now = r.now.Add(time.Minute)
	r.mu.Unlock()
	r.want(http.StatusOK, ask{method: "POST", path: path, body: `{"versions":[1]}`})
	// Whoever may not see it may not have it validated.
	r.intercept(func(_ context.Context, method, path string) error {
		if method == "metadata" {
			return fmt.Errorf("metadata: %w", store.ErrForbidden)
		}
		return nil
	})
	r.refused(codeForbidden, ask{method: "POST", path: path})
}

// What the server itself may not do is no fault of the caller's.
func TestValidateWithoutTheServersRights(t *testing.T) {
	r := newRig(t)
	r.add("openai", seedKey)
	r.own.Store = &blindStore{Store: r.store, path: "provider-keys/prod/px_acme_prod/openai"}
	r.own.Store.(*blindStore).on.Store(true)
	r.refused(codeUnavailable, ask{method: "POST", path: "/v1/provider-keys/" + openaiID + "/validate"})
	for _, e := range r.entries() {
		if e.Event.Event == keys.EventDenied {
			t.Errorf("recorded as a denial: %+v", e)
		}
	}
	if !strings.Contains(r.log.String(), "forbidden by policy") {
		t.Error("the log does not say why")
	}
}

// What the store refuses is recorded by the server, not more often than makes sense.
func TestDenialsAreRecorded(t *testing.T) {
	r := newRig(t)
	r.add("openai", seedKey)
	rotate := ask{method: "POST", path: "/v1/provider-keys/" + openaiID + "/rotate", body: fmt.Sprintf(`{"api_key":%q}`, nextKey), token: viewer}
	denied := func() (n int, last string) {
		for _, e := range r.entries() {
			if e.Event.Event != keys.EventDenied {
				continue
			}
			n++
			last = e.Detail["not_recorded_before"]
			if e.Actor != "viewer" || e.Source != "127.0.0.1" || e.Key != "openai" || e.ProxyID != "px_acme_prod" || e.Outcome != keys.OutcomeDenied ||
				e.Detail["operation"] != "rotateProviderKey" || e.Detail["caller_entity_id"] != "entity-v" || e.Detail["entity_id"] != "" || e.Reason == "" {
				t.Fatalf("%+v", e)
			}
		}
		return n, last
	}
	for range 14 {
		r.refused(codeForbidden, rotate)
	}
	if n, _ := denied(); n != 10 {
		t.Errorf("%d denials in the record, want 10", n)
	}
	r.mu.Lock()
	r.now = r.now.Add(time.Minute)
	r.mu.Unlock()
	r.refused(codeForbidden, rotate)
	if n, left := denied(); n != 11 || left != "4" {
		t.Errorf("%d denials in the record, the last says %q were left out", n, left)
	}
}

func TestPages(t *testing.T) {
	r := newRig(t)
	var want []string
	for _, px := range []string{"px_a", "px_b", "px_c"} {
		for n := range 3 {
			name := fmt.Sprint("key", n)
			r.want(http.StatusCreated, ask{method: "POST", path: "/v1/provider-keys",
				body: fmt.Sprintf(`{"provider":"openai","api_key":"sk-proj-%s%s-0000000000000000","proxy_id":%q,"name":%q}`, px, name, px, name)})
			want = append(want, "prod."+px+"."+name)
		}
	}
	for _, limit := range []int{1, 2, 3, 4, 9, 50} {
		var got []string
		cursor := ""
		for pages := 0; pages < 20; pages++ {
			page := r.want(http.StatusOK, ask{method: "GET", path: fmt.Sprintf("/v1/provider-keys?limit=%d%s", limit, cursor)}).json(t)
			list := page["keys"].([]any)
			if len(list) > limit {
				t.Fatalf("%d keys on a page of %d", len(list), limit)
			}
			for _, k := range list {
				got = append(got, k.(map[string]any)["id"].(string))
			}
			if page["next"] == nil {
				break
			}
			cursor = "&cursor=" + page["next"].(string)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("by %d: %v", limit, got)
		}
	}
	one := r.want(http.StatusOK, ask{method: "GET", path: "/v1/provider-keys?proxy_id=px_b"}).json(t)["keys"].([]any)
	if len(one) != 3 || one[0].(map[string]any)["proxy_id"] != "px_b" {
		t.Errorf("%v", one)
	}
	// A cursor belongs to its operation.
	next := r.want(http.StatusOK, ask{method: "GET", path: "/v1/provider-keys?limit=1"}).json(t)["next"].(string)
	r.refused(codeInvalid, ask{method: "GET", path: "/v1/audit?cursor=" + next})
	r.refused(codeInvalid, ask{method: "GET", path: "/v1/rotations?cursor=" + next})
	r.refused(codeInvalid, ask{method: "GET", path: "/v1/provider-keys?cursor="})
}

func TestTheRecordInPages(t *testing.T) {
	r := newRig(t)
	for n := range 3 {
		r.add(fmt.Sprint("key", n), fmt.Sprintf("sk-proj-page%d-0000000000000000000", n))
	}
	all := r.entries()
	var seqs []float64
	cursor := ""
	for range 20 {
		page := r.want(http.StatusOK, ask{method: "GET", path: "/v1/audit?limit=2" + cursor}).json(t)
		for _, e := range page["entries"].([]any) {
			seqs = append(seqs, e.(map[string]any)["seq"].(float64))
		}
		if page["next"] == nil {
			break
		}
		cursor = "&cursor=" + page["next"].(string)
	}
	if len(seqs) != len(all) {
		t.Fatalf("%v of %d entries", seqs, len(all))
	}
	for i, seq := range seqs {
		if seq != float64(len(all)-i) {
			t.Fatalf("not newest first: %v", seqs)
		}
	}
	some := r.want(http.StatusOK, ask{method: "GET", path: "/v1/audit?key=key1&event=key.create&since=2020-01-01T00:00:00Z"}).json(t)["entries"].([]any)
	if len(some) != 2 { // intent and outcome
		t.Errorf("%v", some)
	}
}
