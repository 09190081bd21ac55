package upstream

import (
	"errors"
	"net"
	"net/netip"
	"strings"
)

var (
	errGuard  = errors.New("the address is link-local, a cloud metadata service, multicast, unspecified, or the agent itself")
	errTarget = errors.New("it is no plain host name or address with a port")
)

// Metadata and credential services outside the link-local ranges.
var metadata = []netip.Prefix{
	netip.MustParsePrefix("fd00:ec2::/32"),          // AWS over IPv6: instance metadata, EKS Pod Identity
	netip.MustParsePrefix("fd20:ce::254/128"),       // Google Cloud over IPv6
	netip.MustParsePrefix("fd00:c1::a9fe:a9fe/128"), // Oracle Cloud over IPv6
	netip.MustParsePrefix("fd00:42::42/128"),        // Scaleway over IPv6
	netip.MustParsePrefix("fd00:a9fe:a9fe::1/128"),  // Linode over IPv6
	netip.MustParsePrefix("fd00:100::100:200/128"),  // Alibaba Cloud over IPv6
	netip.MustParsePrefix("100.100.100.200/32"),     // Alibaba Cloud
	netip.MustParsePrefix("192.0.0.192/32"),         // Oracle Cloud
	netip.MustParsePrefix("168.63.129.16/32"),       // Azure's wire server
}

// carriers are prefixes of IPv6 addresses that stand for an IPv4 one, with the
// places at which its four bytes may lie.
var carriers = []struct {
	prefix netip.Prefix
	places [][4]int
}{
	{netip.MustParsePrefix("64:ff9b::/96"), last},                // NAT64 (RFC 6052)
	{netip.MustParsePrefix("::/96"), last},                       // IPv4-compatible (RFC 4291)
	{netip.MustParsePrefix("::ffff:0:0:0/96"), last},             // IPv4-translated (RFC 2765)
	{netip.MustParsePrefix("2002::/16"), [][4]int{{2, 3, 4, 5}}}, // 6to4 (RFC 3056)
	// NAT64 with a prefix of the operator's own length: 96, 64, 56 or 48 bits (RFC 8215, RFC 6052 section 2.2).
	{netip.MustParsePrefix("64:ff9b:1::/48"), [][4]int{{12, 13, 14, 15}, {9, 10, 11, 12}, {7, 9, 10, 11}, {6, 7, 9, 10}}},
}

var last = [][4]int{{12, 13, 14, 15}}

// meant lists an address and every IPv4 address that it may stand for.
func meant(ip netip.Addr) []netip.Addr {
	ip = ip.Unmap().WithZone("")
	all := []netip.Addr{ip}
	for _, c := range carriers {
		if c.prefix.Contains(ip) {
			b := ip.As16()
			for _, p := range c.places {
				if v4 := netip.AddrFrom4([4]byte{b[p[0]], b[p[1]], b[p[2]], b[p[3]]}); !v4.IsUnspecified() {
					all = append(all, v4)
				}
			}
		}
	}
	return all
}

// forbidden reports whether an address is never dialled, whoever asks.
func forbidden(ip netip.Addr) bool {
	if ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() {
		return true
	}
	for _, m := range metadata {
		if m.Contains(ip) {
			return true
		}
	}
	return false
}

// checkAddress runs on the resolved address, after DNS and before connect, so
// that no name can be rebound between a check and its use.
func checkAddress(address string, own func(netip.AddrPort) bool) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return errGuard
	}
	for _, ip := range meant(ap.Addr()) {
		if forbidden(ip) || own != nil && own(netip.AddrPortFrom(ip, ap.Port())) {
			return errGuard
		}
	}
	return nil
}

// checkTarget refuses host:port where a host is spelled so that a proxy or a
// resolver could read it as an address that this process does not see in it, or
// so that it would end the line that it stands in. literal reports an address.
func checkTarget(hostport string) (literal bool, err error) {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil || port == "" || strings.Trim(port, "0123456789") != "" {
		return false, errTarget
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Zone() == "" { // a zone is of use on link-local addresses only
		return true, nil
	}
	for _, c := range []byte(host) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false, errTarget
		}
	}
	label := host[strings.LastIndexByte(host, '.')+1:]
	if label == "" || label[0] >= '0' && label[0] <= '9' {
		return false, errTarget
	}
	return false, nil
}
