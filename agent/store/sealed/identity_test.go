package sealed

import (
	"context"
	"errors"
	"os/user"
	"path/filepath"
	"testing"

	"github.com/postern-proxy/postern/agent/store"
)

func TestIdentityIsTheMachinesUser(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(Options{File: filepath.Join(dir, "s"), KeyFile: filepath.Join(dir, "k"), Create: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var known store.Identifier = s
	who, err := known.Identity(t.Context())
	if err != nil || who.DisplayName == "" || who.EntityID != "" || !who.Expires.IsZero() || len(who.Policies) != 0 {
		t.Errorf("%+v, %v", who, err)
	}
	if u, err := user.Current(); err == nil && u.Username != "" && who.DisplayName != u.Username {
		t.Errorf("%+v, and this is %s", who, u.Username)
	}
	if _, may := any(s).(store.Capable); may {
		t.Error("a sealed store has no policies to ask about")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Identity(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
