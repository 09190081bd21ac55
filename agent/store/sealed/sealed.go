package sealed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"time"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// Options say where the store is and what opens it. Exactly one of KeyFile and
// Passphrase is set.
type Options struct {
	// File is the sealed file; required. Beside it lie File.lock and, while a
	// write lasts, a temporary file.
	File string
	// KeyFile holds 32 random bytes in base64 and may be used by its owner only.
	KeyFile string
	// Passphrase opens a file in the passphrase form. It stays the caller's, who
	// may destroy it when Open has returned.
	Passphrase *secret.Value
	// Now is the clock; nil means the local one.
	Now func() time.Time
	// Create makes a file that does not exist an empty store: the first write
	// creates it, its directory, and the key file if that does not exist
	// either. Without Create a missing file is store.ErrNotFound.
	Create bool
}

// Store is a sealed file. Any number of Stores, in any number of processes, may
// use the same file; each sees what the others wrote at its next call.
//
// Beside the reasons that package store gives, the errors about the file itself
// wrap ErrDamaged or ErrWrongKey where that is what is wrong.
type Store struct {
	file, keyFile string
	create        bool
	now           func() time.Time
	disk          disk
	lockWait      time.Duration
	coarse        time.Duration // the constant, but for tests

	writer chan struct{} // holds one token: this process's writers queue here and do not poll the lock

	mu         sync.Mutex // guards what follows
	closed     bool
	passphrase *secret.Value // until keys are known
	keys       *keys         // from the first time the file was there; never replaced
	doc        *document     // never nil; generation 0 means no file yet
	stamp      stamp
	glance     glance // at the file as it was when stamp was last found to be right; zero where that was too early
}

var (
	_ store.Store      = (*Store)(nil)
	_ store.Identifier = (*Store)(nil)
)

// Open opens a store. A file that exists is read, unlocked and verified here.
// The error wraps one of package store's reasons and names the file.
func Open(o Options) (*Store, error) {
	s := &Store{create: o.Create, now: o.Now, lockWait: 30 * time.Second, coarse: coarse, writer: make(chan struct{}, 1), doc: &document{}}
	if s.now == nil {
		s.now = time.Now
	}
	if err := s.paths(o); err != nil {
		return nil, err
	}
	if o.Passphrase != nil {
		var err error
		if s.passphrase, err = o.Passphrase.Clone(); err != nil {
			return nil, fmt.Errorf("sealed store: passphrase: %w (%w)", store.ErrInvalid, err)
		}
	}
	if _, _, err := s.load(); err != nil {
		s.Close()
		return nil, err
	}
	if err := s.absent(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// paths checks which files are meant and makes their names independent of the working directory.
func (s *Store) paths(o Options) error {
	invalid := func(text string) error { return fmt.Errorf("sealed store: %s: %w", text, store.ErrInvalid) }
	switch {
	case o.File == "":
		return invalid("file is required")
	case o.KeyFile == "" && o.Passphrase == nil:
		return invalid("one of key_file and passphrase is required")
	case o.KeyFile != "" && o.Passphrase != nil:
		return invalid("key_file and passphrase exclude each other")
	case o.Passphrase != nil && o.Passphrase.Len() == 0:
		return invalid("the passphrase is empty")
	}
	var err error
	if s.file, err = filepath.Abs(o.File); err != nil {
		return invalid(fmt.Sprintf("file %q: %v", o.File, err))
	}
	if o.KeyFile == "" {
		return nil
	}
	if s.keyFile, err = filepath.Abs(o.KeyFile); err != nil {
		return invalid(fmt.Sprintf("key_file %q: %v", o.KeyFile, err))
	}
	if s.keyFile == s.file || s.keyFile == s.file+".lock" {
		return invalid("key_file must be another file than file and its lock")
	}
	return nil
}

// absent checks, while there is no file yet, what will be needed to make one.
func (s *Store) absent() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.doc.Generation > 0 {
		return nil
	}
	if !s.create {
		return &fault{s.file, "does not exist", "check the path, or add a key to create it", store.ErrNotFound, nil}
	}
	if s.keyFile == "" {
		return nil
	}
	k, err := readKeyFile(s.keyFile)
	if err != nil && err != fs.ErrNotExist {
		return err
	}
	k.Destroy()
	return nil
}

// Close wipes the keys. Calls after it fail with store.ErrUnavailable; closing twice is no error.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.keys.destroy()
	s.passphrase.Destroy()
	s.doc = &document{}
	return nil
}

// Now is the local clock, in UTC.
func (s *Store) Now() time.Time { return s.now().UTC() }

// load returns what the file holds now, and the keys once there is one. The
// document must not be changed.
func (s *Store) load() (*document, *keys, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, s.explain(errClosed)
	}
	if s.same() {
		return s.doc, s.keys, nil
	}
	f, info, err := openFile(s.file, false)
	if errors.Is(err, fs.ErrNotExist) {
		if s.doc.Generation > 0 {
			return nil, nil, &fault{s.file, "is gone", "put it back, or restart postern to begin with an empty store", store.ErrUnavailable, ErrDamaged}
		}
		return s.doc, nil, nil
	}
	if err != nil {
		return nil, nil, system(s.file, "read", err)
	}
	defer f.Close()
	st, err := stampOf(f, info)
	if err != nil {
		return nil, nil, system(s.file, "read", err)
	}
	if s.doc.Generation == 0 || st != s.stamp {
		data, err := readAll(f)
		if err != nil {
			return nil, nil, system(s.file, "read", err)
		}
		if err := s.accept(data, st); err != nil {
			return nil, nil, err
		}
	}
	s.glance = glanceAt(info, s.coarse)
	return s.doc, s.keys, nil
}

