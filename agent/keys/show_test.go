package keys

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// A name is a single path element that cannot lead elsewhere, and what
// providers[].key of the configuration may be.
func TestNames(t *testing.T) {
	o := newOperator(t)
	for _, name := range []string{"openai", "a", "7", "azure-openai", "house_llm", "x" + strings.Repeat("-", 62)} {
		if err := CheckName(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{
		"", "OpenAI", "-a", "_a", "a/b", "../px_other/openai", "..", ".", "a.b", "a b", "a\n", "a\x00", "ä", "a%2fb", "x" + strings.Repeat("y", 63),
	} {
		_, err := o.Add(t.Context(), name, o.value(key(1)), Meta{})
		if err == nil {
			t.Errorf("%q was stored", name)
		}
		if _, err := o.Show(t.Context(), name); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("%q was looked up: %v", name, err)
		}
	}
	if names, err := o.store.List(t.Context(), "provider-keys"); err != nil || len(names) != 0 {
		t.Errorf("%v, %v", names, err)
	}
}

func TestShowTellsVersionsApart(t *testing.T) {
	o := newOperator(t)
	for n := range 5 {
		o.add("openai", n, Meta{Service: "checkout"})
	}
	// The newest was soft-deleted, as only Vault can; the second is destroyed.
	if err := o.store.Destroy(t.Context(), o.Scope.Path("openai"), 2); err != nil {
		t.Fatal(err)
	}
	deleting := &Manager{Store: deleted{o.store}, Scope: o.Scope}
	i, err := deleting.Show(t.Context(), "openai")
	if err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, v := range i.Versions {
		states = append(states, fmt.Sprint(v.Number, " ", v.State))
	}
	if want := []string{"5 deleted", "4 current", "3 older", "2 destroyed", "1 older"}; !slices.Equal(states, want) {
		t.Errorf("%q, want %q", states, want)
	}
	if c := i.Current(); c.Number != 4 || c.Created.IsZero() {
		t.Errorf("current is %+v", c)
	}
	if i.ID != "prod.px_acme.openai" || i.Environment != "prod" || i.ProxyID != "px_acme" || i.Provider != "openai" || i.Label != "prod-openai" || i.Service != "checkout" {
		t.Errorf("%+v", i)
	}
	b, err := json.Marshal(i)
	if err != nil || strings.Contains(string(b), "sk-test") {
		t.Errorf("%s, %v", b, err)
	}
	if (Info{Versions: []Version{{Number: 1, State: "destroyed"}}}).Current() != (Version{}) {
		t.Error("a destroyed version is current")
	}
}

// deleted is a store whose newest version is soft-deleted.
type deleted struct{ store.Store }

func (d deleted) Metadata(ctx context.Context, path string) (*store.Metadata, error) {
	md, err := d.Store.Metadata(ctx, path)
	if err == nil {
		md.Versions[len(md.Versions)-1].Deleted = time.Now()
	}
	return md, err
}

func TestAKeyThatIsNotThere(t *testing.T) {
	o := newOperator(t)
	_, err := o.Show(t.Context(), "openai")
	if !errors.Is(err, store.ErrNotFound) || err.Error() != "there is no key openai in prod, px_acme; `postern keys list` shows what there is" {
		t.Errorf("%v", err)
	}
	if infos, err := o.List(t.Context()); err != nil || infos == nil || len(infos) != 0 {
		t.Errorf("%v, %v: a list without keys is a list", infos, err)
	}
}

// List shows the keys of the scope by name: those that `keys add` can make, and no other scope's.
func TestList(t *testing.T) {
	o := newOperator(t)
	for _, name := range []string{"openai", "anthropic", "house_llm"} {
		o.add(name, 1, Meta{})
	}
	for _, path := range []string{"provider-keys/prod/px_acme/Not-Ours", "provider-keys/prod/px_acme/folder/openai", "provider-keys/prod/px_other/gemini", "provider-keys/dev/px_acme/cohere"} {
		if _, err := o.store.Put(t.Context(), path, map[string]*secret.Value{Field: o.value(key(1))}, 0); err != nil {
			t.Fatal(err)
		}
	}
	infos, err := o.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range infos {
		names = append(names, i.Name)
		if i.Current().Number != 1 {
			t.Errorf("%+v", i)
		}
	}
	if want := []string{"anthropic", "house_llm", "openai"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
}

// A key that is removed between the listing and the look at it is left out; any other trouble is the list's.
func TestAListThatIsOvertaken(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	for reason, want := range map[error]error{store.ErrNotFound: nil, store.ErrForbidden: store.ErrForbidden} {
		m := &Manager{Store: blind{o.store, reason}, Scope: o.Scope}
		infos, err := m.List(t.Context())
		if !errors.Is(err, want) || len(infos) != 0 {
			t.Errorf("%v: %v, %v", reason, infos, err)
		}
	}
}

// blind lists what it cannot describe.
type blind struct {
	store.Store
	reason error
}

func (b blind) Metadata(context.Context, string) (*store.Metadata, error) {
	return nil, fmt.Errorf("metadata: %w", b.reason)
}
