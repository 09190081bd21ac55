package fake

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"
)

// recorder remembers the status, and may keep the answer back.
type recorder struct {
	http.ResponseWriter
	status int
	lost   bool
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
		if !w.lost {
			w.ResponseWriter.WriteHeader(status)
		}
	}
}

func (w *recorder) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.lost {
		return len(b), nil
	}
	return w.ResponseWriter.Write(b)
}

// ServeHTTP answers as the vendor would.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	s.active.Add(1)
	f := s.failure(r)
	at := len(s.requests)
	s.requests = append(s.requests, Request{Time: time.Now(), Method: r.Method, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery})
	s.mu.Unlock()
	defer s.active.Done()
	x := &recorder{ResponseWriter: w, lost: f.Lose}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !x.lost {
			s.requests[at].Status = x.status
		}
	}()
	if s.o.Intercept != nil && s.o.Intercept(x, r) {
		return
	}
	// A server notices that a client left only once the request's body was read.
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if f.Delay > 0 && !s.pause(r, f.Delay) {
		panic(http.ErrAbortHandler) // else an empty success would be sent
	}
	for name, values := range f.Header {
		w.Header()[http.CanonicalHeaderKey(name)] = values
	}
	switch {
	case f.Body != "":
		w.Header().Set("Content-Type", "application/json")
		if f.Status == 0 {
			f.Status = http.StatusOK
		}
		x.WriteHeader(f.Status)
		io.WriteString(x, f.Body)
	case f.Status != 0:
		s.vendor.refuse(x, r, f.Status, f.Code, "made to fail")
	default:
		s.vendor.serve(s, x, r)
	}
	if f.Lose {
		panic(http.ErrAbortHandler)
	}
}

// failure takes the first one that is for the request; the caller holds mu.
func (s *Server) failure(r *http.Request) Failure {
	for i, f := range s.failures {
		if (f.Method == "" || f.Method == r.Method) && strings.Contains(r.URL.Path, f.Path) {
			s.failures = append(s.failures[:i:i], s.failures[i+1:]...)
			return f
		}
	}
	return Failure{}
}

// pause reports whether the time passed before the client left or the Server closed.
func (s *Server) pause(r *http.Request, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.Context().Done():
	case <-s.done:
	}
	return false
}

// reply answers with JSON.
func reply(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // maps of text and numbers have none
		status, b = http.StatusInternalServerError, []byte("{}")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(b)
}

// input reads a JSON object of texts; other members are left out.
func input(r *http.Request) map[string]string {
	var all map[string]any
	out := map[string]string{}
	if json.NewDecoder(r.Body).Decode(&all) != nil {
		return out
	}
	for name, v := range all {
		if text, ok := v.(string); ok {
			out[name] = text
		}
	}
	return out
}

// bearer is the credential that a request carries.
func bearer(r *http.Request) string {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return token
}
