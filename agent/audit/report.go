package audit

import (
	"slices"
	"time"
)

// The kinds of a Problem.
const (
	Garbled    = "garbled"      // the line begins or looks like an entry but is none
	Form       = "form"         // an entry in another spelling than the canonical one
	Edited     = "edited"       // its content does not give its hash
	Missing    = "missing"      // entries between two others are not there
	OutOfOrder = "out-of-order" // an entry stands after one that came later
	Duplicate  = "duplicate"    // an entry, or its number, stands there twice
	Broken     = "broken"       // the entry before it was edited or replaced
	Start      = "start"        // a chain whose beginning is not there
	Anchor     = "anchor"       // an anchor that no entry matches: truncated or rewritten

	// Of a Record only.
	Deleted     = "deleted"     // a place whose entry was deleted or destroyed
	Rewritten   = "rewritten"   // a place that was written more than once
	Misplaced   = "misplaced"   // an entry of another place or environment, or what is no entry's place
	Forged      = "forged"      // the store recorded another writer than the entry claims
	Redated     = "redated"     // the store wrote it at another time than the entry claims
	Unwitnessed = "unwitnessed" // the store's account of the writers may not be read
)

// Problem is one thing that is wrong.
type Problem struct {
	Line int    `json:"line"`          // from 1; 0 where it is about no line, as always in a Record
	Seq  uint64 `json:"seq,omitempty"` // of the entry it is about; 0 where none could be read
	Kind string `json:"kind"`
	Text string `json:"text"` // a sentence; never holds an entry's content
}

// ChainReport describes one chain.
type ChainReport struct {
	Boots     []string  `json:"boots"` // in order of appearance
	Entries   int       `json:"entries"`
	First     Head      `json:"first"`
	Head      Head      `json:"head"` // note this one: it is the next anchor
	FirstLine int       `json:"first_line"`
	LastLine  int       `json:"last_line"`
	Since     time.Time `json:"since"` // the first entry's time
	Until     time.Time `json:"until"` // the last entry's time
	LastEvent string    `json:"last_event"`
}

// Report is what Verify found.
type Report struct {
	Lines    int           `json:"lines"` // of a Record: places
	Entries  int           `json:"entries"`
	Foreign  int           `json:"foreign"` // lines that are clearly not ours
	Torn     int           `json:"torn"`    // torn lines that a chain.resumed entry explains
	Chains   []ChainReport `json:"chains"`
	Problems []Problem     `json:"problems"` // by line, those without one last; at most 1000
	More     int           `json:"more,omitempty"`
}

// OK reports whether nothing is wrong. A report without entries is OK unless an anchor was given.
func (r Report) OK() bool { return len(r.Problems) == 0 }

const maxProblems = 1000

// finish orders the problems and keeps the first ones.
func (r *Report) finish() {
	slices.SortStableFunc(r.Problems, func(a, b Problem) int {
		switch {
		case a.Line == b.Line:
			return 0
		case a.Line == 0 || b.Line != 0 && b.Line < a.Line:
			return 1
		}
		return -1
	})
	if n := len(r.Problems); n > maxProblems {
		r.Problems, r.More = slices.Clip(r.Problems[:maxProblems]), r.More+n-maxProblems
	}
}
