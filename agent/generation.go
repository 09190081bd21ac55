package agent

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	stdsync "sync"
	"sync/atomic"
	"time"

	"github.com/postern-proxy/postern/agent/keyring"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/proxy"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/agent/sync"
	"github.com/postern-proxy/postern/agent/upstream"
	"github.com/postern-proxy/postern/config"
)

// generation is one immutable state of the agent, built from one configuration.
type generation struct {
	number  uint64
	cfg     *config.Config
	store   *openStore
	routing *proxy.Routing
	keys    map[string]*loadedKey // by keyring name
	idle    []func()              // closes connections of each pool and transport
	pools   []*upstream.Pool
	lingers bool                // a connection that was closed stays in memory for upstream.Lingering
	files   map[string]fileHash // that the configuration names, as they were read

	cancel context.CancelFunc
	wg     stdsync.WaitGroup
}

// loadedKey is one provider key and the loop that keeps it.
type loadedKey struct {
	name     string
	required bool
	key      *keyring.Key
	loop     *sync.Loop
	probe    func(context.Context, map[string]*secret.Value) provider.Result
}

// openStore is a store that generations with the same store settings share, and
// what tells others through it how far this agent is with rotations.
type openStore struct {
	store.Store
	cfg   config.Store
	acks  *sync.Acks
	close func()
	users atomic.Int32 // generations

	begin stdsync.Once
	end   func() // of what begin began
}

// run begins what every generation on the store needs.
func (s *openStore) run() {
	s.begin.Do(func() {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.acks.Run(ctx)
		}()
		s.end = func() {
			cancel()
			<-done
		}
	})
}

// stop ends what run began and closes the store.
func (s *openStore) stop() {
	if s.end != nil {
		s.end()
	}
	s.close()
}

// build makes a generation whole without starting it. It reuses prev's store
// where the settings are the same; prev may be nil.
func (a *Agent) build(c *config.Config, prev *generation) (*generation, error) {
	a.number++
	g := &generation{number: a.number, cfg: c, keys: map[string]*loadedKey{}, files: map[string]fileHash{}}
	dialer, err := a.dialer(g)
	if err != nil {
		return nil, err
	}
	if prev != nil && reflect.DeepEqual(prev.store.cfg, c.Store) {
		g.store = prev.store
	} else if g.store, err = a.openStore(c); err != nil {
		return nil, err
	}
	g.store.users.Add(1)
	var targets []*proxy.Target
	for i, p := range c.Providers {
		t, err := a.target(g, dialer, p)
		if err != nil {
			g.closeStore()
			return nil, fmt.Errorf("providers[%d] (%s): %w", i, p.Name, err)
		}
		targets = append(targets, t)
	}
	if g.routing, err = proxy.NewRouting(targets); err != nil {
		g.closeStore()
		return nil, fmt.Errorf("providers: %w", err)
	}
	g.routing.Generation, g.routing.Tunnel, g.routing.Hosts, g.routing.Dialer = g.number, c.Unmatched == "tunnel", c.Listen.Hosts, dialer
	return g, nil
}

// dialer makes the way out that the configuration describes.
func (a *Agent) dialer(g *generation) (*upstream.Dialer, error) {
	c := g.cfg
	o := upstream.Options{EgressProxy: c.Egress.ProxyURL(), NoProxy: c.Egress.NoProxy, Own: a.own.is}
	var err error
	if o.Roots, err = g.read(c.Egress.CAFile); err != nil {
		return nil, fmt.Errorf("egress.ca_file: %w", err)
	}
	return upstream.New(o)
}

func readOptional(file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	return os.ReadFile(file)
}

// read is readOptional for what the generation is made of: filesChanged looks at it again.
func (g *generation) read(file string) ([]byte, error) {
	b, err := readOptional(file)
	if err == nil && file != "" {
		g.files[file] = sha256.Sum256(b)
	}
	return b, err
}

// filesChanged reports whether a file that the configuration names holds
// something else now, or cannot be read any more.
func (g *generation) filesChanged() bool {
	for file, was := range g.files {
		if contentHash(file) != was {
			return true
		}
	}
	return false
}

// target makes what the data path needs of one provider, and the key it carries.
func (a *Agent) target(g *generation, dialer *upstream.Dialer, p config.Provider) (*proxy.Target, error) {
	prov, err := provider.New(p.Spec)
	if err != nil {
		return nil, err
	}
	roots, err := g.read(p.CAFile)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	o := upstream.TransportOptions{CAFile: roots, HTTP2: p.HTTP2}
	pool, err := dialer.Pool(o)
	if err != nil {
		return nil, err
	}
	g.idle = append(g.idle, pool.Renew)
	g.pools = append(g.pools, pool)
	k := g.keys[p.KeyName()]
	if k == nil {
		once, err := dialer.Transport(o)
		if err != nil {
			return nil, err
		}
		once.DisableKeepAlives = true // an idle connection keeps the key that it carried last
		k = a.key(g, p, prov, func(ctx context.Context, fields map[string]*secret.Value) provider.Result {
			return prov.Probe(ctx, once, fields)
		})
	}
	t := &proxy.Target{Name: p.Name, Provider: prov, Key: k.key, Pool: pool, Forward: p.Forwards()}
	if p.HTTP2 {
		tr, err := dialer.PerKey(o)
		if err != nil {
			return nil, err
		}
		g.idle, g.lingers = append(g.idle, tr.CloseIdleConnections), true
		t.Transport = tr
	}
	return t, nil
}

