// Package spec says what a provider is: its hosts, how a key is attached, how
// a key is probed, which path needs which capability, and which variables its
// SDKs read. It is pure data: agent/provider gives it behaviour.
//
// A Spec comes from the embedded catalog (Catalog, Lookup) or from a
// configuration, whose entries Resolve lays over the catalog, completes and
// checks. Nothing in this package keeps state after the catalog was parsed;
// every function is safe for concurrent use.
package spec

// Spec describes one provider. The catalog and a configuration's providers
// share this shape.
type Spec struct {
	// Name is the provider's name, and its route's (/name/) where no entry says otherwise.
	Name string `yaml:"name"`
	// Hosts are the only places its key may go: "host" (port 443) or
	// "host:port", lower case, no wildcard unless "*." stands for a label that
	// the provider alone assigns. {param} stands for a parameter given by `with`.
	Hosts []string `yaml:"hosts"`
	// BaseURL is what a route's path is appended to; its host is one of Hosts.
	// Default: https:// and the first host.
	BaseURL string `yaml:"base_url"`
	// DefaultPrefix (as "/v1") is put before a route's path whose first segment
	// is no API version and which does not begin with DefaultPrefix already.
	DefaultPrefix string `yaml:"default_prefix"`
	Attach        Attach `yaml:"attach"`
	// Also are further headers from the secret's other fields, each sent only
	// where the secret has the field (OpenAI-Organization).
	Also []Attach `yaml:"also"`
	// Strip names what else may carry a client's own credential to this provider.
	Strip Strip `yaml:"strip"`
	Probe Probe `yaml:"probe"`
	// Dead lists the statuses that say the key itself is refused. Default: [401].
	// Some providers say it with 400, so a status alone is a suspicion: only a
	// request that another key then answers otherwise proves it.
	Dead []int `yaml:"dead"`
	// Capabilities are tried in order, the first match counts. Default: the
	// paths of OpenAI's API below BaseURL.
	Capabilities []Capability `yaml:"capabilities"`
	// Errors is the shape of its error bodies: openai, anthropic, google, aws,
	// cohere or problem (RFC 9457, the default).
	Errors string `yaml:"errors"`
	// KeyPattern is a regular expression (RE2) that its keys match; "" if they have no recognisable form.
	KeyPattern string `yaml:"key_pattern"`
	// KeyPrefix is the part of a key that is no secret ("sk-proj-"); the longest that all share.
	KeyPrefix string `yaml:"key_prefix"`
	SDKEnv    SDKEnv `yaml:"sdk_env"`
	// Echoes: answers are known to repeat what was sent, so an answer that cannot be scrubbed is refused.
	Echoes bool `yaml:"echoes"`
	// AllowPlaintext allows http:// to a loopback address, and nowhere else.
	AllowPlaintext bool `yaml:"allow_plaintext"`
	// CAFile is a PEM file of roots trusted for this provider beside the system's.
	CAFile string `yaml:"ca_file"`
}

// Problem is one mistake in an entry.
type Problem struct {
	Field   string // path relative to the entry: "hosts[0]", "probe.path", "with.region"
	Message string // what to write instead; never holds a secret, for an entry has none
}

// String is "field: message".
func (p Problem) String() string { return p.Field + ": " + p.Message }
