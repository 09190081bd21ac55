package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// everything is all that a Vault holds below a folder but the keys themselves:
// data, custom metadata and names.
func everything(t *testing.T, s *vaultStore, folder string) []byte {
	t.Helper()
	var all bytes.Buffer
	var walk func(folder string)
	walk = func(folder string) {
		status, answer, err := s.Try(t.Context(), s.RootToken, "LIST", "secret/metadata/"+folder, nil)
		if err != nil || status == http.StatusNotFound {
			return
		}
		data, _ := answer["data"].(map[string]any)
		names, _ := data["keys"].([]any)
		for _, n := range names {
			name, _ := n.(string)
			fmt.Fprintln(&all, folder+name)
			if strings.HasSuffix(name, "/") {
				walk(folder + name)
				continue
			}
			kinds := []string{"metadata"}
			if !strings.HasPrefix(folder, "postern/provider-keys/") {
				kinds = append(kinds, "data")
			}
			for _, kind := range kinds {
				_, answer, err := s.Try(t.Context(), s.RootToken, "GET", "secret/"+kind+"/"+folder+name, nil)
				if err != nil {
					t.Fatal(err)
				}
				b, err := json.Marshal(answer)
				if err != nil {
					t.Fatal(err)
				}
				all.Write(append(b, '\n'))
			}
		}
	}
	walk(folder)
	return all.Bytes()
}

// Whoever pastes a key or a token into a wrong place does not find it again: not
// in what a command says, and not in the store.
func TestKeysPastedIntoWrongPlaces(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.Vault(vaulttest.Options{})
	live := w.Key()
	p := w.Provider("openai", fake.Options{Keys: []string{live}})
	op := w.console(st, w.Config(st, p), "security", "devops")
	op.must(live+"\n", "keys", "add", "openai")
	pasted := []string{
		w.Key(), w.Secret("hvs.CAESI" + strings.Repeat("Ab3_", 22)), w.Secret("sk-or-v1-" + strings.Repeat("0a1b2c3d", 8)),
		w.Secret("sk-ant-api03-" + strings.Repeat("aB3-_", 18) + "AA"),
	}
	for _, x := range pasted {
		for _, line := range [][]string{
			{"keys", "add", x}, {"keys", "add", "openai", x}, {"keys", "add", "other", "--label", x}, {"keys", "add", "other", "--label", "staging-" + x},
			{"keys", "add", "other2", "--provider", x}, {"keys", "add", "other3", "--service", x}, {"keys", "add", "other4", "--file", x}, {"keys", "add", "openai", "-o", x},
			{"keys", "show", x}, {"keys", "show", "openai", "--file", x}, {"keys", "list", x}, {"keys", "validate", x}, {"keys", "validate", "openai", "--version", x},
			{"keys", "rotate", x}, {"keys", "rotate", "openai", "--reason", x}, {"keys", "rotate", "openai", "--reason", "leaked: " + x + "."}, {"keys", "rotate", "openai", "--ramp", x},
			{"keys", "rotate", "openai", "--ramp", "1:" + x}, {"keys", "rotate", "openai", "--grace", x}, {"keys", "rotate", "openai", "--" + x}, {"keys", "rotate", "openai", "--file", x},
			{"keys", "resume", x}, {"keys", "schedule", x}, {"keys", "schedule", "openai", "--every", x},
			{"keys", "revoke", x, "--now", "--reason", "x"}, {"keys", "revoke", "openai", "--version", "1", "--now", "--reason", "it was " + x}, {"keys", "revoke", "--proxy-id", x, "--all-versions", "--now", "--reason", "x"},
			{"keys", "revoke", "openai", "--version", x, "--now", "--reason", "x"}, {"keys", x}, {x}, {"--" + x}, {"audit", "verify", "--head", x}, {"audit", "verify", "--head", "1:" + x}, {"audit", "verify", x},
			{"audit", "show", "--since", x}, {"audit", "show", "--key", x}, {"audit", "show", "--actor", x}, {"audit", "show", "--limit", x}, {"audit", "show", x},
			{"policy", "--role", x}, {"policy", "--role", "team-lead", "--proxy-id", x}, {"policy", "--role", "agent", "--accessor", x}, {"policy", "--role", "devops", "--with", x},
			{"policy", "--role", "devops", "--environment", x}, {"whoami", x}, {"whoami", "--environment", x}, {"server", x}, {"check", x},
		} {
			out, said, _ := op.run(w.Key()+"\n", line...)
			w.Clean("postern "+strings.ReplaceAll(strings.Join(line, " "), x, "<pasted>"), []byte(out+said))
		}
	}
	w.Clean("what the store holds beside keys", everything(t, st, "postern/"))
	if s := op.state("openai", 1); s != "active" {
		t.Errorf("the key is %s", s)
	}
}

