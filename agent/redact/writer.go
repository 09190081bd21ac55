package redact

import (
	"bytes"
	"io"
	"slices"
	"sync"
)

// maxLine is how much of a line without an end is kept back.
const maxLine = 64 << 10

// Writer scrubs what passes through it, line by line, wherever the writes are
// cut. It is the last net below a logger: known values are replaced by
// [redacted], in log text (where is WhereLog) patterns' matches too.
//
// Of a line that grows past 64 KiB all but the longest known form's length is
// written; values are found across that border, patterns are not. A value that
// itself holds line breaks is found if one Write brings all of its raw form.
//
// A Writer may be used concurrently; OnHit may log through it.
type Writer struct {
	set   *Set
	w     io.Writer
	where string

	mu   sync.Mutex
	buf  []byte
	full int // how much of a line without an end makes a piece of it due
}

// Writer returns a Writer onto w.
func (s *Set) Writer(w io.Writer, where string) *Writer {
	return &Writer{set: s, w: w, where: where, full: maxLine}
}

// Write takes p and writes the lines that are complete. An error is the
// underlying writer's; the lines it failed on are lost.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	found, err := w.write(p)
	w.mu.Unlock()
	w.set.report(found, w.where)
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (w *Writer) write(p []byte) ([]find, error) {
	end := bytes.LastIndexByte(p, '\n') + 1
	if len(w.buf) == 0 && end == len(p) {
		return w.put(p)
	}
	if end > 0 {
		end += len(w.buf)
	}
	w.keep(p)
	var found []find
	var err error
	if end > 0 {
		found, err = w.put(w.buf[:end])
		w.drop(end)
	}
	if err != nil || len(w.buf) < w.full {
		return found, err
	}
	more, err := w.cut()
	return append(found, more...), err
}

// put scrubs and writes b.
func (w *Writer) put(b []byte) ([]find, error) {
	out, found := w.set.scrub(b, w.where == WhereLog)
	if len(out) == 0 {
		return found, nil
	}
	_, err := w.w.Write(out)
	return found, err
}

// cut writes most of a line that has no end: up to where a value may begin
// whose end is still to come, and never through the middle of one.
func (w *Writer) cut() ([]find, error) {
	at := len(w.buf)
	sc := scan{set: w.set, b: w.buf, final: true}
	sc.run()
	if sc.sn != nil {
		at = max(0, len(w.buf)-sc.sn.long+1)
	}
	slices.SortFunc(sc.found, func(a, b find) int { return b.start - a.start })
	for _, f := range sc.found {
		if f.start < at && at < f.end {
			at = f.start
		}
	}
	sc.done()
	if at == 0 {
		if w.full < 4*maxLine {
			w.full *= 2
			return nil, nil
		}
		at = len(w.buf) // one value upon the other, or one as long as all this
	}
	found, err := w.put(w.buf[:at])
	w.drop(at)
	return found, err
}

// keep appends p to the buffer, and wipes the one it outgrew.
func (w *Writer) keep(p []byte) {
	if len(w.buf)+len(p) > cap(w.buf) {
		old := w.buf
		w.buf = append(make([]byte, 0, 2*cap(old)+len(p)), old...)
		clear(old)
	}
	w.buf = append(w.buf, p...)
}

// drop takes the first n bytes out of the buffer and wipes what they leave.
func (w *Writer) drop(n int) {
	rest := copy(w.buf, w.buf[n:])
	clear(w.buf[rest:])
	w.buf = w.buf[:rest]
	w.full = maxLine
}

// Flush writes what is there of an unfinished line. What comes later is not
// seen together with it.
func (w *Writer) Flush() error {
	w.mu.Lock()
	found, err := w.put(w.buf)
	w.drop(len(w.buf))
	w.mu.Unlock()
	w.set.report(found, w.where)
	return err
}

// Close is Flush; it does not close the underlying writer.
func (w *Writer) Close() error { return w.Flush() }
