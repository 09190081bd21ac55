package framing_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
)

// step is one request of a client, result what the client makes of the answer.
type step struct {
	Method string `json:"method"`
	Path   string `json:"path"`
}

type result struct {
	Error  string `json:"error"`
	Status int    `json:"status"`
	Nonce  string `json:"nonce"`
	Body   []byte `json:"body"`
}

// client makes requests one after another to an address, on one connection as
// far as the answers allow, and leaves no connection behind.
type client func(addr string, steps []step) ([]result, error)

var clients = []struct {
	name  string
	start func(*world) (client, error)
}{{"node", nodeClient}, {"curl", curlClient}, {"go", goClient}}

func goClient(*world) (client, error) {
	return func(addr string, steps []step) ([]result, error) {
		tr := &http.Transport{MaxConnsPerHost: 1, DisableCompression: true}
		defer tr.CloseIdleConnections()
		c := &http.Client{Transport: tr, Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		var all []result
		for _, s := range steps {
			all = append(all, goResult(c, s.Method, "http://"+addr+s.Path))
		}
		return all, nil
	}, nil
}

func goResult(c *http.Client, method, url string) result {
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		return result{Error: err.Error()}
	}
	resp, err := c.Do(req)
	if err != nil {
		return result{Error: err.Error()}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return result{Error: err.Error()}
	}
	return result{Status: resp.StatusCode, Nonce: resp.Header.Get("X-Nonce"), Body: body}
}

// nodeClient is one process for all lanes.
func nodeClient(w *world) (client, error) {
	node, err := exec.LookPath("node")
	if err != nil {
		return nil, err
	}
	out, in, err := nodeProgram(w, node, "testdata/client.js")
	if err != nil {
		return nil, err
	}
	type reply struct {
		ID      int      `json:"id"`
		Results []result `json:"results"`
	}
	var mu sync.Mutex
	waiting := map[int]chan []result{}
	go func() {
		for dec := json.NewDecoder(out); ; {
			var r reply
			if dec.Decode(&r) != nil {
				return
			}
			mu.Lock()
			waiting[r.ID] <- r.Results
			delete(waiting, r.ID)
			mu.Unlock()
		}
	}()
	last := 0
	return func(addr string, steps []step) ([]result, error) {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		got := make(chan []result, 1)
		mu.Lock()
		last++
		waiting[last] = got
		err = json.NewEncoder(in).Encode(map[string]any{"id": last, "port": port, "steps": steps})
		mu.Unlock()
		if err != nil {
			return nil, err
		}
		select {
		case r := <-got:
			return r, nil
		case <-time.After(4 * time.Minute):
			return nil, errors.New("node's client says nothing")
		}
	}, nil
}

// curlClient is a process for each connection; curl keeps it for the next URL if it can.
func curlClient(w *world) (client, error) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		return nil, err
	}
	return func(addr string, steps []step) ([]result, error) {
		dir, err := os.MkdirTemp(w.dir, "curl")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		var args []string
		for i, s := range steps {
			if i > 0 {
				args = append(args, "--next")
			}
			args = append(args, "-s", "--http1.1", "--max-time", "60", "-o", filepath.Join(dir, strconv.Itoa(i)), "-w", "%{exitcode} %{http_code} %header{x-nonce}\n")
			if s.Method == http.MethodHead {
				args = append(args, "--head")
			} else {
				args = append(args, "-X", s.Method)
			}
			args = append(args, "http://"+addr+s.Path)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, curl, args...)
		cmd.Env = agenttest.Env(dir)
		out, err := cmd.Output() // its exit code is the last step's
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			return nil, err
		}
		return curlResults(string(out), dir, steps)
	}, nil
}

func curlResults(out, dir string, steps []step) ([]result, error) {
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(lines) != len(steps) {
		return nil, fmt.Errorf("curl said %q", out)
	}
	var all []result
	for i, line := range lines {
		parts := strings.SplitN(line, " ", 3)
		status, err := strconv.Atoi(parts[1])
		if err != nil || len(parts) != 3 {
			return nil, fmt.Errorf("curl said %q", out)
		}
		if parts[0] != "0" {
			all = append(all, result{Error: "exit code " + parts[0]})
			continue
		}
		body, err := os.ReadFile(filepath.Join(dir, strconv.Itoa(i)))
		if errors.Is(err, os.ErrNotExist) || steps[i].Method == http.MethodHead { // of HEAD curl writes the head there
			body = nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, result{Status: status, Nonce: parts[2], Body: body})
	}
	return all, nil
}
