package agent

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// rotate writes the key's next version and a rotation record that is open.
func (h *house) rotate(key string) {
	h.t.Helper()
	h.put("openai", key)
	md, err := h.keys.Store.Metadata(h.t.Context(), h.keys.Scope.Path("openai"))
	if err != nil {
		h.t.Fatal(err)
	}
	id := func(v store.Version) rotation.ID { return rotation.ID{Number: v.Number, Created: v.Created} }
	versions := md.Versions[len(md.Versions)-2:]
	h.record(rotation.Record{From: id(versions[0]), To: id(versions[1]), Phase: rotation.PhaseMigrate, StartedAt: h.keys.Store.Now(), Grace: time.Hour, Ramp: rotation.Ramp{{Weight: 40, For: time.Hour}}})
}

func (h *house) record(r rotation.Record) {
	h.t.Helper()
	fields, err := r.Encode()
	if err == nil {
		_, err = store.PutText(h.t.Context(), h.keys.Store, "rotations/test/px_test/openai", fields, store.Any)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// acks are the entries below acks/, by agent: what each says about its keys.
func (h *house) acks() map[string]string {
	h.t.Helper()
	const folder = "acks/test/px_test/local/"
	names, err := h.keys.Store.List(h.t.Context(), folder)
	if err != nil {
		h.t.Fatal(err)
	}
	all := map[string]string{}
	for _, name := range names {
		if fields, _, err := store.GetText(h.t.Context(), h.keys.Store, folder+name); err == nil {
			all[name] = string(fields["keys"])
		}
	}
	return all
}

const nextKey = "sk-test-next-00000000000000000000000"

// An agent says how far it is while a rotation is open, through reloads, and
// takes that back when it stops; and an operator sees the same in its status.
func TestAnAgentAcknowledgesRotations(t *testing.T) {
	h := newHouse(t)
	one, two := h.start(), h.start()
	if n := len(h.acks()); n != 0 {
		t.Errorf("%d acknowledgements without a rotation", n)
	}
	h.rotate(nextKey)
	active := func(n int) func() bool {
		return func() bool {
			all := h.acks()
			for _, said := range all {
				if !strings.Contains(said, `{"openai":{"to":{"number":2,`) || !strings.Contains(said, `"to_state":"active","from_state":"active"`) {
					return false
				}
			}
			return len(all) == n
		}
	}
	eventually(t, "both agents", active(2))
	b, err := json.Marshal(one.Status())
	if err != nil || !strings.Contains(string(b), `"rotation":{"from":1,"to":2,"weight":40,"phase":"migrate"}`) {
		t.Errorf("%s, %v", b, err)
	}
	before := slices.Sorted(maps.Keys(h.acks()))
	h.replace("version: 1", "version: 1\nservice: next")
	if err := one.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	one.draining.Wait()
	if after := slices.Sorted(maps.Keys(h.acks())); !slices.Equal(before, after) || !active(2)() {
		t.Errorf("after a reload on the same store: %v, before %v", h.acks(), before)
	}
	h.replace("poll: 200ms", "poll: 300ms") // which opens the store anew
	if err := one.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	one.draining.Wait()
	eventually(t, "the new store's acknowledgement instead of the old one's", active(2))
	one.Stop()
	if n := len(h.acks()); n != 1 {
		t.Errorf("%d acknowledgements after one of two agents stopped", n)
	}
	two.Stop()
	if n := len(h.acks()); n != 0 {
		t.Errorf("%d acknowledgements after both stopped", n)
	}
	h.serves(h.start(), "openai")
}

// `postern check` says where a rotation will not wait for the agent.
func TestCheckSaysWhereRotationsDoNotWait(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	h := newHouse(t)
	const own = `postern/acks/test/px_test/{{identity.entity.id}}/*" { capabilities = `
	read := `path "secret/data/postern/*" { capabilities = ["read"] }
		path "secret/metadata/postern/*" { capabilities = ["read"] }
		`
	v.EnableAuth("approle", "approle")
	v.Do("POST", "auth/approle/role/agent", map[string]any{"token_policies": "default,agent"})
	id, _ := v.Do("GET", "auth/approle/role/agent/role-id", nil)["role_id"].(string)
	given, _ := v.Do("POST", "auth/approle/role/agent/secret-id", nil)["secret_id"].(string)
	h.write("secret-id", given)
	h.write("token", v.RootToken)
	v.KVPut("secret/postern/provider-keys/test/px_test/openai", map[string]string{"api_key": firstKey})
	h.replace("{sealed: {file: postern.sealed, key_file: postern.key, poll: 200ms}}",
		`{vault: {address: "`+v.Address+`", auth: {approle: {role_id: `+id+`, secret_id_file: secret-id}}, poll: 1s}}`)
	h.replace("grace: 1s", "grace: 2s")
	for _, c := range []struct{ what, policy, says string }{
		{"nothing", read, "its policy lacks create on secret/data/postern/acks/test/px_test/"},
		{"no removal", read + `path "secret/data/` + own + `["create", "update", "delete"] }`, "its policy lacks delete on secret/metadata/postern/acks/test/px_test/"},
		{"all", read + `path "secret/data/` + own + `["create", "update", "delete"] }
			path "secret/metadata/` + own + `["delete"] }`, ""},
	} {
		v.Policy("agent", c.policy)
		r := h.check(false)
		if said := strings.Join(r.Notes, "\n"); !r.OK || strings.Contains(said, "rotations:") != (c.says != "") || !strings.Contains(said, c.says) {
			t.Errorf("%s: %+v", c.what, r)
		}
	}
	h.replace(`{approle: {role_id: `+id+`, secret_id_file: secret-id}}`, `{token: {file: token}}`)
	if r := h.check(false); !strings.Contains(strings.Join(r.Notes, "\n"), "its identity in Vault has no entity") {
		t.Errorf("a token: %+v", r)
	}
}

// stuck is an audit record that can be told to take no more.
type stuck struct {
	buffer
	full atomic.Bool
}

func (s *stuck) Write(p []byte) (int, error) {
	if s.full.Load() {
		return 0, errors.New("no space left on device")
	}
	return s.buffer.Write(p)
}

// Whoever rotates hears of each agent, and the old version stays until the last
// of them has moved: one that cannot record that it moves does not.
func TestARotationWaitsForItsAgents(t *testing.T) {
	h := newHouse(t)
	h.start()
	record := &stuck{}
	o := h.options()
	o.Audit = record
	slow, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(slow.Stop)
	if err := slow.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := slow.AwaitKeys(t.Context(), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	record.full.Store(true)

	h.provider.Allow(nextKey)
	value, err := secret.New([]byte(nextKey))
	if err != nil {
		t.Fatal(err)
	}
	defer value.Destroy()
	grace := time.Second
	m := *h.keys
	m.Poll, m.Grace = 200*time.Millisecond, grace
	rot, err := m.Rotate(t.Context(), "openai", value, keys.RotateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	states := func() (moved, waits int) {
		if rot, err = m.Advance(t.Context(), "openai"); err != nil {
			t.Fatal(err)
		}
		for _, a := range rot.Agents {
			switch {
			case !a.Live:
			case a.To == rotation.Active && !a.From.Usable():
				moved++
			case a.To == rotation.Pending && a.From == rotation.Active:
				waits++
			}
		}
		return moved, waits
	}
	eventually(t, "one has moved, the other one waits", func() bool {
		moved, waits := states()
		return moved == 1 && waits == 1
	})
	if rot.Closed || rot.Phase != rotation.PhaseMigrate {
		t.Errorf("%+v", rot)
	}
	h.serves(slow, "openai") // with the old version
	record.full.Store(false)
	eventually(t, "the rotation's end", func() bool { states(); return rot.Closed })
	if rot.Phase != rotation.PhaseDone || rot.From != 1 || rot.To != 2 {
		t.Errorf("%+v", rot)
	}
	if _, err := m.Store.Get(t.Context(), m.Scope.Path("openai"), 1); !errors.Is(err, store.ErrDeleted) {
		t.Errorf("the old version: %v", err)
	}
	h.serves(slow, "openai")
	eventually(t, "no acknowledgement is left", func() bool { return len(h.acks()) == 0 })
}
