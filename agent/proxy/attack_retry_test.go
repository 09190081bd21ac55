package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/keyring"
)

// A refusal that cannot be retried is passed on whole, while the body goes on:
// one that is too long to keep, and one whose client waits for a word before it
// sends the rest.
func TestRefusalInTheMiddleOfABody(t *testing.T) {
	const first, rest = 5000, 3000
	for name, c := range map[string]struct{ head, rest string }{
		"too long": {fmt.Sprintf("Content-Length: %d\r\n\r\n", maxBody+1), strings.Repeat("x", maxBody+1-first)},
		"waiting":  {fmt.Sprintf("Content-Length: %d\r\n\r\n", first+rest), strings.Repeat("x", rest)},
		"chunked":  {fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n", first), fmt.Sprintf("\r\n%x\r\n%s\r\n0\r\n\r\n", rest, strings.Repeat("x", rest))},
	} {
		for _, inside := range []bool{false, true} {
			w := newWorld(t, nil, withKeys(key1, key2))
			var goOn sync.WaitGroup
			goOn.Add(1)
			release := sync.OnceFunc(goOn.Done)
			w.rawUpstream(t, func(c net.Conn) {
				r, err := http.ReadRequest(bufio.NewReader(c))
				if err != nil {
					return
				}
				io.CopyN(io.Discard, r.Body, 100)
				io.WriteString(c, "HTTP/1.1 401 No\r\nConnection: close\r\nContent-Length: 8\r\n\r\nhalf")
				goOn.Wait()
				io.WriteString(c, "half")
				io.Copy(io.Discard, r.Body)
			})
			t.Cleanup(release)
			y := w.way(inside)
			y.SetDeadline(time.Now().Add(10 * time.Second))
			io.WriteString(y, y.fill("POST PRE/v1/files HTTP/1.1\r\nHost: HOST\r\n"+c.head+strings.Repeat("x", first)))
			if strings.Contains(c.head, "chunked") {
				io.WriteString(y, "\r\n")
			}
			resp, err := http.ReadResponse(bufio.NewReader(y), nil)
			if err != nil {
				t.Fatalf("%s, in a tunnel %t: %v", name, inside, err)
			}
			io.WriteString(y, strings.TrimPrefix(c.rest, "\r\n"))
			release()
			if got := readAll(t, resp); resp.StatusCode != 401 || got != "halfhalf" {
				t.Errorf("%s, in a tunnel %t: %s %q", name, inside, resp.Status, got)
			}
			y.raw.Close()
			w.settled(t, name)
		}
	}
}

// The other version's lease ends, whatever becomes of the second try.
func TestSecondTryThatPanics(t *testing.T) {
	w := newWorld(t, nil, withKeys(key1, key2))
	good := w.s.routing.Load()
	defer w.s.routing.Store(good)
	bad := *good.routes["openai"]
	bad.Transport = tripper(func(r *http.Request) (*http.Response, error) {
		if r.Header.Get("Authorization") == "Bearer "+key2 {
			panic("boom")
		}
		return &http.Response{StatusCode: 401, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
	})
	rt, err := NewRouting([]*Target{&bad})
	if err != nil {
		t.Fatal(err)
	}
	w.s.Swap(rt)
	if resp, err := w.client().Get(w.url("/openai/v1/models")); err == nil {
		t.Errorf("answered %s", resp.Status)
	}
	w.settled(t, "after a panic")
}

// An upgrade that one version is refused is retried with the other, over
// HTTP/1.1 also where the provider speaks HTTP/2.
func TestUpgradeWithTheOtherVersion(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") == "Bearer "+key1 {
				rw.WriteHeader(http.StatusUnauthorized)
				return
			}
			c, _, err := http.NewResponseController(rw).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
			io.Copy(c, c)
		}, withKeys(key1, key2), func(c *worldConfig) { c.http2 = h2 })
		for i, y := range w.ways() {
			y.SetDeadline(time.Now().Add(10 * time.Second))
			io.WriteString(y, y.fill("GET PRE/v1/realtime HTTP/1.1\r\nHost: HOST\r\n"+wsHead))
			br := bufio.NewReader(y)
			resp, err := http.ReadResponse(br, nil)
			if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
				t.Fatalf("http2 %t, way %d: %v, %v", h2, i, resp, err)
			}
			io.WriteString(y, "there and back")
			if b, err := io.ReadAll(io.LimitReader(br, 14)); string(b) != "there and back" {
				t.Errorf("http2 %t, way %d: %q, %v", h2, i, b, err)
			}
			y.raw.Close()
		}
		w.settled(t, "after upgrades")
	}
}

