package config

import (
	"errors"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

func (f *finish) store() {
	s := &f.Store
	if s.Vault == nil && s.Sealed == nil && !f.mistyped("store") {
		if f.env("VAULT_ADDR") == "" {
			f.at("store", "is required: vault: {address: https://…} (or VAULT_ADDR in the environment) or sealed: {file: …, key_file: …}")
			return
		}
		s.Vault = &Vault{}
	}
	if s.Vault != nil && s.Sealed != nil {
		f.at("store.sealed", "stands beside store.vault: keep exactly one of them")
	}
	if s.Vault != nil {
		f.vault(s.Vault)
	}
	if s.Sealed != nil {
		f.sealed(s.Sealed)
	}
}

func (f *finish) vault(v *Vault) {
	address := "store.vault.address"
	if v.Address == "" && !f.mistyped(address) {
		if v.Address = f.env("VAULT_ADDR"); v.Address != "" {
			address = "VAULT_ADDR"
		}
	}
	f.vaultAddress(address, v)
	if v.Namespace == "" {
		v.Namespace = f.env("VAULT_NAMESPACE")
	}
	if v.Namespace = strings.Trim(v.Namespace, "/"); v.Namespace != "" {
		f.vaultPath("store.vault.namespace", v.Namespace, "as in team-a or org/team-a")
	}
	f.file("store.vault.ca_file", &v.CAFile)
	if v.CAFile == "" {
		v.CAFile = f.env("VAULT_CACERT") // relative to the working directory, as Vault's own tools have it
	}
	if v.CAFile == "" && f.env("VAULT_CAPATH") != "" {
		f.note("store.vault.ca_file", "VAULT_CAPATH is not read: name one PEM file here or in VAULT_CACERT")
	}
	if skip := f.env("VAULT_SKIP_VERIFY"); skip != "" {
		if no, err := strconv.ParseBool(skip); err != nil || no {
			f.at("store.vault", "VAULT_SKIP_VERIFY is set, but keys are only read over verified TLS: unset it, and name Vault's authority in store.vault.ca_file or VAULT_CACERT")
		}
	}
	f.mount("store.vault.mount", &v.Mount, "secret")
	f.mount("store.vault.prefix", &v.Prefix, "postern")
	f.length("store.vault.poll", &v.Poll, 5*time.Second, minPollVault)
	f.length("store.vault.max_stale", &v.MaxStale, defaultMaxStale, time.Nanosecond)
	if v.MaxStale > 0 && v.MaxStale < v.Poll {
		f.at("store.vault.max_stale", "%v is under store.vault.poll (%v): every key would go stale between two polls", v.MaxStale, v.Poll)
	}
	f.authFiles(&v.Auth)
}

// vaultAddress wants TLS: what comes over this connection is keys. Plain HTTP
// is for a Vault, or a Vault proxy, on this machine.
func (f *finish) vaultAddress(at string, v *Vault) {
	const how = "write https://host:8200"
	if f.mistyped(at) {
		return
	}
	if v.Address == "" {
		f.at(at, "is required: %s, or set VAULT_ADDR", how)
		return
	}
	u, err := url.Parse(v.Address)
	switch {
	case err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http":
		f.at(at, "is no http or https URL: %s", how)
		return
	case u.User != nil:
		f.at(at, "holds a user or password: remove it; who the agent is stands in store.vault.auth")
		return
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		f.at(at, "must end after host and port (or a path in front of /v1)")
		return
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			f.at(at, "has no port between 1 and 65535: %s", how)
			return
		}
	}
	if ip, err := netip.ParseAddr(u.Hostname()); u.Scheme == "http" && u.Hostname() != "localhost" && (err != nil || !ip.IsLoopback()) {
		f.at(at, "plain http would carry keys readable through the network: %s (http is for loopback addresses only)", how)
		return
	}
	v.Address = strings.TrimRight(u.String(), "/")
}

var vaultSegment = regexp.MustCompile(`^[A-Za-z0-9._@~+=-]+$`)

// apiPath checks a path of Vault's API: plain segments, nothing that another parser could read differently.
func apiPath(p string) error {
	for seg := range strings.SplitSeq(p, "/") {
		if seg == "." || seg == ".." || !vaultSegment.MatchString(seg) {
			return errors.New("must be names with single slashes between")
		}
	}
	return nil
}

func (f *finish) vaultPath(at, p, example string) {
	if err := apiPath(p); err != nil && !f.mistyped(at) {
		f.at(at, "%v, %s", err, example)
	}
}

// mount sets a default and takes slashes off the ends.
func (f *finish) mount(at string, m *string, def string) {
	if *m = strings.Trim(*m, "/"); *m == "" {
		*m = def
	}
	f.vaultPath(at, *m, "as in "+def)
}

