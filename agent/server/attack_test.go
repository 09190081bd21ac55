package server

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-proxy/postern/agent/store"
)

// trap is a store in which a look at one key's record goes wrong in a way that nobody thought of.
type trap struct{ store.Store }

func (s trap) Get(ctx context.Context, path string, n int) (*store.Secret, error) {
	if strings.HasPrefix(path, "rotations/") && strings.HasSuffix(path, "/trap") {
		panic("sk-secret-0000000000000000000")
	}
	return s.Store.Get(ctx, path, n)
}

// What one key's record makes the server stumble over, whoever wrote it, ends
// neither the server nor the rotations of others.
func TestOneKeyCannotEndTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		h.add("px_a", "trap", "openai", time.Hour)
		h.add("px_a", "openai", "openai", time.Hour)
		h.run(trap{h.store})
		elapse(3 * time.Hour)
		if n := h.current("px_a", "openai"); n < 3 {
			t.Errorf("after three hours the other key has version %d", n)
		}
		if h.lines("a mistake in the server") == 0 || h.lines("sk-secret") > 0 {
			t.Errorf("the log says %s", h.log)
		}
	})
}
