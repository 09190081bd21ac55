package proxy

import (
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Lines takes the log lines of requests that went well: they hold names of the
// configuration, constants and numbers only, so they need no scrubbing, and
// there is one for every request. Whatever else is logged goes through Logger.
// A line looks as slog's handlers would have made it.
type Lines struct {
	// Write takes one line. It may be called concurrently and keeps nothing of it.
	Write func(line []byte)
	// Text is slog.TextHandler's form; else slog.JSONHandler's.
	Text bool
}

var linePool = sync.Pool{New: func() any { b := make([]byte, 0, 512); return &b }}

// line writes the exchange's line, where it holds nothing of a client's or a provider's own.
func (x *exchange) line(now time.Time) bool {
	method := knownMethod(x.req.Method)
	if x.s.Lines == nil || x.err != nil || method == "" {
		return false
	}
	buf := linePool.Get().(*[]byte)
	l := line{(*buf)[:0], x.s.Lines.Text}
	l.begin(now)
	l.word("via", x.via)
	l.word("provider", x.name())
	l.word("method", method)
	l.number("status", int64(x.status))
	l.took(now.Sub(x.start))
	if x.version > 0 {
		l.number("key_version", int64(x.version))
	}
	if x.retried {
		l.value("retried", "true")
	}
	if x.masked > 0 {
		l.number("masked", int64(x.masked))
	}
	if x.code != "" {
		l.word("code", x.code)
	}
	*buf = l.end()
	x.s.Lines.Write(*buf)
	linePool.Put(buf)
	return true
}

// knownMethod is a method that nobody made up, as a constant; "" for any other.
func knownMethod(m []byte) string {
	for _, known := range []string{http.MethodPost, http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodOptions} {
		if view(m) == known {
			return known
		}
	}
	return ""
}

// line is a log line that is being written.
type line struct {
	b    []byte
	text bool
}

func (l *line) begin(now time.Time) {
	if l.text {
		l.b = append(l.b, "time="...)
		l.b = now.AppendFormat(l.b, "2006-01-02T15:04:05.000Z07:00")
		l.b = append(l.b, " level=INFO msg=request"...)
		return
	}
	l.b = append(l.b, `{"time":"`...)
	l.b = now.AppendFormat(l.b, time.RFC3339Nano)
	l.b = append(l.b, `","level":"INFO","msg":"request"`...)
}

// value adds what needs no quotes.
func (l *line) value(name, v string) {
	l.name(name)
	l.b = append(l.b, v...)
}

// word adds a name or a constant: letters, digits, '-', '_' and '.' only.
func (l *line) word(name, v string) {
	l.name(name)
	if quoted := !l.text || v == ""; quoted {
		l.b = append(append(append(l.b, '"'), v...), '"')
		return
	}
	l.b = append(l.b, v...)
}

func (l *line) number(name string, n int64) {
	l.name(name)
	l.b = strconv.AppendInt(l.b, n, 10)
}

func (l *line) took(d time.Duration) {
	if l.text {
		l.value("took", d.String())
		return
	}
	l.number("took", int64(d))
}

func (l *line) name(name string) {
	if l.text {
		l.b = append(append(append(l.b, ' '), name...), '=')
		return
	}
	l.b = append(append(append(l.b, `,"`...), name...), `":`...)
}

func (l *line) end() []byte {
	if !l.text {
		l.b = append(l.b, '}')
	}
	return append(l.b, '\n')
}
