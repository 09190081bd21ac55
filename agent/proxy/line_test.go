package proxy

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/proxy/h1"
)

// A line is what slog would have written, and one that could hold more than
// names and numbers is left to it.
func TestLinesAreLikeSlogs(t *testing.T) {
	for _, text := range []bool{false, true} {
		for _, x := range []exchange{
			{via: viaRoute, t: &Target{Name: "openai"}, status: 200, version: 3},
			{via: viaConnect, t: &Target{Name: "house-llm.a_b"}, status: 403, version: 12, retried: true, masked: 2},
			{via: viaAbsolute, status: 404, code: codeNoRoute},
		} {
			var ours, theirs bytes.Buffer
			at := time.Now()
			handler := slog.Handler(slog.NewJSONHandler(&theirs, nil))
			if text {
				handler = slog.NewTextHandler(&theirs, nil)
			}
			x.start = at.Add(-1234567 * time.Nanosecond)
			x.req = &h1.Request{Method: []byte("POST")}
			x.s = &Server{Options: Options{Logger: slog.New(fixedTime{handler, at}), Lines: &Lines{Text: text, Write: func(b []byte) { ours.Write(b) }}}}
			x.log(at)
			x.s.Lines = nil
			x.log(at)
			if ours.String() != theirs.String() || ours.Len() == 0 {
				t.Errorf("\n%s\n%s", ours.String(), theirs.String())
			}
			ours.Reset()
			theirs.Reset()
			x.s.Lines = &Lines{Write: func(b []byte) { ours.Write(b) }}
			x.req.Method = []byte(key1)
			x.log(at)
			if ours.Len() > 0 || !strings.Contains(theirs.String(), key1) {
				t.Errorf("a method of the client's own: %q", ours.String())
			}
		}
	}
}

type fixedTime struct {
	slog.Handler
	at time.Time
}

func (h fixedTime) Handle(ctx context.Context, r slog.Record) error {
	r.Time = h.at.Round(0)
	return h.Handler.Handle(ctx, r)
}
