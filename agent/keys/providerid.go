package keys

import (
	"context"
	"errors"
	"fmt"
	"regexp"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

// providerIDShape is what vendors call a credential, and nothing that could be one.
var providerIDShape = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$`)

// CheckProviderID says whether a provider can call a credential so. "" is none.
func CheckProviderID(id string) error {
	if id != "" && !providerIDShape.MatchString(id) {
		return errors.New("provider id: write what the provider's console shows beside the key, as in apikey_01Rj2N8S: letters, digits and . _ : / -, at most 128")
	}
	return nil
}

// noteProviderID writes into the record what the provider calls a version that
// was added, so that the server can end it there. Nothing of a rotation changes.
func (m *Manager) noteProviderID(ctx context.Context, name string, id rotation.ID, providerID string) error {
	if providerID == "" {
		return nil
	}
	for range maxSteps {
		e, err := m.readRecord(ctx, name)
		if err != nil {
			return err
		}
		e.Version(id).ProviderID = providerID
		if err := m.writeRecord(ctx, name, e); !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("%s: the rotation record changes all the time: %w", m.Scope.record(name), store.ErrConflict)
}
