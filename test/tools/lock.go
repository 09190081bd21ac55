package tools

import (
	"fmt"
	"os"
	"path/filepath"
)

// lock makes the caller the only one on this machine that does this. Where the
// system allows it, the programs that it starts hold the lock too, so that what
// a killed caller has left running is waited for.
func lock(name string) (unlock func(), err error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(cache, name+".lock")
	if unlock, err = lockFile(path); err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return unlock, nil
}
