package tools

import "github.com/gofrs/flock"

// lockFile's lock is this process's alone.
func lockFile(path string) (unlock func(), err error) {
	l := flock.New(path)
	if err := l.Lock(); err != nil {
		return nil, err
	}
	return func() { l.Close() }, nil
}
