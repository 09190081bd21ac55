package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/postern-proxy/postern/agent"
	"github.com/postern-proxy/postern/config"
)

func newAgent(c *common) *cobra.Command {
	return &cobra.Command{
		Use:   "agent",
		Short: "Run the sidecar",
		Long: `Run the sidecar until SIGTERM or SIGINT. SIGHUP, or a change of the configuration
file, brings a new configuration into force without dropping a request; one that
is not valid changes nothing and says why in the log.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := c.load()
			if err != nil {
				return err
			}
			return runAgent(cmd.Context(), c, cfg)
		},
	}
}

// collectAt is how much garbage, in percent of what lives, is let gather: less
// than Go's 100, because a request makes next to none and memory is the pod's.
const collectAt = 50

func runAgent(ctx context.Context, c *common, cfg *config.Config) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectAt)
	}
	a, err := agent.New(agent.Options{Config: cfg, Load: c.load, Version: version})
	if err != nil {
		return err
	}
	if err := a.Start(ctx); err != nil {
		return err
	}
	defer a.Stop()
	// The audit record may go to a pipe: whoever stops reading it must not end the agent.
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	defer signal.Stop(pipe)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	watched := make(chan struct{}, 1)
	if file := cfg.File(); file != "" {
		go agent.WatchFile(ctx, file, func() {
			select {
			case watched <- struct{}{}:
			default:
			}
		})
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-a.Failed():
			return err
		case <-hup:
		case <-watched:
		}
		a.ReloadSoon() // what went wrong stands in the log and the metrics; the old configuration serves on
	}
}
