package e2etest

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

// Way is how requests of a load reach the provider, and what they ask for.
type Way struct {
	Name   string
	Client *http.Client
	URL    string
	Stream bool
}

// Ways are all that there are to one provider: by route and by CONNECT, plain and streaming.
func (w *World) Ways(a *agenttest.Agent, p *Provider) []Way {
	w.T.Helper()
	route, connect := a.URL("/"+p.Name+"/v1/chat/completions"), "https://"+p.Host+"/v1/chat/completions"
	byRoute, byConnect := w.Client(nil), w.Client(w.Through(a, Read(w.T, w.Path("ca/ca.pem"))))
	return []Way{
		{"route", byRoute, route, false},
		{"connect", byConnect, connect, false},
		{"route", byRoute, route, false},
		{"connect", byConnect, connect, false},
		{"route, streaming", byRoute, route, true},
		{"connect, streaming", byConnect, connect, true},
	}
}

// Through makes a transport use an agent as its proxy and trust one CA alone.
func (w *World) Through(a *agenttest.Agent, ca []byte) func(*http.Transport) {
	w.T.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		w.T.Fatal("ca.pem holds no certificate")
	}
	proxy := &url.URL{Scheme: "http", Host: a.Proxy}
	return func(tr *http.Transport) {
		tr.Proxy = http.ProxyURL(proxy)
		tr.TLSClientConfig = &tls.Config{RootCAs: roots}
		tr.ForceAttemptHTTP2 = true // where the agent offers it
	}
}

// Client is an application's: it keeps connections and never retries by itself, since it only posts.
func (w *World) Client(set func(*http.Transport)) *http.Client {
	tr := &http.Transport{MaxIdleConnsPerHost: maxConns, MaxConnsPerHost: maxConns}
	if set != nil {
		set(tr)
	}
	w.T.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Timeout: time.Minute, Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// Hold has the clients of these ways keep to so many connections each.
func Hold(ways []Way, conns int) {
	for _, y := range ways {
		y.Client.Transport.(*http.Transport).MaxConnsPerHost = conns
	}
}

// Fill opens so many connections for each client, which then has them at hand:
// as many streams at a time, for they last.
func Fill(t *testing.T, ways []Way, conns int) {
	t.Helper()
	var wg sync.WaitGroup
	for _, y := range ways {
		for i := 0; y.Stream && i < conns; i++ {
			wg.Go(func() { y.Must(t) })
		}
	}
	wg.Wait()
}

// errAnswer: an answer came, and is not the one that was asked for.
type errAnswer struct{ error }

// Ask sends one chat request and reads its answer to the end.
func (y Way) Ask(ctx context.Context) error {
	body := fmt.Sprintf(`{"model":"gpt-4o-mini","stream":%t,"messages":[{"role":"user","content":"Say hello."}]}`, y.Stream)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, y.URL, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer attached-by-postern")
	resp, err := y.Client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	end := `"finish_reason":"stop"`
	if y.Stream {
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

// Must is Ask where nothing may fail.
func (y Way) Must(t *testing.T) {
	t.Helper()
	if err := y.Ask(t.Context()); err != nil {
		t.Errorf("%s: %v", y.Name, err)
	}
}

// Failure is one request of a load that failed.
type Failure struct {
	Way          string
	Began, Ended time.Time
	Err          error
}

// Load sends requests at a steady rate, the ways in turn, until it is ended.
type Load struct {
	t       *testing.T
	Ways    []Way
	rate    int
	Started time.Time
	Took    time.Duration
	cancel  context.CancelFunc
	ended   chan struct{}

	sent   []atomic.Int64 // by way
	missed int            // not sent: too many were under way

	mu     sync.Mutex
	failed []Failure
}

// StartLoad begins one, of so many requests a second.
func StartLoad(t *testing.T, perSecond int, ways ...Way) *Load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{t: t, Ways: ways, rate: perSecond, Started: time.Now(), cancel: cancel, ended: make(chan struct{}), sent: make([]atomic.Int64, len(ways))}
	go l.run(ctx)
	t.Cleanup(l.Stop)
	return l
}

// run sends what is due at each tick: a tick that comes late is made up for.
func (l *Load) run(ctx context.Context) {
	defer close(l.ended)
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	places := make(chan struct{}, inFlight)
	for n := 0; ; {
		select {
		case <-ctx.Done():
			l.Took = time.Since(l.Started)
			return
		case <-tick.C:
		}
		for due := int(time.Since(l.Started).Seconds() * float64(l.rate)); n < due; n++ {
			select {
			case places <- struct{}{}:
			default:
				l.missed++
				continue
			}
			i := n % len(l.Ways)
			wg.Go(func() {
				l.one(i)
				<-places
			})
		}
	}
}

func (l *Load) one(i int) {
	began := time.Now()
	err := l.Ways[i].Ask(context.Background())
	l.sent[i].Add(1)
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.failed = append(l.failed, Failure{l.Ways[i].Name, began, time.Now(), err})
	}
}

// Stop ends the load and waits until every request has its answer.
func (l *Load) Stop() {
	l.cancel()
	<-l.ended
}

// Last waits until the load is this old.
func (l *Load) Last(d time.Duration) {
	timer := time.NewTimer(time.Until(l.Started.Add(d)))
	defer timer.Stop()
	<-timer.C
}

// More waits while the load goes on for so long.
func (l *Load) More(d time.Duration) { l.Last(time.Since(l.Started) + d) }

// Total is how many requests have been answered.
func (l *Load) Total() (n int64) {
	for i := range l.sent {
		n += l.sent[i].Load()
	}
	return n
}

// Report ends the load, says how it went, and returns what failed.
func (l *Load) Report() []Failure {
	l.t.Helper()
	l.Stop()
	by := map[string]int64{}
	for i, y := range l.Ways {
		by[y.Name] += l.sent[i].Load()
	}
	var parts []string
	for _, name := range []string{"route", "connect", "route, streaming", "connect, streaming"} {
		if by[name] > 0 {
			parts = append(parts, fmt.Sprintf("%d by %s", by[name], name))
		}
	}
	l.t.Logf("load: %d requests in %.1f s (%.0f/s of %d/s): %s; %d failed",
		l.Total(), l.Took.Seconds(), float64(l.Total())/l.Took.Seconds(), l.rate, strings.Join(parts, "; "), len(l.failed))
	if l.missed > int(l.Total()) {
		l.t.Errorf("the load was no load: %d requests were not sent because %d were under way", l.missed, inFlight)
	}
	return l.failed
}

// End is Report where nothing may have failed.
func (l *Load) End() {
	l.t.Helper()
	failed := l.Report()
	for i, f := range failed {
		if i == 5 {
			l.t.Errorf("and %d more", len(failed)-i)
			break
		}
		l.t.Errorf("%s, %.2f s after the start: %v", f.Way, f.Began.Sub(l.Started).Seconds(), f.Err)
	}
}

// Answered reports whether a failed request had got an answer, or a part of one.
func (f Failure) Answered() bool {
	var a errAnswer
	return errors.As(f.Err, &a)
}
