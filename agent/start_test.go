package agent

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	stdsync "sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/secret"
)

func TestStartServeStop(t *testing.T) {
	h := newHouse(t)
	h.replace("rotation:", "ca: {dir: ca}\nrotation:")
	others := goleak.IgnoreCurrent()
	a := h.start()
	client := h.client()
	if status, body, err := ask(client, a, "openai"); status != http.StatusOK {
		t.Errorf("%d %s %v", status, body, err)
	}
	if got := h.provider.Requests(); got[len(got)-1].Key != firstKey {
		t.Error("the request carried another key")
	}
	if ready, waiting := a.Ready(); !ready || len(waiting) != 0 {
		t.Errorf("ready %v, waiting for %v", ready, waiting)
	}
	a.Stop()
	a.Stop() // does nothing
	if c, err := net.Dial("tcp", a.ProxyAddr().String()); err == nil {
		c.Close()
		t.Error("it listens after Stop")
	}
	if got := h.events(); got[0] != "agent.started ok" || got[len(got)-1] != "agent.stopped ok" {
		t.Errorf("audit %q", got)
	}
	if a.CAPEM() != nil {
		t.Error("the CA's key is still there")
	}
	client.CloseIdleConnections()
	goleak.VerifyNone(t, others) // nor a connection to the provider, which is there still
	if a.HasKey("openai") {
		t.Error("the key is still usable")
	}
	for _, text := range []string{h.log.String(), h.audit.String()} {
		if strings.Contains(text, firstKey) {
			t.Error("the key was written down")
		}
	}
}

// Whatever Start fails on, nothing of the agent is left, and the record says
// that it has stopped.
func TestStartThatFailsHalfWay(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range []struct{ what, old, with, says string }{
		{"proxy port in use", `proxy: "127.0.0.1:0"`, `proxy: "` + taken.Addr().String() + `"`, "listen.proxy: "},
		{"admin port in use", `admin: "127.0.0.1:0"`, `admin: "` + taken.Addr().String() + `"`, "listen.admin: "},
		{"ca.dir's parent missing", "rotation:", "ca: {dir: nowhere/ca}\nrotation:", "ca.dir"},
		{"a file where the socket should be", `proxy: "127.0.0.1:0"`, `proxy: "unix://SOCKET", allow_uids: [0]`, "is no socket"},
	} {
		t.Run(c.what, func(t *testing.T) {
			h := newHouse(t)
			h.write("socket", "")
			h.replace(c.old, strings.Replace(c.with, "SOCKET", h.path("socket"), 1))
			a, err := New(h.options())
			if err != nil {
				t.Fatal(err)
			}
			if err := a.Start(t.Context()); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
			if got := h.events(); len(got) != 2 || got[0] != "agent.started ok" || got[1] != "agent.stopped ok" {
				t.Errorf("audit %q", got)
			}
			if _, err := a.gen.Load().store.Metadata(t.Context(), "provider-keys/test/px_test/openai"); err == nil {
				t.Error("the store is open still, its key in memory")
			}
			if a.CAPEM() != nil {
				t.Error("the CA's key is still there")
			}
			if a.proxyLn != nil {
				if c, err := net.Dial("tcp", a.ProxyAddr().String()); err == nil {
					c.Close()
					t.Error("it listens")
				}
			}
			if len(a.undo) != 0 {
				t.Errorf("%d things are not undone", len(a.undo))
			}
			a.Stop() // harmless
		})
	}
}

