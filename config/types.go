// Package config is the shape of postern's YAML: strict loading, defaults and
// validation. Every mistake is reported at once, with its field's path and what
// to write instead. No key is ever part of it; of what a person may have pasted
// into the wrong field no message repeats anything that could be one.
package config

import (
	"net/url"
	"strings"
	"time"

	"github.com/postern-proxy/postern/agent/provider/spec"
	"github.com/postern-proxy/postern/agent/rotation"
)

// Config is one configuration file after defaults.
type Config struct {
	// Version of this shape. Required: 1.
	Version int `yaml:"version"`
	// Environment that the keys belong to, as in prod; a key whose metadata
	// names another is refused. Required.
	Environment string `yaml:"environment"`
	// ProxyID is the one scope whose keys the agent serves, as in px_acme_prod.
	// Required, but for a file with a Server, which serves all proxy ids of its
	// environment: then it may be "", and ValidateAgent and ValidateScope say so
	// to whoever cannot do without.
	ProxyID string `yaml:"proxy_id"`
	// Service is for labels and metrics. Optional.
	Service string `yaml:"service"`
	Listen  Listen `yaml:"listen"`
	Egress  Egress `yaml:"egress"`
	// Store is required, but for VAULT_ADDR in the environment, which stands for a Vault there.
	Store Store `yaml:"store"`
	// Providers in the order written; after Parse each holds the resolved Spec.
	// The agent needs one at least, operators' commands none.
	Providers []Provider `yaml:"providers"`
	Rotation  Rotation   `yaml:"rotation"`
	CA        CA         `yaml:"ca"`
	// Unmatched is what becomes of hosts that no provider lists: deny (default) or tunnel.
	Unmatched string `yaml:"unmatched"`
	// RequireAPIKey must be false: this version has no API keys to require.
	RequireAPIKey bool  `yaml:"require_api_key"`
	Audit         Audit `yaml:"audit"`
	Log           Log   `yaml:"log"`
	// Server is `postern server`'s own; nil where the file has no such section.
	// The agent and operators' commands ignore it, and Issuers.
	Server *Server `yaml:"server"`
	// Issuers make and revoke keys at the providers, at most one for each. Default none.
	Issuers []Issuer `yaml:"issuers"`

	// Source is where it was read from ("postern.yaml", "env:NAME", "built-in default"), for messages.
	Source string `yaml:"-"`
	// Notes are no mistakes, but worth a line of the log: what was decided where the file left it open.
	Notes []Error `yaml:"-"`

	where map[string]int // lines of everything written, by path
	file  string
}

// Listen is where the agent listens.
type Listen struct {
	// Proxy is IP:port (default 127.0.0.1:8700; port 0 is any free one), or
	// unix:///absolute/path together with AllowUIDs.
	Proxy string `yaml:"proxy"`
	// AllowUIDs are the user ids that may connect to a Unix socket; only and always with one.
	AllowUIDs []int `yaml:"allow_uids"`
	// AllowRemote lets Proxy be an address that is not loopback. Whoever reaches
	// it can use the keys. Default false.
	AllowRemote bool `yaml:"allow_remote"`
	// Hosts are further Host values accepted on routes, as host or host:port;
	// after Parse the former has Proxy's port. Default none.
	Hosts []string `yaml:"hosts"`
	// Admin is IP:port for liveness, readiness and metrics. Default 127.0.0.1:8701;
	// it may be reachable from elsewhere, and may not be Proxy's port.
	Admin string `yaml:"admin"`
}

// Egress is how the agent itself leaves.
type Egress struct {
	// Proxy is a corporate CONNECT proxy: http://[user:password@]host:port (or
	// https), or env:NAME for a variable that holds one; see ProxyURL. "" (the
	// default), and a variable that is not set: directly.
	Proxy string `yaml:"proxy"`
	// NoProxy lists what is reached without it, as NO_PROXY does. Default none.
	NoProxy string `yaml:"no_proxy"`
	// CAFile is a PEM file of roots trusted beside the system's. Optional.
	CAFile string `yaml:"ca_file"`

	proxy *url.URL // after env:NAME was looked up
}

