package faults_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// How long the clients of an ill provider wait: of one that stalls, and of others.
const (
	impatient = 2 * time.Second
	patient   = time.Minute
)

const okHead = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

// illness is how a provider treats every request until it is well again.
type illness struct {
	treat    func(conn net.Conn, well <-chan struct{})
	patience time.Duration
	saw      []string // what clients see, and what they may see beside
}

func says(text string) func(net.Conn, <-chan struct{}) {
	return func(c net.Conn, _ <-chan struct{}) { io.WriteString(c, text) }
}

// stalls says something and then nothing, until the other side leaves.
func stalls(text string) func(net.Conn, <-chan struct{}) {
	return func(c net.Conn, _ <-chan struct{}) {
		io.WriteString(c, text)
		io.Copy(io.Discard, c)
	}
}

var illnesses = map[string]illness{
	"stalls before its answer":   {stalls(""), impatient, []string{"nothing until the client left"}},
	"stalls within the body":     {stalls(okHead + "Content-Length: 100000\r\n\r\n{"), impatient, []string{"200, then nothing until the client left", "nothing until the client left"}},
	"resets before its answer":   {func(c net.Conn, _ <-chan struct{}) { reset(raw(c)) }, patient, []string{"502 upstream_unreachable"}},
	"resets within the body":     {cutAfter(okHead + "Content-Length: 100000\r\n\r\n" + strings.Repeat("x", 20_000)), patient, []string{"200, then cut", "closed"}},
	"ends within the body":       {says(okHead + "Content-Length: 100000\r\n\r\n" + strings.Repeat("x", 20_000)), patient, []string{"200, then cut", "closed"}},
	"answers a byte at a time":   {byteAtATime, patient, []string{"200"}},
	"sends 1 MiB of headers":     {says("HTTP/1.1 200 OK\r\n" + strings.Repeat("X-Long: "+strings.Repeat("x", 1000)+"\r\n", 1040) + "\r\n"), patient, []string{"502 upstream_unreachable"}},
	"answers another protocol":   {says("220 mail.example ESMTP\r\n"), patient, []string{"502 upstream_unreachable"}},
	"closes without an answer":   {says(""), patient, []string{"502 upstream_unreachable"}},
	"says 100 Continue for ever": {continues, impatient, []string{"nothing until the client left", "502 upstream_unreachable"}},
}

// raw is the TCP connection below TLS.
func raw(c net.Conn) net.Conn {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		return t.NetConn()
	}
	return c
}

func cutAfter(text string) func(net.Conn, <-chan struct{}) {
	return func(c net.Conn, _ <-chan struct{}) {
		io.WriteString(c, text)
		reset(raw(c))
	}
}

func byteAtATime(c net.Conn, well <-chan struct{}) {
	body := `{"slow":true}`
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for _, b := range []byte(fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", okHead+"Connection: close\r\n", len(body), body)) {
		select {
		case <-tick.C:
		case <-well:
			return
		}
		if _, err := c.Write([]byte{b}); err != nil {
			return
		}
	}
}

func continues(c net.Conn, well <-chan struct{}) {
	left := make(chan struct{})
	go func() {
		defer close(left)
		io.Copy(io.Discard, c)
	}()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-left:
			return
		case <-well:
			return
		}
		if _, err := io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
			return
		}
	}
}

// A provider that is ill costs its own requests and nobody else's, and what
// its clients see tells them so; once it is well it serves again.
func TestUpstream(t *testing.T) {
	t.Parallel()
	for ill, how := range illnesses {
		t.Run(ill, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, "provider "+ill).sealed()
			well := make(chan struct{})
			bad := r.Provider("bad", fake.Options{Keys: []string{r.key}, Intercept: func(w http.ResponseWriter, q *http.Request) bool {
				select {
				case <-well:
					return false
				default:
				}
				c, rw, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return true
				}
				defer c.Close()
				io.Copy(io.Discard, io.LimitReader(bufio.NewReader(rw), q.ContentLength))
				how.treat(c, well)
				return true
			}})
			c := r.Config(r.st, r.good)
			c.Providers = append(c.Providers, bad.Entry(", key: "+r.name))
			r.begin(c)
			until := time.Now().Add(e2etest.Span(3*time.Second, 20*time.Second))
			together(20, func(i int) {
				for time.Now().Before(until) {
					r.ask("bad", how.patience)
				}
			})
			for what := range r.saw {
				if !slices.Contains(how.saw, what) {
					t.Errorf("a client saw %q", what)
				}
			}
			if r.saw[how.saw[0]] == 0 {
				t.Errorf("no client saw %q", how.saw[0])
			}
			r.row.saw = r.seen()
			close(well)
			began := time.Now()
			if what := r.ask("bad", patient); what != "200" {
				t.Errorf("a client of the provider that is well again saw %q", what)
			}
			r.row.recovered = seconds(time.Since(began))
			bad.CloseIdle()
			r.end()
		})
	}
}
