package audit

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

var recordStart = time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)

// places is a record of n entries by two processes and three writers, as a store tells it.
func places(n int) []Place {
	var all []Place
	var head Head
	for i := range n {
		now := recordStart.Add(time.Duration(i) * time.Minute)
		ev := Event{Event: "key.add", Environment: "prod", Key: "openai", Version: i + 1}
		writer := fmt.Sprintf("entity-%d", i%3)
		if i%3 == 0 {
			writer = ""
		} else {
			ev.Detail = map[string]string{DetailEntity: writer}
		}
		c, e := Chain{Boot: fmt.Sprintf("boot-%d", i%2), Head: head}.Next(ev, now)
		head = c.Head
		all = append(all, Place{Seq: e.Seq, Line: e.AppendJSON(nil), Versions: 1, Created: now.Add(time.Second), Writer: writer, WriterKnown: true})
	}
	return all
}

func judge(all []Place, anchors ...Head) Report {
	r := NewRecord("prod", anchors...)
	for _, p := range all {
		r.Place(p)
	}
	return r.Report()
}

// told is a report's problems as kind@seq.
func told(r Report) []string {
	var all []string
	for _, p := range r.Problems {
		all = append(all, fmt.Sprintf("%s@%d", p.Kind, p.Seq))
	}
	return all
}

