package server

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// Nothing is guessed, decoded or passed over in silence.
func TestStrictRequests(t *testing.T) {
	r := newRig(t)
	r.add("openai", seedKey)
	key := "/v1/provider-keys/" + openaiID
	for _, c := range []struct {
		code, field string
		ask
	}{
		{codeNotFound, "", ask{method: "GET", path: "/"}},
		{codeNotFound, "", ask{method: "GET", path: "/v1/provider-keys/"}},
		{codeNotFound, "", ask{method: "GET", path: "//v1/provider-keys"}},
		{codeNotFound, "", ask{method: "GET", path: "/v1/./provider-keys"}},
		{codeNotFound, "", ask{method: "GET", path: "/v1/provider%2dkeys"}},
		{codeNotFound, "", ask{method: "GET", path: "/v1/provider-keys/staging.px_acme_prod.openai"}},
		{codeNotFound, "", ask{method: "GET", path: "/v1/provider-keys/prod.px_acme_prod.other"}},
		{codeNotFound, "", ask{method: "GET", path: "/v1/provider-keys/prod.px_acme_prod"}},
		{codeNotFound, "", ask{method: "GET", path: "/v1/provider-keys/prod.px_acme_prod.%6fpenai"}},
		{codeNotFound, "", ask{method: "GET", path: "/v1/provider-keys/prod.px_acme_prod.a..b"}},
		{codeMethod, "", ask{method: "PUT", path: key}},
		{codeMethod, "", ask{method: "GET", path: key + "/rotate"}},
		{codeMethod, "", ask{method: "POST", path: "/livez"}},
		{codeInvalid, "colour", ask{method: "GET", path: "/v1/provider-keys?colour=red"}},
		{codeInvalid, "limit", ask{method: "GET", path: "/v1/provider-keys?limit=201"}},
		{codeInvalid, "limit", ask{method: "GET", path: "/v1/provider-keys?limit=1&limit=2"}},
		{codeInvalid, "proxy_id", ask{method: "GET", path: "/v1/provider-keys?proxy_id=../audit"}},
		{codeInvalid, "open", ask{method: "GET", path: "/v1/rotations?open=yes"}},
		{codeInvalid, "since", ask{method: "GET", path: "/v1/audit?since=yesterday"}},
		{codeInvalid, "", ask{method: "DELETE", path: key, body: `{}`}},
		{codeInvalid, "reason", ask{method: "DELETE", path: key + "?reason="}},
		{codeInvalid, "colour", ask{method: "POST", path: "/v1/provider-keys", body: seeded(`,"colour":"red"`)}},
		{codeInvalid, "label", ask{method: "POST", path: "/v1/provider-keys", body: seeded(`,"label":"prod-x"`)}},
		{codeInvalid, "name", ask{method: "POST", path: "/v1/provider-keys", body: seeded(`,"name":null`)}},
		{codeInvalid, "name", ask{method: "POST", path: "/v1/provider-keys", body: seeded(`,"name":"../x"`)}},
		{codeInvalid, "api_key", ask{method: "POST", path: "/v1/provider-keys", body: `{"provider":"openai","proxy_id":"px_a"}`}},
		{codeInvalid, "api_key", ask{method: "POST", path: "/v1/provider-keys", body: `{"provider":"openai","proxy_id":"px_a","api_key":12}`}},
		{codeInvalid, "api_key", ask{method: "POST", path: "/v1/provider-keys", body: `{"provider":"openai","proxy_id":"px_a","api_key":"short"}`}},
		{codeInvalid, "proxy_id", ask{method: "POST", path: "/v1/provider-keys", body: strings.Replace(seeded(""), "px_acme_prod", "acme", 1)}},
		{codeInvalid, "label", ask{method: "POST", path: "/v1/provider-keys", body: strings.Replace(seeded(""), "OpenAI Production", nextKey, 1)}},
		{codeInvalid, "", ask{method: "POST", path: "/v1/provider-keys", body: `[]`}},
		{codeInvalid, "", ask{method: "POST", path: "/v1/provider-keys", body: seeded("") + `{}`}},
		{codeInvalid, "api_key", ask{method: "POST", path: key + "/rotate", body: `{}`}},
		{codeInvalid, "api_key", ask{method: "POST", path: key + "/rotate", body: fmt.Sprintf(`{"managed":true,"api_key":%q}`, nextKey)}},
		{codeInvalid, "ramp", ask{method: "POST", path: key + "/rotate", body: `{"managed":true,"ramp":[{"weight":0,"for":"1s"}]}`}},
		{codeInvalid, "ramp", ask{method: "POST", path: key + "/rotate", body: `{"managed":true,"ramp":[{"weight":50,"for":"1s"},{"weight":10,"for":"1s"}]}`}},
		{codeInvalid, "ramp", ask{method: "POST", path: key + "/rotate", body: `{"managed":true,"ramp":[{"weight":50,"for":"1s","x":1}]}`}},
		{codeInvalid, "grace", ask{method: "POST", path: key + "/rotate", body: `{"managed":true,"grace":"-1s"}`}},
		{codeInvalid, "managed", ask{method: "POST", path: key + "/rotate", body: `{"managed":"yes"}`}},
		{codeInvalid, "Idempotency-Key", ask{method: "POST", path: key + "/rotate", body: `{"managed":true}`, header: map[string]string{"Idempotency-Key": strings.Repeat("x", 129)}}},
		{codeInvalid, "reason", ask{method: "POST", path: key + "/revoke", body: `{"all":true}`}},
		{codeInvalid, "versions", ask{method: "POST", path: key + "/revoke", body: `{"all":true,"versions":[1],"reason":"x"}`}},
		{codeInvalid, "versions", ask{method: "POST", path: key + "/revoke", body: `{"versions":[0],"reason":"x"}`}},
		{codeTooLarge, "", ask{method: "POST", path: "/v1/provider-keys", body: `{"label":"` + strings.Repeat("x", maxBody) + `"}`}},
		{codeUnsupportedMedia, "", ask{method: "POST", path: "/v1/provider-keys", body: seeded(""), header: map[string]string{"Content-Type": "text/plain"}}},
		{codeUnsupportedMedia, "", ask{method: "POST", path: "/v1/provider-keys", body: seeded(""), header: map[string]string{"Content-Encoding": "gzip"}}},
		{codeCrossSite, "", ask{method: "GET", path: "/v1/provider-keys", header: map[string]string{"Sec-Fetch-Site": "cross-site"}}},
		{codeCrossSite, "", ask{method: "GET", path: "/v1/provider-keys", header: map[string]string{"Origin": "https://evil.example"}}},
		{codeCrossSite, "", ask{method: "GET", path: "/v1/provider-keys", header: map[string]string{"Origin": "null"}}},
		{codeUnauthenticated, "", ask{method: "GET", path: key, token: "-"}},
		{codeUnauthenticated, "", ask{method: "GET", path: key, token: "hvs.stranger000000000000000000"}},
		{codeUnauthenticated, "", ask{method: "GET", path: key, token: "-", header: map[string]string{"Authorization": "Basic eDp5"}}},
	} {
		p := r.refused(c.code, c.ask)
		if f, _ := p["field"].(string); f != c.field {
			t.Errorf("%s %s %s: field %q, want %q: %v", c.method, c.path, c.body, f, c.field, p["detail"])
		}
	}
	if allow := r.do(ask{method: "PATCH", path: key}).header.Get("Allow"); allow != "HEAD, GET, DELETE" {
		t.Errorf("Allow: %s", allow)
	}
	if n := len(r.want(http.StatusOK, ask{method: "GET", path: "/v1/provider-keys"}).json(t)["keys"].([]any)); n != 1 {
		t.Errorf("%d keys: something was taken", n)
	}
	md, err := r.store.Metadata(t.Context(), "provider-keys/prod/px_acme_prod/openai")
	if err != nil || md.Current != 1 {
		t.Errorf("something was taken: %+v, %v", md, err)
	}
}

