// Package e2e_test tells the stories that the agent is for: the built binary, a
// real Vault, providers that speak TLS, and clients that never see a key.
//
// `go test` runs each story with some seconds of load; POSTERN_E2E_LONG=1 runs
// them at full length.
package e2e_test

import (
	"os"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	agenttest.Cleanup()
	os.Exit(code)
}

// The load of the stories, requests a second. Those that run beside others have a light one.
const (
	rate  = 500
	light = 100
)

var long = os.Getenv("POSTERN_E2E_LONG") == "1"

// span is how long a part of a story lasts: short, or full with POSTERN_E2E_LONG=1.
func span(short, full time.Duration) time.Duration {
	if long {
		return full
	}
	return short
}

// await takes one value of a channel, or fails the test.
func await[T any](t *testing.T, c <-chan T, limit time.Duration, what string) T {
	t.Helper()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case v := <-c:
		return v
	case <-timer.C:
		t.Fatalf("not within %s: %s", limit, what)
		panic("unreachable")
	}
}

// write writes a file that is there at once, as editors and Kubernetes do.
func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
