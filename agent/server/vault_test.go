package server

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	issuerfake "github.com/postern-proxy/postern/agent/issuer/fake"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/agent/roles"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store/vault"
)

const adminKey = "sk-admin-0123456789abcdefghijklmnopqrstuv"

// house is a real Vault with the printed policies, a provider, a vendor where its
// keys are made, and any number of servers.
type house struct {
	t        *testing.T
	vault    *vaulttest.Vault
	provider *fake.Server
	vendor   *issuerfake.Server
	dir      string
	client   *http.Client
	log      *lockedBuffer
	secrets  []string // that must be seen nowhere
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{t: t, vault: vaulttest.Start(t, vaulttest.Options{TLS: true}), dir: t.TempDir(), log: &lockedBuffer{}}
	var err error
	if h.provider, err = fake.New(fake.Options{Kind: "openai", Keys: []string{seedKey, nextKey}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.provider.Close() })
	h.vendor, err = issuerfake.New(issuerfake.Options{Kind: "openai", Admin: adminKey,
		OnIssue: func(_, key string) { h.provider.Allow(key) }, OnRevoke: func(_, key string) { h.provider.Revoke(key) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.vendor.Close() })
	writeFile(t, filepath.Join(h.dir, "provider.pem"), string(h.provider.CAPEM()))
	writeFile(t, filepath.Join(h.dir, "vendor.pem"), string(h.vendor.CAPEM()))
	writeCertificate(t, h.dir, 1)
	h.client = clientOf(t, h.dir)
	h.vault.KVPut("secret/postern/issuers/prod/openai", map[string]string{"api_key": adminKey})
	h.vault.EnableAuth("userpass", "userpass")
	h.policy("server", roles.Options{Role: roles.Server})
	h.vault.EnableAuth("approle", "approle")
	h.vault.Do("POST", "auth/approle/role/server", map[string]any{"token_policies": "server", "token_no_default_policy": true})
	id := h.vault.Do("GET", "auth/approle/role/server/role-id", nil)["role_id"].(string)
	secretID := h.vault.Do("POST", "auth/approle/role/server/secret-id", nil)["secret_id"].(string)
	writeFile(t, filepath.Join(h.dir, "secret-id"), secretID)
	writeFile(t, filepath.Join(h.dir, "role-id"), id)
	h.secrets = []string{seedKey, nextKey, adminKey, secretID, h.vault.RootToken}
	return h
}

func (h *house) policy(name string, o roles.Options) {
	h.t.Helper()
	o.Environment = "prod"
	text, err := roles.Policy(o)
	if err != nil {
		h.t.Fatal(err)
	}
	h.vault.Policy(name, text)
}

// login is somebody with a role: an entity of Vault's, with the printed policy.
func (h *house) login(name string, o roles.Options) (token string) {
	h.t.Helper()
	h.policy(name, o)
	h.vault.Do("POST", "auth/userpass/users/"+name, map[string]any{"password": "pw-" + name, "token_policies": name, "token_no_default_policy": true})
	status, answer, err := h.vault.Try(h.t.Context(), "", "POST", "auth/userpass/login/"+name, map[string]any{"password": "pw-" + name})
	if err != nil || status != http.StatusOK {
		h.t.Fatalf("%d %v", status, err)
	}
	token = answer["auth"].(map[string]any)["client_token"].(string)
	h.secrets = append(h.secrets, token)
	return token
}

// serve runs one more server and waits until it is ready.
func (h *house) serve() (s *Server, base string) {
	h.t.Helper()
	roleID, err := os.ReadFile(filepath.Join(h.dir, "role-id"))
	if err != nil {
		h.t.Fatal(err)
	}
	host := strings.TrimPrefix(h.provider.URL(), "https://")
	s = started(h.t, parsed(h.t, h.dir, fmt.Sprintf(`version: 1
environment: prod
server: {listen: "127.0.0.1:0", cert_file: tls.crt, key_file: tls.key}
store: {vault: {address: %q, ca_file: %q, poll: 1s, auth: {approle: {role_id: %s, secret_id_file: secret-id}}}}
rotation: {grace: 2s}
providers: [{name: openai, hosts: [%q], base_url: %q, ca_file: provider.pem}]
issuers: [{provider: openai, kind: openai, project: proj_test, admin_key: issuers/openai, base_url: %q, ca_file: vendor.pem}]
`, h.vault.Address, h.vault.CAFile, roleID, host, h.provider.URL(), h.vendor.URL())), h.log)
	base = "https://" + s.Addr().String()
	h.until("the server is ready", func() bool {
		return send(h.t, h.client, base, ask{method: "GET", path: "/readyz", token: "-"}).status == http.StatusOK
	})
	return s, base
}

// until looks again and again.
func (h *house) until(what string, holds func() bool) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 3*time.Minute)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			h.t.Fatalf("waited for: %s\n%s", what, h.log.String())
		}
	}
}

