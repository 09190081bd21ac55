package sync

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/agent/store/sealed"
	"github.com/postern-proxy/postern/agent/store/vault"
)

// The same on the sealed file, key and all.
func TestAcksInTheSealedStore(t *testing.T) {
	dir := t.TempDir()
	open := func() *sealed.Store {
		s, err := sealed.Open(sealed.Options{File: filepath.Join(dir, "postern.sealed"), KeyFile: filepath.Join(dir, "postern.key"), Create: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	operator, agents := open(), open() // two processes, as it were
	put := func(path string, fields map[string][]byte) store.Version {
		t.Helper()
		v, err := store.PutText(context.Background(), operator, path, fields, store.Any)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	inBubble(t, func(r *rig) {
		acks := r.acks("one", func(o *AcksOptions) { o.Store, o.Local = agents, true })
		made := func(n int) rotation.ID {
			v := put(keyPath, map[string][]byte{"api_key": []byte(key(n))})
			return rotation.ID{Number: v.Number, Created: v.Created}
		}
		write := func(rec rotation.Record) {
			t.Helper()
			fields, err := rec.Encode()
			if err != nil {
				t.Fatal(err)
			}
			put(record, fields)
		}
		rec := rotation.Record{From: made(1), Phase: rotation.PhaseMigrate, Grace: time.Minute}
		a := r.start(func(o *Options) { o.Store, o.Acks = agents, acks.Acks })
		rec.To, rec.StartedAt = made(2), operator.Now()
		write(rec)
		pass(7 * time.Second)
		a.shares("2:100 1:0")
		fields, _, err := store.GetText(context.Background(), operator, ackFolder+"local/one")
		if err != nil || !strings.Contains(string(fields["keys"]), `"to_state":"active","from_state":"draining"`) {
			t.Fatalf("%s, %v", fields["keys"], err)
		}
		rec.Closed = true
		write(rec)
		pass(7 * time.Second)
		if _, err := operator.Metadata(context.Background(), ackFolder+"local/one"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// eventually waits for what a real server does.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !holds(); {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// With one policy for all, templated by entity, each writes below its own
// identity only, and takes back what it wrote.
func TestAcksInVault(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	const own = `postern/acks/prod/px_acme/{{identity.entity.id}}/*"`
	v.Policy("agent", `path "secret/data/`+own+` { capabilities = ["create", "update", "delete"] }
		path "secret/metadata/`+own+` { capabilities = ["delete"] }`)
	v.EnableAuth("approle", "approle")
	quiet := slog.New(slog.DiscardHandler)
	open := func(cfg vault.Config) *vault.Store {
		t.Helper()
		cfg.Address = v.Address
		s, err := vault.New(cfg, vault.Options{Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	login := func(role string, policies ...string) (s *vault.Store, entity string) {
		t.Helper()
		v.Do("POST", "auth/approle/role/"+role, map[string]any{"token_policies": policies})
		id, _ := v.Do("GET", "auth/approle/role/"+role+"/role-id", nil)["role_id"].(string)
		given, _ := v.Do("POST", "auth/approle/role/"+role+"/secret-id", nil)["secret_id"].(string)
		file := filepath.Join(t.TempDir(), "secret-id")
		if err := os.WriteFile(file, []byte(given), 0o600); err != nil {
			t.Fatal(err)
		}
		s = open(vault.Config{Auth: vault.Auth{AppRole: &vault.AppRoleAuth{RoleID: id, SecretIDFile: file}}})
		who, err := s.Identity(t.Context())
		if err != nil || who.EntityID == "" {
			t.Fatalf("%+v, %v", who, err)
		}
		return s, who.EntityID
	}
	token, err := secret.New([]byte(v.RootToken))
	if err != nil {
		t.Fatal(err)
	}
	defer token.Destroy()
	root := open(vault.Config{Token: token})
	states := func(entity, name string) string {
		fields, _, err := store.GetText(t.Context(), root, ackFolder+entity+"/"+name)
		if errors.Is(err, store.ErrNotFound) {
			return "nothing"
		}
		if err != nil {
			t.Error(err)
		}
		return string(fields["keys"])
	}

	r := &rig{t: t, m: newMetrics(), logs: &logs{}}
	mine, entity := login("one", "agent")
	other, _ := login("two", "agent")
	one := r.acksOn(mine, "one")
	rep := one.join("openai")
	rep.say(&Ack{To: rotation.ID{Number: 2}, ToState: rotation.Pending, FromState: rotation.Active})
	eventually(t, "the first", func() bool { return strings.Contains(states(entity, "one"), `"to_state":"pending"`) })
	rep.say(&Ack{To: rotation.ID{Number: 2}, ToState: rotation.Active, FromState: rotation.Active})
	eventually(t, "the second", func() bool { return strings.Contains(states(entity, "one"), `"to_state":"active"`) })
	for _, path := range []string{ackFolder + entity + "/one", ackFolder + entity + "/forged"} {
		if _, err := store.PutText(t.Context(), other, path, map[string][]byte{"keys": []byte("{}")}, store.Any); !errors.Is(err, store.ErrForbidden) {
			t.Errorf("another identity writes %s: %v", path, err)
		}
		if err := other.Remove(t.Context(), path); !errors.Is(err, store.ErrForbidden) {
			t.Errorf("another identity removes %s: %v", path, err)
		}
	}
	rep.say(nil)
	eventually(t, "the end", func() bool { return states(entity, "one") == "nothing" })
	rep.say(&Ack{To: rotation.ID{Number: 3}})
	eventually(t, "the next rotation", func() bool { return states(entity, "one") != "nothing" })
	one.stop()
	if names, err := root.List(t.Context(), ackFolder+entity+"/"); err != nil || len(names) != 0 {
		t.Errorf("after the stop: %v, %v", names, err)
	}

	powerless, stranger := login("three") // whose policy says nothing of acknowledgements
	two := r.acksOn(powerless, "two")
	two.join("openai").say(&Ack{To: rotation.ID{Number: 2}})
	eventually(t, "the refusal", func() bool { return testutil.ToFloat64(r.m.acks.WithLabelValues(ackFailed)) > 0 })
	two.stop()
	if states(stranger, "two") != "nothing" || !strings.Contains(r.logs.String(), "kind=forbidden") {
		t.Error("without a right to it")
	}

	three := r.acksOn(root, "three") // a token that belongs to no entity
	three.join("openai").say(&Ack{To: rotation.ID{Number: 2}})
	eventually(t, "that it has none", func() bool { return r.logged("has no entity") == 1 })
	three.stop()
	if names, err := root.List(t.Context(), ackFolder); err != nil || slices.Contains(names, "/") || slices.Contains(names, "local/") {
		t.Errorf("%v, %v", names, err)
	}
}
