package provider

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/provider/spec"
	"github.com/postern-proxy/postern/agent/secret"
)

const key = "sk-proj-0123456789abcdef0123456789"

// fields makes a secret: name, value, name, value …
func fields(t testing.TB, pairs ...string) map[string]*secret.Value {
	t.Helper()
	m := map[string]*secret.Value{}
	for i := 0; i < len(pairs); i += 2 {
		v, err := secret.New([]byte(pairs[i+1]))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(v.Destroy)
		m[pairs[i]] = v
	}
	return m
}

// house makes a provider described in full.
func house(t testing.TB, a spec.Attach, also ...spec.Attach) *Provider {
	t.Helper()
	s, problems := spec.Resolve(spec.Spec{Name: "house", Hosts: []string{"llm.corp.example"}, Attach: a, Also: also}, "", nil)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	p, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAttachOfEveryCatalogEntry(t *testing.T) {
	for _, s := range spec.Catalog() {
		h, u := http.Header{}, &url.URL{RawQuery: "a=b"}
		if err := catalog(t, s.Name, spec.Spec{}).Attach(h, u, fields(t, "api_key", key)); err != nil {
			t.Fatal(err)
		}
		want := strings.ReplaceAll(s.Attach.Format, "{api_key}", key)
		if len(h) != 1 || h.Get(s.Attach.Header) != want || u.RawQuery != "a=b" {
			t.Errorf("%s: %v %q, want %s: %s", s.Name, h, u.RawQuery, s.Attach.Header, want)
		}
	}
}

func TestAttachForms(t *testing.T) {
	basic := func(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }
	rows := []struct {
		what   string
		attach spec.Attach
		also   []spec.Attach
		secret []string
		header map[string]string
		query  string
	}{
		{"bearer", spec.Attach{Header: "authorization", Format: "Bearer {api_key}"}, nil, []string{"api_key", key}, map[string]string{"Authorization": "Bearer " + key}, ""},
		{"header", spec.Attach{Header: "X-Token"}, nil, []string{"api_key", key}, map[string]string{"X-Token": key}, ""},
		{"two fields", spec.Attach{Header: "X-Token", Format: "{id}:{api_key}!"}, nil, []string{"api_key", key, "id", "i"}, map[string]string{"X-Token": "i:" + key + "!"}, ""},
		{"basic with the key as password", spec.Attach{Basic: &spec.Basic{Username: "api"}}, nil, []string{"api_key", key}, map[string]string{"Authorization": basic("api:" + key)}, ""},
		{"basic with the key as username", spec.Attach{Basic: &spec.Basic{Username: "{api_key}", Password: "x"}}, nil, []string{"api_key", key}, map[string]string{"Authorization": basic(key + ":x")}, ""},
		{"basic of two fields", spec.Attach{Basic: &spec.Basic{Username: "{user}", Password: "{api_key}"}}, nil, []string{"api_key", key, "user", "u"}, map[string]string{"Authorization": basic("u:" + key)}, ""},
		{"query", spec.Attach{Query: "key"}, nil, []string{"api_key", key + "+/=&?#;%"}, nil, "key=" + key + "%2B%2F%3D%26%3F%23%3B%25"},
		{"query with a format", spec.Attach{Query: "t", Format: "x {api_key}"}, nil, []string{"api_key", key}, nil, "t=x%20" + key},
		{"also, where the secret has it", spec.Attach{Header: "A"}, []spec.Attach{{Header: "B", Format: "team {team}"}, {Header: "C", Format: "{org}"}, {Query: "d", Format: "{team}"}},
			[]string{"api_key", key, "team", "t 1"}, map[string]string{"A": key, "B": "team t 1"}, "d=t%201"},
		{"long", spec.Attach{Header: "A"}, nil, []string{"api_key", strings.Repeat("x", 3000)}, map[string]string{"A": strings.Repeat("x", 3000)}, ""},
	}
	for _, row := range rows {
		h, u := http.Header{}, &url.URL{}
		if err := house(t, row.attach, row.also...).Attach(h, u, fields(t, row.secret...)); err != nil {
			t.Errorf("%s: %v", row.what, err)
			continue
		}
		if len(h) != len(row.header) || u.RawQuery != row.query {
			t.Errorf("%s: got %v and %q", row.what, h, u.RawQuery)
		}
		for k, v := range row.header {
			if got := h[k]; len(got) != 1 || got[0] != v {
				t.Errorf("%s: %s is %q, want one %q", row.what, k, got, v)
			}
		}
	}
}

// Exactly one value, whatever the client or an earlier attempt left there.
func TestAttachReplaces(t *testing.T) {
	p := catalog(t, "anthropic", spec.Spec{})
	h := http.Header{"X-Api-Key": {"a", "b"}, "x-api-key": {"c"}, "X_Api_Key": {"d"}, "X-API-KEY": {"e"}, "X-Api-Keys": {"mine"}, "Accept": {"x"}}
	for _, k := range []string{key, key + "2"} {
		if err := p.Attach(h, &url.URL{}, fields(t, "api_key", k)); err != nil {
			t.Fatal(err)
		}
		if len(h) != 3 || !slices.Equal(h["X-Api-Key"], []string{k}) || h.Get("X-Api-Keys") != "mine" {
			t.Errorf("got %v", h)
		}
	}

	p = house(t, spec.Attach{Query: "key"})
	for before, want := range map[string]string{
		"":                             "key=",
		"key=client":                   "key=",
		"a=1&key=client&b=2":           "a=1&b=2&key=",
		"key":                          "key=",
		"KEY=x&Key=y&k%65y=z&%6Bey=w":  "key=",
		"a=1;key=client;b=2":           "a=1;b=2&key=",
		"a=key&keys=1&b=%zz&k%zz=1":    "a=key&keys=1&b=%zz&k%zz=1&key=",
		"alt=sse&&":                    "alt=sse&key=",
		"a=x%26key%3Dy&q=1%3Bkey%3Dz":  "a=x%26key%3Dy&q=1%3Bkey%3Dz&key=",
		"key=" + key + "&key=" + key:   "key=",
		"a=b=c&key=1=2&a=b":            "a=b=c&a=b&key=",
		"+key=1":                       "+key=1&key=",
		"a[]=1&a[]=2&key[]=3&a.key=44": "a[]=1&a[]=2&key[]=3&a.key=44&key=",
	} {
		u := &url.URL{RawQuery: before}
		for range 2 {
			if err := p.Attach(http.Header{}, u, fields(t, "api_key", key)); err != nil {
				t.Fatal(err)
			}
			if u.RawQuery != want+key {
				t.Errorf("%q became %q, want %q", before, u.RawQuery, want+key)
			}
		}
	}
}

func TestAttachErrorsNameTheFieldAndNothingElse(t *testing.T) {
	gone := fields(t, "api_key", key)
	gone["api_key"].Destroy()
	rows := []struct {
		what   string
		p      *Provider
		secret map[string]*secret.Value
		says   string
	}{
		{"no key", catalog(t, "openai", spec.Spec{}), fields(t, "token", key), `no field "api_key"`},
		{"no secret", catalog(t, "openai", spec.Spec{}), nil, `no field "api_key"`},
		{"empty", catalog(t, "openai", spec.Spec{}), fields(t, "api_key", ""), `no field "api_key"`},
		{"wiped", catalog(t, "openai", spec.Spec{}), gone, `"api_key" of the secret was wiped`},
		{"another field of the format", house(t, spec.Attach{Header: "A", Format: "{id}:{api_key}"}), fields(t, "api_key", key), `no field "id"`},
		{"basic", house(t, spec.Attach{Basic: &spec.Basic{Username: "{user}"}}), fields(t, "api_key", key), `no field "user"`},
		{"line break", catalog(t, "openai", spec.Spec{}), fields(t, "api_key", key+"\r\nX-Evil: 1"), `field "api_key"`},
		{"space at its edge", catalog(t, "openai", spec.Spec{}), fields(t, "api_key", key+" "), `field "api_key"`},
		{"outside ASCII", catalog(t, "openai", spec.Spec{}), fields(t, "api_key", key+"é"), `field "api_key"`},
		{"line break in also", catalog(t, "openai", spec.Spec{}), fields(t, "api_key", key, "organization", "o\nx"), `field "organization"`},
		{"NUL in the query", house(t, spec.Attach{Query: "k"}), fields(t, "api_key", key+"\x00"), `field "api_key"`},
	}
	for _, row := range rows {
		h, u := http.Header{}, &url.URL{}
		err := row.p.Attach(h, u, row.secret)
		if err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: %v, want an error that says %s", row.what, err, row.says)
			continue
		}
		if strings.Contains(err.Error(), key) || strings.Contains(h.Get("Authorization"), key) || u.RawQuery != "" {
			t.Errorf("%s: %v, %v, %q", row.what, err, h, u.RawQuery)
		}
	}
}

