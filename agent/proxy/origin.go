package proxy

import (
	"net"
	"net/http"
	"net/url"
	"strings"
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

// crossSite refuses requests that a browser marks as another site's. Programs
// send neither field, or only such values as pass here.
func (x *exchange) crossSite() bool {
	for _, v := range x.r.Header["Sec-Fetch-Site"] {
		if v == "cross-site" || v == "same-site" {
			x.refuse(http.StatusForbidden, codeCrossSite, "a web page may not send requests through the agent (Sec-Fetch-Site: "+v+")", nil)
			return false
		}
	}
	for _, v := range x.r.Header["Origin"] {
		u, err := url.Parse(v)
		if err != nil || u.Host == "" || !strings.EqualFold(u.Host, x.r.Host) {
			x.refuse(http.StatusForbidden, codeCrossSite, "a web page may not send requests through the agent (its Origin is not this host)", nil)
			return false
		}
	}
	return true
}

func (x *exchange) ownHost() bool {
	self := x.ownName()
	if self == "" || strings.EqualFold(x.r.Host, self) {
		return true
	}
	for _, h := range x.rt.Hosts {
		if strings.EqualFold(x.r.Host, h) {
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
	return x.r.Context().Value(connKey{}).(net.Conn).LocalAddr().String()
}
