package faults_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// rig is one fault: an agent of its own, a provider that is well, and a load on both.
type rig struct {
	*e2etest.World
	t    *testing.T
	st   e2etest.Store
	name string // the good provider's, and its key's
	key  string
	good *e2etest.Provider
	a    *agenttest.Agent
	ways []e2etest.Way
	load *e2etest.Load

	pool *http.Transport // of the fault's own requests
	mu   sync.Mutex
	saw  map[string]int
	row  row
	held int // connections that the fault held at a time
}

var rigs atomic.Int64

// newRig makes one without an agent. Its row joins the table when the test ends.
func newRig(t *testing.T, fault string) *rig {
	t.Helper()
	r := &rig{World: e2etest.New(t), t: t, name: fmt.Sprintf("llm-%d", rigs.Add(1)), saw: map[string]int{}, row: row{fault: fault, recovered: "–"}}
	r.pool = &http.Transport{DisableKeepAlives: true}
	r.key = r.Key()
	r.good = r.Provider(r.name, fake.Options{Keys: []string{r.key}})
	t.Cleanup(func() {
		r.row.verdict = map[bool]string{false: "ok", true: "FAILED"}[t.Failed()]
		if r.row.saw == "" {
			r.row.saw = r.seen()
		}
		table.add(r.row)
	})
	return r
}

// sealed gives the rig a sealed store that holds the key.
func (r *rig) sealed() *rig {
	r.t.Helper()
	r.st = r.Sealed()
	r.st.Put(r.name, r.key)
	return r
}

// begin starts the agent, behind another command line where there is one, and
// a load, and notes how the process is when it rests.
func (r *rig) begin(c e2etest.Config, under ...string) {
	r.t.Helper()
	r.a = agenttest.StartUnder(r.t, under, r.Dir, c.YAML())
	r.KeepsSecrets(r.a)
	r.a.Ready(r.t)
	r.ways = r.Ways(r.a, r.good)
	e2etest.Hold(r.ways, perClient) // few, so that what the agent holds hardly depends on the moment
	r.strain()
	r.load.More(e2etest.Span(2*time.Second, 10*time.Second))
	r.calm()
	r.row.before = r.settled(func(v, last vitals) bool { return v.goroutines == last.goroutines })
	r.strain()
	r.load.More(500 * time.Millisecond)
}

// perClient is how many connections each of the load's clients may have.
const perClient = 8

func (r *rig) strain() { r.load = e2etest.StartLoad(r.t, rate, r.ways...) }

// calm ends the load, of which nothing may have failed.
func (r *rig) calm() {
	r.t.Helper()
	r.lose(func(e2etest.Failure) bool { return false })
}

// lose ends the load. What of it failed was lost, and that may be only what excused says.
func (r *rig) lose(excused func(e2etest.Failure) bool) {
	r.t.Helper()
	failed := r.load.Report()
	r.row.requests += r.load.Total()
	r.row.lost += len(failed)
	told := 0
	for _, f := range failed {
		if excused(f) {
			continue
		}
		if told++; told <= 5 {
			r.t.Errorf("lost: %s, begun %.2f s after the load: %v", f.Way, f.Began.Sub(r.load.Started).Seconds(), f.Err)
		}
	}
	if told > 5 {
		r.t.Errorf("and %d more", told-5)
	}
}

// end ends the load without a loss and looks whether the process holds no more than before.
func (r *rig) end() {
	r.t.Helper()
	r.calm()
	r.back()
}

// vitals are what a process holds, as its metrics say it.
type vitals struct {
	goroutines, files int
	rss               float64 // MiB
}

func (r *rig) vitals() vitals {
	r.t.Helper()
	return vitals{
		goroutines: int(r.a.Metric(r.t, "go_goroutines")), files: int(r.a.Metric(r.t, "process_open_fds")),
		rss: r.a.Metric(r.t, "process_resident_memory_bytes") / (1 << 20),
	}
}

