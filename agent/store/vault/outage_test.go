package vault

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/store"
)

func TestSealedStoppedAndBackAgain(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{Persistent: true})
	v.KVPut("secret/postern/"+key, map[string]string{"api_key": "the value"})
	cfg := Config{Address: v.Address, Auth: Auth{AppRole: appRole(t, v, nil)}}
	reopened := open(t, cfg, quick()) // not logged in before the outage
	s := open(t, cfg, quick())
	s.Start(t.Context())
	mustRead(t, s, key, "the value")
	before := s.session.Load()

	unavailable := func(what string, parts ...string) {
		t.Helper()
		_, err := read(t, s, key)
		if !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: %v, want ErrUnavailable", what, err)
			return
		}
		for _, part := range append(parts, fmt.Sprint("127.0.0.1:", v.Port())) {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v does not say %q", what, err, part)
			}
		}
	}
	v.Seal()
	unavailable("sealed", "HTTP 503", "Vault is sealed")
	v.Unseal()
	eventually(t, "reads after unsealing", func() bool { _, err := read(t, s, key); return err == nil })

	v.Stop()
	unavailable("stopped", "refused the connection", "store.vault.address")
	if err := reopened.Login(t.Context()); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a login while Vault is away: %v", err)
	}
	v.RunSealed()
	unavailable("started but sealed", "HTTP 503")
	v.Unseal()
	eventually(t, "reads after the restart", func() bool { _, err := read(t, s, key); return err == nil })
	eventually(t, "the other Store's login", func() bool { return reopened.Login(t.Context()) == nil })
	if s.session.Load() != before {
		t.Error("the outage cost a login, although the token was still good")
	}
}

func TestKeepAliveLogsInOnceVaultIsThere(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{Persistent: true})
	cfg := Config{Address: v.Address, Auth: Auth{AppRole: appRole(t, v, nil)}}
	v.Stop()
	s := open(t, cfg, quick())
	s.Start(t.Context())
	eventually(t, "an attempt to fail", func() bool { return s.outage.Load() })
	v.Run()
	eventually(t, "the login", func() bool { return s.session.Load() != nil })
}

func TestCallsAreUnavailableWhile(t *testing.T) {
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"an answer is no JSON": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>sign in</html>") },
			"not Vault's"},
		"an answer is other JSON": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"hello":"world"}`) },
			"not Vault's"},
		"an answer is a list": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `[]`) },
			"not Vault's"},
		"an answer is empty": {func(http.ResponseWriter, *http.Request) {},
			"not Vault's"},
		"data has no version": {func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"data":{"data":{"api_key":"x"},"metadata":{}}}`)
		},
			"no version"},
		"a field is there twice": {func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"data":{"data":{"api_key":"x","api_key":"y"},"metadata":{"version":1}}}`)
		}, "twice"},
		"a value is no Unicode": {func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"data":{"data":{"good":"x","api_key":"\ud800"},"metadata":{"version":1}}}`)
		}, "Unicode"},
		"an answer is cut off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, `{"data":`)
		}, "no answer from"},
		"a proxy says 502": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502); fmt.Fprint(w, "<html>bad gateway") },
			"HTTP 502"},
		"a proxy says 401": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401); fmt.Fprint(w, "<html>who are you") },
			"not as Vault does"},
		"Vault says 429": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(429)
			fmt.Fprint(w, `{"errors":["slow down"]}`)
		},
			"HTTP 429 (slow down)"},
		"Vault says 412": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(412)
			fmt.Fprint(w, `{"errors":["required index state not present"]}`)
		}, "HTTP 412"},
		"a standby says 473": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(473) },
			"HTTP 473"},
		"the connection breaks": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
			"no answer from"},
		"nothing comes": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
			"did not answer within"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := fake(t, c.answer)
			_, err := s.Get(t.Context(), key, 0)
			if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), key) {
				t.Errorf("error %v, want ErrUnavailable and %q", err, c.want)
			}
		})
	}
}

// fake is a Store with a token whose server gives this answer to every KV request.
func fake(t *testing.T, answer http.HandlerFunc) (*Store, *httptest.Server) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/v1/auth/token/lookup-self"):
			fmt.Fprint(w, `{"data":{"ttl":0,"creation_ttl":0}}`)
		case strings.HasPrefix(r.URL.Path, "/v1/sys/internal/ui/mounts/"):
			fmt.Fprint(w, `{"data":{"type":"kv","options":{"version":"2"}}}`)
		default:
			answer(w, r)
		}
	}))
	t.Cleanup(server.Close)
	opts := quick()
	opts.Timeout = 300 * time.Millisecond
	return open(t, withToken(t, server.URL, "hvs.the-token-of-this-test"), opts), server
}

