package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// every is how often a stream has something to say.
const every = 100 * time.Millisecond

// stream answers with an event each tick until the client leaves. Each says
// when it was sent, on the clock that the client reads too.
func stream(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if _, err := fmt.Fprintf(w, "data: {\"at\":%d,\"choices\":[{\"index\":0,\"delta\":{\"content\":\"token\"},\"finish_reason\":null}]}\n\n", time.Now().UnixNano()); err != nil {
			return
		}
		w.(http.Flusher).Flush()
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

// warm is how many streams are open when the others begin to be counted: what the
// first ones bring into memory, code above all, is not a stream's.
const warm = 20

// streamed is what many streams cost, all open at once.
type streamed struct {
	cpu   float64 // µs an event, of the peer
	delay float64 // µs, p99, from the provider's write to the client's read
	kib   float64 // resident, a stream
}

// streamThrough holds so many streams open for a while.
func (s *stage) streamThrough(p *peer, streams int, hold time.Duration) (streamed, error) {
	var counting atomic.Bool
	conns, delays, errs := make([]net.Conn, streams), make([][]time.Duration, streams), make([]error, streams)
	var wg, open sync.WaitGroup
	few := 0
	for i := range streams {
		if i == warm && p.proc != nil {
			open.Wait()
			time.Sleep(settle)
			few = p.proc.rss()
		}
		c, err := s.dialStream(p)
		if err != nil {
			return streamed{}, fmt.Errorf("%s: %w", p.name, err)
		}
		conns[i] = c
		open.Add(1)
		wg.Go(func() { delays[i], errs[i] = listen(c, &open, &counting) })
		if i%20 == 0 { // so that they do not tick as one
			time.Sleep(every / 25)
		}
	}
	open.Wait()
	time.Sleep(settle)
	var before, used time.Duration
	var out streamed
	if p.proc != nil {
		before = p.proc.cpu()
	}
	counting.Store(true)
	time.Sleep(hold)
	counting.Store(false)
	if p.proc != nil {
		used = p.proc.cpu() - before
		out.kib = float64(p.proc.rss()-few) / float64(streams-warm)
	}
	for _, c := range conns {
		c.Close()
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return out, fmt.Errorf("%s: %w", p.name, err)
	}
	all := slices.Concat(delays...)
	if want := streams * int(hold/every) / 2; len(all) < want {
		return out, fmt.Errorf("%s: %d events came of more than %d", p.name, len(all), want)
	}
	slices.Sort(all)
	out.cpu, out.delay = micros(used)/float64(len(all)), micros(all[len(all)*99/100])
	return out, nil
}

func (s *stage) dialStream(p *peer) (net.Conn, error) {
	c, err := net.Dial("tcp", p.addr)
	if p.proc == nil && err == nil {
		c = tls.Client(c, &tls.Config{RootCAs: s.pool, ServerName: "localhost"})
	}
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\nAuthorization: Bearer %s\r\n\r\n", p.stream, p.addr, apiKey)
	return c, err
}

// listen reads events until its connection is closed, and notes how late each came while it counts.
func listen(c net.Conn, open *sync.WaitGroup, counting *atomic.Bool) (delays []time.Duration, err error) {
	br := bufio.NewReader(c)
	first := true
	opened := sync.OnceFunc(open.Done)
	defer opened()
	for {
		line, err := br.ReadSlice('\n')
		if err != nil {
			return delays, nil // closed, or cut off: too few events tell
		}
		if first && !bytes.HasPrefix(line, []byte("HTTP/1.1 200")) {
			return nil, fmt.Errorf("answered %s", line)
		}
		first = false
		rest, ok := bytes.CutPrefix(line, []byte(`data: {"at":`))
		if !ok {
			continue
		}
		opened()
		if !counting.Load() {
			continue
		}
		digits, _, _ := strings.Cut(string(rest[:min(len(rest), 24)]), ",")
		at, err := strconv.ParseInt(digits, 10, 64)
		if err != nil {
			return nil, err
		}
		delays = append(delays, time.Duration(time.Now().UnixNano()-at))
	}
}
