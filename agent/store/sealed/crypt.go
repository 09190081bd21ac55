package sealed

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/postern-proxy/postern/agent/secret"
)

const (
	keySize  = 32
	overhead = 12 + 16 // nonce and tag

	kindKeyFile    = "key_file"
	kindPassphrase = "passphrase"
)

// What argon2id is asked for: RFC 9106's second recommended option. A file may
// ask for other parameters, within bounds that keep a hostile one from costing
// more than seconds and a fraction of a laptop's memory.
const (
	argonTime, argonMemory, argonThreads = 3, 64 << 10, 4 // passes, KiB, lanes
	maxTime, maxMemory, maxThreads       = 10, 256 << 10, 8
	saltSize, maxSalt                    = 16, 64
)

var (
	errOtherKey  = errors.New("was sealed with another key")
	errClosed    = errors.New("the store is closed")
	errDestroyed = errors.New("the value was destroyed")
	errMemory    = errors.New("no memory for keys and values")
)

// keySlot is how a file holds its data key.
type keySlot struct {
	Kind     string `json:"kind"`
	ID       string `json:"id"` // of the wrapping key
	Argon2id *argon `json:"argon2id,omitempty"`
	Wrapped  []byte `json:"wrapped"`
}

type argon struct {
	Time    uint32 `json:"time"`
	Memory  uint32 `json:"memory_kib"`
	Threads uint8  `json:"threads"`
	Salt    []byte `json:"salt"`
}

// check bounds what a file can ask for before anything in it is trusted.
func (s *keySlot) check() error {
	switch {
	case len(s.Wrapped) != overhead+keySize || len(s.ID) != 16:
		return errHeader
	case s.Kind == kindKeyFile && s.Argon2id == nil:
		return nil
	case s.Kind == kindPassphrase && s.Argon2id != nil:
		return s.Argon2id.check()
	}
	return errHeader
}

func (a *argon) check() error {
	if a.Time < 1 || a.Time > maxTime || a.Threads < 1 || a.Threads > maxThreads ||
		a.Memory < 8*uint32(a.Threads) || a.Memory > maxMemory || len(a.Salt) < saltSize || len(a.Salt) > maxSalt {
		return fmt.Errorf("asks argon2id for time %d, %d KiB, %d threads and a salt of %d bytes, beyond the bounds (%d, %d KiB, %d, %d to %d)",
			a.Time, a.Memory, a.Threads, len(a.Salt), maxTime, maxMemory, maxThreads, saltSize, maxSalt)
	}
	return nil
}

// bound is everything in the slot that the wrapped key is bound to.
func (s *keySlot) bound() []byte {
	b := frame(nil, formatV1, "data key", s.Kind, s.ID)
	if a := s.Argon2id; a != nil {
		b = binary.BigEndian.AppendUint32(b, a.Time)
		b = binary.BigEndian.AppendUint32(b, a.Memory)
		b = append(b, a.Threads)
		b = frame(b, string(a.Salt))
	}
	return b
}

// frame appends strings so that no two lists of them look the same.
func frame(b []byte, parts ...string) []byte {
	for _, p := range parts {
		b = binary.AppendUvarint(b, uint64(len(p)))
		b = append(b, p...)
	}
	return b
}

// newArgon is the parameters for a new file, with its own salt.
func newArgon() *argon {
	a := &argon{Time: argonTime, Memory: argonMemory, Threads: argonThreads, Salt: make([]byte, saltSize)}
	rand.Read(a.Salt)
	return a
}

// stretch makes a wrapping key from a passphrase.
func (a *argon) stretch(passphrase *secret.Value) (*secret.Value, error) {
	var out []byte
	if !passphrase.Use(func(p []byte) { out = argon2.IDKey(p, a.Salt, a.Time, a.Memory, a.Threads, keySize) }) {
		return nil, errClosed
	}
	debug.FreeOSMemory() // tens of MiB that are never needed again
	return newValue(out)
}

// keyID tells wrapping keys apart without telling anything about them.
func keyID(wrapping *secret.Value) (id string, err error) {
	ok := wrapping.Use(func(k []byte) {
		m := hmac.New(sha256.New, k)
		m.Write([]byte(formatV1 + " key id"))
		id = hex.EncodeToString(m.Sum(nil)[:8])
	})
	if !ok {
		return "", errClosed
	}
	return id, nil
}

