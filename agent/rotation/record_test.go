package rotation

import (
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
)

func fields(kv ...string) map[string][]byte {
	m := map[string][]byte{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = []byte(kv[i+1])
	}
	return m
}

// A stored secret gives strings without quotes and everything else as JSON; a
// store that keeps strings only gives the same bytes.
func TestDecodeRecord(t *testing.T) {
	r, err := DecodeRecord(fields(
		"from", `{"number":6,"created":"2026-03-01T12:00:00.123456789Z"}`,
		"to", `{"number":7,"created":"2026-03-02T12:00:00Z"}`,
		"ramp", `[{"weight":10,"for":"1m30s"}]`,
		"grace", "10m",
		"started_at", "2026-03-02T12:00:05Z",
		"validated", "true",
		"closed", "false",
		"versions", `[{"number":6,"created":"2026-03-01T12:00:00Z","state":"draining"},{"number":5,"created":"2026-02-01T12:00:00Z","state":"compromised"}]`,
		"reason", "true", // text that looks like JSON
		"actor", "ada",
		"ticket", "4711",
	))
	if err != nil {
		t.Fatal(err)
	}
	want := &Record{
		From: ID{6, time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)}, To: ID{7, time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)},
		Ramp: Ramp{{10, 90 * time.Second}}, Grace: 10 * time.Minute, StartedAt: time.Date(2026, 3, 2, 12, 0, 5, 0, time.UTC),
		Validated: true,
		Versions: []VersionRecord{
			{ID: ID{6, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}, State: Draining}, {ID: ID{5, time.Date(2026, 2, 1, 12, 0, 0, 0, time.UTC)}, State: Compromised},
		},
		Reason: "true", Actor: "ada",
		Rest: map[string]string{"ticket": "4711"},
	}
	if !reflect.DeepEqual(r, want) {
		t.Errorf("got  %+v\nwant %+v", r, want)
	}
	again, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if string(again["grace"]) != "10m0s" || string(again["started_at"]) != "2026-03-02T12:00:05Z" || string(again["validated"]) != "true" {
		t.Errorf("encoded as %s", again)
	}
	if _, ok := again["closed"]; ok {
		t.Error("a zero member was written")
	}
	if back, err := DecodeRecord(again); err != nil || !reflect.DeepEqual(back, r) {
		t.Errorf("%v: after a round trip %+v", err, back)
	}
}

func TestDecodeRecordRefuses(t *testing.T) {
	for member, value := range map[string]string{
		"from": "six", "grace": "soon", "started_at": "yesterday", "validated": "maybe",
		"ramp":     `[{"weight":0,"for":"1m"}]`,
		"versions": `[{"number":5,"created":"2026-02-01T12:00:00Z","state":"tired"}]`,
	} {
		if _, err := DecodeRecord(fields(member, value)); err == nil || !strings.Contains(err.Error(), member) {
			t.Errorf("%s = %s: %v", member, value, err)
		}
	}
	if _, err := DecodeRecord(fields("grace", "-1m")); err == nil {
		t.Error("a negative grace was taken")
	}
	if _, err := DecodeRecord(nil); err != nil {
		t.Errorf("an empty record says nothing, but is one: %v", err)
	}
}

func TestHaltRoundTrip(t *testing.T) {
	h := &Halt{To: ID{7, epoch}, Reason: "12", Served: 100, Failed: 7, At: epoch.Add(time.Second), Rest: map[string]string{"by": "agent-3"}}
	f, err := h.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if back, err := DecodeHalt(f); err != nil || !reflect.DeepEqual(back, h) {
		t.Errorf("%v: after a round trip %+v", err, back)
	}
	if _, err := DecodeHalt(fields("reason", "because")); err == nil {
		t.Error("a halt of nothing was taken")
	}
	if _, err := DecodeHalt(fields("to", "7")); err == nil {
		t.Error("a number alone identifies no version")
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add("to", []byte(`{"number":7,"created":"2026-03-02T12:00:00Z"}`))
	f.Add("ramp", []byte(`[{"weight":10,"for":"1m30s"}]`))
	f.Add("grace", []byte("10m"))
	f.Add("versions", []byte(`[{"number":6,"state":"draining"}]`))
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		r, err := DecodeRecord(map[string][]byte{name: value})
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil {
			return // a year beyond 9999 is read by nobody
		}
		back, err := DecodeRecord(again)
		if err != nil {
			t.Fatalf("%q = %q: what was read and written cannot be read: %v", name, value, err)
		}
		if a, b := mustJSON(r), mustJSON(back); a != b {
			t.Fatalf("%q = %q: %s became %s", name, value, a, b)
		}
		DecodeHalt(map[string][]byte{name: value, "to": []byte(`{"number":7}`)})
	})
}

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func TestRampWeight(t *testing.T) {
	for _, c := range []struct {
		at   time.Duration
		want int
	}{
		{-time.Hour, 1}, {0, 1}, {30*time.Second - 1, 1}, {30 * time.Second, 10}, {90*time.Second - 1, 10},
		{90 * time.Second, 50}, {3*time.Minute - 1, 50}, {3 * time.Minute, 100}, {math.MaxInt64, 100},
	} {
		if got := threeSteps.Weight(c.at); got != c.want {
			t.Errorf("after %v: %d, want %d", c.at, got, c.want)
		}
	}
	if got := (Ramp)(nil).Weight(0); got != 100 {
		t.Errorf("an empty ramp gives %d", got)
	}
	if got := threeSteps.Length(); got != 3*time.Minute {
		t.Errorf("length %v", got)
	}
	if got := (Ramp{{1, math.MaxInt64}, {2, math.MaxInt64}}).Length(); got != math.MaxInt64 {
		t.Errorf("a very long ramp takes %v", got)
	}
}

func TestRampCheck(t *testing.T) {
	if err := threeSteps.Check(); err != nil {
		t.Error(err)
	}
	for want, r := range map[string]Ramp{
		"ramp[0].weight": {{0, time.Second}}, "ramp[1].weight": {{1, time.Second}, {101, time.Second}}, "ramp[0].for": {{1, -1}},
	} {
		if err := r.Check(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v: %v, want %s", r, err, want)
		}
	}
}

func TestIDs(t *testing.T) {
	early := ID{9, epoch}
	if !early.Equal(ID{9, epoch.In(time.FixedZone("", 3600))}) || early.Equal(ID{8, epoch}) || early.Zero() || !(ID{}).Zero() {
		t.Error("Equal, Zero")
	}
}

func TestNames(t *testing.T) {
	for s := Unknown; s <= Compromised; s++ {
		b, _ := s.MarshalText()
		var back State
		if err := back.UnmarshalText(b); err != nil || back != s || strings.ContainsRune(string(b), '(') {
			t.Errorf("%q: %v, %v", b, back, err)
		}
	}
	if State(99).String() != "state(99)" {
		t.Error(State(99))
	}
	if VerdictLive.String()+VerdictDead.String()+VerdictUnknown.String() != "livedeadunknown" {
		t.Error("verdicts")
	}
}
