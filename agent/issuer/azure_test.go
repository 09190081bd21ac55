package issuer

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/issuer/fake"
)

func slots(h *house) (key1, key2 string) {
	a, _ := h.Find("key1")
	b, _ := h.Find("key2")
	return a.Value, b.Value
}

// Three rotations: the slot in use is never touched before its own revocation.
func TestAzureAlternates(t *testing.T) {
	h := newHouse(t, fake.Options{Kind: Azure}, func(o *Options) { o.Spare = "key2" })
	one, two := slots(h)
	first := h.create(Request{Label: label})
	if !strings.HasPrefix(first.ID, "key2-") || reveal(first.Fields["api_key"]) == two {
		t.Fatalf("made %s", first.ID)
	}
	if now, _ := slots(h); now != one {
		t.Error("the other slot was touched")
	}
	if k, _ := h.Find("key2"); k.Value != reveal(first.Fields["api_key"]) {
		t.Error("what was given is not what is in the slot")
	}
	current := first
	for range 3 {
		next := h.create(Request{Label: label, Current: current.ID})
		if next.ID[:4] == current.ID[:4] {
			t.Fatalf("%s replaces %s in its own slot", next.ID, current.ID)
		}
		for _, i := range []*Issued{current, next} {
			if k, ok := h.Find(reveal(i.Fields["api_key"])); !ok || k.Revoked {
				t.Fatalf("%s does not work in the middle of the ramp", i.ID)
			}
		}
		h.revoke(current.ID)
		if k, _ := h.Find(reveal(current.Fields["api_key"])); !k.Revoked {
			t.Errorf("%s lives on", current.ID)
		}
		h.revoke(current.ID) // gone already: nothing changes
		if k, _ := h.Find(reveal(next.Fields["api_key"])); k.Revoked {
			t.Errorf("%s died with %s", next.ID, current.ID)
		}
		current = next
	}
}

// A late revocation of a key whose slot is another's by now ends nothing.
func TestAzureRevokesTheKeyAndNotTheSlot(t *testing.T) {
	h := newHouse(t, fake.Options{Kind: Azure}, func(o *Options) { o.Spare = "key1" })
	old := h.create(Request{Label: label})
	second := h.create(Request{Label: label, Current: old.ID})
	third := h.create(Request{Label: label, Current: second.ID})
	if third.ID[:4] != old.ID[:4] || third.ID == old.ID {
		t.Fatalf("ids %s, %s, %s", old.ID, second.ID, third.ID)
	}
	before := len(h.Keys())
	h.revoke(old.ID)
	if len(h.Keys()) != before {
		t.Error("the slot was regenerated")
	}
	// A slot without a key's mark is taken at its word.
	h.revoke("key1")
	if k, _ := h.Find(reveal(third.Fields["api_key"])); !k.Revoked {
		t.Error("key1 lives on")
	}
	if k, _ := h.Find(reveal(second.Fields["api_key"])); k.Revoked {
		t.Error("key2 died")
	}
}

// Where it is not known which slot is in use, none is made.
func TestAzureDoesNotGuess(t *testing.T) {
	h := newHouse(t, fake.Options{Kind: Azure})
	one, two := slots(h)
	_, err := h.Create(t.Context(), Request{Label: label})
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "spare") {
		t.Errorf("%v", err)
	}
	for _, current := range []string{"key3", "Key1", "svc_acct_1", "key1-xyz", "key1-0123456789abcdef0"} {
		if _, err := h.Create(t.Context(), Request{Label: label, Current: current}); !errors.Is(err, ErrRefused) {
			t.Errorf("current %q: %v", current, err)
		}
	}
	if err := h.Sweep(t.Context(), label, nil); err != nil {
		t.Error(err)
	}
	if a, b := slots(h); a != one || b != two || len(h.Requests()) != 0 {
		t.Error("something was asked or changed")
	}
	// A person's bare slot says enough.
	if i := h.create(Request{Label: label, Current: "key2"}); !strings.HasPrefix(i.ID, "key1-") {
		t.Errorf("made %s beside key2", i.ID)
	}
	if _, b := slots(h); b != two {
		t.Error("key2 was touched")
	}
}

