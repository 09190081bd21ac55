package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
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
	m, _ := w.server(st, lead, p, other)
	a := w.Start(c)
	l := e2etest.StartLoad(t, light, way{Name: "route", Client: w.Client(nil), URL: a.URL("/openai/v1/chat/completions")})
	token := strings.TrimPrefix(lead.env[len(lead.env)-1], "VAULT_TOKEN=")
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

// Everybody at once: three rotate one key, others resume, revoke what is new and
// add. Every command ends, says who was first, and the key is served throughout.
func TestEverybodyAtOnce(t *testing.T) {
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
	for round := range 3 {
		var commands []*command
		for n := range 3 {
			next := w.Key()
			p.Allow(next)
			commands = append(commands, op.start(next+"\n", "keys", "rotate", "openai", "--now", "--reason", fmt.Sprintf("operator %d", n), "-o", "json"))
		}
		commands = append(commands, op.start("", "keys", "resume", "openai", "-o", "json"), op.start("", "keys", "resume", "openai", "-o", "json"))
		switch round {
		case 1:
			agenttest.Eventually(t, 20*time.Second, "a second version", func() bool { return len(op.show("openai").Versions) > 3 || op.show("openai").Rotation != nil })
			if r := op.show("openai").Rotation; r != nil && r.To > 0 {
				commands = append(commands, op.start("", "keys", "revoke", "openai", "--version", fmt.Sprint(r.To), "--now", "--reason", "race"))
			}
		case 2:
			next := w.Key()
			p.Allow(next)
			commands = append(commands, op.start(next+"\n", "keys", "add", "openai"))
		}
		done := 0
		for _, cmd := range commands {
			select {
			case <-cmd.done:
			case <-time.After(90 * time.Second):
				t.Fatalf("round %d: %s does not end: %s", round, cmd.line, cmd.said.String())
			}
			code := cmd.end()
			if code < 0 || strings.Contains(cmd.said.String(), "panic") {
				t.Errorf("round %d: %s: exit code %d: %s", round, cmd.line, code, cmd.said.String())
			}
			if strings.Contains(cmd.line, "rotate") && code == 0 {
				done++
			}
		}
		i := op.show("openai")
		t.Logf("round %d: %d of 3 rotations were carried out; the versions are %s", round, done, brief(i))
		if round == 0 && done == 0 {
			t.Error("nobody won")
		}
		op.run("", "keys", "resume", "openai")
		if i = op.show("openai"); i.Rotation != nil {
			t.Errorf("round %d: a rotation is left open: %+v", round, *i.Rotation)
		}
	}
	l.More(time.Second)
	l.End()
	w.auditor(st).must("", "audit", "verify")
}

func brief(i keys.Info) string {
	var all []string
	for _, v := range i.Versions {
		all = append(all, fmt.Sprintf("%d %s", v.Number, v.State))
	}
	return strings.Join(all, ", ")
}