// Store has exactly one member set.
type Store struct {
	Vault  *Vault  `yaml:"vault"`
	Sealed *Sealed `yaml:"sealed"`
}

// Vault is HashiCorp Vault, KV v2.
type Vault struct {
	// Address is https://host:port, or http to a loopback address. Default $VAULT_ADDR.
	Address string `yaml:"address"`
	// Namespace, without slashes at its ends. Default $VAULT_NAMESPACE; "" is the root.
	Namespace string `yaml:"namespace"`
	// CAFile is a PEM file of the roots that Vault's certificate is verified
	// with. Default $VAULT_CACERT; "" is the system's.
	CAFile string `yaml:"ca_file"`
	Mount  string `yaml:"mount"`  // of the KV v2 engine; default secret
	Prefix string `yaml:"prefix"` // below the mount; default postern
	// Auth is who the agent is; see ValidateAgent.
	Auth Auth `yaml:"auth"`
	// Poll is how often each key's metadata is read: 1s or more, default 5s.
	Poll time.Duration `yaml:"poll"`
	// MaxStale is how long keys outlive Vault's last answer: Poll or more, default 24h.
	MaxStale time.Duration `yaml:"max_stale"`
}

// Auth has exactly one member set; operators' commands ignore it.
type Auth struct {
	Kubernetes *KubernetesAuth `yaml:"kubernetes"`
	AppRole    *AppRoleAuth    `yaml:"approle"`
	JWT        *JWTAuth        `yaml:"jwt"`
	Cert       *CertAuth       `yaml:"cert"`
	Token      *TokenAuth      `yaml:"token"`
}

// KubernetesAuth logs in with a projected ServiceAccount token.
type KubernetesAuth struct {
	Mount     string `yaml:"mount"`      // default kubernetes
	Role      string `yaml:"role"`       // required
	TokenFile string `yaml:"token_file"` // default /var/run/secrets/postern/token
}

// AppRoleAuth logs in with a role id and a secret id from a file.
type AppRoleAuth struct {
	Mount        string `yaml:"mount"`          // default approle
	RoleID       string `yaml:"role_id"`        // required
	SecretIDFile string `yaml:"secret_id_file"` // required
}

// JWTAuth logs in with a signed token from a file.
type JWTAuth struct {
	Mount     string `yaml:"mount"`      // default jwt
	Role      string `yaml:"role"`       // default: the mount's own default role
	TokenFile string `yaml:"token_file"` // required
}

// CertAuth logs in with a TLS client certificate.
type CertAuth struct {
	Mount    string `yaml:"mount"`     // default cert
	Role     string `yaml:"role"`      // default: whichever role trusts the certificate
	CertFile string `yaml:"cert_file"` // required
	KeyFile  string `yaml:"key_file"`  // required
}

// TokenAuth uses a token that something else keeps fresh in a file.
type TokenAuth struct {
	File string `yaml:"file"` // required
}

// Sealed is the embedded store: one file of encrypted values.
type Sealed struct {
	File          string        `yaml:"file"`           // required
	KeyFile       string        `yaml:"key_file"`       // exactly one of key_file, passphrase_env
	PassphraseEnv string        `yaml:"passphrase_env"` // the name of a variable, not the passphrase
	Poll          time.Duration `yaml:"poll"`           // 200ms or more, default 1s
}

// Provider is one configured provider: a catalog entry, changed or completed, or one described in full.
type Provider struct {
	spec.Spec `yaml:",inline"`
	// Provider is the catalog entry's name. Default: Name, where the catalog has
	// it; "" after Parse for a provider described in full.
	Provider string `yaml:"provider"`
	// Key names the provider key in the store; default Name. Several entries may name one. "" with VaultPath.
	Key string `yaml:"key"`
	// VaultPath is a secret laid out by somebody else, as Vault's API has its
	// path (secret/data/team/openai). It stands in place of Key, with store.vault only.
	VaultPath string `yaml:"vault_path"`
	Field     string `yaml:"field"` // of VaultPath's secret; default api_key
	// Optional: the agent is ready without this entry's key. Default false.
	Optional bool `yaml:"optional"`
	// Forward: owns CONNECT to its hosts. Default true; of entries that share a
	// host at most one may. Never nil after Parse.
	Forward *bool `yaml:"forward"`
	HTTP2   bool  `yaml:"http2"` // towards the upstream, and offered inside tunnels to it; default false
	// With gives the parameters of the catalog entry's hosts ({resource: acme}).
	With map[string]string `yaml:"with"`
}

