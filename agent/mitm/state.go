package mitm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// stateFile holds the CA's key and certificate, in the state directory.
const stateFile = "postern-ca.pem"

// state is an open state directory. A nil state keeps nothing.
type state struct {
	path string
	root *os.Root
	info fs.FileInfo
}

func openState(path string) (*state, error) {
	s := &state{path: filepath.Clean(path)}
	if err := s.open(); err != nil {
		s.close()
		return nil, s.wrap(err)
	}
	return s, nil
}

func (s *state) wrap(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = fmt.Errorf("%s: %w", pe.Op, pe.Err)
	}
	return fmt.Errorf("ca.state_dir %s: %w", s.path, err)
}

func (s *state) open() error {
	if _, err := os.Lstat(s.path); errors.Is(err, fs.ErrNotExist) {
		parent, err := os.Open(filepath.Dir(s.path))
		if err != nil {
			return err
		}
		err = inMemory(parent)
		parent.Close()
		if err != nil {
			return err
		}
		if err := os.Mkdir(s.path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	root, info, err := openDir(s.path)
	if err != nil {
		return err
	}
	s.root, s.info = root, info
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := inMemory(dir); err != nil {
		return err
	}
	if err := oursAlone(info); err != nil {
		return fmt.Errorf("%w: chmod 0700, or name one that does not exist yet in a tmpfs", err)
	}
	return nil
}

// load reads the CA that an earlier process kept; nil if there is none.
func (s *state) load(n names) (*issuer, error) {
	data, err := s.read()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		defer clear(data)
		var i *issuer
		if i, err = unmarshal(n, data); err == nil {
			return i, nil
		}
	}
	return nil, s.wrap(fmt.Errorf("%s: %w; remove it to begin with a new CA", stateFile, bare(err)))
}

func (s *state) read() ([]byte, error) {
	at, err := s.root.Lstat(stateFile)
	if err != nil {
		return nil, err
	}
	if !at.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	f, err := s.root.OpenFile(stateFile, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !os.SameFile(at, info) {
		return nil, errors.New("was replaced while it was opened")
	}
	if err := oursAlone(info); err != nil {
		return nil, err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Nlink != 1 {
		return nil, errors.New("has another name too (a hard link)")
	}
	const limit = 64 << 10
	if info.Size() > limit {
		return nil, fmt.Errorf("is larger than %d bytes", limit)
	}
	data := make([]byte, info.Size())
	if _, err := io.ReadFull(f, data); err != nil {
		clear(data)
		return nil, err
	}
	return data, nil
}

// save replaces what the directory holds.
func (s *state) save(i *issuer) error {
	if s == nil {
		return nil
	}
	data, err := i.marshal()
	if err != nil {
		return s.wrap(err)
	}
	defer clear(data)
	if err := replace(s.root, stateFile, data, 0o600); err != nil {
		return s.wrap(err)
	}
	return nil
}

func (s *state) close() {
	if s != nil && s.root != nil {
		s.root.Close()
	}
}

// oursAlone reports why a file or directory is not ours, or not ours alone.
func oursAlone(info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) != os.Geteuid() {
		return errors.New("belongs to another user")
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("is open to group or others (mode %04o)", perm)
	}
	return nil
}

// openDir opens a directory that is no symbolic link. Everything in it is then
// reached through the open directory: its path may change, its content not.
func openDir(path string) (*os.Root, fs.FileInfo, error) {
	at, err := os.Lstat(path)
	if err != nil {
		return nil, nil, err
	}
	if at.Mode()&fs.ModeSymlink != 0 {
		return nil, nil, errors.New("is a symbolic link: name the directory itself")
	}
	if !at.IsDir() {
		return nil, nil, errors.New("is not a directory")
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, nil, err
	}
	info, err := root.Stat(".")
	if err == nil && !os.SameFile(at, info) {
		err = errors.New("was replaced while it was opened")
	}
	if err != nil {
		root.Close()
		return nil, nil, err
	}
	return root, info, nil
}

// replace puts a whole file in the place of name: a reader sees the old one or
// the new one. What name was, a symbolic link included, is replaced, never written through.
func replace(root *os.Root, name string, data []byte, perm fs.FileMode) (err error) {
	temp := "." + name + ".new"
	if err := root.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, perm)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			root.Remove(temp)
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(perm) // whatever the umask says
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := root.Rename(temp, name); err != nil {
		return err
	}
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) {
		return err
	}
	return nil
}

// bare takes the operation and path out of an error that is going to get better ones.
func bare(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
