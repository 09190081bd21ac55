// Package sdk_test runs unmodified clients against the built agent: the official
// SDKs of npm and Go, and HTTP clients of Python, Java and curl. They get their
// whole configuration from the environment that agent/clientenv makes of a way to the agent.
//
// Behind the agent stand TLS servers that speak the providers' wire formats
// under the providers' real names.
package sdk_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/clientenv"
)

// client is one program that runs cases of one or more SDKs.
type client struct {
	name    string
	command func() ([]string, error) // installs what is missing
	forward bool                     // it can be sent through a proxy by the environment
	cases   []string
	// errors are the cases that are run where the agent has no key, with what
	// an application gets then.
	errors map[string]wantError
}

type wantError struct {
	Type string
	// Attempts is 1 where the client heeds `x-should-retry: false` or never tries again; 0 where it does not count.
	Attempts int
}

var nodeCases = []string{
	"openai/chat", "openai/stream", "openai/responses", "openai/embeddings", "openai/models", "openai/upload",
	"anthropic/chat", "anthropic/stream", "anthropic/models",
	"genai/chat", "genai/stream", "genai/embeddings", "genai/upload",
	"ai-openai/chat", "ai-openai/stream", "ai-openai/responses", "ai-openai/embeddings",
	"ai-anthropic/chat", "ai-anthropic/stream",
}

var nodeErrors = map[string]wantError{
	"openai/chat":       {"InternalServerError", 1},
	"openai/stream":     {"InternalServerError", 1},
	"anthropic/chat":    {"ServiceUnavailableError", 1},
	"anthropic/stream":  {"ServiceUnavailableError", 1},
	"genai/chat":        {"ApiError", 1},
	"genai/stream":      {"ApiError", 1},
	"ai-openai/chat":    {"AI_RetryError", 3},
	"ai-anthropic/chat": {"AI_RetryError", 3},
}

var clients = []client{
	{"Node of the machine", systemNode, false, nodeCases, nodeErrors},
	{"Node 24", proxyNode, true, nodeCases, nodeErrors},
	{"Go", goProgram, true, []string{
		"openai/chat", "openai/stream", "openai/responses", "openai/embeddings", "openai/models",
		"anthropic/chat", "anthropic/stream", "anthropic/models",
	}, map[string]wantError{
		"openai/chat":      {"openai.Error", 1},
		"openai/stream":    {"openai.Error", 1},
		"anthropic/chat":   {"anthropic.Error", 1},
		"anthropic/stream": {"anthropic.Error", 1},
	}},
	{"Python and curl", pythonAndCurl, true, []string{
		"httpx/chat", "httpx/stream", "requests/chat", "requests/stream",
		"aiohttp/chat", "aiohttp/stream", "curl/chat", "curl/stream",
	}, map[string]wantError{
		"httpx/chat":    {"Failed", 0},
		"requests/chat": {"Failed", 0},
		"aiohttp/chat":  {"Failed", 0},
		"curl/chat":     {"Failed", 0},
	}},
	{"Java", java, false, []string{"java/chat", "java/stream"}, map[string]wantError{
		"java/chat": {"HttpResponse", 0},
	}},
}

// result is what a client prints of a case, or (Event) of what happens in one.
type result struct {
	Name, Event string
	OK          bool
	Text        string
	Chunks      int
	Items       int
	Bytes, Sent int
	Attempts    int
	Error       *sdkError
	Requests    []string
}

type sdkError struct {
	Type, Message, Cause string
	Status               int
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	a := startAgent(t, clientenv.Routes, providers...)
	for _, c := range clients {
		t.Run(c.name, func(t *testing.T) { works(t, a, c) })
	}
}

func TestForward(t *testing.T) {
	t.Parallel()
	a := startAgent(t, clientenv.Forward, providers...)
	for _, c := range clients {
		if c.forward {
			t.Run(c.name, func(t *testing.T) { works(t, a, c) })
		}
	}
}

// A command behind `postern exec` needs nothing else.
func TestExec(t *testing.T) {
	t.Parallel()
	works(t, execAgent(t), clients[0])
}

// Without a key the agent answers each client itself, and the application finds
// the agent's sentence in the SDK's own error.
func TestErrorsOnRoutes(t *testing.T) {
	t.Parallel()
	a := startAgent(t, clientenv.Routes)
	for _, c := range clients {
		t.Run(c.name, func(t *testing.T) { fails(t, a, c) })
	}
}

