package main

// mutant is one guard and how it is broken: each old text stands once in its file.
type mutant struct {
	name  string
	cases string // where to look first, as in host/connect; then everywhere
	edits []edit
}

type edit struct{ file, old, new string }

// one is a guard that one edit breaks.
func one(name, cases, file, old, new string) mutant {
	return mutant{name, cases, []edit{{file, old, new}}}
}

const (
	guard    = "agent/upstream/guard.go"
	dialer   = "agent/upstream/dialer.go"
	mitm     = "agent/mitm/mitm.go"
	headers  = "agent/proxy/headers.go"
	routing  = "agent/proxy/routing.go"
	outgoing = "agent/proxy/outgoing.go"
	answer   = "agent/proxy/answer.go"
	streams  = "agent/proxy/streams.go"
	head     = "agent/proxy/h1/head.go"
	route    = "agent/provider/route.go"
	attach   = "agent/provider/attach.go"
	specs    = "agent/provider/spec/check.go"
	settings = "config/listen.go"
)

var mutants = []mutant{
	// Where connections go.
	one("guard: link-local addresses", "ssrf/", guard, "ip.IsLinkLocalUnicast() || ", ""),
	one("guard: unspecified addresses", "ssrf/", guard, " || ip.IsUnspecified()", ""),
	one("guard: metadata services elsewhere", "ssrf/", guard, "if m.Contains(ip) {", "if false && m.Contains(ip) {"),
	one("guard: IPv6 that stands for IPv4", "ssrf/", guard, "if c.prefix.Contains(ip) {", "if false && c.prefix.Contains(ip) {"),
	one("guard: the agent's own listeners", "ssrf/own", guard, " || own != nil && own(netip.AddrPortFrom(ip, ap.Port()))", ""),
	one("guard: checked when the socket connects", "ssrf/", dialer, "return checkAddress(address, o.Own)", "return nil"),
	one("guard: addresses behind an egress proxy", "ssrf/", dialer, "if literal {", "if false && literal {"),
	one("TLS: the certificate is verified", "sni/upstream", dialer, "ClientSessionCache: tls.NewLRUClientSessionCache(64),", "InsecureSkipVerify: true,"),
	one("TLS: 1.2 at least", "sni/upstream-tls", dialer, "RootCAs: roots, MinVersion: tls.VersionTLS12", "RootCAs: roots, MinVersion: tls.VersionTLS10"),
	one("unmatched: deny is what is not written", "", "agent/proxy/connect.go", "if !rt.Tunnel {", "if false && !rt.Tunnel {"),

	// Which host it is.
	one("tunnel: the Host inside is the tunnel's", "host/connect", "agent/proxy/server.go", "return err == nil && name == p.host && port == p.port", `return err == nil && name+port != ""`),
	one("tunnel: the server name is the tunnel's", "sni/client", "agent/proxy/connect.go", "if hello.ServerName != \"\" && !strings.EqualFold(hello.ServerName, host) {", "if false && !strings.EqualFold(hello.ServerName, host) {"),
	one("wildcard: one label", "host/wildcard", "agent/provider/spec/host.go", " && strings.IndexByte(host[:n], '.') < 0", ""),
	one("wildcard: a label of its own", "host/host-that", "agent/provider/spec/host.go", "n > 0 && host[n] == '.' && host[n+1:] == h.Name", "n > 0 && host[n+1:] == h.Name"),
	one("authority: no trailing dot", "name/trailing", routing, `labels := strings.Split(h, ".")`, `labels := strings.Split(strings.TrimSuffix(h, "."), ".")`),
	one("authority: no number for a name", "name/", routing, "if last[0] >= '0' && last[0] <= '9' {", "if false && last[0] >= '0' {"),
	one("authority: no IPv4 in brackets", "name/mapped", routing, "if ip == nil || ip.To4() != nil {", "if ip == nil {"),
	one("authority: no zero before a port", "name/port", routing, "len(p) > 5 || p[0] == '0'", "len(p) > 5"),
	one("authority: plain characters only", "name/", routing, "(c < '0' || c > '9') && c != '-' && c != '_' {\n\t\t\t\treturn false", "(c < '0' || c > '9') && c != '-' && c != '_' {\n\t\t\t\tcontinue"),
	one("route: under the listener's own address", "host/route", "agent/proxy/origin.go", "if self == \"\" || strings.EqualFold(x.host, self) {", "if true || strings.EqualFold(x.host, self) {"),
	one("route: not for pages of other sites", "ssrf/page", "agent/proxy/origin.go", `if v == "cross-site" || v == "same-site" {`, `if v == "" {`),

	// What the client's request brings along.
	one("strip: credentials", "credential/", routing, "stripSet(provider.AuthHeaders(specs...))", "stripSet(nil)"),
	one("strip: credentials with underscores", "credential/underscore", "agent/proxy/h1/text.go", "t['_'] = '-'", "t['_'] = '_'"),
	one("strip: credentials of other providers", "credential/every", "agent/provider/auth.go", "add(s.Attach.Header)", "_ = s.Attach.Header"),
	one("strip: what Connection names", "connection/names", headers, " || nominated(&x.req.Head, f.Name)", ""),
	one("strip: hop-by-hop fields", "connection/", headers, `"Te", "Trailer", "Transfer-Encoding"`, `"Transfer-Encoding"`),
	one("strip: what other proxies say", "host/forwarded", headers, `"Forwarded", "X-Forwarded-For", "X-Forwarded-Host"`, `"X-Forwarded-For"`),
	one("strip: credentials in the query", "credential/", "agent/provider/auth.go", "for _, name := range s.Strip.Query {", "for _, name := range s.Strip.Query[:0] {"),
	one("strip: a query's semicolons", "credential/gemini", routing, `bytes.IndexAny(raw, "&;")`, `bytes.IndexAny(raw, "&")`),
	one("strip: a query's names in any case", "credential/gemini", routing, "if strings.EqualFold(n, name) {", "if n == name {"),
	one("strip: a query's names when escaped", "credential/gemini", routing, "plain, err := url.QueryUnescape(name); err == nil {\n\t\t\tname = plain", "plain, err := url.QueryUnescape(name); err == nil {\n\t\t\t_ = plain"),
	{"attach: the query's only value", "credential/query", []edit{
		{"agent/provider/auth.go", "add(s.Attach.Query)", "_ = s.Attach.Query"},
		{attach, `if p.attach.query != "" && `, `if false && `},
	}},
	{"attach: the header's only value", "credential/", []edit{
		{routing, "stripSet(provider.AuthHeaders(specs...))", "stripSet(nil)"},
		{headers, " || x.t.Provider.Attached(f.Name, x.fields)", ""},
	}},
	one("websocket: keys in subprotocols", "credential/websocket", outgoing, `&& !strings.Contains(strings.ToLower(p), "api-key")`, ""),
	one("websocket: nothing but websocket", "upgrade/", outgoing, `n != 1 || !h1.EqualFold(protocol, "websocket")`, `n == 0 || protocol == nil`),

	// How a request is framed and what it asks for.
	one("framing: length and chunked", "smuggling/", head, "case f.encodings == 1 && f.lengths == 1:", "case f.encodings == 1 && f.lengths > 1:"),
	one("framing: chunk sizes are digits", "smuggling/", "agent/proxy/h1/chunked.go", "default:\n\t\treturn errSize\n\t}\n\tc.left", "default:\n\t\treturn nil\n\t}\n\tc.left"),
	one("framing: no space before a colon", "smuggling/space", head, "for n < len(line) && chars[line[n]]&isToken != 0 {", "for n < len(line) && (chars[line[n]]&isToken != 0 || line[n] == ' ') {"),
	one("framing: no control character in a value", "smuggling/", head, "if !text(value) {", "if len(value) > len(line) {"),
	one("framing: one Host", "smuggling/two-hosts", head, "case f.hosts > 1 || f.hosts == 0 && r.Minor == 1:", "case f.hosts == 0 && r.Minor == 1:"),
	one("framing: one Content-Length", "smuggling/two", head, "case f.lengths > 1:", "case f.lengths > 9:"),
	one("framing: nothing but chunked", "smuggling/", head, `if !bytes.EqualFold(f.encoding, []byte("chunked")) {`, `if len(f.encoding) == 0 {`),
	one("framing: fragments in a target", "path/fragment", head, "c <= ' ' || c >= 0x7f || c == '#'", "c <= ' ' || c >= 0x7f"),
	one("framing: targets beyond ASCII", "", head, "c <= ' ' || c >= 0x7f || c == '#'", "c <= ' ' || c == '#'"),
	one("path: dot segments", "path/", route, "func climbs(dots int, other bool) bool { return !other", "func climbs(dots int, other bool) bool { return false && !other"),
	one("path: empty segments", "path/empty", route, ` || strings.Contains(path, "//")`, ""),
	one("path: control characters, escaped", "path/", route, "if c < ' ' || c == 0x7f {\n\t\t\treturn false", "if c < ' ' || c == 0x7f {\n\t\t\t_ = c"),
	one("path: parameters of a segment", "path/dots-with", route, "case c == ';':\n\t\t\tskip = true", "case c == ';':\n\t\t\tother = true"),

	one("streams: only where the provider has them", "stream/not-where", "agent/proxy/connect.go", "to != nil && to.t.Transport != nil", "to != nil && to.t.Pool != nil"),
	one("streams: one Host", "stream/host", streams, `name != "Host" || v != r.Host`, `name != "Host"`),
	one("streams: one length, and a true one", "stream/length", streams, "!chunked && values[0] != length {", "chunked {"),
	one("streams: the tunnel's scheme", "stream/plain", streams, "if r.TLS == nil &&", "if false &&"),
	one("streams: trailers are searched for keys", "stream/trailers", streams, "x.masked += x.s.known.Mask(f.Value, redact.WhereHeader)", "_ = redact.WhereHeader"),
	one("streams: trailers of the connection", "stream/trailers", streams, "!f.Valid() || stripAnswer.has(f.Name)", "!f.Valid()"),

	// What comes back.
	{"answer: fields are searched for keys", "echo/field", []edit{
		{answer, "x.s.known.Mask((*t.in)[t.from:t.r], redact.WhereHeader)", "_ = redact.WhereHeader"},
		{answer, "x.s.known.Mask(f.Value, redact.WhereHeader)", "_ = f.Value"},
	}},
	one("answer: locations lead back to the route", "redirect/back", headers, "err != nil || !t.Provider.Lists(host, port)", "err != nil || t.Provider.Lists(host, port)"),
	one("redact: base64", "echo/", "agent/redact/forms.go", "for _, alphabet := range alphabets {\n\t\tfor shift := range 3 {", "for _, alphabet := range alphabets {\n\t\tfor shift := range 0 {"),
	one("redact: percent and JSON escapes", "echo/", "agent/redact/forms.go", "for _, s := range stylesFor(raw) {\n\t\tadd(", "for _, s := range stylesFor(raw)[:0] {\n\t\tadd("),
	one("redact: keys across pieces", "echo/", "agent/redact/stream.go", "\tout := cur[:sc.hold]", "\tsc.hold = len(cur)\n\tout := cur[:sc.hold]"),
	one("redact: compressed answers of who echoes", "echo/compressed", answer, "if x.t.Provider.Spec().Echoes {", "if false && x.t.Provider.Spec().Echoes {"),

	// The CA.
	one("ca: leaves are forgotten", "ca/flood", mitm, "for len(c.leaves) > c.max {", "for false && len(c.leaves) > c.max {"),
	one("ca: one leaf a host", "ca/one-host", mitm, "if el == nil {\n\t\treturn nil", "if true || el == nil {\n\t\treturn nil"),
	one("ca: constraints are critical", "ca/constrained", "agent/mitm/names.go", "t.PermittedDNSDomainsCritical = true", "t.PermittedDNSDomainsCritical = false"),
	one("ca: state in memory only", "port/refuses-ca", "agent/mitm/memory_linux.go", "kind != unix.TMPFS_MAGIC", "false && kind != unix.TMPFS_MAGIC"),
	one("ca: state for its owner alone", "ca/state", "agent/mitm/state.go", "perm&0o077 != 0", "perm&0o077 == 0o777"),

	// What may be configured, and stored.
	one("settings: TLS to providers", "port/refuses-plain", specs, `if scheme == "http" && !s.AllowPlaintext {`, `if scheme == "http" && s.BaseURL == "" {`),
	one("settings: plain HTTP on loopback only", "port/refuses-plain", specs, `} else if scheme == "http" && !h.Loopback() {`, `} else if scheme == "http" && s.BaseURL == "" {`),
	one("settings: wildcards of the provider's own", "port/refuses-wildcard", specs, "case h.Wildcard && !slices.Contains(wildcards, h.String()):", "case h.Wildcard && len(text) == 0:"),
	one("settings: loopback unless said otherwise", "port/refuses-listener", settings, "!proxy.Addr().IsLoopback() && !l.AllowRemote", "!proxy.Addr().IsLoopback() && l.AllowRemote"),
	one("settings: a socket has its users", "port/refuses-socket", settings, `if len(f.Listen.AllowUIDs) == 0 && !f.mistyped("listen.allow_uids") {`, `if len(f.Listen.AllowUIDs) < 0 {`),
	one("settings: HTTP/2 debugging prints keys", "port/refuses-http2", "agent/agent.go", `if strings.Contains(o.Getenv("GODEBUG"), "http2debug") {`, `if strings.Contains(o.Getenv("GODEBUG"), "no such thing") {`),
	one("settings: Vault is verified", "port/refuses-vault", "config/store.go", `if skip := f.env("VAULT_SKIP_VERIFY"); skip != "" {`, `if skip := ""; skip != "" {`),
	one("keys: line breaks in a value", "secret/add", "agent/secret/check.go", "if c >= 0x21 && c <= 0x7e {", "if c <= 0x7e {"),
	one("keys: placeholders for a value", "secret/add", "agent/secret/check.go", "case string(b) == Placeholder:", "case false:"),

	// When a key ends.
	one("key: a lease ends", "stale/lease", "agent/sync/loop.go", `l.expire(t.id, "its lease is over")`, `_ = t.id`),
	one("key: the store is away too long", "stale/vault-down", "agent/sync/loop.go", "if l.stales() && now.Sub(l.lastContact) >= l.o.MaxStale {", "if false && l.stales() {"),
	one("key: another environment's", "stale/another", "agent/sync/kv.go", `env != "" && env != s.environment`, `env != "" && env == s.environment`),
}
