package issuer

import (
	"context"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/postern-proxy/postern/agent/secret"
)

// azure makes the two keys of an Azure OpenAI (Cognitive Services) account in
// turn. The admin credential is an application's: tenant_id, client_id and
// client_secret; it needs the actions listKeys and regenerateKey on the account.
//
// The account has two slots, and a new key replaces the old one in its slot *at
// once*. So Create regenerates the slot that Request.Current is not in: the
// current key keeps working through ramp and grace, and Revoke regenerates its
// slot when they are over. What dies as a rotation begins is whatever else was
// using the other slot. So an account has room for one managed key, and a second
// rotation must not begin before the first is over: it would end a key that
// still carries traffic.
//
// An id is the slot and the beginning of the key's digest, as in
// key1-0123456789abcdef, because a slot alone is soon another key's: Revoke of
// one that is no longer in its slot changes nothing. An id may be a slot alone
// (key1, written down by a person). Revoke takes either at its word: Check first.
//
// regenerateKey takes {"keyName": "Key1"} and answers {"key1": …, "key2": …}, as
// listKeys does; see
// https://learn.microsoft.com/rest/api/aiservices/accountmanagement/accounts/regenerate-key.
// The token is OAuth 2's client credentials grant:
// https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow.
type azure struct {
	vendor
	account string // the URL's part from /subscriptions on
	login   string
	scope   string
	spare   int // 0: none
}

const (
	azureManagement = "https://management.azure.com"
	azureLogin      = "https://login.microsoftonline.com"
	azureVersion    = "2023-05-01"
)

// azureClouds are the management endpoints that are resources of their own; behind
// any other URL stands the public one.
var azureClouds = []string{azureManagement, "https://management.usgovcloudapi.net", "https://management.chinacloudapi.cn"}

