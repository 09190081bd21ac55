package agent

import (
	"context"
	"crypto/sha256"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// How file changes are noticed.
const (
	debounce = 100 * time.Millisecond
	// statEvery catches what no event tells: subPath mounts, network file
	// systems, a machine whose inotify instances are used up.
	statEvery = 10 * time.Second
)

// WatchFile calls changed once, because the file may differ from what was read
// of it before, and then whenever its content differs from the last time, until
// ctx ends. A file that is gone has not changed. It watches the directory,
// because Kubernetes swaps a symlink and editors rename; what it compares is the content.
func WatchFile(ctx context.Context, file string, changed func()) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		watch(ctx, file, nil, nil, func() {}, changed)
		return
	}
	defer w.Close()
	dir := filepath.Dir(file)
	watch(ctx, file, w.Events, w.Errors, func() { w.Add(dir) }, changed)
}

// watch is WatchFile with its events given. again asks for them; it is called
// at each tick, for the directory may be there only now, or be another one.
func watch(ctx context.Context, file string, events <-chan fsnotify.Event, errs <-chan error, again, changed func()) {
	again()
	var last fileHash
	settle := time.NewTimer(0)
	defer settle.Stop()
	tick := time.NewTicker(statEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			settle.Reset(debounce)
			continue
		case _, ok := <-errs:
			if !ok {
				errs = nil
			}
			continue // an overflow: the tick looks
		case <-settle.C:
		case <-tick.C:
			again()
		}
		if now := contentHash(file); now != last && now != (fileHash{}) {
			last = now
			changed()
		}
	}
}

type fileHash [sha256.Size]byte

// contentHash is zero for a file that cannot be read.
func contentHash(file string) fileHash {
	b, err := os.ReadFile(file)
	if err != nil {
		return fileHash{}
	}
	return sha256.Sum256(b)
}
