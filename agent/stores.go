package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/hashicorp/vault/api/cliconfig"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/agent/store/sealed"
	"github.com/postern-proxy/postern/agent/store/vault"
	"github.com/postern-proxy/postern/agent/sync"
	"github.com/postern-proxy/postern/config"
)

// StoreOptions say as whom a store is opened.
type StoreOptions struct {
	// Operator: with the caller's own Vault token instead of store.vault.auth,
	// and a sealed file is created by the first write.
	Operator   bool
	Getenv     func(string) string // os.Getenv by default
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Version    string
	// Limiter bounds the requests to Vault; nil: the one that every Store of the process shares.
	Limiter *rate.Limiter
}

func (a *Agent) openStore(c *config.Config) (*openStore, error) {
	st, closer, err := OpenStore(c, StoreOptions{Getenv: a.o.Getenv, Logger: a.log, Registerer: a.registry, Version: a.o.Version})
	if err != nil {
		return nil, err
	}
	acks := sync.NewAcks(sync.AcksOptions{
		Store: st, Environment: c.Environment, ProxyID: c.ProxyID, Local: c.Store.Sealed != nil, Logger: a.log, Metrics: a.metrics.sync,
	})
	return &openStore{Store: st, cfg: c.Store, acks: acks, close: closer}, nil
}

// OpenStore opens the store that a configuration names. The returned function closes it.
func OpenStore(c *config.Config, o StoreOptions) (store.Store, func(), error) {
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Store.Sealed != nil {
		return openSealed(c.Store.Sealed, o)
	}
	return openVault(c.Store.Vault, o)
}

func openSealed(c *config.Sealed, o StoreOptions) (store.Store, func(), error) {
	so := sealed.Options{File: c.File, KeyFile: c.KeyFile, Create: true}
	if c.PassphraseEnv != "" {
		b := []byte(o.Getenv(c.PassphraseEnv))
		if len(b) == 0 {
			return nil, nil, fmt.Errorf("store.sealed.passphrase_env: the variable %s is not set", c.PassphraseEnv)
		}
		var err error
		if so.Passphrase, err = secret.New(b); err != nil {
			return nil, nil, err
		}
		defer so.Passphrase.Destroy() // the store has its own
	}
	st, err := sealed.Open(so)
	if err != nil {
		return nil, nil, err
	}
	return st, func() { st.Close() }, nil
}

func openVault(c *config.Vault, o StoreOptions) (store.Store, func(), error) {
	vc := vault.Config{Address: c.Address, Namespace: c.Namespace, CAFile: c.CAFile, Mount: c.Mount, Prefix: c.Prefix}
	if o.Operator {
		token, err := callersToken(o.Getenv)
		if err != nil {
			return nil, nil, err
		}
		vc.Token = token
	} else {
		vc.Auth = vaultAuth(c.Auth)
	}
	st, err := vault.New(vc, vault.Options{Logger: o.Logger, Registerer: o.Registerer, UserAgent: "postern/" + o.Version, Limiter: o.Limiter})
	if err != nil {
		return nil, nil, err
	}
	if !o.Operator {
		st.Start(context.Background()) // until Close
	}
	return st, func() { st.Close() }, nil
}

// vaultAuth says the same in the store's words.
func vaultAuth(a config.Auth) vault.Auth {
	return vault.Auth{
		Kubernetes: (*vault.KubernetesAuth)(a.Kubernetes), AppRole: (*vault.AppRoleAuth)(a.AppRole),
		JWT: (*vault.JWTAuth)(a.JWT), Cert: (*vault.CertAuth)(a.Cert), Token: (*vault.TokenAuth)(a.Token),
	}
}

// callersToken is VAULT_TOKEN, else what the token helper (or ~/.vault-token) holds.
func callersToken(getenv func(string) string) (*secret.Value, error) {
	raw := getenv("VAULT_TOKEN")
	if raw == "" {
		helper, err := cliconfig.DefaultTokenHelper()
		if err == nil {
			raw, err = helper.Get()
		}
		if err != nil {
			return nil, fmt.Errorf("reading the Vault token: %w", err)
		}
	}
	if raw == "" {
		return nil, errors.New("no Vault token: run `vault login`, or set VAULT_TOKEN")
	}
	return secret.New([]byte(raw))
}
