package mitm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// inMemory reports why a directory does not lie in memory alone.
func inMemory(dir *os.File) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return fmt.Errorf("statfs: %w", err)
	}
	if kind := int64(st.Type); kind != unix.TMPFS_MAGIC && kind != unix.RAMFS_MAGIC {
		return errors.New("is not on a tmpfs, and a key must not reach a disk: mount one (an emptyDir with medium: Memory), or leave ca.state_dir empty")
	}
	return nil
}
