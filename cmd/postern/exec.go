package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/postern-proxy/postern/agent"
	"github.com/postern-proxy/postern/agent/clientenv"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/config"
)

// execReady bounds how long a command waits for its keys.
const execReady = 15 * time.Second

func newExec(c *common) *cobra.Command {
	var forward, verbose bool
	cmd := &cobra.Command{
		Use:   "exec [flags] -- COMMAND [ARG...]",
		Short: "Run a command with an agent in front of it",
		Long: `Run a command whose SDKs reach their providers through an agent: base URLs are set
to the agent's routes, key variables to a placeholder. The agent listens on a free
port of its own and ends with the command; signals and the exit code pass through
(127: no such command, 126: it cannot be run, 128+N: it died of signal N).

With --forward the command also gets HTTPS_PROXY and the variables that make common
runtimes trust the agent's certificate, for SDKs that read no base URL.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("wants a command, as in postern exec -- npm start")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := runnable(args[0]); err != nil {
				return err
			}
			cfg, err := c.load()
			if err != nil {
				return err
			}
			return runExec(cmd.Context(), cfg, args, forward, verbose)
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVar(&forward, "forward", false, "also set HTTPS_PROXY and the CA variables")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "show the agent's log, not only its warnings")
	return cmd
}

// Exit codes for a command that was not run, as shells have them.
const (
	exitCannotRun = 126
	exitNotFound  = 127
)

// runnable looks for the command before anything is started for it.
func runnable(name string) error {
	_, err := exec.LookPath(name)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return codedError{exitNotFound, fmt.Errorf("%s: command not found", name)}
	case errors.Is(err, exec.ErrDot):
		return codedError{exitCannotRun, fmt.Errorf("%s is found in the current directory only: write ./%s", name, name)}
	}
	return codedError{exitCannotRun, fmt.Errorf("%s cannot be run: %w", name, reason(err))}
}

// reason is an error of the operating system without the call that met it.
func reason(err error) error {
	var pe *fs.PathError
	var ee *exec.Error
	switch {
	case errors.As(err, &pe):
		return pe.Err
	case errors.As(err, &ee):
		return ee.Err
	}
	return err
}

func runExec(ctx context.Context, cfg *config.Config, args []string, forward, verbose bool) error {
	cfg.Listen.Proxy, cfg.Listen.Admin = "127.0.0.1:0", "127.0.0.1:0"
	cfg.Unmatched = "tunnel"
	if !verbose {
		cfg.Log.Level = "warn"
	}
	cfg.Log.Format = "text"
	dir, err := os.MkdirTemp("", "postern-exec-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if cfg.Audit.File == "-" { // standard output is the command's
		cfg.Audit.File = filepath.Join(dir, "audit.jsonl")
	}
	if forward && cfg.CA.Dir == "" {
		cfg.CA.Dir = filepath.Join(dir, "ca")
		if err := os.Mkdir(cfg.CA.Dir, 0o755); err != nil {
			return err
		}
	}
	a, err := agent.New(agent.Options{Config: cfg, Version: version})
	if err != nil {
		return err
	}
	if err := a.Start(ctx); err != nil {
		return err
	}
	defer a.Stop()
	if err := a.AwaitKeys(ctx, execReady); err != nil {
		return err
	}
	return runChild(ctx, childCommand(a, cfg, args, forward))
}

// childCommand is the command in its environment.
func childCommand(a *agent.Agent, cfg *config.Config, args []string, forward bool) *exec.Cmd {
	in := clientenv.Input{
		Mode: clientenv.Routes, Proxy: "http://" + a.ProxyAddr().String(),
		Existing: os.LookupEnv,
	}
	for _, p := range cfg.Providers {
		// The built-in default lists every provider: only those with a key are meant.
		if !cfg.BuiltIn() || a.HasKey(p.KeyName()) {
			in.Providers = append(in.Providers, clientenv.Provider{Name: p.Name, Spec: p.Spec})
		}
	}
	if forward {
		in.Mode = clientenv.Both
		in.CAFile, in.BundleFile = filepath.Join(cfg.CA.Dir, "ca.pem"), filepath.Join(cfg.CA.Dir, "bundle.pem")
	}
	vars, notes := clientenv.Vars(in)
	fmt.Fprintln(os.Stderr, "postern:", clientenv.Summary(vars, notes))
	child := exec.Command(args[0], args[1:]...)
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	child.Env = mergeEnv(os.Environ(), vars, storeSecret(cfg))
	return child
}

// storeSecret names the variable that opens the store, which is not the command's to have.
func storeSecret(cfg *config.Config) string {
	if s := cfg.Store.Sealed; s != nil {
		return s.PassphraseEnv
	}
	return ""
}

// mergeEnv is the environment with vars in place of what had their names, and
// without the variable named.
func mergeEnv(env []string, vars []clientenv.Var, without string) []string {
	replaced := map[string]bool{without: true}
	for _, v := range vars {
		replaced[v.Name] = true
	}
	out := make([]string, 0, len(env)+len(vars))
	for _, e := range env {
		if name, _, _ := strings.Cut(e, "="); !replaced[name] {
			out = append(out, e)
		}
	}
	for _, v := range vars {
		out = append(out, v.Name+"="+v.Value)
	}
	return out
}

// runChild runs the command, passes signals on and returns its exit code.
// Nothing is run once ctx has ended: the signal came before there was anyone to pass it to.
func runChild(ctx context.Context, child *exec.Cmd) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	defer signal.Stop(signals)
	if ctx.Err() != nil {
		return errors.New("interrupted before the command was run")
	}
	if err := startChild(child); err != nil {
		return codedError{exitCannotRun, fmt.Errorf("%s cannot be run: %w", child.Args[0], reason(err))}
	}
	done := make(chan struct{})
	go forwardSignals(child.Process, signals, done)
	err := child.Wait()
	close(done)
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return exitError(128 + int(ws.Signal()))
	}
	return exitError(exit.ExitCode())
}

// startChild starts the command with the core limit that this process itself
// had before it gave its own up. The limit is down again once the child runs.
func startChild(child *exec.Cmd) error {
	if cur, hard, ok := secret.CoreLimit(); ok {
		if unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: cur, Max: hard}) == nil {
			defer unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 0, Max: hard})
		}
	}
	return child.Start()
}

// forwardSignals passes signals to the child. Those that a terminal sends to
// the whole foreground group have reached it already.
func forwardSignals(p *os.Process, signals <-chan os.Signal, done <-chan struct{}) {
	terminal := term.IsTerminal(int(os.Stdin.Fd()))
	for {
		select {
		case <-done:
			return
		case s := <-signals:
			if terminal && (s == os.Interrupt || s == syscall.SIGQUIT || s == syscall.SIGWINCH) {
				continue
			}
			p.Signal(s)
		}
	}
}
