package agent

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// writes remembers each write by itself, and fails where it is told to.
type writes struct {
	mu   sync.Mutex
	all  []string
	fail bool
}

func (w *writes) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, string(p))
	if w.fail {
		return 0, errAway
	}
	return len(p), nil
}

func (w *writes) are(t *testing.T, want ...string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.all, want) {
		t.Errorf("written %q, want %q", w.all, want)
	}
}

func TestLinesAreWrittenTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &writes{}
		b := newBatchWriter(out)
		b.Write([]byte("one\n"))
		time.Sleep(logDelay - time.Millisecond)
		b.Write([]byte("two\n"))
		out.are(t)
		time.Sleep(time.Millisecond)
		synctest.Wait()
		out.are(t, "one\ntwo\n") // fifty milliseconds after the first
		time.Sleep(time.Hour)
		out.are(t, "one\ntwo\n") // and nothing where there is nothing
		b.Write([]byte("three\n"))
		time.Sleep(logDelay)
		synctest.Wait()
		out.are(t, "one\ntwo\n", "three\n")
	})
}

func TestMuchIsWrittenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &writes{}
		b := newBatchWriter(out)
		half := strings.Repeat("x", logBatch/2)
		b.Write([]byte(half))
		out.are(t)
		b.Write([]byte(half))
		out.are(t, half+half)
		time.Sleep(time.Hour)
		synctest.Wait()
		out.are(t, half+half)
	})
}

func TestFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &writes{}
		b := newBatchWriter(out)
		b.Flush()
		out.are(t)
		b.Write([]byte("one\n"))
		b.Flush()
		b.Flush()
		out.are(t, "one\n")
	})
}

// A log that cannot be written stops nobody, and what was lost does not come twice.
func TestALogThatCannotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &writes{fail: true}
		b := newBatchWriter(out)
		for range 3 {
			if n, err := b.Write([]byte("x\n")); n != 2 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
			b.Flush()
		}
		out.are(t, "x\n", "x\n", "x\n")
	})
}

func TestLinesStayWhole(t *testing.T) {
	out := &writes{}
	b := newBatchWriter(out)
	line := strings.Repeat("y", 999) + "\n"
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				b.Write([]byte(line))
			}
		})
	}
	wg.Wait()
	b.Flush()
	if all := strings.Join(out.all, ""); all != strings.Repeat(line, 800) {
		t.Errorf("%d bytes of 800 lines", len(all))
	}
	if n := len(out.all); n > 800*len(line)/logBatch+1 {
		t.Errorf("%d writes", n)
	}
}

// A warning is seen at once, with what came before it; the rest may wait.
func TestWarningsDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &writes{}
		b := newBatchWriter(out)
		plain := slog.NewTextHandler(b, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}})
		log := slog.New(urgent{plain, b.Flush})
		log.Info("request")
		out.are(t)
		log.With("key", "openai").WithGroup("g").Warn("trouble", "n", 1)
		out.are(t, "level=INFO msg=request\nlevel=WARN msg=trouble key=openai g.n=1\n")
		log.Error("worse")
		out.are(t, out.all[0], "level=ERROR msg=worse\n")
		b.Flush()
	})
}

// Nothing that was logged before Stop is missing after it.
func TestStopFlushesTheLog(t *testing.T) {
	h := newHouse(t)
	a := h.start()
	for i := range 10 {
		a.log.Info("line", "n", i)
	}
	a.Stop()
	log := h.log.String()
	for _, want := range []string{`"serving"`, fmt.Sprintf(`"line","n":%d`, 9), `"stopping"`} {
		if !strings.Contains(log, want) {
			t.Errorf("%s is not in the log", want)
		}
	}
}
