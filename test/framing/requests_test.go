package framing_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// tally is what became of the requests of one run.
type tally struct {
	trials, strict, forwarded, refused, upstream atomic.Int64
}

func (c *tally) String() string {
	return fmt.Sprintf("%d connections; %d requests can be read in one way, %d were forwarded and seen alike, %d answered by the agent itself, %d refused by the upstream",
		c.trials.Load(), c.strict.Load(), c.forwarded.Load()-c.upstream.Load(), c.refused.Load(), c.upstream.Load())
}

func TestRequests(t *testing.T) {
	for i, u := range upstreams {
		t.Run(u.name, func(t *testing.T) {
			against(t, u, func(w *world, taps []*tap) {
				var count tally
				var ls [lanes]lane
				for n := range ls {
					ls[n] = lane{world: w, n: n, tap: taps[n], count: &count}
				}
				w.lanes(*requestsFlag, uint64(i), func(r *rand.Rand, n int) error {
					return ls[n].tries(r)
				})
				t.Logf("%s, seed %d: %v", u.name, *seedFlag, &count)
				if int(count.forwarded.Load()) < *requestsFlag/4 || int(count.refused.Load()) < *requestsFlag/10 {
					t.Error("too few requests came through, or too few were refused, for this to say anything")
				}
			})
		})
	}
}

// lanes calls try n times, on all lanes side by side; each call's random numbers
// depend on the seed, the stream and its number alone. Failures are few, and then it ends.
func (w *world) lanes(n int, stream uint64, try func(r *rand.Rand, lane int) error) {
	var next, failed atomic.Int64
	var wg sync.WaitGroup
	for lane := range lanes {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n) && failed.Load() < 3; i = next.Add(1) {
				r := rand.New(rand.NewPCG(*seedFlag, stream<<32|uint64(i)))
				if err := try(r, lane); err != nil {
					failed.Add(1)
					w.t.Errorf("seed %d, input %d: %v", *seedFlag, i, err)
				}
			}
		})
	}
	wg.Wait()
}

// lane is where one input at a time is tried.
type lane struct {
	*world
	n     int
	tap   *tap
	count *tally
	// late are requests that were not forwarded when their client had left: they
	// may still be on their way. past are all of the last trials: one that an
	// upstream left without an answer, and that was then tried again elsewhere,
	// may be written down late.
	late, past []message
}

func (l *lane) tries(r *rand.Rand) error {
	a := pick(r, byRoute, byRoute, byAbsolute, byConnect)
	tr := newTrial(r, a, address4(a, l.n, l.agent.Proxy, l.tap.addr))
	err := l.try(tr)
	if err == nil {
		return nil
	}
	l.count = &tally{} // what follows does not count
	small := shrink(tr, func(smaller trial) bool { return sameKind(l.try(smaller), err) })
	if again := l.try(small); sameKind(again, err) {
		return fmt.Errorf("%w\nthe smallest found, %v", again, small)
	}
	return fmt.Errorf("%w\nit does not fail by itself: what came before may matter; %v", err, tr)
}

// sameKind reports whether two failures begin with the same words.
func sameKind(a, b error) bool {
	kind := func(err error) string {
		return strings.FieldsFunc(err.Error(), func(r rune) bool { return strings.ContainsRune("\"\n0123456789", r) })[0]
	}
	return a != nil && kind(a) == kind(b)
}

// try sends a trial and says what was not as it must be.
func (l *lane) try(tr trial) error {
	asked, rest, readErr := readRequests(tr.bytes())
	methods := make([]string, len(asked), len(asked)+1)
	for i, m := range asked {
		methods[i] = m.method()
	}
	cut, _, _ := strings.Cut(string(rest), " ")
	methods = append(methods, cut) // the agent may answer by the head what is cut off behind it
	said, err := l.talk(tr, methods, readErr)
	links, waits := l.tap.take()
	if err = errors.Join(err, waits); err != nil {
		return err
	}
	got, err := readAnswers(said, methods)
	if err != nil {
		return err
	}
	l.count.trials.Add(1)
	l.count.strict.Add(int64(len(asked)))
	return l.compare(tr.arrival, asked, links, got)
}

