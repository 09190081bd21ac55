package framing_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
)

// answer is what a hostile upstream says to one request.
type answer struct {
	method string // of the request that it is said to
	pieces [][]byte
	write  int  // bytes of one write; 0: everything at once
	closes bool // and then leaves
}

func (a answer) bytes() []byte { return bytes.Join(a.pieces, nil) }

// hostile is the upstream of one lane. What it is asked for under /hostile/ it
// answers with the answer it was told to give, everything else properly.
type hostile struct {
	mu     sync.Mutex
	now    answer
	saying sync.Mutex // held while it says it
}

// heardOut waits until it has said what it is saying. Of what is said to a request
// before the next one comes a reader can know whose answer it is; of what comes after, nobody can.
func (h *hostile) heardOut() {
	h.saying.Lock()
	defer h.saying.Unlock()
}

func (h *hostile) tell(a answer) {
	h.mu.Lock()
	h.now = a
	h.mu.Unlock()
}

func (h *hostile) serve(c net.Conn) {
	defer c.Close()
	var got []byte
	buf := make([]byte, 16<<10)
	for {
		n, err := c.Read(buf)
		got = append(got, buf[:n]...)
		m, took, bad := readRequest(got)
		if bad == errIncomplete && err == nil || err == nil && n == 0 {
			continue
		}
		if err != nil || bad != nil {
			return
		}
		got = got[took:]
		path, nonce, _ := strings.Cut(m.target()[1:], "/")
		if path != "hostile" {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Nonce: %s\r\nContent-Length: %d\r\n\r\nanswer %s", nonce, len("answer "+nonce), nonce)
			continue
		}
		h.mu.Lock()
		a := h.now
		h.mu.Unlock()
		h.saying.Lock()
		listens := a.say(c)
		h.saying.Unlock()
		if !listens {
			return
		}
	}
}

// say says it, and reports whether the upstream goes on listening. Where the
// answer has no certain end the other side may wait for more: then it is told
// after a little silence that there is none, unless it has asked something else.
func (a answer) say(c net.Conn) bool {
	b := a.bytes()
	step := len(b)
	if a.write > 0 {
		step = max(a.write, len(b)/100)
	}
	for part := range slices.Chunk(b, max(1, step)) {
		if _, err := c.Write(part); err != nil {
			return false
		}
	}
	if _, _, err := finalAnswer(b, a.method, false); err != nil {
		c.SetReadDeadline(time.Now().Add(150 * time.Millisecond))
	}
	return !a.closes
}

// kindly reports whether the answer that nobody is to see stands in its own
// right behind an interim one, for a reader that does not look at all of that closely.
func (a answer) kindly() bool {
	lines := bytes.ReplaceAll(bytes.ReplaceAll(a.bytes(), []byte("\r\n"), []byte("\n")), []byte("\n"), []byte("\r\n"))
	head, rest, _ := bytes.Cut(lines, []byte("\r\n\r\n"))
	if first, _, _ := bytes.Cut(head, []byte("\r\n")); !interim.Match(first) {
		rest = lines
	}
	m, _, err := finalAnswer(rest, a.method, true)
	return err == nil && m.status() == smuggled
}

var interim = regexp.MustCompile(`^\S* 1\d\d`)

// finalAnswer reads past interim answers to the one that counts.
func finalAnswer(b []byte, method string, ended bool) (m message, n int, err error) {
	for {
		m, took, err := readAnswer(b[n:], method, ended, true)
		if err != nil || m.status() >= 200 {
			return m, n + took, err
		}
		n += took
	}
}

// verdicts is what became of the answers of one run.
type verdicts struct{ trials, strict, passed, refused, cut, lenient, errors atomic.Int64 }

func (v *verdicts) String() string {
	return fmt.Sprintf("%d answers: %d can be read in one way; the agent passed %d on, of those %d that a strict reader refuses, answered %d by itself, cut %d off; the client refused %d that the agent passed",
		v.trials.Load(), v.strict.Load(), v.passed.Load(), v.lenient.Load(), v.refused.Load(), v.cut.Load(), v.errors.Load())
}

func TestAnswers(t *testing.T) {
	for i, k := range clients {
		t.Run(k.name, func(t *testing.T) {
			w := newWorld(t)
			run, err := k.start(w)
			if err != nil {
				agenttest.NotRun(t, "framing towards "+k.name, err)
				return
			}
			var agentAddr string // known once it runs
			var count verdicts
			ls := make([]*answerLane, lanes)
			var providers, fronts []string
			for n := range ls {
				h := &hostile{}
				providers = append(providers, listen(t, &tls.Config{Certificates: []tls.Certificate{w.cert}}, h.serve))
				front := newTap(t, nil, func() (net.Conn, error) { return net.Dial("tcp", agentAddr) })
				front.hold = h.heardOut
				fronts = append(fronts, front.addr)
				ls[n] = &answerLane{n: n, upstream: h, front: front, run: run, count: &count}
			}
			w.start(providers, fronts...)
			agentAddr = w.agent.Proxy
			w.lanes(*answersFlag, uint64(100+i), func(r *rand.Rand, n int) error { return ls[n].tries(r) })
			w.intact()
			t.Logf("%s, seed %d: %v", k.name, *seedFlag, &count)
			if int(count.passed.Load()) < *answersFlag/5 || int(count.refused.Load()) < *answersFlag/10 {
				t.Error("too few answers came through, or too few were refused, for this to say anything")
			}
		})
	}
}

