package issuer

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/issuer/fake"
)

// What both that make and delete keys have in common.
func TestCreateRevokeSweep(t *testing.T) {
	for kind, prefix := range map[string]string{OpenAI: "sk-svcacct-", OpenRouter: "sk-or-v1-"} {
		t.Run(kind, func(t *testing.T) {
			issued, ended := map[string]string{}, map[string]string{}
			h := newHouse(t, fake.Options{
				Kind: kind, PageSize: 3,
				OnIssue:  func(id, key string) { issued[id] = key },
				OnRevoke: func(id, key string) { ended[id] = key },
			})
			i := h.create(Request{Label: label})
			key := reveal(i.Fields["api_key"])
			if !strings.HasPrefix(key, prefix) || len(i.Fields) != 1 || issued[i.ID] != key || !i.Expires.IsZero() {
				t.Fatalf("%+v is not what was issued: %v", i, issued)
			}
			if k, ok := h.Find(i.ID); !ok || k.Name != label || k.Revoked {
				t.Errorf("the vendor has %+v", k)
			}

			// Leftovers of the same attempt go, on every page; others stay.
			for n := range 4 {
				h.Add(fake.Key{Name: "postern prod px_acme openai 7"})
				h.Add(fake.Key{Name: label, ID: fmt.Sprintf("left-%d", n)})
				h.Add(fake.Key{Name: label + "0"})
			}
			if err := h.Sweep(t.Context(), label, []string{i.ID, "left-2", "unknown"}); err != nil {
				t.Fatal(err)
			}
			if len(ended) != 3 || ended["left-0"] == "" || ended["left-1"] == "" || ended["left-3"] == "" {
				t.Errorf("swept %v", ended)
			}
			if err := h.Sweep(t.Context(), label, []string{i.ID, "left-2"}); err != nil || len(ended) != 3 {
				t.Errorf("a second sweep: %v, %d ended", err, len(ended))
			}

			h.revoke(i.ID)
			if ended[i.ID] != key {
				t.Errorf("ended %v", ended)
			}
			h.revoke(i.ID) // gone already
			h.revoke("never-was")
		})
	}
}

func TestSweepGoesOnAfterAFailure(t *testing.T) {
	for _, kind := range []string{OpenAI, OpenRouter} {
		h := newHouse(t, fake.Options{Kind: kind})
		for range 3 {
			h.Add(fake.Key{Name: label})
		}
		h.Fail(fake.Failure{Method: "DELETE", Status: 500})
		if err := h.Sweep(t.Context(), label, nil); !errors.Is(err, ErrLimited) {
			t.Errorf("%s: %v", kind, err)
		}
		if got := h.live(); got != label {
			t.Errorf("%s: %s are left", kind, got)
		}
		if err := h.Sweep(t.Context(), label, nil); err != nil || h.live() != "" {
			t.Errorf("%s: %v, %s are left", kind, err, h.live())
		}
	}
}

// A process that was killed, or an answer that was lost, leaves a key behind that only Sweep can find.
func TestALostAnswerIsSwept(t *testing.T) {
	for _, kind := range []string{OpenAI, OpenRouter} {
		h := newHouse(t, fake.Options{Kind: kind})
		h.Fail(fake.Failure{Method: "POST", Lose: true})
		if _, err := h.Create(t.Context(), Request{Label: label}); !errors.Is(err, ErrLimited) {
			t.Fatalf("%s: %v", kind, err)
		}
		if h.live() != label {
			t.Fatalf("%s: the vendor made %q", kind, h.live())
		}
		if err := h.Sweep(t.Context(), label, nil); err != nil || h.live() != "" {
			t.Errorf("%s: %v, %s left", kind, err, h.live())
		}
	}
}

// A list that never ends, or says that there is more and not where, is no list.
func TestListsEnd(t *testing.T) {
	for name, page := range map[string]string{
		"the same page for ever": `{"data":[{"id":"a","name":"x"}],"last_id":"a","has_more":true}`,
		"more, but not where":    `{"data":[],"has_more":true}`,
	} {
		asked := 0
		h := newHouse(t, fake.Options{Kind: OpenAI}, func(o *Options) {
			o.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
				asked++
				return answer(200, page)(r)
			})
		})
		if err := h.Sweep(t.Context(), label, nil); !errors.Is(err, ErrLimited) || asked > 2 {
			t.Errorf("%s: %v after %d pages", name, err, asked)
		}
	}
	n := 0
	h := newHouse(t, fake.Options{Kind: OpenRouter}, func(o *Options) {
		o.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			n++
			return answer(200, fmt.Sprintf(`{"data":[{"hash":"h%d","name":"x"}]}`, n))(r)
		})
	})
	if err := h.Sweep(t.Context(), label, nil); !errors.Is(err, ErrLimited) || n != maxPages {
		t.Errorf("%v after %d pages", err, n)
	}
	// A vendor that knows no offset repeats its one page.
	same := newHouse(t, fake.Options{Kind: OpenRouter}, func(o *Options) { o.Transport = answer(200, `{"data":[{"hash":"h","name":"x"}]}`) })
	if err := same.Sweep(t.Context(), label, nil); err != nil {
		t.Error(err)
	}
}

