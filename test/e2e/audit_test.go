package e2e_test

import (
	"bytes"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// audit is the agent's record so far. A line that is being written is left out.
func (w *world) audit() []audit.Entry {
	w.T.Helper()
	var out []audit.Entry
	for line := range bytes.Lines(e2etest.Read(w.T, w.Path("audit.jsonl"))) {
		if line[len(line)-1] != '\n' {
			break
		}
		e, err := audit.ParseEntry(bytes.TrimSpace(line))
		if err != nil {
			w.T.Fatalf("audit.jsonl: %v: %s", err, line)
		}
		out = append(out, e)
	}
	return out
}
