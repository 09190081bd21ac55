package agent

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/config"
)

// How long a new generation may take to load its keys before the old one stays.
const reloadTimeout = 30 * time.Second

// Reload reads the configuration again and, if it or a file that it names
// changed, builds a new generation, starts it, swaps it in and drains the old one. Whatever goes
// wrong, the old one stays and the error says why. One reload runs at a time.
func (a *Agent) Reload(ctx context.Context) error { return a.take(ctx, false) }

// take is Reload. Again: after one that failed, which is no news where it fails for the same reason.
func (a *Agent) take(ctx context.Context, again bool) error {
	if a.o.Load == nil {
		return errors.New("this configuration cannot be read again")
	}
	select {
	case <-a.reloading:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { a.reloading <- struct{}{} }()
	changed, err := a.reload(ctx)
	was := a.refused
	a.refused = ""
	switch {
	case err != nil && context.Cause(ctx) == errGaveWay:
		a.log.Info("a new configuration was waited for and is given up for a newer one", "error", err.Error())
	case err != nil:
		a.metrics.reloads.WithLabelValues("failed").Inc()
		a.metrics.reloadOK.Set(0)
		if a.refused = err.Error(); !again || a.refused != was {
			a.log.Error("the new configuration was not taken; the old one stays", "error", a.refused)
		}
	case changed:
		a.metrics.reloads.WithLabelValues("ok").Inc()
		a.metrics.reloadOK.Set(1)
		a.log.Info("a new configuration is in force", "generation", a.gen.Load().number)
	default:
		a.metrics.reloadOK.Set(1)
	}
	return err
}

func (a *Agent) reload(ctx context.Context) (changed bool, err error) {
	next, err := a.o.Load()
	if err != nil {
		return false, err
	}
	if err := next.ValidateAgent(); err != nil {
		return false, err
	}
	was, old := a.cfg.Load(), a.gen.Load()
	if reflect.DeepEqual(next, was) && !old.filesChanged() {
		return false, nil
	}
	if err := fixed(was, next); err != nil {
		return false, err
	}
	g, err := a.build(next, old)
	if err != nil {
		return false, err
	}
	g.run()
	ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
	defer cancel()
	if err := g.awaitReady(ctx, old); err != nil {
		g.stop()
		return false, errPassing{err}
	}
	if err := a.record(ctx, audit.Event{Event: "config.reloaded", Outcome: "ok", Reason: next.Source}); err != nil {
		g.stop()
		return false, errPassing{fmt.Errorf("audit.file: %w", err)}
	}
	if err := a.ca.Reissue(forwardHosts(next)); err != nil {
		g.stop()
		a.record(ctx, audit.Event{Event: "config.reloaded", Outcome: "failed", Reason: err.Error()})
		return false, err
	}
	// From here on nothing can fail: what follows only swaps.
	a.cfg.Store(next)
	a.gen.Store(g)
	a.proxy.Swap(g.routing)
	a.metrics.generation.Set(float64(g.number))
	if next.CA.Dir != "" {
		if err := a.writeTrust(next, next.CA.Dir); err != nil {
			a.log.Warn("ca.dir: the certificates could not be written again", "error", err.Error())
		}
	}
	if slices.ContainsFunc(keyPatterns(next), func(p string) bool { return !slices.Contains(a.patterns, p) }) {
		a.log.Warn("a new key_pattern is looked for in the log only after a restart")
	}
	a.draining.Go(old.stop) // its requests under way end on the versions that they began with
	return true, nil
}

// fixed refuses changes that only a restart can make.
func fixed(was, next *config.Config) error {
	var names []string
	add := func(name string, same bool) {
		if !same {
			names = append(names, name)
		}
	}
	add("environment", was.Environment == next.Environment)
	add("proxy_id", was.ProxyID == next.ProxyID)
	add("listen.proxy", was.Listen.Proxy == next.Listen.Proxy)
	add("listen.allow_uids", reflect.DeepEqual(was.Listen.AllowUIDs, next.Listen.AllowUIDs))
	add("listen.admin", was.Listen.Admin == next.Listen.Admin)
	add("ca", was.CA == next.CA)
	add("audit", was.Audit == next.Audit)
	add("log", was.Log == next.Log)
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("%s: cannot change while the agent runs; restart it", strings.Join(names, ", "))
}