// Whoever guesses tokens is slowed down, and Vault hears of it no more.
func TestGuessingTokens(t *testing.T) {
	r := newRig(t)
	asked := 0
	r.intercept(func(_ context.Context, method, _ string) error {
		if method == "identity" {
			asked++
		}
		return nil
	})
	limited := 0
	for n := range 80 {
		got := r.do(ask{method: "GET", path: "/v1/provider-keys", token: fmt.Sprintf("hvs.guess%024d", n)})
		if got.status == http.StatusTooManyRequests {
			limited++
		}
	}
	if limited != 30 || asked != 50 {
		t.Errorf("%d of 80 were limited, and the store was asked %d times", limited, asked)
	}
}

// A mistake in the server is one request's, wherever it happens.
func TestAPanicIsOneRequests(t *testing.T) {
	r := newRig(t)
	r.add("openai", seedKey)
	r.intercept(func(_ context.Context, method, path string) error {
		if method == "metadata" {
			panic(seedKey)
		}
		return nil
	})
	r.refused(codeInternal, ask{method: "GET", path: "/v1/provider-keys"})
	r.intercept(nil)
	r.want(http.StatusOK, ask{method: "GET", path: "/v1/provider-keys"})
}

// Every place that a token or a key could end up in is searched for them.
func TestNothingIsRepeated(t *testing.T) {
	r := newRig(t)
	var all strings.Builder
	note := func(s said) { all.WriteString(fmt.Sprint(s.header, s.body)) }
	r.add("openai", seedKey)
	key := "/v1/provider-keys/" + openaiID
	for _, a := range []ask{
		{method: "POST", path: "/v1/provider-keys", body: seeded("")},
		{method: "POST", path: "/v1/provider-keys", body: seeded(`,"` + nextKey + `":1`)},
		{method: "POST", path: "/v1/provider-keys", body: strings.Replace(seeded(""), "openai", nextKey, 1)},
		{method: "POST", path: "/v1/provider-keys", body: seeded(`,"name":"` + nextKey + `"`)},
		{method: "POST", path: key + "/rotate", body: `{"api_key":"` + nextKey + `","reason":"` + operator + `"}`},
		{method: "POST", path: key + "/rotate", body: `{"api_key":"` + nextKey + `"`},
		{method: "POST", path: key + "/rotate", body: `{"api_key":"` + nextKey + `"}`, header: map[string]string{"Idempotency-Key": nextKey}},
		{method: "POST", path: key + "/rotate", body: `{"api_key":"` + nextKey + `"}`},
		{method: "GET", path: "/v1/provider-keys/" + nextKey},
		{method: "GET", path: "/v1/provider-keys/prod.px_acme_prod." + nextKey},
		{method: "GET", path: "/v1/provider-keys?" + nextKey + "=1"},
		{method: "GET", path: "/v1/audit?cursor=" + operator},
		{method: "GET", path: "/v1/audit?key=" + nextKey},
		{method: "DELETE", path: key + "?reason=" + nextKey},
		{method: "GET", path: "/v1/provider-keys", token: "hvs.stranger000000000000000000"},
		{method: "POST", path: key + "/validate"},
		{method: "GET", path: "/v1/audit"}, {method: "GET", path: "/v1/rotations"}, {method: "GET", path: key}, {method: "GET", path: "/metrics"},
	} {
		note(r.do(a))
	}
	r.intercept(func(context.Context, string, string) error { panic(seedKey + operator) })
	note(r.want(http.StatusInternalServerError, ask{method: "GET", path: key}))
	all.WriteString(r.log.String())
	for _, secret := range []string{seedKey, nextKey, operator, "hvs.stranger000000000000000000"} {
		if i := strings.Index(all.String(), secret); i >= 0 {
			t.Errorf("found %q in …%s", secret, all.String()[max(0, i-200):i+len(secret)])
		}
	}
	if !strings.Contains(r.log.String(), "rotateProviderKey") {
		t.Error("there is no log to search")
	}
}
