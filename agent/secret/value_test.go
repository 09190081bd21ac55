package secret

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"
)

func mustNew(t testing.TB, s string) *Value {
	t.Helper()
	v, err := New([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Destroy)
	return v
}

func reveal(t testing.TB, v *Value) string {
	t.Helper()
	var s string
	if !v.Use(func(b []byte) { s = string(b) }) {
		t.Fatal("Use refused")
	}
	return s
}

func TestNewCopiesAndWipesItsArgument(t *testing.T) {
	in := []byte("sk-test-0123456789abcdef")
	want := string(in)
	v, err := New(in)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Destroy()
	if got := reveal(t, v); got != want {
		t.Errorf("holds %q, want %q", got, want)
	}
	if !bytes.Equal(in, make([]byte, len(in))) {
		t.Errorf("New left its argument: %q", in)
	}
	if v.Len() != len(want) {
		t.Errorf("Len %d, want %d", v.Len(), len(want))
	}
}

func TestNewWipesItsArgumentOnError(t *testing.T) {
	in := bytes.Repeat([]byte("x"), MaxLen+1)
	if _, err := New(in); err == nil {
		t.Fatal("a value over MaxLen was taken")
	} else if !strings.Contains(err.Error(), strconv.Itoa(MaxLen)) {
		t.Errorf("the error does not name the limit: %v", err)
	}
	if !bytes.Equal(in, make([]byte, len(in))) {
		t.Error("New left its argument")
	}
}

func TestEverySize(t *testing.T) {
	for _, n := range []int{0, 1, 31, 32, 33, 64, 65, 4095, 4096, 4097, 8193, 16384, 16385, 100_000, MaxLen} {
		in := make([]byte, n)
		for i := range in {
			in[i] = byte(i*7 + n)
		}
		want := bytes.Clone(in)
		v, err := New(in)
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		v.Use(func(b []byte) {
			if !bytes.Equal(b, want) {
				t.Errorf("%d bytes came back different", n)
			}
			if cap(b) != n {
				t.Errorf("%d bytes reach %d bytes into the arena", n, cap(b))
			}
		})
		v.Destroy()
	}
}

func TestMake(t *testing.T) {
	v, err := Make(40, func(b []byte) int {
		if !bytes.Equal(b, make([]byte, 40)) {
			t.Errorf("fill got a used slot: %x", b)
		}
		copy(b, strings.Repeat("k", 40))
		return 20
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := reveal(t, v); got != strings.Repeat("k", 20) {
		t.Errorf("holds %q", got)
	}
	if rest := unsafe.Slice((*byte)(v.p), 40)[20:]; !bytes.Equal(rest, make([]byte, 20)) {
		t.Errorf("what fill wrote past its count stayed: %q", rest)
	}
	v.Destroy()

	before := Stats().Values
	if _, err := Make(4, func([]byte) int { return 5 }); err == nil {
		t.Error("a count beyond the room was accepted")
	}
	func() {
		defer func() { _ = recover() }()
		_, _ = Make(4, func([]byte) int { panic("fill") })
	}()
	if after := Stats().Values; after != before {
		t.Errorf("failed Makes left %d slots behind", after-before)
	}
}

func TestDestroy(t *testing.T) {
	v := mustNew(t, "sk-test-0123456789abcdef")
	fp := v.Fingerprint()
	v.Destroy()
	v.Destroy()
	if v.Use(func([]byte) { t.Error("f was called after Destroy") }) {
		t.Error("Use reported true after Destroy")
	}
	if v.Fingerprint() != fp {
		t.Error("the fingerprint did not survive")
	}
	if v.Digest() != "" {
		t.Error("a digest after Destroy")
	}
	if _, err := v.Clone(); err == nil {
		t.Error("a destroyed value was cloned")
	}
	if v.Equal(v) {
		t.Error("a destroyed value equals something")
	}
}

func TestNilValue(t *testing.T) {
	var v *Value
	v.Destroy()
	if v.Use(func([]byte) {}) || v.Len() != 0 || v.Fingerprint() != "" || v.Digest() != "" || v.Equal(v) {
		t.Error("nil is not like a destroyed value")
	}
	if _, err := v.Clone(); err == nil {
		t.Error("nil was cloned")
	}
}

func TestDestroyInsideUseWipesAfterIt(t *testing.T) {
	v := mustNew(t, "sk-test-0123456789abcdef")
	p := unsafe.Slice((*byte)(v.p), v.n)
	v.Use(func(b []byte) {
		v.Destroy()
		if string(b) != "sk-test-0123456789abcdef" {
			t.Errorf("the bytes went away while in use: %q", b)
		}
		if v.Use(func([]byte) {}) {
			t.Error("a new user got in after Destroy")
		}
	})
	if !bytes.Equal(p, make([]byte, len(p))) {
		t.Errorf("not wiped when the last user left: %q", p)
	}
}

func TestPanicInUseReleases(t *testing.T) {
	v := mustNew(t, "sk-test-0123456789abcdef")
	func() {
		defer func() { _ = recover() }()
		v.Use(func([]byte) { panic("in f") })
	}()
	p := unsafe.Slice((*byte)(v.p), v.n)
	v.Destroy()
	if !bytes.Equal(p, make([]byte, len(p))) {
		t.Error("a panicking user still holds the value")
	}
}

func TestUseAllocatesNothing(t *testing.T) {
	v := mustNew(t, "sk-test-0123456789abcdef")
	sum := 0
	if n := testing.AllocsPerRun(100, func() {
		v.Use(func(b []byte) { sum += len(b) })
	}); n != 0 {
		t.Errorf("%v allocations per Use", n)
	}
}

// Many goroutines use and destroy the same values; each user must see the whole
// value or none, and each slot is freed once.
func TestDestroyDuringUse(t *testing.T) {
	before := Stats()
	const key = "sk-race-0123456789abcdefghijklmnop"
	for range 200 {
		v := mustNew(t, key)
		var wg sync.WaitGroup
		var torn atomic.Int32
		for g := range 6 {
			wg.Go(func() {
				for i := range 50 {
					if g == 0 && i == 25 {
						v.Destroy()
					}
					v.Use(func(b []byte) {
						if string(b) != key {
							torn.Add(1)
						}
					})
				}
			})
		}
		wg.Wait()
		if torn.Load() != 0 {
			t.Fatalf("%d users saw a torn value", torn.Load())
		}
	}
	if after := Stats(); after.Values != before.Values || after.UsedBytes != before.UsedBytes {
		t.Errorf("slots leaked or were freed twice: before %+v, after %+v", before, after)
	}
}

func TestConcurrentArena(t *testing.T) {
	before := Stats()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				n := (i*37+g*11)%9000 + 1
				in := bytes.Repeat([]byte{byte('a' + g)}, n)
				v, err := New(in)
				if err != nil {
					t.Error(err)
					return
				}
				v.Use(func(b []byte) {
					for _, c := range b {
						if c != byte('a'+g) {
							t.Errorf("two values share a slot")
							return
						}
					}
				})
				v.Destroy()
			}
		})
	}
	wg.Wait()
	if after := Stats(); after.Values != before.Values || after.UsedBytes != before.UsedBytes {
		t.Errorf("slots leaked: before %+v, after %+v", before, after)
	}
}

