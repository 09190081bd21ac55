package proxy

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/postern-proxy/postern/agent/keyring"
	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/proxy/h1"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/upstream"
)

// How a request arrived.
const (
	viaRoute    = "route"
	viaAbsolute = "absolute"
	viaConnect  = "connect"
)

// exchange is one request and its response on their way through the agent. It
// belongs to a session, which uses it for one request after another. Its fields
// are filled along the path and read once, by finish.
type exchange struct {
	c   *session
	s   *Server
	req *h1.Request
	rt  *Routing
	t   *Target // nil until matched
	to  *place  // of t
	via string

	target  target
	host    string // that the client asked for: the target's, or else Host
	path    []byte // at the provider or, on a route, behind its name
	upgrade bool   // to a WebSocket

	fields map[string]*secret.Value // of the version that is sent
	whole  []byte                   // the request's body, where all of it came before anything was sent
	body   *body                    // otherwise; nil where there is none
	short  *[]byte                  // what whole was read into; borrowed
	trip   *trip                    // to the provider and back

	start    time.Time
	sent     time.Time // when the request was handed to the upstream connection
	answered time.Time // when the answer's head had come
	wrote    time.Time // when its head had been passed on

	version int // of the key it carried; 0 for none
	retried bool
	masked  int
	status  int  // what the client saw; 0 if nothing was sent
	last    bool // the connection ends with this exchange
	aborted bool // without a word more
	passing bool // our error will pass by itself
	code    string
	err     error
}

// open makes the session's exchange one of the present generation.
func (c *session) open(start time.Time, via string) *exchange {
	x := &c.x
	*x = exchange{c: c, s: c.s, req: &c.req, rt: c.s.routing.Load(), via: via, start: start, trip: &c.trip, host: view(c.req.Host)}
	return x
}

// serve carries the request to the target that its route or host matched.
func (x *exchange) serve() {
	if !provider.CleanPath(view(x.path)) {
		x.refuse(http.StatusBadRequest, codeBadPath, errPath.Error(), nil)
		return
	}
	lease, ok := x.t.Key.Pick(rand.Uint32())
	for !ok {
		if !x.overtaken() {
			x.noKey()
			return
		}
		lease, ok = x.t.Key.Pick(rand.Uint32())
	}
	defer func() { lease.Release() }()
	defer x.settle()
	x.upgrade = x.isWebSocket()
	if !x.takeBody() {
		return
	}
	err := x.send(lease)
	if err == nil && x.suspect(x.trip.res.Status) {
		lease, err = x.retry(lease)
	}
	if err != nil {
		x.unreachable(err)
		return
	}
	lease.Version().Served()
	x.respond()
}

// overtaken matches the request anew where another generation came after it was
// matched: the one before lets go of its keys. It reports whether there is a match.
func (x *exchange) overtaken() bool {
	rt := x.s.routing.Load()
	t := rt.routes[x.t.Name]
	if rt == x.rt || t == nil {
		return false
	}
	to := t.base
	if x.via != viaRoute {
		if to = rt.hosts[x.to.hostport]; to == nil {
			host, port, err := authority(x.to.hostport, "")
			if err != nil {
				return false
			}
			to = rt.byHost(host, port)
		}
		if to == nil || to.t != t {
			return false
		}
	}
	x.rt, x.t, x.to = rt, t, to
	return true
}

// takeBody readies the request's body. One that came with its head, or is short
// and comes at once, is taken whole and can be sent as often as it must; any
// other is read while it is sent.
func (x *exchange) takeBody() bool {
	b := &x.c.body
	switch {
	case b.none():
		return true
	case x.throughHTTP2():
	case b.whole():
		x.whole = b.take()
		return true
	case !b.chunked && x.req.Length <= shortBody && !b.wantsContinue:
		switch whole, err := x.readShort(); {
		case err != nil:
			x.fail(codeClientGone, nil)
			x.aborted = true
			return false
		case whole:
			return true
		}
	}
	x.body = newBody(b, &x.s.bodies, x.t.Key.Spare() && x.req.Length <= maxBody)
	return true
}

// readShort waits a moment for the rest of a short body. What has come when
// that is over is ready for whoever reads the body on.
func (x *exchange) readShort() (whole bool, err error) {
	c, b := x.c, &x.c.body
	x.short = borrow(shortBody)
	buf := (*x.short)[:x.req.Length]
	n := copy(buf, b.ready)
	b.ready = nil
	c.enter(atBody, time.Now())
	for n < len(buf) && err == nil {
		var k int
		k, err = c.conn.Read(buf[n:])
		n += k
	}
	b.left = int64(len(buf) - n)
	switch kicked := c.unkick(x.start); {
	case n == len(buf):
		x.whole = buf
		b.ended.Store(true)
		return true, nil
	case kicked && isTimeout(err):
		b.ready = buf[:n]
		return false, nil
	}
	return false, unexpected(err)
}

