package spec

import "time"

// Attach says how a credential goes onto a request. Exactly one form is set:
// Header, Query or Basic. Formats refer to the secret's fields in braces;
// "api_key" is the key itself.
type Attach struct {
	// Header (canonical or not) carries Format; {Authorization, "Bearer {api_key}"} is the bearer form.
	Header string `yaml:"header"`
	Format string `yaml:"format"` // of the header or the query parameter; default "{api_key}"
	// Query is the name of a query parameter that carries the key.
	Query string `yaml:"query"`
	// Basic is RFC 7617: both parts are formats.
	Basic *Basic `yaml:"basic"`
	// Pass, in `also` only, leaves a client's own header alone where the secret
	// lacks the field: for identifiers that are no credential.
	Pass bool `yaml:"pass"`
}

// Basic is HTTP Basic authentication.
type Basic struct {
	Username string `yaml:"username"`
	Password string `yaml:"password"` // default "{api_key}"
}

// Strip names headers and query parameters, beside those that Attach and Also
// use, that carry a credential to this provider: a client's own never gets there.
type Strip struct {
	Headers []string `yaml:"headers"`
	Query   []string `yaml:"query"`
}

// Probe is a cheap request that tells whether a key is live. An answer is live
// if its status is in Live and neither DeadBody nor DeadIf says otherwise;
// dead if its status is in Dead or DeadText says so. 403 and 429, where not in
// Dead, are live too: the provider knew the key. Anything else says nothing.
type Probe struct {
	Method string `yaml:"method"` // GET (default), HEAD or POST
	Path   string `yaml:"path"`   // below the base URL, may have a query; "" means the provider has no cheap probe: unknown
	// Host is where to ask, one of the provider's hosts; default: the base
	// URL's. Where it is set Path begins at that host's root.
	Host    string            `yaml:"host"`
	Headers map[string]string `yaml:"headers"`
	Body    string            `yaml:"body"`
	Live    []int             `yaml:"live"` // default [200]
	Dead    []int             `yaml:"dead"` // default [401]
	// DeadBody refines: a live status whose JSON body has this field false is dead ("valid" for Cohere).
	DeadBody string `yaml:"dead_unless"`
	// DeadIf refines: a live status whose JSON body has one of these fields true is dead.
	DeadIf []string `yaml:"dead_if"`
	// DeadText refines: an error status whose body contains one of these is dead ("API_KEY_INVALID" for Gemini).
	DeadText []string      `yaml:"dead_text"`
	Timeout  time.Duration `yaml:"timeout"` // of the whole exchange, 100ms–1m; default 5s
}

// Capability names what the paths that match a pattern are for. See Pattern
// for how paths are matched.
type Capability struct {
	Path string `yaml:"path"`
	Name string `yaml:"name"` // chat, embeddings, images, audio, moderations, realtime, files, batches, fine_tuning, models, rerank
	// Methods restricts it to these methods; empty: any.
	Methods []string `yaml:"methods"`
}
