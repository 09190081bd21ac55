package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// disk is a regular file that is appended to.
type disk struct {
	path string
	f    *os.File
	off  int64 // where the file ended at begin
	end  int64 // where it should end now; -1 if that is not known
}

// tail is what the end of a file says.
type tail struct {
	head Head
	torn *Event
}

const (
	firstWindow = 64 << 10
	lastWindow  = 8 << 20 // more than the largest batch, so a torn one lies inside
)

func openDisk(path string) (*disk, tail, error) {
	d := &disk{path: path, end: -1}
	f, err := d.open()
	if err != nil {
		return nil, tail{}, err
	}
	t, err := readTail(f)
	if err != nil {
		f.Close()
		return nil, tail{}, fmt.Errorf("%w: run \"postern audit verify %s\", keep the file as evidence, move it away and start again", err, path)
	}
	d.f = f
	return d, t, nil
}

// open opens or creates the file and takes its lock.
func (d *disk) open() (_ *os.File, err error) {
	const flags = os.O_RDWR | os.O_APPEND | os.O_CREATE | syscall.O_NOFOLLOW | syscall.O_NONBLOCK
	f, err := os.OpenFile(d.path, flags, 0o600)
	if err != nil {
		if errors.Is(err, syscall.ELOOP) {
			return nil, errors.New("is a symbolic link: name the file itself")
		}
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New(`is not a regular file: name one, or use "-" for standard output`)
	}
	if st.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("may be written by group or others (mode %04o): chmod go-w", st.Mode().Perm())
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ErrInUse
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	if st.Size() == 0 {
		return f, syncDir(filepath.Dir(d.path))
	}
	return f, nil
}

// begin looks where the file ends and follows a rename: a log rotation that
// moved the file away leaves the path to a new one, in which the chain goes on.
func (d *disk) begin(unfinished bool) (glue bool, err error) {
	st, err := d.f.Stat()
	if err != nil {
		return false, err
	}
	if !unfinished {
		at, err := os.Lstat(d.path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if err != nil || !os.SameFile(at, st) {
			return false, d.follow()
		}
	}
	d.off = st.Size()
	if d.off == d.end || d.off == 0 {
		return false, nil
	}
	last := make([]byte, 1)
	if _, err := d.f.ReadAt(last, d.off-1); err != nil {
		return false, err
	}
	return last[0] != '\n', nil
}

func (d *disk) follow() error {
	f, err := d.open()
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && st.Size() != 0 {
		err = errors.New("was replaced by a file that is not empty: move that one away")
	}
	if err != nil {
		f.Close()
		return err
	}
	d.f.Close()
	d.f, d.off, d.end = f, 0, 0
	return nil
}

func (d *disk) Write(b []byte) (int, error) {
	n, err := d.f.Write(b)
	d.end = d.off + int64(n)
	return n, err
}

func (d *disk) sync() error { return d.f.Sync() }

func (d *disk) undo() error {
	err := d.f.Truncate(d.off)
	if err == nil {
		d.end = d.off
	}
	return err
}

func (d *disk) Close() error { return d.f.Close() }

// readTail finds the newest entry, checks it and its link to the one before, and
// sorts what stands behind it: nothing, the remains of a torn write, or what we never wrote.
func readTail(f *os.File) (tail, error) {
	st, err := f.Stat()
	if err != nil {
		return tail{}, err
	}
	for window := int64(firstWindow); ; window *= 8 {
		window = min(window, lastWindow, st.Size())
		data := make([]byte, window)
		if n, err := f.ReadAt(data, st.Size()-window); err != nil && n < len(data) {
			return tail{}, err
		}
		whole := window == st.Size()
		t, more, err := judgeTail(data, whole)
		if !more || whole || window == lastWindow {
			return t, err
		}
	}
}

// judgeTail judges the last bytes of a file. more says that it takes more of them to judge.
func judgeTail(data []byte, whole bool) (t tail, more bool, err error) {
	if len(data) == 0 {
		return tail{}, false, nil
	}
	lines := bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n"))
	if !whole {
		lines = lines[1:]
	}
	last, i := lastEntry(lines)
	if last == nil && !whole {
		return tail{}, true, errors.New("holds no audit entry near its end")
	}
	for _, line := range lines[i+1:] {
		if !tornLine(line) {
			return tail{}, false, fmt.Errorf("holds something after seq %d that is no audit entry", seqOf(last))
		}
	}
	if last != nil {
		if last.Sum() != last.Hash {
			return tail{}, false, fmt.Errorf("its last entry (seq %d) was edited", last.Seq)
		}
		before, _ := lastEntry(lines[:i])
		if before == nil && !whole {
			more = true
		}
		if before != nil && (last.Prev != before.Hash || last.Seq != before.Seq+1) {
			return tail{}, false, fmt.Errorf("its last entry (seq %d) does not follow the one before (seq %d)", last.Seq, before.Seq)
		}
		t.head = last.Head()
	}
	if i+1 < len(lines) {
		raw := bytes.Join(lines[i+1:], []byte("\n"))
		sum := sha256.Sum256(raw)
		t.torn = &Event{
			Event:  EventResumed,
			Reason: "the line before was torn, by a crash or a full disk",
			Detail: map[string]string{"torn_bytes": strconv.Itoa(len(raw)), "torn_sha256": hex.EncodeToString(sum[:])},
		}
	}
	return t, more, nil
}

// lastEntry finds the last line that is an entry; -1 if there is none.
func lastEntry(lines [][]byte) (*Entry, int) {
	for i := len(lines) - 1; i >= 0; i-- {
		if !bytes.HasPrefix(lines[i], []byte(lineStart)) {
			continue // spares reading all of a file that is not ours as JSON
		}
		if e, err := ParseEntry(lines[i]); err == nil {
			return &e, i
		}
	}
	return nil, -1
}

// tornLine reports whether a line can be the beginning of an entry whose rest
// was not written, or was written as zeros. A whole JSON text alone never is: that was edited.
func tornLine(line []byte) bool {
	begun := bytes.TrimRight(line, "\x00")
	return (len(begun) < len(line) || !json.Valid(line)) &&
		(bytes.HasPrefix(begun, []byte(lineStart)) || bytes.HasPrefix([]byte(lineStart), begun))
}

func seqOf(e *Entry) uint64 {
	if e == nil {
		return 0
	}
	return e.Seq
}

// syncDir makes a new name in dir durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrPermission) {
		return nil // a directory that may be written but not read
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) {
		return err
	}
	return nil
}
