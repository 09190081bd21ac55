package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/provider/fake"
)

func TestMain(m *testing.M) {
	code := m.Run()
	agenttest.Cleanup()
	os.Exit(code)
}

// The scripts are named after what they show, and run the built binary: this
// test's own, where it is built for the race detector, does not always end (the
// detector's runtime has been seen to hang in exit). Beside testscript's own
// commands they have those of scriptCommands, and these variables: $PROXY and
// $ADMIN are addresses that nobody listens on.
func TestScripts(t *testing.T) {
	bin := filepath.Dir(agenttest.Binary(t))
	vault := sync.OnceValue(func() *vaulttest.Vault { return vaulttest.Start(t, vaulttest.Options{}) })
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			home := filepath.Join(e.WorkDir, "home")
			e.Setenv("HOME", home)
			e.Setenv("PATH", bin+string(filepath.ListSeparator)+e.Getenv("PATH"))
			for _, name := range []string{"PROXY", "ADMIN"} {
				e.Setenv(name, freeAddress(t))
			}
			return os.Mkdir(home, 0o700)
		},
		Cmds: scriptCommands(vault),
	})
}

var nextPort atomic.Int32

// freeAddress lies below the range that the kernel hands out by itself, so that
// it stays free until a script's agent takes it.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 500 {
		addr := fmt.Sprintf("127.0.0.1:%d", 21000+(os.Getpid()*50+int(nextPort.Add(1)))%9000)
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}

// scriptCommands are what scripts can do beside testscript's own. vault starts the one Vault that they share.
func scriptCommands(vault func() *vaulttest.Vault) map[string]func(ts *testscript.TestScript, neg bool, args []string) {
	cmds := maps.Clone(commonCommands)
	// vault MOUNT points $VAULT_ADDR at a Vault with a KV v2 engine of the script's
	// own, and $VAULT_TOKEN is its root token.
	cmds["vault"] = func(ts *testscript.TestScript, neg bool, args []string) {
		v := vault()
		v.Mount(arg(ts, neg, args, 1, "vault MOUNT")[0], "kv", map[string]string{"version": "2"})
		ts.Setenv("VAULT_ADDR", v.Address)
		ts.Setenv("VAULT_TOKEN", v.RootToken)
	}
	// token NAME FILE makes a policy of a file, and $VAULT_TOKEN one that has it.
	cmds["token"] = func(ts *testscript.TestScript, neg bool, args []string) {
		name := arg(ts, neg, args, 2, "token NAME FILE")[0]
		vault().Policy(name, ts.ReadFile(args[1]))
		ts.Setenv("VAULT_TOKEN", vault().Token(vaulttest.TokenOptions{Policies: []string{name}}))
	}
	return cmds
}

