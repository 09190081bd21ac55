package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-proxy/postern/agent/roles"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/config"
)

// whoami is who the store takes us for, and what it lets us do.
type whoami struct {
	Store       string         `json:"store"` // where it is
	Kind        string         `json:"kind"`  // vault or sealed
	Name        string         `json:"name,omitempty"`
	EntityID    string         `json:"entity_id,omitempty"`
	Policies    []string       `json:"policies,omitempty"`
	Expires     time.Time      `json:"expires,omitzero"`
	Environment string         `json:"environment"`
	ProxyID     string         `json:"proxy_id"`
	Key         string         `json:"key,omitempty"` // "": any
	Verbs       []roles.Answer `json:"verbs,omitempty"`
	Note        string         `json:"note,omitempty"`
}

func newWhoami(c *common) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "whoami [NAME]",
		Short: "Show who the store takes you for, and what you may do",
		Long: `Show who the store takes you for, and what you may do with the keys of this
environment and proxy id, or with the key NAME. Vault is asked (sys/capabilities-self);
nothing is tried. What is missing is what a policy would have to grant:
` + "`postern policy`" + ` prints whole ones.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return oneName(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, st, closer, err := c.openStore()
			if err != nil {
				return err
			}
			defer closer()
			if err := cfg.ValidateScope(); err != nil {
				return err
			}
			w := whoami{Store: place(cfg), Environment: cfg.Environment, ProxyID: cfg.ProxyID}
			if len(args) > 0 {
				w.Key = args[0]
			}
			if err := w.ask(cmd.Context(), cfg, st); err != nil {
				return err
			}
			return c.print(cmd, w, w.print)
		},
	}
	c.outputFlag(cmd)
	return cmd
}

func (w *whoami) ask(ctx context.Context, cfg *config.Config, st store.Store) error {
	if id, ok := st.(store.Identifier); ok {
		who, err := id.Identity(ctx)
		if err != nil {
			return err
		}
		w.Name, w.EntityID, w.Policies, w.Expires = who.DisplayName, who.EntityID, who.Policies, who.Expires
	}
	capable, ok := st.(store.Capable)
	if !ok {
		w.Kind, w.Note = "sealed", sealedNote(cfg)
		return nil
	}
	w.Kind = "vault"
	p := roles.Place{
		Mount: cfg.Store.Vault.Mount, Prefix: cfg.Store.Vault.Prefix,
		Environment: cfg.Environment, ProxyID: cfg.ProxyID, Key: w.Key, Entity: w.EntityID,
	}
	given, err := capable.Capabilities(ctx, roles.Ask(p)...)
	if errors.Is(err, store.ErrForbidden) {
		return fmt.Errorf("the token may not even ask what it may do: %w", err)
	}
	if err != nil {
		return err
	}
	w.Verbs = roles.Judge(p, given)
	if w.EntityID == "" {
		w.Note = "The token has no entity: an agent with it acknowledges no rotation, and entries of the record are not tied to who wrote them."
	}
	return nil
}

// sealedNote says who may do what with a sealed file.
func sealedNote(cfg *config.Config) string {
	if s := cfg.Store.Sealed; s.PassphraseEnv != "" {
		return "Whoever knows the passphrase in $" + s.PassphraseEnv + " and can read the file may do everything. A sealed file knows no roles."
	}
	return "Whoever can read the key file " + cfg.Store.Sealed.KeyFile + " may do everything. A sealed file knows no roles."
}

func (w *whoami) print(out io.Writer) {
	fmt.Fprintf(out, "store: %s\n", w.Store)
	fmt.Fprintf(out, "you: %s", orDash(w.Name))
	if w.EntityID != "" {
		fmt.Fprintf(out, ", entity %s", w.EntityID)
	}
	fmt.Fprintln(out)
	if len(w.Policies) > 0 {
		fmt.Fprintf(out, "policies: %s\n", strings.Join(w.Policies, ", "))
	}
	if !w.Expires.IsZero() {
		fmt.Fprintf(out, "until: %s\n", w.Expires.UTC().Format(time.RFC3339))
	}
	if len(w.Verbs) > 0 {
		which := "any key"
		if w.Key != "" {
			which = "the key " + w.Key
		}
		fmt.Fprintf(out, "\nwith %s of %s, %s:\n\n", which, w.Environment, w.ProxyID)
		rows := [][]string{{"VERB", "MAY", "MISSING"}}
		for _, a := range w.Verbs {
			rows = append(rows, missingRows(a)...)
		}
		table(out, rows)
	}
	if w.Note != "" {
		fmt.Fprintf(out, "\n%s\n", w.Note)
	}
}

// missingRows are a verb's lines: of one that is out of reach what it cannot do
// without, of one that is partly possible all that is missing.
func missingRows(a roles.Answer) [][]string {
	rows := [][]string{{string(a.Verb), a.May, "-"}}
	for i, n := range a.Missing {
		text := strings.Join(n.Capabilities, ", ") + " on " + n.Path
		switch {
		case i == 0:
			rows[0][2] = text
		case a.May == "partly":
			rows = append(rows, []string{"", "", text})
		default:
			rows[0][2] += ", and more"
			return rows
		}
	}
	return rows
}
