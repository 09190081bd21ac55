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
	filterBits  = 16
	filterWords = 1 << filterBits / 64
	filterAt    = 32 // the multiplier, and room so that what follows is aligned
	slotsAt     = filterAt + filterWords*8
	slotSize    = 8
)

// table is the index as scan sees it; it is valid inside index.Use only.
type table struct {
	key    uint64
	filter *[filterWords]uint64
	slots  []slot
}

func (sn *snapshot) table(b []byte) table {
	return table{
		key:    binary.LittleEndian.Uint64(b),
		filter: (*[filterWords]uint64)(unsafe.Pointer(&b[filterAt])),
		slots:  unsafe.Slice((*slot)(unsafe.Pointer(&b[slotsAt])), sn.slots),
	}
}

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
	sn.slots = 1 << bits.Len(uint(2*words*len(sn.forms)))
	var err error
	sn.index, err = secret.Make(slotsAt+sn.slots*slotSize, func(b []byte) int {
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
			t.filter[h>>22] |= 1 << (h >> 16 & 63)
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
