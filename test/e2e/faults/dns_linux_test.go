package faults_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// names is a name server for which every name is 127.0.0.1, until it fails.
type names struct {
	addr string

	mu     sync.Mutex
	silent bool
	code   dnsmessage.RCode
}

// serveNames starts one on a loopback address of its own, since a resolver's file names no port.
func serveNames(t *testing.T) (*names, error) {
	t.Helper()
	n := &names{addr: fmt.Sprintf("127.77.%d.%d", os.Getpid()>>8&255, os.Getpid()&255)}
	pc, err := net.ListenPacket("udp", n.addr+":53")
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			k, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if answer := n.answer(buf[:k]); answer != nil {
				pc.WriteTo(answer, from)
			}
		}
	}()
	t.Cleanup(func() {
		pc.Close()
		<-done
	})
	return n, nil
}

func (n *names) set(silent bool, code dnsmessage.RCode) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.silent, n.code = silent, code
}

// answer is what is said to a question, nil for nothing.
func (n *names) answer(question []byte) []byte {
	n.mu.Lock()
	silent, code := n.silent, n.code
	n.mu.Unlock()
	var m dnsmessage.Message
	if silent || m.Unpack(question) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	m = dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionDesired: true, RecursionAvailable: true, RCode: code}, Questions: m.Questions}
	if code == dnsmessage.RCodeSuccess && q.Type == dnsmessage.TypeA {
		head := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}
		m.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}}}
	}
	answer, err := m.Pack()
	if err != nil {
		return nil
	}
	return answer
}

// The name server fails. Requests on connections that stand go on; who needs a
// new one is told what is wrong with which host, and is served when names resolve again.
func TestNamesFail(t *testing.T) {
	t.Parallel()
	if err := canMount(); err != nil {
		agenttest.NotRun(t, "faults: DNS", err)
		return
	}
	server, err := serveNames(t)
	if err != nil {
		agenttest.NotRun(t, "faults: DNS", err)
		return
	}
	for fault, how := range map[string]struct {
		silent bool
		code   dnsmessage.RCode
		saw    []string
	}{
		"servfail": {false, dnsmessage.RCodeServerFailure, []string{"502 upstream_unreachable"}},
		"nxdomain": {false, dnsmessage.RCodeNameError, []string{"502 upstream_unreachable"}},
		"silent":   {true, 0, []string{"502 upstream_unreachable", "504 upstream_timeout"}},
	} {
		t.Run(fault, func(t *testing.T) {
			r := newRig(t, "DNS "+fault).sealed()
			const host = "api.faults.example"
			named := r.Provider("named", fake.Options{Keys: []string{r.key}, Hosts: []string{host}, Intercept: func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Connection", "close") // so that each request needs a name
				return false
			}})
			_, port, _ := net.SplitHostPort(named.Addr())
			named.Host = host + ":" + port
			c := r.Config(r.st, r.good)
			c.Providers = append(c.Providers, named.Entry(", key: "+r.name))
			e2etest.Write(t, r.Path("resolv.conf"), "nameserver "+server.addr+"\noptions timeout:1 attempts:1\n")
			server.set(false, dnsmessage.RCodeSuccess)
			r.begin(c, mounting("mount --bind "+r.Path("resolv.conf")+" /etc/resolv.conf")...)
			if what := r.ask("named", patient); what != "200" {
				t.Fatalf("with a name server that is well a client saw %q", what)
			}
			r.saw = map[string]int{}

			server.set(how.silent, how.code)
			until := time.Now().Add(e2etest.Span(2*time.Second, 20*time.Second))
			together(4, func(int) {
				for first := true; first || time.Now().Before(until); first = false {
					if what := r.ask("named", patient); !slices.Contains(how.saw, what) {
						t.Errorf("a client saw %q", what)
					}
				}
			})
			r.row.saw = r.seen()
			if n := r.a.Metric(t, `postern_upstream_failures_total{kind="dns",provider="named"}`); n == 0 {
				t.Error("no metric says that a name does not resolve")
			}
			server.set(false, dnsmessage.RCodeSuccess)
			well := time.Now()
			agenttest.Eventually(t, 30*time.Second, "the name resolves again", func() bool { return r.ask("named", patient) == "200" })
			r.row.recovered = seconds(time.Since(well))
			r.end()
		})
	}
}