func TestAnswersAreBounded(t *testing.T) {
	for name, header := range map[string]string{"with a length": fmt.Sprint(10 << 20), "chunked": ""} {
		t.Run(name, func(t *testing.T) {
			s, _ := fake(t, func(w http.ResponseWriter, _ *http.Request) {
				if header != "" {
					w.Header().Set("Content-Length", header)
				}
				fmt.Fprint(w, `{"data":{"data":{"api_key":"`)
				_, _ = w.Write([]byte(strings.Repeat("x", 10<<20-100)))
			})
			_, err := s.Get(t.Context(), key, 0)
			if !errors.Is(err, store.ErrTooLarge) || !strings.Contains(err.Error(), "larger than 1 MiB") {
				t.Errorf("error %v", err)
			}
		})
	}
	s, _ := fake(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"data":{"data":{"api_key":"%s"},"metadata":{"version":1}}}`, strings.Repeat("x", 1<<20-100))
	})
	got, err := s.Get(t.Context(), key, 0)
	if err != nil {
		t.Fatalf("an answer just below the bound: %v", err)
	}
	got.Destroy()
	if _, err := s.Put(t.Context(), key, fields(t, "k", strings.Repeat("x", 1<<20)), 0); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("a write of 1 MiB: %v", err)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	var followed atomic.Int32
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed.Add(1) }))
	t.Cleanup(thief.Close)
	for _, status := range []int{301, 302, 303, 307, 308} {
		s, _ := fake(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, thief.URL+"/v1/x", status) })
		_, err := s.Get(t.Context(), key, 0)
		if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "redirects to "+thief.URL) {
			t.Errorf("%d: %v", status, err)
		}
		if _, err := s.Put(t.Context(), key, fields(t, "k", "v"), 0); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%d on a write: %v", status, err)
		}
	}
	if n := followed.Load(); n != 0 {
		t.Errorf("%d redirects were followed", n)
	}
}

func TestErrorsHoldNeitherTokenNorValue(t *testing.T) {
	const canary = `sk-canary "quoted" 0123456789`
	echo := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"errors":["cannot take %s of %s: %s"]}`, `sk-canary \"quoted\" 0123456789`, r.Header.Get("X-Vault-Token"), strings.Repeat("long ", 200))
		}
	}
	for _, status := range []int{400, 403, 405, 500} {
		s, _ := fake(t, echo(status))
		_, err := s.Put(t.Context(), key, fields(t, "api_key", canary), 0)
		if err == nil || !strings.Contains(err.Error(), "cannot take [redacted] of [redacted]") {
			t.Errorf("%d: %v", status, err)
			continue
		}
		if strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "hvs.") || len(err.Error()) > 700 {
			t.Errorf("%d: %v", status, err)
		}
	}
}

func TestConnectionProblemsNameTheSetting(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{TLS: true})
	plain := vaulttest.Start(t, vaulttest.Options{})
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	ca, dir := vaulttest.NewCA(t), t.TempDir()
	ca.IssueClient(t, "nameless", dir+"/cert", dir+"/key")
	pair, err := tls.LoadX509KeyPair(dir+"/cert", dir+"/key")
	if err != nil {
		t.Fatal(err)
	}
	nameless := httptest.NewUnstartedServer(http.NotFoundHandler())
	nameless.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	nameless.Config.ErrorLog = log.New(io.Discard, "", 0)
	nameless.StartTLS()
	t.Cleanup(nameless.Close)
	port := strings.TrimPrefix(v.Address, "https://127.0.0.1:")
	for name, c := range map[string]struct{ address, ca, want string }{
		"unknown root":  {v.Address, "", "set store.vault.ca_file"},
		"another root":  {v.Address, vaulttest.NewCA(t).File, "set store.vault.ca_file"},
		"another name":  {nameless.URL, ca.File, "is not valid for it"},
		"http to https": {"http://127.0.0.1:" + port, "", "must begin with https://"},
		"https to http": {strings.Replace(plain.Address, "http://", "https://", 1), "", "does not speak TLS"},
		"no such name":  {"https://vault.invalid:8200", "", "vault.invalid:8200"},
		"silence":       {"https://" + silent.Addr().String(), "", "did not answer within"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := withToken(t, c.address, "hvs.x")
			cfg.CAFile = c.ca
			opts := quick()
			opts.Timeout = 2 * time.Second
			err := open(t, cfg, opts).Login(t.Context())
			if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want ErrUnavailable and %q", err, c.want)
			}
		})
	}
	cfg := withToken(t, v.Address, v.RootToken)
	cfg.CAFile = v.CAFile
	if err := open(t, cfg, quick()).Login(t.Context()); err != nil {
		t.Errorf("with the root: %v", err)
	}
}

