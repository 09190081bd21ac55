package audit

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// DetailEntity is the detail in which an entry claims who wrote it, as a store
// knows its writers. What the store itself recorded must be the same.
const DetailEntity = "entity_id"

// maxSkew is how far an entry's own time may be from when the store wrote it:
// more than any request lasts and than clocks of one store differ.
const maxSkew = 10 * time.Minute

var (
	errPlace = errors.New("names another place or another environment")
	errSum   = errors.New("does not give its hash")
)

// ParseAt reads the entry at a numbered place of an environment's record. The
// error says why it is none of the record's: whoever appends steps over it, and
// the next entry's Prev is the hash of the last one before that is. As with
// [ParseEntry], the entry is returned too as far as it could be read.
func ParseAt(line []byte, environment string, seq uint64) (Entry, error) {
	e, err := ParseEntry(line)
	switch {
	case err != nil:
	case e.Seq != seq || e.Environment != environment:
		err = errPlace
	case e.Sum() != e.Hash:
		err = errSum
	}
	return e, err
}

// Place is what a store tells about one numbered place of a record.
type Place struct {
	Seq  uint64
	Line []byte // as it was first written; nil if it cannot be read any more
	// Versions is how often the place was written: once, unless somebody tampers.
	Versions int
	Created  time.Time // when, as the store recorded it; the zero time if that is not known
	// Writer is the entity that the store recorded; "" also means one without an
	// entity. It counts only where WriterKnown is set.
	Writer      string
	WriterKnown bool
}

// Record judges the one chain of a record whose entries lie at numbered places,
// for which a store vouches to some extent: it knows who wrote a place, when,
// and how often. It is not safe for concurrent use.
type Record struct {
	environment string
	report      Report
	anchors     map[Head]bool // true once seen
	order       []Head        // the anchors as given
	last        uint64        // the newest place told
	// What the next entry may follow: the newest entry of the chain, or, where
	// places after it are no good, what these claim; anything, where they cannot say.
	prev   string
	from   uint64 // prev's own number
	claims []string
	loose  bool
	blind  bool // the writer of some place is not known
}

// NewRecord returns a Record that has seen nothing.
func NewRecord(environment string, anchors ...Head) *Record {
	r := &Record{environment: environment, anchors: make(map[Head]bool, len(anchors)), order: anchors}
	for _, a := range anchors {
		r.anchors[a] = false
	}
	return r
}

// Place judges the next place. Places come by ascending number; numbers that are
// left out are missing.
func (r *Record) Place(p Place) {
	gap := p.Seq > r.last+1
	if gap {
		r.problem(r.last+1, Missing, missingPlaces(r.last+1, p.Seq-1))
		r.loose = true
	}
	r.last = p.Seq
	r.report.Lines++
	if p.Versions > 1 {
		r.problem(p.Seq, Rewritten, fmt.Sprintf("it was written %d times, and an entry is written once", p.Versions))
	}
	if p.Line == nil {
		r.problem(p.Seq, Deleted, "its content was deleted or destroyed")
		r.loose = true
		return
	}
	e, err := ParseAt(p.Line, r.environment, p.Seq)
	if !r.content(p.Seq, e, err) {
		return
	}
	r.report.Entries++
	r.link(e, gap)
	r.witness(p, e)
}

// Stray tells of something in the record's folder whose name is no number of a place.
func (r *Record) Stray(name string) {
	r.problem(0, Misplaced, fmt.Sprintf("%q lies among the entries and is none: places have numbers of 12 digits", clip(name, 100)))
}

// content reports whether a place holds an entry that others may follow, and says so if it does not.
func (r *Record) content(seq uint64, e Entry, err error) bool {
	if e.Seq == seq { // edited perhaps, but the right one
		if _, ok := r.anchors[e.Head()]; ok {
			r.anchors[e.Head()] = true
		}
	}
	switch {
	case err == nil:
		return true
	case errors.Is(err, errSum):
		r.problem(seq, Edited, "its content does not give its hash: it was edited, or never appended by postern")
		r.claims = append(r.claims, e.Hash)
	case errors.Is(err, errForm):
		r.problem(seq, Form, "it "+errForm.Error())
		r.claims = append(r.claims, e.Hash)
	case errors.Is(err, errPlace) && e.Seq != seq:
		r.problem(seq, Misplaced, "what lies here says it is entry "+strconv.FormatUint(e.Seq, 10))
		r.loose = true
	case errors.Is(err, errPlace):
		r.problem(seq, Misplaced, "what lies here is an entry of another environment")
		r.loose = true
	default:
		r.problem(seq, Garbled, "what lies here "+err.Error())
		r.loose = true
	}
	return false
}

