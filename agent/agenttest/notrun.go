package agenttest

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
)

var reported sync.Map // what NotRun has said already

// NotRun says that a part of the tests could not run here, and why: once, on
// standard output and in the file named by $POSTERN_NOTRUN. With CI=true it is a failure.
func NotRun(t testing.TB, part string, reason error) {
	t.Helper()
	line := fmt.Sprintf("NOT RUN: %s: %s\n", part, strings.Join(strings.Fields(reason.Error()), " "))
	if os.Getenv("CI") == "true" {
		t.Error(line)
	}
	if _, told := reported.LoadOrStore(line, true); told {
		return
	}
	fmt.Print(line)
	path := os.Getenv("POSTERN_NOTRUN")
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(line); err != nil {
		t.Fatal(err)
	}
}
