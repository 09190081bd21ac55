package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-proxy/postern/agent"
	"github.com/postern-proxy/postern/agent/provider/fake"
)

// load sends chat requests at a steady rate, every fifth of them streaming.
type load struct {
	url    string
	rate   int
	client *http.Client

	sent, failed, streamed atomic.Int64
	mu                     sync.Mutex
	err                    string
	took                   []time.Duration // the latest ones, a ring
	next                   int
}

func newLoad(url string, rate int) *load {
	return &load{
		url: url, rate: rate, took: make([]time.Duration, 0, 2048),
		client: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 256}},
	}
}

// run sends until ctx ends, and waits for what is under way.
func (l *load) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer l.client.CloseIdleConnections()
	defer wg.Wait()
	tick := time.NewTicker(time.Second / time.Duration(l.rate))
	defer tick.Stop()
	places := make(chan struct{}, 256)
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		select {
		case places <- struct{}{}:
		default:
			continue // the machine cannot keep up with the rate: fewer requests, not later ones
		}
		wg.Go(func() {
			defer func() { <-places }()
			l.one(n%5 == 4)
		})
	}
}

func (l *load) one(stream bool) {
	body := fmt.Sprintf(`{"model":"gpt-4o-mini","stream":%t,"messages":[{"role":"user","content":"Say hello."}]}`, stream)
	start := time.Now()
	resp, err := l.client.Post(l.url, "application/json", strings.NewReader(body))
	var answer []byte
	if err == nil {
		answer, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	l.sent.Add(1)
	switch {
	case err != nil:
		l.fail(err.Error())
	case resp.StatusCode != http.StatusOK:
		l.fail(fmt.Sprintf("%s: %s", resp.Status, bytes.TrimSpace(answer)))
	case stream && !bytes.Contains(answer, []byte("[DONE]")):
		l.fail("a stream ended early")
	default:
		if stream {
			l.streamed.Add(1)
		}
		l.note(time.Since(start))
	}
}

func (l *load) fail(why string) {
	l.failed.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = why
}

func (l *load) lastError() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *load) note(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.took) < cap(l.took) {
		l.took = append(l.took, d)
		return
	}
	l.took[l.next] = d
	l.next = (l.next + 1) % len(l.took)
}

// median of the latest requests; 0 before the first.
func (l *load) median() time.Duration {
	l.mu.Lock()
	took := slices.Clone(l.took)
	l.mu.Unlock()
	if len(took) == 0 {
		return 0
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// screen shows the demo's figures: on a terminal one table that is drawn anew,
// elsewhere a line a second.
type screen struct {
	out   io.Writer
	live  bool
	every time.Duration
	start time.Time
	swaps []time.Duration
	drawn int // lines on the terminal
}

func newScreen(out io.Writer) *screen {
	s := &screen{out: out, live: isTerminal(out), every: time.Second, start: time.Now()}
	if s.live {
		s.every = 250 * time.Millisecond
	}
	return s
}

func (s *screen) rotated(took time.Duration) { s.swaps = append(s.swaps, took) }

func (s *screen) last() string {
	if len(s.swaps) == 0 {
		return "-"
	}
	return fmt.Sprintf("%d ms", s.swaps[len(s.swaps)-1].Milliseconds())
}

func (s *screen) draw(l *load, st agent.Status) {
	var versions []string
	for _, k := range st.Keys {
		for _, v := range k.Versions {
			if v.State != "retired" { // of which there is one more after each rotation
				versions = append(versions, fmt.Sprintf("v%d %s", v.Number, v.State))
			}
		}
	}
	rows := [][]string{
		{"TIME", "REQUESTS", "FAILED", "ROTATIONS", "KEY", "IN USE AFTER", "MEDIAN"},
		{
			fmt.Sprintf("%ds", int(time.Since(s.start).Seconds())), fmt.Sprint(l.sent.Load()), fmt.Sprint(l.failed.Load()),
			fmt.Sprint(len(s.swaps)), strings.Join(versions, ", "), s.last(), l.median().Round(10 * time.Microsecond).String(),
		},
	}
	if !s.live {
		if s.drawn > 0 {
			rows = rows[1:]
		}
		var b bytes.Buffer
		for _, r := range rows {
			fmt.Fprintf(&b, "%-6s %-10s %-8s %-11s %-24s %-14s %s\n", r[0], r[1], r[2], r[3], r[4], r[5], r[6])
		}
		s.out.Write(b.Bytes())
		s.drawn = 1
		return
	}
	if s.drawn > 0 {
		fmt.Fprintf(s.out, "\x1b[%dA\x1b[J", s.drawn)
	}
	table(s.out, rows)
	s.drawn = len(rows)
}

// end says what happened.
func (s *screen) end(l *load, p *fake.Server) {
	worst := time.Duration(0)
	for _, d := range s.swaps {
		worst = max(worst, d)
	}
	fmt.Fprintf(s.out, "\n%d requests (%d of them streams), %d failed, %s", l.sent.Load(), l.streamed.Load(), l.failed.Load(), count(len(s.swaps), "rotation", "rotations"))
	if len(s.swaps) > 0 {
		fmt.Fprintf(s.out, "; each new key was in use at most %d ms after it was written", worst.Milliseconds())
	}
	fmt.Fprintln(s.out, ".")
	fmt.Fprintf(s.out, "The provider saw %s; the client sent none.\n", count(p.KeysSeen(), "key", "different keys"))
}
