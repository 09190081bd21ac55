package agent

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"
)

// Log lines wait at most so long, and at most so many bytes, to be written
// together: a write for each request's line costs more than the line.
const (
	logDelay = 50 * time.Millisecond
	logBatch = 16 << 10
)

// batchWriter gathers writes. Flush writes at once what is gathered.
type batchWriter struct {
	mu    sync.Mutex
	w     io.Writer
	buf   []byte
	timer *time.Timer // runs while buf holds something
}

func newBatchWriter(w io.Writer) *batchWriter {
	b := &batchWriter{w: w}
	b.timer = time.AfterFunc(time.Hour, b.Flush)
	b.timer.Stop()
	return b
}

func (b *batchWriter) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.buf) == 0 {
		b.timer.Reset(logDelay)
	}
	b.buf = append(b.buf, p...)
	if len(b.buf) >= logBatch {
		b.flush()
	}
	return len(p), nil
}

// Flush writes what is gathered. A log that cannot be written is nobody's to hear of.
func (b *batchWriter) Flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.flush()
}

func (b *batchWriter) flush() {
	b.timer.Stop()
	if len(b.buf) > 0 {
		b.w.Write(b.buf)
		b.buf = b.buf[:0]
	}
}

// urgent flushes the log behind a record that must not wait: a warning or worse.
type urgent struct {
	slog.Handler
	flush func()
}

func (u urgent) Handle(ctx context.Context, r slog.Record) error {
	err := u.Handler.Handle(ctx, r)
	if r.Level >= slog.LevelWarn {
		u.flush()
	}
	return err
}

func (u urgent) WithAttrs(as []slog.Attr) slog.Handler {
	return urgent{u.Handler.WithAttrs(as), u.flush}
}

func (u urgent) WithGroup(name string) slog.Handler {
	return urgent{u.Handler.WithGroup(name), u.flush}
}
