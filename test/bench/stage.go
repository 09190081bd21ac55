package main

import (
	"bufio"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// peer is one process in front of the providers, and how a client reaches them through it.
type peer struct {
	name    string
	proc    *process // nil: the provider itself
	connect bool     // through CONNECT, else by a path
	addr    string
	path    string
	stream  string  // path of a stream; "" where none is asked for
	idle    float64 // µs of CPU a second while nobody asks; known where many keys are compared
	many    []sample
	one     []sample
	streams []streamed
}

// stage is the providers and the peers in front of them.
type stage struct {
	dir, cert string
	upstream  string // a provider that answers at once
	streams   string // and one that streams
	pool      *x509.CertPool
	procs     []*process
	bin       string
	peers     []*peer
}

func newStage(dir string) (*stage, error) {
	s := &stage{dir: dir, cert: filepath.Join(dir, "bench.pem")}
	if err := writeCert(s.cert); err != nil {
		return s, err
	}
	os.Setenv(certEnv, s.cert)
	var err error
	if s.pool, err = roots(); err != nil {
		return s, err
	}
	if err := s.startUpstream(); err != nil {
		return s, err
	}
	if _, s.streams, err = s.self("streams"); err != nil {
		return s, err
	}
	if s.bin, err = buildPostern(dir); err != nil {
		return s, err
	}
	return s, s.startPeers()
}

func (s *stage) startPeers() error {
	nginx, nginxAddr, err := s.nginxProxy()
	if err != nil {
		return err
	}
	haproxy, haproxyAddr, err := s.haproxyProxy()
	if err != nil {
		return err
	}
	rp, rpAddr, err := s.self("reverseproxy", s.upstream, s.streams)
	if err != nil {
		return err
	}
	gp, gpAddr, err := s.self("goproxy")
	if err != nil {
		return err
	}
	agent, addr, err := s.startAgent("agent", s.bench())
	if err != nil {
		return err
	}
	s.peers = []*peer{
		{name: "nginx", proc: nginx, addr: nginxAddr, path: "/openai/v1/models", stream: "/streams/v1/stream"},
		{name: "haproxy", proc: haproxy, addr: haproxyAddr, path: "/openai/v1/models", stream: "/streams/v1/stream"},
		{name: "ReverseProxy", proc: rp, addr: rpAddr, path: "/v1/models", stream: "/streams/v1/stream"},
		{name: "postern", proc: agent, addr: addr, path: "/openai/v1/models", stream: "/streams/v1/stream"},
		{name: "goproxy CONNECT", proc: gp, addr: gpAddr, path: "/v1/models", connect: true},
		{name: "postern CONNECT", proc: agent, addr: addr, path: "/v1/models", connect: true},
	}
	return nil
}

func (s *stage) peer(name string) *peer {
	for _, p := range s.peers {
		if p.name == name {
			return p
		}
	}
	return nil
}

// self starts this program in a role and reads the address that it prints.
func (s *stage) self(role string, args ...string) (*process, string, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	p, addr, err := start(exec.Command(exe, append([]string{"-role", role}, args...)...), func(r *bufio.Reader) (string, error) {
		line, err := r.ReadString('\n')
		return strings.TrimSpace(line), err
	}, false)
	if err == nil {
		s.procs = append(s.procs, p)
	}
	return p, addr, err
}

// bench is the configuration that is compared: every feature at its default.
func (s *stage) bench() string {
	return fmt.Sprintf(`
  - {name: openai, hosts: [%[1]q], base_url: "https://%[1]s", ca_file: ../bench.pem}
  - {name: streams, provider: openai, hosts: [%[2]q], base_url: "https://%[2]s", ca_file: ../bench.pem, key: openai}
`, s.upstream, s.streams)
}

// startAgent runs the real agent in a folder of its own, with these providers
// and one key, or those that keys puts into its store.
func (s *stage) startAgent(name, providers string, keys ...func(dir string) error) (*process, string, error) {
	dir := filepath.Join(s.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, "", err
	}
	config := filepath.Join(dir, "postern.yaml")
	err := os.WriteFile(config, []byte(`
version: 1
environment: bench
proxy_id: px_bench
listen: {proxy: "127.0.0.1:0", admin: "127.0.0.1:0"}
store: {sealed: {file: postern.sealed, key_file: postern.key}}
audit: {file: audit.jsonl}
providers:`+providers), 0o600)
	if err != nil {
		return nil, "", err
	}
	if _, err := os.Stat(filepath.Join(dir, "postern.sealed")); err != nil {
		add := exec.Command(s.bin, "keys", "add", "openai", "-c", config)
		add.Stdin = strings.NewReader(apiKey)
		if out, err := add.CombinedOutput(); err != nil {
			return nil, "", fmt.Errorf("keys add: %w\n%s", err, out)
		}
		for _, put := range keys {
			if err := put(dir); err != nil {
				return nil, "", err
			}
		}
	}
	began := time.Now()
	p, addr, err := start(exec.Command(s.bin, "agent", "-c", config), serving, true)
	if err != nil {
		return nil, "", err
	}
	s.procs = append(s.procs, p)
	for deadline := began.Add(time.Minute); ; {
		if status, err := get("http://" + addr + "/openai/v1/models"); err == nil && status == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			return nil, "", errors.New("the agent did not become ready")
		}
		time.Sleep(2 * time.Millisecond)
	}
	fmt.Fprintf(os.Stderr, "%s: serves %d ms after its start\n", name, time.Since(began).Milliseconds())
	return p, addr, nil
}

// serving reads the agent's log up to the line that says where it listens.
func serving(r *bufio.Reader) (string, error) {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", fmt.Errorf("%w: %s", err, line)
		}
		var e struct{ Msg, Proxy string }
		if json.Unmarshal([]byte(line), &e) == nil && e.Msg == "serving" {
			return e.Proxy, nil
		}
	}
}

func (s *stage) close() {
	for _, p := range s.procs {
		p.stop()
	}
}