// talk is the client: it says everything, reads until the agent has answered
// or closed, and then ends its side.
func (l *lane) talk(tr trial, methods []string, readErr error) ([]byte, error) {
	c, err := l.connect(tr.arrival)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	go func() {
		b := tr.bytes()
		step := len(b)
		if tr.write > 0 {
			step = max(tr.write, len(b)/200)
		}
		for part := range slices.Chunk(b, max(1, step)) {
			if _, err := c.Write(part); err != nil {
				return
			}
		}
		if tr.leaves {
			halfClose(c)
		}
	}()
	return l.listenTo(c, methods, readErr)
}

// listenTo reads what the agent says. Where more requests could be answered it
// has long; where the rest is unclear to a strict reader it may wait for more,
// and is told after a little silence that there is none.
func (l *lane) listenTo(c net.Conn, methods []string, readErr error) ([]byte, error) {
	var said []byte
	buf := make([]byte, 32<<10)
	ended := false
	for {
		silence := time.Minute
		if got, _ := readAnswers(said, methods); !ended && len(got) >= len(methods)-1 {
			silence = 100 * time.Millisecond
			if readErr == nil {
				silence = time.Millisecond
			}
		}
		c.SetReadDeadline(time.Now().Add(silence))
		n, err := c.Read(buf)
		said = append(said, buf[:n]...)
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && !ended:
			ended = true
			halfClose(c)
		case errors.Is(err, os.ErrDeadlineExceeded):
			return said, fmt.Errorf("the agent leaves a connection open although the client has ended it; it said\n%s", quote(said))
		default:
			return said, nil // closed, or reset: what was said counts
		}
	}
}

