package spec

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Host is one place a key may go, in canonical form.
type Host struct {
	Name     string // lower case, no trailing dot; an IP address without brackets; after "*." where Wildcard
	Port     string // decimal, never empty
	Wildcard bool   // exactly one label stands before Name
}

// ParseHost reads "host" (then port is defaultPort) or "host:port". Only the
// one canonical spelling of a host is accepted: two parsers that read one
// spelling differently are how a key ends up at the wrong place. A leading
// "*." is read as a wildcard; whether one may stand there is the caller's question.
func ParseHost(s, defaultPort string) (Host, error) {
	name, port, err := splitPort(s, defaultPort)
	if err != nil {
		return Host{}, err
	}
	h := Host{Name: name, Port: port}
	if strings.HasPrefix(name, "[") {
		addr, err := netip.ParseAddr(strings.Trim(name, "[]"))
		if err != nil || !addr.Is6() || addr.Zone() != "" || addr.Is4In6() || "["+addr.String()+"]" != name {
			return Host{}, errors.New("is no IPv6 address in its canonical form; write it as [2001:db8::1], without a zone")
		}
		h.Name = addr.String()
		return h, checkAddr(addr)
	}
	if rest, ok := strings.CutPrefix(name, "*."); ok {
		h.Name, h.Wildcard = rest, true
		if !strings.Contains(rest, ".") {
			return Host{}, errors.New("has a wildcard over a whole top level; name the host")
		}
	}
	if err := checkName(h.Name); err != nil {
		return Host{}, err
	}
	if !numericName(h.Name) {
		return h, nil
	}
	addr, err := netip.ParseAddr(h.Name)
	if err != nil || !addr.Is4() || addr.String() != h.Name || h.Wildcard {
		return Host{}, errors.New("ends in a number but is no IPv4 address in its canonical form; write four decimal numbers as 192.0.2.1")
	}
	return h, checkAddr(addr)
}

// splitPort cuts a port off; brackets stay.
func splitPort(s, defaultPort string) (name, port string, err error) {
	switch {
	case s == "":
		return "", "", errors.New("is empty; write a host or host:port")
	case strings.Contains(s, "://") || strings.ContainsAny(s, "/?#"):
		return "", "", errors.New("is a URL; write only host or host:port")
	case strings.Contains(s, "@"):
		return "", "", errors.New("has user information before an @; write only host or host:port")
	}
	name, port = s, defaultPort
	tail := s
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return "", "", errors.New("has a [ without its ]; write an IPv6 address as [::1]")
		}
		name, tail = s[:end+1], s[end+1:]
		if tail == "" {
			return name, port, nil
		}
		if tail[0] != ':' {
			return "", "", errors.New("has text after the ]; write [address]:port")
		}
	} else if i := strings.IndexByte(s, ':'); i >= 0 {
		name, tail = s[:i], s[i:]
		if strings.Count(tail, ":") > 1 {
			return "", "", errors.New("has more than one colon; write an IPv6 address in brackets, as [::1]:8443")
		}
	} else {
		return name, port, nil
	}
	port = tail[1:]
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return "", "", errors.New("has no valid port; write a number from 1 to 65535 after the colon, or leave both out")
	}
	return name, port, nil
}

// checkName wants a lower-case LDH name (RFC 1123, punycode for IDN).
func checkName(name string) error {
	switch {
	case strings.HasSuffix(name, "."):
		return errors.New("ends in a dot; leave the dot out")
	case len(name) > 253:
		return errors.New("is longer than 253 characters")
	case strings.Contains(name, "*"):
		return errors.New("has a * that is not a whole first label; write *.example.com, or better the exact host")
	}
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c >= 0x80:
			return errors.New("holds a letter outside ASCII; write it in punycode (xn--…)")
		case c >= 'A' && c <= 'Z':
			return fmt.Errorf("has upper-case letters; write %s", strings.ToLower(name))
		case c == '.' || c == '-' || isAlnum(c):
		default:
			return errors.New("holds a character that no host name has; letters, digits, - and . are allowed")
		}
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return errors.New("has an empty or too long part, or one with a - at its edge; each part has 1 to 63 characters")
		}
	}
	return nil
}

// numericName reports whether a resolver could read the name as an IPv4
// address: its last label is decimal, octal or hexadecimal.
func numericName(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	if rest, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(rest, "0123456789abcdef") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}

func checkAddr(a netip.Addr) error {
	if a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return errors.New("is an unspecified, link-local, multicast or broadcast address, where no provider is")
	}
	return nil
}

// Matches reports whether a canonical host (no brackets) and port are this place.
// It does not allocate.
func (h Host) Matches(host, port string) bool {
	if port != h.Port {
		return false
	}
	if !h.Wildcard {
		return host == h.Name
	}
	n := len(host) - len(h.Name) - 1
	return n > 0 && host[n] == '.' && host[n+1:] == h.Name && strings.IndexByte(host[:n], '.') < 0
}

// Loopback reports whether the host is a literal loopback address. A name is
// never one: who resolves it is not ours to say.
func (h Host) Loopback() bool {
	a, err := netip.ParseAddr(h.Name)
	return err == nil && !h.Wildcard && a.IsLoopback()
}

// String is the canonical spelling; port 443 is left out.
func (h Host) String() string {
	if h.Port == "443" {
		return h.bare()
	}
	return h.bare() + ":" + h.Port
}

func (h Host) bare() string {
	switch {
	case h.Wildcard:
		return "*." + h.Name
	case strings.Contains(h.Name, ":"):
		return "[" + h.Name + "]"
	}
	return h.Name
}
