package issuer

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/issuer/fake"
	"github.com/postern-proxy/postern/agent/secret"
)

// The admin credential could end anybody's: what is not the key's own is told.
func TestCheck(t *testing.T) {
	mine := Owner{Label: func(l string) bool { return strings.HasPrefix(l, "postern prod px_acme openai ") }}
	for _, kind := range []string{OpenAI, OpenRouter, Anthropic} {
		t.Run(kind, func(t *testing.T) {
			h := newHouse(t, fake.Options{Kind: kind})
			ours := h.Add(fake.Key{ID: "id_ours", Name: label})
			h.Add(fake.Key{ID: "id_theirs", Name: "postern prod px_other openai 8"})
			h.Add(fake.Key{ID: "id_a-person", Name: "the CEO's laptop"})
			c := h.Issuer.(Checker)
			for id, want := range map[string]error{ours.ID: nil, "id_theirs": ErrForeign, "id_a-person": ErrForeign, "id_gone": nil, "../x": ErrRefused} {
				err := c.Check(t.Context(), id, mine)
				if !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", id, err, want)
				}
				clean(t, err)
			}
			if len(h.Live()) != 3 {
				t.Errorf("something was ended: %s", h.live())
			}
		})
	}
}

// Of an Azure account both slots have names that anybody can guess.
func TestCheckOfASlot(t *testing.T) {
	h := newHouse(t, fake.Options{Kind: Azure}, func(o *Options) { o.Spare = "key2" })
	i := h.create(Request{})
	stored := map[string]bool{i.Fields["api_key"].Digest(): true}
	mine := Owner{Stored: func(_ context.Context, digest string) (bool, error) { return stored[digest], nil }}
	c := h.Issuer.(Checker)
	theirs, _ := h.Find("key1")
	v, err := secret.New([]byte(theirs.Value))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Destroy()
	for id, want := range map[string]error{
		i.ID: nil, "key2": nil, "key1": ErrForeign, slotID(1, v): ErrForeign, "key1-0123456789abcdef": nil, // which is replaced, so that Revoke does nothing
		"key3": ErrRefused,
	} {
		if err := c.Check(t.Context(), id, mine); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", id, err, want)
		}
	}
	broken := Owner{Stored: func(context.Context, string) (bool, error) { return false, errors.New("disk") }}
	if err := c.Check(t.Context(), "key1", broken); err == nil || errors.Is(err, ErrForeign) {
		t.Errorf("%v", err)
	}
}
