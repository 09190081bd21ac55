// Command bench compares the agent with nginx, haproxy, a bare
// httputil.ReverseProxy and a bare goproxy, all in one interleaved run on one
// machine, and prints ratios. Each peer is a process of its own in front of the
// same TLS upstream; what counts is the CPU time that the kernel charges it for,
// per request. Absolute figures mean little on a shared machine; the ratios hold.
//
//	go run ./test/bench             the table
//	go run ./test/bench -out docs   and docs/BENCHMARK.md with its plot
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// options are how long the run takes.
type options struct {
	rounds, requests, conns, streams int
	hold                             time.Duration
	only                             string
}

func main() {
	var o options
	role := flag.String("role", "", "internal: run as one of the peers")
	out := flag.String("out", "", "folder in which BENCHMARK.md and benchmark.svg are written")
	flag.StringVar(&o.only, "only", "", "requests, streams, flat or idle; all where nothing is said")
	flag.IntVar(&o.rounds, "rounds", 7, "rounds; medians are printed")
	flag.IntVar(&o.requests, "requests", 20000, "requests a round and peer")
	flag.IntVar(&o.conns, "conns", 32, "client connections")
	flag.IntVar(&o.streams, "streams", 400, "concurrent event streams")
	flag.DurationVar(&o.hold, "hold", 4*time.Second, "how long streams are watched a round and peer")
	flag.Parse()
	var err error
	switch *role {
	case "":
		err = run(o, *out)
	case "streams":
		err = serveStreams()
	case "reverseproxy":
		err = serveReverseProxy(flag.Arg(0), flag.Arg(1))
	case "goproxy":
		err = serveGoproxy()
	default:
		err = errors.New("no such role")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(o options, out string) error {
	if runtime.GOOS != "linux" {
		return errors.New("needs /proc: run it on Linux")
	}
	dir, err := os.MkdirTemp("", "postern-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := newStage(dir)
	defer s.close()
	if err != nil {
		return err
	}
	r := &results{options: o, stage: s}
	for _, part := range []struct {
		name string
		run  func(*stage, options) error
	}{{"requests", r.requestsRound}, {"streams", r.streamsRound}, {"flat", r.flatRound}, {"idle", r.idle}} {
		if o.only != "" && o.only != part.name {
			continue
		}
		if err := part.run(s, o); err != nil {
			return err
		}
	}
	text := r.markdown()
	fmt.Print(text)
	if out == "" {
		return nil
	}
	if err := os.WriteFile(filepath.Join(out, "BENCHMARK.md"), []byte(text), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "benchmark.svg"), []byte(r.svg()), 0o644)
}

// results is what was measured.
type results struct {
	options
	stage   *stage
	direct  []streamed // the provider itself
	flat    []*peer
	idleRSS int // KiB
}

// requestsRound measures requests, peer after peer in each round.
func (r *results) requestsRound(s *stage, o options) error {
	for round := range o.rounds {
		for _, p := range s.peers {
			many, err := s.load(p, o.requests, o.conns)
			if err != nil {
				return err
			}
			one, err := s.load(p, o.requests/10, 1)
			if err != nil {
				return err
			}
			p.many, p.one = append(p.many, many), append(p.one, one)
		}
		fmt.Fprintf(os.Stderr, "requests: round %d of %d\n", round+1, o.rounds)
	}
	return nil
}

// streamsRound measures event streams. A peer that holds its memory after one
// round is fresh for the next by its own means.
func (r *results) streamsRound(s *stage, o options) error {
	direct := &peer{name: "no proxy", addr: s.streams, stream: "/v1/stream"}
	for round := range (o.rounds + 1) / 2 {
		for _, p := range append([]*peer{direct}, s.peers...) {
			if p.stream == "" {
				continue
			}
			got, err := s.streamThrough(p, o.streams, o.hold)
			if err != nil {
				return err
			}
			p.streams = append(p.streams, got)
		}
		fmt.Fprintf(os.Stderr, "streams: round %d of %d\n", round+1, (o.rounds+1)/2)
	}
	r.direct = direct.streams
	return nil
}

// flatRound measures what many providers and keys cost a request: what an agent
// does by itself, asked or not, is measured before and counted apart.
func (r *results) flatRound(s *stage, o options) error {
	var err error
	if r.flat, err = s.flatPeers(); err != nil {
		return err
	}
	time.Sleep(looks) // the first ones are over
	idle(r.flat)
	for round := range o.rounds {
		for _, p := range r.flat {
			got, err := s.load(p, o.requests, o.conns)
			if err != nil {
				return err
			}
			got.cpu -= p.idle / got.rate
			p.many = append(p.many, got)
		}
		fmt.Fprintf(os.Stderr, "providers and keys: round %d of %d\n", round+1, o.rounds)
	}
	return nil
}

// idle reads the resident set of an agent that has served one request.
func (r *results) idle(s *stage, _ options) error {
	p, _, err := s.startAgent("idle", s.bench())
	if err != nil {
		return err
	}
	time.Sleep(settle)
	r.idleRSS = p.rss()
	return nil
}

// settle lets the garbage collector and the kernel catch up before memory is read.
const settle = 2 * time.Second

func buildPostern(dir string) (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("go list -m: %w", err)
	}
	bin := filepath.Join(dir, "postern")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./cmd/postern")
	cmd.Dir = strings.TrimSpace(string(out))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building postern: %w\n%s", err, out)
	}
	return bin, nil
}
