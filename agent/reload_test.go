package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	stdsync "sync"
	"sync/atomic"
	"testing"
	"time"
)

// Whatever is wrong with what is to come, what is there goes on serving, and
// log and metrics say why.
func TestReloadKeepsTheOldGeneration(t *testing.T) {
	for _, c := range []struct {
		what  string
		spoil func(h *house)
		says  string
	}{
		{"the file cannot be read", func(h *house) { h.unreadable(errAway) }, "permission denied"},
		{"it is no YAML", func(h *house) { h.set("version: 1\n  : {") }, "test.yaml"},
		{"it is not valid", func(h *house) { h.replace("grace: 1s", "grace: 1s, ramps: []") }, "rotation.ramps: unknown field"},
		{"it has no provider", func(h *house) { h.set(h.yaml[:strings.Index(h.yaml, "providers:")]) }, "providers"},
		{"a listener moved", func(h *house) { h.replace("127.0.0.1:0", "127.0.0.1:18700") }, "listen.proxy: cannot change while the agent runs"},
		{"a file it names is gone", func(h *house) { h.replace("provider-ca.pem", "nowhere.pem") }, "ca_file"},
		{"the store's key is another", func(h *house) { h.write("other.key", ""); h.replace("postern.key", "other.key") }, "other.key"},
		{"the store cannot be reached", (*house).moveAway, "the key openai was not loaded in time: "},
		{"a key is not stored", func(h *house) { h.set(h.config(h.entry("openai", ""), h.entry("second", ""))) }, "the key second was not loaded in time: no version of it is stored"},
		{"a key is refused by its provider", func(h *house) {
			h.put("second", "sk-test-dead-000000000000000000000000")
			h.provider.Revoke("sk-test-dead-000000000000000000000000")
			h.set(h.config(h.entry("openai", ""), h.entry("second", "")))
		}, "the key second was not loaded in time: version 1 was rejected"},
	} {
		t.Run(c.what, func(t *testing.T) {
			h := newHouse(t)
			a := h.start()
			good := h.yaml
			g := a.gen.Load()
			c.spoil(h)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := a.Reload(ctx); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
			if !strings.Contains(h.log.String(), "the old one stays") {
				t.Error("the log does not say so")
			}
			if a.gen.Load() != g || a.cfg.Load() != g.cfg || metric(t, a.registry, "postern_config_generation") != 1 {
				t.Error("another generation is in force")
			}
			if metric(t, a.registry, "postern_config_reloads_total", "failed") != 1 || metric(t, a.registry, "postern_config_last_reload_successful") != 0 {
				t.Error("the metrics do not say so")
			}
			if strings.Contains(strings.Join(h.events(), ","), "config.reloaded") {
				t.Errorf("the record says that it was taken: %q", h.events())
			}
			h.serves(a, "openai")
			h.set(good)
			if err := a.Reload(t.Context()); err != nil || a.gen.Load() != g || metric(t, a.registry, "postern_config_last_reload_successful") != 1 {
				t.Errorf("after it was mended: %v", err)
			}
		})
	}
}

