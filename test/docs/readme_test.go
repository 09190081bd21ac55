package docs_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/config"
	"github.com/postern-proxy/postern/test/tools"
)

var fence = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")

// blocks are the fenced blocks of a language in a document.
func blocks(t *testing.T, file, language string) []string {
	t.Helper()
	var out []string
	for _, m := range fence.FindAllStringSubmatch(read(t, file), -1) {
		if m[1] == language {
			out = append(out, m[2])
		}
	}
	return out
}

var aCommand = regexp.MustCompile(`^(go|make|postern|helm) [a-z]`)

// commands are the command lines of a document, without their comments.
func commands(t *testing.T, file string) []string {
	t.Helper()
	var out []string
	for _, b := range blocks(t, file, "") {
		for line := range strings.Lines(b) {
			line, _, _ = strings.Cut(line, " # ")
			if line = strings.TrimSpace(line); aCommand.MatchString(line) {
				out = append(out, line)
			}
		}
	}
	return out
}

// Every command line of the README runs. postern's run one after the other in a
// folder of their own, as a reader would type them, with a store and a provider
// in the places of Vault and OpenAI.
func TestEveryCommandOfTheReadmeRuns(t *testing.T) {
	dir := t.TempDir()
	file, key := stage(t, dir)
	var a *agenttest.Agent
	seen := map[string]int{}
	for _, line := range commands(t, "README.md") {
		word := strings.Fields(line)
		seen[word[0]]++
		switch {
		case word[0] == "make":
			target(t, line, word[1])
			continue
		case word[0] == "helm":
			continue // test/chart runs it
		case strings.HasPrefix(line, "go install ./"):
			cmd := exec.Command("go", "list", word[2])
			cmd.Dir = root(t)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", line, err, out)
			}
			continue
		case strings.HasPrefix(line, "postern agent"):
			// It runs until the end of the test.
			a = agenttest.Start(t, dir, file)
			a.Ready(t)
			if err := os.WriteFile(a.Config, []byte(strings.ReplaceAll(strings.ReplaceAll(file, `proxy: "127.0.0.1:0"`, `proxy: "`+a.Proxy+`"`), `admin: "127.0.0.1:0"`, `admin: "`+a.Admin+`"`)), 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		case line == "go run ./cmd/postern demo":
			line = "postern demo --for 2s"
		}
		line = strings.Replace(line, "-- npm start", "-- true", 1)
		if out, err := shell(t, dir, key, line); err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
	}
	if a == nil || seen["go"] < 2 || seen["make"] < 1 || seen["postern"] < 6 || seen["helm"] < 1 {
		t.Errorf("the README's commands were not found: %v", seen)
	}
}

// shell runs a line as a reader types it, in a folder, with a key at standard input.
func shell(t *testing.T, dir, key, line string, env ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("sh", "-c", line)
	cmd.Dir = dir
	cmd.Env = agenttest.Env(dir, env...)
	cmd.Env[0] = "PATH=" + filepath.Dir(agenttest.Binary(t)) + ":" + filepath.Dir(tools.Vault(t)) + ":" + os.Getenv("PATH")
	cmd.Stdin = strings.NewReader(key + "\n")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// stage writes postern.yaml and key.txt and starts what they lead to. The provider knows the key and more.
func stage(t *testing.T, dir string, more ...string) (yaml, key string) {
	t.Helper()
	key = "sk-proj-0123456789abcdefghij"
	s, err := fake.New(fake.Options{Kind: "openai", Keys: append(more, key)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	yaml = fmt.Sprintf(`version: 1
environment: prod
proxy_id: px_acme_prod
listen: {proxy: "127.0.0.1:0", admin: "127.0.0.1:0"}
store: {sealed: {file: postern.sealed, key_file: postern.key}}
providers: [{name: openai, hosts: [%q], base_url: %q, ca_file: provider.pem}]
audit: {file: audit.jsonl}
`, strings.TrimPrefix(s.URL(), "https://"), s.URL())
	for name, text := range map[string]string{"postern.yaml": yaml, "key.txt": key + "\n", "provider.pem": string(s.CAPEM())} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return yaml, key
}

// target checks that the Makefile has one.
func target(t *testing.T, line, name string) {
	t.Helper()
	if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + `:`).MatchString(read(t, "Makefile")) {
		t.Errorf("%s: the Makefile has no such target", line)
	}
}

// What the README's text and tables name exists: commands with their flags, and make's targets.
func TestEveryCommandOfTheTextExists(t *testing.T) {
	text := read(t, "README.md")
	for _, m := range regexp.MustCompile("`make ([a-z]+)`").FindAllStringSubmatch(text, -1) {
		target(t, m[0], m[1])
	}
	n := 0
	dir := t.TempDir()
	for _, m := range regexp.MustCompile("`postern ([^`]+)`").FindAllStringSubmatch(text, -1) {
		line := strings.ReplaceAll(m[1], `\|`, "|")
		line, _, _ = strings.Cut(line, " --")
		words := strings.Fields(strings.Split(line, " [")[0])
		last := strings.Split(words[len(words)-1], "|")
		flags := regexp.MustCompile(`--[a-z-]+`).FindAllString(m[1], -1)
		for _, w := range last {
			args := append(slices.Clone(words[:len(words)-1]), w)
			if len(args) > 2 || w == "…" {
				args = args[:len(args)-1] // a NAME
			}
			out, said, code := agenttest.Run(t, dir, "", append(args, "--help")...)
			if code != 0 || !strings.Contains(out, "postern "+strings.Join(args, " ")) {
				t.Errorf("%s: `postern %s --help`: exit code %d\n%s%s", m[0], strings.Join(args, " "), code, out, said)
			}
			for _, f := range flags {
				if f != "--" && !strings.Contains(out, f) {
					t.Errorf("%s: no flag %s in\n%s", m[0], f, out)
				}
			}
			n++
		}
	}
	if n < 10 {
		t.Errorf("only %d commands found", n)
	}
	// And the other way round: what the command line offers stands in the reference.
	help, _, _ := agenttest.Run(t, dir, "", "--help")
	_, list, _ := strings.Cut(help, "Available Commands:\n")
	for line := range strings.Lines(list) {
		if len(bytes.TrimSpace([]byte(line))) == 0 {
			break
		}
		if name := strings.Fields(line)[0]; name != "help" && !strings.Contains(text, "| `postern "+name) {
			t.Errorf("the README's reference lacks postern %s", name)
		}
	}
}

// The configuration in the README is whole.
func TestTheReadmesConfigurationLoads(t *testing.T) {
	found := blocks(t, "README.md", "yaml")
	if len(found) == 0 {
		t.Fatal("no YAML in the README")
	}
	for _, text := range found {
		c, err := config.Parse([]byte(text), "README.md", func(string) string { return "" }, "/etc/postern")
		if err != nil {
			t.Error(err)
			continue
		}
		if err := c.ValidateAgent(); err != nil {
			t.Error(err)
		}
	}
}