// want sends a request to a server and wants a status.
func (h *house) want(status int, base string, a ask) said {
	h.t.Helper()
	got := send(h.t, h.client, base, a)
	if got.status != status {
		h.t.Fatalf("%s %s: %d, want %d: %s", a.method, a.path, got.status, status, got.body)
	}
	h.clean(fmt.Sprint(got.header, got.body))
	return got
}

// clean finds no secret in a text.
func (h *house) clean(text string) {
	h.t.Helper()
	for _, s := range h.secrets {
		if i := strings.Index(text, s); i >= 0 {
			h.t.Errorf("found a secret behind …%s", text[max(0, i-100):i])
		}
	}
}

// record is the trail, read as root.
func (h *house) record() *keys.Trail {
	h.t.Helper()
	root, err := secret.New([]byte(h.vault.RootToken))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(root.Destroy)
	st, err := vault.New(vault.Config{Address: h.vault.Address, CAFile: h.vault.CAFile, Token: root}, vault.Options{})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { st.Close() })
	return keys.NewTrail(st, "prod", agent.Boot())
}

func (h *house) rotation(base, token, id string) map[string]any {
	h.t.Helper()
	_, name, _ := strings.Cut(strings.TrimPrefix(id, "prod."), ".")
	px := strings.TrimSuffix(strings.TrimPrefix(id, "prod."), "."+name)
	for _, r := range h.want(http.StatusOK, base, ask{method: "GET", path: "/v1/rotations?proxy_id=" + px, token: token}).json(h.t)["rotations"].([]any) {
		if r := r.(map[string]any); r["id"] == id {
			return r
		}
	}
	return nil
}

