package audit

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Sink takes events. Its methods may be called concurrently.
type Sink interface {
	// Append returns once the entry is recorded as durably as the sink can, with
	// its place in the chain. An error means that it is not known to be recorded:
	// what depends on the entry must not happen.
	Append(ctx context.Context, e Event) (Head, error)
}

// ErrClosed is the reason after Close.
var ErrClosed = errors.New("closed")

// ErrInUse is Open's error for a file that another process appends to.
var ErrInUse = errors.New("is in use by another process: give each agent a file of its own")

// Options are the settings of Open. The zero value is usable.
type Options struct {
	Boot   string                // names this process in its entries; "" means 32 random hex digits
	Now    func() time.Time      // nil means time.Now
	Stdout io.Writer             // where "-" goes; nil means os.Stdout
	Scrub  func(b []byte) []byte // applied to every string of an event before it is hashed; nil means none
}

// File is a Sink that writes one entry a line to a file or to standard output.
// A process opens it once and keeps it through reloads. Its methods may be
// called concurrently; entries that come together share one write and one fsync.
type File struct {
	name  string // for errors
	now   func() time.Time
	scrub func([]byte) []byte

	queue   chan *request
	closing chan struct{}
	close   sync.Once
	done    chan struct{} // closed when the writer has ended
	end     error         // of closing; valid after done
	head    atomic.Pointer[Head]

	// The rest belongs to the writer.
	out   output
	chain Chain
	torn  *Event // what to record before the next entry
	rest  []byte // of our own line, cut off by a failed write that could not be undone
	buf   []byte
}

// output is what entries are written to.
type output interface {
	// begin is called before each write. glue says that the last line there has
	// no end yet; unfinished, that the next bytes complete one of ours.
	begin(unfinished bool) (glue bool, err error)
	io.Writer
	sync() error
	// undo takes back everything since begin, or says that it could not.
	undo() error
	io.Closer
}

type request struct {
	event Event
	at    time.Time
	state atomic.Bool // true once the writer or the caller's deadline has claimed it
	done  chan result
}

type result struct {
	head Head
	err  error
}

const (
	maxBatch  = 64
	closeWait = 5 * time.Second
)

// Open opens a sink. "-" is standard output, with a chain of this process alone.
// Anything else is a file: created 0600, locked against other processes, and its
// chain continued. It refuses a file that is a symbolic link, is not regular,
// may be written by others, or whose end is no chain of ours.
func Open(path string, o Options) (*File, error) {
	f := &File{
		name:    "audit.file " + path,
		now:     o.Now,
		scrub:   o.Scrub,
		queue:   make(chan *request),
		closing: make(chan struct{}),
		done:    make(chan struct{}),
		chain:   Chain{Boot: o.Boot},
	}
	if f.now == nil {
		f.now = time.Now
	}
	if f.chain.Boot == "" {
		id := make([]byte, 16)
		rand.Read(id)
		f.chain.Boot = hex.EncodeToString(id)
	}
	f.chain.Boot = clip(f.chain.Boot, maxName)
	if path == "-" {
		if o.Stdout == nil {
			o.Stdout = os.Stdout
		}
		f.out = stream{o.Stdout}
	} else if path == "" {
		return nil, errors.New(`audit.file is empty: give a path, or "-" for standard output`)
	} else {
		d, t, err := openDisk(path)
		if err != nil {
			return nil, f.wrap(err)
		}
		f.out, f.chain.Head, f.torn = d, t.head, t.torn
	}
	f.head.Store(&Head{f.chain.Head.Seq, f.chain.Head.Hash})
	go f.run()
	return f, nil
}

