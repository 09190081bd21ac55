package issuer

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// openRouter makes and deletes API keys. The admin credential is a management
// (provisioning) key (field api_key).
//
// Create answers {"data": {"hash": …, "name": …, "expires_at": …}, "key": "sk-or-v1-…"}, delete
// {"deleted": true}, list {"data": [{"hash", "name"}]} by offset; what is called label
// there is the key's own masked beginning. See
// https://openrouter.ai/docs/features/provisioning-api-keys and
// https://openrouter.ai/docs/api/api-reference/api-keys/delete-keys.
type openRouter struct{ vendor }

func newOpenRouter(o Options) (Issuer, error) {
	v, err := o.vendor("openrouter", "https://openrouter.ai", "base_url")
	if err != nil {
		return nil, err
	}
	return &openRouter{vendor: *v}, nil
}

func (p *openRouter) url(hash string) string {
	u := p.base + "/api/v1/keys"
	if hash != "" {
		u += "/" + url.PathEscape(hash)
	}
	return u
}

// Create implements Issuer.
func (p *openRouter) Create(ctx context.Context, r Request) (*Issued, error) {
	const what = "create a key"
	admin, err := p.apiKey(ctx)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Data struct {
			Hash    string     `json:"hash"`
			Expires *time.Time `json:"expires_at"`
		} `json:"data"`
		Key hidden `json:"key"`
	}
	defer answer.Key.drop()
	err = p.do(ctx, call{
		what: what, method: http.MethodPost, url: p.url(""), header: bearer(admin), body: object("name", r.Label), secrets: []string{admin},
	}, &answer)
	if err != nil {
		return nil, err
	}
	var expires time.Time
	if answer.Data.Expires != nil {
		expires = answer.Data.Expires.UTC()
	}
	return p.issued(what, answer.Data.Hash, &answer.Key, expires)
}

// Revoke implements Issuer.
func (p *openRouter) Revoke(ctx context.Context, hash string) error {
	admin, err := p.adminFor(ctx, hash)
	if err != nil {
		return err
	}
	return p.delete(ctx, admin, hash)
}

func (p *openRouter) delete(ctx context.Context, admin, hash string) error {
	const what = "delete a key"
	var answer struct {
		Deleted bool `json:"deleted"`
	}
	err := p.do(ctx, call{what: what, method: http.MethodDelete, url: p.url(hash), header: bearer(admin), secrets: []string{admin}}, &answer)
	switch {
	case err != nil:
		return gone(err)
	case !answer.Deleted:
		return p.unclear(what, "it does not say that the key is deleted")
	}
	return nil
}

// Sweep implements Issuer. The list is read to its end before anything is
// deleted, for that would move what an offset counts.
func (p *openRouter) Sweep(ctx context.Context, label string, keep []string) error {
	const what = "list keys"
	admin, err := p.apiKey(ctx)
	if err != nil {
		return err
	}
	seen, found := map[string]bool{}, []string(nil)
	offset := 0
	for range maxPages {
		var page struct {
			Data []struct {
				Hash string `json:"hash"`
				Name string `json:"name"`
			} `json:"data"`
		}
		q := url.Values{"offset": {strconv.Itoa(offset)}, "include_disabled": {"true"}}
		err := p.do(ctx, call{what: what, method: http.MethodGet, url: p.url("") + "?" + q.Encode(), header: bearer(admin), secrets: []string{admin}}, &page)
		if err != nil {
			return err
		}
		known := len(seen)
		for _, k := range page.Data {
			if k.Name == label && !seen[k.Hash] && idForm.MatchString(k.Hash) {
				found = append(found, k.Hash)
			}
			seen[k.Hash] = true
		}
		if len(seen) == known { // an empty page, or one that was there before
			return sweep(found, keep, func(hash string) error { return p.delete(ctx, admin, hash) })
		}
		offset += len(page.Data)
	}
	return p.unclear(what, "the list does not end")
}
