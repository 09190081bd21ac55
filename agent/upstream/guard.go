package upstream

import (
	"errors"
	"net/netip"
)

var errGuard = errors.New("the address is link-local, a cloud metadata service, multicast, unspecified, or the agent itself")

// Metadata services outside the link-local ranges.
var metadata = []netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"),   // AWS over IPv6: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
	netip.MustParseAddr("100.100.100.200"), // Alibaba Cloud
	netip.MustParseAddr("192.0.0.192"),     // Oracle Cloud
	netip.MustParseAddr("168.63.129.16"),   // Azure's wire server
}

// Prefixes that carry an IPv4 address in their last 32 bits: the well-known and the local NAT64 prefix (RFC 6052, RFC 8215).
var nat64 = []netip.Prefix{
	netip.MustParsePrefix("64:ff9b::/96"),
	netip.MustParsePrefix("64:ff9b:1::/96"),
}

// forbidden reports whether an address is never dialled, whoever asks.
func forbidden(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	for _, p := range nat64 {
		if p.Contains(ip) {
			b := ip.As16()
			ip = netip.AddrFrom4([4]byte(b[12:]))
		}
	}
	if ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() {
		return true
	}
	for _, m := range metadata {
		if ip == m {
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
	if forbidden(ap.Addr()) || own != nil && own(netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())) {
		return errGuard
	}
	return nil
}
