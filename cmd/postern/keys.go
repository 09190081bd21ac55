package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/postern-proxy/postern/agent"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/config"
)

func newKeys(c *common) *cobra.Command {
	cmd := &cobra.Command{
		Use: "keys", Short: "Manage provider keys in the store",
		Long: `Manage provider keys in the store that the configuration names. On HashiCorp Vault
the caller's own token is used (VAULT_TOKEN, else the token helper or ~/.vault-token),
so Vault's policies decide who may do what. A key's value is never printed.`,
	}
	cmd.AddCommand(newKeysAdd(c), newKeysList(c), newKeysShow(c))
	return cmd
}

// keyStore is the store of a configuration, opened as the caller.
type keyStore struct {
	*keys.Manager
	cfg   *config.Config
	close func()
}

func (c *common) keys() (*keyStore, error) {
	secret.Harden()
	cfg, err := c.load()
	if err != nil {
		return nil, err
	}
	st, closer, err := agent.OpenStore(cfg, agent.StoreOptions{Operator: true, Version: version})
	if err != nil {
		return nil, err
	}
	m := &keys.Manager{Store: st, Scope: keys.Scope{Environment: cfg.Environment, ProxyID: cfg.ProxyID}}
	return &keyStore{Manager: m, cfg: cfg, close: closer}, nil
}

// place says where the keys are kept.
func (s *keyStore) place() string {
	if v := s.cfg.Store.Vault; v != nil {
		return v.Address + ", " + v.Mount + "/" + v.Prefix
	}
	return s.cfg.Store.Sealed.File
}

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

// oneName wants the name of a key and nothing more. It repeats no argument.
func oneName(_ *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return errors.New("wants the NAME of a key, as in openai")
	case len(args) > 1 || agent.Masked(args[0]) != args[0]:
		return errors.New(`takes the NAME of a key only, as in openai. The key itself is asked for, or read from standard input or a
file: an argument can be seen by other users and stays in the shell's history. If that was a key, replace it at its provider`)
	}
	return keys.CheckName(args[0])
}

func newKeysAdd(c *common) *cobra.Command {
	var meta keys.Meta
	var file string
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Store a key's next version, creating the key",
		Long: `Store the next version of a provider key, creating the key if there is none. The
value is read from standard input (on a terminal it is asked for, without echo) or
from --file; it is never taken from an argument, where other users could see it.

  postern keys add openai
  postern keys add openai < key.txt`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.keys()
			if err != nil {
				return err
			}
			defer s.close()
			value, err := readKey(cmd, args[0], file)
			if err != nil {
				return err
			}
			defer value.Destroy()
			added, err := s.Add(cmd.Context(), args[0], value, meta)
			if err != nil {
				return err
			}
			if len(s.users(added.Name)) == 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "postern: note: no provider of the configuration (%s) uses a key named %s\n", s.cfg.Source, added.Name)
			}
			return c.print(cmd, added, func(w io.Writer) {
				verb := "stored version"
				if added.New {
					verb = "created with version"
				}
				fmt.Fprintf(w, "%s: %s %d in %s, %s (%s)\n", added.Name, verb, added.Version, s.Scope.Environment, s.Scope.ProxyID, s.place())
			})
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "read the key from this file instead of standard input")
	cmd.Flags().StringVar(&meta.Provider, "provider", "", "catalog entry the key is for (default: NAME)")
	cmd.Flags().StringVar(&meta.Label, "label", "", "label (default: <environment>-NAME)")
	cmd.Flags().StringVar(&meta.Service, "service", "", "service the key is for")
	c.outputFlag(cmd)
	return cmd
}

// maxKeyInput bounds what is read as a key, line ends included.
const maxKeyInput = 64 << 10

// readKey reads a key's bytes into the arena; every buffer on the way is wiped.
func readKey(cmd *cobra.Command, name, file string) (*secret.Value, error) {
	var b []byte
	var err error
	stdin, isFile := cmd.InOrStdin().(*os.File)
	switch {
	case file != "":
		b, err = readWiped(file)
	case isFile && term.IsTerminal(int(stdin.Fd())):
		fmt.Fprintf(cmd.ErrOrStderr(), "Key for %s (not shown): ", name)
		b, err = readHidden(cmd.Context(), int(stdin.Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
	default:
		b, err = readBounded(cmd.InOrStdin())
	}
	if err != nil {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	defer secret.Wipe(b)
	end := len(b)
	for end > 0 && (b[end-1] == '\n' || b[end-1] == '\r') {
		end--
	}
	if end == 0 {
		return nil, errors.New("no key was given; pipe it in (postern keys add " + name + " < key.txt) or type it at the prompt")
	}
	if err := secret.CheckKey(b[:end]); err != nil {
		return nil, fmt.Errorf("%s %w", name, err) // which begins with "key: "
	}
	return secret.New(b[:end])
}

// readHidden reads a line from a terminal without echo. Ctrl-C ends it, with
// the terminal as it was.
func readHidden(ctx context.Context, fd int) ([]byte, error) {
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	type answer struct {
		b   []byte
		err error
	}
	got := make(chan answer, 1)
	go func() {
		b, err := term.ReadPassword(fd)
		got <- answer{b, err}
	}()
	select {
	case a := <-got:
		return a.b, a.err
	case <-ctx.Done():
		term.Restore(fd, before)
		return nil, errors.New("interrupted; nothing was stored")
	}
}

func readWiped(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readBounded(f)
}

func readBounded(r io.Reader) ([]byte, error) {
	b := make([]byte, maxKeyInput)
	n, err := io.ReadFull(r, b)
	if err == nil {
		secret.Wipe(b)
		return nil, fmt.Errorf("more than %d bytes: that is no key", maxKeyInput)
	}
	if err != io.EOF && err != io.ErrUnexpectedEOF {
		secret.Wipe(b)
		return nil, err
	}
	return b[:n], nil
}

func newKeysList(c *common) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the keys of this environment and proxy id",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.keys()
			if err != nil {
				return err
			}
			defer s.close()
			infos, err := s.List(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(cmd, infos, func(w io.Writer) {
				if len(infos) == 0 {
					fmt.Fprintf(w, "no keys in %s, %s; `postern keys add NAME` stores one\n", s.Scope.Environment, s.Scope.ProxyID)
					return
				}
				rows := [][]string{{"NAME", "PROVIDER", "VERSION", "AGE", "LABEL"}}
				for _, i := range infos {
					v := i.Current()
					rows = append(rows, []string{i.Name, orDash(i.Provider), number(v.Number), age(v.Created), orDash(i.Label)})
				}
				table(w, rows)
			})
		},
	}
	c.outputFlag(cmd)
	return cmd
}

func newKeysShow(c *common) *cobra.Command {
	cmd := &cobra.Command{
		Use: "show NAME", Short: "Show a key's versions, never its value",
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.keys()
			if err != nil {
				return err
			}
			defer s.close()
			i, err := s.Show(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.print(cmd, i, func(w io.Writer) {
				fmt.Fprintf(w, "%s: provider %s, label %s\n", i.ID, orDash(i.Provider), orDash(i.Label))
				fmt.Fprintf(w, "used by: %s\n\n", orDash(strings.Join(s.users(i.Name), ", ")))
				rows := [][]string{{"VERSION", "STATE", "AGE", "WRITTEN BY"}}
				for _, v := range i.Versions {
					rows = append(rows, []string{strconv.Itoa(v.Number), v.State, age(v.Created), orDash(v.CreatedBy)})
				}
				table(w, rows)
			})
		},
	}
	c.outputFlag(cmd)
	return cmd
}
