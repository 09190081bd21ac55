package upstream

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
)

func TestGuardRefuses(t *testing.T) {
	for class, addresses := range map[string][]string{
		"IPv4 link-local":  {"169.254.169.254", "169.254.0.1", "169.254.170.2", "169.254.255.255"},
		"IPv6 link-local":  {"fe80::1", "fe80::a9fe:a9fe", "febf::1", "fe80::1%eth0", "fe80::1%1"},
		"metadata":         {"fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42", "fd00:a9fe:a9fe::1", "fd00:100::100:200", "100.100.100.200", "192.0.0.192", "168.63.129.16"},
		"zones on any":     {"fd00:ec2::254%eth0", "::%lo", "ff02::1%eth0"},
		"multicast":        {"224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"},
		"unspecified":      {"0.0.0.0", "::"},
		"IPv4-mapped":      {"::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "::ffff:0.0.0.0", "::ffff:224.0.0.1", "::ffff:168.63.129.16", "::ffff:169.254.169.254%eth0"},
		"IPv4-compatible":  {"::169.254.169.254", "::100.100.100.200"},
		"IPv4-translated":  {"::ffff:0:169.254.169.254"},
		"NAT64":            {"64:ff9b::169.254.169.254", "64:ff9b::a9fe:a9fe", "64:ff9b::100.100.100.200"},
		"NAT64, local /96": {"64:ff9b:1::169.254.169.254", "64:ff9b:1:1234:5678:9abc:a9fe:a9fe"},
		"NAT64, local /64": {"64:ff9b:1:1234:a9:fea9:fe00:0"},
		"NAT64, local /56": {"64:ff9b:1:12a9:fe:a9fe::"},
		"NAT64, local /48": {"64:ff9b:1:a9fe:a9:fe00::", "64:ff9b:1:6464:64:c800::"},
		"6to4":             {"2002:a9fe:a9fe::1", "2002:6464:64c8::"},
	} {
		for _, a := range addresses {
			if err := checkAddress(net.JoinHostPort(a, "443"), nil); err != errGuard {
				t.Errorf("%s: %s may be dialled", class, a)
			}
		}
	}
}

// What is private is not forbidden: a house's own models run there.
func TestGuardLetsPass(t *testing.T) {
	for _, a := range []string{
		"1.1.1.1", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "127.0.0.1", "127.8.8.8", "::1", "fd12:3456::1", "2606:4700::1111",
		"::ffff:10.0.0.1", "64:ff9b::1.1.1.1", "64:ff9b:1::8.8.8.8", "2002:0a00:0001::1", "169.253.1.1", "100.100.100.201", "fd20:ce::255",
	} {
		if err := checkAddress(net.JoinHostPort(a, "443"), nil); err != nil {
			t.Errorf("%s is refused", a)
		}
	}
}

func TestGuardRefusesWhatIsNoAddress(t *testing.T) {
	for _, a := range []string{"", ":", "443", "127.0.0.1", "localhost:443", "127.0.0.1:", "127.0.0.1:99999", "0x7f.1:80", "[127.0.0.1]:80", "1.2.3.4 :80", "::1:443"} {
		if err := checkAddress(a, nil); err == nil {
			t.Errorf("%q may be dialled", a)
		}
	}
}

// The agent's own listeners are refused under every spelling of their address, and at no other port.
func TestGuardRefusesOurOwnListeners(t *testing.T) {
	own := func(ap netip.AddrPort) bool {
		return ap.Port() == 8700 && (ap.Addr() == netip.MustParseAddr("127.0.0.1") || ap.Addr() == netip.MustParseAddr("fd12::7"))
	}
	for _, a := range []string{"127.0.0.1", "::ffff:127.0.0.1", "::ffff:127.0.0.1%lo", "64:ff9b::7f00:1", "fd12::7", "fd12::7%eth0"} {
		if checkAddress(net.JoinHostPort(a, "8700"), own) == nil {
			t.Errorf("%s:8700 may be dialled", a)
		}
		if err := checkAddress(net.JoinHostPort(a, "8701"), own); err != nil {
			t.Errorf("%s:8701: %v", a, err)
		}
	}
}

// The guard stands between the lookup and the connect, so it does not matter
// which name an address came from.
func TestANameThatLeadsToAForbiddenAddress(t *testing.T) {
	dns := newNames(map[string][][]string{
		"metadata.test.": {{"169.254.169.254"}}, "six.test.": {{"fd00:ec2::254"}}, "mapped.test.": {{"::ffff:169.254.169.254"}},
		"both.test.": {{"169.254.169.254", "fe80::1"}}, "self.test.": {{"127.0.0.1"}},
	})
	own := func(ap netip.AddrPort) bool { return ap == netip.MustParseAddrPort("127.0.0.1:8700") }
	d := dialer(t, Options{Own: own})
	dns.use(d)
	for _, target := range []string{"metadata.test:80", "six.test:80", "mapped.test:80", "both.test:443", "self.test:8700", "169.254.169.254:80", "[fe80::1%lo]:80"} {
		conn, err := d.Dial(t.Context(), target)
		if err == nil {
			conn.Close()
		}
		if kind(err) != "guard" || !strings.Contains(err.Error(), target) {
			t.Errorf("%s: %v", target, err)
		}
	}
	if _, err := get(t, transport(t, d, TransportOptions{}), "https://metadata.test/latest/meta-data/"); kind(err) != "guard" {
		t.Errorf("through a transport: %v", err)
	}
}

// A name of several addresses is reached at one that may be dialled.
func TestAForbiddenAddressBesideAGoodOne(t *testing.T) {
	ca := newAuthority(t)
	s := provider(t, ca.leaf("api.test"))
	dns := newNames(map[string][][]string{"api.test.": {{"169.254.169.254", "127.0.0.1"}}})
	d := dialer(t, Options{Roots: ca.pem()})
	dns.use(d)
	if _, err := get(t, transport(t, d, TransportOptions{}), "https://api.test:"+portOf(t, s.Listener.Addr().String())); err != nil {
		t.Error(err)
	}
}

// A name that is rebound between two connections is checked at each: the good
// answer of the first lookup is worth nothing at the second.
func TestRebinding(t *testing.T) {
	ca := newAuthority(t)
	s := provider(t, ca.leaf("rebound.test"))
	dns := newNames(map[string][][]string{"rebound.test.": {{"127.0.0.1"}, {"169.254.169.254"}}})
	d := dialer(t, Options{Roots: ca.pem()})
	dns.use(d)
	tr := transport(t, d, TransportOptions{})
	url := "https://rebound.test:" + portOf(t, s.Listener.Addr().String())
	if _, err := get(t, tr, url); err != nil {
		t.Fatal(err)
	}
	tr.CloseIdleConnections()
	if _, err := get(t, tr, url); kind(err) != "guard" {
		t.Errorf("after rebinding: %v", err)
	}
	if n := dns.count("rebound.test"); n != 2 {
		t.Errorf("%d lookups for 2 connections: a name must be resolved once for each", n)
	}
}

// Other spellings of addresses never get as far as a resolver or a proxy, which might understand them.
func TestTargetsThatAreNone(t *testing.T) {
	asked := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("the proxy was asked for %q", r.Host) }))
	defer asked.Close()
	proxied := dialer(t, Options{EgressProxy: parse(t, asked.URL)})
	direct := dialer(t, Options{})
	newNames(nil).use(direct)
	for _, target := range []string{
		"2852039166:80", "0xa9fea9fe:80", "169.254.43518:80", "0251.0376.0251.0376:80", "169.254.169.254.:80", "metadata.test.:80", "127.1:80",
		"①⑥⑨.254.169.254:80", "metadata。test:80", "a b:80", "a\r\nX-Injected: 1\r\n:80", "a\x00.test:80", "user@host.test:80", "host.test:80\r\nX: 1", "host.test:http", "host.test:", ":80", "host.test", "*.test:80", "[fd12::1%a\r\nX: 1]:80",
	} {
		for _, d := range []*Dialer{proxied, direct} {
			conn, err := d.Dial(t.Context(), target)
			if err == nil {
				conn.Close()
			}
			if kind(err) != "guard" {
				t.Errorf("%q: %v", target, err)
			}
		}
	}
}

