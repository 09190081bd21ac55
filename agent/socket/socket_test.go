package socket

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// latePair is a Conn and its peer.
func latePair(t *testing.T) (*Conn, *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); peer.Close() })
	for _, c := range []net.Conn{c, peer} {
		c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	return New(c), peer.(*net.TCPConn)
}

// askLate holds back b, as upstream.Conn.Ask does.
func askLate(t *testing.T, l *Conn, pieces ...[]byte) {
	t.Helper()
	l.Late()
	for _, p := range pieces {
		if n, err := l.Write(p); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
		clear(p) // a Writer keeps nothing of what it was given
	}
}

// What is held back goes out with the Read, in order, and nothing of it stays.
func TestLateWriteGoesOutWithTheRead(t *testing.T) {
	l, peer := latePair(t)
	for _, size := range []int{10, maxLate - 3, maxLate - 2, maxLate, 3 * maxLate} {
		askLate(t, l, []byte("ab"), bytes.Repeat([]byte("x"), size))
		late := size+2 <= maxLate
		if sent := l.sent > 0; sent == late {
			t.Errorf("%d bytes: sent before the Read: %v", size, sent)
		}
		got := make(chan []byte, 1)
		go func() {
			b := make([]byte, size+2)
			if _, err := io.ReadFull(peer, b); err != nil {
				b = nil
			}
			got <- b
			peer.Write([]byte("answer"))
		}()
		b := make([]byte, 100)
		n, err := l.Read(b)
		if err != nil || string(b[:n]) != "answer" || l.sent != size+2 || l.lent != nil {
			t.Errorf("%d bytes: %q, %v, %d sent", size, b[:n], err, l.sent)
		}
		if want := append([]byte("ab"), bytes.Repeat([]byte("x"), size)...); !bytes.Equal(<-got, want) {
			t.Errorf("%d bytes came otherwise", size)
		}
		if n, err := l.Write([]byte("!")); n != 1 || err != nil { // nothing is late after a Read
			t.Error(n, err)
		}
		if _, err := io.ReadFull(peer, b[:1]); err != nil || b[0] != '!' {
			t.Errorf("%q %v", b[0], err)
		}
	}
}

// A socket that takes no more at once is waited for.
func TestLateWriteThatIsShort(t *testing.T) {
	l, peer := latePair(t)
	l.Conn.(*net.TCPConn).SetWriteBuffer(4 << 10)
	peer.SetReadBuffer(4 << 10)
	fill := bytes.Repeat([]byte("f"), 64<<10)
	filled := 0
	l.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	for {
		n, err := l.Write(fill)
		filled += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	l.SetWriteDeadline(time.Now().Add(20 * time.Second))
	askLate(t, l, []byte("the request"))
	read := make(chan string, 1)
	go func() {
		b := make([]byte, 100)
		n, err := l.Read(b)
		if err != nil {
			read <- err.Error()
			return
		}
		read <- string(b[:n])
	}()
	b := make([]byte, filled+len("the request"))
	if _, err := io.ReadFull(peer, b); err != nil || string(b[filled:]) != "the request" {
		t.Errorf("%q %v", b[filled:], err)
	}
	peer.Write([]byte("answer"))
	if got := <-read; got != "answer" {
		t.Error(got)
	}
}

// An end is told as ever: who reset or closed the connection, and who waits no longer.
func TestLateReadEnds(t *testing.T) {
	l, peer := latePair(t)
	peer.SetLinger(0)
	peer.Close()
	askLate(t, l, []byte("the request"))
	if n, err := l.Read(make([]byte, 10)); n != 0 || err == nil || l.lent != nil {
		t.Errorf("reset: %d, %v", n, err)
	}

	l, peer = latePair(t)
	askLate(t, l, []byte("the request"))
	go func(peer *net.TCPConn) {
		io.ReadFull(peer, make([]byte, len("the request")))
		peer.CloseWrite()
	}(peer)
	if n, err := l.Read(make([]byte, 10)); n != 0 || err != io.EOF {
		t.Errorf("closed: %d, %v", n, err)
	}

	l, _ = latePair(t)
	waits := l
	askLate(t, l, []byte("the request"))
	time.AfterFunc(10*time.Millisecond, func() { waits.SetReadDeadline(time.Unix(1, 0)) })
	if n, err := l.Read(make([]byte, 10)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("deadline: %d, %v", n, err)
	}

	// What was closed before the request: the peer resets, whatever the poller has seen before.
	l, peer = latePair(t)
	peer.Close()
	if n, err := l.Conn.Read(make([]byte, 1)); n != 0 || err != io.EOF { // so its end has come for sure
		t.Fatal(n, err)
	}
	askLate(t, l, []byte("the request"))
	if n, err := l.Read(make([]byte, 10)); n != 0 || err == nil {
		t.Errorf("closed before: %d, %v", n, err)
	}
}

// Reads and writes are those of any connection: in pieces, to its end, both ways
// at once, with what is too long for the socket's buffers.
func TestLikeAnyConnection(t *testing.T) {
	a, p := latePair(t)
	b := New(p)
	big := make([]byte, 8<<20)
	for i := range big {
		big[i] = byte(i >> 8)
	}
	var wg sync.WaitGroup
	for _, c := range []*Conn{a, b} {
		wg.Go(func() {
			if n, err := c.Write(big); n != len(big) || err != nil {
				t.Errorf("%d, %v", n, err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, big) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	if n, err := a.Read(nil); n != 0 || err != nil {
		t.Error(n, err)
	}
	if n, err := a.Write([]byte("x")); n != 0 || !errors.Is(err, syscall.EPIPE) {
		t.Error(n, err)
	}
	a.Close()
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// A Write that waits ends at its deadline and says how far it came.
func TestWriteDeadline(t *testing.T) {
	l, _ := latePair(t)
	much := make([]byte, 64<<20)
	l.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	n, err := l.Write(much)
	if !errors.Is(err, os.ErrDeadlineExceeded) || n <= 0 || n == len(much) {
		t.Errorf("%d, %v", n, err)
	}
	if New(l) != nil {
		t.Error("a socket right below it, though there is one between")
	}
}
