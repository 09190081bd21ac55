package keys

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-proxy/postern/agent/keyring"
	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/redact"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/agent/sync"
)

// fleet starts real agents, as far as they keep one key.
func fleet(t *testing.T, g *stage, n int) (keys []*keyring.Key) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{}, 2*n)
	t.Cleanup(func() {
		cancel()
		for range 2 * n {
			<-done
		}
	})
	for i := range n {
		known, err := redact.New(redact.Options{})
		if err != nil {
			t.Fatal(err)
		}
		acks := sync.NewAcks(sync.AcksOptions{
			Store: g.real, Environment: "prod", ProxyID: "px_acme", Local: true, Agent: fmt.Sprint("agent-", i), Logger: slog.New(slog.DiscardHandler),
		})
		k := keyring.NewKey("openai")
		loop := sync.New(sync.Options{
			Name: "openai", Source: sync.Source{Path: "provider-keys/prod/px_acme/openai"}, Environment: "prod", ProxyID: "px_acme",
			Store: g.real, Key: k, Redact: known, Audit: &ledger{}, Acks: acks, KeyPrefix: "sk-test-",
			Probe: func(ctx context.Context, fields map[string]*secret.Value) provider.Result {
				return g.probe(ctx, "openai", fields)
			},
			Grace: 10 * time.Minute, RejectRatio: 0.05, Poll: 5 * time.Second, Logger: slog.New(slog.DiscardHandler),
		})
		for _, run := range []func(context.Context){acks.Run, loop.Run} {
			go func() {
				run(ctx)
				done <- struct{}{}
			}()
		}
		keys = append(keys, k)
	}
	return keys
}

func heapBubble(t *testing.T) *stage {
	t.Helper()
	g := &stage{t: t, verdicts: map[string]rotation.Verdict{}}
	g.real = newHeap(t, time.Now)
	return g
}

// Real agents read what the record says and say what it waits for.
func TestARotationWithRealAgents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := heapBubble(t)
		g.add(1)
		keys := fleet(t, g, 3)
		time.Sleep(10 * time.Second)
		ada := g.process("ada")
		ramp := rotation.Ramp{{Weight: 10, For: 20 * time.Second}}
		if _, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{Ramp: &ramp, Grace: new(30 * time.Second)}); err != nil {
			t.Fatal(err)
		}
		acked := 0
		rot, err := ada.Wait(t.Context(), "openai", func(rot Rotation) {
			for _, k := range keys {
				sum := 0
				for _, e := range k.Entries() {
					sum += e.Weight
				}
				if sum != 100 {
					t.Errorf("an agent serves %d %%", sum)
				}
			}
			if len(rot.Agents) == 3 && !slices.ContainsFunc(rot.Agents, func(a Agent) bool { return !a.Live || a.To != rotation.Active }) {
				acked++
			}
		})
		if err != nil || rot.Phase != rotation.PhaseDone || acked < 30 || !slices.Equal(g.readable(), []int{2}) {
			t.Errorf("%+v, %v; all had acknowledged %d times", rot, err, acked)
		}
		for _, k := range keys {
			if e := k.Entries(); len(e) != 1 || e[0].Version.Number() != 2 {
				t.Errorf("%+v", e)
			}
		}
	})
}

// One of them cannot reach the provider: it keeps the old version, and so does the store.
func TestAnAgentThatCannotTakeTheNewVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := heapBubble(t)
		g.add(1)
		g.says(2, rotation.VerdictUnknown)
		fleet(t, g, 2)
		time.Sleep(10 * time.Second)
		ada := g.process("ada")
		ada.Probe = nil
		if _, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{Grace: new(30 * time.Second)}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		rot, err := ada.Wait(ctx, "openai", nil)
		if err == nil || rot.Waiting != "agents agent-0, agent-1 to take version 2" || !rot.Overdue || !slices.Equal(g.readable(), []int{1, 2}) {
			t.Errorf("%+v, %v", rot, err)
		}
		g.says(2, rotation.VerdictLive) // they ask again by themselves
		if rot, err = ada.Wait(t.Context(), "openai", nil); err != nil || rot.Phase != rotation.PhaseDone || !slices.Equal(g.readable(), []int{2}) {
			t.Errorf("%+v, %v", rot, err)
		}
	})
}

// They ask the provider before the rotation goes on, and their word stops it.
func TestRealAgentsReject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := heapBubble(t)
		g.add(1)
		g.says(2, rotation.VerdictDead)
		fleet(t, g, 2)
		time.Sleep(10 * time.Second)
		ada := g.process("ada")
		ada.Probe = nil
		if _, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		rot, err := ada.Wait(t.Context(), "openai", nil)
		if err != nil || rot.Phase != rotation.PhaseRolledBack || !slices.Equal(g.readable(), []int{1, 2}) {
			t.Errorf("%+v, %v", rot, err)
		}
		time.Sleep(time.Minute)
		if left, err := g.real.List(t.Context(), "acks/prod/px_acme/local"); err != nil {
			t.Error(err)
		} else {
			for _, name := range left {
				if _, _, err := store.GetText(t.Context(), g.real, "acks/prod/px_acme/local/"+name); err == nil {
					t.Errorf("%s is still acknowledging", name)
				}
			}
		}
	})
}
