package vault

import (
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/store"
)

// FuzzAnswers feeds whatever to everything that reads an answer: nothing may
// panic, and what is accepted has the shape that callers rely on.
func FuzzAnswers(f *testing.F) {
	for _, seed := range []string{
		`{"data":{"data":{"api_key":"a","n":1},"metadata":{"version":1,"created_time":"2026-01-02T03:04:05.6Z","deletion_time":"","destroyed":false}}}`,
		`{"data":{"data":null,"metadata":{"version":1,"destroyed":true}}}`,
		`{"data":{"current_version":2,"max_versions":0,"custom_metadata":{"a":"b"},"versions":{"2":{"created_by":{"entity_id":"e"}},"10":{},"x":{}}}}`,
		`{"auth":{"client_token":"t","lease_duration":60,"renewable":true,"entity_id":"e","policies":["p"]},"lease_id":"a/b","lease_duration":5}`,
		`{"data":{"ttl":60,"creation_ttl":60,"display_name":"d","type":"kv","options":{"version":"2"},"keys":["a"]}}`,
		`{"errors":["a","b"]}`, `{"errors":[1]}`, `{"errors":null}`, `{"data":[]}`, `{"data":{"versions":[]}}`, `{"lease_id":1}`, `{"lease_id":"x","lease_duration":-1}`,
	} {
		f.Add([]byte(seed))
	}
	s, err := New(Config{Address: "http://127.0.0.1:1", Auth: Auth{Token: &TokenAuth{File: "x"}}}, quick())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, parse := range []func(*reply) (*store.Secret, error){s.parseKV, s.parseAny} {
			if got, err := parse(&reply{body: body}); err == nil {
				if got.Version.Number < 0 || got.Lease != nil && (got.Lease.ID == "" || got.Lease.Duration < 0) {
					t.Errorf("accepted %+v", got)
				}
				got.Destroy()
			}
		}
		missingVersion(body)
		vaultErrors(body, func(b []byte) []byte { return redact(b, body, "a token of this test") })
		e, err := parseEnvelope(body)
		if err != nil {
			return
		}
		if m, err := parseMetadata(e.data, time.Now()); err == nil {
			for i, v := range m.Versions {
				if i > 0 && v.Number < m.Versions[i-1].Number {
					t.Errorf("versions out of order: %+v", m.Versions)
				}
			}
		}
		if sess, err := parseAuth(e.auth, time.Now()); err == nil && sess.ttl < 0 {
			t.Errorf("ttl %v", sess.ttl)
		}
		_ = parseLookup(e.data, &session{})
		_ = s.judgeMount(e.data)
	})
}

func TestDeletedVersionsInMetadata(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	body := []byte(`{"data":{"current_version":4,"versions":{
		"4":{"created_time":"2026-01-01T11:00:00Z","deletion_time":"2026-01-01T13:00:00Z","destroyed":false},
		"2":{"created_time":"2026-01-01T09:00:00+01:00","deletion_time":"2026-01-01T10:00:00Z","destroyed":true},
		"3":{"created_time":"2026-01-01T10:00:00Z","deletion_time":"2026-01-01T11:00:00Z","destroyed":false}}}}`)
	e, err := parseEnvelope(body)
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseMetadata(e.data, now)
	if err != nil || len(m.Versions) != 3 {
		t.Fatalf("%+v, %v", m, err)
	}
	two, three, four := m.Versions[0], m.Versions[1], m.Versions[2]
	if two.Number != 2 || !two.Destroyed || !two.Deleted.IsZero() || two.Created.Hour() != 8 {
		t.Errorf("destroyed: %+v", two)
	}
	if three.Number != 3 || three.Readable() || three.Deleted.IsZero() {
		t.Errorf("deleted: %+v", three)
	}
	if four.Number != 4 || !four.Readable() {
		t.Errorf("to be deleted in an hour: %+v", four)
	}
}
