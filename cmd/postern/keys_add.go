package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/postern-proxy/postern/agent/keys"
)

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
  postern keys add openai < key.txt

To replace a key that is in use, and to end the old one afterwards, rotate it.`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := notAKey(map[string]string{"--provider": meta.Provider, "--label": meta.Label, "--service": meta.Service, "--provider-id": meta.ProviderID}); err != nil {
				return err
			}
			s, err := c.keys(cmd.Context())
			if err != nil {
				return err
			}
			defer s.close()
			s.catchUp(cmd, args[0])
			value, err := forKey(args[0], "postern keys add "+args[0], file).read(cmd)
			if err != nil {
				return err
			}
			defer value.Destroy()
			added, err := s.Add(cmd.Context(), args[0], value, meta)
			if err != nil {
				return err
			}
			warn(cmd, added.Warnings)
			if len(s.users(added.Name)) == 0 {
				note(cmd, "no provider of the configuration (%s) uses a key named %s", s.cfg.Source, added.Name)
			}
			return c.print(cmd, added, func(w io.Writer) {
				verb := "stored version"
				if added.New {
					verb = "created with version"
				}
				fmt.Fprintf(w, "%s: %s %d in %s (%s)\n", added.Name, verb, added.Version, s.scope(), s.place())
			})
		},
	}
	keyFileFlag(cmd, &file)
	cmd.Flags().StringVar(&meta.Provider, "provider", "", "catalog entry the key is for (default: NAME)")
	cmd.Flags().StringVar(&meta.Label, "label", "", "label (default: <environment>-NAME)")
	providerIDFlag(cmd, &meta.ProviderID)
	cmd.Flags().StringVar(&meta.Service, "service", "", "service the key is for")
	c.outputFlag(cmd)
	return cmd
}