// Everything at once, while generations and versions change: each request
// carries one usable key, the upstream sees whole bodies or broken ones, never
// others, no client sees a key, and in the end nothing is left.
func TestLoadWhileGenerationsChange(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("http2 %t", h2), func(t *testing.T) {
			var wrong atomic.Int64
			w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
				if a := r.Header["Authorization"]; len(a) != 1 || a[0] != "Bearer "+key1 && a[0] != "Bearer "+key2 {
					wrong.Add(1)
				}
				moody(rw, r, &wrong)
			}, withKeys(key1, key2), withTunnel, func(c *worldConfig) { c.http2 = h2 })
			plain := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { io.Copy(rw, r.Body) }))
			defer plain.Close()
			l := load{w: w, foreign: plain.Listener.Addr().String(), end: time.Now().Add(time.Second)}
			var clients sync.WaitGroup
			for range 8 {
				clients.Go(l.client)
			}
			var was []keyring.Entry
			for time.Now().Before(l.end) {
				was = append(was, w.key.Entries()...)
				w.install(key1, key2)
				old := w.s.routing.Load()
				w.s.Swap(w.routing(worldConfig{tunnel: true, http2: h2}))
				w.closeIdle(old)
				time.Sleep(20 * time.Millisecond) // the clients' turn
			}
			clients.Wait()
			w.renew(t, "under load", append(was, w.key.Entries()...))
			if l.answers.Load() == 0 || wrong.Load()+l.wrong.Load() > 0 || strings.Contains(w.log.String(), codePanic) {
				t.Errorf("%d answers, %d wrong requests, %d wrong answers", l.answers.Load(), wrong.Load(), l.wrong.Load())
			}
		})
	}
}

// moody is an upstream that answers in any way it can.
func moody(rw http.ResponseWriter, r *http.Request, wrong *atomic.Int64) {
	key := r.Header.Get("Authorization")
	if key == "Bearer "+key1 && rand.IntN(4) == 0 {
		if rand.IntN(2) == 0 {
			io.Copy(io.Discard, r.Body)
		}
		rw.WriteHeader(http.StatusUnauthorized)
		io.WriteString(rw, key)
		return
	}
	switch rand.IntN(5) {
	case 0:
		panic(http.ErrAbortHandler)
	case 1:
		io.WriteString(rw, key)
		rw.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	b, err := io.ReadAll(r.Body)
	if size := r.Header.Get("X-Size"); err == nil && (fmt.Sprint(len(b)) != size || len(bytes.Trim(b, "x")) > 0) {
		wrong.Add(1)
	}
	io.WriteString(rw, key)
}

type load struct {
	w              *world
	foreign        string
	end            time.Time
	answers, wrong atomic.Int64
}

// client opens one connection after another and uses each a few times.
func (l *load) client() {
	for time.Now().Before(l.end) {
		raw, err := net.Dial("tcp", l.w.addr)
		if err != nil {
			return
		}
		raw.SetDeadline(time.Now().Add(10 * time.Second))
		c, host, prefix := raw, l.w.addr, "/openai"
		switch rand.IntN(4) {
		case 0:
			host, prefix = l.w.upHost, ""
			fmt.Fprintf(raw, "CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", host)
			http.ReadResponse(bufio.NewReaderSize(raw, 16), &http.Request{Method: http.MethodConnect})
			c = tls.Client(raw, &tls.Config{RootCAs: l.w.ca, ServerName: "127.0.0.1"})
		case 1:
			host, prefix = l.w.upHost, "https://"+l.w.upHost
		case 2:
			host, prefix = l.foreign, "http://"+l.foreign
		}
		br := bufio.NewReader(c)
		for range 4 {
			if !l.exchange(c, br, host, prefix) {
				break
			}
		}
		raw.Close()
	}
}

// exchange makes one request, and sometimes leaves before its answer.
func (l *load) exchange(c net.Conn, br *bufio.Reader, host, prefix string) bool {
	body := bytes.Repeat([]byte("x"), []int{0, 1, 100, 100000, 1500000}[rand.IntN(5)])
	go func() {
		fmt.Fprintf(c, "POST %s/v1/x HTTP/1.1\r\nHost: %s\r\nX-Size: %d\r\n", prefix, host, len(body))
		if rand.IntN(2) == 0 {
			fmt.Fprintf(c, "Content-Length: %d\r\n\r\n%s", len(body), body)
			return
		}
		io.WriteString(c, "Transfer-Encoding: chunked\r\n\r\n")
		for rest := body; len(rest) > 0; {
			n := min(len(rest), 1+rand.IntN(50000))
			fmt.Fprintf(c, "%x\r\n%s\r\n", n, rest[:n])
			rest = rest[n:]
		}
		io.WriteString(c, "0\r\n\r\n")
	}()
	if rand.IntN(8) == 0 {
		return false
	}
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return false
	}
	got, err := io.ReadAll(resp.Body)
	l.answers.Add(1)
	if bytes.Contains(got, []byte(key1[8:])) || bytes.Contains(got, []byte(key2[8:])) || resp.Header.Get(errorField) == codeNoKey {
		l.wrong.Add(1)
	}
	return err == nil
}
