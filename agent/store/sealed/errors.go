package sealed

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/postern-proxy/postern/agent/store"
)

var (
	// ErrDamaged: the file is not as postern last wrote it: cut off, edited,
	// replaced by an older one, or no sealed store at all. It comes with
	// store.ErrUnavailable and the file is left as it is.
	ErrDamaged = errors.New("sealed file damaged")
	// ErrWrongKey: the key file or passphrase is not the one the file was sealed
	// with. It comes with store.ErrUnauthenticated.
	ErrWrongKey = errors.New("wrong key")
)

// fault is what is wrong with a file and what to do about it.
type fault struct {
	file   string // the sealed file, the key file or the lock
	what   string
	advice string
	reason error // one of the store's reasons
	detail error // ErrDamaged, ErrWrongKey, the system's error, or nil
}

func (f *fault) Error() string {
	s := fmt.Sprintf("sealed store: %s %s", f.file, f.what)
	if f.detail != nil && f.detail != ErrDamaged && f.detail != ErrWrongKey {
		s += " (" + cause(f.detail) + ")"
	}
	return s + "; " + f.advice + ": " + f.reason.Error()
}

func (f *fault) Unwrap() []error {
	if f.detail == nil {
		return []error{f.reason}
	}
	return []error{f.reason, f.detail}
}

// cause leaves out the path that a system error repeats.
func cause(err error) string {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Op + ": " + p.Err.Error()
	}
	return err.Error()
}

func damaged(file, what string) error {
	return &fault{file, what, "restore it from a backup; it was left as it is", store.ErrUnavailable, ErrDamaged}
}

func wrongKey(file, what, advice string) error {
	return &fault{file, what, advice, store.ErrUnauthenticated, ErrWrongKey}
}

// system sorts an error of the operating system. doing completes "cannot be …".
func system(file, doing string, err error) error {
	f := &fault{file: file, what: "cannot be " + doing, reason: store.ErrUnavailable, detail: err,
		advice: "look at the disk and try again"}
	switch {
	case err == errTooLarge:
		return damaged(file, "is no sealed store: "+err.Error())
	case err == errNotRegular:
		f.reason, f.advice = store.ErrInvalid, "name a regular file"
	case errors.Is(err, syscall.ELOOP):
		f.reason, f.advice = store.ErrInvalid, "it is a symbolic link, which is never followed: name the file itself"
	case errors.Is(err, syscall.EROFS):
		f.reason, f.advice = store.ErrForbidden, "the file system is read-only: write where the original is kept"
	case errors.Is(err, fs.ErrPermission):
		f.reason, f.advice = store.ErrForbidden, "run as the file's owner, who needs write permission on its directory to change it"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		f.advice = "the disk is full: free some space; the file is as it was"
	}
	return f
}
