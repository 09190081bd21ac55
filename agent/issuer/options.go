package issuer

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/postern-proxy/postern/agent/secret"
)

// The kinds: whose API an issuer speaks.
const (
	OpenAI     = "openai"
	OpenRouter = "openrouter"
	Anthropic  = "anthropic"
	Azure      = "azure"
	Vault      = "vault"
)

// Options say what an issuer is.
type Options struct {
	Kind string // one of the constants above; required
	// Transport carries the requests, one RoundTrip each; it follows no
	// redirects and verifies TLS. Required, but for Vault.
	Transport http.RoundTripper
	// Admin reads the admin credential's fields: api_key, or for Azure
	// tenant_id, client_id and client_secret. It is called once for each
	// operation, and the fields are destroyed after it. An error of a store
	// keeps its meaning: not found and forbidden are ErrRefused, anything else
	// ErrLimited. Required, but for Vault.
	Admin func(context.Context) (map[string]*secret.Value, error)
	// BaseURL is what the vendor's paths are appended to: https, "" for the vendor's own.
	BaseURL string
	// Timeout bounds each request, 0 meaning 30 s.
	Timeout time.Duration
	// Now is the clock that Issued.Expires is told by, best the store's; nil: time.Now.
	Now func() time.Time

	Project string // OpenAI: required

	Subscription, ResourceGroup, Account string // Azure: required
	// LoginURL is where Azure's tokens come from: https, "" for Microsoft's own.
	LoginURL string
	// Spare is the one of Azure's two keys, key1 or key2, that is made where it is
	// not known which is in use; "": none is.
	Spare string

	Leases Leases // Vault: required
	Path   string // Vault: the engine's API path; required
	Field  string // Vault: of its answer, holding the key; "" for api_key
}

// New makes an issuer. The error names the option; nothing is asked of the vendor.
func New(o Options) (Issuer, error) {
	if o.Timeout <= 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	switch o.Kind {
	case OpenAI:
		return newOpenAI(o)
	case OpenRouter:
		return newOpenRouter(o)
	case Anthropic:
		return newAnthropic(o)
	case Azure:
		return newAzure(o)
	case Vault:
		return newVault(o)
	}
	return nil, fail(ErrRefused, "kind: must be one of openai, openrouter, anthropic, azure, vault")
}

// vendor checks what all that speak HTTP need. where names the settings that
// say what is asked about.
func (o Options) vendor(name, base, where string) (*vendor, error) {
	v := &vendor{name: name, base: strings.TrimRight(o.BaseURL, "/"), where: where, rt: o.Transport, admin: o.Admin, timeout: o.Timeout, now: o.Now}
	switch {
	case v.rt == nil:
		return nil, fail(ErrRefused, "%s: needs a transport", name)
	case v.admin == nil:
		return nil, fail(ErrRefused, "%s: admin_key: is required", name)
	case v.base == "":
		v.base = base
	}
	return v, checkURL(name+": base_url", v.base)
}

// checkURL wants https, for an admin credential goes there.
func checkURL(name, s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fail(ErrRefused, "%s: must be https://host and what comes before the vendor's own paths", name)
	}
	return nil
}
