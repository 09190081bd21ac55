// Command postern attaches provider keys to an application's requests. Each
// command is one file: it parses its flags, calls one function and prints.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/postern-proxy/postern/agent/secret"
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

// codedError ends the process with a code of its own.
type codedError struct {
	code int
	error
}

func (e codedError) Unwrap() error { return e.error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
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
	}
	// Whoever pastes a key into the wrong place shall not find it in a CI log as well.
	fmt.Fprintln(os.Stderr, "postern:", shown(err.Error()))
	var coded codedError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &coded):
		return coded.code
	}
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
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w\n`%s --help` lists the flags", err, c.CommandPath())}
	})
	root.AddCommand(newAgent(c), newExec(c), newDemo(), newCheck(c), newStatus(c), newServer(c), newKeys(c), newAudit(c), newPolicy(c), newWhoami(c), newVersion(c))
	strict(root)
	root.PersistentPreRun = func(cmd *cobra.Command, _ []string) {
		name, _, _ := strings.Cut(strings.TrimPrefix(cmd.CommandPath(), "postern "), " ")
		if slices.Contains(takeKeys, name) {
			secret.OverwriteFreed()
		}
	}
	return root
}

// takeKeys are the commands that take keys into memory for longer than a moment.
var takeKeys = []string{"agent", "exec", "demo", "server", "keys"}

// strict makes wrong arguments usage errors, everywhere from cmd down.
func strict(cmd *cobra.Command) {
	args := cmd.Args
	switch {
	case cmd.HasSubCommands():
		cmd.SuggestionsMinimumDistance = 2
		cmd.Args = subcommand
		cmd.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
		cmd.DisableFlagsInUseLine = true // the line with [command] says it all
	case args == nil:
		args = func(_ *cobra.Command, a []string) error {
			if len(a) > 0 {
				return errors.New("takes no arguments")
			}
			return nil
		}
		fallthrough
	default:
		cmd.Args = func(c *cobra.Command, a []string) error {
			if err := args(c, a); err != nil {
				return usageError{fmt.Errorf("%s %w\nusage: %s", strings.TrimPrefix(c.CommandPath(), "postern "), err, c.UseLine())}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		strict(sub)
	}
}

// word is what a mistyped command looks like; anything else is not repeated.
var word = regexp.MustCompile(`^[A-Za-z][A-Za-z-]{0,15}$`)

// subcommand refuses a word that names none of the command's own.
func subcommand(c *cobra.Command, a []string) error {
	if len(a) == 0 {
		return nil
	}
	path, which := c.CommandPath(), "no such command"
	if word.MatchString(a[0]) {
		which = fmt.Sprintf("there is no command %q", path+" "+a[0])
	}
	if like := c.SuggestionsFor(a[0]); len(like) > 0 {
		return usageError{fmt.Errorf("%s; did you mean %q?", which, path+" "+like[0])}
	}
	return usageError{fmt.Errorf("%s; `%s --help` lists them", which, path)}
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
