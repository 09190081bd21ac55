package provider

import (
	"bytes"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/provider/spec"
	"github.com/postern-proxy/postern/agent/secret"
)

// appended is what the append forms make, in a buffer that has Room for it.
func appended(t *testing.T, p *Provider, query string, f map[string]*secret.Value) (head, target string, err error) {
	t.Helper()
	const before = "before"
	buf := append(make([]byte, 0, len(before)+len(query)+1+p.Room(f)), before...)
	whole := buf[:cap(buf)]
	if query != "" {
		buf = append(append(buf, '?'), query...)
	}
	out, err := p.AppendQuery(buf, query != "", f)
	if err != nil {
		return "", "", err
	}
	target = string(out[len(before):])
	out, err = p.AppendHeaders(out, f)
	if err != nil {
		return "", "", err
	}
	if &out[0] != &whole[0] {
		t.Errorf("Room was not enough: %d bytes in a room of %d", len(out), len(whole))
	}
	return string(out[len(before)+len(target):]), target, nil
}

// The append forms send what Attach sends.
func TestAppendIsAttach(t *testing.T) {
	for _, row := range []struct {
		attach spec.Attach
		also   []spec.Attach
		secret []string
	}{
		{spec.Attach{Header: "authorization", Format: "Bearer {api_key}"}, nil, []string{"api_key", key}},
		{spec.Attach{Header: "X-Token", Format: "{id}:{api_key}!"}, nil, []string{"api_key", key, "id", "i"}},
		{spec.Attach{Basic: &spec.Basic{Username: "{user}", Password: "{api_key}"}}, nil, []string{"api_key", key, "user", "u"}},
		{spec.Attach{Basic: &spec.Basic{Username: "u", Password: "{api_key}"}}, nil, []string{"api_key", strings.Repeat("x", 3000)}},
		{spec.Attach{Query: "key"}, nil, []string{"api_key", key + "+/=&?#;%"}},
		{spec.Attach{Query: "a[]", Format: "x {api_key}"}, nil, []string{"api_key", key}},
		{spec.Attach{Header: "A"}, []spec.Attach{{Header: "B", Format: "team {team}"}, {Header: "C", Format: "{org}"}, {Query: "d", Format: "{team}"}},
			[]string{"api_key", key, "team", "t 1"}},
	} {
		for _, query := range []string{"", "a=b", "a=b&c"} {
			p, f := house(t, row.attach, row.also...), fields(t, row.secret...)
			h, u := http.Header{}, &url.URL{RawQuery: query}
			if err := p.Attach(h, u, f); err != nil {
				t.Fatal(err)
			}
			head, target, err := appended(t, p, query, f)
			if err != nil || target != strings.TrimSuffix("?"+u.RawQuery, "?") {
				t.Errorf("%+v: target %q, want %q; %v", row.attach, target, u.RawQuery, err)
			}
			var lines bytes.Buffer
			h.Write(&lines)
			if got, want := strings.Count(head, "\r\n"), len(h); got != want {
				t.Errorf("%+v: %q", row.attach, head)
			}
			for k, vs := range h {
				if !strings.Contains("\r\n"+head, "\r\n"+k+": "+vs[0]+"\r\n") || !p.Attached([]byte(strings.ReplaceAll(strings.ToUpper(k), "-", "_")), f) {
					t.Errorf("%+v: %s is not in %q", row.attach, k, head)
				}
			}
			if n := testing.AllocsPerRun(50, func() { p.Attached([]byte("Content-Type"), f); p.AttachedQuery("x", f) }); n != 0 {
				t.Errorf("%v allocations", n)
			}
		}
	}
}

func TestAppendAllocatesNothing(t *testing.T) {
	for _, a := range []spec.Attach{{Header: "X-Api-Key"}, {Basic: &spec.Basic{Username: "{api_key}"}}, {Query: "key"}} {
		p, f := house(t, a), fields(t, "api_key", key)
		buf := make([]byte, 0, p.Room(f))
		if n := testing.AllocsPerRun(50, func() {
			out, err := p.AppendQuery(buf, false, f)
			if err == nil {
				_, err = p.AppendHeaders(out, f)
			}
			if err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%+v: %v allocations", a, n)
		}
	}
}

// An error leaves nothing of a key in the buffer, and nothing appended.
func TestAppendThatFails(t *testing.T) {
	p := house(t, spec.Attach{Header: "A", Format: "{api_key}{id}"}, spec.Attach{Header: "B"})
	f := fields(t, "api_key", key)
	buf := make([]byte, 0, 512)
	out, err := p.AppendHeaders(buf, f)
	if err == nil || len(out) != 0 || bytes.Contains(buf[:cap(buf)], []byte(key)) {
		t.Errorf("%q, %v", buf[:cap(buf)], err)
	}
	f["id"], _ = secret.New([]byte("a\nb"))
	defer f["id"].Destroy()
	if out, err = p.AppendHeaders(buf, f); err == nil || len(out) != 0 || bytes.Contains(buf[:cap(buf)], []byte(key)) {
		t.Errorf("%q, %v", buf[:cap(buf)], err)
	}
}

func TestBefore(t *testing.T) {
	p := catalog(t, "openai", spec.Spec{})
	for rest, want := range map[string]string{"/v1/models": "", "/models": "/v1", "/": "/v1"} {
		if _, _, path := p.RouteURL(rest); p.Before(rest) != want || path != want+rest {
			t.Errorf("%s: %q", rest, p.Before(rest))
		}
	}
}
