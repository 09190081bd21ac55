// Command run runs the tests that `make test` stands for and ends with a
// summary. What could not run on this machine stands there as NOT RUN, with the
// reason; with CI=true that is a failure. What ran as far as the machine's kernel
// and rights allow stands there as FELL BACK, and fails nowhere.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// part is one step. need says why it cannot run here, or nothing.
type part struct {
	name string
	need func() string
	cmd  []string
}

type outcome struct {
	part   string
	result string // passed, FAILED, NOT RUN, FELL BACK
	reason string
	took   time.Duration
}

func main() {
	only := flag.String("only", "", "run this part only")
	flag.Parse()
	os.Exit(run(*only))
}

func run(only string) int {
	notes, err := os.CreateTemp("", "postern-notrun-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	notes.Close()
	defer os.Remove(notes.Name())
	os.Setenv("POSTERN_NOTRUN", notes.Name())
	var all []outcome
	for _, p := range parts() {
		if only != "" && p.name != only {
			continue
		}
		all = append(all, p.run())
	}
	all = append(all, reported(notes.Name())...)
	return summary(all)
}

// parts are run in order: real components first, so that no test waits for a build.
func parts() []part {
	test := []string{"go", "test", "-timeout=30m", "-vet=off", "-p=3"} // vetted by lint; many packages wait for Vault and for clocks
	race := raceMissing()
	if race == "" {
		test = append(test, "-race")
	}
	outside := []string{"go", "test", "-timeout=30m", "-vet=off", "-count=1"} // what is tested is another process: the detector would only slow the tests
	return []part{
		{name: "tools", cmd: []string{"go", "run", "./test/tools/cmd/tools"}},
		{name: "race detector", need: func() string { return race }},
		{name: "packages", cmd: append(slices.Clone(test), "./agent/...", "./config/...", "./cmd/...", "./test/tools/...", "./test/run/...")},
		{name: "end to end", cmd: append(slices.Clone(outside), "-p=1", "./test/e2e/...")}, // one package at a time: each loads the machine
		{name: "wall", cmd: append(slices.Clone(outside), "./test/wall/...")},
		{name: "framing", cmd: append(slices.Clone(outside), "./test/framing/...")},
		{name: "documents", cmd: append(slices.Clone(outside), "./test/docs/...")},
		{name: "chart", cmd: append(slices.Clone(outside), "./test/chart/...")},
		{name: "examples", cmd: append(slices.Clone(outside), "./test/examples/...")},
		{name: "supply chain", cmd: append(slices.Clone(outside), "./test/supply/...")},
		{name: "cluster", cmd: append(slices.Clone(outside), "-v", "./test/cluster")}, // -v: its figures, and which level ran
		{name: "sdk", cmd: append(slices.Clone(outside), "./test/sdk/...")},
	}
}

// raceMissing says why the race detector cannot run: it needs a C compiler.
func raceMissing() string {
	cc := os.Getenv("CC")
	if cc == "" {
		cc = "gcc"
	}
	if _, err := exec.LookPath(cc); err != nil {
		return "no C compiler (" + cc + ") on " + runtime.GOOS
	}
	return ""
}

func (p part) run() outcome {
	o := outcome{part: p.name, result: "passed"}
	if p.need != nil {
		if o.reason = p.need(); o.reason != "" {
			o.result = "NOT RUN"
			return o
		}
	}
	if p.cmd == nil {
		return o
	}
	fmt.Printf("\n== %s: %s\n", p.name, strings.Join(p.cmd, " "))
	start := time.Now()
	cmd := exec.Command(p.cmd[0], p.cmd[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		o.result, o.reason = "FAILED", err.Error()
	}
	o.took = time.Since(start)
	return o
}

// reported are the parts that tests themselves could not run, or not wholly: lines of
// "NOT RUN: <part>: <reason>" and "FELL BACK: <part>: <reason>".
func reported(file string) []outcome {
	b, err := os.ReadFile(filepath.Clean(file))
	if err != nil {
		return nil
	}
	var out []outcome
	for line := range bytes.Lines(b) {
		result, rest, _ := strings.Cut(strings.TrimSpace(string(line)), ": ")
		if result != "NOT RUN" && result != "FELL BACK" {
			continue
		}
		name, reason, _ := strings.Cut(rest, ": ")
		out = append(out, outcome{part: name, result: result, reason: reason})
	}
	return out
}

func summary(all []outcome) int {
	passed, failed, notRun, less := 0, 0, 0, 0
	fmt.Println("\nSummary")
	for _, o := range all {
		switch o.result {
		case "passed":
			passed++
		case "FAILED":
			failed++
		case "FELL BACK":
			less++
		default:
			notRun++
		}
		line := fmt.Sprintf("  %-9s %-16s", o.result, o.part)
		if o.took > 0 {
			line += fmt.Sprintf(" %s", o.took.Round(100*time.Millisecond))
		}
		if o.reason != "" {
			line += "  " + o.reason
		}
		fmt.Println(line)
	}
	fmt.Printf("parts: %d passed, %d failed, %d skipped\n", passed, failed, notRun+less)
	if failed > 0 || notRun > 0 && os.Getenv("CI") == "true" {
		return 1
	}
	return 0
}