func TestErrorsOnForward(t *testing.T) {
	t.Parallel()
	a := startAgent(t, clientenv.Forward)
	for _, c := range clients {
		if c.forward {
			t.Run(c.name, func(t *testing.T) { fails(t, a, c) })
		}
	}
}

func works(t *testing.T, a *agent, c client) {
	results, ok := runCases(t, a, c, c.cases)
	if !ok {
		return
	}
	for _, name := range c.cases {
		t.Run(name, func(t *testing.T) {
			r, ok := results[name]
			switch {
			case !ok:
				t.Fatal("the client printed nothing of it")
			case !r.OK:
				t.Fatalf("error %+v after %d attempts: %v", *r.Error, r.Attempts, r.Requests)
			case speaks(name) && r.Text != text:
				t.Fatalf("got %q, want %q", r.Text, text)
			case strings.HasSuffix(name, "/stream") && r.Chunks < 2:
				t.Fatalf("%d chunks, want more than one", r.Chunks)
			case strings.HasSuffix(name, "/upload") && (r.Bytes == 0 || r.Bytes != r.Sent):
				t.Fatalf("the provider received %d bytes of %d", r.Bytes, r.Sent)
			case (strings.HasSuffix(name, "/models") || strings.HasSuffix(name, "/embeddings")) && r.Items == 0:
				t.Fatal("an empty list")
			}
		})
	}
}

// text is what the providers answer with, in so many words and stream events.
const text = "A postern is the small side gate of"

// speaks reports whether a case's answer is the text.
func speaks(name string) bool {
	_, kind, _ := strings.Cut(name, "/")
	return kind == "chat" || kind == "stream" || kind == "responses"
}

func fails(t *testing.T, a *agent, c client) {
	sentences := map[string]string{}
	for _, name := range providers {
		sentences[name] = a.refusal(t, name)
	}
	names := slices.Sorted(maps.Keys(c.errors))
	results, ok := runCases(t, a, c, names)
	if !ok {
		return
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			want, sentence := c.errors[name], sentences[providerOf(name)]
			r, ok := results[name]
			if !ok || r.Error == nil {
				t.Fatalf("got %+v, want an error", r)
			}
			t.Logf("%s, status %d, %d attempts: %s", r.Error.Type, r.Error.Status, r.Attempts, r.Error.Message)
			if r.Error.Type != want.Type || r.Error.Status != http.StatusServiceUnavailable {
				t.Errorf("got %s with status %d, want %s with 503", r.Error.Type, r.Error.Status, want.Type)
			}
			if !strings.Contains(unquoted(r.Error.Message), unquoted(sentence)) {
				t.Errorf("the message lacks the agent's sentence %q", sentence)
			}
			if r.Attempts != want.Attempts {
				t.Errorf("%d attempts, want %d", r.Attempts, want.Attempts)
			}
		})
	}
}

// unquoted makes a sentence comparable with one inside a JSON string.
func unquoted(s string) string { return strings.NewReplacer(`\`, "", `"`, "", "\n", " ").Replace(s) }

// providerOf names the provider that a case asks.
func providerOf(name string) string {
	sdk, _, _ := strings.Cut(name, "/")
	switch sdk {
	case "anthropic", "ai-anthropic":
		return "anthropic"
	case "genai":
		return "gemini"
	}
	return "openai"
}

// runCases runs cases in one process of the client and returns what it printed
// of each; false if the client cannot be had on this machine, which is reported.
func runCases(t *testing.T, a *agent, c client, names []string) (map[string]result, bool) {
	t.Helper()
	command, err := c.command()
	if err != nil {
		agenttest.NotRun(t, "sdk by "+c.name, err)
		return nil, false
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	line := slices.Concat(a.prefix, command, names)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = a.env
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	results := map[string]result{}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var r result
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Errorf("%s printed %q: %v", c.name, lines.Text(), err)
		}
		if r.Event == "chunk" {
			a.release()
			continue
		}
		results[r.Name] = r
	}
	if err := errors.Join(lines.Err(), cmd.Wait()); err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(line, " "), err, said.String())
	}
	return results, true
}

// scratch is a folder for what the tests share.
var scratch string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "postern-sdk-")
	if err != nil {
		panic(err)
	}
	scratch = dir
	code := m.Run()
	agenttest.Cleanup()
	os.RemoveAll(dir)
	os.Exit(code)
}
