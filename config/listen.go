package config

import (
	"net"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"
)

const unixScheme = "unix://"

func (f *finish) listen() {
	l := &f.Listen
	if l.Proxy == "" {
		l.Proxy = "127.0.0.1:8700"
	}
	if l.Admin == "" {
		l.Admin = "127.0.0.1:8701"
	}
	var proxy netip.AddrPort
	if socket, ok := strings.CutPrefix(l.Proxy, unixScheme); ok {
		f.socket(socket)
	} else {
		proxy = f.address("listen.proxy", l.Proxy, "127.0.0.1:8700")
		if len(l.AllowUIDs) > 0 {
			f.at("listen.allow_uids", "is for a Unix socket only (proxy: unix:///path): remove it")
		}
		if proxy.IsValid() && !proxy.Addr().IsLoopback() && !l.AllowRemote {
			f.at("listen.proxy", "anyone who reaches this address could use the keys: write 127.0.0.1:%d, or allow_remote: true beside it if that is what you want", proxy.Port())
		}
	}
	admin := f.address("listen.admin", l.Admin, "127.0.0.1:8701")
	if proxy.IsValid() && admin.IsValid() && same(proxy, admin) {
		f.at("listen.admin", "is where listen.proxy listens already: write another port")
	}
	for i := range l.Hosts {
		f.ownHost(item("listen.hosts", i), &l.Hosts[i], proxy.Port())
	}
}

func (f *finish) socket(file string) {
	switch {
	case !strings.HasPrefix(file, "/") || path.Clean(file) != file || strings.ContainsRune(file, 0):
		f.at("listen.proxy", "must be unix:// and an absolute path without . or .., as in unix:///run/postern/proxy.sock")
	case len(file) > maxSocket:
		f.at("listen.proxy", "the socket's path is longer than %d bytes, which systems refuse: write a shorter one", maxSocket)
	}
	if len(f.Listen.AllowUIDs) == 0 && !f.mistyped("listen.allow_uids") {
		f.at("listen.allow_uids", "is required with a Unix socket: the user ids that may connect, as in [1000]")
	}
	for i, uid := range f.Listen.AllowUIDs {
		if uid < 0 {
			f.at(item("listen.allow_uids", i), "is no user id: write 0 or more")
		}
	}
}

// address reads IP:port. Names are refused, so that what is listened on and
// what a Host field must say are never two things; port 0 is any free one.
func (f *finish) address(at, s, example string) netip.AddrPort {
	if f.mistyped(at) {
		return netip.AddrPort{}
	}
	host, port, err := net.SplitHostPort(s)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil {
		f.at(at, "%s is no address: write IP:port, as in %s", shown(s), example)
		return netip.AddrPort{}
	}
	if host == "" {
		host = "0.0.0.0"
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case host == "localhost":
		hosts := ""
		if at == "listen.proxy" {
			hosts = " (and add localhost to listen.hosts for clients that say so)"
		}
		f.at(at, "localhost may mean two addresses: write 127.0.0.1:%d%s", n, hosts)
		return netip.AddrPort{}
	case err != nil || ip.Zone() != "":
		f.at(at, "%s is no address: write a literal IP and a port, as in %s", shown(s), example)
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(n))
}

// same reports whether two listeners would want one port.
func same(a, b netip.AddrPort) bool {
	return a.Port() == b.Port() && a.Port() != 0 &&
		(a.Addr() == b.Addr() || a.Addr().IsUnspecified() || b.Addr().IsUnspecified())
}

var hostForm = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*$`)

// ownHost checks one further Host value of the routes. Without a port it is
// completed by the listener's, as clients send it (80 is left out, as they do).
func (f *finish) ownHost(at string, h *string, port uint16) {
	if f.mistyped(at) {
		return
	}
	*h = strings.ToLower(*h)
	host, p, err := net.SplitHostPort(*h)
	if err != nil {
		host, p = strings.Trim(*h, "[]"), ""
	}
	ip, ipErr := netip.ParseAddr(host)
	n, perr := strconv.ParseUint(p, 10, 16)
	if len(host) > 253 || !hostForm.MatchString(host) && ipErr != nil || ip.Zone() != "" || p != "" && (perr != nil || n == 0) {
		f.at(at, "must be a host as clients name it, as in postern or localhost:8700 (no scheme, no path, no *)")
		return
	}
	if p == "" && port != 0 && port != 80 {
		*h = net.JoinHostPort(host, strconv.Itoa(int(port)))
	}
}

// ProxyURL is the egress proxy after env:NAME was looked up, nil for none. It
// may hold a password: never print it.
func (e Egress) ProxyURL() *url.URL { return e.proxy }

func (f *finish) egress() {
	e := &f.Egress
	f.file("egress.ca_file", &e.CAFile)
	if strings.ContainsAny(e.NoProxy, "\r\n\x00") {
		f.at("egress.no_proxy", "must be hosts with commas between, in one line, as in NO_PROXY")
	}
	raw := e.Proxy
	from := ""
	if v, ok := strings.CutPrefix(raw, "env:"); ok {
		if !variableName.MatchString(v) {
			f.at("egress.proxy", "env: must be followed by a variable's name, as in env:HTTPS_PROXY")
			return
		}
		if raw = f.env(v); raw == "" {
			f.note("egress.proxy", "the variable %s is not set or empty, so the agent leaves directly", v)
			return
		}
		from = "the variable " + v + " "
		if !strings.Contains(raw, "://") {
			raw = "http://" + raw // as curl and most programs read it
		}
	}
	if raw == "" {
		return
	}
	// The URL may hold a password, and so may everything that is said about it.
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "":
		f.at("egress.proxy", "%sis no URL: write http://host:port (with user:password@ before the host if the proxy asks for it)", from)
		return
	case u.Scheme != "http" && u.Scheme != "https":
		f.at("egress.proxy", "%smust be http:// or https:// (a proxy that understands CONNECT): other kinds are not supported", from)
		return
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		f.at("egress.proxy", "%smust end after host:port", from)
		return
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		f.at("egress.proxy", "%shas no port between 1 and 65535", from)
		return
	}
	u.Path, u.Host = "", net.JoinHostPort(u.Hostname(), port)
	if own := f.ownListener(strings.ToLower(u.Hostname()), uint16(n)); own != "" {
		f.at("egress.proxy", "%sis the agent's own address (%s): requests would go in circles; name the proxy that leads out", from, own)
		return
	}
	e.proxy = u
}

// ownListener names the listener that host:port reaches, "" if none.
func (f *finish) ownListener(host string, port uint16) string {
	ip, err := netip.ParseAddr(host)
	if err == nil {
		ip = ip.Unmap()
	}
	local := host == "localhost" || strings.HasSuffix(host, ".localhost") || err == nil && (ip.IsLoopback() || ip.IsUnspecified())
	for _, l := range []struct{ path, addr string }{{"listen.proxy", f.Listen.Proxy}, {"listen.admin", f.Listen.Admin}} {
		if h, p, err := net.SplitHostPort(l.addr); err == nil && h == "" {
			l.addr = net.JoinHostPort("0.0.0.0", p)
		}
		a, err := netip.ParseAddrPort(l.addr)
		if err != nil || a.Port() != port || port == 0 {
			continue
		}
		if local && (a.Addr().IsLoopback() || a.Addr().IsUnspecified()) || ip.IsValid() && ip == a.Addr().Unmap() {
			return l.path
		}
	}
	return ""
}