func TestIdentifiersPassAndCredentialsDoNot(t *testing.T) {
	p := catalog(t, "openai", spec.Spec{})
	h := http.Header{"Openai-Organization": {"org-of-the-client"}}
	if err := p.Attach(h, &url.URL{}, fields(t, "api_key", key)); err != nil {
		t.Fatal(err)
	}
	if h.Get("OpenAI-Organization") != "org-of-the-client" {
		t.Error("a client may name its organization where the secret does not")
	}
	if err := p.Attach(h, &url.URL{}, fields(t, "api_key", key, "organization", "org-1", "project", "proj-1")); err != nil {
		t.Fatal(err)
	}
	if h.Get("OpenAI-Organization") != "org-1" || h.Get("OpenAI-Project") != "proj-1" {
		t.Errorf("got %v", h)
	}
}

func TestAuthHeaders(t *testing.T) {
	got := AuthHeaders()
	for _, want := range []string{"Authorization", "X-Api-Key", "Api-Key", "X-Goog-Api-Key", "Proxy-Authorization", "X-Amz-Security-Token"} {
		if !slices.Contains(got, want) {
			t.Errorf("%q lacks %s", got, want)
		}
	}
	for _, not := range []string{"Cookie", "Openai-Organization", "Anthropic-Version", ""} {
		if slices.Contains(got, not) {
			t.Errorf("%q holds %s", got, not)
		}
	}
	if !slices.IsSorted(got) {
		t.Errorf("not sorted: %q", got)
	}
	for _, s := range spec.Catalog() {
		if name := http.CanonicalHeaderKey(s.Attach.Header); !slices.Contains(got, name) {
			t.Errorf("%s attaches %s, which is not stripped", s.Name, name)
		}
	}
	got = AuthHeaders(
		spec.Spec{Attach: spec.Attach{Header: "x-house-token"}, Also: []spec.Attach{{Header: "x-house-id"}, {Header: "x-house-team", Pass: true}}},
		spec.Spec{Attach: spec.Attach{Query: "k"}, Strip: spec.Strip{Headers: []string{"x-old"}}})
	if !slices.Contains(got, "X-House-Token") || !slices.Contains(got, "X-House-Id") || !slices.Contains(got, "X-Old") || slices.Contains(got, "X-House-Team") {
		t.Errorf("configured providers: %q", got)
	}
}

