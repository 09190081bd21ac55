package proxy

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/postern-proxy/postern/agent/proxy/h1"
)

// fromProgram refuses what a web page can send to a route. A page can make a
// browser connect to this port (by its address, or by a name of its own that it
// rebinds to it), but it cannot choose Host, Origin or Sec-Fetch-Site.
func (x *exchange) fromProgram() bool {
	if !x.ownHost() {
		x.refuse(http.StatusMisdirectedRequest, codeHost,
			"routes answer to the listener's own address only ("+x.ownName()+"); use it, or list this host in listen.hosts", nil)
		return false
	}
	return x.crossSite()
}

// crossSite refuses what a browser sends for a page, on every way in: requests of
// another site or origin, and whatever is to be shown or run (its destination is not
// empty). The latter because a browser says "none" of an address that somebody typed, and
// of all that it is redirected to (Chromium 156): any site that is visited could lead
// on to here. Programs send none of these fields, or only values that pass.
func (x *exchange) crossSite() bool {
	page := func(why string) bool {
		x.refuse(http.StatusForbidden, codeCrossSite, "a web page may not send requests through the agent ("+why+")", nil)
		return false
	}
	for i := range x.req.Fields {
		f := &x.req.Fields[i]
		switch v := view(f.Value); {
		case h1.EqualFold(f.Name, "Sec-Fetch-Site"):
			if v == "cross-site" || v == "same-site" {
				return page("Sec-Fetch-Site: " + v)
			}
		case h1.EqualFold(f.Name, "Sec-Fetch-Dest"):
			if v != "empty" {
				return page("Sec-Fetch-Dest is not empty: a browser shows no provider")
			}
		case h1.EqualFold(f.Name, "Origin"):
			u, err := url.Parse(v)
			if err != nil || u.Host == "" || !strings.EqualFold(u.Host, x.host) && (x.to == nil || !strings.EqualFold(u.Host, x.to.header)) {
				return page("its Origin is not this host")
			}
		}
	}
	return true
}

func (x *exchange) ownHost() bool {
	self := x.ownName()
	if self == "" || strings.EqualFold(x.host, self) {
		return true
	}
	for _, h := range x.rt.Hosts {
		if strings.EqualFold(x.host, h) {
			return true
		}
	}
	return false
}

// ownName is the Host value that a client of this connection must send; ""
// for a Unix socket, which no web page can reach.
func (x *exchange) ownName() string {
	self := *x.s.self.Load()
	if self != "*" {
		return self
	}
	return x.c.conn.LocalAddr().String()
}
