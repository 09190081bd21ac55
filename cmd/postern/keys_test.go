package main

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/rotation"
)

func TestRamps(t *testing.T) {
	steps := func(n int) string {
		var s []string
		for i := range n {
			s = append(s, fmt.Sprintf("%d:1s", i+1))
		}
		return strings.Join(s, ",")
	}
	for text, want := range map[string]rotation.Ramp{
		"none":               {},
		"1:30s":              {{Weight: 1, For: 30 * time.Second}},
		"1:30s,10:2m, 50:5m": {{Weight: 1, For: 30 * time.Second}, {Weight: 10, For: 2 * time.Minute}, {Weight: 50, For: 5 * time.Minute}},
	} {
		if r, err := parseRamp(text); err != nil || !reflect.DeepEqual(r, want) {
			t.Errorf("%q: %v, %v", text, r, err)
		}
	}
	if r, err := parseRamp(steps(20)); err != nil || len(r) != 20 {
		t.Errorf("20 steps: %v, %v", r, err)
	}
	for text, say := range map[string]string{
		"": "step 1 is not in form", "10": "step 1 is not in form", "x:1s": "step 1 is not in form", "1:30s,": "step 2 is not in form",
		"1:": "step 1 has no length", "1:30": "step 1 has no length", "1:0s": "step 1 has no length", "1:-1s": "step 1 has no length",
		"0:1s": "between 1 and 99", "100:1s": "between 1 and 99", "-1:1s": "between 1 and 99",
		"10:1s,10:1s": "step 2: the percentages must rise", "10:1s,9:1s": "step 2: the percentages must rise",
		steps(21): "more than 20 steps", "None": "step 1 is not in form",
	} {
		if r, err := parseRamp(text); err == nil || !strings.Contains(err.Error(), say) || !strings.HasPrefix(err.Error(), "--ramp: ") {
			t.Errorf("%q: %v, %v", text, r, err)
		}
	}
}