// FuzzCheckAddress: whatever is let pass is, in the form that the kernel will
// see, none of the forbidden; and no input panics.
func FuzzCheckAddress(f *testing.F) {
	for _, s := range []string{
		"127.0.0.1:80", "[::1]:80", "169.254.169.254:80", "[fe80::1%eth0]:443", "[::ffff:169.254.169.254]:80", "[64:ff9b::a9fe:a9fe]:80",
		"[64:ff9b:1:a9fe:a9:fe00::]:1", "[2002:a9fe:a9fe::1]:65535", "[fd00:ec2::254]:80", "0.0.0.0:0", "localhost:80", "", "[::%]:1",
	} {
		f.Add(s)
	}
	link := netip.MustParsePrefix("169.254.0.0/16")
	f.Fuzz(func(t *testing.T, s string) {
		_, terr := checkTarget(s)
		if checkAddress(s, nil) != nil {
			return
		}
		if terr != nil && !strings.Contains(s, "%") {
			t.Errorf("%q is an address but no target", s)
		}
		addr, err := net.ResolveTCPAddr("tcp", s)
		if err != nil {
			t.Fatalf("%q passed the guard and is no address: %v", s, err)
		}
		ip, _ := netip.AddrFromSlice(addr.IP)
		if ip = ip.Unmap(); link.Contains(ip) || ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() {
			t.Errorf("%q passed the guard", s)
		}
		if ip.Is6() {
			b := ip.As16()
			if nat64.Contains(ip) && link.Contains(netip.AddrFrom4([4]byte(b[12:]))) {
				t.Errorf("%q passed the guard", s)
			}
		}
	})
}

var nat64 = netip.MustParsePrefix("64:ff9b::/96")
