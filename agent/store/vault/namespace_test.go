package vault

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/store"
)

func TestANamespaceThatTheServerIgnoresIsRefused(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	role := appRole(t, v, nil)
	for name, auth := range map[string]Config{
		"login":    {Address: v.Address, Namespace: "team-a", Auth: Auth{AppRole: role}},
		"operator": {Address: v.Address, Namespace: "team-a", Token: value(t, v.RootToken)},
		"token without the default policy": {Address: v.Address, Namespace: "team-a",
			Token: value(t, v.Token(vaulttest.TokenOptions{Policies: []string{"postern"}, NoDefault: true}))},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, auth, quick())
			err := s.Login(t.Context())
			if !errors.Is(err, store.ErrUnauthenticated) || !strings.Contains(err.Error(), `store.vault.namespace is "team-a"`) {
				t.Errorf("error %v", err)
			}
			if _, err := read(t, s, key); err == nil || errors.Is(err, store.ErrNotFound) {
				t.Errorf("a read went to the root: %v", err)
			}
		})
	}
}

// namespaced is a server that knows the namespaces "" and "team-a"; how it
// shows that differs between products and rights.
type namespaced struct {
	path       string // namespace_path of a lookup; "" for none
	noLookup   bool   // the token may not look itself up
	enterprise bool
	closed     bool // nothing is shown without a token
}

func (n namespaced) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	say := func(status int, format string, args ...any) {
		w.WriteHeader(status)
		fmt.Fprintf(w, format, args...)
	}
	namespace := r.Header.Get("X-Vault-Namespace")
	switch {
	case r.URL.Path == "/v1/sys/health":
		say(200, `{"enterprise":%v}`, n.enterprise)
	case namespace != "" && namespace != "team-a":
		say(404, `{"errors":["no handler for route"]}`)
	case r.URL.Path == "/v1/sys/internal/ui/mounts" && n.closed:
		say(403, `{"errors":["permission denied"]}`)
	case r.URL.Path == "/v1/sys/internal/ui/mounts":
		say(200, `{"data":{}}`)
	case n.noLookup:
		say(403, `{"errors":["1 error occurred:\n\t* permission denied\n\n"]}`)
	default:
		say(200, `{"data":{"ttl":0,"namespace_path":%q}}`, n.path)
	}
}

func TestANamespaceThatTheServerHonoursIsVerified(t *testing.T) {
	for name, c := range map[string]struct {
		server    namespaced
		namespace string
		ok        bool
	}{
		"the token lives in it":              {namespaced{path: "team-a/", closed: true}, "team-a", true},
		"the token lives above it":           {namespaced{enterprise: true, closed: true}, "/team-a/", true},
		"the token may not look":             {namespaced{noLookup: true, enterprise: true}, "team-a", true},
		"told by behaviour":                  {namespaced{noLookup: true}, "team-a", true},
		"a typo":                             {namespaced{noLookup: true}, "team-b", false},
		"nothing is shown: no evidence":      {namespaced{noLookup: true, closed: true}, "team-a", false},
		"the token lives in another one too": {namespaced{path: "team-b/", closed: true}, "team-a", false},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(c.server)
			t.Cleanup(server.Close)
			cfg := withToken(t, server.URL, "hvs.x")
			cfg.Namespace = c.namespace
			err := open(t, cfg, quick()).Login(t.Context())
			if c.ok && err != nil || !c.ok && (err == nil || !errors.Is(err, store.ErrUnauthenticated)) {
				t.Errorf("error %v, want success %v", err, c.ok)
			}
		})
	}
}
