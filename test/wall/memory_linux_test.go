package wall_test

import "golang.org/x/sys/unix"

// memoryDir is a tmpfs of the case's own, which nobody else mounts.
func memoryDir(r *run) string {
	r.t.Helper()
	dir := r.t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700"); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}
