package e2e_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// assassin stands before Vault. It counts the writes of each token, and when
// one has come to its number lets go of its victim: before the write, or after it.
type assassin struct {
	t     *testing.T
	vault *vaulttest.Vault

	mu      sync.Mutex
	writes  map[string]int
	lines   map[string][]string
	targets map[string]target
}

type target struct {
	at    int // the write that is the last
	after bool
	kill  func()
}

func (v *assassin) intercept(w http.ResponseWriter, r *http.Request) bool {
	token := r.Header.Get("X-Vault-Token")
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	if r.Method == http.MethodGet || r.Method == "LIST" || !strings.HasPrefix(path, "secret/") {
		return false
	}
	if strings.Contains(path, "/audit/") { // a place that is taken by then is tried, and counts for nothing
		if status, _, err := v.vault.Try(r.Context(), v.vault.RootToken, http.MethodGet, path, nil); err != nil || status == http.StatusOK {
			return false
		}
	}
	v.mu.Lock()
	v.writes[token]++
	v.lines[token] = append(v.lines[token], r.Method+" "+path)
	n, victim := v.writes[token], v.targets[token]
	v.mu.Unlock()
	if victim.at == 0 || n < victim.at {
		return false
	}
	if victim.after && n == victim.at {
		v.forward(r)
	}
	victim.kill()
	panic(http.ErrAbortHandler)
}

func (v *assassin) forward(r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		v.t.Error(err)
		return
	}
	req, err := http.NewRequest(r.Method, v.vault.Address+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		v.t.Error(err)
		return
	}
	req.Header = r.Header.Clone()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		v.t.Error(err)
		return
	}
	resp.Body.Close()
}

// The process that rotates is killed before and after every single write, and
// somebody resumes, with the key and without. Every rotation ends, and at no
// time is an application without a usable key.
func TestRotateKilledBetweenAnyTwoWrites(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.Vault(vaulttest.Options{})
	hunter := &assassin{t: t, vault: st.Vault, writes: map[string]int{}, lines: map[string][]string{}, targets: map[string]target{}}

	// Once without a kill, to count.
	p := w.Provider("whole", fake.Options{})
	const most = 16
	c := w.Config(st, p)
	var names []string
	for n := 1; n <= most; n++ {
		for _, when := range []string{"before", "after"} {
			names = append(names, fmt.Sprintf("%s-%d", when, n))
		}
	}
	for _, name := range append([]string{"whole"}, names...) {
		first := w.Key()
		p.Allow(first)
		st.Put(name, first)
		if name != "whole" {
			entry := strings.Replace(p.Entry(", forward: false"), "name: whole", "name: "+name, 1)
			c.Providers = append(c.Providers, entry)
		}
	}
	op := w.console(st, c, "devops")
	a := w.Start(c)
	st.Front.Intercept(hunter.intercept)
	ways := []way{}
	client := w.Client(nil)
	for _, name := range append([]string{"whole"}, names...) {
		ways = append(ways, way{Name: "route", Client: client, URL: a.URL("/" + name + "/v1/chat/completions")})
	}
	l := e2etest.StartLoad(t, 200, ways...)

	next := w.Key()
	p.Allow(next)
	op.must(next+"\n", "keys", "rotate", "whole", "--now", "-o", "json")
	token := op.token()
	writes := hunter.writes[token]
	t.Logf("a rotation is %d writes:\n%s", writes, strings.Join(hunter.lines[token], "\n"))
	if writes > most || writes < 5 {
		t.Fatalf("a rotation is %d writes; the table has room for %d", writes, most)
	}

	places := make(chan struct{}, 4)
	var wg sync.WaitGroup
	ended := make([]string, len(names))
	for i, name := range names {
		var at int
		var when string
		fmt.Sscanf(strings.Replace(name, "-", " ", 1), "%s %d", &when, &at)
		if at > writes {
			continue
		}
		key := w.Key()
		p.Allow(key)
		victim := &console{w: w, file: op.file, env: append(append([]string{}, op.env[:len(op.env)-1]...), "VAULT_TOKEN="+st.Token(vaulttest.TokenOptions{Policies: []string{"staging-devops"}}))}
		wg.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			ended[i] = hunter.story(victim, op, name, key, target{at: at, after: when == "after"})
		})
	}
	wg.Wait()
	l.End()
	for i, name := range names {
		if ended[i] != "" {
			t.Logf("killed %s: %s", strings.Replace(name, "-", " write ", 1), ended[i])
		}
	}
	w.auditor(st).must("", "audit", "verify")
}

// story kills one rotation and has it resumed. It returns how that ended.
func (v *assassin) story(victim, op *console, name, key string, tg target) string {
	token := victim.token()
	var mu sync.Mutex
	var cmd *command
	tg.kill = func() {
		mu.Lock()
		defer mu.Unlock()
		cmd.Process.Kill()
	}
	v.mu.Lock()
	v.targets[token] = tg
	v.mu.Unlock()
	mu.Lock()
	cmd = victim.start(key+"\n", "keys", "rotate", name, "--now", "-o", "json")
	mu.Unlock()
	if code := cmd.end(); code != -1 {
		v.t.Errorf("%s: the process was not killed: exit code %d\n%s%s", name, code, cmd.out.String(), cmd.said.String())
	}
	with, stdin := "without the key", ""
	if tg.at%2 == 0 {
		with, stdin = "with the key", key+"\n"
	}
	out, said, code := op.run(stdin, "keys", "resume", name, "-o", "json")
	if strings.Contains(said, "there is no rotation") { // killed before anything was decided
		v.mu.Lock()
		made := v.lines[token][:len(v.lines[token])-1] // before the last one, or with it
		if tg.after {
			made = v.lines[token]
		}
		v.mu.Unlock()
		if slices.ContainsFunc(made, func(line string) bool { return strings.Contains(line, "/rotations/") }) {
			v.t.Errorf("%s: resumed %s: exit code %d: %s", name, with, code, said)
		}
		return "no rotation had begun"
	}
	r := parsed[keys.Rotation](v.t, out)
	old, next := op.state(name, 1), op.state(name, 2)
	switch {
	case !r.Closed:
		v.t.Errorf("%s: resumed %s with exit code %d, and still open: %+v\n%s", name, with, code, r, said)
	case r.Phase == rotation.PhaseDone && (code != 0 || next != "active" || old != "destroyed"):
		v.t.Errorf("%s: done with exit code %d; the versions are %s and %s", name, code, old, next)
	case r.Phase != rotation.PhaseDone && (code != 1 || old != "active"):
		v.t.Errorf("%s: %s with exit code %d; the versions are %s and %s", name, r.Phase, code, old, next)
	}
	return fmt.Sprintf("resumed %s: %s", with, r.Phase)
}
