package main

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/term"

	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/rotation"
)

// stage says in a few words what happens in an open rotation's phase.
func stage(r keys.Rotation) string {
	switch r.Phase {
	case rotation.PhaseRequested:
		return "requested"
	case rotation.PhaseGenerate:
		return fmt.Sprintf("generate, version %d is being stored", r.To)
	case rotation.PhaseValidate:
		return fmt.Sprintf("validate, does the provider accept version %d?", r.To)
	case rotation.PhaseMigrate:
		switch r.Weight {
		case 0:
			return fmt.Sprintf("migrate, agents make version %d ready", r.To)
		case 100:
			return fmt.Sprintf("migrate, version %d takes all requests", r.To)
		}
		return fmt.Sprintf("migrate, version %d takes %d%% of requests", r.To, r.Weight)
	case rotation.PhaseRevoke:
		return fmt.Sprintf("revoke, version %d ends", r.From)
	}
	return string(r.Phase)
}

// progress is an open rotation in one line: its stage, its agents, what it waits for.
func progress(r keys.Rotation) string {
	parts := []string{r.Name + ": " + stage(r)}
	live, using := 0, 0
	for _, a := range r.Agents {
		if a.Live {
			live++
			if a.To == rotation.Active {
				using++
			}
		}
	}
	if live > 0 {
		parts = append(parts, fmt.Sprintf("used by %d of %s", using, count(live, "agent", "agents")))
	}
	if r.Waiting != "" {
		parts = append(parts, "waiting for "+r.Waiting)
	}
	return strings.Join(parts, "; ")
}

// outcome says how a rotation ended, or that others finish it. An error is one that did not rotate.
func outcome(r keys.Rotation, detached bool) (string, error) {
	why := ""
	if r.Reason != "" {
		why = ": " + r.Reason
	}
	switch r.Phase {
	case rotation.PhaseDone:
		return fmt.Sprintf("%s: rotated to version %d in %s, %s", r.Name, r.To, r.Environment, r.ProxyID), nil
	case rotation.PhaseRejected:
		return "", fmt.Errorf("%s: version %d was rejected%s. Nothing that serves has changed", r.Name, r.To, why)
	case rotation.PhaseRolledBack:
		return "", fmt.Errorf("%s: rolled back from version %d to version %d%s", r.Name, r.To, r.From, why)
	case rotation.PhaseAbandoned:
		return "", fmt.Errorf("%s: the rotation was abandoned%s. Nothing that serves has changed; `postern keys rotate %s` begins anew", r.Name, why, r.Name)
	case rotation.PhaseNone:
		return "", fmt.Errorf("%s: there is no rotation; `postern keys rotate %s` begins one", r.Name, r.Name)
	case rotation.PhaseRequested:
		return fmt.Sprintf("%s\nIt makes the new key and finishes the rotation; `postern keys show %s` tells how far it is", progress(r), r.Name), nil
	}
	if detached {
		return fmt.Sprintf("%s\nAgents follow by themselves. `postern server` finishes it, or any later `postern keys` command: `postern keys resume %s` waits for the end", progress(r), r.Name), nil
	}
	return fmt.Sprintf("%s\nWhat is left is not yours to do; `postern keys show %s` tells when it is done", progress(r), r.Name), nil
}

// summary is a rotation in one line, however it stands.
func summary(r keys.Rotation) string {
	if !r.Closed {
		return progress(r)
	}
	words, err := outcome(r, false)
	if err != nil {
		return err.Error()
	}
	return words
}

// follower shows a rotation on its way: a line for each change, or, live on a
// terminal, a table that is drawn anew.
type follower struct {
	out    io.Writer
	live   bool
	last   string
	drawn  int // lines on the terminal
	warned []string
}

func newFollower(out io.Writer, watch bool) *follower {
	return &follower{out: out, live: watch && isTerminal(out)}
}

var digits = regexp.MustCompile(`[0-9]+`)

func (f *follower) show(r keys.Rotation) {
	f.warn(r)
	if f.live {
		f.draw(r)
		return
	}
	line := progress(r)
	// What only counts down in the sentence about what is waited for is no change.
	news := strings.TrimSuffix(line, r.Waiting) + digits.ReplaceAllString(r.Waiting, "")
	if r.Closed || news == f.last {
		return
	}
	f.last = news
	fmt.Fprintln(f.out, shown(line))
}

// end shows what show has not.
func (f *follower) end(r keys.Rotation) {
	f.warn(r)
	if f.live && r.Phase != rotation.PhaseNone {
		f.draw(r)
	}
}

// warn says each warning once. The next table is drawn below.
func (f *follower) warn(r keys.Rotation) {
	for _, text := range r.Warnings {
		if !slices.Contains(f.warned, text) {
			f.warned = append(f.warned, text)
			f.drawn = 0
			warnTo(f.out, []string{text})
		}
	}
}

func (f *follower) draw(r keys.Rotation) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", r.Name, stage(r))
	if len(r.Agents) > 0 {
		printAgents(&b, r)
	}
	if r.Waiting != "" {
		fmt.Fprintln(&b, "waiting for "+r.Waiting)
	}
	width, height := f.size()
	lines := fitted(shown(b.String()), width, height)
	if f.drawn > 0 {
		fmt.Fprintf(f.out, "\x1b[%dA\x1b[J", f.drawn)
	}
	io.WriteString(f.out, strings.Join(lines, "\n")+"\n")
	f.drawn = len(lines)
}

// size is the terminal's, or a common one.
func (f *follower) size() (width, height int) {
	if file, ok := f.out.(*os.File); ok {
		if w, h, err := term.GetSize(int(file.Fd())); err == nil && w > 0 && h > 1 {
			return w, h
		}
	}
	return 80, 24
}

// fitted cuts a text to the terminal, so that drawing it anew covers it.
func fitted(text string, width, height int) []string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if more := len(lines) - (height - 1); more > 0 {
		lines = append(lines[:height-2], fmt.Sprintf("and %d lines more", more+1))
	}
	for i, l := range lines {
		if r := []rune(l); len(r) >= width {
			lines[i] = string(r[:width-1])
		}
	}
	return lines
}

// printAgents is what each agent acknowledged.
func printAgents(w io.Writer, r keys.Rotation) {
	rows := [][]string{{"AGENT", fmt.Sprintf("VERSION %d", r.To), fmt.Sprintf("VERSION %d", r.From), "HEARD", "REASON"}}
	if r.From == 0 {
		rows[0][2] = "BEFORE"
	}
	for _, a := range r.Agents {
		heard := age(a.At) + " ago"
		if !a.Live {
			heard += ", gone"
		}
		rows = append(rows, []string{a.Name, stateOf(a.To), stateOf(a.From), heard, orDash(a.Reason)})
	}
	table(w, rows)
}

// stateOf is a version's state at an agent; a dash where it does not hold it.
func stateOf(s rotation.State) string {
	if s == rotation.Unknown {
		return "-"
	}
	return s.String()
}
