package keys

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/agent/store/vault"
)

// appendPolicy is what every role has on the record; judgePolicy is what whoever
// verifies it has beside that.
const (
	appendPolicy = `
path "secret/data/postern/audit/prod/*" { capabilities = ["create", "read"] }
path "secret/metadata/postern/audit/prod/" { capabilities = ["list"] }
path "secret/metadata/postern/audit/prod/*" { capabilities = ["deny"] }
path "secret/delete/postern/audit/prod/*" { capabilities = ["deny"] }
path "secret/undelete/postern/audit/prod/*" { capabilities = ["deny"] }
path "secret/destroy/postern/audit/prod/*" { capabilities = ["deny"] }
`
	judgePolicy = `
path "secret/data/postern/audit/prod/*" { capabilities = ["read"] }
path "secret/metadata/postern/audit/prod/*" { capabilities = ["read", "list"] }
`
)

// office is a Vault with people who have tokens and entities of their own.
type office struct {
	*vaulttest.Vault
	t testing.TB
}

func newOffice(t testing.TB) *office {
	v := vaulttest.Start(t, vaulttest.Options{})
	v.EnableAuth("approle", "approle")
	v.Policy("append", appendPolicy)
	v.Policy("judge", judgePolicy)
	return &office{v, t}
}

// login returns a token of somebody's own: a role has an entity.
func (o *office) login(name, policy string) string {
	o.t.Helper()
	role := "auth/approle/role/" + name
	o.Do("POST", role, map[string]any{"token_policies": policy})
	id, secretID := o.Do("GET", role+"/role-id", nil)["role_id"], o.Do("POST", role+"/secret-id", nil)["secret_id"]
	_, answer, err := o.Try(context.Background(), "", "POST", "auth/approle/login", map[string]any{"role_id": id, "secret_id": secretID})
	if err != nil {
		o.t.Fatal(err)
	}
	auth, _ := answer["auth"].(map[string]any)
	token, _ := auth["client_token"].(string)
	return token
}

// store opens a store with a token, as a process of its own does.
func (o *office) store(token, prefix string) *vault.Store {
	o.t.Helper()
	value, err := secret.New([]byte(token))
	if err != nil {
		o.t.Fatal(err)
	}
	s, err := vault.New(vault.Config{Address: o.Address, Token: value, Prefix: prefix}, vault.Options{Limiter: rate.NewLimiter(rate.Inf, 0), OutageJitter: -1})
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { s.Close(); value.Destroy() })
	return s
}

// by is an event that claims to be somebody's.
func by(entity string) audit.Event {
	ev := happened("key.add")
	ev.Detail = map[string]string{audit.DetailEntity: entity}
	return ev
}

func entityOf(t testing.TB, s *vault.Store) string {
	t.Helper()
	who, err := s.Identity(t.Context())
	if err != nil || who.EntityID == "" {
		t.Fatalf("%+v, %v", who, err)
	}
	return who.EntityID
}

func TestEightProcessesAppendToOneRecordInVault(t *testing.T) {
	o := newOffice(t)
	const writers, entries = 8, 500
	var left atomic.Int64
	left.Store(entries)
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for i := range writers {
		s := o.store(o.login(fmt.Sprint("writer-", i), "append"), "")
		tr, ev := NewTrail(s, "prod", fmt.Sprint("boot-", i)), by(entityOf(t, s))
		wg.Go(func() {
			<-begin
			for left.Add(-1) >= 0 {
				if _, err := tr.Append(t.Context(), ev); err != nil {
					t.Error(err)
				}
			}
		})
	}
	start := time.Now()
	close(begin)
	wg.Wait()
	t.Logf("%d entries by %d processes in %v", entries, writers, time.Since(start).Round(time.Millisecond))
	r := unbroken(t, NewTrail(o.store(o.login("judge", "judge"), ""), "prod", "reader"), entries)
	if len(r.Chains[0].Boots) != writers {
		t.Errorf("%d processes wrote", len(r.Chains[0].Boots))
	}
	// Whoever may only append can verify all but who wrote.
	got := verified(t, NewTrail(o.store(o.login("writer-0", "append"), ""), "prod", "reader"))
	if fmt.Sprint(got) != "[unwitnessed@0]" {
		t.Errorf("%v", got)
	}
}

