package mitm

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// names are the hosts that leaves may be made for.
type names struct {
	exact map[string]bool // DNS names
	wild  map[string]bool // "*.example.com" as "example.com"
	ips   map[netip.Addr]bool
}

// parseNames reads hosts as a provider lists them: "host", "host:port" (a
// certificate knows no ports), "*.host" or an address.
func parseNames(hosts []string) (names, error) {
	n := names{exact: map[string]bool{}, wild: map[string]bool{}, ips: map[netip.Addr]bool{}}
	var errs []error
	for _, h := range hosts {
		host := h
		if one, port, err := net.SplitHostPort(h); err == nil {
			if _, err := strconv.ParseUint(port, 10, 16); err == nil {
				host = one
			}
		}
		host = lower(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"))
		suffix, wild := strings.CutPrefix(host, "*.")
		ip, err := netip.ParseAddr(host)
		switch {
		case err == nil && ip.Zone() == "":
			n.ips[ip.Unmap()] = true
		case err == nil:
			errs = append(errs, fmt.Errorf("host %q: an address with a zone cannot stand in a certificate", h))
		case wild && dnsName(suffix) && strings.Contains(suffix, "."):
			n.wild[suffix] = true
		case !wild && dnsName(host):
			n.exact[host] = true
		default:
			errs = append(errs, fmt.Errorf("host %q: write a DNS name, *.name with at least two labels behind it, or an address", h))
		}
	}
	return n, errors.Join(errs...)
}

// canonical returns host as it stands in a leaf, if there may be one for it.
func (n names) canonical(host string) (name string, ip netip.Addr, ok bool) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.String(), ip, n.ips[ip]
	}
	host = lower(host)
	if n.exact[host] {
		return host, netip.Addr{}, true
	}
	_, suffix, _ := strings.Cut(host, ".") // one label, as TLS reads a wildcard
	return host, netip.Addr{}, n.wild[suffix] && dnsName(host)
}

// constrain writes the names into a CA's constraints: what is not permitted is
// excluded, of the other kind too. A permitted DNS name covers the names below
// it as well; the exact list is canonical's.
func (n names) constrain(t *x509.Certificate) {
	t.PermittedDNSDomainsCritical = true
	t.PermittedDNSDomains = slices.Compact(slices.Sorted(func(yield func(string) bool) {
		for _, m := range []map[string]bool{n.exact, n.wild} {
			for d := range maps.Keys(m) {
				if !yield(d) {
					return
				}
			}
		}
	}))
	if len(t.PermittedDNSDomains) == 0 {
		// An empty excluded name would say "none" as well, but Java cannot read it. RFC 6761 keeps this one unused.
		t.PermittedDNSDomains = []string{"invalid"}
	}
	var has4, has6 bool
	for _, ip := range slices.SortedFunc(maps.Keys(n.ips), netip.Addr.Compare) {
		has4, has6 = has4 || ip.Is4(), has6 || ip.Is6()
		t.PermittedIPRanges = append(t.PermittedIPRanges, &net.IPNet{
			IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen()),
		})
	}
	// One permitted address already excludes every other one, of both families.
	if !has4 && !has6 {
		t.ExcludedIPRanges = []*net.IPNet{
			{IP: make(net.IP, net.IPv4len), Mask: make(net.IPMask, net.IPv4len)},
			{IP: make(net.IP, net.IPv6len), Mask: make(net.IPMask, net.IPv6len)},
		}
	}
}

// sameConstraints reports whether two certificates carry the same constraints.
func sameConstraints(a, b *x509.Certificate) bool {
	sameNets := func(x, y *net.IPNet) bool { return x.IP.Equal(y.IP) && bytes.Equal(x.Mask, y.Mask) }
	return a.PermittedDNSDomainsCritical == b.PermittedDNSDomainsCritical &&
		slices.Equal(a.PermittedDNSDomains, b.PermittedDNSDomains) &&
		slices.EqualFunc(a.PermittedIPRanges, b.PermittedIPRanges, sameNets) &&
		slices.EqualFunc(a.ExcludedIPRanges, b.ExcludedIPRanges, sameNets)
}

// dnsName reports whether s is a host name in lower case: letters, digits, inner
// hyphens, underscores, and a last label that no resolver can take for a number.
func dnsName(s string) bool {
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	last := s[strings.LastIndexByte(s, '.')+1:]
	if strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}

// lower changes ASCII letters alone; it returns s itself where there is nothing to change.
func lower(s string) string {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if 'A' <= b[i] && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}
