package sealed

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// disk does every change to the file system, one named step after the other.
// Tests set before, to fail or to die between two steps.
type disk struct {
	before func(step string) error
}

func (d *disk) step(name string, f func() error) error {
	if d.before != nil {
		if err := d.before(name); err != nil {
			return err
		}
	}
	return f()
}

var (
	errNotRegular = errors.New("it is no regular file")
	errTooLarge   = fmt.Errorf("it is larger than %d MiB", maxFile>>20)
)

// openFile opens a regular file for reading, never a symbolic link unless follow.
func openFile(path string, follow bool) (*os.File, fs.FileInfo, error) {
	flags := os.O_RDONLY | syscall.O_NONBLOCK // a fifo must not block us
	if !follow {
		flags |= syscall.O_NOFOLLOW
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = errNotRegular
	case info.Size() > maxFile:
		err = errTooLarge
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// stamp tells one state of the file from another without reading it all. The
// tail holds the mac, so two states differ in it even where the file system
// gave them the same inode, size and time.
type stamp struct {
	dev, ino uint64
	size     int64
	mtime    time.Time
	tail     string
}

func stampOf(f *os.File, info fs.FileInfo) (stamp, error) {
	s := stamp{size: info.Size(), mtime: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.dev, s.ino = uint64(st.Dev), st.Ino
	}
	tail := make([]byte, min(int64(tailSize), s.size))
	if _, err := f.ReadAt(tail, s.size-int64(len(tail))); err != nil {
		return s, err
	}
	s.tail = string(tail)
	return s, nil
}

// glance is what can be seen of the file without opening it. Every change of the
// file changes it, for nobody can set a change time, unless two come within one
// unit of the file system's time.
type glance struct {
	dev, ino     uint64
	size         int64
	mtime, ctime time.Time
}

// coarse is more than any file system's unit of time and a file server's clock is off.
const coarse = 10 * time.Second

// glanceAt is the glance at a file that has not changed for so long that its next
// change will show; else the zero glance.
func glanceAt(info fs.FileInfo, coarse time.Duration) glance {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && time.Since(ctime(st)) > coarse {
		return glance{uint64(st.Dev), st.Ino, info.Size(), info.ModTime(), ctime(st)}
	}
	return glance{}
}

// readAll reads a file of at most maxFile bytes.
func readAll(f *os.File) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = errTooLarge
	}
	return data, err
}

// lock takes the writers' lock and returns its release. A process that dies lets go of it.
func (d *disk) lock(ctx context.Context, file string, wait time.Duration) (release func(), err error) {
	path := file + ".lock"
	l := flock.New(path, flock.SetFlag(os.O_CREATE|os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK))
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	err = d.step("lock", func() error {
		_, err := l.TryLockContext(waiting, 3*time.Millisecond)
		return err
	})
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, fmt.Errorf("waiting for %s: %w", path, ctx.Err())
	case waiting.Err() != nil:
		return nil, &fault{path, fmt.Sprintf("is held by another process for more than %s", wait),
			"find it (fuser " + path + ") or try again", store.ErrUnavailable, nil}
	default:
		return nil, system(path, "locked for writing", err)
	}
	// A lock made by the administrator must not lock out the file's owner.
	if info, err := os.Lstat(file); err == nil {
		keepOwner(info, func(uid, gid int) error { return os.Lchown(path, uid, gid) })
	}
	return func() { l.Close() }, nil
}

// keepOwner calls chown if the administrator works on somebody else's file.
func keepOwner(info fs.FileInfo, chown func(uid, gid int) error) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 || st.Uid == 0 {
		return nil
	}
	return chown(int(st.Uid), int(st.Gid))
}

