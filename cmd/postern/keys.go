package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/time/rate"

	"github.com/postern-proxy/postern/agent"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/config"
)

func newKeys(c *common) *cobra.Command {
	cmd := &cobra.Command{
		Use: "keys", Short: "Manage provider keys in the store",
		Long: `Manage provider keys in the store that the configuration names. On HashiCorp Vault
the caller's own token is used (VAULT_TOKEN, else the token helper or ~/.vault-token),
so Vault's policies decide who may do what. A key's value is never printed.

Everything that is done is recorded in the store itself: postern audit show.`,
	}
	cmd.AddCommand(newKeysAdd(c), newKeysList(c), newKeysShow(c), newKeysRotate(c), newKeysResume(c),
		newKeysValidate(c), newKeysRevoke(c), newKeysSchedule(c))
	return cmd
}

// keyStore is the store of a configuration, opened as the caller.
type keyStore struct {
	*keys.Manager
	cfg   *config.Config
	close func()
}

// keys opens the store that the flags select.
func (c *common) keys(ctx context.Context) (*keyStore, error) {
	cfg, st, closer, err := c.openStore()
	if err != nil {
		return nil, err
	}
	m, err := agent.NewManager(ctx, cfg, agent.ManagerOptions{Store: st})
	if err != nil {
		closer()
		return nil, err
	}
	return &keyStore{Manager: m, cfg: cfg, close: closer}, nil
}

// in is the same store's keys of another scope, recorded where that scope's operations are.
func (s *keyStore) in(scope keys.Scope) *keyStore {
	m := *s.Manager
	if scope.Environment != m.Scope.Environment {
		m.Audit = keys.NewTrail(m.Store, scope.Environment, agent.Boot())
	}
	m.Scope = scope
	return &keyStore{Manager: &m, cfg: s.cfg, close: s.close}
}

// place says where the keys are kept.
func (s *keyStore) place() string { return place(s.cfg) }

func place(cfg *config.Config) string {
	if v := cfg.Store.Vault; v != nil {
		return v.Address + ", " + v.Mount + "/" + v.Prefix
	}
	return cfg.Store.Sealed.File
}

// scope says whose keys they are.
func (s *keyStore) scope() string { return s.Scope.Environment + ", " + s.Scope.ProxyID }

// users are the names of the providers that carry a key.
func (s *keyStore) users(key string) []string {
	var names []string
	for _, p := range s.cfg.Providers {
		if p.VaultPath == "" && p.Key == key {
			names = append(names, p.Name)
		}
	}
	return names
}

// catchUp takes the steps of a key that are overdue, as any later command does,
// and says on standard error what it did. Where the caller's rights end it is
// silent: `keys show` tells what stands open.
func (s *keyStore) catchUp(cmd *cobra.Command, name string) (keys.Info, error) {
	i, err := s.Show(cmd.Context(), name)
	if err != nil {
		return i, err
	}
	return s.catchUpFrom(cmd, i), nil
}

// catchUpFrom is catchUp after a look at the key, and returns a newer one if there was something to do.
func (s *keyStore) catchUpFrom(cmd *cobra.Command, i keys.Info) keys.Info {
	if len(i.Overdue) == 0 {
		return i
	}
	r, err := s.Advance(cmd.Context(), i.Name)
	warn(cmd, r.Warnings)
	after, failed := s.Show(cmd.Context(), i.Name)
	if err != nil || failed != nil {
		return i
	}
	if before := i.Rotation; before != nil && (r.Phase != before.Phase || r.Closed) {
		note(cmd, "the rotation of %s was overdue and went on: %s", i.Name, summary(r))
	} else {
		for _, was := range i.Overdue {
			if !slices.Contains(after.Overdue, was) {
				note(cmd, "%s: this was overdue and is done: %s", i.Name, was)
			}
		}
	}
	return after
}

// oneName wants the name of a key and nothing more. It repeats no argument.
func oneName(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return errors.New("wants the NAME of a key, as in openai")
	}
	if len(args) > 1 {
		return errNameOnly
	}
	return aName(args[0])
}

// atMostOneName is oneName where a flag may stand in its place.
func atMostOneName(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return oneName(cmd, args)
}

// anyNames wants names of keys, and as many as there are.
func anyNames(_ *cobra.Command, args []string) error {
	for _, a := range args {
		if err := aName(a); err != nil {
			return err
		}
	}
	return nil
}

var errNameOnly = errors.New(`takes the NAME of a key only, as in openai. The key itself is asked for, or read from standard input or a
file: an argument can be seen by other users and stays in the shell's history. If that was a key, replace it at its provider`)

func aName(arg string) error {
	if agent.Masked(arg) != arg {
		return errNameOnly
	}
	return keys.CheckName(arg)
}

// notAKey refuses what has a key's form in a flag that is stored or shown in clear.
func notAKey(flags map[string]string) error {
	for _, flag := range slices.Sorted(maps.Keys(flags)) {
		if text := flags[flag]; agent.Masked(text) != text {
			return usageError{errors.New(flag + ": there is something with a key's form in it, and this is written down in clear. If that was a key, replace it at its provider")}
		}
	}
	return nil
}

// aReason refuses a reason that is missing, where one is wanted, or that holds a key: it is recorded.
func aReason(reason string, wanted bool) error {
	switch {
	case wanted && reason == "":
		return usageError{errors.New(`--reason "…": say why; it is recorded`)}
	case agent.Masked(reason) != reason:
		return usageError{errors.New("--reason: there is something with a key's form in it, and reasons are recorded; say it without. If that was a key, replace it at its provider")}
	}
	return nil
}

func note(cmd *cobra.Command, format string, args ...any) {
	fmt.Fprintln(cmd.ErrOrStderr(), "postern: note:", shown(fmt.Sprintf(format, args...)))
}

func warn(cmd *cobra.Command, warnings []string) { warnTo(cmd.ErrOrStderr(), warnings) }

func warnTo(w io.Writer, warnings []string) {
	for _, text := range warnings {
		fmt.Fprintln(w, "postern: warning:", shown(text))
	}
}

// perSecond is how many requests a command may send to Vault. A record of
// operations is an entry a request, and a long one is to be verified in seconds.
const perSecond = 2000

// openStore opens the store that the flags select, as the caller.
func (c *common) openStore() (*config.Config, store.Store, func(), error) {
	secret.Harden()
	cfg, err := c.load()
	if err != nil {
		return nil, nil, nil, err
	}
	st, closer, err := agent.OpenStore(cfg, agent.StoreOptions{Operator: true, Version: version, Limiter: rate.NewLimiter(perSecond, perSecond)})
	if err != nil {
		return nil, nil, nil, err
	}
	return cfg, st, closer, nil
}
