package framing_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"
)

// tap stands between one who asks and one who answers and writes down what each
// says on each connection. It changes nothing.
type tap struct {
	addr string
	dial func() (net.Conn, error)
	hold func() // before what who asks says is passed on; nil: nothing

	mu      sync.Mutex
	changed chan struct{}
	links   []*link
}

// link is one connection to the tap and the one that carries it on.
type link struct {
	sent, answered   []byte // not yet read as messages
	askEnd, replyEnd bool   // nothing more will come from there

	requests []message // complete ones, in order
	answers  []message // complete ones but interim, in order
	bad      error     // what was wrong with what was said
	half     bool      // somebody has left in the middle of a request: it may be answered, as one that is none
}

// newTap opens one, to be spoken to over TLS if secure is given.
func newTap(t *testing.T, secure *tls.Config, dial func() (net.Conn, error)) *tap {
	p := &tap{dial: dial, changed: make(chan struct{})}
	p.addr = listen(t, secure, p.carry)
	return p
}

func (p *tap) carry(asker net.Conn) {
	defer asker.Close()
	peer, err := p.dial()
	if err != nil {
		return
	}
	defer peer.Close()
	l := &link{}
	p.update(func() { p.links = append(p.links, l) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.copy(asker, peer, &l.answered, &l.replyEnd, nil)
		halfClose(asker)
	}()
	p.copy(peer, asker, &l.sent, &l.askEnd, p.hold)
	halfClose(peer)
	<-done
}

// copy writes down what src says before it passes it on: what is not written down has not been seen.
func (p *tap) copy(dst, src net.Conn, into *[]byte, end *bool, hold func()) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		p.update(func() {
			*into = append(*into, buf[:n]...)
			*end = err != nil
		})
		if n > 0 {
			if hold != nil {
				hold()
			}
			dst.Write(buf[:n]) // one that has left does not end what the other says
		}
		if err != nil {
			return
		}
	}
}

func (p *tap) update(f func()) {
	p.mu.Lock()
	f()
	close(p.changed)
	p.changed = make(chan struct{})
	p.mu.Unlock()
}

// take waits until every request is answered and nothing is under way, and returns the links that carried something since it
// was called last. An error says which of the two did not hold.
func (p *tap) take() ([]*link, error) {
	limit := time.After(time.Minute)
	for {
		p.mu.Lock()
		changed, waits := p.changed, error(nil)
		for _, l := range p.links {
			l.read()
			if err := l.waits(); err != nil {
				waits = err
			}
		}
		if waits == nil {
			defer p.mu.Unlock()
			return p.settled(), nil
		}
		p.mu.Unlock()
		select {
		case <-changed:
		case <-limit:
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.settled(), waits
		}
	}
}

// settled hands out what was read, and forgets links that have ended.
func (p *tap) settled() []*link {
	var out []*link
	var open []*link
	for _, l := range p.links {
		if len(l.requests) > 0 || len(l.answers) > 0 || l.bad != nil {
			copied := *l
			copied.half = len(l.sent) > 0
			out = append(out, &copied)
		}
		l.requests, l.answers, l.bad = nil, nil, nil
		if !l.askEnd || !l.replyEnd {
			open = append(open, l)
		}
	}
	p.links = open
	return out
}

// read takes whole messages off what was said.
func (l *link) read() {
	for l.bad == nil && len(l.sent) > 0 {
		m, n, err := readRequest(l.sent)
		if err == errIncomplete {
			break
		}
		if err != nil {
			l.bad = fmt.Errorf("what was sent is no request: %w\n%s", err, quote(l.sent))
			return
		}
		l.requests, l.sent = append(l.requests, m), l.sent[n:]
	}
	for l.bad == nil && len(l.answered) > 0 {
		method := "GET"
		if len(l.answers) < len(l.requests) {
			method = l.requests[len(l.answers)].method()
		}
		m, n, err := readAnswer(l.answered, method, l.replyEnd, false)
		if err == errIncomplete {
			break
		}
		if err != nil {
			l.bad = fmt.Errorf("what was answered is no answer: %w\n%s", err, quote(l.answered))
			return
		}
		l.answered = l.answered[n:]
		if m.status() >= 200 {
			l.answers = append(l.answers, m)
		}
	}
}

// waits says what is still to come; nil if nothing is.
func (l *link) waits() error {
	switch {
	case l.bad != nil || l.replyEnd && l.askEnd:
		return nil
	case l.askEnd:
		return fmt.Errorf("a connection is held open that its other side has left; on it was said %q", l.answered)
	case len(l.sent) > 0:
		return fmt.Errorf("a connection is held open on which half a request was sent:\n%s", quote(l.sent))
	case len(l.answers) < len(l.requests):
		return fmt.Errorf("%d of %d requests were answered", len(l.answers), len(l.requests))
	}
	return nil
}
