package keys

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

// pod is an agent, as far as it follows one key.
type pod struct {
	g      *stage
	name   string
	k      rotation.Key
	served bool // once it served, it must go on
	silent bool // writes no acknowledgement
	told   string
	toldAt time.Time
}

func (g *stage) pod(name string) *pod {
	a := &pod{g: g, name: name, k: rotation.New(nil, 10*time.Minute, 0.05)}
	g.agents = append(g.agents, a)
	a.look()
	return a
}

// observe is a poll of every agent.
func (g *stage) observe() {
	for _, a := range g.agents {
		a.look()
		a.acknowledge()
	}
	if g.strict {
		fresh := &pod{g: g, name: "one that starts now", k: rotation.New(nil, 10*time.Minute, 0.05)}
		fresh.look()
		if !fresh.served {
			g.t.Errorf("an agent that starts now has no usable version: %s", fresh.describe())
		}
	}
}

// look is one poll: everything that follows from what is stored now.
func (a *pod) look() {
	g := a.g
	ctx := context.Background()
	md, err := g.real.Metadata(ctx, "provider-keys/prod/px_acme/openai")
	if err != nil {
		return
	}
	seen := rotation.Observed{Now: g.clock(), Record: g.record()}
	for _, v := range md.Versions {
		seen.Versions = append(seen.Versions, rotation.Stored{ID: rotation.ID{Number: v.Number, Created: v.Created}, Readable: v.Readable()})
		fields, _, err := store.GetText(ctx, g.real, fmt.Sprintf("halts/prod/px_acme/openai-%d", v.Number))
		if err == nil {
			if h, err := rotation.DecodeHalt(fields); err == nil {
				seen.Halts = append(seen.Halts, *h)
			}
		}
	}
	a.step(seen)
	a.step(rotation.Tick{Now: g.clock()})
	sum := 0
	for _, s := range a.k.Weights(g.clock()) {
		sum += s.Weight
	}
	a.served = a.served || sum == 100
	if a.served && sum != 100 {
		g.t.Errorf("%s serves %d %%: %s", a.name, sum, a.describe())
	}
}

func (a *pod) step(e rotation.Event) {
	var todo []rotation.Action
	a.k, todo = rotation.Step(a.k, e)
	for len(todo) > 0 {
		next := a.answer(todo[0])
		todo = todo[1:]
		if next != nil {
			var more []rotation.Action
			a.k, more = rotation.Step(a.k, next)
			todo = append(todo, more...)
		}
	}
}

func (a *pod) answer(action rotation.Action) rotation.Event {
	now := a.g.clock()
	switch x := action.(type) {
	case rotation.Load:
		sec, err := a.g.real.Get(context.Background(), "provider-keys/prod/px_acme/openai", x.ID.Number)
		if err != nil {
			return rotation.LoadFailed{Now: now, ID: x.ID, Reason: err.Error()}
		}
		sec.Destroy()
		return rotation.Loaded{Now: now, ID: x.ID}
	case rotation.Probe:
		sec, err := a.g.real.Get(context.Background(), "provider-keys/prod/px_acme/openai", x.ID.Number)
		if err != nil {
			return rotation.Probed{Now: now, ID: x.ID}
		}
		defer sec.Destroy()
		text := ""
		sec.Fields[Field].Use(func(b []byte) { text = string(b) })
		res := a.g.verdict(text)
		return rotation.Probed{Now: now, ID: x.ID, Verdict: res.Verdict, Reason: res.Meaning}
	case rotation.Audit:
		return rotation.Audited{Now: now, ID: x.ID, OK: true}
	}
	return nil
}

func (a *pod) describe() string {
	var b strings.Builder
	for _, v := range a.k.Versions {
		fmt.Fprintf(&b, "%d %s (readable %v) ", v.Number, v.State, v.Readable)
	}
	fmt.Fprintf(&b, "shares %v record %+v", a.k.Weights(a.g.clock()), a.g.record())
	return b.String()
}

// acknowledge writes what the agent has come to: every change, and once a minute.
func (a *pod) acknowledge() {
	r := a.k.Record
	if a.silent || r == nil || r.To.Zero() {
		return
	}
	to, _ := a.k.Find(r.To)
	from, _ := a.k.Find(r.From)
	tell, now := fmt.Sprint(r.To, to.State, from.State), a.g.clock()
	if tell == a.told && now.Sub(a.toldAt) < time.Minute {
		return
	}
	a.told, a.toldAt = tell, now
	a.ack(r.To, to.State, from.State, "")
}

func (a *pod) path() string { return "acks/prod/px_acme/e-agents/" + a.name }

func (a *pod) ack(id rotation.ID, to, from rotation.State, reason string) {
	keys, err := json.Marshal(map[string]any{"openai": map[string]any{"to": id, "to_state": to, "from_state": from, "reason": reason}})
	if err != nil {
		a.g.t.Fatal(err)
	}
	f := map[string][]byte{"agent": []byte(a.name), "at": []byte(a.g.clock().Format(time.RFC3339Nano)), "keys": keys}
	if _, err := store.PutText(context.Background(), a.g.real, a.path(), f, store.Any); err != nil {
		a.g.t.Fatal(err)
	}
}

func (a *pod) state(n int) rotation.State {
	for _, v := range a.k.Versions {
		if v.Number == n {
			return v.State
		}
	}
	return rotation.Unknown
}