func TestVaultRefusesToChangeAnEntry(t *testing.T) {
	o := newOffice(t)
	token := o.login("ann", "append")
	s := o.store(token, "")
	tr := NewTrail(s, "prod", "boot")
	head := must(t, tr, by(entityOf(t, s)))
	const entry = "postern/audit/prod/000000000001"
	data := map[string]any{"data": map[string]any{"entry": "x"}}
	for _, try := range []struct {
		method, path string
		body         any
	}{
		{"POST", "secret/data/" + entry, data},
		{"PUT", "secret/data/" + entry, map[string]any{"data": data["data"], "options": map[string]any{"cas": 1}}},
		{"PATCH", "secret/data/" + entry, data},
		{"DELETE", "secret/data/" + entry, nil},
		{"POST", "secret/delete/" + entry, map[string]any{"versions": []int{1}}},
		{"POST", "secret/undelete/" + entry, map[string]any{"versions": []int{1}}},
		{"PUT", "secret/destroy/" + entry, map[string]any{"versions": []int{1}}},
		{"DELETE", "secret/metadata/" + entry, nil},
		{"POST", "secret/metadata/" + entry, map[string]any{"max_versions": 1}},
		{"POST", "secret/metadata/" + entry, map[string]any{"delete_version_after": "1s"}},
		{"PATCH", "secret/metadata/" + entry, map[string]any{"max_versions": 1}},
		{"POST", "secret/metadata/postern/audit/prod/000000000002", map[string]any{"max_versions": 1}},
		{"POST", "secret/config", map[string]any{"max_versions": 1}},
	} {
		status, answer, err := o.Try(t.Context(), token, try.method, try.path, try.body)
		if err != nil || status != 403 {
			t.Errorf("%s %s %v: HTTP %d, %v, %v", try.method, try.path, try.body, status, answer["errors"], err)
		}
	}
	unbroken(t, NewTrail(o.store(o.RootToken, ""), "prod", "reader"), 1, head)
}

func TestVerifyNamesWhatWasDoneToARecordInVault(t *testing.T) {
	o := newOffice(t)
	n := 0
	attacked(t, func(t *testing.T) store.Store {
		n++
		return o.store(o.RootToken, fmt.Sprint("attack-", n))
	})
}

// What only Vault can tell: a soft deletion, and who wrote.
func TestVerifyBelievesVaultOverTheEntry(t *testing.T) {
	o := newOffice(t)
	ann, bob := o.store(o.login("ann", "append"), ""), o.store(o.login("bob", "append"), "")
	tr := NewTrail(ann, "prod", "boot")
	must(t, tr, by(entityOf(t, ann)))
	must(t, tr.On(bob), by(entityOf(t, bob)))
	must(t, tr.On(bob), by(entityOf(t, ann))) // bob, in ann's name
	must(t, tr.On(bob), happened("key.add"))  // bob, in nobody's
	must(t, tr, by(entityOf(t, ann)))
	judge := NewTrail(o.store(o.login("judge", "judge"), ""), "prod", "reader")
	if got := fmt.Sprint(verified(t, judge)); got != "[forged@3 forged@4]" {
		t.Errorf("%v", got)
	}
	o.KVDelete("secret/postern/audit/prod/000000000002")
	if got := fmt.Sprint(verified(t, judge)); got != "[deleted@2 forged@3 forged@4]" {
		t.Errorf("%v", got)
	}
	// An entry whose content was put back by hand: its time and its writer give it away.
	line := lineAt(t, ann, 1)
	rewrite(t, o.store(o.RootToken, ""), 1, line)
	if got := fmt.Sprint(verified(t, judge)); got != "[forged@1 deleted@2 forged@3 forged@4]" {
		t.Errorf("%v", got)
	}
}

