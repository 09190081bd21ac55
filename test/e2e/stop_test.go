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
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// SIGTERM comes while requests are under way and a long answer is being
// streamed. What was begun ends whole, nothing new is taken, and the process
// ends with 0 and says so in its record.
func TestStopUnderLoad(t *testing.T) {
	w := newWorld(t)
	st := w.Sealed()
	key := w.Key()
	const gap, words = 100 * time.Millisecond, 30
	slow := w.Provider("slow", fake.Options{Keys: []string{key}, Gap: gap, Words: words})
	p := w.Provider("openai", fake.Options{Keys: []string{key}})
	st.Put("openai", key)
	c := w.Config(st, p)
	c.Providers = append(c.Providers, slow.Entry(", key: openai"))
	a := w.Start(c)
	trust := e2etest.Read(t, w.Path("ca/ca.pem"))
	l := e2etest.StartLoad(t, rate, w.Ways(a, p)...)
	streams := []*openStream{
		w.stream(w.Client(nil), a.URL("/slow/v1/chat/completions")),
		w.stream(w.Client(w.Through(a, trust)), "https://"+slow.Host+"/v1/chat/completions"),
	}
	l.More(500 * time.Millisecond)

	a.Signal(syscall.SIGTERM)
	told := time.Now()
	agenttest.Eventually(t, 5*time.Second, "new connections are refused", func() bool {
		conn, err := net.Dial("tcp", a.Proxy)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	if !e2etest.Running(a) {
		t.Error("the agent ended before its streams did")
	}
	for _, s := range streams {
		if err := s.rest(); err != nil {
			t.Errorf("a stream that was open at SIGTERM: %v", err)
		}
	}
	e2etest.Await(t, a.Done(), 20*time.Second, "the agent has ended")
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
	failed := l.Report()
	for _, f := range failed {
		if f.Answered() || f.Ended.Before(told) {
			t.Errorf("%s, begun %.3f s after SIGTERM: %v", f.Way, f.Began.Sub(told).Seconds(), f.Err)
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
	answered := int(l.Total()) - len(failed) + len(streams)
	t.Logf("%d requests were taken and %d answered; %d, after SIGTERM, were not taken", taken, answered, len(failed))
	if taken != answered {
		t.Errorf("%d requests were taken, and %d answered", taken, answered)
	}

	entries := w.audit()
	if last := entries[len(entries)-1]; last.Event.Event != "agent.stopped" || last.Outcome != "ok" {
		t.Errorf("the record ends with %s, %s", last.Event.Event, last.Outcome)
	}
	out, said, code := agenttest.Run(t, w.Dir, "", "audit", "verify", w.Path("audit.jsonl"))
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
	w.T.Helper()
	s, err := openChat(client, url)
	if err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(s.close)
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
