package spec

import (
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Shapes are the error shapes that Spec.Errors may name.
func Shapes() []string {
	return []string{"openai", "anthropic", "google", "aws", "cohere", "problem"}
}

// placeholder mirrors secret.Placeholder, which this package may not import: a
// key pattern that matches it matches anything.
const placeholder = "attached-by-postern"

var (
	nameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	envRE  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	capRE  = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)
	varRE  = regexp.MustCompile(`\{[^}]*\}?`)
)

// check validates a spec that has its defaults, and makes hosts and base URL canonical.
func (c *checker) check(s Spec, wildcards []string) Spec {
	if !nameRE.MatchString(s.Name) {
		c.add("name", "write 1 to 63 of a-z, 0-9 and -, beginning with a letter or digit: it is the route's first segment")
	}
	hosts := c.hosts(s.Hosts, wildcards)
	for i, h := range hosts {
		if h.Name != "" {
			s.Hosts[i] = h.String()
		}
	}
	s.BaseURL = c.baseURL(s, hosts)
	if s.DefaultPrefix != "" && !cleanPath(s.DefaultPrefix) {
		c.add("default_prefix", "write a path that begins with / and has no empty, dot or escaped parts, as /v1")
	}
	c.attach("attach", s.Attach)
	c.also(s)
	for i, h := range s.Strip.Headers {
		c.header("strip.headers["+strconv.Itoa(i)+"]", h, framing)
	}
	for i, q := range s.Strip.Query {
		if q == "" {
			c.add("strip.query["+strconv.Itoa(i)+"]", "is empty; write the parameter's name")
		}
	}
	s.Probe.Host = c.probe(s, hosts)
	for i, n := range s.Dead {
		if n < 400 || n > 599 {
			c.add("dead["+strconv.Itoa(i)+"]", "%d is no status that refuses a key; write one from 400 to 599", n)
		}
	}
	c.capabilities(s.Capabilities)
	if !slices.Contains(Shapes(), s.Errors) {
		c.add("errors", "%q is not known; write one of %s", printable(s.Errors), strings.Join(Shapes(), ", "))
	}
	c.key(s)
	c.sdkEnv("sdk_env.vars", s.SDKEnv.Vars)
	c.sdkEnv("sdk_env.shared", s.SDKEnv.Shared)
	for i, name := range s.SDKEnv.Keys {
		if !envRE.MatchString(name) {
			c.add("sdk_env.keys["+strconv.Itoa(i)+"]", "%q is no variable's name", printable(name))
		}
	}
	return s
}

// hosts parses every host; one that is wrong leaves a zero Host in its place.
func (c *checker) hosts(list, wildcards []string) []Host {
	out := make([]Host, len(list))
	if len(list) == 0 {
		c.add("hosts", "list at least one host that the key may go to")
	}
	for i, text := range list {
		field := "hosts[" + strconv.Itoa(i) + "]"
		h, err := ParseHost(text, "443")
		switch {
		case err != nil:
			c.add(field, "%q %s", printable(text), err)
		case h.Wildcard && !slices.Contains(wildcards, h.String()):
			c.add(field, "%q: a wildcard is allowed only where the provider alone assigns the label%s; name the exact host",
				printable(text), allowed(wildcards))
		case slices.Contains(out[:i], h):
			c.add(field, "%q is listed twice", printable(text))
		default:
			out[i] = h
		}
	}
	return out
}

func allowed(wildcards []string) string {
	if len(wildcards) == 0 {
		return ""
	}
	return " (here: " + strings.Join(wildcards, ", ") + ")"
}

// unlisted reports whether h is surely none of hosts: one that could not be
// read might be it, and was reported already.
func unlisted(hosts []Host, h Host) bool {
	return !slices.ContainsFunc(hosts, func(l Host) bool { return l.Name == "" || l.Matches(h.Name, h.Port) })
}

