// Package e2e_test tells the stories that the agent is for: the built binary, a
// real Vault, providers that speak TLS, and clients that never see a key.
//
// `go test` runs each story with some seconds of load; POSTERN_E2E_LONG=1 runs
// them at full length.
//
// Most stories wait most of the time, for polls, ramps and graces: they run beside
// others, with a light load. Those that measure times, shares or what a process
// holds run before them, alone.
package e2e_test

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest"
)

func TestMain(m *testing.M) {
	flag.Parse()
	flag.Set("test.parallel", fmt.Sprint(parallel)) // they mostly wait, whatever the number of processors
	code := m.Run()
	agenttest.Cleanup()
	os.Exit(code)
}

// parallel is how many stories run at a time, of those that run beside others.
const parallel = 4

// The load of the stories, requests a second. Those that run beside others have a light one.
const (
	rate  = 500
	light = 100
)