// A command that waits for the end of a rotation has let go of the new key long
// before: it is in the store by then, and nobody needs it here.
func TestWaitingCommandForgetsTheKey(t *testing.T) {
	if !searchable(t, os.Getpid()) {
		return
	}
	onBothStores(t, func(t *testing.T, w *world, st keyStore) {
		old, next := w.Key(), w.Key()
		st.Put("openai", old)
		p := w.Provider("openai", fake.Options{Keys: []string{old, next}})
		c := w.Config(st, p)
		c.Store = st.Shared()
		op := w.console(st, c, "devops")
		w.Start(c)
		cmd := op.start(next+"\n", "keys", "rotate", "openai", "--ramp", "10:10m", "--watch")
		agenttest.Eventually(t, 30*time.Second, "the ramp has begun", func() bool {
			i := op.show("openai")
			return i.Rotation != nil && i.Rotation.Phase == rotation.PhaseMigrate
		})
		noneOf(t, cmd.Process.Pid, []string{next}, soon)
		cmd.Process.Signal(os.Interrupt)
		if cmd.end() != 1 {
			t.Errorf("%s", cmd.said.String())
		}
	})
}

// A team lead, and a pod, write what they may write by hand, and mean no good.
// Neither an agent nor the server falls over or stops serving, another key's
// rotation goes its way, and Security can end it all.
func TestEntriesForgedWithARoleToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.Vault(vaulttest.Options{})
	one, two, first := w.Key(), w.Key(), w.Key()
	st.Put("openai", one)
	p := w.Provider("openai", fake.Options{Keys: []string{one, two}})
	other := w.Provider("other", fake.Options{Keys: []string{first}})
	st.Put("other", first)
	c := w.Config(st, p, other)
	c.Store = st.Shared()
	lead, sec := w.console(st, c, "team-lead"), w.console(st, c, "security")
	m := w.server(st, lead, p, other)
	a := w.Start(c)
	l := e2etest.StartLoad(t, light, way{Name: "route", Client: w.Client(nil), URL: a.URL("/openai/v1/chat/completions")})
	token := lead.token()
	pod := st.Token(vaulttest.TokenOptions{Policies: []string{"agent"}})
	write := func(token, path string, data any) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if status, answer, err := st.Try(ctx, token, "POST", "secret/data/postern/"+path, map[string]any{"data": data}); err != nil || status >= 300 {
			t.Errorf("%s cannot be forged: %d %v %v", path, status, answer, err)
		}
	}
	long := strings.Repeat("x", 900<<10) // the longest text that Vault takes is not much longer
	rec := "rotations/staging/" + e2etest.ProxyID + "/openai"
	const control = "\x1b\x07\r\u202e"
	records := forgedRecords(long)
	halt := "halts/staging/" + e2etest.ProxyID + "/openai-"
	write(pod, halt+"1", map[string]any{"to": `{"number":1}`, "reason": long, "more": long})
	write(pod, halt+"2", map[string]any{"to": map[string]any{"number": "x"}})
	write(pod, halt+"3", map[string]any{"reason": long, "more": long})
	for name, record := range records {
		write(token, rec, record)
		for _, line := range [][]string{{"keys", "show", "openai"}, {"keys", "list"}, {"keys", "rotate", "openai", "--reason", "x"}, {"keys", "resume", "openai"}} {
			began := time.Now()
			out, said, code := lead.run(two+"\n", line...)
			if took := time.Since(began); took > 60*time.Second || code < 0 || strings.Contains(said, "goroutine ") {
				t.Errorf("%s: postern %s: %s, exit code %d: %.2000s", name, strings.Join(line, " "), took, code, said)
			}
			if strings.ContainsAny(out+said, control) {
				t.Errorf("%s: postern %s prints control characters", name, strings.Join(line, " "))
			}
			if line[1] == "rotate" { // and back to the forgery
				write(token, rec, record)
			}
		}
		l.More(500 * time.Millisecond)
		select {
		case <-m.done:
			t.Fatalf("%s: the server fell over:\n%s", name, m.log.Tail(3000))
		case <-a.Done():
			t.Fatalf("%s: the agent fell over", name)
		default:
		}
	}
	w.forgesAnEntry(lead, sec, write, token, control)
	// Another key is none the worse.
	next := w.Key()
	other.Allow(next)
	lead.must(next+"\n", "keys", "rotate", "other", "--now")
	// And Security ends it, whatever stands there now.
	for _, name := range []string{"too long", "no text", "fields", "versions"} {
		write(token, rec, records[name])
		next := w.Key()
		p.Allow(next)
		n := st.Put("openai", next)
		agenttest.Eventually(t, 30*time.Second, name+": the agent takes a version that is written by hand", func() bool {
			return e2etest.Version(t, a, "openai", n).State == "active"
		})
		out, said, code := sec.run("", "keys", "revoke", "openai", "--now", "--reason", "enough", "-o", "json")
		if code != 0 {
			t.Errorf("%s: revoke: exit code %d\n%s%s", name, code, out, said)
			continue
		}
		agenttest.Eventually(t, 30*time.Second, name+": the agent lets go of the revoked version", func() bool {
			return e2etest.Version(t, a, "openai", n).State == "compromised"
		})
	}
	l.Report()
}