// baseURL returns the canonical base URL.
func (c *checker) baseURL(s Spec, hosts []Host) string {
	if s.BaseURL == "" {
		if len(hosts) > 0 {
			c.add("base_url", "write it where the first host is a wildcard, as https://eu.api.example.com")
		}
		return ""
	}
	u, err := url.Parse(s.BaseURL)
	scheme, rest, ok := strings.Cut(s.BaseURL, "://")
	if err != nil || !ok || scheme != "https" && scheme != "http" {
		c.add("base_url", "write https://host[:port][/path] (scheme in lower case)")
		return s.BaseURL
	}
	if u.User != nil || strings.ContainsAny(rest, "?#@") {
		c.add("base_url", "leave out user information, query and fragment: the key is attached by attach")
		return s.BaseURL
	}
	authority, _, _ := strings.Cut(rest, "/")
	h, err := ParseHost(authority, map[string]string{"https": "443", "http": "80"}[scheme])
	if err != nil {
		if slices.Index(s.Hosts, authority) < 0 { // else it was reported at hosts
			c.add("base_url", "host %q %s", printable(authority), err)
		}
		return s.BaseURL
	}
	path := rest[len(authority):]
	if path != "" && !cleanPath(path) {
		c.add("base_url", "its path has empty, dot or escaped parts; write it plainly, as /api")
	}
	if scheme == "http" && !s.AllowPlaintext {
		c.add("base_url", "a key leaves over TLS only; write https://, or allow_plaintext: true for a loopback address")
	} else if scheme == "http" && !h.Loopback() {
		c.add("base_url", "plain HTTP is for literal loopback addresses only; write 127.0.0.1 or [::1], or https://")
	}
	if h.Wildcard {
		c.add("base_url", "has a wildcard; name the exact host")
	} else if unlisted(hosts, h) {
		c.add("base_url", "its host is not one of hosts; add %s there", h)
	}
	authority = h.String()
	if scheme == "http" && h.Port == "80" {
		authority = h.bare()
	} else if scheme == "http" {
		authority = h.bare() + ":" + h.Port
	}
	return scheme + "://" + authority + path
}

// cleanPath reports whether p is /seg[/seg…] of unreserved characters.
func cleanPath(p string) bool {
	if p == "" || p[0] != '/' {
		return false
	}
	for seg := range strings.SplitSeq(p[1:], "/") {
		if seg == "" || seg == "." || seg == ".." {
			return false
		}
		for i := 0; i < len(seg); i++ {
			if !isAlnum(seg[i]) && !strings.ContainsRune("-._~", rune(seg[i])) {
				return false
			}
		}
	}
	return true
}

