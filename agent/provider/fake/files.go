package fake

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxFiles bounds how many files, and uploads under way, a Server remembers.
const maxFiles = 256

// file is an uploaded file: its size and hash, never its content.
type file struct {
	id, name, purpose, mime string
	size                    int64
	sum                     string // hex SHA-256
	at                      time.Time
}

// upload is a resumable upload under way.
type upload struct {
	file
	hash hash.Hash
	busy bool
}

// files remembers both; Server.mu guards it.
type files struct {
	done []file
	open map[string]*upload
	ids  []string // of open, oldest first
}

func (s *Server) keep(f file) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.files.done) == maxFiles {
		s.files.done = slices.Delete(s.files.done, 0, 1)
	}
	s.files.done = append(s.files.done, f)
}

func (s *Server) file(id string) (file, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.files.done, func(f file) bool { return f.id == id })
	if i < 0 {
		return file{}, false
	}
	return s.files.done[i], true
}

func (s *Server) forget(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.files.done)
	s.files.done = slices.DeleteFunc(s.files.done, func(f file) bool { return f.id == id })
	return len(s.files.done) < n
}

func (s *Server) begin(u *upload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files.open == nil {
		s.files.open = map[string]*upload{}
	}
	if len(s.files.ids) == maxFiles {
		delete(s.files.open, s.files.ids[0])
		s.files.ids = s.files.ids[1:]
	}
	s.files.open[u.id] = u
	s.files.ids = append(s.files.ids, u.id)
}

// resume takes an upload for one request at a time.
func (s *Server) resume(id string) *upload {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.files.open[id]
	if u == nil || u.busy {
		return nil
	}
	u.busy = true
	return u
}

func (s *Server) release(u *upload, done bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u.busy = false
	if done {
		delete(s.files.open, u.id)
		s.files.ids = slices.DeleteFunc(s.files.ids, func(id string) bool { return id == u.id })
	}
}

// openaiUpload reads a multipart form as it comes: a file of any size costs no memory.
func (s *Server) openaiUpload(x *exchange) {
	f := file{id: s.id("file-"), at: x.at}
	if err := readForm(x.r, &f); err != nil {
		openaiError(x, http.StatusBadRequest, "invalid_request_error", nil, err.Error())
		return
	}
	s.keep(f)
	x.json(http.StatusOK, f.openai())
}

func readForm(r *http.Request, f *file) error {
	mr, err := r.MultipartReader()
	if err != nil {
		return fmt.Errorf("the body is no multipart form: %w", err)
	}
	for {
		p, err := mr.NextPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("the form broke off: %w", err)
		}
		switch p.FormName() {
		case "purpose":
			b, err := io.ReadAll(io.LimitReader(p, 64))
			if err != nil {
				return err
			}
			f.purpose = string(b)
		case "file":
			h := sha256.New()
			f.name = p.FileName()
			if f.size, err = io.Copy(h, p); err != nil {
				return fmt.Errorf("the file broke off: %w", err)
			}
			f.sum = hex.EncodeToString(h.Sum(nil))
		}
	}
	if f.sum == "" || f.purpose == "" {
		return errors.New("file and purpose are required")
	}
	return nil
}

// openai is OpenAI's description of a file; sha256 is ours, for tests.
func (f file) openai() obj {
	return obj{
		"id": f.id, "object": "file", "bytes": f.size, "created_at": f.at.Unix(), "expires_at": nil,
		"filename": f.name, "purpose": f.purpose, "status": "processed", "status_details": nil, "sha256": f.sum,
	}
}

func (s *Server) openaiFile(x *exchange, id string) {
	f, ok := s.file(id)
	switch {
	case !ok:
		openaiError(x, http.StatusNotFound, "invalid_request_error", nil, "there is no such file")
	case x.r.Method == http.MethodDelete:
		s.forget(id)
		x.json(http.StatusOK, obj{"id": id, "object": "file", "deleted": true})
	default:
		x.json(http.StatusOK, f.openai())
	}
}