// forgesAnEntry writes into the record of operations what nobody must see raw.
func (w *world) forgesAnEntry(lead, sec *console, put func(token, path string, data any), token, control string) {
	t := w.T
	t.Helper()
	head := parsed[[]audit.Entry](t, lead.must("", "audit", "show", "--limit", "1", "-o", "json"))[0].Head()
	_, entry := audit.Chain{Boot: "x", Head: head}.Next(audit.Event{Event: "key.add\x1b[2J", Environment: "staging", Actor: "\x1b]0;owned\x07root\r", Reason: "a\u202e\nb\tc"}, time.Now())
	put(token, fmt.Sprintf("audit/staging/%012d", entry.Seq), map[string]any{"entry": string(entry.AppendJSON(nil))})
	if out, said, _ := sec.run("", "audit", "show", "--limit", "3"); strings.ContainsAny(out+said, control) || strings.Count(out, "\n") > 4 {
		t.Errorf("postern audit show prints control characters: %q", out)
	}
}

// forgedRecords are rotation records that nobody would write who means well.
func forgedRecords(long string) map[string]any {
	deep := any("x")
	for range 200 {
		deep = []any{deep}
	}
	return map[string]any{
		"no text":       map[string]any{"phase": 7, "from": nil, "to": []any{1}, "versions": map[string]any{"a": 1}},
		"deep":          map[string]any{"phase": "migrate", "versions": deep},
		"empty":         map[string]any{},
		"long":          map[string]any{"phase": "migrate", "reason": strings.Repeat("x", 700<<10)},
		"too long":      map[string]any{"phase": "migrate", "reason": long, "actor": long},
		"fields":        many(5000),
		"a long ramp":   map[string]any{"phase": "migrate", "from": `{"number":1}`, "to": `{"number":2}`, "started_at": "2020-01-01T00:00:00Z", "ramp": "[" + strings.Repeat(`{"weight":1,"for":"1h"},`, 30000) + `{"weight":1,"for":"1h"}]`},
		"versions":      map[string]any{"phase": "done", "closed": "true", "versions": "[" + strings.Repeat(`{"number":7,"created":"2020-01-01T00:00:00Z","state":"compromised"},`, 10000) + `{"number":8,"created":"2020-01-01T00:00:00Z","state":"compromised"}]`},
		"attempts":      map[string]any{"phase": "done", "closed": "true", "versions": `[{"number":1,"created":"2020-01-01T00:00:00Z","state":"retired","provider_id":"svc_acct_other","attempts":-9}]`},
		"escapes":       map[string]any{"phase": "migrate", "actor": "\x1b]0;owned\x07\x1b[2Jroot\r\n", "reason": "\x1b[31m\u202e", "from": `{"number":1}`, "to": `{"number":2}`, "holder": "\x1b[1A"},
		"in the future": map[string]any{"phase": "generate", "from": `{"number":1}`, "to": `{"number":2}`, "holder": "x", "held_until": "9999-12-31T23:59:59Z"},
	}
}

