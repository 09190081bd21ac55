package agent

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/redact"
)

func TestAnExposureIsDueOnceAMinute(t *testing.T) {
	var e exposures
	now := time.Now()
	one, two := redact.Label{Key: "openai", Version: 1}, redact.Label{Key: "openai", Version: 2}
	for _, c := range []struct {
		l     redact.Label
		after time.Duration
		due   bool
	}{
		{one, 0, true}, {one, 0, false}, {one, 59 * time.Second, false}, {two, 59 * time.Second, true},
		{one, time.Minute, true}, {one, time.Minute + time.Second, false}, {two, time.Minute, false}, {two, 2 * time.Minute, true},
	} {
		if got := e.due(c.l, now.Add(c.after)); got != c.due {
			t.Errorf("%v after %s: due %v", c.l, c.after, got)
		}
	}
}

// What a library says through the standard logger is scrubbed like all else.
func TestTheStandardLoggerIsScrubbed(t *testing.T) {
	var std buffer
	was := log.Writer()
	log.SetOutput(&std)
	defer log.SetOutput(was)
	h := newHouse(t)
	h.yaml += "log: {level: debug}\n"
	a := h.start()
	log.Printf("unsolicited answer: %q", "x-echo: "+firstKey)
	a.Stop()
	if said := std.String() + h.log.String(); strings.Contains(said, firstKey) || !strings.Contains(h.log.String(), "unsolicited answer") {
		t.Error("it was written as it is, or not at all")
	}
}

// A key that was about to be written to the log is not, however it got there;
// somebody hears of it once, and a count says how often it was.
func TestAnExposureIsReported(t *testing.T) {
	h := newHouse(t)
	a := h.start()
	for i := range 3 {
		a.log.Info("careless", "n", i, "key", firstKey, "url", "https://x/?key="+firstKey)
	}
	a.log.With("key", firstKey).Info("careless " + firstKey)
	a.log.Info("a key that nobody knows", "value", "sk-proj-nobody-knows-this-one-0123456789abcdef")
	a.Stop()
	log, record := h.log.String(), h.audit.String()
	if strings.Contains(log+record, firstKey) || strings.Contains(log, "nobody-knows-this-one") {
		t.Error("it was written")
	}
	if n := strings.Count(log, "a key was about to be exposed"); n != 1 {
		t.Errorf("said %d times in the log", n)
	}
	var exposed []string
	for line := range strings.Lines(record) {
		if strings.Contains(line, "key.exposed") {
			exposed = append(exposed, line)
		}
	}
	if len(exposed) != 1 || !strings.Contains(exposed[0], `"key":"openai"`) || !strings.Contains(exposed[0], `"version":1`) || !strings.Contains(exposed[0], `"reason":"log"`) {
		t.Errorf("recorded: %q", exposed)
	}
	if n := metric(t, a.registry, "postern_redactions_total", "log"); n < 8 {
		t.Errorf("%v redactions counted", n)
	}
	if n := metric(t, a.registry, "postern_key_exposures_total"); n != 1 {
		t.Errorf("%v exposures counted", n)
	}
}

// What an application may ask a tunnel for, and what is the agent itself.
func TestOwnListeners(t *testing.T) {
	var o ownListeners
	loop, six := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")
	if o.is(netip.AddrPortFrom(loop, 8700)) {
		t.Error("before anything listens")
	}
	o.set(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8700}, &net.TCPAddr{IP: net.IPv6unspecified, Port: 8701}, &net.UnixAddr{Name: "/run/proxy.sock", Net: "unix"})
	local := []netip.Addr{loop, six, netip.MustParseAddr("127.9.9.9")}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.(*net.IPNet).IP); ok {
			local = append(local, ip.Unmap())
		}
	}
	for _, ip := range local {
		for port, want := range map[uint16]bool{8700: true, 8701: true, 8702: false, 0: false} {
			if got := o.is(netip.AddrPortFrom(ip, port)); got != want {
				t.Errorf("%s port %d: ours %v", ip, port, got)
			}
		}
	}
	for _, s := range []string{"192.0.2.1", "2001:db8::1"} {
		if o.is(netip.AddrPortFrom(netip.MustParseAddr(s), 8700)) {
			t.Errorf("%s is somebody else's", s)
		}
	}
}

// With unmatched: tunnel the agent leads anywhere, but not to itself.
func TestNoTunnelLeadsToTheAgent(t *testing.T) {
	h := newHouse(t)
	h.replace("rotation:", "unmatched: tunnel\nrotation:")
	a := h.start()
	for _, listener := range []net.Addr{a.ProxyAddr(), a.AdminAddr()} {
		_, port, _ := net.SplitHostPort(listener.String())
		for _, host := range []string{"127.0.0.1", "localhost", "127.3.2.1", "[::ffff:127.0.0.1]", "0.0.0.0", "[::1]"} {
			c, err := net.Dial("tcp", a.ProxyAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(10 * time.Second))
			fmt.Fprintf(c, "CONNECT %s:%s HTTP/1.1\r\nHost: %[1]s:%[2]s\r\n\r\n", host, port)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			if refused := resp.StatusCode == http.StatusForbidden || host[0] == '[' && resp.StatusCode >= 400; !refused {
				t.Errorf("CONNECT %s:%s: %s %s", host, port, resp.Status, body)
			}
			c.Close()
		}
	}
}

// /readyz stays ready while keys serve with the store away, and says so.
func TestReadyWhileTheStoreIsAway(t *testing.T) {
	h := newHouse(t)
	a := h.start()
	readyz := func() (int, string) {
		resp, err := h.client().Get("http://" + a.AdminAddr().String() + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	if status, body := readyz(); status != 200 || body != "ok\n" {
		t.Errorf("%d %q", status, body)
	}
	h.write("postern.sealed", "damaged")
	eventually(t, "the store is away", func() bool { return len(a.stale()) > 0 })
	if status, body := readyz(); status != 200 || !strings.Contains(body, "openai") || !strings.Contains(body, "served from memory") {
		t.Errorf("%d %q", status, body)
	}
	h.serves(a, "openai")
}

// The record's head is shown: its number, and an anchor that `postern audit verify` takes.
func TestTheRecordsHeadIsShown(t *testing.T) {
	h := newHouse(t)
	a := h.start()
	if n := metric(t, a.registry, "postern_audit_head_seq"); n < 1 {
		t.Errorf("%v", n)
	}
	families, err := a.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	anchor := ""
	for _, f := range families {
		if f.GetName() == "postern_audit_anchor_info" {
			anchor = f.Metric[0].Label[0].GetValue()
		}
	}
	head, err := audit.ParseHead(anchor)
	if err != nil {
		t.Fatal(err)
	}
	a.Stop()
	if r, err := audit.Verify(strings.NewReader(h.audit.String()), head); err != nil || !r.OK() {
		t.Errorf("the metric's anchor %q is none of the record: %v %v", anchor, r.Problems, err)
	}
	if _, err := audit.ParseHead(a.Status().AuditHead); err != nil {
		t.Errorf("the status's head: %v", err)
	}
}
