package h1

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http/httputil"
	"strings"
	"testing"
)

// unchunk decodes b in pieces of at most cut bytes.
func unchunk(b []byte, cut int) (data string, rest []byte, ended bool, err error) {
	var c Chunked
	for len(b) > 0 && !c.Ended() {
		piece := bytes.Clone(b[:min(cut, len(b))])
		got, n, err := c.Next(piece)
		data += string(got)
		if err != nil {
			return data, b, false, err
		}
		b = b[n:]
	}
	return data, b, c.Ended(), nil
}

func TestChunked(t *testing.T) {
	for raw, want := range map[string]string{
		"0\r\n\r\n": "", "5\r\nhello\r\n0\r\n\r\n": "hello", "3\r\nabc\r\n00a\r\n0123456789\r\n000\r\n\r\n": "abc0123456789",
		"1\r\na\r\n0\r\nX: y\r\nZ: \r\n\r\n": "a",
	} {
		for cut := 1; cut <= len(raw); cut++ {
			data, rest, ended, err := unchunk([]byte(raw+"GET"), cut)
			if err != nil || data != want || string(rest) != "GET" || !ended {
				t.Errorf("%q by %d: %q, rest %q, %v", raw, cut, data, rest, err)
			}
		}
	}
	var c Chunked
	piece := []byte("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
	b := make([]byte, len(piece))
	if n := testing.AllocsPerRun(100, func() {
		c.Reset()
		copy(b, piece)
		c.Next(b)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestChunksWritten(t *testing.T) {
	for _, n := range []int{1, 9, 10, 15, 16, 17, 255, 256, 4096, 1 << 20, 1<<40 + 5} {
		if got, want := string(AppendChunkHead(nil, n)), fmt.Sprintf("%x\r\n", n); got != want || len(got) > MaxChunkHead {
			t.Errorf("%d: %q", n, got)
		}
	}
	text := strings.Repeat("x", 300)
	b := append(append(AppendChunkHead(nil, len(text)), text...), "\r\n"+LastChunk...)
	got, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(b)))
	if err != nil || string(got) != text {
		t.Errorf("%q, %v", got, err)
	}
}

// FuzzChunked: what ends properly, net/http reads as the same, however it was cut.
func FuzzChunked(f *testing.F) {
	f.Add([]byte("5\r\nhello\r\n0\r\n\r\n"), uint8(1))
	f.Add([]byte("A\r\n0123456789\r\n0\r\nX: y\r\n\r\nrest"), uint8(3))
	f.Fuzz(func(t *testing.T, raw []byte, cut uint8) {
		data, rest, ended, err := unchunk(raw, max(1, len(raw)))
		pieces, piecesRest, piecesEnded, cutErr := unchunk(raw, int(cut)%64+1)
		if (err == nil) != (cutErr == nil) || err == nil && (data != pieces || ended != piecesEnded || !bytes.Equal(rest, piecesRest)) {
			t.Fatalf("%q: %q, %q, %t, %v; cut by %d: %q, %q, %t, %v", raw, data, rest, ended, err, int(cut)%64+1, pieces, piecesRest, piecesEnded, cutErr)
		}
		if err != nil || !ended {
			return
		}
		theirs, err := io.ReadAll(httputil.NewChunkedReader(bufio.NewReader(bytes.NewReader(raw))))
		if err != nil || string(theirs) != data {
			t.Fatalf("%q: %q, net/http's %q, %v", raw, data, theirs, err)
		}
	})
}