// keys are the two keys that a data key stands for.
type keys struct{ values, mac *secret.Value }

func (k *keys) destroy() {
	if k != nil {
		k.values.Destroy()
		k.mac.Destroy()
	}
}

// newSlot makes a data key and wraps it. kind and argon2id of the slot are given.
func newSlot(slot keySlot, wrapping *secret.Value) (keySlot, *keys, error) {
	raw := make([]byte, keySize)
	rand.Read(raw)
	data, err := newValue(raw)
	if err != nil {
		return slot, nil, err
	}
	defer data.Destroy()
	if slot.ID, err = keyID(wrapping); err != nil {
		return slot, nil, err
	}
	if slot.Wrapped, err = sealValue(wrapping, slot.bound(), data); err != nil {
		return slot, nil, err
	}
	k, err := derive(data)
	return slot, k, err
}

// unwrap gets a file's keys out with the wrapping key.
func (s *keySlot) unwrap(wrapping *secret.Value) (*keys, error) {
	if id, err := keyID(wrapping); err != nil {
		return nil, err
	} else if id != s.ID {
		return nil, errOtherKey
	}
	data, err := openValue(wrapping, s.bound(), s.Wrapped)
	if err != nil {
		return nil, err
	}
	defer data.Destroy()
	return derive(data)
}

// derive makes the key of the values and the key of the mac.
func derive(data *secret.Value) (*keys, error) {
	k := &keys{}
	for into, purpose := range map[**secret.Value]string{&k.values: " values", &k.mac: " mac"} {
		var raw []byte
		var err error
		if !data.Use(func(d []byte) { raw, err = hkdf.Expand(sha256.New, d, formatV1+purpose, keySize) }) {
			err = errClosed
		}
		if err == nil {
			*into, err = newValue(raw)
		}
		if err != nil {
			k.destroy()
			return nil, err
		}
	}
	return k, nil
}

// sum is the mac over a body.
func (k *keys) sum(body []byte) (mac []byte, err error) {
	ok := k.mac.Use(func(key []byte) {
		m := hmac.New(sha256.New, key)
		m.Write(body)
		mac = m.Sum(nil)
	})
	if !ok {
		return nil, errClosed
	}
	return mac, nil
}

func (k *keys) verify(body, mac []byte) (bool, error) {
	want, err := k.sum(body)
	return err == nil && hmac.Equal(want, mac), err
}

// bind is what a value's ciphertext is bound to: its place, and nothing else opens it.
func bind(path string, number int, created time.Time, field string) []byte {
	return frame(nil, formatV1, "value", path, strconv.Itoa(number), field, created.Format(time.RFC3339Nano))
}

// sealValue encrypts from the arena straight into ciphertext.
func sealValue(key *secret.Value, bound []byte, v *secret.Value) (box []byte, err error) {
	ok := v.Use(func(plain []byte) {
		err = withGCM(key, func(gcm cipher.AEAD) error {
			box = gcm.Seal(make([]byte, 0, len(plain)+overhead), nil, plain, bound)
			return nil
		})
	})
	if !ok {
		return nil, errDestroyed
	}
	return box, err
}

// openValue decrypts from ciphertext straight into the arena.
func openValue(key *secret.Value, bound, box []byte) (*secret.Value, error) {
	if len(box) < overhead {
		return nil, errEdited
	}
	var opened error
	v, err := secret.Make(len(box)-overhead, func(plain []byte) int {
		opened = withGCM(key, func(gcm cipher.AEAD) error {
			if _, err := gcm.Open(plain[:0], nil, box, bound); err != nil {
				return errEdited
			}
			return nil
		})
		return len(plain)
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMemory, err)
	}
	if opened != nil {
		v.Destroy()
		return nil, opened
	}
	return v, nil
}

// newValue is secret.New with an error that can be told from a damaged file.
func newValue(b []byte) (*secret.Value, error) {
	v, err := secret.New(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMemory, err)
	}
	return v, nil
}

func withGCM(key *secret.Value, f func(cipher.AEAD) error) (err error) {
	ok := key.Use(func(k []byte) {
		var block cipher.Block
		if block, err = aes.NewCipher(k); err != nil {
			return
		}
		var gcm cipher.AEAD
		if gcm, err = cipher.NewGCMWithRandomNonce(block); err != nil {
			return
		}
		err = f(gcm)
	})
	if !ok {
		return errClosed
	}
	return err
}
