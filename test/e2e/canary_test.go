package e2e_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// A known key goes every way that there is, with everything in the way of it
// that repeats what it was sent. It reaches the provider, and nobody and nothing else.
func TestCanary(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, w *world, st keyStore) {
		c := &canary{world: w, st: st, key: w.Key(), next: w.Key(), gnarly: w.gnarly(), plain: w.Key()}
		c.hunt = newHunt(c.key, c.next, c.gnarly, c.plain)
		c.openai = w.Provider("openai", fake.Options{Keys: []string{c.plain}})
		c.echo, c.parrot = w.parroting("echo")
		st.Put("openai", c.plain)
		st.Put("echo", c.key)
		st.Put("gnarly", c.gnarly)
		c.start()

		t.Run("answers", c.answers)
		t.Run("rotated", c.rotated)
		t.Run("refusals", c.refusals)
		t.Run("requests", c.requests)
		t.Run("commands", c.commands)
		t.Run("exec", c.exec)
		t.Run("admin", c.admin)
		t.Run("exposed", c.exposed)
		c.process(t, "the agent", c.a.PID())
		c.end()
		c.files(t, w.Dir)
		c.look("the log", []byte(c.a.Log.String()))
		c.look("standard output", []byte(c.a.Out.String()))
		c.look("the wire", c.wire.bytes())
		c.report(t)
	})
}

// canary is one story's cast.
type canary struct {
	*world
	*hunt
	st             keyStore
	key, next      string // echo's, and the one after it
	gnarly, plain  string // of the same provider by another route; openai's
	openai, echo   *provider
	parrot         *parrot
	cfg            config
	a              *agenttest.Agent
	wire           wire
	route, connect *http.Client
}

// start starts an agent that says all that it ever says.
func (c *canary) start() {
	c.cfg = c.Config(c.st, c.openai)
	c.cfg.More = "log: {level: debug}"
	c.cfg.Rotation = "{grace: 4s}"
	c.cfg.Providers = append(c.cfg.Providers, c.echo.Entry(", echoes: true"),
		strings.Replace(c.echo.Entry(", echoes: true, http2: true, forward: false"), "name: echo", "name: gnarly", 1))
	c.a = agenttest.Start(c.T, c.Dir, c.cfg.YAML())
	c.a.Ready(c.T)
	c.route = c.Client(c.wire.tap)
	through := c.Through(c.a, e2etest.Read(c.T, c.Path("ca/ca.pem")))
	c.connect = c.Client(func(tr *http.Transport) {
		c.wire.tap(tr)
		through(tr)
	})
}

// nested are answers in which a key with special characters stands in one
// encoding inside another; that is not looked for.
var nested = regexp.MustCompile("as=(base64|percent|json)")

