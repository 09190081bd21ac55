package spec

import (
	"net/textproto"
	"slices"
	"strconv"
	"strings"
)

// framing headers belong to the connection, not to the request.
var framing = []string{
	"Connection", "Content-Length", "Expect", "Host", "Http2-Settings", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// unattachable headers, further, say how a message is read, routed or cached:
// a key in one would never arrive, or change what arrives.
var unattachable = append([]string{
	"Accept-Encoding", "Content-Encoding", "Content-Range", "Content-Type", "Date", "Forwarded", "Range", "Via",
}, framing...)

// header checks a header's name.
func (c *checker) header(field, name string, forbidden []string) {
	canonical := textproto.CanonicalMIMEHeaderKey(name)
	switch {
	case !isToken(name):
		c.add(field, "%q is no header name; letters, digits and - are safe", printable(name))
	case slices.Contains(forbidden, canonical),
		strings.HasPrefix(canonical, "Proxy-"), strings.HasPrefix(canonical, "Sec-"), strings.HasPrefix(canonical, "X-Forwarded-"):
		c.add(field, "%s belongs to the connection, the message or a proxy; write another header", canonical)
	}
}

// isToken is RFC 9110's token, at most 256 characters.
func isToken(s string) bool {
	if s == "" || len(s) > 256 {
		return false
	}
	for i := 0; i < len(s); i++ {
		if !isAlnum(s[i]) && strings.IndexByte("!#$%&'*+-.^_`|~", s[i]) < 0 {
			return false
		}
	}
	return true
}

// attach checks one credential that every request must carry.
func (c *checker) attach(field string, a Attach) {
	forms := 0
	for _, set := range []bool{a.Header != "", a.Query != "", a.Basic != nil} {
		if set {
			forms++
		}
	}
	if forms != 1 {
		c.add(field, `write exactly one of header (with format), query and basic, as {header: Authorization, format: "Bearer {api_key}"}`)
		return
	}
	if a.Pass {
		c.add(field+".pass", "is for headers under also; the key itself never passes")
	}
	c.form(field, a)
}

// form checks the one form that is set.
func (c *checker) form(field string, a Attach) {
	if a.Basic != nil {
		if a.Format != "" {
			c.add(field+".format", "basic has its own username and password; leave format out")
		}
		user := c.format(field+".basic.username", a.Basic.Username)
		for _, p := range user {
			if strings.Contains(p.Literal, ":") {
				c.add(field+".basic.username", "may not hold a colon, which ends it")
			}
		}
		if pass := c.format(field+".basic.password", a.Basic.Password); !refers(user) && !refers(pass) {
			c.add(field+".basic", `refers to no field of the secret; write username: "{api_key}" or password: "{api_key}"`)
		}
		return
	}
	if a.Header != "" {
		c.header(field+".header", a.Header, unattachable)
	} else if strings.ContainsFunc(a.Query, func(r rune) bool { return r <= ' ' || r > '~' }) {
		c.add(field+".query", "%q is no plain parameter name", printable(a.Query))
	}
	before := len(c.problems)
	pieces := c.format(field+".format", a.Format)
	if len(c.problems) == before && !refers(pieces) {
		c.add(field+".format", `refers to no field of the secret; write it with braces, as "Bearer {api_key}"`)
	}
	if a.Format != strings.TrimSpace(a.Format) {
		c.add(field+".format", "begins or ends with a space, which is lost on the way")
	}
}

func (c *checker) format(field, s string) []Piece {
	pieces, err := ParseFormat(s)
	if err != nil {
		c.add(field, "%q %s", printable(s), err)
	}
	return pieces
}

func refers(pieces []Piece) bool {
	return slices.ContainsFunc(pieces, func(p Piece) bool { return p.Field != "" })
}

// also checks the further headers; two may not meet in one.
func (c *checker) also(s Spec) {
	seen := map[string]bool{s.Attach.Header: true, "?" + s.Attach.Query: true}
	if s.Attach.Basic != nil {
		seen["Authorization"] = true
	}
	for i, a := range s.Also {
		field := "also[" + strconv.Itoa(i) + "]"
		if a.Basic != nil || (a.Header == "") == (a.Query == "") {
			c.add(field, `write exactly one of header and query, as {header: X-Team, format: "{team}"}`)
			continue
		}
		c.form(field, a)
		name := a.Header
		if a.Query != "" {
			name = "?" + a.Query
		}
		if seen[name] {
			c.add(field, "%s is attached already; one value each", strings.TrimPrefix(name, "?"))
		}
		seen[name] = true
	}
}
