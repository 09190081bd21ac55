package issuer

import (
	"context"
	"errors"
	"net/http"
)

// ErrForeign: the credential was not made for the key on whose behalf it was to
// be ended. Nothing was changed.
var ErrForeign = errors.New("not a credential of this key")

// Owner is a key, as far as it can be told which credentials are its own.
type Owner struct {
	// Label reports whether a credential of the key may have this label.
	Label func(label string) bool
	// Stored reports whether the value with this digest (secret.Value.Digest) was
	// stored as a version of the key.
	Stored func(ctx context.Context, digest string) (bool, error)
}

// Checker is an Issuer of a vendor whose ids can be looked up or guessed by
// others. Which id belongs to a key is written where whoever may rotate that key
// may write; the admin credential could end anybody's. (A lease's id is known to
// nobody but who was given it.) Its methods are as an Issuer's.
type Checker interface {
	Issuer
	// Check is ErrForeign if the credential is not the owner's. For one that is
	// gone it is nil.
	Check(ctx context.Context, id string, o Owner) error
}

var (
	_ Checker = (*openAI)(nil)
	_ Checker = (*openRouter)(nil)
	_ Checker = (*anthropic)(nil)
	_ Checker = (*azure)(nil)
)

// labelled reads what a credential is called at the vendor, and compares.
func (v *vendor) labelled(ctx context.Context, c call, o Owner, into any, label *string) error {
	switch err := v.do(ctx, c, into); {
	case err != nil:
		return gone(err)
	case !o.Label(*label):
		return fail(ErrForeign, "%s: the credential that the record names has another label there: it was not made for this key", v.name)
	}
	return nil
}

// Check implements Checker.
func (p *openAI) Check(ctx context.Context, id string, o Owner) error {
	admin, err := p.adminFor(ctx, id)
	if err != nil {
		return err
	}
	var answer struct {
		Name string `json:"name"`
	}
	c := call{what: "look at a service account", method: http.MethodGet, url: p.url(id), header: bearer(admin), secrets: []string{admin}}
	return p.labelled(ctx, c, o, &answer, &answer.Name)
}

// Check implements Checker.
func (p *openRouter) Check(ctx context.Context, hash string, o Owner) error {
	admin, err := p.adminFor(ctx, hash)
	if err != nil {
		return err
	}
	var answer struct {
		Data struct {
			Name string `json:"name"`
		} `json:"data"`
	}
	c := call{what: "look at a key", method: http.MethodGet, url: p.url(hash), header: bearer(admin), secrets: []string{admin}}
	return p.labelled(ctx, c, o, &answer, &answer.Data.Name)
}

// Check implements Checker: whoever makes a key in the Console names it after
// the key here.
func (p *anthropic) Check(ctx context.Context, id string, o Owner) error {
	admin, err := p.adminFor(ctx, id)
	if err != nil {
		return err
	}
	var answer struct {
		Name string `json:"name"`
	}
	return p.labelled(ctx, p.call("look at an API key", http.MethodGet, id, admin), o, &answer, &answer.Name)
}

// Check implements Checker: what is in the slot now was stored as a version of
// the key, or the slot is another credential's by now.
func (p *azure) Check(ctx context.Context, id string, o Owner) error {
	slot, mark, err := p.parse(id)
	if err != nil {
		return err
	}
	token, err := p.token(ctx)
	if err != nil {
		return err
	}
	keys, err := p.keys(ctx, token, 0)
	if err != nil {
		return err
	}
	defer keys.drop()
	now := keys.of(slot).v
	if now.Len() == 0 {
		return p.unclear("list the keys", "a slot is empty")
	}
	if mark != "" && slotID(slot, now) != id {
		return nil // replaced already
	}
	switch ours, err := o.Stored(ctx, now.Digest()); {
	case err != nil:
		return fromStore(ctx, "azure: whose key is in the slot cannot be found out", err)
	case !ours:
		return fail(ErrForeign, "azure: what is in %s was never stored as a version of this key", p.slot(slot))
	}
	return nil
}

func (p *azure) slot(n int) string { return [...]string{"", "key1", "key2"}[n] }
