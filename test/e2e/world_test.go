package e2e_test

import (
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// world is what one story plays in.
type world struct{ *e2etest.World }

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{e2etest.New(t)}
}

// What the stories say of it.
type (
	config     = e2etest.Config
	provider   = e2etest.Provider
	keyStore   = e2etest.Store
	vaultStore = e2etest.VaultStore
	way        = e2etest.Way
	load       = e2etest.Load
)

// stores are the two kinds, for stories that are the same on both.
var stores = map[string]func(*world) keyStore{
	"vault":  func(w *world) keyStore { return w.Vault(vaulttest.Options{}) },
	"sealed": func(w *world) keyStore { return w.Sealed() },
}

// onBothStores tells a story once for each kind of store, side by side.
func onBothStores(t *testing.T, story func(*testing.T, *world, keyStore)) {
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			story(t, w, open(w))
		})
	}
}