// link hangs an entry onto the chain and says so if it does not fit.
func (r *Record) link(e Entry, gap bool) {
	first := r.prev == ""
	fits := e.Prev == r.prev || first && e.Prev == Genesis(e.Boot)
	switch {
	case gap:
		r.problem(e.Seq, Start, "it continues no entry that is here: those before it were removed, or it was put ahead of the record's end")
	case fits, r.loose, slices.Contains(r.claims, e.Prev):
	case first:
		r.problem(e.Seq, Start, "it is the first entry and does not begin the chain: it was replaced, or never appended by postern")
	default:
		r.problem(e.Seq, Broken, fmt.Sprintf("its prev is not the hash of entry %d: one of the two was edited, replaced, or never appended by postern", r.from))
	}
	r.prev, r.from, r.claims, r.loose = e.Hash, e.Seq, nil, false

	if gap || len(r.report.Chains) == 0 {
		r.report.Chains = append(r.report.Chains, ChainReport{First: e.Head(), Since: e.Time})
	}
	c := &r.report.Chains[len(r.report.Chains)-1]
	c.Head, c.Until, c.LastEvent = e.Head(), e.Time, e.Event.Event
	c.Entries++
	if !slices.Contains(c.Boots, e.Boot) {
		c.Boots = append(c.Boots, e.Boot)
	}
}

// witness compares what an entry says with what the store knows.
func (r *Record) witness(p Place, e Entry) {
	if skew := p.Created.Sub(e.Time).Abs(); !p.Created.IsZero() && skew > maxSkew {
		r.problem(e.Seq, Redated, fmt.Sprintf("its time is %v away from %s, when the store wrote it: it was replaced later, or backdated",
			skew.Round(time.Second), p.Created.UTC().Format(time.RFC3339)))
	}
	switch claimed := e.Detail[DetailEntity]; {
	case !p.WriterKnown:
		r.blind = true
	case claimed != p.Writer:
		r.problem(e.Seq, Forged, fmt.Sprintf("it claims to be written by %s, and the store says that %s wrote it", entity(claimed), entity(p.Writer)))
	}
}

func entity(id string) string {
	if id == "" {
		return "nobody with an entity"
	}
	return "entity " + strconv.Quote(clip(id, 100))
}

// Report returns what was found so far.
func (r *Record) Report() Report {
	out := r.report
	out.Problems = slices.Clone(out.Problems)
	out.Chains = slices.Clone(out.Chains)
	var newest uint64
	if len(out.Chains) > 0 {
		newest = out.Chains[0].Head.Seq
	}
	for _, a := range r.order {
		switch {
		case r.anchors[a]:
		case newest < a.Seq:
			out.Problems = append(out.Problems, Problem{0, a.Seq, Anchor, fmt.Sprintf("entry %d: the anchor's entry is not here: the record ends with entry %d, its end was cut off", a.Seq, newest)})
		default:
			out.Problems = append(out.Problems, Problem{0, a.Seq, Anchor, fmt.Sprintf("entry %d: it does not have the anchor's hash: the record was rewritten, or the anchor is of another one", a.Seq)})
		}
	}
	if r.blind {
		out.Problems = append(out.Problems, Problem{0, 0, Unwitnessed, "who wrote the entries could not be compared with the store's own account, which this identity may not read"})
	}
	out.finish()
	return out
}

func (r *Record) problem(seq uint64, kind, text string) {
	if len(r.report.Problems) >= 2*maxProblems {
		r.report.More++
		return
	}
	if seq > 0 && kind != Missing {
		text = fmt.Sprintf("entry %d: %s", seq, text)
	}
	r.report.Problems = append(r.report.Problems, Problem{0, seq, kind, text})
}

func missingPlaces(from, to uint64) string {
	if from == to {
		return fmt.Sprintf("entry %d is missing", from)
	}
	return fmt.Sprintf("entries %d to %d are missing", from, to)
}
