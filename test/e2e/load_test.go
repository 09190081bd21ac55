package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
)

const (
	streamGap = 20 * time.Millisecond // between two of the twelve or so events of a stream
	inFlight  = 1024                  // requests of a load at a time
	maxConns  = 128                   // an application's, to one host: a slow moment must not become a storm of handshakes
)

// way is how requests of a load reach the provider, and what they ask for.
type way struct {
	name   string
	client *http.Client
	url    string
	stream bool
}

// ways are all that there are to one provider: by route and by CONNECT, plain and streaming.
func (w *world) ways(a *agenttest.Agent, p *provider) []way {
	w.t.Helper()
	route, connect := a.URL("/"+p.name+"/v1/chat/completions"), "https://"+p.host+"/v1/chat/completions"
	byRoute, byConnect := w.client(nil), w.client(w.through(a, read(w.t, w.path("ca/ca.pem"))))
	return []way{
		{"route", byRoute, route, false},
		{"connect", byConnect, connect, false},
		{"route", byRoute, route, false},
		{"connect", byConnect, connect, false},
		{"route, streaming", byRoute, route, true},
		{"connect, streaming", byConnect, connect, true},
	}
}

// through makes a transport use an agent as its proxy and trust one CA alone.
func (w *world) through(a *agenttest.Agent, ca []byte) func(*http.Transport) {
	w.t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		w.t.Fatal("ca.pem holds no certificate")
	}
	proxy := &url.URL{Scheme: "http", Host: a.Proxy}
	return func(tr *http.Transport) {
		tr.Proxy = http.ProxyURL(proxy)
		tr.TLSClientConfig = &tls.Config{RootCAs: roots}
	}
}

// client is an application's: it keeps connections and never retries by itself, since it only posts.
func (w *world) client(set func(*http.Transport)) *http.Client {
	tr := &http.Transport{MaxIdleConnsPerHost: maxConns, MaxConnsPerHost: maxConns}
	if set != nil {
		set(tr)
	}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Timeout: time.Minute, Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// errAnswer: an answer came, and is not the one that was asked for.
type errAnswer struct{ error }

// ask sends one chat request and reads its answer to the end.
func (y way) ask(ctx context.Context) error {
	body := fmt.Sprintf(`{"model":"gpt-4o-mini","stream":%t,"messages":[{"role":"user","content":"Say hello."}]}`, y.stream)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, y.url, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer attached-by-postern")
	resp, err := y.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	end := `"finish_reason":"stop"`
	if y.stream {
		end = "data: [DONE]\n\n"
	}
	switch {
	case resp.StatusCode != http.StatusOK:
		return errAnswer{fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(answer))}
	case err != nil:
		return errAnswer{fmt.Errorf("cut short after %d bytes: %w", len(answer), err)}
	case !bytes.Contains(answer, []byte(end)):
		return errAnswer{fmt.Errorf("no end in %d bytes: %q", len(answer), answer)}
	}
	return nil
}

// must is ask where nothing may fail.
func (y way) must(t *testing.T) {
	t.Helper()
	if err := y.ask(t.Context()); err != nil {
		t.Errorf("%s: %v", y.name, err)
	}
}

// failure is one request of a load that failed.
type failure struct {
	way          string
	began, ended time.Time
	err          error
}

// load sends requests at a steady rate, the ways in turn, until it is ended.
type load struct {
	t      *testing.T
	ways   []way
	rate   int
	start  time.Time
	took   time.Duration
	cancel context.CancelFunc
	ended  chan struct{}

	sent   []atomic.Int64 // by way
	missed int            // not sent: too many were under way

	mu     sync.Mutex
	failed []failure
}

func startLoad(t *testing.T, perSecond int, ways ...way) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{t: t, ways: ways, rate: perSecond, start: time.Now(), cancel: cancel, ended: make(chan struct{}), sent: make([]atomic.Int64, len(ways))}
	go l.run(ctx)
	t.Cleanup(l.stop)
	return l
}

// run sends what is due at each tick: a tick that comes late is made up for.
func (l *load) run(ctx context.Context) {
	defer close(l.ended)
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	places := make(chan struct{}, inFlight)
	for n := 0; ; {
		select {
		case <-ctx.Done():
			l.took = time.Since(l.start)
			return
		case <-tick.C:
		}
		for due := int(time.Since(l.start).Seconds() * float64(l.rate)); n < due; n++ {
			select {
			case places <- struct{}{}:
			default:
				l.missed++
				continue
			}
			i := n % len(l.ways)
			wg.Go(func() {
				l.one(i)
				<-places
			})
		}
	}
}

func (l *load) one(i int) {
	began := time.Now()
	err := l.ways[i].ask(context.Background())
	l.sent[i].Add(1)
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.failed = append(l.failed, failure{l.ways[i].name, began, time.Now(), err})
	}
}

// stop ends the load and waits until every request has its answer.
func (l *load) stop() {
	l.cancel()
	<-l.ended
}

// last waits until the load is this old.
func (l *load) last(d time.Duration) {
	timer := time.NewTimer(time.Until(l.start.Add(d)))
	defer timer.Stop()
	<-timer.C
}

// more waits while the load goes on for so long.
func (l *load) more(d time.Duration) { l.last(time.Since(l.start) + d) }

// total is how many requests have been answered.
func (l *load) total() (n int64) {
	for i := range l.sent {
		n += l.sent[i].Load()
	}
	return n
}

// report ends the load, says how it went, and returns what failed.
func (l *load) report() []failure {
	l.t.Helper()
	l.stop()
	by := map[string]int64{}
	for i, y := range l.ways {
		by[y.name] += l.sent[i].Load()
	}
	var parts []string
	for _, name := range []string{"route", "connect", "route, streaming", "connect, streaming"} {
		if by[name] > 0 {
			parts = append(parts, fmt.Sprintf("%d by %s", by[name], name))
		}
	}
	l.t.Logf("load: %d requests in %.1f s (%.0f/s of %d/s): %s; %d failed",
		l.total(), l.took.Seconds(), float64(l.total())/l.took.Seconds(), l.rate, strings.Join(parts, "; "), len(l.failed))
	if l.missed > int(l.total()) {
		l.t.Errorf("the load was no load: %d requests were not sent because %d were under way", l.missed, inFlight)
	}
	return l.failed
}

// end is report where nothing may have failed.
func (l *load) end() {
	l.t.Helper()
	failed := l.report()
	for i, f := range failed {
		if i == 5 {
			l.t.Errorf("and %d more", len(failed)-i)
			break
		}
		l.t.Errorf("%s, %.2f s after the start: %v", f.way, f.began.Sub(l.start).Seconds(), f.err)
	}
}

// answered reports whether a failed request had got an answer, or a part of one.
func (f failure) answered() bool {
	var a errAnswer
	return errors.As(f.err, &a)
}
