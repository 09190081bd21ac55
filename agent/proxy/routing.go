package proxy

import (
	"bytes"
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
	Name     string // its route is /Name/
	Provider *provider.Provider
	Key      *keyring.Key
	// Pool has the HTTP/1.1 connections to its hosts.
	Pool *upstream.Pool
	// Transport, where it is not nil, makes the exchanges that may go over HTTP/2.
	Transport http.RoundTripper
	// Forward: owns CONNECT and absolute-form requests to its hosts.
	Forward bool

	base    *place // where its route leads
	metrics targetMetrics
}

// place is one host and port of a target.
type place struct {
	t        *Target
	scheme   string
	hostport string
	header   string         // the same as the Host field says it
	host     *upstream.Host // nil where the target has no pool
}

func newPlace(t *Target, scheme, host, port string) *place {
	p := &place{t: t, scheme: scheme, hostport: net.JoinHostPort(host, port), header: hostHeader(scheme, host, port)}
	if t.Pool != nil {
		p.host = t.Pool.Host(p.hostport, scheme == "http")
	}
	return p
}

// hostHeader is the Host field's form: no port where it is the scheme's own.
func hostHeader(scheme, host, port string) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port == defaultPort(scheme) {
		return host
	}
	return host + ":" + port
}

// defaultPort is a scheme's own port, for http and https in any case.
func defaultPort(scheme string) string {
	switch {
	case strings.EqualFold(scheme, "https"):
		return "443"
	case strings.EqualFold(scheme, "http"):
		return "80"
	}
	return ""
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

	routes map[string]*Target
	hosts  map[string]*place // exact "host:port" of forward owners
	wild   []*Target         // forward owners with a wildcard host
	strip  *names            // request fields that do not pass as they came
}

// NewRouting builds the table. Names must be unique.
func NewRouting(targets []*Target) (*Routing, error) {
	rt := &Routing{routes: map[string]*Target{}, hosts: map[string]*place{}}
	var specs []spec.Spec
	for _, t := range targets {
		if rt.routes[t.Name] != nil {
			return nil, errors.New("two providers are named " + t.Name)
		}
		rt.routes[t.Name] = t
		s := t.Provider.Spec()
		specs = append(specs, s)
		scheme, base, _ := t.Provider.RouteURL("/")
		host, port, err := authority(base, defaultPort(scheme))
		if err != nil {
			return nil, errors.New(t.Name + ": its base URL names no host")
		}
		t.base = newPlace(t, scheme, host, port)
		if !t.Forward {
			continue
		}
		for _, e := range t.Provider.Endpoints() {
			p := newPlace(t, map[bool]string{true: "http", false: "https"}[e.Plaintext], e.Host, e.Port)
			if other := rt.hosts[p.hostport]; other != nil {
				return nil, errors.New(other.t.Name + " and " + t.Name + " both own " + p.hostport)
			}
			rt.hosts[p.hostport] = p
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
func (rt *Routing) byHost(host, port string) *place {
	return rt.at(net.JoinHostPort(host, port), host, port)
}

// at is byHost for a caller that has host:port at hand.
func (rt *Routing) at(hostport, host, port string) *place {
	if p := rt.hosts[hostport]; p != nil {
		return p
	}
	for _, t := range rt.wild {
		if t.Provider.Lists(host, port) {
			return newPlace(t, "https", host, port)
		}
	}
	return nil
}

// byRoute splits "/openai/v1/chat" into the target named openai and "/v1/chat".
func (rt *Routing) byRoute(path []byte) (t *Target, rest []byte) {
	if len(path) < 2 || path[0] != '/' {
		return nil, nil
	}
	name := path[1:]
	if i := bytes.IndexByte(name, '/'); i >= 0 {
		name, rest = name[:i], name[i:]
	}
	return rt.routes[string(name)], rest
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

// appendQuery appends "?" and what stays of a raw query: parameters that are to
// be dropped are left out, by their escaped name, and every other byte is as it
// was. A ";" separates, too: some servers still read it so. It reports whether
// there is a query now.
func appendQuery(dst, raw []byte, drop func(name []byte) bool) (out []byte, some bool) {
	was := len(dst)
	for sep := byte('?'); ; {
		end := bytes.IndexAny(raw, "&;")
		pair := raw
		if end >= 0 {
			pair = raw[:end]
		}
		if name, _, _ := bytes.Cut(pair, []byte{'='}); !drop(name) {
			if !some {
				sep = '?'
			}
			dst = append(append(dst, sep), pair...)
			some = true
		}
		if end < 0 {
			break
		}
		sep, raw = raw[end], raw[end+1:]
	}
	if len(dst) == was+1 { // a question mark alone
		return dst[:was], false
	}
	return dst, some
}

// credential reports whether a query parameter's name, escaped, is one that the
// provider takes a credential by. Names are compared after decoding, case folded.
func (x *exchange) credential(escaped []byte) bool {
	name := view(escaped)
	if bytes.IndexByte(escaped, '%') >= 0 || bytes.IndexByte(escaped, '+') >= 0 {
		if plain, err := url.QueryUnescape(name); err == nil {
			name = plain
		}
	}
	for _, n := range x.t.Provider.AuthQuery() {
		if strings.EqualFold(n, name) {
			return true
		}
	}
	return x.t.Provider.AttachedQuery(name, x.fields)
}
