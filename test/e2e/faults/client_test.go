package faults_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// crowd are connections of clients that mean no good.
type crowd struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (c *crowd) add(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns = append(c.conns, conn)
}

func (c *crowd) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
}

// joins opens n connections to the agent, and keeps them.
func (r *rig) joins(n int) *crowd {
	c := &crowd{}
	r.t.Cleanup(c.leave)
	each := 32
	together(each, func(i int) {
		for range n / each {
			conn, err := net.DialTimeout("tcp", r.a.Proxy, 20*time.Second)
			if err != nil {
				r.t.Error(err)
				return
			}
			c.add(conn)
		}
	})
	return c
}

// closed waits until the agent has closed every connection of a crowd, and says how long the last one lasted.
func (c *crowd) closed(within time.Duration) (open int) {
	var mu sync.Mutex
	together(len(c.conns), func(i int) {
		c.conns[i].SetReadDeadline(time.Now().Add(within))
		if _, err := io.Copy(io.Discard, c.conns[i]); err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				mu.Lock()
				open++
				mu.Unlock()
			}
		}
	})
	return open
}

// headWithin is what a client has for the whole head of its first request, and more than enough beside.
const headWithin = 10*time.Second + 20*time.Second

// Clients that send a head a byte at a time are cut when their time is over,
// however much they send; others do not notice them.
func TestSlowLoris(t *testing.T) {
	t.Parallel()
	r := newRig(t, "client: slow loris").sealed()
	r.begin(r.Config(r.st, r.good))
	n := 32 * map[bool]int{false: 10, true: 60}[e2etest.Long]
	c := r.joins(n)
	began := time.Now()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		head := "POST /" + r.name + "/v1/chat/completions HTTP/1.1\r\nHost: " + r.a.Proxy + "\r\nX-Slow: " + strings.Repeat("x", 1<<16)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for i := 0; i < len(head); i++ {
			for _, conn := range c.conns {
				conn.Write([]byte{head[i]})
			}
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	})
	open := c.closed(headWithin)
	close(stop)
	wg.Wait()
	took := time.Since(began)
	r.row.saw = fmt.Sprintf("%d × closed, after %s", n-open, seconds(took))
	if open > 0 {
		t.Errorf("%d of %d are still served after %s", open, n, took)
	}
	c.leave()
	left := time.Now()
	r.alive(left)
	r.end()
}

// alive notes how soon after a moment a new client is served.
func (r *rig) alive(since time.Time) {
	r.t.Helper()
	agenttest.Eventually(r.t, 60*time.Second, "a new client is served", func() bool { return sightOf(r) == "200" })
	r.row.recovered = seconds(time.Since(since))
}

// sightOf is a request of its own connection that is not counted.
func sightOf(r *rig) string {
	resp, err := http.Get(r.a.URL("/" + r.name + "/v1/models"))
	return sight(resp, err)
}

// Thousands of connections on which nothing comes are taken and cut in time;
// the others are served meanwhile.
func TestIdleConnections(t *testing.T) {
	r := newRig(t, "client: idle connections").sealed()
	r.begin(r.Config(r.st, r.good))
	n := 32 * map[bool]int{false: 63, true: 313}[e2etest.Long] // 2,016 and 10,016
	r.held = n
	c := r.joins(n)
	joined := time.Now()
	r.note(sightOf(r))
	peak := r.vitals()
	if peak.files < n/2 { // on a crowded machine the first are cut before the last have come
		t.Errorf("%d files are open with %d idle connections", peak.files, n)
	}
	open := c.closed(headWithin)
	r.row.saw = fmt.Sprintf("%d × closed, %s after the last came; meanwhile 200; %d files and %.0f MiB at the most", n-open, seconds(time.Since(joined)), peak.files, peak.rss)
	if open > 0 {
		t.Errorf("%d of %d are still open", open, n)
	}
	c.leave()
	r.alive(time.Now())
	r.end()
}

// Clients that end their own side after the request get their whole answer or
// a closed connection, never a wrong one, and leave nothing behind.
func TestHalfCloses(t *testing.T) {
	t.Parallel()
	r := newRig(t, "client: half-closes").sealed()
	slow := r.Provider("slow", fake.Options{Keys: []string{r.key}, Delay: 300 * time.Millisecond})
	c := r.Config(r.st, r.good)
	c.Providers = append(c.Providers, slow.Entry(", key: "+r.name))
	r.begin(c)
	body := `{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Say hello."}]}`
	until := time.Now().Add(e2etest.Span(3*time.Second, 20*time.Second))
	together(20, func(i int) {
		provider := []string{r.name, "slow"}[i%2]
		for time.Now().Before(until) {
			conn, err := net.Dial("tcp", r.a.Proxy)
			if err != nil {
				t.Error(err)
				return
			}
			fmt.Fprintf(conn, "POST /%s/v1/chat/completions HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", provider, r.a.Proxy, len(body), body)
			conn.(*net.TCPConn).CloseWrite()
			conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			r.note(sight(http.ReadResponse(bufio.NewReader(conn), nil)))
			conn.Close()
		}
	})
	for what := range r.saw {
		if !slices.Contains([]string{"200", "closed"}, what) {
			t.Errorf("a client saw %q", what)
		}
	}
	if r.saw["200"] == 0 {
		t.Error("no client saw its answer")
	}
	slow.CloseIdle()
	r.alive(time.Now())
	r.end()
}
