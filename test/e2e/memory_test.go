package e2e_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
)

// Where in a process's memory something lies.
const (
	inArena = "the arena"    // anonymous and left out of core dumps: where keys are kept
	inHeap  = "the Go heap"  // what net/http made of them
	inOther = "other memory" // the program itself, thread stacks, what the runtime maps beside the heap
)

const readAt = uint64(1) << 20 // bytes at a time

// onGoHeap reports whether an address is where the Go runtime puts its heap: a
// random place above the program and far below what is mapped without an address.
func onGoHeap(at uint64) bool {
	bits := 47
	if runtime.GOARCH == "amd64" {
		bits = 46
	}
	return at >= 1<<32 && at < 1<<bits
}

type region struct {
	lo, hi uint64
	kind   string
}

// regions lists a process's readable memory.
func regions(pid int) ([]region, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []region
	readable := false
	for sc := bufio.NewScanner(f); sc.Scan(); {
		line := sc.Text()
		var lo, hi, offset, inode uint64
		var perm, device string
		if n, _ := fmt.Sscanf(line, "%x-%x %s %x %s %d", &lo, &hi, &perm, &offset, &device, &inode); n == 6 {
			// What the kernel itself maps in cannot be read, or holds nothing of ours.
			if readable = perm[0] == 'r' && !strings.Contains(line, "[v"); !readable {
				continue
			}
			r := region{lo, hi, inOther}
			if inode == 0 && onGoHeap(lo) {
				r.kind = inHeap
			}
			out = append(out, r)
			continue
		}
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && readable && strings.Contains(flags+" ", " dd ") {
			out[len(out)-1].kind = inArena
		}
	}
	return out, nil
}

// copies counts the occurrences of each needle in another process's memory, by kind.
func copies(pid int, needles []string) ([]map[string]int, error) {
	all, err := regions(pid)
	if err != nil {
		return nil, err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	longest := 0
	found := make([]map[string]int, len(needles))
	for i, n := range needles {
		found[i] = map[string]int{}
		longest = max(longest, len(n))
	}
	window := make([]byte, readAt+uint64(longest)-1)
	looked := false
	for _, r := range all {
		for at := r.lo; at < r.hi; at += readAt {
			n, err := mem.ReadAt(window[:min(uint64(len(window)), r.hi-at)], int64(at))
			if n == 0 && err != nil && !errors.Is(err, io.EOF) {
				continue // a page that is not there
			}
			looked = true
			for i, needle := range needles {
				// What begins in the next window is counted there.
				found[i][r.kind] += bytes.Count(window[:min(n, int(readAt)+len(needle)-1)], []byte(needle))
			}
		}
	}
	if !looked {
		return nil, errors.New("nothing of /proc/PID/mem could be read")
	}
	return found, nil
}

// leavesNoCopies searches an agent's memory from outside. The live key must be
// found in the arena, or the search is worth nothing; the old ones must not.
// How many copies the HTTP library has left on the heap is said, not judged.
func leavesNoCopies(t *testing.T, a *agenttest.Agent, old []string, live string) {
	t.Helper()
	const part = "keys in the agent's memory"
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		agenttest.NotRun(t, part, errors.New("reading another process's memory takes Linux and root"))
		return
	}
	found, err := copies(a.PID(), append([]string{live}, old...))
	if errors.Is(err, os.ErrPermission) {
		agenttest.NotRun(t, part, err)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if found[0][inArena] == 0 {
		t.Errorf("the search does not find the live key in the arena: %v", found[0])
	}
	agenttest.Eventually(t, 10*time.Second, "the old versions are gone from the arena", func() bool {
		if found, err = copies(a.PID(), append([]string{live}, old...)); err != nil {
			t.Fatal(err)
		}
		for _, f := range found[1:] {
			if f[inArena] > 0 {
				return false
			}
		}
		return true
	})
	for i, f := range found {
		what := "the live key"
		if i > 0 {
			what = fmt.Sprintf("old version %d", i)
		}
		t.Logf("memory: %s: %d times in the arena, %d times on the Go heap, %d times elsewhere", what, f[inArena], f[inHeap], f[inOther])
		if i > 0 && f[inOther] > 0 {
			t.Errorf("%s is %d times in memory that is neither the arena nor the Go heap", what, f[inOther])
		}
	}
}