// Everything together over a real Vault with the policies as they are printed:
// roles, two servers, a managed rotation, the record, and no secret anywhere.
func TestServersOverVault(t *testing.T) {
	h := newHouse(t)
	admin := h.login("security", roles.Options{Role: roles.Security, With: []roles.Verb{roles.Add}})
	devops := h.login("devops", roles.Options{Role: roles.DevOps})
	lead := h.login("lead", roles.Options{Role: roles.TeamLead, ProxyIDs: []string{"px_acme_prod"}})
	developer := h.login("developer", roles.Options{Role: roles.Developer, ProxyIDs: []string{"px_acme_prod"}})
	first, a := h.serve()
	_, b := h.serve()

	h.want(http.StatusCreated, a, ask{method: "POST", path: "/v1/provider-keys", token: admin, body: seeded("")})
	h.want(http.StatusCreated, b, ask{method: "POST", path: "/v1/provider-keys", token: admin, body: strings.NewReplacer("px_acme_prod", "px_other", seedKey, "sk-proj-other0000000000000000000").Replace(seeded(""))})
	h.provider.Allow("sk-proj-other0000000000000000000")
	h.want(http.StatusConflict, b, ask{method: "POST", path: "/v1/provider-keys", token: admin, body: seeded("")})

	t.Run("roles", func(t *testing.T) { h.roles(t, a, devops, lead, developer) })
	t.Run("idempotency", func(t *testing.T) { h.idempotency(t, a, b, devops) })
	t.Run("managed", func(t *testing.T) { h.managed(t, first, a, b, devops) })
	t.Run("revoke", func(t *testing.T) {
		got := h.want(http.StatusOK, b, ask{method: "POST", path: "/v1/provider-keys/prod.px_other.openai/revoke", token: admin, body: `{"all":true,"reason":"a laptop was stolen"}`})
		if got.json(t)["remaining"] != 0. {
			t.Errorf("%s", got.body)
		}
		h.until("the vendor has ended them", func() bool { return len(h.vendor.Live()) == 0 })
	})
	t.Run("record", func(t *testing.T) { h.verified(t, b, admin) })

	// Whatever is no token of this Vault's is told so, and fills no record.
	for _, token := range []string{"x", "hvs.CAESIJ0000000000000000000000000000000000000000000000000000", "hvb.AAAAAQ000000000000000000", "s.0123456789abcdefghijklmn", "root", "hvs." + strings.Repeat("x", 4000)} {
		got := send(t, h.client, b, ask{method: "GET", path: "/v1/provider-keys", token: token})
		// Of some Vault cannot make sense at all, and cuts the connection.
		if got.status != http.StatusUnauthorized && got.status != http.StatusServiceUnavailable || strings.Contains(got.body, "openai") {
			t.Errorf("%.30s: %d %s", token, got.status, got.body)
		}
	}
	if entries, err := h.record().Entries(t.Context(), keys.TrailFilter{Event: keys.EventDenied, Actor: "unidentified"}); err != nil || len(entries) > 0 {
		t.Errorf("%+v, %v", entries, err)
	}
	h.vault.RevokeToken(devops)
	got := h.want(http.StatusUnauthorized, b, ask{method: "GET", path: "/v1/provider-keys", token: devops})
	if !strings.Contains(got.body, codeUnauthenticated) {
		t.Errorf("%s", got.body)
	}
	h.want(http.StatusOK, b, ask{method: "GET", path: "/metrics", token: "-"})
	h.clean(h.log.String())
	if !strings.Contains(h.log.String(), "createProviderKey") {
		t.Error("there is no log to search")
	}
}

// What a token may not do is refused by Vault, and recorded by the server.
func (h *house) roles(t *testing.T, base, devops, lead, developer string) {
	const own, other = "/v1/provider-keys/prod.px_acme_prod.openai", "/v1/provider-keys/prod.px_other.openai"
	body := fmt.Sprintf(`{"api_key":%q}`, nextKey)
	for _, c := range []struct {
		status int
		ask
	}{
		{200, ask{method: "GET", path: own, token: developer}},
		{200, ask{method: "POST", path: own + "/validate", token: developer}},
		{403, ask{method: "POST", path: own + "/rotate", token: developer, body: body}},
		{403, ask{method: "POST", path: own + "/revoke", token: developer, body: `{"all":true,"reason":"x"}`}},
		{403, ask{method: "DELETE", path: own, token: developer}},
		{403, ask{method: "GET", path: other, token: developer}},
		{403, ask{method: "POST", path: other + "/validate", token: developer}},
		{403, ask{method: "GET", path: "/v1/provider-keys", token: lead}},
		{200, ask{method: "GET", path: "/v1/provider-keys?proxy_id=px_acme_prod", token: lead}},
		{403, ask{method: "POST", path: other + "/rotate", token: lead, body: body}},
		{403, ask{method: "POST", path: "/v1/provider-keys", token: lead, body: strings.Replace(seeded(`,"name":"more"`), seedKey, nextKey, 1)}},
		{403, ask{method: "GET", path: "/v1/audit", token: developer}},
		{200, ask{method: "GET", path: "/v1/provider-keys", token: devops}},
		{200, ask{method: "GET", path: "/v1/rotations", token: devops}},
		{202, ask{method: "POST", path: own + "/rotate", token: lead, body: body}},
	} {
		got := send(t, h.client, base, c.ask)
		if got.status != c.status {
			t.Errorf("%s %s: %d, want %d: %s", c.method, c.path, got.status, c.status, got.body)
		}
		h.clean(got.body)
	}
	denied := map[string]int{}
	entries, err := h.record().Entries(t.Context(), keys.TrailFilter{Event: keys.EventDenied})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		denied[e.Actor]++
		if e.Detail["caller_entity_id"] == "" || e.Detail["caller_entity_id"] == e.Detail["entity_id"] || e.Source != "127.0.0.1" || !strings.Contains(e.Reason, "policies do not allow") {
			t.Errorf("%+v", e)
		}
	}
	if want := map[string]int{"userpass-developer": 6, "userpass-lead": 3}; !maps.Equal(denied, want) {
		t.Errorf("denials in the record: %v, want %v", denied, want)
	}
	h.until("the rotation is done", func() bool {
		return h.rotation(base, devops, "prod.px_acme_prod.openai")["phase"] == "done"
	})
}

