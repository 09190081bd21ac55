package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/postern-proxy/postern/agent"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/config"
)

func newDemo() *cobra.Command {
	var length, every time.Duration
	var rate int
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See it work: a provider, an agent, steady requests, a rotation every few seconds",
		Long: `Start a provider that speaks OpenAI's wire format over TLS, an encrypted store, an
agent in front of them and a steady load through it. Then rotate the key every few
seconds, and revoke the old one at the provider, while not one request fails.
Nothing is needed and nothing is left behind. Ctrl-C ends it, or --for.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if length < 0 {
				return usageError{errors.New("--for: a length of time above zero, as in 20s")}
			}
			if every < 2*time.Second {
				return usageError{errors.New("--every: at least 2s, so that the old key can drain")}
			}
			if rate < 1 || rate > 5000 {
				return usageError{errors.New("--rate: 1 to 5000 requests a second")}
			}
			ctx := cmd.Context()
			if length > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, length)
				defer cancel()
			}
			return runDemo(ctx, cmd.OutOrStdout(), rate, every)
		},
	}
	cmd.Flags().DurationVar(&length, "for", 0, "end after this long, as in 20s; 0: at Ctrl-C")
	cmd.Flags().DurationVar(&every, "every", 4*time.Second, "time between two rotations")
	cmd.Flags().IntVar(&rate, "rate", 250, "requests a second")
	return cmd
}

const demoKey = "openai"

// demo is the cast: a provider, a store with its key, an agent.
type demo struct {
	dir      string
	first    string // key
	provider *fake.Server
	keys     *keys.Manager
	agent    *agent.Agent
	undo     []func()
}

func runDemo(ctx context.Context, out io.Writer, rate int, every time.Duration) error {
	d, err := newDemoCast(ctx)
	if d != nil {
		defer d.close()
	}
	if err != nil {
		return err
	}
	base := "http://" + d.agent.ProxyAddr().String()
	fmt.Fprintf(out, `postern demo: an OpenAI-compatible provider on %s, and an agent on %s.
The key is in an encrypted store; no request below carries one. Paste these into another terminal:

  curl -s %s/openai/v1/models
  curl -s --cacert %s --proxy %s %s/v1/models

`, d.provider.URL(), base, base, filepath.Join(d.dir, "ca", "bundle.pem"), base, d.provider.URL())

	load := newLoad(base+"/openai/v1/chat/completions", rate)
	screen := newScreen(out)
	loadCtx, stopLoad := context.WithCancel(ctx)
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		load.run(loadCtx)
	}()
	err = d.rotateUntil(ctx, every, load, screen)
	stopLoad()
	<-loaded
	screen.end(load, d.provider)
	if err != nil && ctx.Err() == nil {
		return err
	}
	if n := load.failed.Load(); n > 0 {
		return fmt.Errorf("%d requests failed: %s", n, load.lastError())
	}
	return nil
}

// newDemoCast starts the provider, stores its first key and starts the agent.
// The cast is returned with an error as well, so that what began is ended.
func newDemoCast(ctx context.Context) (*demo, error) {
	secret.Harden()
	d := &demo{}
	var err error
	if d.dir, err = os.MkdirTemp("", "postern-demo-"); err != nil {
		return nil, err
	}
	d.undo = append(d.undo, func() { os.RemoveAll(d.dir) })
	d.first = newDemoKey()
	if d.provider, err = fake.New(fake.Options{Kind: "openai", Keys: []string{d.first}}); err != nil {
		return d, err
	}
	d.undo = append(d.undo, func() { d.provider.Close() })
	cfg, err := d.config()
	if err != nil {
		return d, err
	}
	st, closer, err := agent.OpenStore(cfg, agent.StoreOptions{Operator: true})
	if err != nil {
		return d, err
	}
	d.undo = append(d.undo, closer)
	if d.keys, err = agent.NewManager(ctx, cfg, agent.ManagerOptions{Store: st, NoProbe: true}); err != nil {
		return d, err
	}
	if err := d.store(ctx, d.first); err != nil {
		return d, err
	}
	if d.agent, err = agent.New(agent.Options{Config: cfg, Version: version, Log: io.Discard, Audit: io.Discard}); err != nil {
		return d, err
	}
	if err := d.agent.Start(ctx); err != nil {
		return d, err
	}
	d.undo = append(d.undo, d.agent.Stop)
	return d, d.agent.AwaitKeys(ctx, 10*time.Second)
}

func (d *demo) config() (*config.Config, error) {
	if err := os.WriteFile(filepath.Join(d.dir, "provider-ca.pem"), d.provider.CAPEM(), 0o644); err != nil {
		return nil, err
	}
	if err := os.Mkdir(filepath.Join(d.dir, "ca"), 0o755); err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(strings.TrimPrefix(d.provider.URL(), "https://"))
	if err != nil {
		return nil, err
	}
	yaml := fmt.Sprintf(`
version: 1
environment: dev
proxy_id: px_demo
listen: {proxy: "127.0.0.1:0", admin: "127.0.0.1:0"}
store: {sealed: {file: postern.sealed, key_file: postern.key, poll: 200ms}}
providers:
  - {name: openai, hosts: ["localhost:%s"], base_url: "https://localhost:%s", ca_file: provider-ca.pem}
rotation: {grace: 1s}
ca: {dir: ca}
audit: {file: audit.jsonl}
`, port, port)
	return config.Parse([]byte(yaml), "demo", os.Getenv, d.dir)
}

// newDemoKey makes a key of OpenAI's form that opens nothing but the demo's provider.
func newDemoKey() string {
	var b [24]byte
	rand.Read(b[:])
	return "sk-proj-" + hex.EncodeToString(b[:])
}

func (d *demo) store(ctx context.Context, key string) error {
	v, err := secret.New([]byte(key))
	if err != nil {
		return err
	}
	defer v.Destroy()
	_, err = d.keys.Add(ctx, demoKey, v, keys.Meta{})
	return err
}

// rotateUntil rotates the key every so often until ctx ends.
func (d *demo) rotateUntil(ctx context.Context, every time.Duration, load *load, screen *screen) error {
	redraw := time.NewTicker(screen.every)
	defer redraw.Stop()
	rotate := time.NewTicker(every)
	defer rotate.Stop()
	old, current := "", d.first
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-redraw.C:
			screen.draw(load, d.agent.Status())
		case <-rotate.C:
			next := newDemoKey()
			took, err := d.rotate(ctx, next)
			if err != nil {
				return err
			}
			screen.rotated(took)
			if old != "" {
				d.provider.Revoke(old) // its grace is long over
			}
			old, current = current, next
		}
	}
}

// rotate makes a key live at the provider, stores it, and measures how long it
// takes from the store's write to the first request that carries it.
func (d *demo) rotate(ctx context.Context, key string) (time.Duration, error) {
	d.provider.Allow(key)
	first := d.provider.FirstUse(key)
	start := time.Now()
	if err := d.store(ctx, key); err != nil {
		return 0, err
	}
	select {
	case at := <-first:
		return at.Sub(start), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(10 * time.Second):
		return 0, errors.New("the new key was not used within 10s")
	}
}

func (d *demo) close() {
	for i := len(d.undo) - 1; i >= 0; i-- {
		d.undo[i]()
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