// probe checks the probe and returns its canonical host.
func (c *checker) probe(s Spec, hosts []Host) string {
	p := s.Probe
	if p.Path == "" {
		if p.Method != "" || p.Host != "" || p.Body != "" || p.DeadBody != "" || p.Timeout != 0 ||
			len(p.Headers)+len(p.Live)+len(p.Dead)+len(p.DeadIf)+len(p.DeadText) > 0 {
			c.add("probe.path", "write the path to ask, as /v1/models: without it there is no probe")
		}
		return ""
	}
	path, query, _ := strings.Cut(p.Path, "?")
	if path != "/" && !cleanPath(path) {
		c.add("probe.path", "write a path that begins with / and has no empty, dot or escaped parts")
	}
	if strings.ContainsAny(query, "#") || strings.ContainsFunc(query, func(r rune) bool { return r <= ' ' || r > '~' }) {
		c.add("probe.path", "its query holds a character that must be escaped")
	}
	if p.Method != "GET" && p.Method != "HEAD" && p.Method != "POST" {
		c.add("probe.method", "write GET, HEAD or POST")
	}
	if p.Host != "" {
		h, err := ParseHost(p.Host, "443")
		if err != nil {
			c.add("probe.host", "%q %s", printable(p.Host), err)
		} else if h.Wildcard || unlisted(hosts, h) {
			c.add("probe.host", "%q is not one of hosts; a probe carries the key", printable(p.Host))
		} else {
			p.Host = h.String()
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Headers)) {
		c.header("probe.headers."+printable(name), name, framing)
		if strings.EqualFold(name, s.Attach.Header) {
			c.add("probe.headers."+name, "carries the key; leave it to attach")
		}
		if strings.ContainsFunc(p.Headers[name], func(r rune) bool { return r < ' ' || r > '~' }) {
			c.add("probe.headers."+printable(name), "its value may hold printable ASCII only")
		}
	}
	if len(p.Body) > 64<<10 {
		c.add("probe.body", "is longer than 64 KiB; a probe is cheap")
	}
	c.statuses("probe.live", p.Live, nil)
	c.statuses("probe.dead", p.Dead, p.Live)
	for i, t := range p.DeadText {
		if len(t) < 4 {
			c.add("probe.dead_text["+strconv.Itoa(i)+"]", "is too short to mean anything; write a text that only a refused key draws")
		}
	}
	for i, f := range p.DeadIf {
		if f == "" {
			c.add("probe.dead_if["+strconv.Itoa(i)+"]", "is empty; write the name of a field of the JSON answer")
		}
	}
	if p.Timeout < 100*time.Millisecond || p.Timeout > time.Minute {
		c.add("probe.timeout", "%s is out of range; write 100ms to 1m", p.Timeout)
	}
	return p.Host
}

func (c *checker) statuses(field string, list, not []int) {
	for i, n := range list {
		if n < 100 || n > 599 {
			c.add(field+"["+strconv.Itoa(i)+"]", "%d is no HTTP status; write one from 100 to 599", n)
		} else if slices.Contains(not, n) {
			c.add(field+"["+strconv.Itoa(i)+"]", "%d is listed as live, too", n)
		}
	}
}

func (c *checker) capabilities(list []Capability) {
	for i, cap := range list {
		field := "capabilities[" + strconv.Itoa(i) + "]"
		if _, err := ParsePattern(cap.Path); err != nil {
			c.add(field+".path", "%q %s", printable(cap.Path), err)
		}
		if !capRE.MatchString(cap.Name) {
			c.add(field+".name", "write a name of a-z, 0-9 and _, as chat or embeddings")
		}
		for j, m := range cap.Methods {
			if m == "" || m != strings.ToUpper(m) || !isToken(m) {
				c.add(field+".methods["+strconv.Itoa(j)+"]", "%q is no method; write it in upper case, as POST", printable(m))
			}
		}
	}
}

func (c *checker) key(s Spec) {
	if s.KeyPattern != "" {
		re, err := regexp.Compile(s.KeyPattern)
		if err != nil {
			c.add("key_pattern", "is no RE2 expression: %s", err)
		} else if re.MatchString("") || re.MatchString(placeholder) {
			c.add("key_pattern", "matches what is no key (nothing at all, or %q); write what all keys have in common, as sk-[0-9a-f]{32}", placeholder)
		}
	}
	if len(s.KeyPrefix) > 32 || strings.ContainsFunc(s.KeyPrefix, func(r rune) bool { return r <= ' ' || r > '~' }) {
		c.add("key_prefix", "write at most 32 visible ASCII characters, as sk-")
	}
}

func (c *checker) sdkEnv(field string, vars map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		if !envRE.MatchString(name) {
			c.add(field, "%q is no variable's name", printable(name))
		}
		for _, ref := range varRE.FindAllString(vars[name], -1) {
			if ref != "{route}" && ref != "{placeholder}" {
				c.add(field+"."+printable(name), "refers to %s; only {route} and {placeholder} are known", printable(ref))
			}
		}
		if strings.ContainsAny(vars[name], "\x00\r\n") {
			c.add(field+"."+printable(name), "holds a line break or NUL")
		}
	}
}