// settled lets go of every idle connection, at both ends, and looks at the
// process until it is as wanted, or for too long.
func (r *rig) settled(want func(v, last vitals) bool) vitals {
	r.t.Helper()
	r.rest()
	last := vitals{}
	for deadline := time.Now().Add(e2etest.Span(40*time.Second, 3*time.Minute)); ; {
		v := r.vitals()
		if want(v, last) || time.Now().After(deadline) {
			return v
		}
		last = v
		r.wait(250 * time.Millisecond)
		r.rest()
	}
}

func (r *rig) rest() {
	for _, y := range r.ways {
		y.Client.CloseIdleConnections()
	}
	r.pool.CloseIdleConnections()
	r.good.CloseIdle()
}

// What a process may hold more than before: its connections to the store come
// and go, and the collector gives memory back late.
const (
	slack    = 6
	pooled   = 32 // a pool may notice only later that its provider closed a connection
	slackRSS = 8  // MiB, or a quarter where that is more
	// Of every goroutine that once was, Go keeps some KiB for the next one.
	perHeld = 2.5 / 1024 // MiB
)

// back looks whether the process holds no more than before the fault.
func (r *rig) back() {
	r.t.Helper()
	b := r.row.before
	enough := func(v vitals) bool {
		return v.goroutines <= b.goroutines+slack && v.files <= b.files+slack+pooled && v.rss <= max(b.rss+slackRSS, b.rss*5/4)+perHeld*float64(r.held)
	}
	r.row.after = r.settled(func(v, _ vitals) bool { return enough(v) })
	if !enough(r.row.after) {
		r.t.Errorf("goroutines, files and MiB were %v and are %v", b, r.row.after)
	}
}

// wait waits while the load goes on, or until the test ends.
func (r *rig) wait(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.t.Context().Done():
	}
}

// rotates writes a new version and waits until it serves: the time since then
// is how long recovery took. The old one must go on serving meanwhile.
func (r *rig) rotates(since time.Time, within time.Duration) {
	r.t.Helper()
	next := r.Key()
	r.good.Allow(next)
	first := r.good.FirstUse(next)
	r.st.Put(r.name, next)
	took := e2etest.Await(r.t, first, within, "a request with a key written after the fault").Sub(since)
	r.row.recovered = seconds(took)
	r.key = next
}

// note counts what a client of the fault's own saw.
func (r *rig) note(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.saw[what]++
}

func (r *rig) seen() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.saw) == 0 {
		return "200"
	}
	var parts []string
	for _, what := range slices.Sorted(maps.Keys(r.saw)) {
		parts = append(parts, fmt.Sprintf("%d × %s", r.saw[what], what))
	}
	return strings.Join(parts, ", ")
}

// sight is how one request ended: the status and the agent's own code, or what else happened.
func sight(resp *http.Response, err error) string {
	var ne net.Error
	if err == nil {
		what := fmt.Sprint(resp.StatusCode)
		if code := resp.Header.Get("Postern-Error"); code != "" {
			what += " " + code
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err == nil {
			return what
		}
		what += ", then "
		if errors.As(err, &ne) && ne.Timeout() || errors.Is(err, context.DeadlineExceeded) {
			return what + "nothing until the client left"
		}
		return what + "cut"
	}
	if errors.As(err, &ne) && ne.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		return "nothing until the client left"
	}
	return "closed"
}

// request is a chat request by route with so long a message.
func (r *rig) request(provider, message string) *http.Request {
	body := `{"model":"gpt-4o-mini","messages":[{"role":"user","content":"` + message + `"}]}`
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodPost, r.a.URL("/"+provider+"/v1/chat/completions"), strings.NewReader(body))
	if err != nil {
		panic(err) // made of the tests' own words
	}
	req.Header.Set("Content-Type", "application/json")
	return req
}

// ask sends a chat request of the fault's own by route, and notes how it ended.
func (r *rig) ask(provider string, patience time.Duration) string {
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	what := sight(r.pool.RoundTrip(r.request(provider, "Say hello.").WithContext(ctx)))
	r.note(what)
	return what
}

// together runs n of something and waits for all.
func together(n int, do func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { do(i) })
	}
	wg.Wait()
}
