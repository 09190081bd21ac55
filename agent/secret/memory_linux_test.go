package secret

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// countInMemory looks through every readable mapping of this process for the
// bytes whose complement is given. The needle itself exists only inverted, and
// the window that is read through lies in a mapping that is skipped, so what is
// found is somebody else's copy.
func countInMemory(t *testing.T, inverted []byte) int {
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
	own := fmt.Sprintf("%p", window)[2:]
	found := 0
	sc := bufio.NewScanner(bytes.NewReader(maps))
	for sc.Scan() {
		var lo, hi uint64
		var perm string
		if _, err := fmt.Sscanf(sc.Text(), "%x-%x %s", &lo, &hi, &perm); err != nil {
			t.Fatal(err)
		}
		if perm[0] != 'r' || strings.Contains(sc.Text(), "[v") || fmt.Sprintf("%x", lo) == own {
			continue
		}
		for at := lo; at < hi; at += step {
			n, err := mem.ReadAt(window[:min(uint64(step+len(inverted)-1), hi-at)], int64(at))
			if err != nil && err != io.EOF && n == 0 {
				continue
			}
			found += countInverted(window[:n], inverted)
		}
	}
	return found
}

func countInverted(b, inverted []byte) int {
	n := 0
	for i := 0; i+len(inverted) <= len(b); i++ {
		j := bytes.IndexByte(b[i:len(b)-len(inverted)+1], ^inverted[0])
		if j < 0 {
			break
		}
		i += j
		k := 1
		for k < len(inverted) && b[i+k] == ^inverted[k] {
			k++
		}
		if k == len(inverted) {
			n++
		}
	}
	return n
}

var onHeap []byte

// The mapping the kernel reports may be merged with a neighbour; a window is
// then skipped with it, so the control below shows that the arena is looked at.
func TestBytesExistOnceAndThenNowhere(t *testing.T) {
	for _, n := range []int{24, 51, 164, 3000} {
		in := make([]byte, n)
		onHeap = in // on a stack it would be left behind whenever the stack grows
		_, _ = rand.Read(in)
		inverted := make([]byte, n)
		for i, c := range in {
			inverted[i] = ^c
		}
		v, err := New(in)
		if err != nil {
			t.Fatal(err)
		}
		_ = v.Digest()
		_ = v.Equal(v)
		_ = fmt.Sprintf("%v %+v", v, struct{ V *Value }{v})
		// A run of 20 bytes anywhere in the value counts, not only all of it.
		for at := 0; at+20 <= n; at += max(1, (n-20)/3) {
			if got := countInMemory(t, inverted[at:at+20]); got != 1 {
				t.Errorf("%d bytes: bytes %d to %d are %d times in memory while live, want once (the arena)", n, at, at+20, got)
			}
		}
		c, err := v.Clone()
		if err != nil {
			t.Fatal(err)
		}
		if got := countInMemory(t, inverted); got != 2 {
			t.Errorf("%d bytes: %d copies with a clone, want 2", n, got)
		}
		c.Destroy()
		v.Destroy()
		if got := countInMemory(t, inverted[:20]); got != 0 {
			t.Errorf("%d bytes: %d copies after Destroy", n, got)
		}
	}
}