// An audit record that cannot be written: no agent (I15).
func TestStartWithoutAnAuditRecord(t *testing.T) {
	h := newHouse(t)
	o := h.options()
	o.Audit = full{}
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Start(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "audit.file: ") {
		t.Errorf("%v", err)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errAway }

// Whatever New fails on, nothing is left either: the audit file can be opened by the next one.
func TestNewThatFailsHalfWay(t *testing.T) {
	for _, c := range []struct{ what, old, with, says string }{
		{"a provider's ca_file is gone", "provider-ca.pem", "nowhere.pem", "providers[0] (openai): ca_file: "},
		{"egress.ca_file holds no certificate", "rotation:", "egress: {ca_file: empty.pem}\nrotation:", "egress.ca_file: "},
		{"the sealed file is damaged", "postern.sealed", "broken.sealed", "broken.sealed"},
		{"the passphrase is not set", "key_file: postern.key", "passphrase_env: SEALED_PASSPHRASE", "SEALED_PASSPHRASE is not set"},
		{"ca.state_dir is on a disk", "rotation:", "ca: {state_dir: state}\nrotation:", "ca.state_dir"},
		{"audit.file is a directory", "rotation:", "audit: {file: .}\nrotation:", "audit.file"},
	} {
		t.Run(c.what, func(t *testing.T) {
			h := newHouse(t)
			h.write("empty.pem", "no certificate")
			h.write("broken.sealed", `{"format": "postern-sealed-v1"`)
			if !strings.Contains(c.with, "audit") {
				h.replace("rotation:", "audit: {file: audit.jsonl}\nrotation:")
			}
			h.replace(c.old, c.with)
			a, err := New(h.options())
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
			if a != nil {
				t.Error("there is an agent all the same")
			}
			h.set(strings.Replace(h.yaml, c.with, c.old, 1))
			if again, err := New(h.options()); err != nil {
				t.Errorf("after the fault was mended: %v", err)
			} else {
				again.Stop()
			}
		})
	}
}

// It prints every header value: the key's too.
func TestHTTP2DebuggingIsRefused(t *testing.T) {
	for _, v := range []string{"http2debug=1", "gctrace=0,http2debug=2"} {
		h := newHouse(t)
		h.env["GODEBUG"] = v
		if _, err := New(h.options()); err == nil || !strings.Contains(err.Error(), "http2debug") {
			t.Errorf("GODEBUG=%s: %v", v, err)
		}
	}
}

// An agent that was made and never started is let go of by Stop as well.
func TestStopWithoutStart(t *testing.T) {
	h := newHouse(t)
	a := h.new()
	a.Stop()
	if got := h.events(); len(got) != 0 {
		t.Errorf("audit %q", got)
	}
	if a.CAPEM() != nil {
		t.Error("the CA's key is still there")
	}
}

// What was begun last ends first: listeners, then requests, then keys, then the record.
func TestStopIsLastInFirstOut(t *testing.T) {
	h := newHouse(t)
	a := h.start()
	var order []int
	base := len(a.undo)
	for i := range 3 {
		a.onStop(func() {
			if len(a.undo) != base+i {
				t.Errorf("%d: %d are still to be undone", i, len(a.undo))
			}
			order = append(order, i)
		})
	}
	a.Stop()
	if !slices.Equal(order, []int{2, 1, 0}) {
		t.Errorf("undone in the order %v", order)
	}
}

// A request under way ends before the keys go, and the record ends with the end.
func TestStopWaitsForRequestsUnderWay(t *testing.T) {
	h := newHouse(t)
	a := h.start()
	inside := h.hold()
	answer := make(chan string, 1)
	go func() {
		status, _, err := ask(h.client(), a, "openai")
		answer <- fmt.Sprint(status, " ", err)
	}()
	release := <-inside
	stopped := make(chan struct{})
	go func() {
		a.Stop()
		close(stopped)
	}()
	eventually(t, "it listens no more", func() bool {
		c, err := net.Dial("tcp", a.ProxyAddr().String())
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	select {
	case <-stopped:
		t.Error("it stopped with a request under way")
	default:
	}
	close(release)
	if got := <-answer; got != "200 <nil>" {
		t.Errorf("the request under way: %s", got)
	}
	<-stopped
}

// What runs beside (a generation that is being drained, the record of an
// exposure) ends before what it needs is gone.
func TestStopWaitsForWhatRunsBeside(t *testing.T) {
	for _, c := range []struct {
		what string
		wg   func(*Agent) *stdsync.WaitGroup
		open func(*Agent) error // what it needs
	}{
		{"a generation", func(a *Agent) *stdsync.WaitGroup { return &a.draining }, func(a *Agent) error {
			_, err := a.gen.Load().store.Metadata(t.Context(), "provider-keys/test/px_test/openai")
			return err
		}},
		{"an exposure", func(a *Agent) *stdsync.WaitGroup { return &a.exposures.wg }, func(a *Agent) error {
			return a.record(t.Context(), audit.Event{Event: "key.exposed"})
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			h := newHouse(t)
			a := h.start()
			c.wg(a).Add(1)
			stopped := make(chan struct{})
			go func() {
				a.Stop()
				close(stopped)
			}()
			eventually(t, "its keys are gone", func() bool { return !a.HasKey("openai") })
			select {
			case <-stopped:
				t.Error("it stopped")
			case <-time.After(100 * time.Millisecond): // it would have
			}
			if err := c.open(a); err != nil {
				t.Errorf("it was closed under it: %v", err)
			}
			c.wg(a).Done()
			<-stopped
			if c.open(a) == nil {
				t.Error("it is open after Stop")
			}
		})
	}
}

// The CA's certificate, and what clients trust with it, is written anew; where it cannot be, the log says so.
func TestTheCAIsRenewed(t *testing.T) {
	h := newHouse(t)
	h.replace("rotation:", "ca: {dir: ca}\nrotation:")
	a := h.start()
	try(t, os.Remove(h.path("ca/ca.pem")))
	a.renewCA()
	if pem, err := os.ReadFile(h.path("ca/ca.pem")); err != nil || string(pem) != string(a.CAPEM()) {
		t.Errorf("%v", err)
	}
	try(t, os.RemoveAll(h.path("ca")))
	h.write("ca", "a file")
	a.renewCA()
	if !strings.Contains(h.log.String(), "could not be renewed") {
		t.Error("nobody was told")
	}
	try(t, os.Remove(h.path("ca")))
}

// A listener that ends by itself is told to whoever runs the agent.
func TestAListenerThatEndsByItself(t *testing.T) {
	h := newHouse(t)
	a := h.start()
	a.proxyLn.Close()
	if err := <-a.Failed(); err == nil || !strings.HasPrefix(err.Error(), "listen.proxy: ") {
		t.Errorf("%v", err)
	}
	a.adminLn.Close()
	if err := <-a.Failed(); err == nil || !strings.HasPrefix(err.Error(), "listen.admin: ") {
		t.Errorf("%v", err)
	}
}

// A Unix socket that a crashed agent left is replaced; one that is in use is not.
func TestUnixSockets(t *testing.T) {
	h := newHouse(t)
	socket := h.path("proxy.sock")
	h.replace(`proxy: "127.0.0.1:0"`, fmt.Sprintf(`proxy: "unix://%s", allow_uids: [%d]`, socket, os.Getuid()))
	stale, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	a := h.start()
	c := h.client()
	c.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	if resp, err := c.Get("http://postern/openai/v1/models"); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("%v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
	second := h.new()
	if err := second.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("a second agent: %v", err)
	}
	if _, err := os.Stat(socket); err != nil {
		t.Errorf("the second agent took the first one's socket: %v", err)
	}
	a.Stop()
	if _, err := os.Stat(socket); err == nil {
		t.Error("the socket is left behind")
	}
}

// A passphrase is in the arena no longer than the store needs it.
func TestAPassphraseIsLetGo(t *testing.T) {
	h := newHouse(t)
	h.env["SEALED_PASSPHRASE"] = "correct horse battery staple"
	h.replace("{file: postern.sealed, key_file: postern.key,", "{file: second.sealed, passphrase_env: SEALED_PASSPHRASE,")
	before := secret.Stats().Values
	_, done, err := OpenStore(h.parsed(), StoreOptions{Getenv: h.getenv})
	try(t, err)
	if n := secret.Stats().Values - before; n > 1 {
		t.Errorf("%d copies of it", n)
	}
	done()
	if n := secret.Stats().Values - before; n > 0 {
		t.Errorf("%d copies of it after the store was closed", n)
	}
}