// answerLane is where one hostile answer at a time is tried: an upstream, the
// agent behind a tap, and a client.
type answerLane struct {
	n        int
	upstream *hostile
	front    *tap
	run      client
	count    *verdicts
	nonce    int
}

func (l *answerLane) tries(r *rand.Rand) error {
	a := newAnswer(r)
	err := l.try(a)
	if err == nil {
		return nil
	}
	l.count = &verdicts{} // what follows does not count
	made := trial{pieces: a.pieces, write: a.write, leaves: a.closes}
	again := func(tr trial) error { return l.try(answer{a.method, tr.pieces, tr.write, tr.leaves}) }
	small := shrink(made, func(tr trial) bool { return sameKind(again(tr), err) })
	if e := again(small); sameKind(e, err) {
		return fmt.Errorf("%w\nthe smallest found, to %s, write %d, closes %v:\n%s", e, a.method, small.write, small.leaves, quote(small.bytes()))
	}
	return fmt.Errorf("%w\nit does not fail by itself: what came before may matter; to %s, write %d, closes %v:\n%s", err, a.method, a.write, a.closes, quote(a.bytes()))
}

// try has the client ask for the hostile answer and for two good ones after it,
// each with a nonce of its own, and says what was not as it must be.
func (l *answerLane) try(a answer) error {
	l.upstream.tell(a)
	var steps []step
	for i, kind := range []string{"hostile", "good", "good"} {
		l.nonce++
		method := "GET"
		if i == 0 {
			method = a.method
		}
		steps = append(steps, step{method, fmt.Sprintf("/lane%d/%s/%d", l.n, kind, l.nonce)})
	}
	results, err := l.run(l.front.addr, steps)
	links, waits := l.front.take()
	if err = errors.Join(err, waits); err != nil {
		return err
	}
	l.count.trials.Add(1)
	heard, err := byPath(links)
	if err != nil {
		return err
	}
	for i, s := range steps {
		if err := l.own(s, heard[s.Path], i > 0); err != nil {
			return err
		}
		if err := l.same(results[i], heard[s.Path]); err != nil {
			return fmt.Errorf("%s: %w", s.Path, err)
		}
	}
	return l.understood(a, heard[steps[0].Path])
}

// byPath are the answers that went to the client, by what was asked. An error
// says that the agent's bytes are not one answer for each request.
func byPath(links []*link) (map[string][]message, error) {
	heard := map[string][]message{}
	for _, k := range links {
		if k.bad != nil {
			return nil, k.bad
		}
		if len(k.answers) > len(k.requests) {
			return nil, fmt.Errorf("the agent answered %d requests %d times", len(k.requests), len(k.answers))
		}
		for i, m := range k.answers {
			path := k.requests[i].target()
			heard[path] = append(heard[path], m)
		}
	}
	return heard, nil
}

// own says why these are not answers to this request. A good request after the
// hostile answer must be answered, and by what it asked for or the agent's own error.
func (l *answerLane) own(s step, heard []message, good bool) error {
	nonce := s.Path[strings.LastIndexByte(s.Path, '/')+1:]
	for _, m := range heard {
		if got := m.all("X-Nonce"); good && m.one("Postern-Error") == "" && (!slices.Equal(got, []string{nonce}) || string(m.body) != "answer "+nonce) {
			return fmt.Errorf("%s got the answer to something else: %q %q %q", s.Path, m.start, m.fields, m.body)
		}
	}
	if good && len(heard) == 0 {
		return fmt.Errorf("%s got no answer", s.Path)
	}
	return nil
}

// same says why the client's view is none of what the agent sent it. A client may refuse what it does not like.
func (l *answerLane) same(r result, heard []message) error {
	if r.Error != "" {
		if len(heard) > 0 {
			l.count.errors.Add(1)
		}
		return nil
	}
	for _, m := range heard {
		if m.status() == r.Status && bytes.Equal(m.body, r.Body) {
			return nil
		}
	}
	return fmt.Errorf("the client saw another answer than the agent sent: %d %q, not one of %v", r.Status, r.Body, heard)
}

// understood says why what the agent passed on is not the answer that the
// upstream gave. Where a strict reader sees none the agent may read more
// kindly, but it must not take an answer that was cut short for a whole one,
// nor an answer out of a body.
func (l *answerLane) understood(a answer, heard []message) error {
	want, _, err := finalAnswer(a.bytes(), a.method, true)
	if err == nil {
		l.count.strict.Add(1)
	}
	if len(heard) == 0 {
		l.count.cut.Add(1)
	}
	for _, m := range heard {
		if m.one("Postern-Error") != "" {
			l.count.refused.Add(1)
			continue
		}
		l.count.passed.Add(1)
		switch {
		case err == errIncomplete:
			return fmt.Errorf("an answer that was cut short passed as whole: %q %q", m.start, m.body)
		case err != nil && m.status() == smuggled && !a.kindly():
			return fmt.Errorf("an answer out of a body passed: %q %q", m.start, m.body)
		case err != nil:
			l.count.lenient.Add(1)
		case m.status() != want.status() || !bytes.Equal(m.body, want.body):
			return fmt.Errorf("the agent passed %q %q on, the upstream said %q %q", m.start, m.body, want.start, want.body)
		}
	}
	return nil
}
