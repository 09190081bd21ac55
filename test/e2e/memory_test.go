package e2e_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/postern-proxy/postern/agent/agenttest"
)

// Where in a process's memory something lies.
const (
	inArena = "the arena"    // anonymous and left out of core dumps: where keys are kept
	inHeap  = "the Go heap"  // stacks of goroutines included
	inOther = "other memory" // the program itself, thread stacks, what the runtime maps beside the heap
)

const (
	readAt  = uint64(1) << 20 // bytes at a time
	piece   = 16              // bytes of a key that nothing else holds
	around  = 64              // bytes of what stands beside a copy
	aPublic = "sk-proj-"      // what every key of these tests begins with

	soon = slower * 10 * time.Second // by then a key is gone that is out of use
)

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

// needle is what a copy of a key, or of a part of it, is recognised by.
type needle struct {
	key, form string
	at        int // where in the key, of a part
	bytes     []byte
}

// needles are the forms of a key, each without the bytes that depend on what
// stands around it. As it is, and in JSON or percent-encoding that changes only
// some characters, any 24 bytes in a row are found.
func needles(key string) []needle {
	var out []needle
	for at := len(aPublic); at+piece <= len(key); at += piece / 2 {
		out = append(out, needle{key, "raw", at, []byte(key[at : at+piece])})
	}
	add := func(form, text string) { out = append(out, needle{key, form, 0, []byte(text)}) }
	for skip := range 3 {
		b := []byte(key)[(3-skip)%3:]
		b = b[:len(b)/3*3]
		standard, urls := base64.StdEncoding.EncodeToString(b), base64.URLEncoding.EncodeToString(b)
		add("base64", standard)
		if urls != standard {
			add("base64url", urls)
		}
	}
	add("hex", hex.EncodeToString([]byte(key)))
	add("HEX", strings.ToUpper(hex.EncodeToString([]byte(key))))
	var percent, escaped strings.Builder
	for _, c := range []byte(key) {
		fmt.Fprintf(&percent, "%%%02x", c)
		fmt.Fprintf(&escaped, `\u%04x`, c)
	}
	add("percent-encoded", percent.String())
	add("PERCENT-ENCODED", strings.ToUpper(percent.String()))
	add("JSON-escaped", escaped.String())
	bearer := hpack.AppendHuffmanString(nil, "Bearer "+key)
	add("Huffman-coded", string(bearer[8:len(bearer)-1])) // without "Bearer " and the unfinished last byte
	return out
}

// copied is one place where a needle was found.
type copied struct {
	needle
	where   string
	address uint64
	context string
}

func (c copied) String() string {
	return fmt.Sprintf("%s in %s at %#x: %s", c.form, c.where, c.address, c.context)
}

// search looks for needles in all of another process's memory. Overlapping
// parts of one copy are one.
func search(pid int, all []needle) ([]copied, error) {
	where, err := regions(pid)
	if err != nil {
		return nil, err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	longest := 0
	for _, n := range all {
		longest = max(longest, len(n.bytes))
	}
	const before = 512 // what a window repeats of the one before it: context, and the rest of a key
	window := make([]byte, before+readAt+uint64(longest)+before)
	var out []copied
	looked := false
	for _, r := range where {
		for at := r.lo; at < r.hi; at += readAt {
			lead := min(before, at-r.lo)
			n, err := mem.ReadAt(window[:min(uint64(len(window)), r.hi-at+lead)], int64(at-lead))
			if n == 0 && err != nil && !errors.Is(err, io.EOF) {
				continue // a page that is not there
			}
			looked = true
			for _, needle := range all {
				for from := int(lead); ; {
					i := bytes.Index(window[from:n], needle.bytes)
					// What begins in the next window is found there.
					if i < 0 || from+i >= int(lead+readAt) {
						break
					}
					i += from
					from = i + 1
					out = append(out, copied{needle, r.kind, at - lead + uint64(i), beside(window[:n], i, len(needle.bytes))})
				}
			}
		}
	}
	if !looked {
		return nil, errors.New("nothing of /proc/PID/mem could be read")
	}
	return merged(out), nil
}

// merged leaves one of the parts of each copy.
func merged(all []copied) []copied {
	slices.SortStableFunc(all, func(a, b copied) int { return int(a.address) - int(b.address) })
	var out []copied
	for _, c := range all {
		if n := len(out); n > 0 && out[n-1].key == c.key && c.address-out[n-1].address < uint64(len(c.key)) {
			continue
		}
		out = append(out, c)
	}
	return out
}

var (
	hidden   = regexp.MustCompile(`[A-Za-z0-9+/_\\%"&=-]{20,}`)
	unshown  = regexp.MustCompile(`[^ -~]`)
	manyDots = regexp.MustCompile(`\.{6,}`)
)

// beside is what stands around a copy, without the copy and whatever else looks like a secret.
func beside(window []byte, at, n int) string {
	side := func(b []byte) string {
		s := unshown.ReplaceAllString(string(b), ".")
		s = hidden.ReplaceAllStringFunc(s, func(s string) string { return fmt.Sprintf("‹%d›", len(s)) })
		return manyDots.ReplaceAllString(s, "…")
	}
	return fmt.Sprintf("%q … %q", side(window[max(0, at-around):at]), side(window[at+n:min(len(window), at+n+around)]))
}

// inTheArena reports whether there is a copy of a key in the arena.
func inTheArena(found []copied) bool {
	return slices.ContainsFunc(found, func(c copied) bool { return c.where == inArena })
}

// searchable reports whether this machine lets another process's memory be read, and says so where it does not.
func searchable(t *testing.T, pid int) bool {
	t.Helper()
	const part = "keys in a process's memory"
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		agenttest.NotRun(t, part, errors.New("reading another process's memory takes Linux and root"))
		return false
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if errors.Is(err, os.ErrPermission) {
		agenttest.NotRun(t, part, err)
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	mem.Close()
	return true
}

// leavesNoCopies searches an agent's memory from outside. The live key must be
// found in the arena, or the search is worth nothing; of the old ones not a
// piece may be found anywhere, in any form.
func leavesNoCopies(t *testing.T, a *agenttest.Agent, old []string, live string, within time.Duration) {
	t.Helper()
	if !searchable(t, a.PID()) {
		return
	}
	found, err := search(a.PID(), needles(live))
	if err != nil {
		t.Fatal(err)
	}
	if !inTheArena(found) {
		t.Errorf("the search does not find the live key in the arena: %v", found)
	}
	where := map[string]int{}
	for _, c := range found {
		where[c.where]++
	}
	t.Logf("memory: the live key is there: %v", where)
	noneOf(t, a.PID(), old, within)
}

// noneOf waits until nothing of these keys is in a process's memory, but in the
// parts that are named.
func noneOf(t *testing.T, pid int, old []string, within time.Duration, but ...string) {
	t.Helper()
	var all []needle
	for _, key := range old {
		all = append(all, needles(key)...)
	}
	for deadline := time.Now().Add(within); ; time.Sleep(200 * time.Millisecond) {
		found, err := search(pid, all)
		if err != nil {
			t.Fatal(err)
		}
		found = slices.DeleteFunc(found, func(c copied) bool { return slices.Contains(but, c.where) })
		if len(found) == 0 {
			return
		}
		if time.Now().Before(deadline) {
			continue
		}
		for i, c := range found {
			if i == 30 {
				t.Errorf("and %d more", len(found)-i)
				break
			}
			t.Errorf("%d of %d: old key %d is in memory still: %v", i+1, len(found), slices.Index(old, c.key)+1, c)
		}
		return
	}
}
