package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// canaries are what people paste into the wrong field.
var canaries = []string{
	"sk-proj-Zk3vT9qLmX7bN2wR5yJ8uH4cF6dG1aS0",
	"hvs.CAESIJlmN0pQ2rStUvWxYz",
	"https://user:hunter2-canary@proxy.example:3128/x",
	"pstn_live_a8f3k2",
	"AbCdEfGhIjKlMnOpQrStUvWx",
	`-----BEGIN PRIVATE KEY----- MIIEvQ/canary`,
}

// A key pasted over any name or value of a configuration is in no message and no
// note. Each place has two of the canaries, and each canary every third place.
func TestMessagesHoldNoSecret(t *testing.T) {
	for _, file := range []string{"testdata/full.yaml", "testdata/sealed.yaml", "testdata/cert.yaml", "testdata/server.yaml"} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			mistakes := 0
			for c, canary := range canaries {
				for i := range scalars(t, data) {
					if (i+c)%3 != 0 {
						continue
					}
					var doc yaml.Node
					if err := yaml.Unmarshal(data, &doc); err != nil {
						t.Fatal(err)
					}
					n := scalarsOf(&doc)[i]
					at := n.Line
					*n = yaml.Node{Kind: yaml.ScalarNode, Value: canary, Style: yaml.DoubleQuotedStyle}
					changed, err := yaml.Marshal(&doc)
					if err != nil {
						t.Fatal(err)
					}
					mistakes += leaks(t, changed, canary, at)
				}
			}
			if mistakes == 0 {
				t.Error("no change was a mistake: the test proves nothing")
			}
		})
	}
}

func leaks(t *testing.T, data []byte, canary string, line int) (mistakes int) {
	t.Helper()
	c, err := Parse(data, "x", environment(nil), "/etc/postern")
	var said []string
	if err != nil {
		mistakes, said = 1, append(said, err.Error())
	} else {
		for _, n := range c.Notes {
			said = append(said, n.Error())
		}
		for _, validate := range []func() error{c.ValidateAgent, c.ValidateServer, c.ValidateScope} {
			if err := validate(); err != nil {
				said = append(said, err.Error())
			}
		}
	}
	for _, s := range said {
		for _, part := range []string{canary, strings.ToLower(canary), "hunter2", "canary", canary[len(canary)-8:]} {
			if strings.Contains(strings.ToLower(s), strings.ToLower(part)) {
				t.Errorf("line %d replaced by %q: the answer holds it:\n%s", line, canary, s)
			}
		}
	}
	return mistakes
}

// Cut anywhere, a document with a password in it is answered without it.
func TestSyntaxErrorsHoldNoSecret(t *testing.T) {
	for _, canary := range append(canaries, "*canary-as-alias", "&canary-as-anchor") {
		doc := "version: 1\negress: {proxy: \"http://u:" + canary + "@p:1\"}\nservice: " + canary + "\nlog: [" + canary + ", '" + canary + "]\n? " + canary + "\n: - " + canary + "\n\t" + canary
		for i := range len(doc) {
			leaks(t, []byte(doc[:i]), canary, i)
			leaks(t, []byte(doc[i:]), canary, i)
		}
	}
}

func scalars(t *testing.T, data []byte) []*yaml.Node {
	t.Helper()
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	return scalarsOf(&doc)
}

// scalarsOf is every name and value of a document.
func scalarsOf(n *yaml.Node) []*yaml.Node {
	if n.Kind == yaml.ScalarNode {
		return []*yaml.Node{n}
	}
	var out []*yaml.Node
	for _, c := range n.Content {
		out = append(out, scalarsOf(c)...)
	}
	return out
}

func TestSecretLike(t *testing.T) {
	for s, want := range map[string]bool{
		"sk-proj-abcdefghij":               true,
		"u:p@h":                            true,
		"0123456789abcdef":                 true,
		"AbCdEfGhIjKlMnOpQr":               true,
		"prod":                             false,
		"127.0.0.1:8700":                   false,
		"Transfer-Encoding":                false,
		"AWS_ENDPOINT_URL_BEDROCK_RUNTIME": false,
		"sk-":                              false,
		"an@":                              false,
		"acme.openai.azure.com":            false,
	} {
		if secretLike(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
}
