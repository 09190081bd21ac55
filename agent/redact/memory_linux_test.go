package redact

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/secret"
	"golang.org/x/sys/unix"
)

// copiesInMemory counts, in every readable mapping of this process, the bytes
// whose complement is given; what is searched for exists only inverted, and the
// window that is looked through is skipped.
func copiesInMemory(t *testing.T, inverted []byte) int {
	t.Helper()
	const step = 1 << 20
	window, err := unix.Mmap(-1, 0, step+len(inverted), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(window) }()
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	own := fmt.Sprintf("%p-", window)[2:]
	found := 0
	for line := range strings.Lines(string(maps)) {
		var lo, hi uint64
		var perm string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &lo, &hi, &perm); err != nil {
			t.Fatal(err)
		}
		if perm[0] != 'r' || strings.Contains(line, "[v") || strings.HasPrefix(line, own) {
			continue
		}
		for at := lo; at < hi; at += step {
			n, _ := mem.ReadAt(window[:min(uint64(step+len(inverted)-1), hi-at)], int64(at))
			for b := window[:n]; len(b) >= len(inverted); b = b[1:] {
				i := bytes.IndexByte(b[:len(b)-len(inverted)+1], ^inverted[0])
				if i < 0 {
					break
				}
				b = b[i:]
				k := 1
				for k < len(inverted) && b[k] == ^inverted[k] {
					k++
				}
				if k == len(inverted) {
					found++
				}
			}
		}
	}
	return found
}

func invert(b []byte) []byte {
	out := make([]byte, len(b))
	for i, c := range b {
		out[i] = ^c
	}
	return out
}

var onHeap []byte // what is on a stack is left behind when the stack grows

func TestNoCopiesOutsideTheArena(t *testing.T) {
	onHeap = make([]byte, 48)
	_, _ = rand.Read(onHeap)
	for i, c := range onHeap {
		onHeap[i] = alnum[int(c)%len(alnum)]
	}
	raw := invert(onHeap)
	v, err := secret.New(onHeap)
	if err != nil {
		t.Fatal(err)
	}
	var b64 []byte
	v.Use(func(b []byte) {
		onHeap = make([]byte, 80)
		b64 = invert(onHeap[:encodeBase64(onHeap, b, alphabets[0], 1)])
		clear(onHeap)
	})
	count := func(when string, inRaw, inBase64 int) {
		t.Helper()
		for name, c := range map[string]struct {
			inverted []byte
			want     int
		}{"raw": {raw, inRaw}, "base64": {b64, inBase64}} {
			for _, at := range []int{0, 10, len(c.inverted) - 20} {
				if got := copiesInMemory(t, c.inverted[at:at+20]); got != c.want {
					t.Errorf("%s: bytes %d to %d of the %s form are %d times in memory, want %d", when, at, at+20, name, got, c.want)
				}
			}
		}
	}
	count("before", 1, 0)
	s := newSet(t, Options{})
	e, err := s.Add(Label{"k", 1}, v, "")
	if err != nil {
		t.Fatal(err)
	}
	count("known", 2, 1) // the value, and the set's forms
	v.Destroy()
	count("the value destroyed", 1, 1)
	s.Retire(e)
	count("retired", 0, 0)

	// And it is still found, which leaves nothing behind either.
	onHeap = append(append(make([]byte, 0, 64), raw...), " and more"...)
	for i := range raw {
		onHeap[i] = ^onHeap[i]
	}
	if s.Mask(onHeap, WhereResponse) != 1 || !bytes.HasSuffix(onHeap, []byte("* and more")) {
		t.Errorf("not found after retirement: %q", onHeap)
	}
	count("found again", 0, 0)
}
