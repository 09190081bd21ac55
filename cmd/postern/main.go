// Command postern attaches provider keys to an application's requests. Each
// command is one file: it parses its flags, calls one function and prints.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/postern-proxy/postern/config"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// usageError is a mistake in the command line.
type usageError struct{ error }

// exitError ends the process with a code and no further words.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx)
	stop()
	os.Exit(code)
}

func run(ctx context.Context) int {
	root := newRoot()
	err := root.ExecuteContext(ctx)
	var exit exitError
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit):
		return int(exit)
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, "postern:", err)
		return exitUsage
	}
	fmt.Fprintln(os.Stderr, "postern:", err)
	return exitFailed
}

// flags that every command shares.
type common struct {
	config string
	output string
}

func newRoot() *cobra.Command {
	c := &common{}
	root := &cobra.Command{
		Use:   "postern",
		Short: "Keeps provider keys out of applications: attaches them on the way out, swaps them when they are rotated",
		Long: `postern stands beside an application on localhost. The application sends its
requests without a key; postern attaches the real one on the way out, from a
secret store, and when the key is rotated the next request carries the new one.

  postern demo                       see it work, nothing needed
  postern keys add openai            store a key (asks for it)
  postern exec -- npm start          run a program with an agent in front of it`,
		SilenceUsage: true, SilenceErrors: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.PersistentFlags().StringVarP(&c.config, "config", "c", "", "configuration file, or env:NAME (default: $POSTERN_CONFIG, ./postern.yaml, built-in)")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(newAgent(c), newExec(c), newDemo(), newCheck(c), newStatus(c), newKeys(c), newAudit(c), newVersion(c))
	for _, cmd := range root.Commands() {
		strict(cmd)
	}
	return root
}

// strict makes wrong arguments usage errors, everywhere below cmd.
func strict(cmd *cobra.Command) {
	args := cmd.Args
	if args == nil {
		args = cobra.NoArgs
	}
	cmd.Args = func(c *cobra.Command, a []string) error {
		if err := args(c, a); err != nil {
			return usageError{fmt.Errorf("%w\nusage: %s", err, c.UseLine())}
		}
		return nil
	}
	if cmd.HasSubCommands() && cmd.RunE == nil {
		cmd.Args = nil
		cmd.RunE = func(c *cobra.Command, a []string) error {
			if len(a) > 0 {
				return usageError{fmt.Errorf("unknown command %q for %q", a[0], c.CommandPath())}
			}
			return c.Help()
		}
	}
	for _, sub := range cmd.Commands() {
		strict(sub)
	}
}

// load reads the configuration that the flags select.
func (c *common) load() (*config.Config, error) { return config.Load(c.config, os.Getenv) }

// outputFlag adds -o to a command.
func (c *common) outputFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&c.output, "output", "o", "text", "text or json")
	pre := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if c.output != "text" && c.output != "json" {
			return usageError{fmt.Errorf("-o %s: write text or json", c.output)}
		}
		if pre != nil {
			return pre(cmd, args)
		}
		return nil
	}
}