// many is so many fields.
func many(n int) map[string]any {
	out := map[string]any{}
	for i := range n {
		out[fmt.Sprintf("field%d", i)] = "x"
	}
	return out
}

// Everybody at once: three rotate one key; then others resume and revoke what is
// new, and then resume and add. Every command ends, says who was first, and the key is served throughout.
func TestEverybodyAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.Vault(vaulttest.Options{})
	first := w.Key()
	st.Put("openai", first)
	p := w.Provider("openai", fake.Options{Keys: []string{first}})
	c := w.Config(st, p)
	c.Store = st.Shared()
	op := w.console(st, c, "devops", "security")
	w.server(st, op, p)
	a := w.Start(c)
	l := e2etest.StartLoad(t, light, way{Name: "route", Client: w.Client(nil), URL: a.URL("/openai/v1/chat/completions")})
	next := func() string {
		key := w.Key()
		p.Allow(key)
		return key + "\n"
	}
	three := func(how ...string) (all []*command) {
		for n := range 3 {
			all = append(all, op.start(next(), append([]string{"keys", "rotate", "openai", "--reason", fmt.Sprintf("operator %d", n), "-o", "json"}, how...)...))
		}
		return all
	}
	resumes := func() []*command {
		return []*command{op.start("", "keys", "resume", "openai", "-o", "json"), op.start("", "keys", "resume", "openai", "-o", "json")}
	}
	if won := op.allEnd("rotate", three("--now")); won != 1 { // nobody is there to give it up
		t.Errorf("%d of 3 rotations were carried out, want 1", won)
	}
	// The grace outlasts the revocation: once agents have let go of the old version,
	// to revoke the new one leaves them none. The revocation ends it.
	revoked := append(three("--grace", "10m"), resumes()...)
	op.allEnd("revoke", append(revoked, op.revokesTheNew(revoked)...))
	added := append(three("--now"), resumes()...)
	op.allEnd("add", append(added, op.start(next(), "keys", "add", "openai")))
	l.More(time.Second)
	l.End()
	w.auditor(st).must("", "audit", "verify")
}

// allEnd waits for commands that were started side by side, sees that they leave
// no rotation open, and returns how many of them carried one out.
func (o *console) allEnd(what string, commands []*command) (rotated int) {
	t := o.w.T
	t.Helper()
	for _, cmd := range commands {
		select {
		case <-cmd.done:
		case <-time.After(3 * time.Minute):
			t.Fatalf("%s: %s does not end: %s", what, cmd.line, cmd.said.String())
		}
		code := cmd.end()
		if code < 0 || strings.Contains(cmd.said.String(), "panic") || code != 0 && strings.HasPrefix(cmd.line, "keys revoke") {
			t.Errorf("%s: %s: exit code %d: %s", what, cmd.line, code, cmd.said.String())
		}
		if strings.HasPrefix(cmd.line, "keys rotate") && code == 0 {
			rotated++
		}
	}
	t.Logf("%s: %d rotations were carried out; the versions are %s", what, rotated, brief(o.show("openai")))
	out, said, code := o.run("", "keys", "resume", "openai")
	if r := o.show("openai").Rotation; r != nil {
		t.Errorf("%s: a rotation is left open: %+v; resume: exit code %d: %s%s", what, *r, code, out, said)
	}
	return rotated
}

// revokesTheNew starts a revocation of the version that a rotation under way brings
// in, as soon as it is stored. There is none where the commands ended before.
func (o *console) revokesTheNew(commands []*command) []*command {
	over := func() bool {
		return !slices.ContainsFunc(commands, func(c *command) bool {
			select {
			case <-c.done:
				return false
			default:
				return true
			}
		})
	}
	var number int
	agenttest.Eventually(o.w.T, 2*time.Minute, "a version to revoke", func() bool {
		i := o.show("openai")
		if r := i.Rotation; r != nil && slices.ContainsFunc(i.Versions, func(v keys.Version) bool { return v.Number == r.To }) {
			number = r.To
		}
		return number > 0 || over()
	})
	if number == 0 {
		return nil
	}
	return []*command{o.start("", "keys", "revoke", "openai", "--version", fmt.Sprint(number), "--now", "--reason", "race")}
}

func brief(i keys.Info) string {
	var all []string
	for _, v := range i.Versions {
		all = append(all, fmt.Sprintf("%d %s", v.Number, v.State))
	}
	return strings.Join(all, ", ")
}
