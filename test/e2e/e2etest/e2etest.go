// Package e2etest is what the stories of test/e2e and the faults of
// test/e2e/faults play in: the built agent, a real Vault or the sealed store,
// providers that speak TLS, and a load by every way that there is.
package e2etest

import (
	"os"
	"testing"
	"time"
)

// Long asks for the full length of everything.
var Long = os.Getenv("POSTERN_E2E_LONG") == "1"

// Span is how long a part of a story lasts: short, or full with POSTERN_E2E_LONG=1.
func Span(short, full time.Duration) time.Duration {
	if Long {
		return full
	}
	return short
}

// Await takes one value of a channel, or fails the test.
func Await[T any](t *testing.T, c <-chan T, limit time.Duration, what string) T {
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

// Write writes a file that is there at once, as editors and Kubernetes do.
func Write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// Read is a file.
func Read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
