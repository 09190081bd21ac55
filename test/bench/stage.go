package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// process is one peer's.
type process struct{ cmd *exec.Cmd }

// cpu is the user and system time the process has used (proc(5), fields 14 and 15; 100 ticks a second).
func (p *process) cpu() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
	ticks := 0
	for _, i := range []int{11, 12} {
		n, _ := strconv.Atoi(f[i])
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// rss is the resident set in KiB.
func (p *process) rss() int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, _ := strconv.Atoi(strings.Fields(rest)[0])
			return n
		}
	}
	return 0
}

func (p *process) stop() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// stage is the upstream and the peers in front of it.
type stage struct {
	dir, cert string
	upstream  string
	pool      *x509.CertPool
	procs     []*process
	agent     *process
	peers     []*peer
}

func newStage(dir string) (*stage, error) {
	s := &stage{dir: dir, cert: filepath.Join(dir, "bench.pem")}
	if err := writeCert(s.cert); err != nil {
		return nil, err
	}
	os.Setenv(certEnv, s.cert)
	var err error
	if s.pool, err = roots(); err != nil {
		return nil, err
	}
	if _, s.upstream, err = s.self("upstream"); err != nil {
		return s, err
	}
	rp, rpAddr, err := s.self("reverseproxy", s.upstream)
	if err != nil {
		return s, err
	}
	gp, gpAddr, err := s.self("goproxy", s.upstream)
	if err != nil {
		return s, err
	}
	addr, err := s.startAgent()
	if err != nil {
		return s, err
	}
	s.peers = []*peer{
		{name: "reverseproxy", proc: rp, addr: rpAddr, path: "/v1/models"},
		{name: "postern route", proc: s.agent, addr: addr, path: "/openai/v1/models"},
		{name: "goproxy CONNECT", proc: gp, addr: gpAddr, path: "/v1/models", connect: true},
		{name: "postern CONNECT", proc: s.agent, addr: addr, path: "/v1/models", connect: true},
	}
	return s, nil
}

// self starts this program in a role and reads the address that it prints.
func (s *stage) self(role string, args ...string) (*process, string, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	return s.start(exec.Command(exe, append([]string{"-role", role}, args...)...), func(r *bufio.Reader) (string, error) {
		line, err := r.ReadString('\n')
		return strings.TrimSpace(line), err
	}, false)
}

func (s *stage) start(cmd *exec.Cmd, address func(*bufio.Reader) (string, error), fromStderr bool) (*process, string, error) {
	pipe, err := cmd.StdoutPipe()
	if fromStderr {
		cmd.Stdout = nil
		pipe, err = cmd.StderrPipe()
	} else {
		cmd.Stderr = os.Stderr
	}
	if err != nil {
		return nil, "", err
	}
	if err := cmd.Start(); err != nil {
		return nil, "", err
	}
	p := &process{cmd}
	s.procs = append(s.procs, p)
	br := bufio.NewReader(pipe)
	addr, err := address(br)
	if err != nil {
		return nil, "", fmt.Errorf("%s did not start: %w", filepath.Base(cmd.Path), err)
	}
	go io.Copy(io.Discard, br)
	return p, addr, nil
}