// The same request at two servers at the same time begins one rotation.
func (h *house) idempotency(t *testing.T, a, b, devops string) {
	h.provider.Allow("sk-proj-idem0000000000000000000")
	h.secrets = append(h.secrets, "sk-proj-idem0000000000000000000")
	path := "/v1/provider-keys/prod.px_acme_prod.openai/rotate"
	var wg sync.WaitGroup
	answers := make([]said, 4)
	for i := range answers {
		wg.Go(func() {
			answers[i] = send(t, h.client, []string{a, b}[i%2], ask{method: "POST", path: path, token: devops, body: `{"api_key":"sk-proj-idem0000000000000000000"}`,
				header: map[string]string{"Idempotency-Key": "5b1c9e0a-once"}})
		})
	}
	wg.Wait()
	for _, got := range answers {
		if got.status != http.StatusAccepted || got.json(t)["to"] != 3. {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
	h.until("the rotation is done", func() bool {
		return h.rotation(a, devops, "prod.px_acme_prod.openai")["phase"] == "done"
	})
	md := h.vault.Do("GET", "secret/metadata/postern/provider-keys/prod/px_acme_prod/openai", nil)
	if md["current_version"] != 3. {
		t.Errorf("version %v, want 3", md["current_version"])
	}
}

// A managed rotation is made once, though two servers look at it, and finished by the other one when the first ends.
func (h *house) managed(t *testing.T, first *Server, a, b, devops string) {
	const id = "prod.px_other.openai"
	h.want(http.StatusAccepted, a, ask{method: "POST", path: "/v1/provider-keys/" + id + "/rotate", token: devops, body: `{"managed":true,"reason":"a new machine"}`})
	h.until("the key is made", func() bool { return len(h.vendor.Keys()) > 0 })
	first.Stop()
	h.until("the rotation is done", func() bool { return h.rotation(b, devops, id)["phase"] == "done" })
	if live := h.vendor.Live(); len(h.vendor.Keys()) != 1 || len(live) != 1 {
		t.Errorf("the vendor made %d keys, %d live", len(h.vendor.Keys()), len(live))
	}
	shown := h.want(http.StatusOK, b, ask{method: "GET", path: "/v1/provider-keys/" + id, token: devops})
	var states []string
	for _, v := range shown.json(t)["versions"].([]any) {
		states = append(states, v.(map[string]any)["state"].(string))
	}
	if !slices.Equal(states, []string{"active", "destroyed"}) {
		t.Errorf("%v: %s", states, shown.body)
	}
}

// The record holds together, and nobody is in it under another's name.
func (h *house) verified(t *testing.T, base, admin string) {
	report, err := h.record().Verify(t.Context())
	if err != nil || len(report.Problems) > 0 {
		t.Errorf("%+v, %v", report.Problems, err)
	}
	page := h.want(http.StatusOK, base, ask{method: "GET", path: "/v1/audit?limit=200", token: admin})
	for _, e := range []string{keys.EventCreate, keys.EventValidate, keys.EventGenerate, keys.EventMigrate, keys.EventRetire, keys.EventRevoke, keys.EventDenied} {
		if !strings.Contains(page.body, `"`+e+`"`) {
			t.Errorf("the record has no %s", e)
		}
	}
}
