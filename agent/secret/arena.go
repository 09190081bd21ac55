package secret

import (
	"math/bits"
	"sync"
	"unsafe"
)

// The arena hands out slots of power-of-two sizes. A span serves one size for
// good; spans are cut from chunks of chunkSize bytes, which are mapped when
// needed and kept. What is longer than the largest class has a mapping of its
// own, which is unmapped when freed. Everything the arena knows about its slots
// is on the Go heap; the slots hold secrets alone and are zero when free.
const (
	minShift  = 5  // 32 bytes
	maxShift  = 14 // 16 KiB
	classes   = maxShift - minShift + 1
	spanSize  = 4 << 10
	chunkSize = 64 << 10
	ownClass  = -1
)

// slot is a piece of the arena. Like a Value it holds a bare pointer, so that
// nothing that walks through structs reaches the bytes.
type slot struct {
	p     unsafe.Pointer
	size  int
	class int // index of the size class, or ownClass: p is then a mapping's first byte
}

func (s slot) bytes(n int) []byte { return unsafe.Slice((*byte)(s.p), n) }

// mapping is memory outside the Go heap between two pages that fault.
type mapping struct {
	whole            []byte // guard pages included
	mem              []byte
	used             int // bytes cut into spans
	locked, dontDump bool
}

type allocator struct {
	mu     sync.Mutex
	lists  [classes][]unsafe.Pointer
	maps   map[unsafe.Pointer]*mapping // by first byte
	chunks []*mapping                  // those that spans are cut from
	used   int                         // bytes in slots handed out
	values int                         // slots handed out
}

var arena allocator

func classOf(n int) int {
	if n <= 1<<minShift {
		return 0
	}
	return bits.Len(uint(n-1)) - minShift
}

// alloc returns a zeroed slot of at least n bytes.
func (a *allocator) alloc(n int) (slot, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := slot{class: classOf(n)}
	if s.class >= classes {
		m, err := a.mapMemory(n)
		if err != nil {
			return slot{}, err
		}
		s = slot{p: unsafe.Pointer(&m.mem[0]), size: len(m.mem), class: ownClass}
	} else {
		s.size = 1 << (s.class + minShift)
		if len(a.lists[s.class]) == 0 {
			if err := a.span(s.class, s.size); err != nil {
				return slot{}, err
			}
		}
		list := a.lists[s.class]
		s.p = list[len(list)-1]
		a.lists[s.class] = list[:len(list)-1]
	}
	a.used += s.size
	a.values++
	return s, nil
}

// span cuts a new span into slots of one class.
func (a *allocator) span(class, size int) error {
	need := max(spanSize, size)
	var from *mapping
	for _, c := range a.chunks {
		if len(c.mem)-c.used >= need {
			from = c
			break
		}
	}
	if from == nil {
		m, err := a.mapMemory(chunkSize)
		if err != nil {
			return err
		}
		a.chunks = append(a.chunks, m)
		from = m
	}
	span := from.mem[from.used : from.used+need]
	from.used += need
	for off := need - size; off >= 0; off -= size {
		a.lists[class] = append(a.lists[class], unsafe.Pointer(&span[off]))
	}
	return nil
}

// free wipes a slot and takes it back. Each slot handed out is freed once.
func (a *allocator) free(s slot) {
	Wipe(s.bytes(s.size))
	a.mu.Lock()
	defer a.mu.Unlock()
	a.used -= s.size
	a.values--
	if s.class != ownClass {
		a.lists[s.class] = append(a.lists[s.class], s.p)
		return
	}
	m := a.maps[s.p]
	delete(a.maps, s.p)
	m.unmap()
}

func (a *allocator) mapMemory(n int) (*mapping, error) {
	m, err := newMapping(n)
	if err != nil {
		return nil, err
	}
	if a.maps == nil {
		a.maps = make(map[unsafe.Pointer]*mapping)
	}
	a.maps[unsafe.Pointer(&m.mem[0])] = m
	return m, nil
}

// ArenaStats describes the memory that holds secrets.
type ArenaStats struct {
	Locked      bool `json:"locked"`       // every mapping is locked into memory (never swapped); false before the first Value
	DontDump    bool `json:"dontdump"`     // every mapping is left out of core dumps; false before the first Value
	MappedBytes int  `json:"mapped_bytes"` // without guard pages
	UsedBytes   int  `json:"used_bytes"`   // in slots handed out, rounding included
	Values      int  `json:"values"`       // slots handed out, those the package needs for itself included
}

// Stats describes the arena now. It may be called at any time.
func Stats() ArenaStats {
	arena.mu.Lock()
	defer arena.mu.Unlock()
	st := ArenaStats{
		Locked: len(arena.maps) > 0, DontDump: len(arena.maps) > 0,
		UsedBytes: arena.used, Values: arena.values,
	}
	for _, m := range arena.maps {
		st.Locked = st.Locked && m.locked
		st.DontDump = st.DontDump && m.dontDump
		st.MappedBytes += len(m.mem)
	}
	return st
}
