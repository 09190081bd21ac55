package main

import (
	"context"
	"errors"
	"fmt"
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
port of its own and ends with the command; signals and the exit code pass through.

With --forward the command also gets HTTPS_PROXY and the variables that make common
runtimes trust the agent's certificate, for SDKs that read no base URL.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
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
	return runChild(childCommand(a, cfg, args, forward))
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
	child.Env = mergeEnv(os.Environ(), vars)
	return child
}

// mergeEnv is the environment with vars in place of what had their names.
func mergeEnv(env []string, vars []clientenv.Var) []string {
	replaced := map[string]bool{}
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
func runChild(child *exec.Cmd) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	defer signal.Stop(signals)
	if err := startChild(child); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("%s: command not found", child.Path)
		}
		return err
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
