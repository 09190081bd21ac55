package h1

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http/httputil"
	"regexp"
	"strings"
	"testing"
)

// unchunk decodes b in pieces of at most cut bytes, as c does it.
func unchunk(c Chunked, b []byte, cut int) (data string, rest []byte, ended bool, err error) {
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
			data, rest, ended, err := unchunk(Chunked{}, []byte(raw+"GET"), cut)
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

// Extensions are passed over where they may be, and refused elsewhere; what is none never passes.
func TestExtensions(t *testing.T) {
	long := strings.Repeat("a", maxExtensions)
	for ext, ok := range map[string]bool{
		";a": true, ";a=b": true, ";a=b;c;d=e": true, " ; a = b\t;\tc": true, `;a="b"`: true, `;a="";b`: true, `;a="b;c=\"\\ d"`: true,
		";a=\"\x80\t\"": true, ";" + long[2:]: true,
		";": false, ";;": false, ";a;": false, ";a=": false, ";a==b": false, ";=b": false, ";a b": false, ";a=b c": false, " ": false, ";a ": false, ";a=b ": false,
		` a`: false, `;a="b`: false, `;a="b\"`: false, `;a="b"c`: false, `;a=b"c"`: false, ";a\nb": false, ";a=\"\n\"": false, ";a=\"\\\n\"": false, ";a\x00": false, ";a=\x7f": false,
		";a=\"\r\n\"": false, ";a\r;b": false, ";" + long: false,
	} {
		for _, raw := range []string{"5" + ext + "\r\nhello\r\n0" + ext + "\r\n\r\n", "5\r\nhello\r\n0" + ext + "\r\n\r\n"} {
			for _, cut := range []int{1, 2, 3, 7, len(raw)} {
				data, rest, ended, err := unchunk(Chunked{Extensions: true}, []byte(raw), cut)
				if got := err == nil && ended && data == "hello" && len(rest) == 0; got != ok || !ok && err == nil {
					t.Errorf("%.40q by %d: %q, rest %.40q, %t, %v", raw, cut, data, rest, ended, err)
				}
				if _, _, _, err := unchunk(Chunked{}, []byte(raw), cut); err == nil {
					t.Errorf("%.40q by %d: not refused where there may be none", raw, cut)
				}
			}
		}
	}
}

// An extension that does not end is refused when it is too long, not held for ever.
func TestExtensionWithoutEnd(t *testing.T) {
	c := Chunked{Extensions: true}
	piece := []byte("5;" + strings.Repeat("a", 99))
	for range 2 * maxExtensions / len(piece) {
		if _, _, err := c.Next(piece); err != nil {
			return
		}
		piece = piece[:0:0]
		piece = append(piece, strings.Repeat("a", 99)...)
	}
	t.Error("taken")
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

// Of an extension or a trailer, which may repeat a key, nothing is left: neither
// when it was taken nor when it broke off.
func TestNothingIsLeft(t *testing.T) {
	const key = "sk-proj-fake-0123456789"
	for _, raw := range []string{
		"5;a=" + key + "\r\nhello\r\n0\r\n\r\n", "0\r\nX: " + key + "\r\n\r\n", "5;a=" + key + " \r\n",
		"5;a=" + key, "0\r\nX: " + key, "0\r\nX : " + key + "\r\n\r\n",
	} {
		c := Chunked{Extensions: true}
		for _, b := range []byte(raw) {
			if _, _, err := c.Next([]byte{b}); err != nil {
				break
			}
		}
		c.Reset()
		if held := c.held[:cap(c.held)]; bytes.Contains(held, []byte(key[8:])) || len(held) == 0 {
			t.Errorf("%q: %q", raw, held)
		}
	}
}

// FuzzChunked: what ends properly, net/http reads as the same, however it was cut,
// and what is taken without extensions is taken where they may be.
func FuzzChunked(f *testing.F) {
	for _, raw := range []string{
		"5\r\nhello\r\n0\r\n\r\n", "A\r\n0123456789\r\n0\r\nX: y\r\n\r\nrest",
		"5;a=b\r\nhello\r\n0;c\r\n\r\n", "5 ; a = \"b;\\\"\"\r\nhello\r\n0\r\n\r\nrest", "5;a\nhello\r\n0\r\n\r\n",
	} {
		f.Add([]byte(raw), uint8(1))
		f.Add([]byte(raw), uint8(3))
	}
	f.Fuzz(func(t *testing.T, raw []byte, cut uint8) {
		plain := sameAsTheirs(t, Chunked{}, raw, int(cut)%64+1)
		if lenient := sameAsTheirs(t, Chunked{Extensions: true}, raw, int(cut)%64+1); plain && !lenient {
			t.Fatalf("%q: refused only where extensions may be", raw)
		}
	})
}

// sameAsTheirs reports whether raw holds a whole body.
func sameAsTheirs(t *testing.T, c Chunked, raw []byte, cut int) bool {
	data, rest, ended, err := unchunk(c, raw, max(1, len(raw)))
	pieces, piecesRest, piecesEnded, cutErr := unchunk(c, raw, cut)
	if (err == nil) != (cutErr == nil) || err == nil && (data != pieces || ended != piecesEnded || !bytes.Equal(rest, piecesRest)) {
		t.Fatalf("%q: %q, %q, %t, %v; cut by %d: %q, %q, %t, %v", raw, data, rest, ended, err, cut, pieces, piecesRest, piecesEnded, cutErr)
	}
	if err != nil || !ended {
		return false
	}
	theirs, err := io.ReadAll(httputil.NewChunkedReader(bufio.NewReader(bytes.NewReader(raw))))
	if err != nil && c.Extensions && (blankBefore.Match(raw) || len(raw) > 16<<10) {
		return true // net/http knows no blanks before a semicolon, and only so many bytes that are no data
	}
	if err != nil || string(theirs) != data {
		t.Fatalf("%q: %q, net/http's %q, %v", raw, data, theirs, err)
	}
	return true
}

var blankBefore = regexp.MustCompile(`[ \t];`)
