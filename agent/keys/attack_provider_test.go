package keys

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/issuer"
	"github.com/postern-proxy/postern/agent/rotation"
)

// clerk is a maker that knows whose each credential is.
type clerk struct{ *maker }

func (c clerk) Check(_ context.Context, id string, o issuer.Owner) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if label, alive := c.alive[id]; alive && !o.Label(label) {
		return fmt.Errorf("%s is somebody else's: %w", id, issuer.ErrForeign)
	}
	return nil
}

// The server's admin credential ends nobody else's: an id in a record is the
// word of whoever may write the record.
func TestServerEndsOnlyItsOwnAtTheProvider(t *testing.T) {
	const theirs = `"provider_id":"cred-theirs"`
	for name, forge := range map[string]func(g *stage, p *process) error{
		"retired": func(g *stage, _ *process) error {
			g.forge(map[string]string{"phase": "done", "closed": "true", "versions": `[{"number":1,"created":"2020-01-01T00:00:00Z","state":"retired",` + theirs + `}]`})
			return nil
		},
		"compromised": func(g *stage, p *process) error {
			g.forge(map[string]string{"phase": "done", "closed": "true", "versions": fmt.Sprintf(`[{%s,"state":"unknown",`+theirs+`}]`, strings.Trim(g.id(1), "{}"))})
			_, err := p.Revoke(t.Context(), "openai", RevokeOptions{Versions: []int{1}})
			return err
		},
		"the old one of a rotation": func(g *stage, _ *process) error {
			g.forge(map[string]string{
				"phase": "revoke", "from": g.id(1), "to": g.id(2), "validated": "true", "started_at": noon.Add(-time.Hour).Format(time.RFC3339),
				"versions": fmt.Sprintf(`[{%s,"state":"unknown",`+theirs+`}]`, strings.Trim(g.id(1), "{}")),
			})
			return nil
		},
		"what is in use": func(g *stage, p *process) error {
			g.forge(map[string]string{"phase": "done", "closed": "true", "versions": fmt.Sprintf(`[{%s,"state":"unknown",`+theirs+`}]`, strings.Trim(g.id(2), "{}"))})
			_, err := p.Rotate(t.Context(), "openai", nil, RotateOptions{Managed: true})
			return err
		},
	} {
		for _, label := range []string{"postern prod px_other openai 1", "postern prod px_acme openai-2 1", "postern prod px_acme openaix 1", "somebody's laptop", ""} {
			t.Run(name+", "+label, func(t *testing.T) {
				g := newHeapStage(t)
				g.add(1)
				g.add(2)
				m := newMaker(g)
				m.alive["cred-theirs"] = label
				server := g.server("server", m)
				server.Issuer = func(string) issuer.Issuer { return clerk{m} }
				if err := forge(g, server); err != nil {
					t.Fatal(err)
				}
				for range 30 {
					if _, err := server.Advance(t.Context(), "openai"); err != nil {
						t.Fatal(err)
					}
					g.pass(time.Hour)
				}
				if !slices.Contains(m.living(), "cred-theirs") {
					t.Errorf("%q was ended: %q", label, m.calls)
				}
				for _, c := range m.calls {
					if strings.HasPrefix(c, "create") && strings.HasSuffix(c, "cred-theirs") {
						t.Errorf("it was told to replace what is not this key's: %q", c)
					}
				}
				if r, err := server.Status(t.Context(), "openai"); err != nil || !r.Closed {
					t.Errorf("it holds up the rotation for ever: %+v, %v", r, err)
				}
			})
		}
	}
}

// Its own it does end, under whatever number the record has it.
func TestServerEndsItsOwnAtTheProvider(t *testing.T) {
	g := newHeapStage(t)
	g.add(1)
	m := newMaker(g)
	server := g.server("server", m)
	server.Issuer = func(string) issuer.Issuer { return clerk{m} }
	for range 3 {
		if _, err := server.Rotate(t.Context(), "openai", nil, RotateOptions{Managed: true}); err != nil {
			t.Fatal(err)
		}
		if rot := g.finish(server); rot.Phase != rotation.PhaseDone {
			t.Fatalf("%+v", rot)
		}
	}
	if got := m.living(); !slices.Equal(got, []string{"cred-102"}) {
		t.Errorf("%v; %q", got, m.calls)
	}
}
