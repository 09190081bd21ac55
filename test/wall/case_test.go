package wall_test

import (
	"strings"
)

// group is one class of attack.
type group struct {
	class int
	name  string // of its cases, as in wall/NAME/…
	says  string
	cases []kase
}

// kase is one attack, tried over each of its paths. What is sent is text in which
//
//	{/p}      is the target that leads to /p of the provider, as the path writes it
//	{host}    is the Host that a client of the path sends
//	{agent}   is the agent's own address
//	{client}  is a credential of the client's own, which must reach nobody
//
// stand for something. send has one line for each line of the head, after which
// the WebSocket paths put the fields of an opening handshake, and then the empty
// line; body follows as it is. raw is the whole in bytes. Over tunnel-h2 all is sent in frames.
type kase struct {
	name   string
	inv    string // as in I2
	source string
	on     string // paths, with spaces between; default route
	to     string // provider; default openai
	agent  string // default deny
	send   string
	body   string
	raw    string
	fields []string          // over tunnel-h2, instead of send: names and values in turn
	says   map[string]answer // of hosts
	names  map[string]string // addresses that a name has in turn, with spaces between
	want   want
	do     func(*run) // instead of sending and reading one answer
	group  *group
}

// The paths by which a request arrives. direct is the listener itself, for what
// is no request to a provider: CONNECT, and targets that are none.
const (
	route    = "route"
	absolute = "absolute"
	connect  = "connect"
	ws       = "ws-route"
	wsAbs    = "ws-absolute"
	wsTunnel = "ws-connect"
	direct   = "direct"

	everyHTTP = route + " " + absolute + " " + connect
	everyWS   = ws + " " + wsAbs + " " + wsTunnel
	every     = everyHTTP + " " + everyWS
	inTunnel  = connect + " " + wsTunnel
)

func (c *kase) paths() []string {
	if c.on == "" {
		return []string{route}
	}
	return strings.Fields(c.on)
}

// base is the case's name, full the same with its path where it has several.
func (c *kase) base() string { return "wall/" + c.group.name + "/" + c.name }

func (c *kase) full(on string) string {
	if len(c.paths()) == 1 {
		return c.base()
	}
	return c.base() + "/" + on
}

// want is what must have happened when a case is over.
type want struct {
	status int    // of the answer; 0: none came and the connection ended
	code   string // Postern-Error; several with | between
	closes bool   // the connection ends after the answer
	n      int    // requests that the provider has had, with its key
	// foreign are the hosts (host:port) beside the provider to which a connection came; no key may have.
	foreign []string
	check   func(*run, *request) // of each of the n
	answer  func(*run, *reply)   // of the answer
	anyhow  bool                 // whatever the answer is
	again   bool                 // there may be one request more
	cut     bool                 // the provider may have had beginnings of requests that broke off
}

// refused: an error of the agent's own, and nobody has been reached.
func refused(status int, code string) want { return want{status: status, code: code} }

// ambiguous: refused as RFC 9112 wants it, with a closed connection.
func ambiguous() want { return want{status: 400, code: "bad_framing", closes: true} }

// attached: the provider answered one request, which was in order.
func attached(checks ...func(*run, *request)) want {
	return want{status: 200, n: 1, check: func(r *run, q *request) {
		for _, c := range checks {
			c(r, q)
		}
	}}
}

// reachedOnly: no provider was asked, but this host was, without a key.
func reachedOnly(status int, hosts ...string) want { return want{status: status, foreign: hosts} }

func (w want) and(f func(*run, *reply)) want { w.answer = f; return w }

// Checks of what the provider was sent.

func line(method, target string) func(*run, *request) {
	return func(r *run, q *request) {
		if q.method != method || q.target != target {
			r.t.Errorf("the provider was asked %s %s, want %s %s", q.method, q.target, method, target)
		}
	}
}

func field(name, value string) func(*run, *request) {
	return func(r *run, q *request) {
		if got := q.header(name); got != r.fill(value) {
			r.t.Errorf("the provider's %s was %q, want %q", name, got, r.fill(value))
		}
	}
}

func body(text string) func(*run, *request) {
	return func(r *run, q *request) {
		if string(q.body) != text {
			r.t.Errorf("the provider's body was %q, want %q", q.body, text)
		}
	}
}