func (p *Place) entry(t *testing.T) Entry {
	t.Helper()
	e, err := ParseEntry(p.Line)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// change alters an entry's content; with rehash as somebody does who knows how.
func (p *Place) change(t *testing.T, rehash bool, alter func(*Entry)) {
	t.Helper()
	e := p.entry(t)
	alter(&e)
	if rehash {
		e.Hash = e.Sum()
	}
	p.Line = e.AppendJSON(nil)
}

func TestAnUnbrokenRecordIsOneChainOfManyProcesses(t *testing.T) {
	all := places(10)
	anchors := []Head{all[3].entry(t).Head(), all[9].entry(t).Head()}
	r := judge(all, anchors...)
	if !r.OK() || r.Lines != 10 || r.Entries != 10 || len(r.Chains) != 1 {
		t.Fatalf("%+v", r)
	}
	c := r.Chains[0]
	if c.Entries != 10 || c.First.Seq != 1 || c.Head != anchors[1] || !slices.Equal(c.Boots, []string{"boot-0", "boot-1"}) ||
		!c.Since.Equal(recordStart) || !c.Until.Equal(recordStart.Add(9*time.Minute)) || c.LastEvent != "key.add" {
		t.Errorf("%+v", c)
	}
	if r := judge(nil); !r.OK() || r.Entries != 0 {
		t.Errorf("an empty record: %+v", r)
	}
}

func TestEachTamperingIsNamed(t *testing.T) {
	for _, tt := range []struct {
		name   string
		tamper func(t *testing.T, all []Place) []Place
		want   []string
	}{
		{"a word changed", func(t *testing.T, all []Place) []Place {
			all[4].change(t, false, func(e *Entry) { e.Key = "anthropic" })
			return all
		}, []string{"edited@5"}},
		{"a word changed and the hash with it", func(t *testing.T, all []Place) []Place {
			all[4].change(t, true, func(e *Entry) { e.Key = "anthropic" })
			return all
		}, []string{"broken@6"}},
		{"the newest entry changed and its hash with it", func(t *testing.T, all []Place) []Place {
			all[9].change(t, true, func(e *Entry) { e.Key = "anthropic" })
			return all
		}, nil}, // an anchor shows it, or the store: the next three
		{"the same, as Vault tells it after kv put", func(t *testing.T, all []Place) []Place {
			all[9].Versions = 2
			return all
		}, []string{"rewritten@10"}},
		{"the same, as Vault tells it after kv metadata delete and kv put, a day later", func(t *testing.T, all []Place) []Place {
			all[9].Created = all[9].Created.Add(24 * time.Hour)
			return all
		}, []string{"redated@10"}},
		{"the same, by somebody else", func(t *testing.T, all []Place) []Place {
			all[9].Writer = "entity-of-mallory"
			return all
		}, []string{"forged@10"}},
		{"written in somebody's name", func(t *testing.T, all []Place) []Place {
			all[9].change(t, true, func(e *Entry) { e.Detail = map[string]string{DetailEntity: "entity-of-alice"} })
			return all
		}, []string{"forged@10"}},
		{"a claim taken away", func(t *testing.T, all []Place) []Place {
			all[8].Writer, all[9].Writer = "", "entity-2"
			return all
		}, []string{"forged@9", "forged@10"}},
		{"backdated", func(t *testing.T, all []Place) []Place {
			all[9].change(t, true, func(e *Entry) { e.Time = e.Time.Add(-time.Hour) })
			return all
		}, []string{"redated@10"}},
		{"one removed", func(t *testing.T, all []Place) []Place {
			return slices.Delete(all, 4, 5)
		}, []string{"missing@5", "start@6"}},
		{"the beginning removed", func(t *testing.T, all []Place) []Place {
			return all[3:]
		}, []string{"missing@1", "start@4"}},
		{"deleted", func(t *testing.T, all []Place) []Place {
			all[4].Line = nil
			return all
		}, []string{"deleted@5"}},
		{"two swapped", func(t *testing.T, all []Place) []Place {
			all[3].Line, all[6].Line = all[6].Line, all[3].Line
			return all
		}, []string{"misplaced@4", "misplaced@7"}},
		{"two swapped and their numbers with them", func(t *testing.T, all []Place) []Place {
			all[3].Line, all[6].Line = all[6].Line, all[3].Line
			all[3].change(t, true, func(e *Entry) { e.Seq = 4 })
			all[6].change(t, true, func(e *Entry) { e.Seq = 7 })
			for i := range all {
				all[i].Created, all[i].WriterKnown, all[i].Writer = time.Time{}, true, all[i].entry(t).Detail[DetailEntity]
			}
			return all
		}, []string{"broken@4", "broken@5", "broken@7", "broken@8"}},
		{"one of another environment", func(t *testing.T, all []Place) []Place {
			all[4].change(t, true, func(e *Entry) { e.Environment = "dev" })
			return all
		}, []string{"misplaced@5"}},
		{"spelled otherwise", func(t *testing.T, all []Place) []Place {
			all[4].Line = bytes.Replace(all[4].Line, []byte(`"key":`), []byte(`"key": `), 1)
			return all
		}, []string{"form@5"}},
		{"no entry at all", func(t *testing.T, all []Place) []Place {
			all[4].Line = []byte("hello")
			return all
		}, []string{"garbled@5"}},
		{"the first one replaced", func(t *testing.T, all []Place) []Place {
			all[0].change(t, true, func(e *Entry) { e.Prev = strings.Repeat("0", 64) })
			return all
		}, []string{"start@1", "broken@2"}},
		{"squatted far ahead", func(t *testing.T, all []Place) []Place {
			_, e := Chain{Boot: "x", Head: Head{999, strings.Repeat("0", 64)}}.Next(Event{Event: "x", Environment: "prod"}, recordStart)
			return append(all, Place{Seq: 1000, Line: e.AppendJSON(nil), Versions: 1, WriterKnown: true})
		}, []string{"missing@11", "start@1000"}},
		{"squatted far ahead, with the right hash", func(t *testing.T, all []Place) []Place {
			_, e := Chain{Boot: "x", Head: Head{999, all[9].entry(t).Hash}}.Next(Event{Event: "x", Environment: "prod"}, recordStart)
			return append(all, Place{Seq: 1000, Line: e.AppendJSON(nil), Versions: 1, WriterKnown: true})
		}, []string{"missing@11", "start@1000"}},
		{"appended by hand, on nothing", func(t *testing.T, all []Place) []Place {
			_, e := Chain{Boot: "x", Head: Head{10, strings.Repeat("0", 64)}}.Next(Event{Event: "x", Environment: "prod"}, recordStart)
			return append(all, Place{Seq: 11, Line: e.AppendJSON(nil), Versions: 1, WriterKnown: true})
		}, []string{"broken@11"}},
		{"writers that may not be read", func(t *testing.T, all []Place) []Place {
			all[4].WriterKnown = false
			return all
		}, []string{"unwitnessed@0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := judge(tt.tamper(t, places(10)))
			if got := told(r); !slices.Equal(got, tt.want) {
				t.Errorf("%v, want %v: %+v", got, tt.want, r.Problems)
			}
			for _, p := range r.Problems {
				if p.Seq > 0 && !strings.Contains(p.Text, fmt.Sprint(p.Seq)) {
					t.Errorf("%q does not name entry %d", p.Text, p.Seq)
				}
				if strings.Contains(p.Text, "openai") || p.Line != 0 {
					t.Errorf("%+v", p)
				}
			}
		})
	}
}

// Whoever appends steps over what is no entry; the record goes on whole after it.
func TestTheChainGoesOnOverGarbage(t *testing.T) {
	all := places(2)
	head := all[1].entry(t).Head()
	head.Seq = 4 // two places of garbage
	_, e := Chain{Boot: "boot-0", Head: head}.Next(Event{Event: "x", Environment: "prod"}, recordStart)
	all = append(all,
		Place{Seq: 3, Line: []byte("{}"), Versions: 1, WriterKnown: true}, Place{Seq: 4, Line: []byte{}, Versions: 1, WriterKnown: true},
		Place{Seq: 5, Line: e.AppendJSON(nil), Versions: 1, WriterKnown: true})
	r := judge(all, e.Head())
	if got := told(r); !slices.Equal(got, []string{"garbled@3", "garbled@4"}) || r.Entries != 3 || len(r.Chains) != 1 || r.Chains[0].Head != e.Head() {
		t.Errorf("%+v", r)
	}
	// At the very beginning.
	_, e = Chain{Boot: "b", Head: Head{1, Genesis("b")}}.Next(Event{Event: "x", Environment: "prod"}, recordStart)
	r = judge([]Place{{Seq: 1, Line: []byte("x"), Versions: 1, WriterKnown: true}, {Seq: 2, Line: e.AppendJSON(nil), Versions: 1, WriterKnown: true}})
	if got := told(r); !slices.Equal(got, []string{"garbled@1"}) {
		t.Errorf("%+v", r)
	}
}

// After an edit that is named, what follows is judged by both hashes that it may have, and no other.
func TestAnEditHidesNoOther(t *testing.T) {
	all := places(10)
	all[4].change(t, false, func(e *Entry) { e.Key = "anthropic" })
	all[5].change(t, true, func(e *Entry) { e.Prev = strings.Repeat("1", 64) })
	if got := told(judge(all)); !slices.Equal(got, []string{"edited@5", "broken@6", "broken@7"}) {
		t.Errorf("%v", got)
	}
}

func TestAnchorsShowWhatARecordCannot(t *testing.T) {
	all := places(10)
	anchor := all[7].entry(t).Head()
	r := judge(all[:7], anchor)
	if got := told(r); !slices.Equal(got, []string{"anchor@8"}) || !strings.Contains(r.Problems[0].Text, "cut off") || !strings.Contains(r.Problems[0].Text, "ends with entry 7") {
		t.Errorf("truncated: %+v", r.Problems)
	}
	if r := judge(nil, anchor); r.OK() {
		t.Error("an empty record has the anchor")
	}
	other := places(10)
	other[7].change(t, true, func(e *Entry) { e.Key = "anthropic" })
	r = judge(other[:8], anchor)
	if got := told(r); !slices.Equal(got, []string{"anchor@8"}) || !strings.Contains(r.Problems[0].Text, "rewritten") {
		t.Errorf("rewritten: %+v", r.Problems)
	}
	// Truncated, and a squatter further on: still cut off.
	_, e := Chain{Boot: "x", Head: Head{999, strings.Repeat("0", 64)}}.Next(Event{Event: "x", Environment: "prod"}, recordStart)
	r = judge(append(slices.Clone(all[:7]), Place{Seq: 1000, Line: e.AppendJSON(nil), Versions: 1, WriterKnown: true}), anchor)
	if got := told(r); !slices.Equal(got, []string{"missing@8", "start@1000", "anchor@8"}) || r.Chains[0].Head.Seq != 7 {
		t.Errorf("%v", got)
	}
}

func TestStrayNamesAreTold(t *testing.T) {
	r := NewRecord("prod")
	r.Stray("notes/\x1b[2J")
	got := r.Report()
	if len(got.Problems) != 1 || got.Problems[0].Kind != Misplaced || strings.Contains(got.Problems[0].Text, "\x1b") || !strings.Contains(got.Problems[0].Text, "notes/") {
		t.Errorf("%+v", got)
	}
}

func TestAReportOfARecordIsBounded(t *testing.T) {
	r := NewRecord("prod")
	for n := range uint64(5000) {
		r.Place(Place{Seq: n + 1, Line: []byte("x"), Versions: 1, WriterKnown: true})
	}
	got := r.Report()
	if len(got.Problems) != maxProblems || got.More != 4000 {
		t.Errorf("%d problems and %d more", len(got.Problems), got.More)
	}
}

func FuzzRecord(f *testing.F) {
	for _, p := range places(3) {
		f.Add(p.Line, p.Seq)
	}
	f.Add([]byte("{}"), uint64(9))
	f.Fuzz(func(t *testing.T, line []byte, seq uint64) {
		seq %= 1 << 40
		r := NewRecord("prod")
		r.Place(Place{Seq: seq + 1, Line: line, Versions: 1, WriterKnown: true})
		report := r.Report()
		e, err := ParseAt(line, "prod", seq+1)
		if err == nil && (e.Seq != seq+1 || e.Environment != "prod" || e.Sum() != e.Hash || !bytes.Equal(bytes.TrimSuffix(line, []byte("\n")), e.AppendJSON(nil))) {
			t.Errorf("accepted %q as %d", line, seq+1)
		}
		if err != nil && report.OK() {
			t.Errorf("%q: %v, and the report says nothing", line, err)
		}
	})
}