// An OpenAI service account of another project is not gone because this project does not have it.
func TestOpenAIRevokeInAnotherProject(t *testing.T) {
	h := newHouse(t, fake.Options{Kind: OpenAI}, func(o *Options) { o.Project = "proj_other" })
	k := h.Add(fake.Key{Name: label})
	err := h.Revoke(t.Context(), k.ID)
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "look at project") {
		t.Errorf("%v", err)
	}
	if _, err := h.Create(t.Context(), Request{Label: label}); !errors.Is(err, ErrRefused) {
		t.Errorf("create: %v", err)
	}
}

func TestExpiry(t *testing.T) {
	for _, c := range []struct{ kind, body string }{
		{OpenAI, `{"id":"svc_acct_1","api_key":{"value":"sk-svcacct-0123456789abcdef","expires_at":1893456000}}`},
		{OpenRouter, `{"data":{"hash":"h1","expires_at":"2030-01-01T00:00:00Z"},"key":"sk-or-v1-0123456789abcdef"}`},
	} {
		h := newHouse(t, fake.Options{Kind: c.kind}, func(o *Options) { o.Transport = answer(200, c.body) })
		if i := h.create(Request{Label: label}); !i.Expires.Equal(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)) {
			t.Errorf("%s: %v", c.kind, i.Expires)
		}
	}
}

func TestAnthropic(t *testing.T) {
	h := newHouse(t, fake.Options{Kind: Anthropic})
	if _, err := h.Create(t.Context(), Request{Label: label}); !errors.Is(err, ErrUnsupported) || errors.Is(err, ErrRefused) {
		t.Errorf("create: %v", err)
	}
	if err := h.Sweep(t.Context(), label, nil); err != nil {
		t.Errorf("sweep: %v", err)
	}
	if n := len(h.Requests()); n != 0 {
		t.Errorf("%d requests for nothing", n)
	}
	k := h.Add(fake.Key{ID: "apikey_01Rj2N8SVvo6BePZj99NhmiT"})
	h.Add(fake.Key{ID: "apikey_other"})
	h.revoke(k.ID)
	h.revoke(k.ID)
	h.revoke("apikey_never")
	if h.live() != "apikey_other" {
		t.Errorf("live: %s", h.live())
	}
	active := newHouse(t, fake.Options{Kind: Anthropic}, func(o *Options) { o.Transport = answer(200, `{"id":"apikey_1","status":"active"}`) })
	if err := active.Revoke(t.Context(), "apikey_1"); !errors.Is(err, ErrLimited) {
		t.Errorf("a key that stays active: %v", err)
	}
	for kind, body := range map[string]string{OpenAI: `{"id":"a","deleted":false}`, OpenRouter: `{}`} {
		h := newHouse(t, fake.Options{Kind: kind}, func(o *Options) { o.Transport = answer(200, body) })
		if err := h.Revoke(t.Context(), "a"); !errors.Is(err, ErrLimited) {
			t.Errorf("%s: a key that is not deleted: %v", kind, err)
		}
	}
}

// Every id that could lead elsewhere is refused before anything is asked.
func TestIDs(t *testing.T) {
	for _, kind := range []string{OpenAI, OpenRouter, Anthropic, Azure} {
		h := newHouse(t, fake.Options{Kind: kind})
		for _, id := range []string{"", ".", "..", "a/b", "a?b", "a#b", "a%2fb", "a b", "é", "a\r\nb", strings.Repeat("a", 300)} {
			if err := h.Revoke(t.Context(), id); !errors.Is(err, ErrRefused) {
				t.Errorf("%s: %q: %v", kind, id, err)
			}
		}
		if n := len(h.Requests()) + len(h.fetched); n != 0 {
			t.Errorf("%s: %d requests", kind, n)
		}
	}
}
