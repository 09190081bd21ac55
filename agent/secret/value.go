package secret

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"
)

// MaxLen is the longest value the arena takes, in bytes.
const MaxLen = 32 << 20

// Value is a secret's bytes outside the Go heap. It is made by New, Make or
// Clone, is used through a pointer only, and may be used concurrently. A nil
// *Value behaves like a destroyed one.
//
// A Value that is dropped without Destroy is wiped when the garbage collector
// finds it; that is a safety net, not a time.
type Value struct {
	// state counts the calls of Use under way; the top bit says destroyed.
	state atomic.Uint64
	// The bytes are kept as a bare pointer, not as a slice, so that reflection
	// (fmt on unexported fields, dump libraries) has nothing to walk into.
	p           unsafe.Pointer
	n           int
	slot        slot
	fingerprint string
	net         runtime.Cleanup
}

const destroyed = 1 << 63

// New copies b into the arena and wipes b, also when it fails. An empty b makes
// an empty Value. The error says what of the platform failed (mapping memory)
// or that b is longer than MaxLen.
func New(b []byte) (*Value, error) {
	defer Wipe(b)
	return Make(len(b), func(dst []byte) int { return copy(dst, b) })
}

// Make returns a Value of at most n bytes that fill writes straight into the
// arena; fill gets n zero bytes and returns how many it used, from 0 to n. The
// slice is valid only inside fill.
func Make(n int, fill func(b []byte) int) (*Value, error) {
	if n < 0 || n > MaxLen {
		return nil, fmt.Errorf("secret: %d bytes; a value has 0 to %d", n, MaxLen)
	}
	s, err := arena.alloc(n)
	if err != nil {
		return nil, err
	}
	kept := false
	defer func() {
		if !kept {
			arena.free(s)
		}
	}()
	b := s.bytes(n)
	used := fill(b)
	if used < 0 || used > n {
		return nil, fmt.Errorf("secret: fill reported %d bytes of a room of %d", used, n)
	}
	clear(b[used:])
	v := &Value{p: s.p, n: used, slot: s}
	if v.fingerprint, err = fingerprint(b[:used]); err != nil {
		return nil, err
	}
	v.net = runtime.AddCleanup(v, arena.free, s)
	kept = true
	return v, nil
}

// Use calls f with the bytes and reports true, or reports false without calling
// f if the Value was destroyed. b is valid only inside f, which must neither
// keep nor write it. Use takes no lock and allocates nothing; a Destroy
// meanwhile, even one by f itself, takes effect when the last user leaves.
func (v *Value) Use(f func(b []byte)) bool {
	if v == nil {
		return false
	}
	for {
		n := v.state.Load()
		if n&destroyed != 0 {
			return false
		}
		if v.state.CompareAndSwap(n, n+1) {
			break
		}
	}
	defer v.leave()
	f(v.bytes())
	return true
}

func (v *Value) bytes() []byte { return unsafe.Slice((*byte)(v.p), v.n) }

func (v *Value) leave() {
	if v.state.Add(^uint64(0)) == destroyed {
		v.release()
	}
}

// release runs exactly once: the state never grows again once destroyed is set,
// so one call alone sees it reach zero users.
func (v *Value) release() {
	v.net.Stop()
	arena.free(v.slot)
	runtime.KeepAlive(v)
}

// Destroy wipes the bytes, at once or when the last Use ends. Calling it again,
// or on nil, does nothing.
func (v *Value) Destroy() {
	if v == nil {
		return
	}
	for {
		n := v.state.Load()
		if n&destroyed != 0 {
			return
		}
		if v.state.CompareAndSwap(n, n|destroyed) {
			if n == 0 {
				v.release()
			}
			return
		}
	}
}

// Len is the number of bytes; it survives Destroy and is 0 for nil.
func (v *Value) Len() int {
	if v == nil {
		return 0
	}
	return v.n
}

// Fingerprint is 12 hex digits of HMAC-SHA256 under a random key of this
// process: equal values have equal fingerprints within one process, and a log
// full of them cannot be searched for a guessed value. It survives Destroy and
// is "" for nil.
func (v *Value) Fingerprint() string {
	if v == nil {
		return ""
	}
	return v.fingerprint
}

// Digest is the hex SHA-256 of "postern/key/v1\x00" and the bytes: the same in
// every process, to recognise a key that is stored elsewhere. It is "" after Destroy.
func (v *Value) Digest() string {
	var d string
	v.Use(func(b []byte) { d = digest(b) })
	return d
}

// Equal compares in time that depends on the lengths only. A destroyed or nil
// Value equals nothing.
func (v *Value) Equal(o *Value) bool {
	eq := false
	v.Use(func(a []byte) {
		o.Use(func(b []byte) { eq = subtle.ConstantTimeCompare(a, b) == 1 })
	})
	return eq
}

var errDestroyed = errors.New("secret: the value was destroyed")

// Clone returns a second Value with the same bytes and a life of its own.
func (v *Value) Clone() (*Value, error) {
	var c *Value
	err := errDestroyed
	v.Use(func(b []byte) {
		c, err = Make(len(b), func(dst []byte) int { return copy(dst, b) })
	})
	return c, err
}

// Wipe overwrites b with zeros.
func Wipe(b []byte) {
	clear(b)
	runtime.KeepAlive(unsafe.SliceData(b))
}
