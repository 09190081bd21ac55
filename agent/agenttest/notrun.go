package agenttest

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
)

var reported sync.Map // what was said already

// NotRun says that a part of the tests could not run here, and why: once, on
// standard output and in the file named by $POSTERN_NOTRUN. With CI=true it is a failure.
func NotRun(t testing.TB, part string, reason error) {
	t.Helper()
	if line := note(t, "NOT RUN", part, reason); os.Getenv("CI") == "true" {
		t.Error(line)
	}
}

// FellBack says that a part of the tests ran as far as this machine's kernel or
// rights allow, which a change of the code cannot mend: it fails nowhere.
func FellBack(t testing.TB, part string, reason error) {
	t.Helper()
	note(t, "FELL BACK", part, reason)
}

// note says it once.
func note(t testing.TB, what, part string, reason error) string {
	t.Helper()
	line := fmt.Sprintf("%s: %s: %s\n", what, part, strings.Join(strings.Fields(reason.Error()), " "))
	if _, told := reported.LoadOrStore(line, true); told {
		return line
	}
	fmt.Print(line)
	path := os.Getenv("POSTERN_NOTRUN")
	if path == "" {
		return line
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(line); err != nil {
		t.Fatal(err)
	}
	return line
}
