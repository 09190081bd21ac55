// Package framing_test compares how the built agent and real HTTP/1.1
// implementations read the same bytes. What the agent forwards is recorded as
// bytes between it and the upstream, and read by a strict reader of these tests
// (message_test.go); it shares nothing with the agent and does not know how its
// data path is written.
//
// Requests: whatever a client sends, nginx, Node's and Go's server see exactly
// the requests that the agent forwarded, and the agent forwards exactly those
// that the client's bytes hold when they are read strictly.
//
// Answers: whatever an upstream sends, Node's, curl's and Go's client see
// exactly what the agent passed on, each request its own answer.
//
// `go test` runs a moderate number; -requests and -answers say how many for each
// peer, -seed repeats a run. A failure prints the smallest input found that still fails.
package framing_test

import (
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
)

var (
	seedFlag     = flag.Uint64("seed", 0, "repeat the run with this seed; 0 takes a new one")
	requestsFlag = flag.Int("requests", 350, "requests for each upstream")
	answersFlag  = flag.Int("answers", 150, "answers for each client")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if *seedFlag == 0 {
		*seedFlag = uint64(time.Now().UnixNano())
	}
	fmt.Printf("seed %d\n", *seedFlag)
	code := m.Run()
	agenttest.Cleanup()
	os.Exit(code)
}
