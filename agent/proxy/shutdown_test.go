package proxy

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// closeHook is a connection that says when it is to be closed, and waits.
type closeHook struct {
	net.Conn
	once sync.Once
	hook func()
}

func (c *closeHook) Close() error {
	c.once.Do(c.hook)
	return c.Conn.Close()
}

// A shutdown finds two connections idle. While it closes the one, a request
// comes on the other: either it is not taken, or it is answered.
func TestRequestDuringShutdownIsNotTakenAndCut(t *testing.T) {
	w := newWorld(t, nil)
	r := &w.s.conns
	first := make(chan int, 2) // which one the shutdown closes first
	other := make(chan struct{})
	var clients [2]net.Conn
	for i := range clients {
		client, server := net.Pipe()
		defer client.Close()
		clients[i] = client
		conn := &closeHook{Conn: server}
		conn.hook = func() {
			first <- i
			<-other
		}
		s := newSession(w.s, conn, nil)
		r.run(conn, s)
		for !s.idle.Load() { // its goroutine has begun
		}
	}
	w.s.closing.Store(true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.closeIdle()
	}()
	client := clients[1-<-first]
	answer := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(client)
		answer <- b
	}()
	if _, err := io.WriteString(client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err == nil && strings.Contains(w.log.String(), "request") {
		t.Error("a request was taken on a connection that the shutdown closes")
	}
	close(other)
	if b := <-answer; len(b) > 0 {
		t.Errorf("the client read %q", b)
	}
	<-done
	r.wg.Wait()
	if strings.Contains(w.log.String(), "request") {
		t.Error("a request was taken on a connection that the shutdown closes")
	}
}
