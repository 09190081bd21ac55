package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/postern-proxy/postern/agent"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/secret"
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

// manager opens the store as the caller.
func (c *common) manager() (*keys.Manager, func(), error) {
	secret.Harden()
	cfg, err := c.load()
	if err != nil {
		return nil, nil, err
	}
	st, closer, err := agent.OpenStore(cfg, agent.StoreOptions{Operator: true, Version: version})
	if err != nil {
		return nil, nil, err
	}
	return &keys.Manager{Store: st, Scope: keys.Scope{Environment: cfg.Environment, ProxyID: cfg.ProxyID}}, closer, nil
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
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			value, err := readKey(cmd, args[0], file)
			if err != nil {
				return err
			}
			defer value.Destroy()
			m, done, err := c.manager()
			if err != nil {
				return err
			}
			defer done()
			added, err := m.Add(cmd.Context(), args[0], value, meta)
			if err != nil {
				return err
			}
			return c.print(cmd, added, func(w io.Writer) {
				verb := "stored version"
				if added.New {
					verb = "created with version"
				}
				fmt.Fprintf(w, "%s: %s %d in %s, %s\n", added.Name, verb, added.Version, m.Scope.Environment, m.Scope.ProxyID)
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
		b, err = term.ReadPassword(int(stdin.Fd()))
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
		return nil, fmt.Errorf("the key of %s: %w", name, err)
	}
	return secret.New(b[:end])
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
			m, done, err := c.manager()
			if err != nil {
				return err
			}
			defer done()
			infos, err := m.List(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(cmd, infos, func(w io.Writer) {
				if len(infos) == 0 {
					fmt.Fprintf(w, "no keys in %s, %s; `postern keys add NAME` stores one\n", m.Scope.Environment, m.Scope.ProxyID)
					return
				}
				rows := [][]string{{"NAME", "PROVIDER", "VERSION", "AGE", "LABEL"}}
				for _, i := range infos {
					v := i.Current()
					rows = append(rows, []string{i.Name, orDash(i.Provider), strconv.Itoa(v.Number), age(v.Created), orDash(i.Label)})
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
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, done, err := c.manager()
			if err != nil {
				return err
			}
			defer done()
			i, err := m.Show(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.print(cmd, i, func(w io.Writer) {
				fmt.Fprintf(w, "%s  provider %s, label %s\n", i.ID, orDash(i.Provider), orDash(i.Label))
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
