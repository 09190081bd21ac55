package clientenv

import (
	"cmp"
	"net/url"
	"slices"
	"strings"

	"github.com/postern-proxy/postern/agent/provider/spec"
)

var (
	// local is this machine. Without it some runtimes send even our own routes through the proxy.
	local = []string{"localhost", "127.0.0.1", "::1"}
	// direct is what no proxy should see: the cloud's metadata, and a cluster's own
	// names (one common runtime does not understand ranges, so names it is).
	direct = []string{"169.254.169.254", ".svc", ".cluster.local"}

	proxyNames   = []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"}
	noProxyNames = []string{"NO_PROXY", "no_proxy"}

	// bundleNames are read instead of the system's roots, so they get everything that is trusted.
	bundleNames = []string{
		"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO",
		"AWS_CA_BUNDLE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "DENO_CERT",
	}
	// addName is read beside the runtime's own roots.
	addName = "NODE_EXTRA_CA_CERTS"
)

// proxy makes the agent the proxy of everything but what must be reached directly.
func (b *builder) proxy() {
	told := map[string]bool{}
	for _, name := range proxyNames {
		old := b.now(name)
		other := place(old)
		replaces := !among(old, "", b.in.Proxy)
		if replaces && !told[old] && other != place(b.in.Proxy) {
			told[old] = true
			b.note(name, "pointed to %s and is replaced by the agent: where that proxy is the only way out, name it in egress.proxy", cmp.Or(other, "another proxy"))
		}
		b.add(Var{Name: name, Value: b.in.Proxy, Kind: Proxy, Why: "the agent as a proxy", Replaces: replaces})
	}
	list := slices.Concat(local, []string{host(b.in.Proxy)}, direct, []string{b.in.VaultHost}, b.in.NoProxy)
	for _, e := range b.noProxyNow() {
		if b.covers(e) {
			b.note("NO_PROXY", "listed %s, which would lead requests past the agent: it is left out", e)
			continue
		}
		list = append(list, e)
	}
	b.noProxy(list, "what is reached without the agent")
	b.add(Var{Name: "NODE_USE_ENV_PROXY", Value: "1", Kind: Proxy, Why: "Node reads the proxy variables only then", Replaces: !among(b.now("NODE_USE_ENV_PROXY"), "", "1")})
}

// pastProxies keeps the routes' own address out of a proxy that is set already.
func (b *builder) pastProxies() {
	names := slices.Concat(proxyNames, []string{"ALL_PROXY", "all_proxy"})
	if !slices.ContainsFunc(names, func(n string) bool { return b.now(n) != "" }) {
		return
	}
	b.noProxy(slices.Concat(b.noProxyNow(), local, []string{host(b.in.Proxy)}), "the routes must not go through the proxy that is set")
}

// noProxy sets NO_PROXY in both spellings. What it had is part of the list, or was left out with a note.
func (b *builder) noProxy(list []string, why string) {
	var out []string
	for _, e := range list {
		if e != "" && !slices.Contains(out, e) {
			out = append(out, e)
		}
	}
	for _, name := range noProxyNames {
		b.add(Var{Name: name, Value: strings.Join(out, ","), Kind: Proxy, Why: why})
	}
}

// noProxyNow is what both spellings list now.
func (b *builder) noProxyNow() []string {
	var out []string
	for _, name := range noProxyNames {
		for e := range strings.SplitSeq(b.now(name), ",") {
			if e = strings.TrimSpace(e); e != "" && !slices.Contains(out, e) {
				out = append(out, e)
			}
		}
	}
	return out
}

// covers reports whether an entry of NO_PROXY keeps a provider's host from the agent.
func (b *builder) covers(entry string) bool {
	if entry == "*" {
		return true
	}
	name, _, _ := strings.Cut(strings.ToLower(entry), ":")
	name = strings.TrimPrefix(strings.TrimPrefix(name, "*"), ".")
	for _, p := range b.in.Providers {
		for _, raw := range p.Spec.Hosts {
			h, err := spec.ParseHost(raw, "443")
			if err != nil || name == "" {
				continue
			}
			if h.Name == name || strings.HasSuffix(h.Name, "."+name) || h.Wildcard && strings.HasSuffix(name, "."+h.Name) {
				return true
			}
		}
	}
	return false
}

// trust names the certificates with which the agent's leaves verify.
func (b *builder) trust() {
	if b.in.BundleFile != "" {
		for _, name := range bundleNames {
			b.file(name, b.in.BundleFile, "the system's roots and the agent's CA")
		}
	}
	if b.in.CAFile != "" {
		b.file(addName, b.in.CAFile, "the agent's CA, beside the runtime's own roots")
	}
}

func (b *builder) file(name, value, why string) {
	old := b.now(name)
	replaces := !among(old, "", value)
	if replaces {
		b.note(name, "named another file and is replaced: if it holds roots that are needed, name it in egress.ca_file")
	}
	b.add(Var{Name: name, Value: value, Kind: Trust, Why: why, Replaces: replaces})
}

// host is a URL's host without its port.
func host(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	return u.Hostname()
}