// Append implements Sink. It returns no later than ctx ends. When ctx ends while the
// entry is being written, the entry may still appear; otherwise an error means
// that it will not. After a failure (a full disk) the next Append tries anew.
func (f *File) Append(ctx context.Context, e Event) (Head, error) {
	if e.Event == "" {
		return Head{}, errEventName
	}
	if err := ctx.Err(); err != nil {
		return Head{}, f.wrap(fmt.Errorf("not recorded: %w", err))
	}
	r := &request{event: e.clean(f.scrub), at: f.now(), done: make(chan result, 1)}
	select {
	case f.queue <- r:
	case <-f.closing:
		return Head{}, f.wrap(ErrClosed)
	case <-ctx.Done():
		return Head{}, f.wrap(fmt.Errorf("not recorded: %w", ctx.Err()))
	}
	select {
	case res := <-r.done:
		return res.head, res.err
	case <-ctx.Done():
		if r.state.CompareAndSwap(false, true) {
			return Head{}, f.wrap(fmt.Errorf("not recorded: %w", ctx.Err()))
		}
		return Head{}, f.wrap(fmt.Errorf("not recorded in time: %w", ctx.Err()))
	}
}

// Head returns the newest entry known to be recorded; before the first, what the
// file held when it was opened.
func (f *File) Head() Head { return *f.head.Load() }

// Boot returns the boot id that this process's entries carry.
func (f *File) Boot() string { return f.chain.Boot }

// Close ends the sink after the entries being written. It waits at most five
// seconds for them. Closing twice is no error.
func (f *File) Close() error {
	f.close.Do(func() { close(f.closing) })
	t := time.NewTimer(closeWait)
	defer t.Stop()
	select {
	case <-f.done:
		return f.end
	case <-t.C:
		return f.wrap(fmt.Errorf("still writing %v after being closed", closeWait))
	}
}

func (f *File) run() {
	defer close(f.done)
	batch := make([]*request, 0, maxBatch)
	for {
		select {
		case r := <-f.queue:
			batch = append(batch[:0], r)
		case <-f.closing:
			if err := f.out.Close(); err != nil {
				f.end = f.wrap(err)
			}
			return
		}
	more:
		for len(batch) < maxBatch {
			select {
			case r := <-f.queue:
				batch = append(batch, r)
			default:
				break more
			}
		}
		heads, err := f.commit(batch)
		for i, r := range batch {
			if err != nil {
				r.done <- result{err: f.wrap(err)}
			} else {
				r.done <- result{head: heads[i]}
			}
		}
		clear(batch)
	}
}

// commit writes a batch as one piece: all of it is recorded, or none, unless
// what was written can be neither undone nor completed now; then the chain goes
// on behind it and the next commit completes it.
func (f *File) commit(batch []*request) ([]Head, error) {
	glue, err := f.out.begin(len(f.rest) > 0)
	if err != nil {
		return nil, err
	}
	chain, buf := f.chain, append(f.buf[:0], f.rest...)
	if glue && len(f.rest) == 0 {
		buf = append(buf, '\n')
	}
	add := func(ev Event, at time.Time) {
		var e Entry
		chain, e = chain.Next(ev, at)
		buf = append(e.AppendJSON(buf), '\n')
	}
	if f.torn != nil {
		add(*f.torn, f.now())
	}
	heads, claimed := make([]Head, len(batch)), false
	for i, r := range batch {
		if r.state.CompareAndSwap(false, true) {
			add(r.event, r.at)
			heads[i], claimed = chain.Head, true
		}
	}
	if !claimed {
		return heads, nil // every caller has gone
	}
	n, err := f.out.Write(buf)
	if err == nil {
		err = f.out.sync()
	}
	switch {
	case err == nil:
		f.chain, f.rest, f.torn = chain, nil, nil
		f.head.Store(&Head{chain.Head.Seq, chain.Head.Hash})
	case n > 0 && f.out.undo() != nil:
		f.chain, f.rest, f.torn = chain, append([]byte(nil), buf[n:]...), nil
	}
	if f.buf = buf; cap(buf) > 256<<10 {
		f.buf = nil
	}
	return heads, err
}

// wrap names the sink, once, and not the path again.
func (f *File) wrap(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return fmt.Errorf("%s: %w", f.name, err)
}

// stream is standard output: what was written stays written.
type stream struct{ w io.Writer }

func (s stream) begin(bool) (bool, error)    { return false, nil }
func (s stream) Write(b []byte) (int, error) { return s.w.Write(b) }
func (s stream) sync() error                 { return nil }
func (s stream) undo() error                 { return errors.ErrUnsupported }
func (s stream) Close() error                { return nil }
