package main

import (
	"fmt"
	"slices"
	"strings"
)

func median(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}

// ratio is the median of the ratios round by round: a and b ran next to each other in each.
func ratio(a, b []float64) float64 {
	r := make([]float64, len(a))
	for i := range a {
		r[i] = a[i] / b[i]
	}
	return median(r)
}

func of[T any](v []T, f func(T) float64) []float64 {
	out := make([]float64, len(v))
	for i := range v {
		out[i] = f(v[i])
	}
	return out
}

func cpu(s sample) float64  { return s.cpu }
func rate(s sample) float64 { return s.rate }
func p50(s sample) float64  { return s.p50 }
func p99(s sample) float64  { return s.p99 }

// row is one line of the summary: what was asked for, and what was seen.
type row struct {
	what, bound string
	seen        float64
	unit        string
	met         bool
}

// summary holds the agent against its peers.
func (r *results) summary() []row {
	var rows []row
	most := func(what string, seen, bound float64, unit string) {
		rows = append(rows, row{what, fmt.Sprintf("≤ %g%s", bound, unit), seen, unit, seen <= bound})
	}
	least := func(what string, seen, bound float64, unit string) {
		rows = append(rows, row{what, fmt.Sprintf("≥ %g%s", bound, unit), seen, unit, seen >= bound})
	}
	us, nginx, haproxy := r.stage.peer("postern"), r.stage.peer("nginx"), r.stage.peer("haproxy")
	if len(us.many) > 0 {
		through, goproxy := r.stage.peer("postern CONNECT"), r.stage.peer("goproxy CONNECT")
		most("CPU a request", ratio(of(us.many, cpu), of(nginx.many, cpu)), 1.1, " × nginx")
		least("requests a second", ratio(of(us.many, rate), of(nginx.many, rate)), 1, " × nginx")
		most("p99", ratio(of(us.many, p99), of(haproxy.many, p99)), 1, " × haproxy")
		most("p50, one connection", ratio(of(us.one, p50), of(nginx.one, p50)), 1, " × nginx")
		most("CPU a request, CONNECT", ratio(of(through.many, cpu), of(goproxy.many, cpu)), 0.6, " × goproxy")
	}
	if len(us.streams) > 0 {
		added := func(v []streamed) []float64 {
			out := of(v, func(s streamed) float64 { return s.delay })
			for i := range out {
				out[i] = max(out[i]-r.direct[i].delay, 1)
			}
			return out
		}
		event := func(s streamed) float64 { return s.cpu }
		most("CPU an event", ratio(of(us.streams, event), of(nginx.streams, event)), 1, " × nginx")
		most("p99 delay added to an event", ratio(added(us.streams), added(nginx.streams)), 1, " × nginx")
		most("resident, a stream", us.streams[0].kib, 40, " KiB")
	}
	if len(r.flat) > 0 {
		for _, p := range r.flat[1:] {
			most("CPU a request, "+p.name, ratio(of(p.many, cpu), of(r.flat[0].many, cpu)), 1.05, " × one")
		}
	}
	if r.idleRSS > 0 {
		most("resident, idle", float64(r.idleRSS)/1024, 15, " MiB")
	}
	return rows
}

// markdown is the whole report.
func (r *results) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Benchmark\n\n`go run ./test/bench -out docs` wrote this page. All peers ran interleaved on the same cores as client and provider;\n")
	fmt.Fprintf(&b, "ratios are medians of those of each round, and absolute figures only say how this machine was. nginx, haproxy, ReverseProxy and\ngoproxy attach one fixed header; the agent does all that it does by default: its log line, metrics, scrubbing, the whole.\n\n")
	fmt.Fprintf(&b, "| | wanted | seen | |\n|---|---|---|---|\n")
	for _, w := range r.summary() {
		fmt.Fprintf(&b, "| %s | %s | %.2f%s | %s |\n", w.what, w.bound, w.seen, w.unit, map[bool]string{true: "met", false: "**not met**"}[w.met])
	}
	if len(r.stage.peers[0].many) > 0 {
		fmt.Fprintf(&b, "\n![CPU time a request](benchmark.svg)\n\nGET of a %d-byte answer, TLS upstream, %d connections, %d rounds of %d requests\n\n", len(answer), r.conns, r.rounds, r.requests)
		fmt.Fprintf(&b, "| | CPU µs a request | requests/s | p50 µs | p99 µs | p50 µs, one connection |\n|---|---|---|---|---|---|\n")
		for _, p := range r.stage.peers {
			fmt.Fprintf(&b, "| %s | %.1f | %.0f | %.0f | %.0f | %.0f |\n", p.name, median(of(p.many, cpu)), median(of(p.many, rate)),
				median(of(p.many, p50)), median(of(p.many, p99)), median(of(p.one, p50)))
		}
	}
	if len(r.direct) > 0 {
		fmt.Fprintf(&b, "\n%d event streams, an event each %v, %d rounds of %v\n\n| | CPU µs an event | p99 delay µs | KiB a stream |\n|---|---|---|---|\n", r.options.streams, every, len(r.direct), r.hold)
		fmt.Fprintf(&b, "| no proxy | | %.0f | |\n", median(of(r.direct, func(s streamed) float64 { return s.delay })))
		for _, p := range r.stage.peers {
			if len(p.streams) > 0 {
				fmt.Fprintf(&b, "| %s | %.1f | %.0f | %.0f |\n", p.name, median(of(p.streams, func(s streamed) float64 { return s.cpu })),
					median(of(p.streams, func(s streamed) float64 { return s.delay })), p.streams[0].kib)
			}
		}
	}
	if len(r.flat) > 0 {
		fmt.Fprintf(&b, "\nMany providers and keys\n\n| | CPU µs a request | CPU ms a second, idle |\n|---|---|---|\n")
		for _, p := range r.flat {
			fmt.Fprintf(&b, "| %s | %.1f | %.1f |\n", p.name, median(of(p.many, cpu)), p.idle/1e3)
		}
	}
	return b.String()
}

// svg draws the CPU time a request as bars.
func (r *results) svg() string {
	const bar, gap, left, width = 22, 8, 150, 520
	peers := r.stage.peers
	longest := 0.0
	for _, p := range peers {
		if len(p.many) > 0 {
			longest = max(longest, median(of(p.many, cpu)))
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="13">`+"\n", left+width+90, len(peers)*(bar+gap)+gap)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	for i, p := range peers {
		if len(p.many) == 0 {
			continue
		}
		y, v, fill := gap+i*(bar+gap), median(of(p.many, cpu)), "#9aa5b1"
		if strings.HasPrefix(p.name, "postern") {
			fill = "#2f6f4f"
		}
		w := v / longest * width
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text><rect x="%d" y="%d" width="%.0f" height="%d" fill="%s"/><text x="%.0f" y="%d">%.1f µs</text>`+"\n",
			left-8, y+16, p.name, left, y, w, bar, fill, left+w+6, y+16, v)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