// Twenty clients go on while the configuration changes again and again, and
// the key with it: no request fails, and each generation lets go of what it had.
func TestReloadUnderLoad(t *testing.T) {
	h := newHouse(t)
	a := h.start()
	client := h.client()
	stop := make(chan struct{})
	var sent, failed atomic.Int64
	var wg stdsync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				status, body, err := ask(client, a, "openai")
				if sent.Add(1); status != http.StatusOK && failed.Add(1) < 5 {
					t.Errorf("%d %s %v", status, body, err)
				}
			}
		})
	}
	base := h.yaml
	const reloads = 8
	for n := range reloads {
		h.put("openai", fmt.Sprintf("sk-test-%029d", n))
		h.set(fmt.Sprintf("service: s%d\n%s", n, base))
		if err := a.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := a.Status(); s.Service != fmt.Sprint("s", n) || s.Generation != uint64(n+2) || !s.Ready {
			t.Errorf("%+v", s)
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("%d requests during %d reloads", sent.Load(), reloads)
	if err := a.Reload(t.Context()); err != nil { // nothing has changed since
		t.Error(err)
	}
	if n := metric(t, a.registry, "postern_config_reloads_total", "ok"); n != reloads {
		t.Errorf("%v reloads counted", n)
	}
	if n := metric(t, a.registry, "postern_config_generation"); n != reloads+1 {
		t.Errorf("generation %v in the metrics", n)
	}
	a.draining.Wait()
	if users := a.gen.Load().store.users.Load(); users != 1 {
		t.Errorf("%d generations hold the store", users)
	}
	a.Stop()
	if got := strings.Count(strings.Join(h.events(), ","), "config.reloaded ok"); got != reloads {
		t.Errorf("%d reloads in the record", got)
	}
}

// A request that began before the swap ends after it, with the key it began with.
func TestARequestThatOutlivesItsGeneration(t *testing.T) {
	h := newHouse(t)
	a := h.start()
	inside := h.hold()
	answer := make(chan string, 1)
	go func() {
		status, _, err := ask(h.client(), a, "openai")
		answer <- fmt.Sprint(status, " ", err)
	}()
	release := <-inside
	old := a.gen.Load()
	h.replace("version: 1", "version: 1\nservice: next")
	if err := a.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the old generation gives out no key", func() bool { return !old.serves("openai") })
	close(release)
	if got := <-answer; got != "200 <nil>" {
		t.Errorf("%s", got)
	}
}

func TestReloadWithoutAChange(t *testing.T) {
	h := newHouse(t)
	a := h.start()
	g := a.gen.Load()
	for range 3 {
		if err := a.Reload(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if a.gen.Load() != g || strings.Contains(h.log.String(), "in force") || metric(t, a.registry, "postern_config_reloads_total", "ok") != 0 {
		t.Error("nothing changed, and yet something was done")
	}
}

// The same text may mean something else, because a file that it names changed:
// a certificate authority that was replaced is taken at the next SIGHUP.
func TestReloadOfAFileThatIsNamed(t *testing.T) {
	h := newHouse(t)
	pem := h.provider.CAPEM()
	other := newHouse(t)
	h.write("provider-ca.pem", string(other.provider.CAPEM()))
	h.replace("ca_file: provider-ca.pem", "ca_file: provider-ca.pem, optional: true")
	a := h.new()
	if err := a.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the key is loaded, its probe unanswered", func() bool { return a.HasKey("openai") })
	if status, body, _ := ask(h.client(), a, "openai"); status != http.StatusBadGateway || !strings.Contains(body, "ca_file") {
		t.Errorf("with another authority: %d %s", status, body)
	}
	h.write("provider-ca.pem", string(pem))
	if err := a.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.serves(a, "openai")
	if err := os.Remove(h.path("provider-ca.pem")); err != nil {
		t.Fatal(err)
	}
	if err := a.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "ca_file") {
		t.Errorf("a file that is gone: %v", err)
	}
	h.serves(a, "openai")
}

// An optional key that serves is as good as a required one: it is not lost
// because the store is away when the configuration changes. One that never
// was there holds nothing up.
func TestReloadLosesNoOptionalKey(t *testing.T) {
	h := newHouse(t)
	h.set(h.config(h.entry("openai", ", optional: true"), h.entry("second", ", optional: true")))
	a := h.start()
	h.serves(a, "openai")
	h.replace("version: 1", "version: 1\nservice: next")
	if err := a.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.serves(a, "openai") // at once
	h.moveAway()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := a.Reload(ctx); err == nil || !strings.Contains(err.Error(), "the key openai was not loaded in time: ") {
		t.Errorf("the store is away: %v", err)
	}
	h.serves(a, "openai")
}

// A key that serves from memory and may not be read any more is not lost by a reload either.
func TestReloadWithAKeyThatMayNotBeRead(t *testing.T) {
	h := newHouse(t)
	h.set(h.config(h.entry("openai", ", optional: true")))
	a := h.start()
	if err := h.keys.Store.SetMetadata(t.Context(), h.keys.Scope.Path("openai"), map[string]string{"environment": "another"}, 0); err != nil {
		t.Fatal(err)
	}
	h.replace("version: 1", "version: 1\nservice: next")
	if err := a.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "the key openai, which serves now, cannot be loaded: ") {
		t.Errorf("%v", err)
	}
	h.serves(a, "openai")
}

// What is gone from the store for good does not keep an optional provider's configuration from changing.
func TestReloadWithoutAnOptionalKeyThatIsGone(t *testing.T) {
	h := newHouse(t)
	h.set(h.config(h.entry("openai", ""), h.entry("second", ", optional: true")))
	h.put("second", "sk-test-second-00000000000000000000000")
	a := h.start()
	eventually(t, "both keys", func() bool { return a.HasKey("second") })
	if err := h.keys.Store.Remove(t.Context(), h.keys.Scope.Path("second")); err != nil {
		t.Fatal(err)
	}
	h.replace("version: 1", "version: 1\nservice: next")
	if err := a.Reload(t.Context()); err != nil {
		t.Error(err)
	}
	h.serves(a, "openai")
}

// The store is opened anew where its settings changed, and let go of with the last generation that uses it.
func TestReloadOntoAnotherStore(t *testing.T) {
	h := newHouse(t)
	a := h.start()
	before := a.gen.Load().store
	h.replace("version: 1", "version: 1\nservice: next")
	if err := a.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a.gen.Load().store != before {
		t.Error("the store was opened again for nothing")
	}
	for _, name := range []string{"postern.sealed", "postern.key"} {
		b, err := os.ReadFile(h.path(name))
		if err != nil {
			t.Fatal(err)
		}
		h.write("moved-"+name, string(b))
	}
	h.replace("{file: postern.sealed, key_file: postern.key,", "{file: moved-postern.sealed, key_file: moved-postern.key,")
	if err := a.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.draining.Wait()
	if a.gen.Load().store == before || before.users.Load() != 0 {
		t.Errorf("%d generations use the store before", before.users.Load())
	}
	if _, err := before.Metadata(t.Context(), "provider-keys/test/px_test/openai"); err == nil {
		t.Error("the store before is open still, its key in memory")
	}
	h.serves(a, "openai")
}

// One reload runs at a time; who cannot wait leaves, and after Stop there is none.
func TestReloadsTakeTurns(t *testing.T) {
	h := newHouse(t)
	a := h.start()
	<-a.reloading // one is under way
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := a.Reload(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	stopped := make(chan struct{})
	go func() {
		a.Stop()
		close(stopped)
	}()
	h.serves(a, "openai")
	a.reloading <- struct{}{}
	<-stopped
	if err := a.Reload(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after Stop: %v", err)
	}
}

func TestReloadOfWhatCannotBeReadAgain(t *testing.T) {
	h := newHouse(t)
	o := h.options()
	o.Load = nil
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Stop()
	if err := a.Reload(t.Context()); err == nil {
		t.Error("it was")
	}
}