// Rotation is how a version that has no rotation record is brought in.
type Rotation struct {
	// Ramp's weights rise; empty (the default) moves all traffic at once, after the probe.
	Ramp rotation.Ramp `yaml:"ramp"`
	// Grace is how long the old version stays usable after the ramp: twice the store's poll or more, default 10m.
	Grace time.Duration `yaml:"grace"`
	// RejectRatio of failed requests, above 0 and up to 1, halts a new version. Default 0.05.
	RejectRatio float64 `yaml:"reject_ratio"`
}

// CA is where the interception CA's files go; see invariant I6.
type CA struct {
	// Dir is for ca.pem and bundle.pem, which clients of CONNECT trust. "": they are not written.
	Dir string `yaml:"dir"`
	// StateDir keeps the CA's private key over a restart: a tmpfs that no other
	// container mounts. "": in memory only. Neither directory may lie inside the other.
	StateDir string `yaml:"state_dir"`
}

// Audit is where entries go: "-" is standard output.
type Audit struct {
	File string `yaml:"file"` // default "-"
}

// Log is the agent's own log, on standard error.
type Log struct {
	Level  string `yaml:"level"`  // debug, info (default), warn, error
	Format string `yaml:"format"` // json (default), text
}

// Server is where the management API is served, over TLS only: every request
// carries a Vault token.
type Server struct {
	// Listen is IP:port (0: any free port); default 127.0.0.1:8702. It may be
	// reachable from elsewhere, and may be neither Listen.Proxy nor Listen.Admin.
	Listen string `yaml:"listen"`
	// CertFile and KeyFile are PEM files of the server's certificate, with its
	// chain, and its key. Required by ValidateServer.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}

// The kinds of issuers: whose API is spoken.
const (
	KindOpenAI     = "openai"
	KindOpenRouter = "openrouter"
	KindAnthropic  = "anthropic"
	KindAzure      = "azure"
	KindVault      = "vault"
)

// Issuer makes and revokes the keys of one provider. Which fields apply is the
// Kind's; those of another are refused.
type Issuer struct {
	// Provider whose keys these are: the catalog entry's name, or what the keys'
	// metadata has as provider. Required, no two alike.
	Provider string `yaml:"provider"`
	Kind     string `yaml:"kind"` // one of the constants above; required
	// AdminKey is where the admin credential is in the store: issuers/NAME, which
	// stands for issuers/<environment>/NAME. Required, but for vault, which the
	// server's own token reads.
	AdminKey string `yaml:"admin_key"`
	// BaseURL is what the vendor's paths are appended to, https only. Default
	// the vendor's own; not for vault.
	BaseURL string `yaml:"base_url"`
	// CAFile is a PEM file of roots trusted for BaseURL and LoginURL beside the system's. Optional.
	CAFile string `yaml:"ca_file"`

	Project string `yaml:"project"` // openai: as in proj_abc; required

	Subscription  string `yaml:"subscription"`   // azure: the id; required
	ResourceGroup string `yaml:"resource_group"` // azure; required
	Account       string `yaml:"account"`        // azure: the resource's name; required
	// LoginURL is where azure's tokens come from, https only; default https://login.microsoftonline.com.
	LoginURL string `yaml:"login_url"`

	// Spare is the one of azure's two keys, key1 or key2, that nothing uses: it is
	// made where the key in use is not one that was made here. Default "": then none is.
	Spare string `yaml:"spare"`

	// Path is vault's: of a dynamic engine, as Vault's API has it; required.
	Path string `yaml:"path"`
	// Field of Path's answer that holds the key; default api_key.
	Field string `yaml:"field"`
}

// AdminPath is where the admin credential is, relative to the store's root; "" for vault.
func (i Issuer) AdminPath(environment string) string {
	name, ok := strings.CutPrefix(i.AdminKey, issuersFolder)
	if !ok {
		return ""
	}
	return issuersFolder + environment + "/" + name
}