func (l *lane) connect(a arrival) (net.Conn, error) {
	c, err := net.Dial("tcp", l.agent.Proxy)
	if err != nil || a != byConnect {
		return c, err
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", l.tap.addr, l.tap.addr)
	resp, err := http.ReadResponse(bufio.NewReaderSize(io.LimitReader(c, 4096), 4096), &http.Request{Method: http.MethodConnect})
	if err != nil || resp.StatusCode != http.StatusOK {
		c.Close()
		return nil, fmt.Errorf("CONNECT: %v, %v", resp, err)
	}
	secure := tls.Client(c, trusting)
	if err := secure.Handshake(); err != nil {
		c.Close()
		return nil, fmt.Errorf("TLS in the tunnel: %w", err)
	}
	secure.SetDeadline(time.Time{})
	return secure, nil
}

// readAnswers reads what the agent said to requests with these methods. An
// answer may be cut off by the connection's end, and nothing else be wrong.
func readAnswers(b []byte, methods []string) ([]message, error) {
	var got []message
	for len(b) > 0 {
		method := "GET"
		if len(got) < len(methods) {
			method = methods[len(got)]
		}
		m, n, err := readAnswer(b, method, true, false)
		if err == errIncomplete {
			return got, nil
		}
		if err != nil {
			return got, fmt.Errorf("the agent said what is no answer: %w\n%s", err, quote(b))
		}
		b = b[n:]
		if m.status() >= 200 {
			got = append(got, m)
		}
	}
	if len(got) > len(methods) {
		return got, fmt.Errorf("%d answers to %d requests", len(got), len(methods))
	}
	return got, nil
}

// compare holds together what the client asked, what the agent forwarded, what
// the upstream saw, and what came back.
func (l *lane) compare(a arrival, asked []message, links []*link, got []message) error {
	now := len(asked)
	asked = slices.Concat(asked, l.late)
	order := make([]string, len(asked)) // by request: the digest of what was forwarded for it
	past := slices.Concat(l.past, asked[:now])
	l.past = past[max(0, len(past)-24):]
	defer func() {
		l.late = nil
		for i, m := range asked {
			if order[i] == "" {
				l.late = append(l.late, m)
			}
		}
		l.late = l.late[max(0, len(l.late)-12):]
	}()
	for _, k := range links {
		if k.bad != nil {
			return k.bad
		}
		if n := len(k.requests); len(k.answers) > n && (len(k.answers) > n+1 || k.answers[n].one("X-Saw") != "" || !k.half) {
			return fmt.Errorf("the upstream answered %d requests where the agent forwarded %d", len(k.answers), n)
		}
		for i, m := range k.requests {
			text := seen(m.method(), m.target(), m.fields, m.body)
			if i < len(k.answers) {
				l.count.forwarded.Add(1)
				if saw := k.answers[i].one("X-Saw"); saw == "" {
					l.count.upstream.Add(1)
				} else if saw != digest(text) {
					return fmt.Errorf("the upstream saw another request than the agent forwarded, which was\n%s\nit says\n%s", text, k.answers[i].body)
				}
			}
			if i >= len(k.answers) && k.replyEnd { // the upstream has left instead: the agent may try again elsewhere
				if _, err := l.origin(a, m, past, make([]string, len(past))); err != nil {
					return err
				}
				continue
			}
			at, err := l.origin(a, m, asked, order)
			if err != nil {
				return err
			}
			order[at] = digest(text)
		}
	}
	left := order[:now]
	for _, m := range got {
		d := m.one("X-Saw")
		if m.one("Postern-Error") != "" {
			l.count.refused.Add(1)
		}
		if d == "" {
			continue
		}
		i := slices.Index(left, d)
		if i < 0 {
			return fmt.Errorf("the client got the answer to another request: %q", m.body)
		}
		left = left[i+1:]
	}
	return nil
}

// origin finds the request of the client's that m carries on.
func (l *lane) origin(a arrival, m message, asked []message, order []string) (int, error) {
	why := errors.New("the client's bytes, read strictly, hold no request that is not accounted for")
	for i, q := range asked {
		if order[i] != "" {
			continue
		}
		if why = l.carries(a, q, m); why == nil {
			return i, nil
		}
	}
	return 0, fmt.Errorf("the agent forwarded what nobody asked: %w\n  %q %q %q", why, m.start, m.fields, m.body[:min(len(m.body), 200)])
}

// carries says why m is not what the agent must make of q.
func (l *lane) carries(a arrival, q, m message) error {
	if target := l.target(a, q.target()); m.target() != target && m.target() != escaped(target) || m.method() != q.method() {
		return fmt.Errorf("another method or target than %q %q", q.method(), target)
	}
	if string(m.body) != string(q.body) {
		return fmt.Errorf("another body: %.200q, not %.200q", m.body, q.body)
	}
	if m.one("Host") != l.tap.addr {
		return fmt.Errorf("Host %q", m.one("Host"))
	}
	if m.one("Authorization") != "Bearer "+providerKey {
		return fmt.Errorf("Authorization %q", m.one("Authorization"))
	}
	for _, f := range slices.Concat(m.fields, m.trailers) {
		own := slices.Contains([]string{"host", "authorization", "accept-encoding"}, strings.ToLower(f.name))
		bad := slices.Contains(credentials, strings.ToLower(strings.ReplaceAll(f.name, "_", "-"))) && strings.Contains(f.value, planted)
		if bad || !own && !slices.Contains(between, strings.ToLower(f.name)) && !slices.Contains(q.all(f.name), f.value) {
			return fmt.Errorf("a field that must not be there: %s: %.80q", f.name, f.value)
		}
	}
	for _, f := range q.fields {
		if len(f.name) == len("X-Keep-1") && strings.EqualFold(f.name[:7], "X-Keep-") && !q.lists("Connection", f.name) && !slices.Contains(m.all(f.name), f.value) {
			return fmt.Errorf("%s: %.80q is lost", f.name, f.value)
		}
	}
	return nil
}

// target is what the agent must make of a client's target; empty if nothing.
func (l *lane) target(a arrival, t string) string {
	rest := t
	if scheme, after, ok := strings.Cut(t, "://"); ok && (strings.EqualFold(scheme, "https") || strings.EqualFold(scheme, "http")) {
		i := strings.IndexAny(after+"/", "/?")
		if after[:i] != l.tap.addr {
			return ""
		}
		rest = after[i:]
	} else if a == byAbsolute || strings.HasPrefix(t, fmt.Sprintf("/lane%d", l.n)) {
		rest = strings.TrimPrefix(t, fmt.Sprintf("/lane%d", l.n))
	}
	if !strings.HasPrefix(rest, "/") {
		rest = "/" + rest
	}
	return rest
}

// escaped is a target with the characters escaped that RFC 3986 has no place
// for in a path, and some clients send all the same. A backslash is none of
// them: to some servers it is a slash.
func escaped(target string) string {
	path, query, ok := strings.Cut(target, "?")
	path = strings.NewReplacer(`"`, "%22", "<", "%3C", ">", "%3E", "^", "%5E", "`", "%60", "{", "%7B", "|", "%7C", "}", "%7D", "[", "%5B", "]", "%5D").Replace(path)
	if ok {
		path += "?" + query
	}
	return path
}
