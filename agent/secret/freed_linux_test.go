package secret

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// What is freed is overwritten: objects of every size, with and without
// pointers, between neighbours that live on, from pools, in stacks of goroutines
// that ended, and while others go on allocating. Without the setting the same
// search finds them, or it would show nothing.
func TestFreedMemoryIsOverwritten(t *testing.T) {
	bothWays(t, "panicnil=1", freed)
}

// bothWays runs body in two processes of this test's own: in one that calls
// OverwriteFreed nothing may be left, in one that does not something must be.
func bothWays(t *testing.T, godebug string, body func(t *testing.T, mode string)) {
	t.Helper()
	if mode := os.Getenv("SECRET_TEST_FREED"); mode != "" {
		body(t, mode)
		return
	}
	for _, mode := range []string{"overwritten", "left"} {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), "SECRET_TEST_FREED="+mode, "GODEBUG="+godebug)
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
			t.Errorf("%s: %v\n%s", mode, err, out)
		}
	}
}

// A program that cannot begin anew goes on, and says what it lacks.
func TestWhatCannotBeginAnewGoesOn(t *testing.T) {
	if os.Getenv("SECRET_TEST_FREED") == "gone" {
		if err := os.Remove(os.Args[0]); err != nil {
			t.Fatal(err)
		}
		OverwriteFreed()
		if h := Harden(); len(h.Notes) != 1 || !strings.Contains(h.Notes[0], "freed is not overwritten") || !strings.Contains(h.Notes[0], "no such file") {
			t.Errorf("%q", h.Notes)
		}
		return
	}
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "gone.test")
	if err := os.WriteFile(file, program, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(file, "-test.run=^TestWhatCannotBeginAnewGoesOn$", "-test.v")
	cmd.Env = append(os.Environ(), "SECRET_TEST_FREED=gone")
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: TestWhatCannotBeginAnewGoesOn")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// What is copied passes through vector registers: a goroutine that is interrupted
// then leaves them in memory. With the setting none is; without it a copy is found,
// or this would show nothing.
func TestRegistersStayOutOfMemory(t *testing.T) {
	bothWays(t, "clobberfree=1", registers)
}

// outOfHeap is memory of its own, which is no place that a copy is looked for in after it is cleared.
func outOfHeap(t *testing.T) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

//go:noinline
func move(dst, src []byte) { copy(dst, src) }

func registers(t *testing.T, mode string) {
	if mode == "overwritten" {
		OverwriteFreed() // the first time this does not come back
	}
	pattern := outOfHeap(t)[:48]
	most := 1
	if mode == "left" {
		most = 50 // until it is seen
	}
	n := 0
	for round := 0; round < most && n == 0; round++ {
		_, _ = rand.Read(pattern)
		inverted := make([]byte, 16)
		for i := range inverted {
			inverted[i] = ^pattern[i]
		}
		stop := make(chan struct{})
		var busy sync.WaitGroup
		for range 2 {
			to := outOfHeap(t)
			busy.Go(func() {
				defer clear(to)
				for {
					select {
					case <-stop:
						return
					default:
					}
					for range 100 {
						move(to[200:], pattern)
					}
				}
			})
		}
		for range 50 {
			runtime.GC()
		}
		close(stop)
		busy.Wait()
		clear(pattern)
		Collect()
		n = countInMemory(t, inverted)
	}
	if (n == 0) != (mode == "overwritten") {
		t.Errorf("%s: %d copies are left", mode, n)
	}
}

type withPointer struct {
	_     *withPointer // the collector looks at it
	bytes [200]byte
}

var (
	keptBytes    [][]byte
	keptPointers []*withPointer
	pooled       = sync.Pool{New: func() any { return new([]byte) }}
)

func freed(t *testing.T, mode string) {
	if mode == "overwritten" {
		OverwriteFreed() // the first time this does not come back
		if got := os.Getenv("GODEBUG"); got != "panicnil=1" {
			t.Errorf("GODEBUG is left as %q", got)
		}
		if h := Harden(); len(h.Notes) != 0 {
			t.Errorf("%v", h.Notes)
		}
	}
	pattern := outOfHeap(t)[:64]
	_, _ = rand.Read(pattern)
	inverted := make([]byte, 24)
	for i := range inverted {
		inverted[i] = ^pattern[i]
	}
	stop := make(chan struct{})
	var busy sync.WaitGroup
	for range 4 {
		busy.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					keep := strings.Repeat("x", i%3000)
					_ = keep
				}
			}
		})
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { litter(pattern[:24]) })
	}
	wg.Wait()
	Collect()
	n := countInMemory(t, inverted) - 1 // the pattern itself
	close(stop)
	busy.Wait()
	t.Logf("%s: %d copies are left", mode, n)
	if (n == 0) != (mode == "overwritten") {
		t.Errorf("%s: %d copies are left", mode, n)
	}
}

var mu sync.Mutex

// litter leaves copies of b behind wherever Go programs do.
func litter(b []byte) {
	for size := len(b); size < 100<<10; size += size/3 + 1 {
		for i := range 10 {
			o := make([]byte, size)
			copy(o[size-len(b):], b)
			copy(o, b)
			if i%5 == 0 {
				clear(o)
				mu.Lock()
				keptBytes = append(keptBytes, o) // a neighbour that lives on
				mu.Unlock()
			}
		}
	}
	for i := range 200 {
		p := &withPointer{}
		copy(p.bytes[:], b)
		if i%5 == 0 {
			clear(p.bytes[:])
			mu.Lock()
			keptPointers = append(keptPointers, p)
			mu.Unlock()
		}
		s := string(append([]byte("Authorization: Bearer "), b...)) + fmt.Sprint(i)
		_ = strings.Clone(s)
		buffer := pooled.Get().(*[]byte)
		*buffer = append((*buffer)[:0], b...)
		*buffer = append(*buffer, make([]byte, i)...)
		pooled.Put(buffer)
	}
}