func TestDroppedValueIsWiped(t *testing.T) {
	before := Stats().Values
	p := func() unsafe.Pointer {
		v, err := New([]byte("sk-dropped-0123456789abcdef"))
		if err != nil {
			t.Fatal(err)
		}
		return v.p
	}()
	for range 50 {
		runtime.GC()
		if Stats().Values == before {
			break
		}
		runtime.Gosched()
	}
	if Stats().Values != before {
		t.Fatal("a dropped value keeps its slot")
	}
	if b := unsafe.Slice((*byte)(p), 32); !bytes.Equal(b, make([]byte, 32)) {
		t.Errorf("a dropped value was not wiped: %q", b)
	}
}

func TestFreedSlotsAreZeroAndUsedAgain(t *testing.T) {
	v := mustNew(t, strings.Repeat("A", 50))
	p := v.p
	v.Destroy()
	w := mustNew(t, "B")
	defer w.Destroy()
	x := mustNew(t, strings.Repeat("C", 40))
	defer x.Destroy()
	if x.p != p {
		t.Fatal("the freed slot was not used again: the test shows nothing")
	}
	if b := unsafe.Slice((*byte)(p), 64); string(b) != strings.Repeat("C", 40)+strings.Repeat("\x00", 24) {
		t.Errorf("the slot's former content shows: %q", b)
	}
}

