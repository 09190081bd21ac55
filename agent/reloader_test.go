package agent

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// retrying starts an agent that tries a reload again after so long.
func (h *house) retrying(after time.Duration) *Agent {
	h.t.Helper()
	a := h.new()
	a.retryFirst = after
	if err := a.Start(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	if err := a.AwaitKeys(h.t.Context(), 10*time.Second); err != nil {
		h.t.Fatal(err)
	}
	return a
}

func (h *house) environment(name string) {
	h.t.Helper()
	if err := h.keys.Store.SetMetadata(h.t.Context(), h.keys.Scope.Path("openai"), map[string]string{"environment": name}, 0); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) logged(text string) int { return strings.Count(h.log.String(), text) }

func refusals(t *testing.T, a *Agent) float64 {
	t.Helper()
	return metric(t, a.registry, "postern_config_reloads_total", "failed")
}

// What keeps a configuration from being taken may pass without anybody touching
// the file: it is taken then. Meanwhile the same reason is no news.
func TestAReloadIsTriedAgain(t *testing.T) {
	h := newHouse(t)
	h.set(h.config(h.entry("openai", ", optional: true")))
	a := h.retrying(20 * time.Millisecond)
	h.environment("another") // the key cannot be read
	h.replace("version: 1", "version: 1\nservice: next")
	a.ReloadSoon()
	eventually(t, "it was tried again", func() bool { return refusals(t, a) > 2 })
	h.serves(a, "openai")
	if n := h.logged("the old one stays"); n != 1 {
		t.Errorf("said %d times", n)
	}
	n := refusals(t, a)
	a.ReloadSoon() // whoever asks is told
	eventually(t, "the one who asks is told", func() bool { return h.logged("the old one stays") == 2 && refusals(t, a) > n })
	h.environment("test")
	eventually(t, "it is taken", func() bool { return a.Status().Service == "next" })
	eventually(t, "the metric", func() bool { return metric(t, a.registry, "postern_config_last_reload_successful") == 1 })
	h.serves(a, "openai")
	a.Stop()
	if n := h.logged("a new configuration is in force"); n != 1 {
		t.Errorf("taken %d times", n)
	}
}

// A file that is not valid is not read again until it changes.
func TestAFileThatIsNotValidIsNotTriedAgain(t *testing.T) {
	h := newHouse(t)
	a := h.retrying(20 * time.Millisecond)
	good := h.yaml
	h.set(good + "nonsense: 1\n")
	a.ReloadSoon()
	eventually(t, "it is refused", func() bool { return refusals(t, a) == 1 })
	h.set("service: next\n" + good)
	time.Sleep(10 * a.retryFirst) // nothing happens: there is nothing to wait for
	if a.Status().Service != "" || refusals(t, a) != 1 {
		t.Error("it was tried again")
	}
	a.ReloadSoon()
	eventually(t, "it is taken", func() bool { return a.Status().Service == "next" })
}

// A configuration whose key never comes does not keep a better one waiting.
func TestAReloadGivesWayToANewerOne(t *testing.T) {
	h := newHouse(t)
	a := h.retrying(time.Hour)
	good := h.yaml
	h.set(h.config(h.entry("openai", ""), h.entry("second", "")))
	a.ReloadSoon()
	eventually(t, "it waits for a key that is not stored", func() bool { return metric(t, a.registry, "postern_key_source_missing", "second") == 1 })
	h.set("service: next\n" + good)
	begun := time.Now()
	a.ReloadSoon()
	eventually(t, "the better one is taken", func() bool { return a.Status().Service == "next" })
	if took := time.Since(begun); took > reloadTimeout/2 {
		t.Errorf("it took %v", took)
	}
	h.serves(a, "openai")
	if status, _, _ := ask(h.client(), a, "second"); status != http.StatusNotFound {
		t.Errorf("the route of the one that was given up: %d", status)
	}
	a.Stop()
	if n := refusals(t, a); n != 0 || h.logged("given up for a newer one") != 1 || h.logged("the old one stays") != 0 {
		t.Errorf("%v refusals, and given up %d times", n, h.logged("given up for a newer one"))
	}
}

// Stopping does not wait for keys either.
func TestStopEndsAReloadThatWaits(t *testing.T) {
	h := newHouse(t)
	a := h.retrying(20 * time.Millisecond)
	h.set(h.config(h.entry("openai", ""), h.entry("second", "")))
	a.ReloadSoon()
	eventually(t, "it waits for a key that is not stored", func() bool { return metric(t, a.registry, "postern_key_source_missing", "second") == 1 })
	begun := time.Now()
	a.Stop()
	if took := time.Since(begun); took > reloadTimeout/2 {
		t.Errorf("the stop took %v", took)
	}
	a.ReloadSoon() // nobody is there any more
}