// geminiUpload is Google's resumable protocol: a start, whose answer names an
// absolute URL, then pieces to that URL, the last of them finalizing.
func (s *Server) geminiUpload(x *exchange) {
	command := x.r.Header.Get("X-Goog-Upload-Command")
	id := x.r.URL.Query().Get("upload_id")
	if id == "" {
		s.geminiStart(x, command)
		return
	}
	u := s.resume(id)
	if u == nil {
		geminiError(x, http.StatusNotFound, "NOT_FOUND", "there is no such upload, or it is busy")
		return
	}
	done := false
	defer func() { s.release(u, done) }()
	x.Header().Set("X-Goog-Upload-Status", "active")
	if command == "query" {
		x.Header().Set("X-Goog-Upload-Size-Received", strconv.FormatInt(u.size, 10))
		x.json(http.StatusOK, obj{})
		return
	}
	if !strings.Contains(command, "upload") && command != "finalize" {
		geminiError(x, http.StatusBadRequest, "INVALID_ARGUMENT", "X-Goog-Upload-Command is not one of upload, finalize and query")
		return
	}
	if off := x.r.Header.Get("X-Goog-Upload-Offset"); off != strconv.FormatInt(u.size, 10) {
		geminiError(x, http.StatusBadRequest, "INVALID_ARGUMENT", fmt.Sprintf("X-Goog-Upload-Offset must be %d", u.size))
		return
	}
	n, err := io.Copy(u.hash, x.r.Body)
	u.size += n
	if err != nil {
		geminiError(x, http.StatusBadRequest, "INVALID_ARGUMENT", "the body broke off")
		return
	}
	if !strings.Contains(command, "finalize") {
		x.json(http.StatusOK, obj{})
		return
	}
	done = true
	u.sum = hex.EncodeToString(u.hash.Sum(nil))
	s.keep(u.file)
	x.Header().Set("X-Goog-Upload-Status", "final")
	x.json(http.StatusOK, obj{"file": u.gemini(x.r.Host)})
}

func (s *Server) geminiStart(x *exchange, command string) {
	if x.r.Header.Get("X-Goog-Upload-Protocol") != "resumable" || command != "start" {
		geminiError(x, http.StatusBadRequest, "INVALID_ARGUMENT", "begin with X-Goog-Upload-Protocol: resumable and X-Goog-Upload-Command: start")
		return
	}
	var q struct {
		File struct {
			DisplayName string `json:"displayName"`
			MimeType    string `json:"mimeType"`
		} `json:"file"`
	}
	if x.r.ContentLength != 0 {
		if err := x.decode(&q); err != nil {
			geminiError(x, http.StatusBadRequest, "INVALID_ARGUMENT", err.Error())
			return
		}
	}
	kind := x.r.Header.Get("X-Goog-Upload-Header-Content-Type")
	if kind == "" {
		kind = q.File.MimeType
	}
	if t, _, err := mime.ParseMediaType(kind); err == nil {
		kind = t
	}
	u := &upload{file: file{id: s.id("f"), name: q.File.DisplayName, mime: kind, at: x.at}, hash: sha256.New()}
	s.begin(u)
	h := x.Header()
	h.Set("X-Goog-Upload-Url", "https://"+x.r.Host+x.r.URL.EscapedPath()+"?upload_id="+u.id+"&upload_protocol=resumable")
	h.Set("X-Goog-Upload-Status", "active")
	h.Set("X-Goog-Upload-Chunk-Granularity", "8388608")
	x.json(http.StatusOK, obj{})
}

// gemini is Google's description of a file.
func (f file) gemini(host string) obj {
	at := f.at.UTC().Format(time.RFC3339Nano)
	return obj{
		"name": "files/" + f.id, "displayName": f.name, "mimeType": f.mime, "sizeBytes": strconv.FormatInt(f.size, 10),
		"createTime": at, "updateTime": at, "expirationTime": f.at.Add(48 * time.Hour).UTC().Format(time.RFC3339Nano),
		"sha256Hash": f.sum, "uri": "https://" + host + "/v1beta/files/" + f.id, "state": "ACTIVE", "source": "UPLOADED",
	}
}
