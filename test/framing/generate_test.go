package framing_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
)

// arrival is one of the ways by which requests reach the agent.
type arrival string

const (
	byRoute    arrival = "route"
	byAbsolute arrival = "absolute"
	byConnect  arrival = "connect"
)

// trial is what one client connection says, in the pieces that it was made of.
type trial struct {
	arrival arrival
	pieces  [][]byte
	write   int  // bytes of one write; 0: everything at once
	leaves  bool // the client ends its side at once
}

func (tr trial) bytes() []byte { return bytes.Join(tr.pieces, nil) }

func (tr trial) String() string {
	return fmt.Sprintf("by %s, write %d, leaves %v:\n%s", tr.arrival, tr.write, tr.leaves, quote(tr.bytes()))
}

// draft is a request under way: valid to begin with, then changed in places.
type draft struct {
	*rand.Rand
	to     address
	method string
	target string
	ver    string
	fields []string // whole lines
	end    string   // of the head
	body   []string // pieces
}

// address is how one lane's provider is named by an arrival.
type address struct {
	prefix string // of each target
	host   string // in Host
}

func address4(a arrival, lane int, agent, upstream string) address {
	switch a {
	case byRoute:
		return address{fmt.Sprintf("/lane%d", lane), agent}
	case byAbsolute:
		return address{"https://" + upstream, upstream}
	}
	return address{"", upstream}
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// newTrial makes one to three requests, most of them with something wrong, and
// a good one behind them.
func newTrial(r *rand.Rand, a arrival, to address) trial {
	tr := trial{arrival: a, leaves: r.IntN(10) == 0}
	if r.IntN(3) == 0 {
		tr.write = 1 + r.IntN(40)
	}
	for range 1 + r.IntN(3)*r.IntN(2) {
		d := newDraft(r, to)
		for range pick(r, 0, 1, 1, 1, 2, 2, 3) {
			pick(r, requestMutations...)(d)
		}
		tr.pieces = append(tr.pieces, d.pieces()...)
	}
	if r.IntN(6) == 0 {
		scratch(r, tr.pieces)
	}
	if r.IntN(12) == 0 {
		tr.pieces = tr.pieces[:1+r.IntN(len(tr.pieces))]
	}
	after := fmt.Sprintf("GET %s/v1/after HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", to.prefix, to.host)
	tr.pieces = append(tr.pieces, []byte(after))
	return tr
}

func newDraft(r *rand.Rand, to address) *draft {
	d := &draft{Rand: r, to: to, ver: "HTTP/1.1", end: "\r\n"}
	d.method = pick(r, "GET", "POST", "POST", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS")
	d.target = to.prefix + pick(r, "/v1/chat", "/v1/models?limit=2", "/v1/a%20b", "/v1/~x;y=z,", "/v1/%C3%A9?q=%26", "/", "/v1/p/?a=b&c")
	d.fields = []string{"Host: " + to.host + "\r\n"}
	for range r.IntN(4) {
		d.add(pick(r, "X-Keep-1: one", "x-keep-2: two, three", "X-Keep-3:  spaces\t ", "X-Keep-4: \xe9\xff", "X-Keep-5:", "Accept: */*", "User-Agent: t/1",
			"Content-Type: application/json", "X-Keep-1: again", "X!#$%&'*+.^`|~: odd", "Cookie: a=b; c=d"))
	}
	if r.IntN(3) == 0 {
		d.add(credential(r))
	}
	switch r.IntN(5) {
	case 0, 1:
		body := d.content()
		d.add("Content-Length: " + strconv.Itoa(len(body)))
		d.body = []string{body}
	case 2, 3:
		d.chunked()
	}
	return d
}

// credentials are names by which providers of the catalog take a key, and proxies theirs.
var credentials = []string{"authorization", "x-api-key", "api-key", "x-goog-api-key", "proxy-authorization"}

func credential(r *rand.Rand) string {
	name := pick(r, credentials...)
	switch r.IntN(4) {
	case 0:
		name = strings.ToUpper(name)
	case 1:
		name = strings.ReplaceAll(name, "-", "_")
	}
	return name + ": " + pick(r, "", "Bearer ") + planted
}

// content is a body that would like to be more than one.
func (d *draft) content() string {
	inner := fmt.Sprintf("GET %s/v1/smuggled HTTP/1.1\r\nHost: %s\r\n\r\n", d.to.prefix, d.to.host)
	return pick(d.Rand, `{"model":"x"}`, "", "x", strings.Repeat("0123456789abcdef", 300), inner, "0\r\n\r\n"+inner, "\r\n"+inner, "5\r\nhello\r\n0\r\n\r\n", "\n\n", "\x00\xff\r")
}

func (d *draft) add(line string) { d.fields = append(d.fields, line+"\r\n") }

// drop removes the fields of a name.
func (d *draft) drop(name string) {
	d.fields = slices.DeleteFunc(d.fields, func(l string) bool {
		return len(l) > len(name) && strings.EqualFold(l[:len(name)], name)
	})
}

// chunked frames one to three pieces, each size line, data and line end a piece of its own.
func (d *draft) chunked() {
	d.add("Transfer-Encoding: chunked")
	d.body = nil
	for range 1 + d.IntN(3) {
		data := d.content()
		if data == "" {
			continue
		}
		d.body = append(d.body, pick(d.Rand, "%x", "%X", "0%x")+"\r\n", data, "\r\n")
		i := len(d.body) - 3
		d.body[i] = fmt.Sprintf(d.body[i], len(data))
	}
	d.body = append(d.body, "0\r\n", "\r\n")
}

func (d *draft) pieces() [][]byte {
	line := d.method + " " + d.target
	if d.ver != "" {
		line += " " + d.ver
	}
	out := [][]byte{[]byte(line + "\r\n")}
	for _, part := range slices.Concat(d.fields, []string{d.end}, d.body) {
		out = append(out, []byte(part))
	}
	return out
}

// odd are bytes that parsers treat each in their own way.
var odd = []string{"\r", "\n", "\x00", " ", "\t", "\x0b", "\x0c", "\x7f", "\x80", "\xff", ":", ",", ";", "#", "\\", "%", "_", "\x1b", "\x85", "\xa0", "\r\n", "\n\r", "\r\r\n", "\"", "(", "{", "@"}

// scratch changes one byte of one piece.
func scratch(r *rand.Rand, pieces [][]byte) {
	i := r.IntN(len(pieces))
	p := pieces[i]
	at := r.IntN(len(p) + 1)
	if len(p) > 200 {
		at = pick(r, 0, len(p), r.IntN(80))
	}
	cut := at
	if at < len(p) && r.IntN(2) == 0 {
		cut++
	}
	pieces[i] = slices.Concat(p[:at], []byte(pick(r, odd...)), p[cut:])
}

// insert puts an odd byte somewhere into s.
func insert(r *rand.Rand, s string) string {
	at := r.IntN(len(s) + 1)
	return s[:at] + pick(r, odd...) + s[at:]
}
