package agent

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// All of it comes, in order, through a pipe that is full most of the time.
func TestLogThroughAFullPipe(t *testing.T) {
	r, f, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w := withoutWaiting(f)
	var want bytes.Buffer
	got := make(chan []byte, 1)
	begin := make(chan struct{})
	go func() {
		<-begin
		b, _ := io.ReadAll(r)
		got <- b
	}()
	for i := range 64 {
		line := strings.Repeat(string(rune('a'+i%26)), logBatch-1) + "\n"
		want.WriteString(line)
		if i == 2 { // there is room for the first of them
			close(begin)
		}
		if n, err := w.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	f.Close()
	if !bytes.Equal(<-got, want.Bytes()) {
		t.Error("it came otherwise")
	}
}

// What a pipe has room for goes the short way, where the kernel knows it, and what it has none for does not end that.
func TestLogWithoutWaiting(t *testing.T) {
	r, f, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer f.Close()
	w := withoutWaiting(f).(*nowait)
	if n := w.some(f.Fd(), []byte("line\n")); n != len("line\n") && !w.cannot {
		t.Errorf("%d bytes", n)
	}
	if w.cannot {
		t.Log("this kernel does not know it for pipes")
		return
	}
	if n := w.some(f.Fd(), make([]byte, 4<<20)); n == 0 || n == 4<<20 || w.cannot {
		t.Errorf("a full pipe: %d bytes, cannot: %v", n, w.cannot)
	}
}

func TestLogToAFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := withoutWaiting(f)
	for _, line := range []string{"one\n", "", "two\n"} {
		if n, err := w.Write([]byte(line)); n != len(line) || err != nil {
			t.Error(n, err)
		}
	}
	if b, err := os.ReadFile(name); string(b) != "one\ntwo\n" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// The usual way says why nothing can be written.
func TestLogWithoutAReader(t *testing.T) {
	r, f, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	w := withoutWaiting(f)
	r.Close()
	if n, err := w.Write([]byte("line\n")); n != 0 || !errors.Is(err, syscall.EPIPE) {
		t.Error(n, err)
	}
	f.Close()
	if n, err := w.Write([]byte("line\n")); n != 0 || !errors.Is(err, os.ErrClosed) {
		t.Error(n, err)
	}
	if w := withoutWaiting(io.Discard); w != io.Discard {
		t.Error("no file")
	}
}