// "Not found" is a mistake in the settings, not a key that is gone.
func TestAzureNotFoundIsNotGone(t *testing.T) {
	h := newHouse(t, fake.Options{Kind: Azure}, func(o *Options) { o.Account = "other" })
	for _, id := range []string{"key1", "key1-0123456789abcdef"} {
		err := h.Revoke(t.Context(), id)
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "account") || !strings.Contains(err.Error(), "ResourceNotFound") {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func TestAzureLogin(t *testing.T) {
	for name, c := range map[string]struct {
		fields map[string]string
		want   []string
	}{
		"a wrong secret":      {map[string]string{"tenant_id": "tenant-test", "client_id": "client-test", "client_secret": "canary-wrong"}, []string{"log in", "401", "invalid_client", "admin_key"}},
		"a wrong application": {map[string]string{"tenant_id": "tenant-test", "client_id": "other", "client_secret": adminKey}, []string{"400", "unauthorized_client", "client_id"}},
		"another tenant":      {map[string]string{"tenant_id": "other", "client_id": "client-test", "client_secret": adminKey}, []string{"400", "invalid_request"}},
		"a tenant with path":  {map[string]string{"tenant_id": "../x", "client_id": "client-test", "client_secret": adminKey}, []string{"tenant_id"}},
		"no secret":           {map[string]string{"tenant_id": "tenant-test", "client_id": "client-test"}, []string{"no field client_secret"}},
	} {
		h := newHouse(t, fake.Options{Kind: Azure})
		h2 := newHouse(t, fake.Options{Kind: Azure}, func(o *Options) {
			o.Admin, o.Transport, o.BaseURL, o.LoginURL = h.admin(c.fields), h.Transport(), h.URL(), h.URL()
			t.Cleanup(o.Transport.(*http.Transport).CloseIdleConnections)
		})
		_, err := h2.Create(t.Context(), Request{Current: "key1"})
		if !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		clean(t, err)
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q is missing from %v", name, w, err)
			}
		}
	}
}

// The token is asked for the cloud that the endpoint is of, and for the public one behind a gateway.
func TestAzureScope(t *testing.T) {
	for base, want := range map[string]string{
		"": "https://management.azure.com/.default", "https://management.usgovcloudapi.net/": "https://management.usgovcloudapi.net/.default",
		"https://gateway.example/azure": "https://management.azure.com/.default",
	} {
		var asked, sent string
		h := newHouse(t, fake.Options{Kind: Azure}, func(o *Options) {
			o.BaseURL = base
			o.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
				r.ParseForm()
				asked, sent = r.PostForm.Get("scope"), r.PostForm.Get("client_secret")
				return answer(500, "")(r)
			})
		})
		if err := h.Revoke(t.Context(), "key1"); !errors.Is(err, ErrLimited) || asked != want || sent != adminKey {
			t.Errorf("%q: scope %q, %v", base, asked, err)
		}
	}
}

// An answer that repeats the old key is no revocation.
func TestAzureRevokeWantsANewKey(t *testing.T) {
	const keys = `{"key1":"0123456789abcdef0123","key2":"x"}`
	h := newHouse(t, fake.Options{Kind: Azure}, func(o *Options) {
		o.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			if strings.HasSuffix(r.URL.Path, "/token") {
				return answer(200, `{"access_token":"eyJ.x.y"}`)(r)
			}
			return answer(200, keys)(r)
		})
	})
	i := h.create(Request{Label: label, Current: "key2"})
	if err := h.Revoke(t.Context(), i.ID); !errors.Is(err, ErrLimited) {
		t.Errorf("%v", err)
	}
}
