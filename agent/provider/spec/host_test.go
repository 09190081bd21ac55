package spec

import (
	"net"
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

func TestParseHost(t *testing.T) {
	good := map[string]Host{
		"api.openai.com":                {"api.openai.com", "443", false},
		"api.openai.com:443":            {"api.openai.com", "443", false},
		"llm.corp.example:8443":         {"llm.corp.example", "8443", false},
		"llm":                           {"llm", "443", false},
		"127.0.0.1:9000":                {"127.0.0.1", "9000", false},
		"[::1]:9000":                    {"::1", "9000", false},
		"[2001:db8::1]":                 {"2001:db8::1", "443", false},
		"xn--bcher-kva.example":         {"xn--bcher-kva.example", "443", false},
		"*.api.openai.com":              {"api.openai.com", "443", true},
		"a.b1":                          {"a.b1", "443", false},
		"0x7f.example":                  {"0x7f.example", "443", false},
		"example.com:65535":             {"example.com", "65535", false},
		"192.168.0.10":                  {"192.168.0.10", "443", false},
		"*.x.example:8443":              {"x.example", "8443", true},
		"1.1.1.1.example":               {"1.1.1.1.example", "443", false},
		"a-b.c--d.example":              {"a-b.c--d.example", "443", false},
		strings.Repeat("a.", 126) + "a": {strings.Repeat("a.", 126) + "a", "443", false},
		strings.Repeat("a", 63):         {strings.Repeat("a", 63), "443", false},
		"0.example":                     {"0.example", "443", false},
		"xn--zckzah.xn--zckzah":         {"xn--zckzah.xn--zckzah", "443", false},
		"bedrock.eu-west-1.a.co":        {"bedrock.eu-west-1.a.co", "443", false},
	}
	for in, want := range good {
		got, err := ParseHost(in, "443")
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", in, got, err)
		}
		if again, err := ParseHost(got.String(), "443"); err != nil || again != got {
			t.Errorf("%q does not survive its own spelling %q", in, got)
		}
	}
	bad := map[string]string{ // what the message must say
		"":                              "empty",
		"https://api.openai.com":        "URL",
		"api.openai.com/v1":             "URL",
		"api.openai.com?x":              "URL",
		"user@api.openai.com":           "@",
		"api.openai.com.":               "dot",
		"API.openai.com":                "write api.openai.com",
		"bücher.example":                "punycode",
		"api。openai.com":                "punycode",
		"api.openai.com:":               "port",
		"api.openai.com:0":              "port",
		"api.openai.com:65536":          "port",
		"api.openai.com:0443":           "port",
		"api.openai.com:+443":           "port",
		"api.openai.com:https":          "port",
		"api.openai.com:443:443":        "brackets",
		"::1":                           "brackets",
		"[::1":                          "]",
		"[::1]x":                        "]",
		"[::1]:":                        "port",
		"[fe80::1%eth0]":                "zone",
		"[fe80::1]":                     "link-local",
		"[0:0:0:0:0:0:0:1]":             "canonical",
		"[::FFFF]":                      "canonical",
		"[::ffff:127.0.0.1]":            "canonical",
		"[127.0.0.1]":                   "canonical",
		"[]":                            "canonical",
		"[[::1]]":                       "]",
		"[::]":                          "unspecified",
		"0.0.0.0":                       "unspecified",
		"169.254.169.254":               "link-local",
		"224.0.0.1":                     "multicast",
		"255.255.255.255":               "broadcast",
		"2130706433":                    "IPv4",
		"0x7f000001":                    "IPv4",
		"0x7f.1":                        "IPv4",
		"127.1":                         "IPv4",
		"127.0.0.01":                    "IPv4",
		"0177.0.0.1":                    "IPv4",
		"127.0.0.256":                   "IPv4",
		"example.123":                   "IPv4",
		"example.0x":                    "IPv4",
		"*.127.0.0.1":                   "IPv4",
		"a..b":                          "part",
		".a":                            "part",
		"-a.example":                    "part",
		"a-.example":                    "part",
		strings.Repeat("a", 64):         "part",
		strings.Repeat("a.", 130) + "a": "253",
		"a_b.example":                   "character",
		"a b.example":                   "character",
		"a\x00.example":                 "character",
		"{region}.example":              "character",
		"a%2eexample":                   "character",
		"*":                             "*",
		"*.":                            "top level",
		"*.com":                         "top level",
		"*.*.example":                   "*",
		"a*.example":                    "*",
		"a.*.example":                   "*",
		"a\\b.example":                  "character",
	}
	for in, want := range bad {
		h, err := ParseHost(in, "443")
		if err == nil {
			t.Errorf("%q was read as %+v", in, h)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %q does not speak of %q", in, err, want)
		}
	}
}

