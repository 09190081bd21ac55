package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

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

// sample is one round of requests through one peer.
type sample struct {
	cpu      float64 // µs a request, of the peer
	rate     float64 // requests a second
	p50, p99 float64 // µs
}

// load sends n requests over so many connections.
func (s *stage) load(p *peer, n, conns int) (sample, error) {
	clients := make([]net.Conn, conns)
	for i := range clients {
		c, err := s.dial(p)
		if err != nil {
			return sample{}, fmt.Errorf("%s: %w", p.name, err)
		}
		defer c.Close()
		clients[i] = c
	}
	req := s.request(p)
	for _, c := range clients { // handshakes and first connections are not what is measured
		if _, err := client(c, req, 1); err != nil {
			return sample{}, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	took, errs := make([][]time.Duration, conns), make([]error, conns)
	before, began := p.proc.cpu(), time.Now()
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() { took[i], errs[i] = client(c, req, (n+conns-1)/conns) })
	}
	wg.Wait()
	elapsed, used := time.Since(began), p.proc.cpu()-before
	if err := errors.Join(errs...); err != nil {
		return sample{}, fmt.Errorf("%s: %w", p.name, err)
	}
	all := slices.Concat(took...)
	slices.Sort(all)
	return sample{
		cpu: micros(used) / float64(len(all)), rate: float64(len(all)) / elapsed.Seconds(),
		p50: micros(all[len(all)/2]), p99: micros(all[len(all)*99/100]),
	}, nil
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

func (s *stage) request(p *peer) []byte {
	host := p.addr
	if p.connect {
		host = s.upstream
	}
	return []byte("GET " + p.path + " HTTP/1.1\r\nHost: " + host + "\r\nAccept: application/json\r\nUser-Agent: bench\r\nAuthorization: Bearer attached-by-postern\r\n\r\n")
}

// client sends n requests, one after another. It parses no more of an answer
// than it must, so that the machine's time is the peer's.
func client(c net.Conn, req []byte, n int) ([]time.Duration, error) {
	br := bufio.NewReaderSize(c, 8<<10)
	took := make([]time.Duration, 0, n)
	for range n {
		start := time.Now()
		if _, err := c.Write(req); err != nil {
			return nil, err
		}
		size, err := readAnswer(br)
		if err != nil {
			return nil, err
		}
		if size != len(answer) {
			return nil, fmt.Errorf("an answer of %d bytes", size)
		}
		took = append(took, time.Since(start))
	}
	return took, nil
}

// readAnswer reads a 200 with Content-Length and returns the body's size.
func readAnswer(br *bufio.Reader) (int, error) {
	size := -1
	for first := true; ; first = false {
		line, err := br.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		switch {
		case first && !bytes.HasPrefix(line, []byte("HTTP/1.1 200")):
			return 0, fmt.Errorf("answered %s", line)
		case len(line) == 0:
			if size < 0 {
				return 0, errors.New("an answer without Content-Length")
			}
			return br.Discard(size)
		case len(line) > 16 && bytes.EqualFold(line[:16], []byte("Content-Length: ")):
			if size, err = strconv.Atoi(string(line[16:])); err != nil {
				return 0, err
			}
		}
	}
}

// get asks once, the plain way.
func get(url string) (int, error) {
	resp, err := http.Get(url)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, nil
}