var (
	azureID     = regexp.MustCompile(`^key([12])(?:-([0-9a-f]{16}))?$`)
	azureTenant = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.-]{0,252}$`)
)

func newAzure(o Options) (Issuer, error) {
	v, err := o.vendor("azure", azureManagement, "subscription, resource_group and account")
	if err != nil {
		return nil, err
	}
	p := &azure{vendor: *v, login: strings.TrimRight(o.LoginURL, "/"), scope: azureManagement + "/.default"}
	if p.login == "" {
		p.login = azureLogin
	}
	if err := checkURL("azure: login_url", p.login); err != nil {
		return nil, err
	}
	for _, cloud := range azureClouds {
		if strings.EqualFold(p.base, cloud) {
			p.scope = cloud + "/.default"
		}
	}
	for _, s := range []struct{ name, value string }{{"subscription", o.Subscription}, {"resource_group", o.ResourceGroup}, {"account", o.Account}} {
		if s.value == "" || s.value == "." || s.value == ".." {
			return nil, fail(ErrRefused, "azure: %s: is required", s.name)
		}
	}
	p.account = "/subscriptions/" + url.PathEscape(o.Subscription) + "/resourceGroups/" + url.PathEscape(o.ResourceGroup) +
		"/providers/Microsoft.CognitiveServices/accounts/" + url.PathEscape(o.Account)
	switch o.Spare {
	case "":
	case "key1":
		p.spare = 1
	case "key2":
		p.spare = 2
	default:
		return nil, fail(ErrRefused, "azure: spare: must be key1 or key2")
	}
	return p, nil
}

// Create implements Issuer. Without a Current it makes the configured spare
// slot, and without that it refuses: it cannot tell which one is in use.
func (p *azure) Create(ctx context.Context, r Request) (*Issued, error) {
	slot := p.spare
	if r.Current != "" {
		current, _, err := p.parse(r.Current)
		if err != nil {
			return nil, err
		}
		slot = 3 - current
	}
	if slot == 0 {
		return nil, fail(ErrRefused, "azure: which of the account's two keys is in use is not known, and a new one ends the old one at once: write spare: key1 or key2, the one that nothing uses")
	}
	token, err := p.token(ctx)
	if err != nil {
		return nil, err
	}
	keys, err := p.keys(ctx, token, slot)
	if err != nil {
		return nil, err
	}
	defer keys.drop()
	made := keys.of(slot)
	return p.issued(regenerate, slotID(slot, made.v), made, unix(0))
}

// Revoke implements Issuer. The new value of the slot is wiped unseen. "Not
// found" is an error here: it says that the account is not where the settings
// say, not that its keys are gone.
func (p *azure) Revoke(ctx context.Context, id string) error {
	slot, mark, err := p.parse(id)
	if err != nil {
		return err
	}
	token, err := p.token(ctx)
	if err != nil {
		return err
	}
	if mark != "" {
		now, err := p.keys(ctx, token, 0)
		if err != nil {
			return err
		}
		defer now.drop()
		if slotID(slot, now.of(slot).v) != id {
			return nil // replaced already
		}
	}
	after, err := p.keys(ctx, token, slot)
	if err != nil {
		return err
	}
	defer after.drop()
	if fresh := after.of(slot).v; fresh.Len() == 0 || mark != "" && slotID(slot, fresh) == id {
		return p.unclear(regenerate, "the key is not a new one")
	}
	return nil
}

// Sweep implements Issuer: a slot that was made and never stored is made again
// by the next attempt.
func (p *azure) Sweep(context.Context, string, []string) error { return nil }

func (p *azure) parse(id string) (slot int, mark string, err error) {
	m := azureID.FindStringSubmatch(id)
	if m == nil {
		return 0, "", fail(ErrRefused, "azure: the id of the credential is none that it gives out: key1 or key2")
	}
	return int(m[1][0] - '0'), m[2], nil
}

// slotID is an id for what is in a slot now.
func slotID(slot int, v *secret.Value) string {
	d := v.Digest()
	return "key" + strconv.Itoa(slot) + "-" + d[:min(16, len(d))]
}

type azureKeys struct {
	Key1 hidden `json:"key1"`
	Key2 hidden `json:"key2"`
}

func (k *azureKeys) of(slot int) *hidden {
	if slot == 1 {
		return &k.Key1
	}
	return &k.Key2
}

func (k *azureKeys) drop() {
	k.Key1.drop()
	k.Key2.drop()
}

const regenerate = "regenerate a key"

// keys regenerates a slot, or just lists for slot 0. The caller drops the result.
func (p *azure) keys(ctx context.Context, token string, slot int) (*azureKeys, error) {
	c := call{what: "list the keys", method: http.MethodPost, url: p.base + p.account + "/listKeys?api-version=" + azureVersion, header: bearer(token), secrets: []string{token}}
	if slot != 0 {
		c.what, c.url = regenerate, p.base+p.account+"/regenerateKey?api-version="+azureVersion
		c.body = object("keyName", "Key"+strconv.Itoa(slot))
	}
	k := &azureKeys{}
	if err := p.do(ctx, c, k); err != nil {
		k.drop()
		return nil, err
	}
	return k, nil
}

// token asks for an access token. It is used for one operation and kept nowhere.
func (p *azure) token(ctx context.Context) (string, error) {
	const what = "log in"
	fields, err := p.credential(ctx)
	if err != nil {
		return "", err
	}
	defer destroy(fields)
	var part [3]string
	for i, name := range []string{"tenant_id", "client_id", "client_secret"} {
		if part[i], err = p.field(fields, name); err != nil {
			return "", err
		}
	}
	if !azureTenant.MatchString(part[0]) {
		return "", fail(ErrRefused, "azure: the field tenant_id of the entry that admin_key names must be the tenant's id or domain")
	}
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {part[1]}, "client_secret": {part[2]}, "scope": {p.scope}}
	var answer struct {
		Token hidden `json:"access_token"`
	}
	defer answer.Token.drop()
	err = p.do(ctx, call{
		what: what, method: http.MethodPost, url: p.login + "/" + part[0] + "/oauth2/v2.0/token",
		header:  http.Header{"Content-Type": {"application/x-www-form-urlencoded"}},
		body:    []byte(form.Encode()),
		where:   "tenant_id and client_id of the entry that admin_key names, and at login_url",
		secrets: []string{part[2], url.QueryEscape(part[2])},
	}, &answer)
	if err != nil {
		return "", err
	}
	token, err := p.field(map[string]*secret.Value{"access_token": answer.Token.v}, "access_token")
	if err != nil {
		return "", p.unclear(what, "it holds no token")
	}
	return token, nil
}
