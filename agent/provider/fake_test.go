package provider

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/agent/provider/spec"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
)

// Probe and Attach against providers that speak the real formats, under their real names.
func TestProbeOfRunningProviders(t *testing.T) {
	for _, kind := range []string{"openai", "anthropic", "gemini", "cohere", "qubittron"} {
		p := catalog(t, kind, spec.Spec{})
		s, err := fake.New(fake.Options{Kind: kind, Keys: []string{key}, Hosts: p.Spec().Hosts})
		if err != nil {
			t.Fatal(err)
		}
		tr := s.Transport()
		probe := func(want rotation.Verdict) {
			t.Helper()
			if r := p.Probe(t.Context(), tr, fields(t, "api_key", key)); r.Verdict != want || r.Err != nil {
				t.Errorf("%s: %+v, want %v", kind, r, want)
			}
		}
		probe(rotation.VerdictLive)
		s.Forbid(key)
		probe(rotation.VerdictLive)
		s.Limit(key)
		probe(rotation.VerdictLive)
		s.Revoke(key)
		probe(rotation.VerdictDead)
		s.Allow(key)
		probe(rotation.VerdictLive)
		for _, r := range s.Requests() {
			if r.Host != p.Spec().Hosts[0] || r.SNI != r.Host || len(r.Credentials) != 1 || !strings.HasSuffix(r.Credentials[0].Value, key) {
				t.Errorf("%s: %+v", kind, r)
			}
		}
		if s.KeysSeen() != 0 {
			t.Errorf("%s: a probe counts as use", kind)
		}
		tr.CloseIdleConnections()
		s.Close()
	}
}

// A redirect would carry the key to another place: it is not followed.
func TestProbeFollowsNoRedirect(t *testing.T) {
	n := 0
	s, err := fake.New(fake.Options{Kind: "openai", Hosts: []string{"api.openai.com"}, Intercept: func(w http.ResponseWriter, r *http.Request) bool {
		n++
		http.Redirect(w, r, "https://evil.example/", http.StatusTemporaryRedirect)
		return true
	}})
	if err != nil {
		t.Fatal(err)
	}
	tr := s.Transport()
	defer func() { tr.CloseIdleConnections(); s.Close() }()
	r := catalog(t, "openai", spec.Spec{}).Probe(t.Context(), tr, fields(t, "api_key", key))
	if r.Verdict != rotation.VerdictUnknown || r.Status != 307 || n != 1 {
		t.Errorf("%+v after %d requests", r, n)
	}
}

// A certificate that nobody vouches for: no request, so no key.
func TestProbeVerifiesTheCertificate(t *testing.T) {
	s, err := fake.New(fake.Options{Kind: "openai", Keys: []string{key}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	u, err := url.Parse(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	r := catalog(t, "openai", spec.Spec{Hosts: []string{u.Host}}).Probe(t.Context(), tr, fields(t, "api_key", key))
	if r.Verdict != rotation.VerdictUnknown || r.Err == nil || !strings.Contains(r.Err.Error(), "certificate") || s.Total() != 0 {
		t.Errorf("%+v", r)
	}
}

// The spec package cannot import secret; both must mean the same placeholder.
func TestPlaceholderIsNoKey(t *testing.T) {
	_, problems := spec.Resolve(spec.Spec{KeyPattern: regexp.QuoteMeta(secret.Placeholder)}, "openai", nil)
	if len(problems) != 1 || problems[0].Field != "key_pattern" {
		t.Errorf("%v", problems)
	}
}
