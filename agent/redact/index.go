package redact

import (
	"encoding/binary"
	"math/bits"
	"unsafe"

	"github.com/postern-proxy/postern/agent/secret"
)

// hashWord is multiply-shift hashing under a secret odd multiplier: for two
// different words the chance of equal hashes is about 2 in 2³².
func hashWord(w, key uint64) uint32 { return uint32(w * key >> 32) }

// snapshot is the filter over one state of a Set. It never changes.
type snapshot struct {
	// index holds, in the arena: the multiplier, the filter's bits, the slots.
	// It is destroyed when another snapshot takes its place.
	index *secret.Value
	forms []formRef
	bits  int // of the filter: its size is 1<<bits
	slots int // a power of two
	back  int // how much of what went out a Stream has to remember
	long  int // the longest form
}

type formRef struct {
	form
	entry *Entry
	i     int // its number in the entry
}

// slot says that a word with this hash is word (ref-1)%8 of form (ref-1)/8; ref 0 is an empty slot.
type slot struct{ hash, ref uint32 }

const (
	// The filter has a bit for each spare words, so that ordinary text passes it in
	// one place of as many, however many values are known; but it stays within the
	// processor's nearer caches.
	spare         = 32
	minFilterBits = 16
	maxFilterBits = 22
	filterAt      = 32 // the multiplier, and room so that what follows is aligned
	slotSize      = 8
)

// table is the index as scan sees it; it is valid inside index.Use only.
type table struct {
	key    uint64
	shift  uint // of a hash, to the number of its bit in the filter
	filter []uint64
	slots  []slot
}

func (sn *snapshot) table(b []byte) table {
	return table{
		key:    binary.LittleEndian.Uint64(b),
		shift:  uint(32 - sn.bits),
		filter: unsafe.Slice((*uint64)(unsafe.Pointer(&b[filterAt])), 1<<sn.bits/64),
		slots:  unsafe.Slice((*slot)(unsafe.Pointer(&b[sn.slotsAt()])), sn.slots),
	}
}

// slotsAt is where the slots begin, behind the filter.
func (sn *snapshot) slotsAt() int { return filterAt + 1<<sn.bits/8 }

// rebuild makes a snapshot of the entries and puts it in place of the former
// one, which alone still needed those that were dropped.
func (s *Set) rebuild(dropped []*Entry) error {
	var next *snapshot
	if len(s.entries) > 0 {
		var err error
		if next, err = s.build(); err != nil {
			return err
		}
	}
	if old := s.snap.Swap(next); old != nil {
		old.index.Destroy()
	}
	for _, e := range dropped {
		e.marks.Destroy()
	}
	return nil
}

func (s *Set) build() (*snapshot, error) {
	sn := &snapshot{}
	for _, e := range s.entries {
		for i, f := range e.forms {
			sn.forms = append(sn.forms, formRef{form: f, entry: e, i: i})
			sn.back = max(sn.back, f.off+words-1)
			sn.long = max(sn.long, f.n)
		}
	}
	known := uint(words * len(sn.forms))
	sn.bits = min(max(bits.Len(spare*known), minFilterBits), maxFilterBits)
	sn.slots = 1 << bits.Len(2*known)
	var err error
	sn.index, err = secret.Make(sn.slotsAt()+sn.slots*slotSize, func(b []byte) int {
		s.key.Use(func(key []byte) { copy(b, key) })
		t := sn.table(b)
		for i := range sn.forms {
			t.add(&sn.forms[i], i)
		}
		return len(b)
	})
	return sn, err
}

// add enters a form's eight words.
func (t table) add(f *formRef, number int) {
	f.entry.marks.Use(func(m []byte) {
		for j := range words {
			h := binary.LittleEndian.Uint32(m[f.i*markSize+j*4:])
			bit := h >> t.shift
			t.filter[bit>>6] |= 1 << (bit & 63)
			at := h & uint32(len(t.slots)-1)
			for t.slots[at].ref != 0 {
				at = (at + 1) & uint32(len(t.slots)-1)
			}
			t.slots[at] = slot{hash: h, ref: uint32(number*words+j) + 1}
		}
	})
}

// mac is the stored MAC of a form.
func (f *formRef) mac() (mac [macSize]byte) {
	f.entry.marks.Use(func(m []byte) { copy(mac[:], m[f.i*markSize+macAt:]) })
	return mac
}