// get asks by every way and returns what was heard by each.
func (c *canary) get(t *testing.T, path string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for way, where := range map[string]struct {
		client *http.Client
		url    string
	}{
		"route":   {c.route, c.a.URL("/echo" + path)},
		"http2":   {c.route, c.a.URL("/gnarly" + path)},
		"connect": {c.connect, "https://" + c.echo.Host + path},
	} {
		if way == "http2" && nested.MatchString(path) {
			continue
		}
		req, err := http.NewRequest(http.MethodPost, where.url, strings.NewReader(`{"model":"x"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer attached-by-postern")
		_, text := heard(t, where.client, req)
		c.look("the answer to "+path+" by "+way, []byte(text))
		out[way] = text
	}
	return out
}

// masked is what stands in place of a key.
const masked = "****************"

// answers: the provider says the key back in every way that an answer has.
func (c *canary) answers(t *testing.T) {
	var paths []string
	for _, in := range []string{"body", "header", "chunks", "trailer"} {
		for _, as := range []string{"", "base64", "percent", "json"} {
			for _, status := range []int{200, 302, 401, 403, 500} {
				if status == 200 || as == "" {
					paths = append(paths, fmt.Sprintf("/v1/echo?in=%s&as=%s&status=%d&size=%d", in, as, status, 1+len(paths)%29))
				}
			}
		}
	}
	for seed := range 20 {
		paths = append(paths, fmt.Sprintf("/v1/events?seed=%d", seed))
	}
	for _, path := range append(paths, "/v1/memory") {
		for way, text := range c.get(t, path) {
			// Trailers are not passed on, so there is nothing to mask.
			if !strings.Contains(text, masked) && !strings.Contains(path, "in=trailer") {
				t.Errorf("%s by %s: nothing was masked, so nothing was shown:\n%.600s", path, way, text)
			}
		}
	}
	// What cannot be searched is refused.
	for way, text := range c.get(t, "/v1/echo?as=gzip") {
		if !strings.Contains(text, "unscrubbable") {
			t.Errorf("a compressed answer by %s:\n%.600s", way, text)
		}
	}
	for _, path := range []string{"/v1/hints", "/v1/statusline", "/v1/cut"} {
		c.get(t, path)
	}
	for _, name := range []string{"echo", "gnarly"} {
		text := upgrade(t, c.a, "/"+name+"/v1/socket")
		c.look("WebSocket frames by "+name, []byte(text))
		if strings.Count(text, masked) < 2 {
			t.Errorf("%s: the frames, or the field before them, did not hold the key:\n%q", name, text)
		}
	}
	req, err := http.NewRequest(http.MethodGet, "https://"+c.echo.Host+"/v1/socket", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="} {
		req.Header.Set(name, value)
	}
	status, text := heard(t, c.connect, req)
	c.look("WebSocket frames by connect", []byte(text))
	if status != http.StatusSwitchingProtocols || strings.Count(text, masked) < 2 {
		t.Errorf("connect: status %d; the frames, or the field before them, did not hold the key:\n%q", status, text)
	}
	// The provider did get it, or all of this shows nothing.
	seen := 0
	for _, r := range c.echo.Requests() {
		if r.Header.Get("Authorization") == "Bearer "+c.key {
			seen++
		}
	}
	if seen < len(paths) {
		t.Errorf("the provider saw the key %d times in answer to %d requests", seen, len(paths))
	}
}

// rotated: once the key is out of use its bytes are gone from the agent, and it
// is recognised all the same.
func (c *canary) rotated(t *testing.T) {
	c.parrot.remembers(c.key)
	n := c.st.Put("echo", c.next)
	agenttest.Eventually(t, 30*time.Second, "the old version is out of use", func() bool {
		return e2etest.Version(t, c.a, "echo", n).State == "active" && e2etest.Version(t, c.a, "echo", n-1).State == "retired"
	})
	for seed := range 5 {
		for way, text := range c.get(t, fmt.Sprintf("/v1/events?seed=%d", seed)) {
			if strings.Count(text, masked) < 2 {
				t.Errorf("by %s: the old key, or the new one, was not masked:\n%.900s", way, text)
			}
		}
	}
	c.get(t, "/v1/memory")
	c.look("WebSocket frames after the rotation", []byte(upgrade(t, c.a, "/echo/v1/socket")))
}

// refusals: a provider that has revoked the key, and the agent's own errors.
func (c *canary) refusals(t *testing.T) {
	chat := func() {
		for _, y := range c.Ways(c.a, c.openai) {
			req, err := http.NewRequest(http.MethodPost, y.URL, strings.NewReader(fmt.Sprintf(`{"model":"gpt-4o-mini","stream":%t,"messages":[{"role":"user","content":"?"}]}`, y.Stream)))
			if err != nil {
				t.Fatal(err)
			}
			_, text := heard(t, y.Client, req)
			c.look("an answer of "+c.openai.Name+" by "+y.Name, []byte(text))
		}
	}
	chat()
	for _, becomes := range []func(string){c.openai.Forbid, c.openai.Limit, c.openai.Revoke} {
		becomes(c.plain)
		chat()
	}
	c.openai.Close()
	chat()
}

// requests: a client that has got hold of the key puts it where it does not
// belong. None of it is written down.
func (c *canary) requests(t *testing.T) {
	key := c.plain
	for _, r := range []struct{ method, target, field, value string }{
		{"GET", "/openai/v1/" + key, "", ""},
		{"GET", "/openai/v1/models?key=" + key + "&api_key=" + key, "", ""},
		{"GET", "/" + key + "/v1/models", "", ""},
		{"GET", "/openai/v1/models", "Authorization", "Bearer " + key},
		{"GET", "/openai/v1/models", "User-Agent", key},
		{"GET", "/openai/v1/models", "Cookie", "a=" + key},
		{"GET", "/openai/v1/models", "Origin", "https://" + key},
		{"GET", "/openai/v1/models", "X-" + key, "1"},
		{"GET", "/openai/v1/models", "Content-Length", key},
		{"GET", "/openai/v1/models", "Transfer-Encoding", key},
		{"GET", "/openai/v1/../" + key, "", ""},
		{key, "/openai/v1/models", "", ""},
		{"GET", "http://" + key + ".example/", "", ""},
		{"GET", "http://user:" + key + "@" + c.openai.Host + "/v1/models", "", ""},
		{"CONNECT", key + ".example:443", "", ""},
		{"CONNECT", c.openai.Host, "Proxy-Authorization", "Basic " + key},
		{"CONNECT", c.openai.Host + key, "", ""},
	} {
		c.send(t, r.method+" "+r.target+" HTTP/1.1\r\nHost: "+c.a.Proxy+"\r\n"+pair(r.field, r.value)+"\r\n")
	}
	c.send(t, "GET /openai/v1/models HTTP/1.1\r\nHost: "+key+"\r\n\r\n")
	c.send(t, "GET /openai/v1/models HTTP/9.9 "+key+"\r\n\r\n")
	c.send(t, key+"\r\n\r\n")
	c.send(t, "POST /openai/v1/files HTTP/1.1\r\nHost: "+c.a.Proxy+"\r\nContent-Length: 1000\r\n\r\n"+key)
	for _, code := range []string{"no_such_route", "cross_site", "bad_path", "unmatched_denied", "host_not_allowed", "upstream_unreachable"} {
		agenttest.Eventually(t, 10*time.Second, "a log line with "+code, func() bool {
			return strings.Contains(c.a.Log.String(), `"code":"`+code+`"`)
		})
	}
}

func pair(name, value string) string {
	if name == "" {
		return ""
	}
	return name + ": " + value + "\r\n"
}

// send writes to the agent's port. What comes back may repeat what was sent; what is written down may not.
func (c *canary) send(t *testing.T, text string) {
	t.Helper()
	conn, err := net.Dial("tcp", c.a.Proxy)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
	conn.Write([]byte(text))
	conn.Read(make([]byte, 4096))
}

// commands: what an operator types beside a running agent, with the key in
// places where it does not belong.
func (c *canary) commands(t *testing.T) {
	file := c.Operator(c.cfg, c.a)
	run := func(stdin string, args ...string) {
		t.Helper()
		env := agenttest.Env(c.Dir)
		if v, ok := c.st.(*vaultStore); ok {
			env = append(env, "VAULT_TOKEN="+v.RootToken)
		}
		out, said, _ := agenttest.RunEnv(t, env, stdin, args...)
		name := "postern " + strings.Join(args, " ")
		for _, k := range []string{c.key, c.next, c.gnarly, c.plain} {
			name = strings.ReplaceAll(name, k, "KEY")
		}
		c.look("standard output of "+name, []byte(out))
		c.look("standard error of "+name, []byte(said))
	}
	for _, o := range []string{"text", "json"} {
		run("", "check", "-c", file, "-o", o)
		run("", "check", "--probe", "-c", file, "-o", o)
		run("", "status", "-c", file, "-o", o)
		run("", "keys", "list", "-c", file, "-o", o)
		run("", "keys", "show", "echo", "-c", file, "-o", o)
		run("", "audit", "show", c.Path("audit.jsonl"), "-o", o)
		run("", "audit", "verify", c.Path("audit.jsonl"), "-o", o)
		run(c.plain+"\n", "keys", "add", "spare", "--label", "x", "-c", file, "-o", o)
	}
	// By mistake.
	for _, k := range []string{c.plain, c.gnarly} {
		run(k+"\n"+k, "keys", "add", "spare", "-c", file)
		run(k+" ", "keys", "add", "spare", "-c", file)
		run(k[:15], "keys", "add", "spare", "-c", file)
	}
	key := c.plain
	run("", "keys", "add", "spare", key, "-c", file)
	run("", "keys", "add", key, "-c", file)
	run("", "keys", "show", key, "-c", file)
	run("", "keys", "add", "spare", "--file", key, "-c", file)
	run("", "keys", "add", "spare", "--key="+key, "-c", file)
	run("", "keys", "add", "spare", "-"+key, "-c", file)
	run("", key)
	run("", "status", key)
	run("", "check", "-c", key)
	run("", "audit", "verify", "--head", key, c.Path("audit.jsonl"))
	run("", "audit", "show", "--since", key, c.Path("audit.jsonl"))
	run("", "demo", "--for", key)
	run("", "exec", "-c", file, "--", key)
	c.mistakes(t, run)
}

// mistakes puts the key into every field of a configuration in turn.
func (c *canary) mistakes(t *testing.T, run func(stdin string, args ...string)) {
	file := c.Path("mistake.yaml")
	defer os.Remove(file) // it holds the key because this test wrote it there
	good := c.cfg
	good.Store = e2etest.SealedYAML
	lines := strings.Split(strings.TrimSpace(good.YAML()), "\n")
	n := 0
	try := func(text string) {
		n++
		e2etest.Write(t, file, text)
		run("", "check", "-c", file)
		if n%5 == 0 {
			run("", "status", "-c", file)
			run("", "keys", "list", "-c", file)
			run("", "exec", "-c", file, "--", "true")
		}
	}
	for i := range lines {
		name, _, _ := strings.Cut(lines[i], ":")
		changed := slices.Clone(lines)
		changed[i] = name + ": " + c.plain
		try(strings.Join(changed, "\n"))
	}
	text := strings.Join(lines, "\n")
	for _, field := range []string{"proxy: ", "admin: ", "file: ", "key_file: ", "poll: ", "grace: ", "dir: ", "name: ", "provider: ", "hosts: ", "base_url: ", "ca_file: ", "level: "} {
		if at := strings.Index(text, field); at >= 0 {
			end := at + len(field) + strings.IndexAny(text[at+len(field):], ",}\n")
			try(text[:at+len(field)] + c.plain + text[end:])
		}
	}
	try(text + "\nservice: " + c.plain)
	try(text + "\n" + c.plain)
	try(text + "\n" + c.plain + ": 1")
	try("store: {sealed: {file: s, passphrase_env: " + c.plain + "}}")
	t.Logf("%d configurations with a key in them", n)
}

// exec: the command, and what it can see of its parent.
func (c *canary) exec(t *testing.T) {
	cfg := c.cfg
	cfg.Proxy, cfg.Admin, cfg.Audit = "127.0.0.1:0", "127.0.0.1:0", "-"
	cfg.Providers = cfg.Providers[1:] // openai is down by now
	file := c.Path("exec.yaml")
	e2etest.Write(t, file, cfg.YAML())
	script := `env
cat /proc/self/environ /proc/$PPID/environ /proc/$PPID/cmdline
find . -type f -exec cat {} +
echo "$OPENAI_BASE_URL"
exit 7`
	env := agenttest.Env(c.Dir, "OPENAI_API_KEY=attached-elsewhere")
	out, said, code := agenttest.RunEnv(t, env, "", "exec", "-v", "--forward", "-c", file, "--", "sh", "-c", "cd "+c.Dir+"\n"+script)
	if code != 7 || !strings.Contains(out, "attached-by-postern") {
		t.Errorf("postern exec: exit code %d, want 7\n%.600s\n%s", code, out, said)
	}
	c.look("the output of exec's command", []byte(out))
	c.look("standard error of exec", []byte(said))
}

// admin: everything that the admin listener answers, and what it refuses.
func (c *canary) admin(t *testing.T) {
	for _, path := range []string{"/metrics", "/status", "/readyz", "/livez", "/ca.pem", "/", "/nope", "/debug/pprof/heap", "/debug/vars", "/metrics?name=" + c.plain} {
		for _, method := range []string{"GET", "POST", "TRACE"} {
			req, err := http.NewRequest(method, "http://"+c.a.Admin+path, strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Accept", "application/openmetrics-text")
			_, text := heard(t, c.route, req)
			c.look("the admin listener's answer to "+method+" "+strings.ReplaceAll(path, c.plain, "KEY"), []byte(text))
		}
	}
}

// exposed: somebody hears of all this.
func (c *canary) exposed(t *testing.T) {
	if n := c.a.Metric(t, "postern_redactions_total"); n < 100 {
		t.Errorf("postern_redactions_total is %v", n)
	}
	agenttest.Eventually(t, 10*time.Second, "an audit entry key.exposed", func() bool {
		return slices.ContainsFunc(c.audit(), func(e audit.Entry) bool { return e.Event.Event == "key.exposed" && e.Key == "echo" })
	})
}

// end makes the agent say what a crash would say: SIGQUIT prints the stacks of
// all goroutines. (A panic of the agent's own cannot be provoked from outside.)
func (c *canary) end() {
	c.a.Signal(syscall.SIGQUIT)
	select {
	case <-c.a.Done():
	case <-time.After(20 * time.Second):
		c.T.Error("the agent did not end on SIGQUIT")
		c.a.Kill()
	}
	if !strings.Contains(c.a.Log.String(), "goroutine ") {
		c.T.Error("the agent's end shows no goroutine")
	}
}
