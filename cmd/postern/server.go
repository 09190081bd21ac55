package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/postern-proxy/postern/agent/server"
	"github.com/postern-proxy/postern/config"
)

func newServer(c *common) *cobra.Command {
	return &cobra.Command{
		Use:   "server",
		Short: "Run the management server: the HTTP API, scheduled and managed rotations",
		Long: `Run the management server until SIGTERM or SIGINT: the HTTP API of one environment's
keys, over TLS only (GET /openapi.json describes it), and the scheduler that
carries rotations out, begins those that are due, and ends keys at their providers.

A caller of the API sends a Vault token and has that token's rights. The server's
own rights in Vault are those of ` + "`postern policy --role server`" + `. Any number of servers
may run beside each other; the certificate's files are read again when they change.

  postern server -c server.yaml
  curl -H "Authorization: Bearer $VAULT_TOKEN" https://localhost:8702/v1/provider-keys`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := c.load()
			if err != nil {
				return err
			}
			return runServer(cmd.Context(), cfg)
		},
	}
}

func runServer(ctx context.Context, cfg *config.Config) error {
	s, err := server.New(server.Options{Config: cfg, Version: version})
	if err != nil {
		return err
	}
	if err := s.Start(ctx); err != nil {
		return err
	}
	defer s.Stop()
	// The log may go to a pipe: whoever stops reading it must not end the server.
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	defer signal.Stop(pipe)
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.Failed():
		return err
	}
}