func (a *Agent) key(g *generation, p config.Provider, prov *provider.Provider, probe func(context.Context, map[string]*secret.Value) provider.Result) *loadedKey {
	c := g.cfg
	name := p.KeyName()
	source := sync.Source{Path: keys.Scope{Environment: c.Environment, ProxyID: c.ProxyID}.Path(p.Key), Field: keys.Field}
	if p.VaultPath != "" {
		source = sync.Source{VaultPath: p.VaultPath, Field: p.Field}
	}
	k := &loadedKey{name: name, required: required(c, name), key: keyring.NewKey(name), probe: probe}
	k.loop = sync.New(sync.Options{
		Name: name, Source: source, Environment: c.Environment, ProxyID: c.ProxyID,
		Store: g.store.Store, Key: k.key, Redact: a.known, Audit: a.sink, Probe: loopProbe(prov, probe), KeyPrefix: prov.Spec().KeyPrefix, Credentials: prov.Credentials(),
		Ramp: c.Rotation.Ramp, Grace: c.Rotation.Grace, RejectRatio: c.Rotation.RejectRatio,
		Poll: c.Poll(), MaxStale: c.MaxStale(), Logger: a.log, Metrics: a.metrics.sync, Acks: g.store.acks,
		Optional: !required(c, name), OnRetired: g.retired,
	})
	g.keys[name] = k
	return k
}

// loopProbe is the probe that a loop may rely on: none where the provider has no
// cheap one, or a new version would wait for a verdict that never comes.
func loopProbe(prov *provider.Provider, probe func(context.Context, map[string]*secret.Value) provider.Result) func(context.Context, map[string]*secret.Value) provider.Result {
	if prov.Spec().Probe.Path == "" {
		return nil
	}
	return probe
}

// required reports whether the agent is ready only with this key.
func required(c *config.Config, key string) bool {
	return slices.ContainsFunc(c.Providers, func(p config.Provider) bool { return p.KeyName() == key && !p.Optional })
}

// closeIdle drops connections that carried a retired key: buffers and HTTP/2 header tables go with them.
func (g *generation) closeIdle() {
	for _, f := range g.idle {
		f()
	}
}

// retired makes what a wiped version has left elsewhere go as well.
func (g *generation) retired() {
	g.closeIdle()
	secret.Sweep(g.closeIdle) // again: a connection is idle only a moment after its request has ended
	if g.lingers {
		time.AfterFunc(upstream.Lingering, func() { secret.Sweep(nil) })
	}
}

// run starts the generation's loops.
func (g *generation) run() {
	g.store.run()
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	for _, k := range g.keys {
		g.wg.Go(func() { k.loop.Run(ctx) })
	}
}

// halt ends the loops, which wipe their keys when the requests that carry them
// have ended (or after some seconds).
func (g *generation) halt() {
	g.cancel()
	g.wg.Wait()
	g.closeIdle()
	for _, p := range g.pools {
		p.Close() // what is still in use ends when it comes back
	}
}

// stop is halt, and lets go of the store.
func (g *generation) stop() {
	g.halt()
	g.closeStore()
}

func (g *generation) closeStore() {
	if g.store.users.Add(-1) == 0 {
		g.store.stop()
	}
}

// waiting names the required keys of which no version is usable yet, sorted.
func (g *generation) waiting() []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(g.keys)) {
		if k := g.keys[name]; k.required && len(k.key.Entries()) == 0 {
			names = append(names, name)
		}
	}
	return names
}

// awaitSettled waits until every key was either loaded or found to be missing, or ctx ends.
func (g *generation) awaitSettled(ctx context.Context) error {
	for _, name := range slices.Sorted(maps.Keys(g.keys)) {
		select {
		case <-g.keys[name].loop.Settled():
		case <-ctx.Done():
			return fmt.Errorf("the key %s could not be loaded: %s", name, g.keys[name].loop.Status().Reason())
		}
	}
	return nil
}

// awaitReady waits until no required key is missing, and none that old serves
// with has yet to be read, or ctx ends.
func (g *generation) awaitReady(ctx context.Context, old *generation) error {
	for _, name := range slices.Sorted(maps.Keys(g.keys)) {
		k := g.keys[name]
		ready := k.loop.Settled()
		if k.required {
			ready = k.loop.Loaded()
		} else if !old.serves(name) {
			continue
		}
		select {
		case <-ready:
		case <-ctx.Done():
			return fmt.Errorf("the key %s was not loaded in time: %s", name, k.loop.Status().Reason())
		}
		// A key that the store no longer has, or its provider refuses, is gone; one that cannot be read is in memory still.
		if s := k.loop.Status(); !s.Usable && s.Trouble != "" {
			return fmt.Errorf("the key %s, which serves now, cannot be loaded: %s", name, s.Reason())
		}
	}
	return nil
}

// serves reports whether a version of the key is usable.
func (g *generation) serves(name string) bool {
	k := g.keys[name]
	return k != nil && len(k.key.Entries()) > 0
}