// throughHTTP2 reports whether net/http makes the round trip. An upgrade is HTTP/1.1's.
func (x *exchange) throughHTTP2() bool {
	return x.t.Transport != nil && (!x.upgrade || x.t.Pool == nil)
}

// send attaches the leased version's key and makes the round trip: when it
// returns without an error, the answer's head is there.
func (x *exchange) send(lease keyring.Lease) error {
	v := lease.Version()
	x.fields = v.Fields()
	x.version = v.Number()
	var err error
	if x.throughHTTP2() {
		err = x.overHTTP2()
	} else {
		err = x.overHTTP1()
	}
	x.answered = time.Now()
	if err != nil {
		return err
	}
	switch status := x.trip.res.Status; {
	case status == http.StatusSwitchingProtocols && !x.upgrade:
		return errAnswer("101 without an upgrade")
	case status < http.StatusOK && status != http.StatusSwitchingProtocols:
		return errAnswer("a status that is none")
	}
	return nil
}

// errAttach: the key's version cannot be put onto a request.
type errAttach struct{ error }

// errAnswer: what the provider said is no valid answer.
type errAnswer string

func (e errAnswer) Error() string { return "malformed HTTP: " + string(e) }

// suspect reports whether a status may be the key's fault: the provider's dead
// statuses, and 403, which is a suspicion that only the other version settles.
func (x *exchange) suspect(status int) bool {
	return x.t.Provider.DeadStatus(status) || status == http.StatusForbidden
}

// retry sends the request once more with another usable version, if there is
// one and the body can be replayed. It returns the lease that goes with the
// answer to pass on; the other lease is released.
func (x *exchange) retry(lease keyring.Lease) (keyring.Lease, error) {
	other, ok := x.t.Key.Other(lease.Version().ID())
	if !ok {
		return lease, nil
	}
	taken := false // or it is released, whatever happens
	defer func() {
		if !taken {
			other.Release()
		}
	}()
	if x.body != nil {
		replay := x.body.replay()
		if replay == nil {
			return lease, nil
		}
		x.body = replay
	}
	x.trip.discard()
	x.retried = true
	if err := x.send(other); err != nil {
		return lease, err
	}
	if !x.suspect(x.trip.res.Status) {
		// Only this pair is evidence: a status that both draw says nothing about either.
		lease.Version().Failed()
		x.t.metrics.rescued.Inc()
	}
	lease.Version().Served()
	lease.Release()
	taken = true
	return other, nil
}

// settle ends what the exchange has begun, however it went: nobody reads from
// the client or uses the upstream connection when it returns.
func (x *exchange) settle() {
	if x.body != nil {
		x.body.detach(x.c)
	}
	x.trip.end()
	if x.short != nil {
		giveBack(x.short)
	}
}

// unreachable answers when no answer came.
func (x *exchange) unreachable(err error) {
	var bad h1.Error
	failed := x.trip.sending.failure()
	if errors.As(failed, &bad) {
		x.last = true
		x.refuse(http.StatusBadRequest, codeFraming, bad.Error(), nil)
		return
	}
	var attach errAttach
	switch {
	case errors.As(err, &attach):
		x.refuse(http.StatusServiceUnavailable, codeNoKey, "the key "+x.t.Key.Name()+" cannot be attached: "+attach.Error(), err)
		return
	case failed != nil || x.c.ctx.Err() != nil:
		x.fail(codeClientGone, nil)
		x.aborted = true // an empty 200 would be a lie
		return
	}
	err = upstream.Explain(x.to.hostport, err)
	var ue *upstream.Error
	status, code := http.StatusBadGateway, codeUnreachable
	msg := "the request to " + x.to.hostport + " failed"
	if errors.As(err, &ue) {
		msg = ue.Error()
		x.t.metrics.failure(ue.Kind)
		if ue.Kind == "timeout" {
			status, code = http.StatusGatewayTimeout, codeTimeout
		}
	}
	x.refuse(status, code, msg, err)
}

// noKey answers 503 where no version is usable; nothing is forwarded (I11).
func (x *exchange) noKey() {
	why, passing := "no version of it is usable", false
	if x.s.why != nil {
		why, passing = x.s.why(x.t.Key.Name())
	}
	x.passing = passing
	x.refuse(http.StatusServiceUnavailable, codeNoKey, "no usable provider key "+x.t.Key.Name()+": "+why, nil)
}
