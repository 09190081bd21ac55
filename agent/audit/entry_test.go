package audit

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"
)

var epoch = time.Date(2026, 1, 2, 15, 4, 5, 123456789, time.FixedZone("", 3600))

// lines makes n entries of one boot, each line with its newline.
func lines(boot string, n int) ([]string, []Entry) {
	c := Chain{Boot: boot}
	var out []string
	var entries []Entry
	for i := range n {
		var e Entry
		c, e = c.Next(Event{Event: "key.loaded", Key: "openai", Version: i + 1, Outcome: "ok"}, epoch.Add(time.Duration(i)*time.Second))
		out = append(out, string(e.AppendJSON(nil))+"\n")
		entries = append(entries, e)
	}
	return out, entries
}

func TestEntrySpelling(t *testing.T) {
	c, e := Chain{Boot: "b0"}.Next(Event{
		Event: "version.promoted", Actor: "entity-1", Source: "127.0.0.1:1", Environment: "prod", ProxyID: "px_a",
		Key: "openai", Version: 7, Outcome: "ok", Reason: "a \"b\" \\ \n\x00\u0085\u2028\u202e<&>é",
		Detail: map[string]string{"z": "1", "a": "2"},
	}, epoch)
	// Computed outside this program, from the description in the package comment.
	const goldenHash = "c708ce79dc67037667f255e0d18383d0bc472e2ffacdb5524997d27c4a4ef696"
	want := `{"v":1,"seq":1,"time":"2026-01-02T14:04:05.123456Z","boot":"b0","event":"version.promoted",` +
		`"actor":"entity-1","source":"127.0.0.1:1","environment":"prod","proxy_id":"px_a","key":"openai","version":7,` +
		`"outcome":"ok","reason":"a \"b\" \\ \u000a\u0000\u0085\u2028\u202e<&>é","detail":{"a":"2","z":"1"},` +
		`"prev":"postern/audit/v1:b0","hash":"` + e.Hash + `"}`
	if got := string(e.AppendJSON(nil)); got != want {
		t.Errorf("line\n got %s\nwant %s", got, want)
	}
	if e.Hash != goldenHash {
		t.Errorf("hash %s: the format changed, and with it every chain that was ever written", e.Hash)
	}
	if c.Head != e.Head() || c.Head.Seq != 1 {
		t.Errorf("chain stands at %v", c.Head)
	}
	back, err := ParseEntry([]byte(want + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	if back.Sum() != e.Hash || back.Reason != e.Reason || !maps.Equal(back.Detail, e.Detail) || !back.Time.Equal(e.Time) {
		t.Errorf("read back as %+v", back)
	}
	if b, err := json.Marshal(e); err != nil || !json.Valid(b) {
		t.Errorf("json.Marshal: %s %v", b, err)
	}
	_, second := c.Next(Event{Event: "x"}, epoch)
	if second.Prev != e.Hash || second.Seq != 2 {
		t.Errorf("second entry does not follow: %+v", second)
	}
}

func TestEventIsCutToFit(t *testing.T) {
	detail := make(map[string]string)
	for i := range 40 {
		detail[strings.Repeat("n", 80)+string(rune('A'+i))] = strings.Repeat("é", 600)
	}
	detail["a"] = strings.Repeat("\x01", 5000)
	_, e := Chain{Boot: "b"}.Next(Event{
		Event: strings.Repeat("e", 600), Reason: strings.Repeat("r", 3000) + "\xff", Detail: detail,
	}, epoch)
	if len(e.Event.Event) != maxString || !strings.HasSuffix(e.Event.Event, "…") || len(e.Reason) != maxReason {
		t.Errorf("event of %d bytes, reason of %d", len(e.Event.Event), len(e.Reason))
	}
	if len(e.Detail) > maxDetail || len(detail) != 41 {
		t.Errorf("%d details kept, the caller's map has %d", len(e.Detail), len(detail))
	}
	line := e.AppendJSON(nil)
	if len(line) > maxLine/8 {
		t.Errorf("a line of %d bytes", len(line))
	}
	if _, err := ParseEntry(line); err != nil {
		t.Error(err)
	}
	_, e = Chain{Boot: "b"}.Next(Event{Event: "x", Actor: "a\xffb"}, epoch)
	if e.Actor != "a\uFFFDb" {
		t.Errorf("actor %q", e.Actor)
	}
}

func TestParseEntryWantsTheOneSpelling(t *testing.T) {
	ls, _ := lines("b", 1)
	good := strings.TrimSuffix(ls[0], "\n")
	if _, err := ParseEntry([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"a space":        strings.Replace(good, `"seq":1`, `"seq": 1`, 1),
		"name's case":    strings.Replace(good, `"outcome"`, `"Outcome"`, 1),
		"repeated name":  strings.Replace(good, `"outcome":"ok"`, `"outcome":"failed","outcome":"ok"`, 1),
		"unknown name":   strings.Replace(good, `"outcome":"ok"`, `"outcome":"ok","x":1`, 1),
		"other escape":   strings.Replace(good, `openai`, `\u006fpenai`, 1),
		"empty member":   strings.Replace(good, `"outcome":"ok"`, `"outcome":"ok","reason":""`, 1),
		"shorter time":   strings.Replace(good, `.123456Z`, `.12345Z`, 1),
		"other zone":     strings.Replace(good, `.123456Z`, `.123456+00:00`, 1),
		"number as text": strings.Replace(good, `"seq":1`, `"seq":"1"`, 1),
		"seq 0":          strings.Replace(good, `"seq":1`, `"seq":0`, 1),
		"other format":   strings.Replace(good, `"v":1`, `"v":2`, 1),
		"invalid UTF-8":  strings.Replace(good, `openai`, "open\xffai", 1),
		"trailing text":  good + "x",
		"carriage":       good + "\r",
		"torn":           good[:len(good)-1],
		"empty":          "",
		"array":          "[" + good + "]",
	} {
		if _, err := ParseEntry([]byte(bad)); err == nil {
			t.Errorf("%s: accepted %s", name, bad)
		}
	}
}

func TestHead(t *testing.T) {
	h := Head{Seq: 42, Hash: strings.Repeat("0a", 32)}
	if got, err := ParseHead(" " + strings.ToUpper(h.String()) + "\n"); err != nil || got != h {
		t.Errorf("%v %v", got, err)
	}
	for _, bad := range []string{"", "42", "42:", ":" + h.Hash, "0:" + h.Hash, "-1:" + h.Hash, "42:" + h.Hash[1:], "42:" + h.Hash + "00", "42:" + strings.Repeat("zz", 32)} {
		if _, err := ParseHead(bad); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
}

func FuzzParseEntry(f *testing.F) {
	ls, _ := lines("b", 2)
	f.Add([]byte(ls[1]))
	f.Add([]byte(`{"v":1,"seq":1,"time":"2026-01-02T14:04:05.123456Z","boot":"b","event":"x","detail":{"a":"\u2028"},"prev":"p","hash":"h"}`))
	f.Add([]byte(`{"v":1,"seq":18446744073709551615}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseEntry(b)
		if err != nil {
			return
		}
		line := strings.TrimSuffix(string(b), "\n")
		if got := string(e.AppendJSON(nil)); got != line {
			t.Fatalf("%q is written as %q", line, got)
		}
		again := e
		again.Hash = "other"
		if e.Sum() != again.Sum() {
			t.Fatal("the hash covers itself")
		}
	})
}