// startAgent runs the real agent with every feature at its default.
func (s *stage) startAgent() (string, error) {
	bin, err := buildPostern(s.dir)
	if err != nil {
		return "", err
	}
	config := filepath.Join(s.dir, "postern.yaml")
	err = os.WriteFile(config, fmt.Appendf(nil, `
version: 1
environment: bench
proxy_id: px_bench
listen: {proxy: "127.0.0.1:0", admin: "127.0.0.1:0"}
store: {sealed: {file: postern.sealed, key_file: postern.key}}
providers:
  - {name: openai, hosts: [%q], base_url: "https://%s", ca_file: bench.pem}
audit: {file: audit.jsonl}
`, s.upstream, s.upstream), 0o600)
	if err != nil {
		return "", err
	}
	add := exec.Command(bin, "keys", "add", "openai", "-c", config)
	add.Stdin = strings.NewReader(apiKey)
	if out, err := add.CombinedOutput(); err != nil {
		return "", fmt.Errorf("keys add: %w\n%s", err, out)
	}
	began := time.Now()
	p, addr, err := s.start(exec.Command(bin, "agent", "-c", config), serving, true)
	if err != nil {
		return "", err
	}
	s.agent = p
	for deadline := began.Add(10 * time.Second); ; {
		resp, err := http.Get("http://" + addr + "/openai/v1/models")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				break
			}
		}
		if time.Now().After(deadline) {
			return "", errors.New("the agent did not become ready")
		}
		time.Sleep(2 * time.Millisecond)
	}
	fmt.Printf("ready %d ms after its start\n", time.Since(began).Milliseconds())
	return addr, nil
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

// dial opens a client connection through a peer.
func (s *stage) dial(p *peer) (net.Conn, error) {
	c, err := net.Dial("tcp", p.addr)
	if err != nil || !p.connect {
		return c, err
	}
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", s.upstream, s.upstream)
	resp, err := http.ReadResponse(bufio.NewReaderSize(c, 16), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("CONNECT: %s", resp.Status)
	}
	return tls.Client(c, &tls.Config{InsecureSkipVerify: true}), nil // the peers' CAs differ; the load is what matters here
}

// load sends n requests over so many connections and returns the median latency.
func (s *stage) load(p *peer, n, conns int) (time.Duration, error) {
	var mu sync.Mutex
	var took []time.Duration
	var first error
	var wg sync.WaitGroup
	for i := range conns {
		wg.Go(func() {
			lat, err := s.client(p, n/conns+btoi(i < n%conns))
			mu.Lock()
			defer mu.Unlock()
			took = append(took, lat...)
			if err != nil && first == nil {
				first = err
			}
		})
	}
	wg.Wait()
	if first != nil {
		return 0, first
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (s *stage) client(p *peer, n int) ([]time.Duration, error) {
	c, err := s.dial(p)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	host := p.addr
	if p.connect {
		host = s.upstream
	}
	req := []byte("GET " + p.path + " HTTP/1.1\r\nHost: " + host + "\r\nAccept: application/json\r\nUser-Agent: bench\r\nAuthorization: Bearer attached-by-postern\r\n\r\n")
	br := bufio.NewReader(c)
	took := make([]time.Duration, 0, n)
	for range n {
		start := time.Now()
		if _, err := c.Write(req); err != nil {
			return nil, err
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			return nil, err
		}
		size, err := io.Copy(io.Discard, resp.Body)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusOK || size != int64(len(answer)) {
			return nil, fmt.Errorf("answered %s with %d bytes", resp.Status, size)
		}
		took = append(took, time.Since(start))
	}
	return took, nil
}

// memory prints the agent's resident set idle and with so many open streams. It
// is a fresh process: what the load left behind is not counted as idle.
func (s *stage) memory(streams int) error {
	s.agent.stop()
	addr, err := s.startAgent()
	if err != nil {
		return err
	}
	time.Sleep(settle)
	idle := s.agent.rss()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: streams}}
	errs := make(chan error, streams)
	for range streams {
		go func() {
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/openai/v1/stream", nil)
			resp, err := client.Do(req)
			if err == nil && resp.StatusCode != http.StatusOK {
				err = errors.New(resp.Status)
			}
			errs <- err
			if err == nil {
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		}()
	}
	for range streams {
		if err := <-errs; err != nil {
			return fmt.Errorf("streams: %w", err)
		}
	}
	time.Sleep(settle)
	fmt.Printf("resident: %.1f MB idle, %.1f MB with %d event streams\n", float64(idle)/1024, float64(s.agent.rss())/1024, streams)
	return nil
}