// same reports whether a glance at the file tells that it is as it was: an agent
// looks for each of its keys, and opening the file costs more than all the rest.
func (s *Store) same() bool {
	if s.glance == (glance{}) {
		return false
	}
	info, err := os.Lstat(s.file)
	return err == nil && glanceAt(info, s.coarse) == s.glance
}

// accept verifies a file's bytes and makes them the current state. On an error nothing changes.
func (s *Store) accept(data []byte, st stamp) error {
	k := s.keys
	doc, err := parse(data, func(h header) (*keys, error) {
		if k != nil {
			if !reflect.DeepEqual(h.Key, s.doc.Key) {
				return nil, errReplaced
			}
			return k, nil
		}
		var err error
		k, err = s.unlock(h.Key)
		return k, err
	})
	if err == nil && (doc.Generation < s.doc.Generation || doc.Generation == s.doc.Generation && st.tail != s.stamp.tail) {
		err = errRollback
	}
	if err != nil {
		if k != s.keys {
			k.destroy()
		}
		return s.explain(err)
	}
	s.install(doc, k, st)
	return nil
}

// install makes a verified document the current one; s.mu is held.
func (s *Store) install(doc *document, k *keys, st stamp) {
	s.doc, s.keys, s.stamp, s.glance = doc, k, st, glance{}
	s.passphrase.Destroy()
}

var (
	errReplaced = errors.New("was replaced by another sealed store")
	errRollback = errors.New("is older than what this process has read from it, or was written by something else in between")
)

// explain makes an error about the file's content one for people.
func (s *Store) explain(err error) error {
	switch {
	case err == errClosed:
		return &fault{s.file, "was closed by this process", "open it again", store.ErrUnavailable, nil}
	case err == errReplaced, err == errRollback:
		return &fault{s.file, err.Error(), "if that was meant, restart postern; if not, put the newest file back", store.ErrUnavailable, ErrDamaged}
	case errors.Is(err, errMemory):
		return &fault{s.file, "cannot be opened", "raise the process's memory limits", store.ErrUnavailable, err}
	case errors.As(err, new(newerError)):
		return &fault{s.file, err.Error(), "upgrade postern, or restore the file from a backup", store.ErrUnavailable, ErrDamaged}
	case errors.As(err, new(*fault)):
		return err
	}
	return damaged(s.file, err.Error())
}

// unlock gets the keys of an existing file; s.mu is held.
func (s *Store) unlock(slot keySlot) (*keys, error) {
	wrapping, err := s.wrapping(slot)
	if err != nil {
		return nil, err
	}
	defer wrapping.Destroy()
	k, err := slot.unwrap(wrapping)
	if err != errOtherKey {
		return k, err
	}
	if slot.Kind == kindPassphrase {
		return nil, wrongKey(s.file, "was sealed with another passphrase", "set the variable that store.sealed.passphrase_env names to the one it was made with; the file was left as it is")
	}
	return nil, wrongKey(s.file, "was sealed with another key than the one in "+s.keyFile,
		fmt.Sprintf("restore the key file whose id is %s; the sealed file was left as it is", slot.ID))
}

// wrapping gets the wrapping key that a slot asks for.
func (s *Store) wrapping(slot keySlot) (*secret.Value, error) {
	switch {
	case slot.Kind == kindPassphrase && s.passphrase == nil:
		return nil, wrongKey(s.file, "is sealed with a passphrase", "set store.sealed.passphrase_env in place of key_file")
	case slot.Kind == kindPassphrase:
		return slot.Argon2id.stretch(s.passphrase)
	case s.keyFile == "":
		return nil, wrongKey(s.file, "is sealed with a key file", "set store.sealed.key_file in place of passphrase_env")
	}
	k, err := readKeyFile(s.keyFile)
	if err == fs.ErrNotExist {
		return nil, &fault{s.keyFile, "does not exist, and without it nothing in " + s.file + " can be read",
			"restore it from a backup; no new key was made", store.ErrUnauthenticated, ErrWrongKey}
	}
	return k, err
}

// begin makes the keys of a store that has no file yet, and the key file if need be.
// The writers' lock is held.
func (s *Store) begin() (keySlot, *keys, error) {
	slot := keySlot{Kind: kindKeyFile}
	if s.passphrase != nil {
		slot = keySlot{Kind: kindPassphrase, Argon2id: newArgon()}
	} else if err := s.disk.ensureKeyFile(s.keyFile); err != nil {
		return slot, nil, err
	}
	wrapping, err := s.wrapping(slot)
	if err != nil {
		return slot, nil, err
	}
	defer wrapping.Destroy()
	return newSlot(slot, wrapping)
}

// alive is the context's error, made one that names what was asked for.
func alive(ctx context.Context, what string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
