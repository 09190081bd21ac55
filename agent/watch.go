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

// WatchFile calls changed whenever the file's content differs from before,
// until ctx ends. It watches the directory, because Kubernetes swaps a symlink
// and editors rename; what it compares is the content.
func WatchFile(ctx context.Context, file string, changed func()) {
	var events <-chan fsnotify.Event
	var errs <-chan error
	if w, err := fsnotify.NewWatcher(); err == nil {
		defer w.Close()
		if w.Add(filepath.Dir(file)) == nil {
			events, errs = w.Events, w.Errors
		}
	}
	last := contentHash(file)
	tick := time.NewTicker(statEvery)
	defer tick.Stop()
	settle := time.NewTimer(time.Hour)
	settle.Stop()
	defer settle.Stop()
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
		}
		now := contentHash(file)
		if now != last && now != ([sha256.Size]byte{}) {
			last = now
			changed()
		}
	}
}

// contentHash is zero for a file that cannot be read.
func contentHash(file string) [sha256.Size]byte {
	b, err := os.ReadFile(file)
	if err != nil {
		return [sha256.Size]byte{}
	}
	return sha256.Sum256(b)
}