func TestEqualAndClone(t *testing.T) {
	a := mustNew(t, "sk-test-0123456789abcdef")
	b := mustNew(t, "sk-test-0123456789abcdef")
	c := mustNew(t, "sk-test-0123456789abcdeg")
	d := mustNew(t, "sk-test-0123456789abcde")
	if !a.Equal(b) || a.Equal(c) || a.Equal(d) || a.Equal(nil) {
		t.Error("Equal is wrong")
	}
	e, err := a.Clone()
	if err != nil {
		t.Fatal(err)
	}
	defer e.Destroy()
	a.Destroy()
	if !e.Equal(b) || e.Fingerprint() != b.Fingerprint() {
		t.Error("a clone does not stand alone")
	}
}

func TestFingerprint(t *testing.T) {
	a := mustNew(t, "sk-test-0123456789abcdef")
	b := mustNew(t, "sk-test-0123456789abcdeg")
	if len(a.Fingerprint()) != 12 || a.Fingerprint() == b.Fingerprint() {
		t.Errorf("fingerprints %q and %q", a.Fingerprint(), b.Fingerprint())
	}
	plain := sha256.Sum256([]byte("sk-test-0123456789abcdef"))
	if a.Fingerprint() == hex.EncodeToString(plain[:6]) {
		t.Error("the fingerprint has no key")
	}
}

func TestDigestIsPlainSHA256(t *testing.T) {
	for n := range 200 {
		in := strings.Repeat("k", n)
		want := sha256.Sum256([]byte("postern/key/v1\x00" + in))
		if got := mustNew(t, in).Digest(); got != hex.EncodeToString(want[:]) {
			t.Fatalf("%d bytes: digest %s", n, got)
		}
	}
}

func TestMACIsHMAC(t *testing.T) {
	m, err := NewMAC()
	if err != nil {
		t.Fatal(err)
	}
	key := make([]byte, block)
	for i, c := range m.ipad.bytes(block) {
		key[i] = c ^ 0x36
	}
	if bytes.Equal(key[:32], make([]byte, 32)) {
		t.Fatal("the key is zero")
	}
	for n := range 200 {
		msg := bytes.Repeat([]byte("m"), n)
		h := hmac.New(sha256.New, key)
		h.Write(msg)
		got, err := m.Sum(msg[:n/3], msg[n/3:])
		if err != nil || !bytes.Equal(got[:], h.Sum(nil)) {
			t.Fatalf("%d bytes: not HMAC-SHA256 (%v)", n, err)
		}
	}
}

func TestStats(t *testing.T) {
	v := mustNew(t, strings.Repeat("s", 1000))
	st := Stats()
	if st.MappedBytes < chunkSize || st.UsedBytes < 1024 || st.Values < 1 || st.UsedBytes > st.MappedBytes {
		t.Errorf("%+v", st)
	}
	v.Destroy()
	if after := Stats(); after.UsedBytes != st.UsedBytes-1024 || after.Values != st.Values-1 {
		t.Errorf("after Destroy %+v, before %+v", after, st)
	}
}

func BenchmarkUse(b *testing.B) {
	v := mustNew(b, "sk-test-0123456789abcdef")
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		v.Use(func(p []byte) { n += len(p) })
	}
}

func BenchmarkUseParallel(b *testing.B) {
	v := mustNew(b, "sk-test-0123456789abcdef")
	b.RunParallel(func(pb *testing.PB) {
		n := 0
		for pb.Next() {
			v.Use(func(p []byte) { n += len(p) })
		}
	})
}