// Whatever Vault lets somebody store where the next entry should go, the record goes on behind it.
func TestNobodyWhoMayAppendCanStopTheRecord(t *testing.T) {
	o := newOffice(t)
	mallory := o.login("mallory", "append")
	ann := o.store(o.login("ann", "append"), "")
	ev := by(entityOf(t, ann))
	remembering := NewTrail(ann, "prod", "boot")
	next := must(t, remembering, ev).Seq + 1
	nested := strings.Repeat(`[`, 250) + strings.Repeat(`]`, 250)
	bodies := []string{
		`{"data":{}}`, `{"data":{"entry":null}}`, `{"data":{"entry":12e40}}`, `{"data":{"entry":["a"]}}`, `{"data":{"entry":{"entry":"x"}}}`,
		`{"data":{"entry":""}}`, `{"data":{"":""}}`, `{"data":{"other":"x"}}`, `{"data":{"entry":"\ud800"}}`, `{"data":{"entry":"\u0000"}}`,
		`{"data":{"entry":"` + strings.Repeat("x", 900<<10) + `"}}`, // as much as Vault takes of a string
		`{"data":{"a":"` + strings.Repeat("x", 800<<10) + `","b":"` + strings.Repeat("x", 800<<10) + `"}}`,
		`{"data":{"entry":` + nested + `}}`, `{"data":{"data":{"data":{}},"metadata":{"version":7}}}`,
		`{"data":{"entry":"x"},"options":{"cas":0}}`, `{"data":null}`,
	}
	wrote := 0
	for _, body := range bodies {
		status, _, err := o.Try(t.Context(), mallory, "POST", "secret/data/postern/"+tpath(next), raw(body))
		if err != nil {
			t.Fatal(err)
		}
		if status == 200 {
			wrote++
			next++
		}
		for _, tr := range []*Trail{NewTrail(ann, "prod", "fresh"), remembering} {
			h, err := tr.Append(t.Context(), ev)
			if err != nil || h.Seq != next {
				t.Fatalf("behind %.60s (HTTP %d): recorded as %d, want %d: %v", body, status, h.Seq, next, err)
			}
			next++
		}
	}
	if wrote < len(bodies)-3 {
		t.Errorf("Vault took %d of %d", wrote, len(bodies))
	}
	// Far ahead, too.
	for _, seq := range []uint64{64, 128, 256, 512, 100_000} {
		if status, _, err := o.Try(t.Context(), mallory, "POST", "secret/data/postern/"+tpath(seq), raw(`{"data":{"entry":"x"}}`)); err != nil || status != 200 {
			t.Fatal(status, err)
		}
	}
	if h := must(t, NewTrail(ann, "prod", "fresh"), ev); h.Seq != next {
		t.Errorf("recorded as %d, want %d", h.Seq, next)
	}
	got := verified(t, NewTrail(o.store(o.login("judge", "judge"), ""), "prod", "reader"))
	garbled := 0
	for _, p := range got {
		if strings.HasPrefix(p, "garbled@") || strings.HasPrefix(p, "deleted@") {
			garbled++
		}
	}
	if garbled != wrote+5 || len(got) != garbled+5 {
		t.Errorf("%d places of garbage, %v", wrote+5, got)
	}
}

// raw is a body that is JSON already.
type raw string

func (r raw) MarshalJSON() ([]byte, error) { return []byte(r), nil }

func TestATokenWithoutTheRightToAppendIsToldSo(t *testing.T) {
	o := newOffice(t)
	o.Policy("viewer", `path "secret/data/postern/audit/prod/*" { capabilities = ["read"] }`)
	o.Policy("blind", `path "secret/data/postern/audit/prod/*" { capabilities = ["create"] }`)
	must(t, NewTrail(o.store(o.RootToken, ""), "prod", "boot"), happened("x"))
	for policy, says := range map[string]string{"viewer": "may not append", "blind": "may not read"} {
		_, err := NewTrail(o.store(o.login(policy, policy), ""), "prod", "boot").Append(t.Context(), happened("x"))
		if !errors.Is(err, store.ErrForbidden) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", policy, err)
		}
	}
}