func TestAuthQuery(t *testing.T) {
	for name, want := range map[string][]string{
		"openai": nil, "gemini": {"key", "access_token"}, "azure-openai": {"api-key"},
		"bedrock": {"X-Amz-Credential", "X-Amz-Signature", "X-Amz-Security-Token"},
	} {
		if got := catalog(t, name, spec.Spec{}).AuthQuery(); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := house(t, spec.Attach{Query: "token"}, spec.Attach{Query: "id", Format: "{id}"}, spec.Attach{Query: "t", Format: "{t}", Pass: true}).AuthQuery(); !slices.Equal(got, []string{"token", "id"}) {
		t.Errorf("got %q", got)
	}
}

func BenchmarkAttachBearer(b *testing.B) {
	p, f := catalog(b, "openai", spec.Spec{}), fields(b, "api_key", key)
	h := http.Header{"Accept": {"*/*"}, "Content-Type": {"application/json"}, "User-Agent": {"x"}, "X-Stainless-Lang": {"js"}, "X-Stainless-Os": {"linux"}}
	u := &url.URL{}
	b.ReportAllocs()
	for b.Loop() {
		if err := p.Attach(h, u, f); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzSetQuery(f *testing.F) {
	for _, s := range []string{"", "a=1", "key=x", "a;key=y&b", "%6bey=1&&", "k%zz=1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		out := setQuery(raw, "key", "VALUE")
		if setQuery(out, "key", "VALUE") != out {
			t.Fatalf("%q: not stable: %q", raw, out)
		}
		n := 0
		for part := range strings.FieldsFuncSeq(out, func(r rune) bool { return r == '&' || r == ';' }) {
			name, v, _ := strings.Cut(part, "=")
			if plain, err := url.QueryUnescape(name); err == nil && strings.EqualFold(plain, "key") {
				if n++; v != "VALUE" {
					t.Fatalf("%q kept %q", raw, part)
				}
			}
		}
		if n != 1 {
			t.Fatalf("%q: %d values in %q", raw, n, out)
		}
	})
}
