package server

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http/httptest"
	"slices"
	"strconv"
	"testing"
)

// FuzzProblem: whatever a refusal says, what is written is a problem of RFC 9457
// whose status is the answer's, and it passes through the scrubber.
func FuzzProblem(f *testing.F) {
	f.Add(uint8(0), "key", "is empty", 0)
	f.Add(uint8(3), "", "a \"quoted\" <b>\\\n\x00\u2028\xff", 30)
	f.Add(uint8(9), "field\n", "%s %d %!", -1)
	codes := slices.Sorted(maps.Keys(statuses))
	const known, mask = "sk-fake-0123456789", "******************"
	a := newAPI(apiOptions{Scrub: func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(known), []byte(mask)) }})
	f.Fuzz(func(t *testing.T, which uint8, field, detail string, after int) {
		code := codes[int(which)%len(codes)]
		p := refusal(code, "%s", detail+known)
		p.Field, p.retryAfter = field, after
		rec := httptest.NewRecorder()
		a.refuse(rec, p)
		var got struct {
			Type, Title, Detail, Code, Field string
			Status                           int
		}
		dec := json.NewDecoder(bytes.NewReader(rec.Body.Bytes()))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&got); err != nil || bytes.Count(rec.Body.Bytes(), []byte("\n")) != 1 {
			t.Fatalf("%q: %v", rec.Body, err)
		}
		plain := func(s string) string { return string([]rune(s)) } // as JSON carries it
		if got.Type != "about:blank" || got.Title == "" || got.Status != rec.Code || got.Status != statuses[code] || got.Code != code || got.Field != plain(field) || got.Detail != plain(detail)+mask {
			t.Errorf("%d %q of %q %q", rec.Code, rec.Body, field, detail)
		}
		if h := rec.Header(); h.Get("Content-Type") != problemType || (h.Get("Retry-After") == "") != (after <= 0) || after > 0 && h.Get("Retry-After") != strconv.Itoa(after) {
			t.Errorf("%v", h)
		}
	})
}
