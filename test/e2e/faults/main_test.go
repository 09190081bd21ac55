// Package faults_test breaks what the agent stands on, one thing at a time and
// under steady load, and looks at four things: which requests were lost, what
// the client saw, how soon all was well again, and whether the process then
// holds no more than before.
//
// A fault that is not the provider's own must lose nothing while the key is in
// memory. `make faults` runs each at full length and prints the table; `go test`
// runs them for some seconds each.
package faults_test

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

func TestMain(m *testing.M) {
	flag.Parse()
	flag.Set("test.parallel", fmt.Sprint(parallel)) // they mostly wait, whatever the number of processors
	code := m.Run()
	table.print()
	agenttest.Cleanup()
	os.Exit(code)
}

// parallel is how many faults run at a time.
const parallel = 8

// rate is the steady load's of one fault, requests a second.
var rate = map[bool]int{false: 40, true: 100}[e2etest.Long]

// row is one fault in the table.
type row struct {
	fault     string
	requests  int64
	lost      int
	saw       string
	recovered string
	before    vitals
	after     vitals
	verdict   string
}

// rows are the table as it grows.
type rows struct {
	mu  sync.Mutex
	all []row
}

var table rows

func (t *rows) add(r row) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = append(t.all, r)
}

// print prints the table, by name of the fault.
func (t *rows) print() {
	if len(t.all) == 0 {
		return
	}
	slices.SortFunc(t.all, func(a, b row) int { return cmp.Compare(a.fault, b.fault) })
	const form = "%-36s %8s %5s  %-58s %-9s %11s %9s %13s  %s\n"
	failed := 0
	fmt.Printf("\n"+form, "fault", "requests", "lost", "client saw", "recovered", "goroutines", "files", "RSS, MiB", "verdict")
	for _, r := range t.all {
		if r.verdict != "ok" {
			failed++
		}
		fmt.Printf(form, r.fault, fmt.Sprint(r.requests), fmt.Sprint(r.lost), r.saw, r.recovered,
			fmt.Sprintf("%d → %d", r.before.goroutines, r.after.goroutines), fmt.Sprintf("%d → %d", r.before.files, r.after.files),
			fmt.Sprintf("%.1f → %.1f", r.before.rss, r.after.rss), r.verdict)
	}
	fmt.Printf("%d faults, %d failed\n", len(t.all), failed)
}

// seconds is a duration as the table has it.
func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