var commonCommands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	// exits CODE COMMAND [ARG...] runs a command that must end with this exit code.
	"exits": func(ts *testscript.TestScript, neg bool, args []string) {
		want, err := strconv.Atoi(arg(ts, neg, args, 2, "exits CODE COMMAND [ARG...]")[0])
		ts.Check(err)
		got := 0
		var exit *exec.ExitError
		if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
			got = exit.ExitCode()
		} else {
			ts.Check(err)
		}
		if got != want {
			ts.Fatalf("exit code %d, want %d\n%s", got, want, ts.ReadFile("stderr"))
		}
	},
	// mode OCTAL FILE... checks permissions.
	"mode": func(ts *testscript.TestScript, neg bool, args []string) {
		want, err := strconv.ParseUint(arg(ts, neg, args, 2, "mode OCTAL FILE...")[0], 8, 32)
		ts.Check(err)
		for _, file := range args[1:] {
			fi, err := os.Lstat(ts.MkAbs(file))
			ts.Check(err)
			if got := fi.Mode().Perm(); got != fs.FileMode(want) {
				ts.Fatalf("%s has mode %04o, want %04o", file, got, want)
			}
		}
	},
	// empty DIR... checks that nothing lies in a directory.
	"empty": func(ts *testscript.TestScript, neg bool, args []string) {
		for _, dir := range arg(ts, neg, args, 1, "empty DIR...") {
			there, err := os.ReadDir(ts.MkAbs(dir))
			if !errors.Is(err, fs.ErrNotExist) {
				ts.Check(err)
			}
			for _, e := range there {
				ts.Fatalf("%s holds %s", dir, e.Name())
			}
		}
	},
	// table FILE compares the columns of the last command's output, ages and times aside.
	"table": func(ts *testscript.TestScript, neg bool, args []string) {
		want, got := columns(ts.ReadFile(arg(ts, neg, args, 1, "table FILE")[0])), columns(ts.ReadFile("stdout"))
		if got != want {
			ts.Fatalf("got\n%s\nwant\n%s", got, want)
		}
	},
	// nowhere TEXT... checks that no file below the script's directory holds a text.
	"nowhere": func(ts *testscript.TestScript, neg bool, args []string) {
		texts := arg(ts, neg, args, 1, "nowhere TEXT...")
		ts.Check(filepath.WalkDir(ts.Getenv("WORK"), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			for _, text := range texts {
				if strings.Contains(string(b), text) {
					ts.Fatalf("%s holds %s", path, text)
				}
			}
			return err
		}))
	},
	// record FILE writes an audit record of five entries; $HEAD3 and $HEAD5 are their anchors.
	"record": func(ts *testscript.TestScript, neg bool, args []string) {
		f, err := audit.Open(ts.MkAbs(arg(ts, neg, args, 1, "record FILE")[0]), audit.Options{Boot: "boot"})
		ts.Check(err)
		defer f.Close()
		for i, e := range []audit.Event{
			{Event: "agent.started", Actor: "agent"}, {Event: "version.promoted", Actor: "agent", Key: "openai", Version: 2, Outcome: "intent"},
			{Event: "version.promoted", Actor: "agent", Key: "openai", Version: 2, Outcome: "ok"},
			{Event: "request.denied", Actor: "client", Source: "127.0.0.1", Reason: "cross_site"}, {Event: "agent.stopped", Actor: "agent"},
		} {
			head, err := f.Append(context.Background(), e)
			ts.Check(err)
			ts.Setenv(fmt.Sprintf("HEAD%d", i+1), head.String())
		}
	},
	// provider KEY... starts an OpenAI-compatible provider that knows these
	// keys; $PROVIDER is its host:port, provider.pem its CA.
	"provider": func(ts *testscript.TestScript, neg bool, args []string) {
		s, err := fake.New(fake.Options{Kind: "openai", Keys: arg(ts, neg, args, 1, "provider KEY...")})
		ts.Check(err)
		ts.Defer(func() { s.Close() })
		ts.Setenv("PROVIDER", strings.TrimPrefix(s.URL(), "https://"))
		ts.Check(os.WriteFile(ts.MkAbs("provider.pem"), s.CAPEM(), 0o600))
	},
	// expand FILE... replaces variables ($NAME) in files.
	"expand": func(ts *testscript.TestScript, neg bool, args []string) {
		for _, file := range arg(ts, neg, args, 1, "expand FILE...") {
			ts.Check(os.WriteFile(ts.MkAbs(file), []byte(os.Expand(ts.ReadFile(file), ts.Getenv)), 0o600))
		}
	},
	// says PATTERN COMMAND [ARG...] runs a command again and again until its output matches.
	"says": func(ts *testscript.TestScript, neg bool, args []string) {
		pattern := regexp.MustCompile("(?m)" + arg(ts, neg, args, 2, "says PATTERN COMMAND [ARG...]")[0])
		eventually(ts, strings.Join(args[1:], " ")+" says "+args[0], func() bool {
			return ts.Exec(args[1], args[2:]...) == nil && pattern.MatchString(ts.ReadFile("stdout"))
		})
	},
	// ready ADDRESS waits for the agent whose admin listener it is.
	"ready": func(ts *testscript.TestScript, neg bool, args []string) {
		client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		url := "http://" + arg(ts, neg, args, 1, "ready ADDRESS")[0] + "/readyz"
		eventually(ts, "the agent is ready", func() bool {
			resp, err := client.Get(url)
			if err != nil {
				return false
			}
			resp.Body.Close()
			return resp.StatusCode == http.StatusOK
		})
	},
	// signal TERM FILE waits for a file that names a process and signals it.
	"signal": func(ts *testscript.TestScript, neg bool, args []string) {
		sig, ok := map[string]syscall.Signal{
			"TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP, "USR1": syscall.SIGUSR1, "INT": syscall.SIGINT,
		}[arg(ts, neg, args, 2, "signal NAME FILE")[0]]
		if !ok {
			ts.Fatalf("signal %s is not known here", args[0])
		}
		pid := 0
		eventually(ts, args[1]+" names a process", func() bool {
			b, err := os.ReadFile(ts.MkAbs(args[1]))
			if err != nil || !strings.HasSuffix(string(b), "\n") {
				return false
			}
			pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
			return err == nil
		})
		ts.Check(syscall.Kill(pid, sig))
	},
}

var (
	ages   = regexp.MustCompile(`\b\d+[smhd]\b`)
	times  = regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.]+Z`)
	spaces = regexp.MustCompile(` {2,}`)
)

func columns(text string) string {
	return spaces.ReplaceAllString(ages.ReplaceAllString(times.ReplaceAllString(text, "TIME"), "AGE"), "  ")
}

func arg(ts *testscript.TestScript, neg bool, args []string, least int, usage string) []string {
	if neg || len(args) < least {
		ts.Fatalf("usage: %s", usage)
	}
	return args
}

func eventually(ts *testscript.TestScript, what string, cond func() bool) {
	for deadline := time.Now().Add(20 * time.Second); !cond(); {
		if time.Now().After(deadline) {
			ts.Fatalf("not within 20s: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