func TestTheEnvironmentIsNotRead(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	v.KVPut("secret/postern/"+key, map[string]string{"api_key": "the value"})
	front := vaulttest.NewFront(t, v)
	for name, content := range map[string]string{
		"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_AGENT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "hvs.environment", "VAULT_NAMESPACE": "environment",
		"VAULT_HEADERS": `{"X-Environment":"yes"}`, "VAULT_WRAP_TTL": "60s", "VAULT_PROXY_ADDR": "http://127.0.0.1:1", "VAULT_HTTP_PROXY": "http://127.0.0.1:1",
		"VAULT_MAX_RETRIES": "9", "VAULT_RATE_LIMIT": "1:1", "VAULT_SRV_LOOKUP": "true", "VAULT_MFA": "x", "VAULT_SKIP_VERIFY": "true",
		"HTTP_PROXY": "http://127.0.0.1:1", "HTTPS_PROXY": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1",
	} {
		t.Setenv(name, content)
	}
	s := open(t, withToken(t, front.URL, v.RootToken), quick())
	mustRead(t, s, key, "the value")
	for _, r := range front.Requests() {
		for _, name := range []string{"X-Environment", "X-Vault-Namespace", "X-Vault-Wrap-Ttl", "X-Vault-Mfa"} {
			if r.Header.Get(name) != "" {
				t.Errorf("%s %s carries %s: %s", r.Method, r.Path, name, r.Header.Get(name))
			}
		}
		if got := r.Header.Get("X-Vault-Token"); got != v.RootToken {
			t.Errorf("%s %s carries another token", r.Method, r.Path)
		}
		if r.Header.Get("User-Agent") != "postern" {
			t.Errorf("%s %s comes from %q", r.Method, r.Path, r.Header.Get("User-Agent"))
		}
	}

	t.Setenv("VAULT_SKIP_VERIFY", "banana")
	if _, err := New(withToken(t, front.URL, "x"), quick()); err == nil || !strings.Contains(err.Error(), "VAULT_*") {
		t.Errorf("with a variable that the library refuses: %v", err)
	}
}

func TestAProxyIsUsedWhenToldTo(t *testing.T) {
	plain := vaulttest.Start(t, vaulttest.Options{})
	secure := vaulttest.Start(t, vaulttest.Options{TLS: true})
	var tunnels, forwarded atomic.Int32
	front := vaulttest.NewFront(t, plain)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			forwarded.Add(1)
			http.Redirect(w, r, front.URL, http.StatusTemporaryRedirect)
			return
		}
		tunnels.Add(1)
		tunnel(t, w, r.Host)
	}))
	t.Cleanup(proxy.Close)
	opts := quick()
	opts.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(proxy.URL) }

	cfg := withToken(t, secure.Address, secure.RootToken)
	cfg.CAFile = secure.CAFile
	if err := open(t, cfg, opts).Login(t.Context()); err != nil || tunnels.Load() != 1 {
		t.Errorf("TLS through the proxy: %v, %d tunnels", err, tunnels.Load())
	}
	if err := open(t, withToken(t, plain.Address, plain.RootToken), opts).Login(t.Context()); err == nil || forwarded.Load() != 1 {
		t.Errorf("plain HTTP through the proxy: %v, %d requests", err, forwarded.Load())
	}
}

// tunnel connects a client that said CONNECT.
func tunnel(t *testing.T, w http.ResponseWriter, to string) {
	there, err := net.Dial("tcp", to)
	if err != nil {
		t.Error(err)
		return
	}
	here, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
		there.Close()
		return
	}
	fmt.Fprint(here, "HTTP/1.1 200 Connection established\r\n\r\n")
	t.Cleanup(func() { here.Close(); there.Close() })
	go func() { _, _ = io.Copy(there, here) }()
	go func() { _, _ = io.Copy(here, there) }()
}

func TestTheLimiterBoundsRequests(t *testing.T) {
	s, _ := fake(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"data":{"keys":[]}}`) })
	s.opts.Limiter = rate.NewLimiter(rate.Every(time.Hour), 3) // login, mount, one list
	if _, err := s.List(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(t.Context(), ""); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "own limit") {
		t.Errorf("over the limit: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.List(ctx, ""); !errors.Is(err, context.Canceled) || errors.Is(err, store.ErrUnavailable) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestTheCallersDeadlineIsItsOwnReason(t *testing.T) {
	s, _ := fake(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	s.opts.Timeout = 10 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := s.Get(ctx, key, 0)
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, store.ErrUnavailable) {
		t.Errorf("error %v, want the context's alone", err)
	}
}