// replace puts data in the file's place: all of it, or the old file stays.
func (d *disk) replace(file string, data []byte) (s stamp, err error) {
	f, err := d.writeTemp(file, data, "file")
	if err != nil {
		return s, system(file, "written", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil {
		s, err = stampOf(f, info)
	}
	if err == nil {
		err = d.step("rename file", func() error { return os.Rename(f.Name(), file) })
	}
	if err != nil {
		os.Remove(f.Name())
		return s, system(file, "replaced", err)
	}
	if err := d.step("sync directory", func() error { return syncDir(filepath.Dir(file)) }); err != nil {
		return s, &fault{file, "was replaced, but its directory cannot be synced, so that a power cut may bring the old one back",
			"look at the disk and write again", store.ErrUnavailable, err}
	}
	return s, nil
}

// writeTemp writes and syncs a temporary file beside file, which only its owner
// may read, and leaves it open. After an error nothing is left of it. kind names
// the steps.
func (d *disk) writeTemp(file string, data []byte, kind string) (f *os.File, err error) {
	err = d.step("create "+kind, func() error {
		name := filepath.Join(filepath.Dir(file), tempPrefix(file)+rand.Text())
		f, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = d.step("write "+kind, func() error {
		if old, err := os.Lstat(file); err == nil {
			if err := keepOwner(old, f.Chown); err != nil {
				return err
			}
		}
		_, err := f.Write(data)
		return err
	})
	if err == nil {
		err = d.step("sync "+kind, f.Sync)
	}
	if err != nil {
		f.Close()
		os.Remove(f.Name())
		return nil, err
	}
	return f, nil
}

func tempPrefix(file string) string { return "." + filepath.Base(file) + ".tmp-" }

// sweep removes what writers that were killed left beside file. Only the holder of the lock calls it.
func sweep(file string) {
	dir := filepath.Dir(file)
	entries, _ := os.ReadDir(dir) // what cannot be listed can stay
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix(file)) {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}

// readKeyFile reads a wrapping key. A file that does not exist is fs.ErrNotExist, unwrapped.
func readKeyFile(path string) (*secret.Value, error) {
	f, info, err := openFile(path, true)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, system(path, "read", err)
	}
	defer f.Close()
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, &fault{path, fmt.Sprintf("is a key file that others than its owner may use (mode %04o)", mode),
			"chmod 600 it; if others could read it, seal the keys anew with a new one", store.ErrUnauthenticated, nil}
	}
	var failed error
	text, err := secret.Make(128, func(b []byte) (n int) {
		n, failed = io.ReadFull(f, b)
		return n
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMemory, err)
	}
	defer text.Destroy()
	if failed != nil && failed != io.ErrUnexpectedEOF && failed != io.EOF {
		return nil, system(path, "read", failed)
	}
	key, err := unbase64(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMemory, err)
	}
	if key.Len() != keySize {
		key.Destroy()
		return nil, &fault{path, fmt.Sprintf("is no key file: it must hold %d random bytes in base64 and nothing else", keySize),
			"restore it from a backup", store.ErrUnauthenticated, ErrWrongKey}
	}
	return key, nil
}

// unbase64 decodes a text from arena to arena; what is no base64 is an empty Value.
func unbase64(text *secret.Value) (v *secret.Value, err error) {
	text.Use(func(b []byte) {
		b = bytes.TrimSpace(b)
		v, err = secret.Make(base64.StdEncoding.DecodedLen(len(b)), func(dst []byte) int {
			n, err := base64.StdEncoding.Strict().Decode(dst, b)
			if err != nil {
				return 0
			}
			return n
		})
	})
	return v, err
}

// newKeyText is what a new key file holds.
func newKeyText() (*secret.Value, error) {
	key, err := secret.Make(keySize, func(b []byte) int {
		rand.Read(b)
		return len(b)
	})
	if err != nil {
		return nil, err
	}
	defer key.Destroy()
	return secret.Make(base64.StdEncoding.EncodedLen(keySize)+1, func(b []byte) int {
		key.Use(func(k []byte) { base64.StdEncoding.Encode(b, k) })
		b[len(b)-1] = '\n'
		return len(b)
	})
}

// ensureKeyFile makes a key file unless one is there, and never changes one. The
// writers' lock of a store that has no file yet is held.
func (d *disk) ensureKeyFile(path string) error {
	sweep(path)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return nil // reading it says what is wrong with it, if anything
	}
	dir := filepath.Dir(path)
	if err := d.step("make key directory", func() error { return os.MkdirAll(dir, 0o700) }); err != nil {
		return system(dir, "created", err)
	}
	text, err := newKeyText()
	if err != nil {
		return fmt.Errorf("%w: %w", errMemory, err)
	}
	defer text.Destroy()
	var f *os.File
	text.Use(func(b []byte) { f, err = d.writeTemp(path, b, "key") })
	if err != nil {
		return system(path, "created", err)
	}
	f.Close()
	// A link, unlike a rename, never takes the place of what is there.
	err = d.step("link key", func() error { return os.Link(f.Name(), path) })
	if removed := d.step("remove key", func() error { return os.Remove(f.Name()) }); err == nil {
		err = removed
	}
	if err == nil || errors.Is(err, fs.ErrExist) {
		err = d.step("sync key directory", func() error { return syncDir(dir) })
	}
	if err != nil {
		return system(path, "created", err)
	}
	return nil
}
