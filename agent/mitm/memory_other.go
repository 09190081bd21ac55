//go:build !linux

package mitm

import (
	"errors"
	"os"
)

// inMemory: this platform has no file system that is sure to stay in memory.
func inMemory(*os.File) error {
	return errors.New("needs a tmpfs, which this platform does not have: leave ca.state_dir empty")
}
