package config

import (
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/postern-proxy/postern/agent/provider/spec"
)

// issuersFolder is where admin credentials are, in the store and in admin_key.
const issuersFolder = "issuers/"

// maxIssuers is beyond every list of providers that keys can be made at.
const maxIssuers = 200

var (
	projectForm       = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)
	subscriptionForm  = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)
	resourceGroupForm = regexp.MustCompile(`^[\p{L}\p{N}_.()-]{0,89}[\p{L}\p{N}_()-]$`)
	accountForm       = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{1,63}$`)
	kinds             = []string{KindAnthropic, KindAzure, KindOpenAI, KindOpenRouter, KindVault}
)

func (f *finish) server() {
	s := f.Server
	if s == nil {
		return
	}
	if s.Listen == "" {
		s.Listen = "127.0.0.1:8702"
	}
	f.file("server.cert_file", &s.CertFile)
	f.file("server.key_file", &s.KeyFile)
	own := f.address("server.listen", s.Listen, "127.0.0.1:8702")
	for _, l := range []struct{ path, addr string }{{"listen.proxy", f.Listen.Proxy}, {"listen.admin", f.Listen.Admin}} {
		if a, err := netip.ParseAddrPort(l.addr); err == nil && own.IsValid() && same(own, netip.AddrPortFrom(a.Addr().Unmap(), a.Port())) {
			f.at("server.listen", "is where %s listens already: write another port", l.path)
		}
	}
}

// ValidateServer checks what only `postern server` needs, after Parse has
// accepted the rest: where it listens, its certificate, and an identity of its
// own for Vault. It needs no providers and no proxy id. The error is an *Errors.
func (c *Config) ValidateServer() error {
	f := newFinish(c, newReport(c.where), nil, "")
	f.validateServer()
	return f.err(c.Source)
}

func (f *finish) validateServer() {
	if v := f.Store.Vault; v != nil && !f.mistyped("store.vault.auth") {
		f.auth(&v.Auth, "server")
	}
	if f.Server == nil {
		if !f.mistyped("server") {
			f.at("server", "is required: write server: {cert_file: …, key_file: …}")
		}
		return
	}
	f.need("server.cert_file", f.Server.CertFile, "the PEM file of the server's certificate and its chain: the API is served over TLS only")
	f.need("server.key_file", f.Server.KeyFile, "the PEM file of the certificate's key")
}

// ValidateScope checks that the configuration names one proxy id, which a file
// with a server section may leave out: for operators' commands. The error is an *Errors.
func (c *Config) ValidateScope() error {
	f := newFinish(c, newReport(c.where), nil, "")
	f.scope("the command works on the keys of one proxy id")
	return f.err(c.Source)
}

func (f *finish) issuers() {
	if len(f.Issuers) > maxIssuers {
		f.at("issuers", "has %d entries: at most %d are allowed", len(f.Issuers), maxIssuers)
		f.Issuers = f.Issuers[:0]
	}
	for i := range f.Issuers {
		is, at := &f.Issuers[i], item("issuers", i)
		f.form(at+".provider", is.Provider, providerName, true, "whose keys are made there, as in openai: the catalog entry's name, or the provider in the keys' metadata")
		for j := range f.Issuers[:i] {
			if is.Provider != "" && f.Issuers[j].Provider == is.Provider {
				f.at(at+".provider", "has an issuer already (%s): keep one for each provider", item("issuers", j))
				break
			}
		}
		f.issuerProvider(at+".provider", is.Provider)
		f.issuer(at, is)
	}
}

// issuerProvider notes a provider that no key may ever be of.
func (f *finish) issuerProvider(at, name string) {
	if _, known := spec.Lookup(name); known || !providerName.MatchString(name) {
		return
	}
	if !slices.ContainsFunc(f.Providers, func(p Provider) bool { return p.Name == name }) {
		f.note(at, "%s is neither in the catalog nor in providers%s; it serves keys whose metadata says so", shown(name), didYouMean(name, catalogNames()))
	}
}

func (f *finish) issuer(at string, is *Issuer) {
	switch {
	case f.mistyped(at + ".kind"):
		return
	case is.Kind == "":
		f.at(at+".kind", "is required: one of %s", sorted(kinds))
		return
	case !slices.Contains(kinds, is.Kind):
		f.at(at+".kind", "%s is not one of %s%s", shown(is.Kind), sorted(kinds), didYouMean(is.Kind, kinds))
		return
	}
	f.foreign(at, is)
	if is.Kind == KindVault {
		f.issuerVault(at, is)
		return
	}
	f.adminKey(at+".admin_key", is.AdminKey)
	f.httpsURL(at+".base_url", &is.BaseURL)
	f.file(at+".ca_file", &is.CAFile)
	switch is.Kind {
	case KindOpenAI:
		f.form(at+".project", is.Project, projectForm, true, "the id of the project that the keys are of, as in proj_abc")
	case KindAzure:
		f.form(at+".subscription", is.Subscription, subscriptionForm, true, "the subscription's id, as in 00000000-0000-0000-0000-000000000000")
		f.form(at+".resource_group", is.ResourceGroup, resourceGroupForm, true, "the resource group's name")
		f.form(at+".account", is.Account, accountForm, true, "the resource's name, as in acme of acme.openai.azure.com")
		f.httpsURL(at+".login_url", &is.LoginURL)
		if is.Spare != "" && is.Spare != "key1" && is.Spare != "key2" {
			f.at(at+".spare", "%s is no key of an account: write key1 or key2, the one that nothing uses", shown(is.Spare))
		}
	}
}

// foreign refuses fields of another kind.
func (f *finish) foreign(at string, is *Issuer) {
	all := kinds[:len(kinds)-1] // without vault
	for _, m := range []struct {
		name, value string
		of          []string
	}{
		{"admin_key", is.AdminKey, all},
		{"base_url", is.BaseURL, all},
		{"ca_file", is.CAFile, all},
		{"project", is.Project, []string{KindOpenAI}},
		{"subscription", is.Subscription, []string{KindAzure}},
		{"resource_group", is.ResourceGroup, []string{KindAzure}},
		{"account", is.Account, []string{KindAzure}},
		{"login_url", is.LoginURL, []string{KindAzure}},
		{"spare", is.Spare, []string{KindAzure}},
		{"path", is.Path, []string{KindVault}},
		{"field", is.Field, []string{KindVault}},
	} {
		if m.value != "" && !slices.Contains(m.of, is.Kind) {
			f.at(at+"."+m.name, "means nothing to kind: %s (it is for %s): remove it", is.Kind, sorted(m.of))
		}
	}
}

func (f *finish) issuerVault(at string, is *Issuer) {
	if f.Store.Vault == nil && f.Store.Sealed != nil {
		f.at(at+".kind", "vault is for store.vault only: the server's own login reads the engine")
	}
	if is.Path = strings.Trim(is.Path, "/"); is.Path == "" {
		f.need(at+".path", "", "a dynamic engine's path as Vault's API has it, as in openai/creds/checkout")
	} else {
		f.vaultPath(at+".path", is.Path, "as Vault's API has it, as in openai/creds/checkout")
	}
	if is.Field == "" {
		is.Field = spec.KeyField
	}
	f.form(at+".field", is.Field, fieldName, true, "letters, digits, '.', _ and -, as in api_key")
}

func (f *finish) adminKey(at, path string) {
	const say = "issuers/ and a name, as in issuers/openai, for the entry issuers/<environment>/openai of the store; never the credential itself"
	switch name, ok := strings.CutPrefix(path, issuersFolder); {
	case f.mistyped(at):
	case path == "":
		f.at(at, "is required: %s", say)
	case !ok || !keyName.MatchString(name):
		f.at(at, "%s is not allowed here: write %s", shown(path), say)
	}
}

// httpsURL checks the beginning of a vendor's URLs. "" stays: the vendor's own.
func (f *finish) httpsURL(at string, p *string) {
	if *p == "" || f.mistyped(at) {
		return
	}
	const how = "write https://host, and what comes before the vendor's own paths"
	u, err := url.Parse(*p)
	switch {
	case err != nil || u.Hostname() == "":
		f.at(at, "is no URL: %s", how)
		return
	case u.Scheme != "https":
		f.at(at, "must begin with https://, for an admin credential goes there: %s", how)
		return
	case u.User != nil:
		f.at(at, "holds a user or password: remove it; the credential stands in the store, see admin_key")
		return
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		f.at(at, "has a query or a fragment: %s", how)
		return
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			f.at(at, "has no port between 1 and 65535: %s", how)
			return
		}
	}
	for seg := range strings.SplitSeq(u.Path, "/") {
		if seg == "." || seg == ".." {
			f.at(at, "has . or .. in its path: %s", how)
			return
		}
	}
	*p = strings.TrimRight(u.String(), "/")
}
