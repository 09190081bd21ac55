package vault

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/agent/store/storetest"
)

// deletable adds what the suite needs of people.
type deletable struct {
	*Store
	v *vaulttest.Vault
}

func (d deletable) SoftDelete(_ context.Context, path string) error {
	d.v.KVDelete("secret/" + d.cfg.Prefix + "/" + path)
	return nil
}

func TestStoreConforms(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	v.Policy("postern", `
		path "secret/data/+/*" { capabilities = ["create", "read", "update", "patch", "delete"] }
		path "secret/metadata/*" { capabilities = ["create", "read", "update", "delete", "list"] }
		path "secret/destroy/*" { capabilities = ["update"] }`)
	token := v.Token(vaulttest.TokenOptions{Policies: []string{"postern"}})
	var n atomic.Int32
	storetest.Run(t, func(t *testing.T) store.Store {
		cfg := withToken(t, v.Address, token)
		cfg.Prefix = fmt.Sprintf("team/test-%d", n.Add(1))
		return deletable{open(t, cfg, quick()), v}
	})
}