func TestPeriods(t *testing.T) {
	for text, want := range map[string]time.Duration{"720h": 720 * time.Hour, "30d": 720 * time.Hour, "1d": 24 * time.Hour, "90m": 90 * time.Minute} {
		if d, err := parsePeriod(text, false); err != nil || d != want {
			t.Errorf("%q: %v, %v", text, d, err)
		}
	}
	for _, text := range []string{"", "0", "0d", "-1d", "-1h", "1.5d", "d", "99999d", "month"} {
		if d, err := parsePeriod(text, false); err == nil {
			t.Errorf("%q is %v", text, d)
		}
	}
	if d, err := parsePeriod("", true); err != nil || d != 0 {
		t.Errorf("off: %v, %v", d, err)
	}
	for d, want := range map[time.Duration]string{
		24 * time.Hour: "day", 720 * time.Hour: "30 days", 36 * time.Hour: "36h", 90 * time.Minute: "1h30m", 100 * time.Second: "1m40s", 10 * time.Hour: "10h",
	} {
		if got := period(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}

// An anchor stands in one of the two records; which one it is nobody has to say.
func TestAnchorsOfTwoRecords(t *testing.T) {
	a, b := audit.Head{Seq: 3, Hash: strings.Repeat("a", 64)}, audit.Head{Seq: 3, Hash: strings.Repeat("b", 64)}
	c := audit.Head{Seq: 9, Hash: strings.Repeat("c", 64)}
	missing := func(heads ...audit.Head) audit.Report {
		var r audit.Report
		for _, h := range heads {
			r.Problems = append(r.Problems, audit.Problem{Seq: h.Seq, Kind: audit.Anchor})
		}
		return r
	}
	edited := missing(c)
	edited.Problems = append(edited.Problems, audit.Problem{Line: 1, Seq: 1, Kind: audit.Edited})
	for name, tt := range map[string]struct {
		anchors          []audit.Head
		operators, agent audit.Report
		ok               bool
		unknown          int
	}{
		"none":                       {nil, missing(), missing(), true, 0},
		"of one":                     {[]audit.Head{a}, missing(), missing(a), true, 0},
		"of the other":               {[]audit.Head{a, c}, missing(a, c), missing(), true, 0},
		"one of each, one number":    {[]audit.Head{a, b}, missing(a), missing(b), true, 0},
		"of neither":                 {[]audit.Head{a, c}, missing(c), missing(a, c), false, 1},
		"of neither, and one number": {[]audit.Head{a, b}, missing(a, b), missing(a), false, 1},
		"of one, which is edited":    {[]audit.Head{c}, missing(), edited, false, 0},
	} {
		v := verified{Operators: tt.operators, Agent: &tt.agent}
		v.match(tt.anchors)
		if v.OK != tt.ok || len(v.Unknown) != tt.unknown {
			t.Errorf("%s: %+v", name, v)
		}
	}
	alone := verified{Operators: missing(a)}
	if alone.match([]audit.Head{a}); alone.OK || len(alone.Operators.Problems) != 1 {
		t.Errorf("without an agent's record: %+v", alone)
	}
}

func migrating(weight int, waiting string, agents ...keys.Agent) keys.Rotation {
	return keys.Rotation{Name: "openai", Environment: "prod", ProxyID: "px_acme", Phase: rotation.PhaseMigrate, From: 1, To: 2, Weight: weight, Waiting: waiting, Agents: agents}
}

// Each change is one line, and what merely counts down is none.
func TestProgressIsALineAChange(t *testing.T) {
	live := keys.Agent{Name: "a", Live: true, To: rotation.Pending}
	using := keys.Agent{Name: "a", Live: true, To: rotation.Active, From: rotation.Draining}
	gone := keys.Agent{Name: "b", To: rotation.Active}
	done := migrating(100, "")
	done.Phase, done.Closed = rotation.PhaseDone, true
	warned := migrating(10, "the ramp")
	warned.Warnings = []string{"the record lacks an entry"}
	var out bytes.Buffer
	f := newFollower(&out, true) // no terminal: lines all the same
	for _, r := range []keys.Rotation{
		migrating(0, "the ramp", live), migrating(0, "the ramp", live), migrating(1, "the ramp, until 10:00:30", live), migrating(1, "the ramp, until 10:00:29", live),
		migrating(1, "the ramp, until 10:00:28", using, gone), warned, warned, done,
	} {
		f.show(r)
	}
	f.end(done)
	want := `openai: migrate, agents make version 2 ready; used by 0 of 1 agent; waiting for the ramp
openai: migrate, version 2 takes 1% of requests; used by 0 of 1 agent; waiting for the ramp, until 10:00:30
openai: migrate, version 2 takes 1% of requests; used by 1 of 1 agent; waiting for the ramp, until 10:00:28
postern: warning: the record lacks an entry
openai: migrate, version 2 takes 10% of requests; waiting for the ramp
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestOutcomes(t *testing.T) {
	ended := func(p rotation.Phase, reason string) keys.Rotation {
		return keys.Rotation{Name: "openai", Environment: "prod", ProxyID: "px_acme", Phase: p, Closed: true, From: 1, To: 2, Reason: reason}
	}
	for _, tt := range []struct {
		r        keys.Rotation
		detached bool
		failed   bool
		says     string
	}{
		{ended(rotation.PhaseDone, "quarterly"), false, false, "openai: rotated to version 2 in prod, px_acme"},
		{ended(rotation.PhaseRejected, "401"), false, true, "openai: version 2 was rejected: 401. Nothing that serves has changed"},
		{ended(rotation.PhaseRolledBack, "halted"), false, true, "openai: rolled back from version 2 to version 1: halted"},
		{ended(rotation.PhaseAbandoned, "too late"), false, true, "the rotation was abandoned: too late. Nothing that serves has changed; `postern keys rotate openai` begins anew"},
		{keys.Rotation{Name: "openai"}, false, true, "there is no rotation; `postern keys rotate openai` begins one"},
		{keys.Rotation{Name: "openai", Phase: rotation.PhaseRequested, Managed: true, Waiting: "`postern server`"}, true, false, "openai: requested; waiting for `postern server`\nIt makes the new key and finishes the rotation"},
		{migrating(10, "the ramp"), true, false, "`postern server` finishes it, or any later `postern keys` command: `postern keys resume openai`"},
		{migrating(100, "somebody who may destroy version 1"), false, false, "What is left is not yours to do"},
	} {
		words, err := outcome(tt.r, tt.detached)
		if err != nil {
			words = err.Error()
		}
		if (err != nil) != tt.failed || !strings.Contains(words, tt.says) {
			t.Errorf("%s: %q, %v", tt.r.Phase, words, err)
		}
	}
}

// What is drawn fits the terminal, so that drawing it anew covers it.
func TestATableFitsTheTerminal(t *testing.T) {
	lines := fitted(strings.Repeat("0123456789äöü\n", 30), 10, 8)
	if len(lines) != 7 || lines[6] != "and 24 li" {
		t.Errorf("%q", lines)
	}
	for _, l := range lines {
		if len([]rune(l)) > 9 {
			t.Errorf("%q is too long", l)
		}
	}
	if lines := fitted("a\nb\n", 80, 24); len(lines) != 2 {
		t.Errorf("%q", lines)
	}
}

func TestReasonsAreRecorded(t *testing.T) {
	for _, tt := range []struct {
		reason string
		wanted bool
		ok     bool
	}{{"", false, true}, {"", true, false}, {"seen in a paste", true, true}, {"it was sk-proj-0123456789abcdefghij0123", false, false}} {
		err := aReason(tt.reason, tt.wanted)
		if (err == nil) != tt.ok || err != nil && (!errors.As(err, &usageError{}) || strings.Contains(err.Error(), "0123")) {
			t.Errorf("%q: %v", tt.reason, err)
		}
	}
}