func TestArenaIsLeftOutOfDumpsAndGuarded(t *testing.T) {
	v := mustNew(t, "sk-test-0123456789abcdef")
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	lo := uint64(uintptr(v.p))
	in, checked := false, false
	guardBelow, guardAbove := false, false
	var end uint64
	for line := range strings.Lines(string(smaps)) {
		var a, b uint64
		var perm string
		if k, _ := fmt.Sscanf(line, "%x-%x %s", &a, &b, &perm); k == 3 && strings.Contains(strings.Fields(line)[0], "-") {
			in = a <= lo && lo < b
			if in {
				end = b
			}
			if !in && perm == "---p" {
				guardBelow = guardBelow || b <= lo && lo-b < chunkSize
				guardAbove = guardAbove || end != 0 && a == end
			}
		}
		if in && strings.HasPrefix(line, "VmFlags:") {
			checked = true
			if Stats().DontDump != strings.Contains(line, " dd") {
				t.Errorf("Stats says DontDump %v, the kernel says %q", Stats().DontDump, line)
			}
			if !strings.Contains(line, " dd") {
				t.Errorf("the arena would be in a core dump: %q", line)
			}
			if Stats().Locked && !strings.Contains(line, " lo") {
				t.Errorf("Stats says Locked, the kernel says %q", line)
			}
		}
	}
	if !checked {
		t.Fatal("the arena's mapping was not found")
	}
	if !guardBelow || !guardAbove {
		t.Errorf("guard pages: below %v, above %v", guardBelow, guardAbove)
	}
	runtime.KeepAlive(v)
}

// In processes of their own: what these do to a process cannot be undone.
func TestHardenAndLimits(t *testing.T) {
	if mode := os.Getenv("SECRET_TEST_CHILD"); mode != "" {
		child(t, mode)
		return
	}
	for _, mode := range []string{"harden", "nolock"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestHardenAndLimits$", "-test.v")
		cmd.Env = append(os.Environ(), "SECRET_TEST_CHILD="+mode)
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: TestHardenAndLimits")) {
			t.Errorf("%s: %v\n%s", mode, err, out)
		}
	}
}

func child(t *testing.T, mode string) {
	switch mode {
	case "harden":
		if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 4096, Max: 8192}); err != nil {
			t.Fatal(err)
		}
		if cur, hard, ok := CoreLimit(); cur != 4096 || hard != 8192 || !ok {
			t.Errorf("CoreLimit before Harden: %d %d %v", cur, hard, ok)
		}
		for range 2 {
			h := Harden()
			if !h.NoCore || !h.NotDumpable || len(h.Notes) != 0 {
				t.Errorf("%+v", h)
			}
		}
		var l unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_CORE, &l); err != nil || l.Cur != 0 || l.Max != 8192 {
			t.Errorf("the limit is now %+v, %v", l, err)
		}
		if d, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || d != 0 {
			t.Errorf("dumpable %d, %v", d, err)
		}
		if cur, hard, ok := CoreLimit(); cur != 4096 || hard != 8192 || !ok {
			t.Errorf("CoreLimit after Harden: %d %d %v", cur, hard, ok)
		}
	case "nolock":
		dropMemlock(t)
		v, err := New([]byte("sk-test-0123456789abcdef"))
		if err != nil {
			t.Fatalf("without mlock there is no value: %v", err)
		}
		if st := Stats(); st.Locked || !st.DontDump {
			t.Errorf("%+v", st)
		}
		if reveal(t, v) != "sk-test-0123456789abcdef" {
			t.Error("the value is damaged")
		}
	}
}

func TestNoMemoryOutsideTheHeapIsAnError(t *testing.T) {
	warm := mustNew(t, "x") // the fingerprint key is there
	defer warm.Destroy()
	before := Stats()
	defer func(was func(int, int64, int, int, int) ([]byte, error)) { mmap = was }(mmap)
	mmap = func(int, int64, int, int, int) ([]byte, error) { return nil, unix.ENOMEM }
	in := bytes.Repeat([]byte("k"), 1<<20) // larger than any chunk that is there already
	v, err := New(in)
	if !errors.Is(err, unix.ENOMEM) || v != nil {
		t.Errorf("New gave %v, %v", v, err)
	}
	if !bytes.Equal(in, make([]byte, len(in))) {
		t.Error("New left its argument")
	}
	if after := Stats(); after != before {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

// dropMemlock takes the right to lock memory from the process: the limit, and
// the capability that overrides it.
func dropMemlock(t *testing.T) {
	t.Helper()
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{}); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		t.Fatal(err)
	}
}
