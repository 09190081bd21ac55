package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func verify(t *testing.T, log string, anchors ...Head) Report {
	t.Helper()
	r, err := Verify(strings.NewReader(log), anchors...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func kinds(r Report) []string {
	var out []string
	for _, p := range r.Problems {
		out = append(out, fmt.Sprintf("%s@%d/%d", p.Kind, p.Line, p.Seq))
	}
	return out
}

func TestVerifyAnUntouchedChain(t *testing.T) {
	ls, es := lines("b", 5)
	log := strings.Join(ls, "")
	r := verify(t, log, es[4].Head(), es[0].Head(), es[2].Head())
	if !r.OK() || r.Entries != 5 || r.Lines != 5 || len(r.Chains) != 1 {
		t.Fatalf("%+v", r)
	}
	c := r.Chains[0]
	if c.Head != es[4].Head() || c.First != es[0].Head() || c.FirstLine != 1 || c.LastLine != 5 || c.Entries != 5 ||
		!slices.Equal(c.Boots, []string{"b"}) || !c.Since.Equal(es[0].Time) || !c.Until.Equal(es[4].Time) || c.LastEvent != "key.loaded" {
		t.Errorf("%+v", c)
	}
	if r := verify(t, strings.TrimSuffix(log, "\n")); !r.OK() || r.Entries != 5 {
		t.Errorf("without the last newline: %+v", r)
	}
	if r := verify(t, ""); !r.OK() || r.Entries != 0 {
		t.Errorf("empty: %+v", r)
	}
	if r := verify(t, "", es[0].Head()); r.OK() {
		t.Error("an emptied log satisfies an anchor")
	}
}

// rehash gives an entry a hash that fits its content, as one who knows the format can.
func rehash(e Entry) string {
	e.Hash = e.Sum()
	return string(e.AppendJSON(nil)) + "\n"
}

// rewrite makes entries from i on anew, so that the whole chain fits again.
func rewrite(es []Entry, i int, change func(*Entry)) string {
	out := slices.Clone(es)
	change(&out[i])
	var b strings.Builder
	for k := range out {
		if k > i {
			out[k].Prev = out[k-1].Hash
		}
		if k >= i {
			out[k].Hash = out[k].Sum()
		}
		b.Write(append(out[k].AppendJSON(nil), '\n'))
	}
	return b.String()
}

func TestVerifyFindsTampering(t *testing.T) {
	ls, es := lines("b", 6)
	head := es[5].Head()
	join := func(l ...string) string { return strings.Join(l, "") }
	edited := strings.Replace(ls[2], `"outcome":"ok"`, `"outcome":"no"`, 1)
	fitted := es[2]
	fitted.Outcome = "no"
	other, _ := lines("other", 6)
	for _, c := range []struct {
		name    string
		log     string
		anchors []Head
		want    []string
	}{
		{"an edit", join(ls[0], ls[1], edited, ls[3], ls[4], ls[5]), nil, []string{"edited@3/3"}},
		{"an edit with a fitting hash", join(ls[0], ls[1], rehash(fitted), ls[3], ls[4], ls[5]), nil, []string{"broken@4/4"}},
		{"an edit of the last with a fitting hash", rewrite(es, 5, func(e *Entry) { e.Actor = "x" }), []Head{head}, []string{"anchor@0/6"}},
		{"everything rewritten from the third", rewrite(es, 2, func(e *Entry) { e.Actor = "x" }), nil, nil},
		{"the same, against an anchor", rewrite(es, 2, func(e *Entry) { e.Actor = "x" }), []Head{head}, []string{"anchor@0/6"}},
		{"a deletion", join(ls[0], ls[1], ls[3], ls[4], ls[5]), nil, []string{"missing@3/3"}},
		{"a deletion of two", join(ls[0], ls[3], ls[4], ls[5]), nil, []string{"missing@2/2"}},
		{"the first deleted", join(ls[1:]...), nil, []string{"start@1/2"}},
		{"the end cut off", join(ls[:4]...), nil, nil},
		{"the end cut off, against an anchor", join(ls[:4]...), []Head{head}, []string{"anchor@0/6"}},
		{"two swapped", join(ls[0], ls[2], ls[1], ls[3], ls[4], ls[5]), nil, []string{"out-of-order@3/2"}},
		{"the first two swapped", join(ls[1], ls[0], ls[2], ls[3], ls[4], ls[5]), nil, []string{"start@1/2", "out-of-order@2/1"}},
		{"the last two swapped", join(ls[0], ls[1], ls[2], ls[3], ls[5], ls[4]), nil, []string{"out-of-order@6/5"}},
		{"one repeated at once", join(ls[0], ls[1], ls[1], ls[2]), nil, []string{"duplicate@3/2"}},
		{"one repeated later", join(ls[0], ls[1], ls[2], ls[3], ls[1]), nil, []string{"duplicate@5/2"}},
		{"the whole repeated", join(append(ls[:2:2], ls[:2]...)...), nil, []string{"duplicate@3/1", "duplicate@4/2"}},
		{"a number used twice", join(ls[0], ls[1], rehash(fitted), ls[2]), nil, []string{"duplicate@4/3"}},
		{"a number skipped with a fitting prev", join(ls[0], rehash(Entry{Seq: 3, Time: epoch, Boot: "b", Prev: es[0].Hash})), nil, []string{"broken@2/3"}},
		{"a middle entry spoilt", join(ls[0], "{"+ls[1], ls[2]), nil, []string{"garbled@2/0", "missing@3/2"}},
		{"an entry made to look foreign", join(ls[0], "hello\n", ls[2]), nil, []string{"missing@3/2"}},
		{"a spelling changed", join(ls[0], strings.Replace(ls[1], `:"b"`, `: "b"`, 1), ls[2]), nil, []string{"form@2/2"}},
		{"a chain of a boot begun again", join(ls[0], ls[1], rehash(Entry{Seq: 1, Time: epoch, Boot: "b", Prev: Genesis("b")})), nil, []string{"duplicate@3/1"}},
		{"an entry of another chain put in", join(ls[0], other[3], ls[1]), nil, []string{"start@2/4"}},
		{"genesis claimed by a later number", join(rehash(Entry{Seq: 3, Time: epoch, Boot: "b", Prev: Genesis("b")})), nil, []string{"start@1/3"}},
		{"rotated away, explained by an anchor", join(ls[3:]...), []Head{es[2].Head()}, nil},
		{"rotated away, an anchor in what is left", join(ls[3:]...), []Head{es[4].Head()}, []string{"start@1/4"}},
		{"an anchor never reached", join(ls...), []Head{{Seq: 9, Hash: head.Hash}}, []string{"anchor@0/9"}},
	} {
		if got := kinds(verify(t, c.log, c.anchors...)); !slices.Equal(got, c.want) {
			t.Errorf("%s: found %v, want %v", c.name, got, c.want)
		}
	}
}

// Whatever single thing happens to a log, an anchor at its end finds it.
func TestVerifyFindsEverySmallChange(t *testing.T) {
	ls, es := lines("b", 4)
	log := strings.Join(ls, "")
	head := es[3].Head()
	for i := range len(log) - 1 { // the last newline may go
		for _, x := range []byte{0x01, 0x20, 0x80} {
			b := []byte(log)
			b[i] ^= x
			if r := verify(t, string(b), head); r.OK() {
				t.Fatalf("byte %d changed by %#x passes: %q", i, x, b)
			}
		}
		if r := verify(t, log[:i]+log[i+1:], head); r.OK() {
			t.Fatalf("byte %d deleted passes", i)
		}
		if r := verify(t, log[:i], head); r.OK() {
			t.Fatalf("cut at byte %d passes", i)
		}
		if i > 0 && log[i-1] != '\n' && log[i] != '\n' { // between lines a blank one is harmless
			if r := verify(t, log[:i]+"\n"+log[i:], head); r.OK() {
				t.Fatalf("a newline before byte %d passes", i)
			}
		}
	}
	for i := range ls {
		for j := range ls {
			if moved := slices.Delete(slices.Clone(ls), i, i+1); i != j {
				moved = slices.Insert(moved, j, ls[i])
				if r := verify(t, strings.Join(moved, ""), head); r.OK() {
					t.Fatalf("line %d moved to %d passes", i, j)
				}
			}
		}
	}
}

func TestVerifySeparatesChainsOfACapture(t *testing.T) {
	a, ea := lines("a", 3)
	b, eb := lines("b", 2)
	log := "starting\n" + a[0] + b[0] + `{"level":"info","seq":3}` + "\n" + a[1] + "\n" + b[1] + a[2] + "no newline"
	r := verify(t, log, ea[2].Head(), eb[1].Head())
	if !r.OK() || r.Entries != 5 || r.Foreign != 4 || r.Torn != 0 || len(r.Chains) != 2 {
		t.Fatalf("%+v", r)
	}
	if r.Chains[0].Head != ea[2].Head() || r.Chains[1].Head != eb[1].Head() {
		t.Errorf("heads %+v", r.Chains)
	}
	r = verify(t, a[0]+b[1]+a[1], eb[0].Head())
	if !r.OK() || r.Chains[1].First != eb[1].Head() {
		t.Errorf("a beginning that an anchor stands for: %+v", r)
	}
	if got := kinds(verify(t, a[0]+b[0]+a[2]+b[1])); !slices.Equal(got, []string{"missing@3/2"}) {
		t.Errorf("a deletion in one of two: %v", got)
	}
	prefixed := "2026-01-02T15:04:05Z stdout F " + a[0]
	if got := kinds(verify(t, prefixed)); !slices.Equal(got, []string{"garbled@1/0"}) {
		t.Errorf("a collector's prefix: %v", got)
	}
	reordered := `{"boot":"a","event":"key.loaded","key":"openai","outcome":"ok","version":1,"v":1,"seq":1,"time":"2026-01-02T14:04:05.123456Z","prev":"` +
		ea[0].Prev + `","hash":"` + ea[0].Hash + "\"}\n"
	if got := kinds(verify(t, reordered+a[1])); !slices.Equal(got, []string{"form@1/1"}) {
		t.Errorf("a collector's spelling: %v", got)
	}
}

func TestVerifyThroughBootsOfAFile(t *testing.T) {
	c := Chain{Boot: "first"}
	var ls []string
	for i := range 6 {
		if i == 3 {
			c.Boot = "second"
		}
		var e Entry
		c, e = c.Next(Event{Event: "x"}, epoch)
		ls = append(ls, string(e.AppendJSON(nil))+"\n")
	}
	r := verify(t, strings.Join(ls, ""), c.Head)
	if !r.OK() || len(r.Chains) != 1 || !slices.Equal(r.Chains[0].Boots, []string{"first", "second"}) {
		t.Errorf("%+v", r)
	}
	ls[2] = ""
	if got := kinds(verify(t, strings.Join(ls, ""))); !slices.Equal(got, []string{"start@3/4"}) {
		t.Errorf("the first boot's last entry deleted: %v", got)
	}
}

func TestVerifyAcceptsOnlyTheTornLineThatWasFound(t *testing.T) {
	ls, es := lines("b", 3)
	torn := ls[2][:100]
	sum := sha256.Sum256([]byte(torn))
	explain := func(c Chain, event, size string) (Chain, string) {
		c, e := c.Next(Event{Event: event, Detail: map[string]string{
			"torn_bytes": size, "torn_sha256": hex.EncodeToString(sum[:]),
		}}, epoch)
		return c, string(e.AppendJSON(nil)) + "\n"
	}
	size := strconv.Itoa(len(torn))
	second := Chain{Boot: "b2", Head: es[1].Head()}
	c, resumed := explain(second, EventResumed, size)
	_, wrongEvent := explain(second, "key.loaded", size)
	_, wrongSize := explain(second, EventResumed, "1")
	_, after := c.Next(Event{Event: "x"}, epoch)
	next := string(after.AppendJSON(nil)) + "\n"
	if r := verify(t, ls[0]+ls[1]+torn+"\n"+resumed+next, after.Head()); !r.OK() || r.Torn != 1 || r.Foreign != 0 || r.Entries != 4 {
		t.Errorf("%+v", r)
	}
	for name, log := range map[string]string{
		"other bytes":      ls[0] + ls[1] + torn[:99] + "x\n" + resumed + next,
		"fewer bytes":      ls[0] + ls[1] + torn[:99] + "\n" + resumed + next,
		"a further line":   ls[0] + ls[1] + torn + "\n" + torn + "\n" + resumed + next,
		"elsewhere":        ls[0] + torn + "\n" + ls[1] + resumed + next,
		"after it":         ls[0] + ls[1] + resumed + torn + "\n" + next,
		"and an edit":      ls[0] + strings.Replace(ls[1], `"ok"`, `"no"`, 1) + torn + "\n" + resumed + next,
		"and a deletion":   ls[0] + torn + "\n" + resumed + next,
		"with nothing":     ls[0] + ls[1] + torn + "\n" + next,
		"at the very end":  ls[0] + ls[1] + torn,
		"explained by any": ls[0] + ls[1] + torn + "\n" + ls[2],
		"another event":    ls[0] + ls[1] + torn + "\n" + wrongEvent,
		"another size":     ls[0] + ls[1] + torn + "\n" + wrongSize,
	} {
		if r := verify(t, log); r.OK() {
			t.Errorf("%s: passes: %+v", name, r)
		}
	}
	// A chain whose very first write was torn.
	_, resumed = explain(Chain{Boot: "b2"}, EventResumed, size)
	if r := verify(t, torn+"\n"+resumed); !r.OK() || r.Torn != 1 || r.Entries != 1 {
		t.Errorf("%+v", r)
	}
}

func TestVerifyIsBounded(t *testing.T) {
	ls, _ := lines("b", 2)
	long := lineStart + strings.Repeat("x", 3*maxLine) + "\n"
	r := verify(t, ls[0]+long+strings.Repeat("y", 3*maxLine)+"\n"+ls[1])
	if got := kinds(r); !slices.Equal(got, []string{"garbled@2/0"}) || r.Foreign != 1 || r.Lines != 4 {
		t.Errorf("%v %+v", got, r)
	}
	r = verify(t, strings.Repeat(lineStart+"\n", 5*maxProblems)+ls[0])
	if len(r.Problems) != maxProblems || r.More == 0 {
		t.Errorf("%d problems and %d more", len(r.Problems), r.More)
	}
	exact := strings.Repeat("z", maxLine)
	if n := 0; eachLine(strings.NewReader(exact+"\n"+exact+"z\n"+exact), func(_ int, l []byte, long bool) bool {
		if n++; long != (n == 2) || !long && len(l) != maxLine {
			t.Errorf("line %d: %d bytes, long %v", n, len(l), long)
		}
		return true
	}) != nil || n != 3 {
		t.Errorf("%d lines", n)
	}
}

func TestVerifySaysWhenItCouldNotRead(t *testing.T) {
	ls, _ := lines("b", 2)
	_, err := Verify(io.MultiReader(strings.NewReader(ls[0]), iotest.ErrReader(errors.New("disk on fire"))))
	if err == nil || !strings.Contains(err.Error(), "disk on fire") {
		t.Errorf("%v", err)
	}
}

func TestShow(t *testing.T) {
	ls, es := lines("b", 5)
	var other Entry
	_, other = Chain{Boot: "c"}.Next(Event{Event: "key.exposed", Key: "azure", Actor: "ops"}, epoch)
	log := "noise\n" + strings.Join(ls, "") + string(other.AppendJSON(nil)) + "\n"
	count := func(f Filter) (n int) {
		for _, err := range Show(strings.NewReader(log), f) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n
	}
	for name, c := range map[string]struct {
		f    Filter
		want int
	}{
		"all":              {Filter{}, 6},
		"since":            {Filter{Since: es[3].Time}, 2},
		"until":            {Filter{Until: es[3].Time, Key: "openai"}, 3},
		"key":              {Filter{Key: "azure"}, 1},
		"actor":            {Filter{Actor: "ops"}, 1},
		"event":            {Filter{Event: "key.exposed"}, 1},
		"all must hold":    {Filter{Key: "openai", Actor: "ops"}, 0},
		"since, after all": {Filter{Since: epoch.Add(time.Hour)}, 0},
	} {
		if got := count(c.f); got != c.want {
			t.Errorf("%s: %d entries, want %d", name, got, c.want)
		}
	}
	for range Show(strings.NewReader(log), Filter{}) {
		break
	}
	for _, err := range Show(iotest.ErrReader(io.ErrUnexpectedEOF), Filter{}) {
		if err != io.ErrUnexpectedEOF {
			t.Errorf("read error %v", err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	ls, _ := lines("b", 1000)
	log := strings.Join(ls, "")
	b.SetBytes(int64(len(log)))
	b.ReportAllocs()
	for b.Loop() {
		if r, err := Verify(strings.NewReader(log)); err != nil || !r.OK() {
			b.Fatal(err)
		}
	}
}

// FuzzVerify changes a good log at one place, as it likes. With the anchor of
// its end, a log passes only if it still holds exactly the same entries.
func FuzzVerify(f *testing.F) {
	ls, es := lines("b", 4)
	good := strings.Join(ls, "")
	head := es[3].Head()
	_, resumed := Chain{Boot: "b", Head: es[1].Head()}.Next(Event{Event: EventResumed, Detail: map[string]string{"torn_bytes": "0"}}, epoch)
	f.Add(0, 0, []byte(nil))
	f.Add(10, 5, []byte("x"))
	f.Add(len(ls[0]), len(ls[1]), []byte(nil))
	f.Add(len(ls[0]), 0, []byte(ls[0]))
	f.Add(len(ls[0]), 0, append(resumed.AppendJSON([]byte("\n")), '\n'))
	f.Add(len(good), 0, []byte(`{"seq":1,"prev":`))
	f.Add(0, len(good), []byte(strings.Join(ls, "\n")))
	f.Fuzz(func(t *testing.T, at, cut int, put []byte) {
		at = min(max(at, 0), len(good))
		cut = min(max(cut, 0), len(good)-at)
		log := good[:at] + string(put) + good[at+cut:]
		r := verify(t, log, head)
		if r.Entries > r.Lines || r.Foreign+r.Torn+r.Entries > r.Lines {
			t.Fatalf("counts: %+v", r)
		}
		i := 0 // how many of the good entries are still there, in order
		for l := range strings.Lines(log) {
			if l = strings.TrimSuffix(l, "\n") + "\n"; i < len(ls) && l == ls[i] {
				i++
			}
		}
		if r.OK() && i < len(ls) {
			t.Fatalf("passes although seq %d was changed:\n%s", i+1, log)
		}
	})
}