// authFiles completes what is written about who the agent is. Whether it is
// enough is validateAgent's question: operators come with their own token.
func (f *finish) authFiles(a *Auth) {
	const p = "store.vault.auth"
	if k := a.Kubernetes; k != nil {
		f.mount(p+".kubernetes.mount", &k.Mount, "kubernetes")
		if k.TokenFile == "" {
			k.TokenFile = "/var/run/secrets/postern/token"
		}
		f.file(p+".kubernetes.token_file", &k.TokenFile)
	}
	if k := a.AppRole; k != nil {
		f.mount(p+".approle.mount", &k.Mount, "approle")
		f.file(p+".approle.secret_id_file", &k.SecretIDFile)
	}
	if k := a.JWT; k != nil {
		f.mount(p+".jwt.mount", &k.Mount, "jwt")
		f.file(p+".jwt.token_file", &k.TokenFile)
	}
	if k := a.Cert; k != nil {
		f.mount(p+".cert.mount", &k.Mount, "cert")
		f.file(p+".cert.cert_file", &k.CertFile)
		f.file(p+".cert.key_file", &k.KeyFile)
	}
	if k := a.Token; k != nil {
		f.file(p+".token.file", &k.File)
	}
}

func (f *finish) sealed(s *Sealed) {
	const p = "store.sealed"
	f.need(p+".file", s.File, "the store's file, as in postern.sealed")
	f.file(p+".file", &s.File)
	f.file(p+".key_file", &s.KeyFile)
	switch {
	case f.mistyped(p+".key_file") || f.mistyped(p+".passphrase_env"):
	case s.KeyFile == "" && s.PassphraseEnv == "":
		f.at(p, "needs key_file: postern.key, or passphrase_env: the NAME of a variable that holds a passphrase")
	case s.KeyFile != "" && s.PassphraseEnv != "":
		f.at(p+".passphrase_env", "stands beside key_file: keep exactly one of them")
	case s.PassphraseEnv != "" && !variableName.MatchString(s.PassphraseEnv):
		f.at(p+".passphrase_env", "must be the NAME of a variable that holds the passphrase, never the passphrase itself")
	case s.KeyFile != "" && s.KeyFile == s.File:
		f.at(p+".key_file", "is the store's own file: the key must lie in another, best in another directory")
	}
	f.length(p+".poll", &s.Poll, time.Second, minPollSealed)
}

// ValidateAgent checks what only the agent needs, after Parse has accepted the
// rest: an identity for Vault and something to serve. Operators' commands come
// with their own token and do without. The error is an *Errors.
func (c *Config) ValidateAgent() error {
	f := newFinish(c, newReport(c.where), nil, "")
	f.validateAgent()
	return f.err(c.Source)
}

func (f *finish) validateAgent() {
	f.scope("the agent serves one proxy id alone")
	if len(f.Providers) == 0 && !f.mistyped("providers") {
		f.at("providers", "is empty, so the agent would serve nothing: write one at least, as in - name: openai")
	}
	if v := f.Store.Vault; v != nil && !f.mistyped("store.vault.auth") {
		f.auth(&v.Auth, "agent")
	}
}

// scope wants the proxy id that a file with a server section may leave out.
func (f *finish) scope(why string) {
	if f.ProxyID == "" && !f.mistyped("proxy_id") && f.Server != nil {
		f.at("proxy_id", "is required here, for %s (only `postern server` does without): write %s", why, proxyIDSay)
	}
}

func (f *finish) auth(a *Auth, who string) {
	const p = "store.vault.auth"
	given := []string{}
	for _, m := range []struct {
		name string
		set  bool
	}{{"kubernetes", a.Kubernetes != nil}, {"approle", a.AppRole != nil}, {"jwt", a.JWT != nil}, {"cert", a.Cert != nil}, {"token", a.Token != nil}} {
		if m.set {
			given = append(given, m.name)
		}
	}
	switch len(given) {
	case 0:
		f.at(p, "is required for the %s: exactly one of kubernetes, approle, jwt, cert, token (VAULT_TOKEN is read by operators' commands only)", who)
	case 1:
	default:
		f.at(p, "has %s: keep exactly one of them", strings.Join(given, " and "))
	}
	if k := a.Kubernetes; k != nil {
		f.need(p+".kubernetes.role", k.Role, "the role in Vault that is bound to this ServiceAccount")
	}
	if k := a.AppRole; k != nil {
		f.need(p+".approle.role_id", k.RoleID, "the role's id, as `vault read auth/approle/role/NAME/role-id` prints it")
		f.need(p+".approle.secret_id_file", k.SecretIDFile, "the file that holds the secret id")
	}
	if k := a.JWT; k != nil {
		f.need(p+".jwt.token_file", k.TokenFile, "the file that holds the signed token")
	}
	if k := a.Cert; k != nil {
		f.need(p+".cert.cert_file", k.CertFile, "the client certificate's PEM file")
		f.need(p+".cert.key_file", k.KeyFile, "the PEM file of the certificate's key")
	}
	if k := a.Token; k != nil {
		f.need(p+".token.file", k.File, "the file in which something else keeps a token fresh")
	}
}
