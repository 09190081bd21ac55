package faults_test

import (
	"io"
	"net"
	"sync"
	"testing"
)

// trouble is what happens to connections.
type trouble int

const (
	passes  trouble = iota
	resets          // every one is reset, at once
	silent          // every one stands, and nothing comes out of it
	garbage         // every one is answered with bytes of another protocol
)

// relay is a TCP relay that can fail. A connection that has failed stays so.
type relay struct {
	net.Listener
	to string

	mu    sync.Mutex
	now   trouble
	taken int
	conns map[net.Conn]bool
	ended bool
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	y := &relay{Listener: ln, to: to, conns: map[net.Conn]bool{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { y.serve(c) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		y.mu.Lock()
		y.ended = true
		for c := range y.conns {
			c.Close()
		}
		y.mu.Unlock()
		wg.Wait()
	})
	return y
}

// set makes all connections, old and new, fail so from now on.
func (y *relay) set(how trouble) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.now, y.taken = how, 0
	if how == resets {
		for c := range y.conns {
			reset(c)
		}
	}
}

// count is how many connections came since the last set.
func (y *relay) count() int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.taken
}

func (y *relay) state() trouble {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.now
}

// keep registers a connection; false if the relay has ended.
func (y *relay) keep(c net.Conn) bool {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.conns[c] = true
	return !y.ended
}

func (y *relay) drop(c net.Conn) {
	c.Close()
	y.mu.Lock()
	defer y.mu.Unlock()
	delete(y.conns, c)
}

func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}

func (y *relay) serve(c net.Conn) {
	defer y.drop(c)
	if !y.keep(c) {
		return
	}
	y.mu.Lock()
	y.taken++
	y.mu.Unlock()
	switch y.state() {
	case resets:
		reset(c)
		return
	case garbage:
		io.WriteString(c, "\x16\x03\x01 220 this is another protocol\r\n\r\n")
		return
	}
	far, err := net.Dial("tcp", y.to)
	if err != nil {
		return
	}
	defer y.drop(far)
	if !y.keep(far) {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		y.copy(far, c)
		far.(*net.TCPConn).CloseWrite()
	}()
	y.copy(c, far)
	c.Close()
	<-done
}

// copy passes bytes on; what comes while the relay is silent is lost, on this connection for ever.
func (y *relay) copy(to, from net.Conn) {
	buf := make([]byte, 16<<10)
	lost := false
	for {
		n, err := from.Read(buf)
		lost = lost || y.state() == silent
		if n > 0 && !lost {
			if y.state() == garbage {
				copy(buf[:n], "\x16\x03\x01 220 this is another protocol\r\n\r\n")
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