func TestHostMatches(t *testing.T) {
	exact, wild := Host{"api.openai.com", "443", false}, Host{"api.openai.com", "443", true}
	for _, row := range []struct {
		h          Host
		host, port string
		want       bool
	}{
		{exact, "api.openai.com", "443", true},
		{exact, "api.openai.com", "8443", false},
		{exact, "x.api.openai.com", "443", false},
		{exact, "api.openai.com.evil.example", "443", false},
		{wild, "eu.api.openai.com", "443", true},
		{wild, "eu.api.openai.com", "444", false},
		{wild, "api.openai.com", "443", false},
		{wild, ".api.openai.com", "443", false},
		{wild, "a.b.api.openai.com", "443", false},
		{wild, "evilapi.openai.com", "443", false},
		{wild, "", "443", false},
	} {
		if got := row.h.Matches(row.host, row.port); got != row.want {
			t.Errorf("%v matches %s:%s = %v", row.h, row.host, row.port, got)
		}
	}
	if n := testing.AllocsPerRun(100, func() { wild.Matches("eu.api.openai.com", "443") }); n > 0 {
		t.Errorf("Matches allocates %v times", n)
	}
}

func TestLoopback(t *testing.T) {
	for in, want := range map[string]bool{
		"127.0.0.1": true, "127.8.8.8:80": true, "[::1]": true, "localhost": false, "127.0.0.1.example": false, "128.0.0.1": false, "[::2]": false,
	} {
		h, err := ParseHost(in, "443")
		if err != nil || h.Loopback() != want {
			t.Errorf("%q: %v %v", in, h.Loopback(), err)
		}
	}
}

// Whatever is accepted is read the same way by every parser that a request
// meets later, and by this one.
func FuzzResolveHost(f *testing.F) {
	for _, s := range []string{"api.openai.com", "a.example:8443", "[::1]:1", "127.0.0.1", "0x7f.1", "a@b", "A.b", "b\u00fccher.de", "*.a.b", "a.:1", "[::ffff:1.2.3.4]", "a%00.b", "1.2.3.4.5", "[::1%25lo]", "a.0x1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		entry := Spec{Name: "x", Hosts: []string{in}, Attach: Attach{Header: "Authorization"}}
		s, problems := Resolve(entry, "", nil)
		h, err := ParseHost(in, "443")
		if (err != nil || h.Wildcard) != (len(problems) > 0) {
			t.Fatalf("%q: ParseHost says %v, Resolve %v", in, err, problems)
		}
		if err != nil || h.Wildcard {
			return
		}
		u, err := url.Parse(s.BaseURL)
		if err != nil {
			t.Fatalf("%q: base URL %q: %v", in, s.BaseURL, err)
		}
		port := u.Port()
		if port == "" {
			port = "443"
		}
		if u.Hostname() != h.Name || port != h.Port || u.User != nil || u.Path != "" {
			t.Fatalf("%q is %+v here and %q for net/url", in, h, u)
		}
		if name, p, err := net.SplitHostPort(net.JoinHostPort(h.Name, h.Port)); err != nil || name != h.Name || p != h.Port {
			t.Fatalf("%q: net.SplitHostPort differs", in)
		}
		if strings.ToLower(h.Name) != h.Name || strings.HasSuffix(h.Name, ".") || strings.ContainsAny(h.Name, "@/%\\ \x00") {
			t.Fatalf("%q is not canonical: %q", in, h.Name)
		}
		if last := h.Name[strings.LastIndexByte(h.Name, '.')+1:]; last[0] >= '0' && last[0] <= '9' && strings.Trim(last, "0123456789") == "" {
			if _, err := netip.ParseAddr(h.Name); err != nil {
				t.Fatalf("%q: %q could be read as an address", in, h.Name)
			}
		}
		if again, problems := Resolve(s, "", nil); len(problems) > 0 || again.BaseURL != s.BaseURL || again.Hosts[0] != s.Hosts[0] {
			t.Fatalf("%q: not stable: %v %v", in, again.Hosts, problems)
		}
	})
}
