package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
)

// SIGTERM comes while requests are under way and a long answer is being
// streamed. What was begun ends whole, nothing new is taken, and the process
// ends with 0 and says so in its record.
func TestStopUnderLoad(t *testing.T) {
	w := newWorld(t)
	st := w.sealed()
	key := w.key()
	const gap, words = 100 * time.Millisecond, 30
	slow := w.provider("slow", fake.Options{Keys: []string{key}, Gap: gap, Words: words})
	p := w.provider("openai", fake.Options{Keys: []string{key}})
	st.put("openai", key)
	c := w.config(st, p)
	c.providers = append(c.providers, slow.entry(", key: openai"))
	a := w.start(c)
	trust := read(t, w.path("ca/ca.pem"))
	l := startLoad(t, rate, w.ways(a, p)...)
	streams := []*openStream{
		w.stream(w.client(nil), a.URL("/slow/v1/chat/completions")),
		w.stream(w.client(w.through(a, trust)), "https://"+slow.host+"/v1/chat/completions"),
	}
	l.more(500 * time.Millisecond)

	a.Signal(syscall.SIGTERM)
	told := time.Now()
	agenttest.Eventually(t, 5*time.Second, "new connections are refused", func() bool {
		conn, err := net.Dial("tcp", a.Proxy)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	if !running(a) {
		t.Error("the agent ended before its streams did")
	}
	for _, s := range streams {
		if err := s.rest(); err != nil {
			t.Errorf("a stream that was open at SIGTERM: %v", err)
		}
	}
	await(t, a.Done(), 20*time.Second, "the agent has ended")
	took := time.Since(told)
	if a.ExitErr() != nil {
		t.Errorf("the agent ended with %v", a.ExitErr())
	}
	t.Logf("ended %.1f s after SIGTERM, with the streams", took.Seconds())
	if least := gap * words / 2; took < least {
		t.Errorf("the streams were over %s after SIGTERM: they show nothing", took)
	}

	// A request may meet the closing of its connection, and then it got nothing at
	// all. An answer that is wrong or cut short is never right.
	failed := l.report()
	for _, f := range failed {
		if f.answered() || f.ended.Before(told) {
			t.Errorf("%s, begun %.3f s after SIGTERM: %v", f.way, f.began.Sub(told).Seconds(), f.err)
		}
	}
	taken := 0
	for _, line := range a.Log.Lines() {
		if line["msg"] == "request" {
			taken++
			if line["status"] != 200.0 || line["code"] != nil {
				t.Errorf("a request that was taken ended as %v", line)
			}
		}
	}
	answered := int(l.total()) - len(failed) + len(streams)
	t.Logf("%d requests were taken and %d answered; %d, after SIGTERM, were not taken", taken, answered, len(failed))
	if taken != answered {
		t.Errorf("%d requests were taken, and %d answered", taken, answered)
	}

	entries := w.audit()
	if last := entries[len(entries)-1]; last.Event.Event != "agent.stopped" || last.Outcome != "ok" {
		t.Errorf("the record ends with %s, %s", last.Event.Event, last.Outcome)
	}
	out, said, code := agenttest.Run(t, w.dir, "", "audit", "verify", w.path("audit.jsonl"))
	if code != 0 {
		t.Errorf("audit verify: exit code %d\n%s%s", code, out, said)
	}
	if !strings.Contains(a.Log.String(), `"msg":"version wiped"`) {
		t.Error("the key was not wiped")
	}
}

// openStream is a streamed answer of which the first event has been read.
type openStream struct {
	cancel context.CancelFunc
	body   io.ReadCloser
	r      *bufio.Reader
	head   []byte
}

// stream opens one and waits for its first event.
func (w *world) stream(client *http.Client, url string) *openStream {
	w.t.Helper()
	s, err := openChat(client, url)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(s.close)
	return s
}

func openChat(client *http.Client, url string) (*openStream, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &openStream{cancel: cancel}
	const body = `{"model":"gpt-4o-mini","stream":true,"messages":[{"role":"user","content":"Say hello."}]}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		cancel()
		return nil, err
	}
	s.body, s.r = resp.Body, bufio.NewReader(resp.Body)
	if s.head, err = s.r.ReadBytes('\n'); err != nil || resp.StatusCode != http.StatusOK {
		s.close()
		return nil, fmt.Errorf("%s: %q, %w", resp.Status, s.head, err)
	}
	return s, nil
}

// rest reads to the end, which must be there.
func (s *openStream) rest() error {
	b, err := io.ReadAll(s.r)
	switch {
	case err != nil:
		return fmt.Errorf("cut short after %d bytes: %w", len(b), err)
	case !bytes.HasSuffix(b, []byte("data: [DONE]\n\n")):
		return fmt.Errorf("no end in %d bytes: %q", len(b), b)
	}
	return nil
}

func (s *openStream) close() {
	s.cancel()
	s.body.Close()
}
