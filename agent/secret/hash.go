package secret

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"runtime"
	"sync"
)

// A hash of the standard library copies the unfinished last block of its input
// into itself, on the heap or a stack, where it outlives the call; for a key
// that is up to 63 of its bytes. So messages are padded here, in the arena, and
// the library gets whole blocks only, which it reads in place.

const block = sha256.BlockSize

// MAC computes HMAC-SHA256 under a random key of its own that lives in the
// arena, and leaves no copy of key or message on the heap. It may be used
// concurrently; its key is wiped when the collector finds it unused.
type MAC struct{ ipad, opad slot }

// NewMAC makes a MAC with a fresh key.
func NewMAC() (*MAC, error) {
	in, err := arena.alloc(block)
	if err != nil {
		return nil, err
	}
	out, err := arena.alloc(block)
	if err != nil {
		arena.free(in)
		return nil, err
	}
	i, o := in.bytes(block), out.bytes(block)
	_, _ = rand.Read(i[:sha256.Size])
	copy(o, i)
	for k := range i {
		i[k] ^= 0x36
		o[k] ^= 0x5c
	}
	m := &MAC{ipad: in, opad: out}
	runtime.AddCleanup(m, func(pads [2]slot) {
		arena.free(pads[0])
		arena.free(pads[1])
	}, [2]slot{in, out})
	return m, nil
}

// Sum is the MAC of the parts' concatenation. It fails only where memory cannot be mapped.
func (m *MAC) Sum(parts ...[]byte) (sum [sha256.Size]byte, err error) {
	defer runtime.KeepAlive(m)
	inner, err := sha(m.ipad.bytes(block), parts...)
	if err != nil {
		return sum, err
	}
	return sha(m.opad.bytes(block), inner[:])
}

// sha is SHA-256 of head and the parts, without a copy outside the arena.
func sha(head []byte, parts ...[]byte) (sum [sha256.Size]byte, err error) {
	n := len(head)
	for _, p := range parts {
		n += len(p)
	}
	padded := (n + 1 + 8 + block - 1) / block * block
	s, err := arena.alloc(padded)
	if err != nil {
		return sum, err
	}
	defer arena.free(s)
	b := s.bytes(padded)
	at := copy(b, head)
	for _, p := range parts {
		at += copy(b[at:], p)
	}
	b[n] = 0x80
	binary.BigEndian.PutUint64(b[padded-8:], uint64(n)*8)
	return sumBlocks(b, n), nil
}

// sumBlocks finishes SHA-256 of a message that is already padded: after its last
// block the hash's state is the sum. message is the length without padding.
func sumBlocks(padded []byte, message int) (sum [sha256.Size]byte) {
	h := sha256.New()
	_, _ = h.Write(padded)
	if m, ok := h.(encoding.BinaryAppender); ok {
		// The encoding is four bytes of magic, the state, then what is buffered
		// (nothing) and the length.
		state, err := m.AppendBinary(make([]byte, 0, 128))
		if err == nil && len(state) == 4+sha256.Size+block+8 && string(state[:4]) == "sha\x03" {
			copy(sum[:], state[4:])
			return sum
		}
	}
	return sha256.Sum256(padded[:message])
}

var digestPrefix = []byte("postern/key/v1\x00")

func digest(b []byte) string {
	sum, err := sha(digestPrefix, b)
	if err != nil {
		// No memory for a scratch slot: the right answer matters more than where it is computed.
		h := sha256.New()
		_, _ = h.Write(digestPrefix)
		_, _ = h.Write(b)
		h.Sum(sum[:0])
	}
	return hex.EncodeToString(sum[:])
}

var fingerprintKey = sync.OnceValues(NewMAC)

func fingerprint(b []byte) (string, error) {
	m, err := fingerprintKey()
	if err != nil {
		return "", err
	}
	sum, err := m.Sum(b)
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(sum[:6]), nil
}
