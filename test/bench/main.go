// Command bench compares the agent with a bare httputil.ReverseProxy and a bare
// goproxy, all in one interleaved run on one machine, and prints ratios. Each
// peer is a process of its own in front of the same TLS upstream; what counts is
// the CPU time that the kernel charges it for, per request. Absolute figures mean
// little on a shared machine; the ratios hold.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

func main() {
	role := flag.String("role", "", "internal: run as one of the peers")
	rounds := flag.Int("rounds", 7, "rounds; medians are printed")
	requests := flag.Int("requests", 8000, "requests a round and peer")
	conns := flag.Int("conns", 32, "client connections")
	streams := flag.Int("streams", 400, "concurrent event streams")
	flag.Parse()
	var err error
	switch *role {
	case "":
		err = run(*rounds, *requests, *conns, *streams)
	case "upstream":
		err = serveUpstream()
	case "reverseproxy":
		err = serveReverseProxy(flag.Arg(0))
	case "goproxy":
		err = serveGoproxy(flag.Arg(0))
	default:
		err = errors.New("no such role")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// peer is one process in front of the upstream, and how a client reaches the upstream through it.
type peer struct {
	name    string
	proc    *process
	connect bool // through CONNECT, else by a path
	addr    string
	path    string
	cpu     []float64 // µs per request, one a round
	p50     []float64 // µs
}

func run(rounds, requests, conns, streams int) error {
	if runtime.GOOS != "linux" {
		return errors.New("needs /proc: run it on Linux")
	}
	dir, err := os.MkdirTemp("", "postern-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := newStage(dir)
	if s != nil {
		defer s.close()
	}
	if err != nil {
		return err
	}
	for _, p := range s.peers {
		if _, err := s.load(p, conns*20, conns); err != nil { // warm up
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	for range rounds {
		for _, p := range s.peers {
			before := p.proc.cpu()
			lat, err := s.load(p, requests, conns)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			p.cpu = append(p.cpu, float64((p.proc.cpu()-before).Microseconds())/float64(requests))
			p.p50 = append(p.p50, float64(lat.Microseconds()))
		}
	}
	report(s.peers, conns, rounds, requests)
	return s.memory(streams)
}

func median(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}

// ratio is the median of the ratios pair by pair: a and b ran next to each other in each round.
func ratio(a, b []float64) float64 {
	r := make([]float64, len(a))
	for i := range a {
		r[i] = a[i] / b[i]
	}
	return median(r)
}

func report(peers []*peer, conns, rounds, requests int) {
	byName := map[string]*peer{}
	for _, p := range peers {
		byName[p.name] = p
	}
	fmt.Printf("GET of a 900-byte answer, TLS upstream, %d connections, medians of %d rounds of %d requests\n\n", conns, rounds, requests)
	tw := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "peer\tCPU µs a request\tp50 µs\tratio\t")
	for _, p := range peers {
		base, what := byName["reverseproxy"], "reverseproxy"
		if p.connect {
			base, what = byName["goproxy CONNECT"], "goproxy"
		}
		fmt.Fprintf(tw, "%s\t%.1f\t%.0f\t%.2f × %s\t\n", p.name, median(p.cpu), median(p.p50), ratio(p.cpu, base.cpu), what)
	}
	tw.Flush()
}

// root is the module's folder.
func root() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("go list -m: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

func buildPostern(dir string) (string, error) {
	r, err := root()
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "postern")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./cmd/postern")
	cmd.Dir = r
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building postern: %w\n%s", err, out)
	}
	return bin, nil
}

// settle lets the garbage collector and the kernel catch up before memory is read.
const settle = 2 * time.Second
