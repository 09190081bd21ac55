package issuer

import (
	"context"
	"net/http"
	"net/url"
)

// anthropic turns API keys off; there is no way to make one but the Console.
// The admin credential is an admin key (field api_key).
//
// Update takes {"status": "inactive"} and answers with the key's description,
// {"id": "apikey_…", "status": "inactive", …}; see
// https://platform.claude.com/docs/en/api/http/admin/api_keys/update.
type anthropic struct{ vendor }

// anthropicVersion is the one version of the API's shape there is.
const anthropicVersion = "2023-06-01"

func newAnthropic(o Options) (Issuer, error) {
	v, err := o.vendor("anthropic", "https://api.anthropic.com", "base_url")
	if err != nil {
		return nil, err
	}
	return &anthropic{vendor: *v}, nil
}

// call is a request about one API key.
func (p *anthropic) call(what, method, id, admin string) call {
	return call{
		what: what, method: method, url: p.base + "/v1/organizations/api_keys/" + url.PathEscape(id),
		header: http.Header{"X-Api-Key": {admin}, "Anthropic-Version": {anthropicVersion}}, secrets: []string{admin},
	}
}

// Create implements Issuer: ErrUnsupported.
func (p *anthropic) Create(context.Context, Request) (*Issued, error) {
	return nil, fail(ErrUnsupported, "anthropic: keys are made in its Console alone: make one there, and store it with `postern keys rotate`")
}

// Revoke implements Issuer.
func (p *anthropic) Revoke(ctx context.Context, id string) error {
	const what = "turn an API key off"
	admin, err := p.adminFor(ctx, id)
	if err != nil {
		return err
	}
	var answer struct {
		Status string `json:"status"`
	}
	c := p.call(what, http.MethodPost, id, admin)
	c.body = object("status", "inactive")
	err = p.do(ctx, c, &answer)
	switch {
	case err != nil:
		return gone(err)
	case answer.Status != "inactive" && answer.Status != "archived" && answer.Status != "expired":
		return p.unclear(what, "it does not say that the key is inactive")
	}
	return nil
}

// Sweep implements Issuer: nothing was made, so nothing was left.
func (p *anthropic) Sweep(context.Context, string, []string) error { return nil }
