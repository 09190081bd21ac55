package issuer

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// openAI makes a service account of a project for each credential, and deletes
// it to revoke. The admin credential is an admin key (field api_key).
//
// Create answers {"id": "svc_acct_…", "name": …, "api_key": {"value": "sk-…", "expires_at": …}},
// delete {"id": …, "deleted": true}, list {"data": [{"id", "name"}], "last_id", "has_more"}; see
// https://developers.openai.com/api/reference/resources/organization/subresources/projects/subresources/service_accounts.
type openAI struct {
	vendor
	project string
}

func newOpenAI(o Options) (Issuer, error) {
	v, err := o.vendor("openai", "https://api.openai.com", "project")
	if err != nil {
		return nil, err
	}
	if !idForm.MatchString(o.Project) {
		return nil, fail(ErrRefused, "openai: project: must be the id of a project, as in proj_abc")
	}
	return &openAI{vendor: *v, project: o.Project}, nil
}

func (p *openAI) url(id string) string {
	u := p.base + "/v1/organization/projects/" + url.PathEscape(p.project) + "/service_accounts"
	if id != "" {
		u += "/" + url.PathEscape(id)
	}
	return u
}

// Create implements Issuer.
func (p *openAI) Create(ctx context.Context, r Request) (*Issued, error) {
	const what = "create a service account"
	admin, err := p.apiKey(ctx)
	if err != nil {
		return nil, err
	}
	var answer struct {
		ID     string `json:"id"`
		APIKey struct {
			Value   hidden `json:"value"`
			Expires int64  `json:"expires_at"`
		} `json:"api_key"`
	}
	defer answer.APIKey.Value.drop()
	err = p.do(ctx, call{
		what: what, method: http.MethodPost, url: p.url(""), header: bearer(admin), body: object("name", r.Label), secrets: []string{admin},
	}, &answer)
	if err != nil {
		return nil, err
	}
	return p.issued(what, answer.ID, &answer.APIKey.Value, unix(answer.APIKey.Expires))
}

// Revoke implements Issuer. "Not found" counts as gone only where the project
// itself is found: the account of a project that is no longer configured lives on.
func (p *openAI) Revoke(ctx context.Context, id string) error {
	admin, err := p.adminFor(ctx, id)
	if err != nil {
		return err
	}
	return p.delete(ctx, admin, id)
}

func (p *openAI) delete(ctx context.Context, admin, id string) error {
	const what = "delete a service account"
	var answer struct {
		Deleted bool `json:"deleted"`
	}
	err := p.do(ctx, call{what: what, method: http.MethodDelete, url: p.url(id), header: bearer(admin), secrets: []string{admin}}, &answer)
	switch {
	case err != nil && gone(err) == nil:
		_, err := p.page(ctx, admin, "", 1)
		return err
	case err != nil:
		return err
	case !answer.Deleted:
		return p.unclear(what, "it does not say that the account is deleted")
	}
	return nil
}

type openAIPage struct {
	Data []struct {
		ID   string `json:"id"`
		Name string `json:"name"`
	} `json:"data"`
	LastID  string `json:"last_id"`
	HasMore bool   `json:"has_more"`
}

func (p *openAI) page(ctx context.Context, admin, after string, limit int) (*openAIPage, error) {
	q := url.Values{"limit": {strconv.Itoa(limit)}}
	if after != "" {
		q.Set("after", after)
	}
	var page openAIPage
	err := p.do(ctx, call{
		what: "list service accounts", method: http.MethodGet, url: p.url("") + "?" + q.Encode(), header: bearer(admin), secrets: []string{admin},
	}, &page)
	return &page, err
}

// Sweep implements Issuer.
func (p *openAI) Sweep(ctx context.Context, label string, keep []string) error {
	admin, err := p.apiKey(ctx)
	if err != nil {
		return err
	}
	var found []string
	after := ""
	for range maxPages {
		page, err := p.page(ctx, admin, after, 100)
		if err != nil {
			return err
		}
		last := page.LastID
		for _, a := range page.Data {
			if a.Name == label && idForm.MatchString(a.ID) {
				found = append(found, a.ID)
			}
			if page.LastID == "" {
				last = a.ID
			}
		}
		if !page.HasMore {
			return sweep(found, keep, func(id string) error { return p.delete(ctx, admin, id) })
		}
		if last == "" || last == after {
			return p.unclear("list service accounts", "there is more, and it does not say where")
		}
		after = last
	}
	return p.unclear("list service accounts", "the list does not end")
}
