package proxy

import (
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/postern-proxy/postern/agent/keyring"
	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/provider/spec"
	"github.com/postern-proxy/postern/agent/upstream"
)

// Target is one configured provider as the data path sees it: where requests
// go and which key they carry. It is immutable.
type Target struct {
	Name      string // its route is /Name/
	Provider  *provider.Provider
	Key       *keyring.Key
	Transport http.RoundTripper
	// Forward: owns CONNECT and absolute-form requests to its hosts.
	Forward bool

	metrics targetMetrics
}

// Routing is one generation's table from hosts and routes to targets. It is
// immutable; the server swaps it whole.
type Routing struct {
	Generation uint64
	// Tunnel: hosts that are not configured are tunnelled untouched; otherwise they are refused.
	Tunnel bool
	// Dialer opens tunnels to hosts that are not configured.
	Dialer *upstream.Dialer
	// Hosts are further Host values accepted on routes, as host:port.
	Hosts []string

	plain  map[string]bool // "host:port" of providers that are spoken to without TLS, on loopback
	routes map[string]*Target
	hosts  map[string]*Target // exact "host:port" of forward owners
	wild   []*Target          // forward owners with a wildcard host
	strip  map[string]bool    // canonical names of request headers that never pass
}

// NewRouting builds the table. Names must be unique.
func NewRouting(targets []*Target) (*Routing, error) {
	rt := &Routing{routes: map[string]*Target{}, hosts: map[string]*Target{}, plain: map[string]bool{}}
	var specs []spec.Spec
	for _, t := range targets {
		if rt.routes[t.Name] != nil {
			return nil, errors.New("two providers are named " + t.Name)
		}
		rt.routes[t.Name] = t
		s := t.Provider.Spec()
		specs = append(specs, s)
		if !t.Forward {
			continue
		}
		for _, e := range t.Provider.Endpoints() {
			hp := net.JoinHostPort(e.Host, e.Port)
			if other := rt.hosts[hp]; other != nil {
				return nil, errors.New(other.Name + " and " + t.Name + " both own " + hp)
			}
			rt.hosts[hp] = t
			rt.plain[hp] = e.Plaintext
		}
		for _, h := range s.Hosts {
			if strings.HasPrefix(h, "*.") {
				rt.wild = append(rt.wild, t)
				break
			}
		}
	}
	rt.strip = stripSet(provider.AuthHeaders(specs...))
	return rt, nil
}

// byHost finds the forward owner of a canonical host and port.
func (rt *Routing) byHost(host, port string) *Target {
	return rt.at(net.JoinHostPort(host, port), host, port)
}

// at is byHost for a caller that has host:port at hand.
func (rt *Routing) at(hostport, host, port string) *Target {
	if t := rt.hosts[hostport]; t != nil {
		return t
	}
	for _, t := range rt.wild {
		if t.Provider.Lists(host, port) {
			return t
		}
	}
	return nil
}

// scheme is how the provider at host:port is spoken to.
func (rt *Routing) scheme(hostport string) string {
	if rt.plain[hostport] {
		return "http"
	}
	return "https"
}

// byRoute splits "/openai/v1/chat" into the target named openai and "/v1/chat".
func (rt *Routing) byRoute(path string) (t *Target, rest string) {
	if len(path) < 2 || path[0] != '/' {
		return nil, ""
	}
	name := path[1:]
	if i := strings.IndexByte(name, '/'); i >= 0 {
		name, rest = name[:i], name[i:]
	}
	return rt.routes[name], rest
}

var (
	errAuthority = errors.New("the host is not a plain name or address with an optional port")
	errPath      = errors.New("the path holds an empty or dot segment, a backslash or a control character, or is not correctly percent-encoded")
)

// authority splits host[:port] strictly into a canonical (lower-case) host and
// a port. Whatever two parsers could read differently is refused: user
// information, trailing dots, zones, decimal addresses, non-ASCII names.
func authority(s, defaultPort string) (host, port string, err error) {
	host, port = s, defaultPort
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		host, port = s[:i], s[i+1:]
	}
	if !validPort(port) {
		return "", "", errAuthority
	}
	if strings.HasPrefix(host, "[") {
		if len(host) < 3 || host[len(host)-1] != ']' {
			return "", "", errAuthority
		}
		ip := net.ParseIP(host[1 : len(host)-1])
		if ip == nil || ip.To4() != nil {
			return "", "", errAuthority
		}
		return ip.String(), port, nil
	}
	if !validName(host) {
		return "", "", errAuthority
	}
	return strings.ToLower(host), port, nil
}

func validPort(p string) bool {
	if len(p) == 0 || len(p) > 5 || p[0] == '0' {
		return false
	}
	n := 0
	for _, c := range []byte(p) {
		if c < '0' || c > '9' {
			return false
		}
		n = n*10 + int(c-'0')
	}
	return n <= 65535
}

// validName reports whether a host is an IPv4 address in its four-part decimal
// form, or a name of letters, digits, '-' and '_' whose last label is not a
// number in any notation (so that 2130706433 and 0x7f.1 are no hosts).
func validName(h string) bool {
	if h == "" || len(h) > 253 {
		return false
	}
	labels := strings.Split(h, ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return false
		}
		for _, c := range []byte(l) {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	last := labels[len(labels)-1]
	if last[0] >= '0' && last[0] <= '9' {
		ip := net.ParseIP(h)
		return ip != nil && ip.To4() != nil && ip.String() == h
	}
	return true
}

// stripQuery removes the named parameters from a raw query and leaves every
// other byte of it as it was. Names are compared after decoding, case folded. A
// ";" separates, too: some servers still read it so.
func stripQuery(raw string, names []string) string {
	if raw == "" || len(names) == 0 {
		return raw
	}
	var kept strings.Builder
	begun := false
	for rest, sep := raw, ""; ; {
		pair, next := rest, ""
		end := strings.IndexAny(rest, "&;")
		if end >= 0 {
			pair, next, rest = rest[:end], rest[end:end+1], rest[end+1:]
		}
		if name, _, _ := strings.Cut(pair, "="); !hasName(names, name) {
			if begun {
				kept.WriteString(sep)
			}
			kept.WriteString(pair)
			begun = true
		}
		if end < 0 {
			return kept.String()
		}
		sep = next
	}
}

func hasName(names []string, escaped string) bool {
	if plain, err := url.QueryUnescape(escaped); err == nil {
		escaped = plain
	}
	for _, n := range names {
		if strings.EqualFold(n, escaped) {
			return true
		}
	}
	return false
}
