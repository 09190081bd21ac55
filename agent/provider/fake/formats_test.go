package fake

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

const text = "A postern is the small side gate of"

func (c *client) openai(method, path, body string) (*http.Response, string) {
	c.t.Helper()
	return c.do(method, path, body, "Authorization: Bearer "+good, "Content-Type: application/json")
}

func TestOpenAIChat(t *testing.T) {
	c := start(t, Options{Kind: "openai"})
	resp, body := c.openai("POST", "/v1/chat/completions", `{"model":"gpt-5","messages":[{"role":"user","content":"hi"}]}`)
	if get(t, body, "choices.0.message.content") != text || get(t, body, "choices.0.finish_reason") != "stop" || get(t, body, "object") != "chat.completion" || get(t, body, "usage.completion_tokens") != 8. {
		t.Errorf("%s", body)
	}
	if resp.Header.Get("X-Request-Id") == "" {
		t.Error("no request id")
	}
	_, body = c.openai("POST", "/v1/chat/completions", `{"model":"gpt-5","max_completion_tokens":2,"messages":[{}]}`)
	if get(t, body, "choices.0.message.content") != "A postern " || get(t, body, "choices.0.finish_reason") != "length" {
		t.Errorf("%s", body)
	}

	stream := func(options string) (string, []string) {
		resp, body := c.openai("POST", "/v1/chat/completions", `{"model":"gpt-5","stream":true`+options+`,"messages":[{}]}`)
		if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
			t.Error(resp.Header)
		}
		_, data := events(t, body)
		if data[len(data)-1] != "[DONE]" {
			t.Errorf("ends in %s", data[len(data)-1])
		}
		var all string
		for _, d := range data[:len(data)-1] {
			if len(get(t, d, "choices").([]any)) > 0 {
				s, _ := get(t, d, "choices.0.delta.content").(string)
				all += s
			}
		}
		return all, data
	}
	if all, data := stream(""); all != text || len(data) != 11 || strings.Contains(strings.Join(data, ""), "usage") {
		t.Errorf("%q in %d events: %v", all, len(data), data)
	}
	all, data := stream(`,"stream_options":{"include_usage":true}`)
	if usage := data[len(data)-2]; all != text || len(data) != 12 || get(t, usage, "usage.total_tokens") != 9. || len(get(t, usage, "choices").([]any)) != 0 {
		t.Errorf("%q in %d events, usage %s", all, len(data), data[len(data)-2])
	}
	if get(t, data[0], "usage") != nil || get(t, data[10-1], "choices.0.finish_reason") != "stop" {
		t.Errorf("%s", data)
	}
}

func TestOpenAIResponses(t *testing.T) {
	c := start(t, Options{Kind: "openai"})
	_, body := c.openai("POST", "/v1/responses", `{"model":"gpt-5","input":"hi"}`)
	if get(t, body, "output.0.content.0.text") != text || get(t, body, "status") != "completed" || get(t, body, "usage.output_tokens_details.reasoning_tokens") != 0. {
		t.Errorf("%s", body)
	}
	_, body = c.openai("POST", "/v1/responses", `{"model":"gpt-5","input":"hi","stream":true,"max_output_tokens":2}`)
	names, data := events(t, body)
	want := []string{
		"response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
		"response.output_text.delta", "response.output_text.delta", "response.output_text.done", "response.content_part.done",
		"response.output_item.done", "response.incomplete",
	}
	if !slices.Equal(names, want) {
		t.Fatalf("events %q", names)
	}
	for i, d := range data {
		if get(t, d, "type") != names[i] || get(t, d, "sequence_number") != float64(i) {
			t.Errorf("event %d: %s", i, d)
		}
	}
	if last := data[len(data)-1]; get(t, last, "response.incomplete_details.reason") != "max_output_tokens" || get(t, last, "response.output.0.content.0.text") != "A postern " {
		t.Errorf("%s", last)
	}
}

func TestOpenAIEmbeddings(t *testing.T) {
	c := start(t, Options{Kind: "openai"})
	_, floats := c.openai("POST", "/v1/embeddings", `{"model":"m","input":["a","b"],"dimensions":4}`)
	_, packed := c.openai("POST", "/v1/embeddings", `{"model":"m","input":["a","b"],"dimensions":4,"encoding_format":"base64"}`)
	want := get(t, floats, "data.0.embedding").([]any)
	b, err := base64.StdEncoding.DecodeString(get(t, packed, "data.0.embedding").(string))
	if err != nil || len(want) != 4 || len(b) != 16 {
		t.Fatalf("%v %s %s", err, floats, packed)
	}
	for i := range want {
		if f := math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:])); float32(want[i].(float64)) != f {
			t.Errorf("%d: %v and %v", i, want[i], f)
		}
	}
	if slices.Equal(want, get(t, floats, "data.1.embedding").([]any)) {
		t.Error("two texts have one embedding")
	}
	for _, one := range []string{`"a"`, `[1,2,3]`} {
		if _, body := c.openai("POST", "/v1/embeddings", `{"model":"m","input":`+one+`}`); len(get(t, body, "data").([]any)) != 1 || len(get(t, body, "data.0.embedding").([]any)) != 16 {
			t.Errorf("%s: %s", one, body)
		}
	}
}

func TestOpenAIFiles(t *testing.T) {
	c := start(t, Options{Kind: "openai"})
	content := bytes.Repeat([]byte("postern"), 1<<20)
	pr, pw := io.Pipe()
	form := multipart.NewWriter(pw)
	go func() {
		form.WriteField("purpose", "assistants")
		w, err := form.CreateFormFile("file", "a.bin")
		if err == nil {
			_, err = w.Write(content)
		}
		if err == nil {
			err = form.Close()
		}
		pw.CloseWithError(err)
	}()
	req, err := http.NewRequest("POST", c.s.URL()+"/v1/files", pr)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+good)
	req.Header.Set("Content-Type", form.FormDataContentType())
	resp, err := c.c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	if got := string(b); get(t, got, "bytes") != float64(len(content)) || get(t, got, "sha256") != hex.EncodeToString(sum[:]) || get(t, got, "filename") != "a.bin" {
		t.Errorf("%s", b)
	}
	id := get(t, string(b), "id").(string)
	if _, body := c.openai("GET", "/v1/files/"+id, ""); get(t, body, "purpose") != "assistants" {
		t.Errorf("%s", body)
	}
	if _, body := c.openai("DELETE", "/v1/files/"+id, ""); get(t, body, "deleted") != true {
		t.Errorf("%s", body)
	}
	if resp, _ := c.openai("GET", "/v1/files/"+id, ""); resp.StatusCode != 404 {
		t.Error(resp.Status)
	}
	for range maxFiles + 5 {
		c.s.keep(file{id: c.s.id("x")})
		c.s.begin(&upload{file: file{id: c.s.id("u")}})
	}
	if len(c.s.files.done) != maxFiles || len(c.s.files.open) != maxFiles || len(c.s.files.ids) != maxFiles {
		t.Errorf("%d files, %d uploads are remembered", len(c.s.files.done), len(c.s.files.open))
	}
}

func TestOpenAIModelsAndMistakes(t *testing.T) {
	for kind, model := range map[string]string{"openai": "gpt-5", "qubittron": "qubittron-1"} {
		c := start(t, Options{Kind: kind})
		if _, body := c.openai("GET", "/v1/models", ""); !strings.Contains(body, model) || get(t, body, "object") != "list" {
			t.Errorf("%s", body)
		}
		if _, body := c.openai("GET", "/v1/models/"+model, ""); get(t, body, "id") != model {
			t.Errorf("%s", body)
		}
		for _, row := range []struct {
			method, path, body string
			status             int
		}{
			{"GET", "/v1/models/none", "", 404}, {"GET", "/v2/x", "", 404}, {"GET", "/v1/chat/completions", "", 404}, {"GET", "/v1/files/none", "", 404},
			{"POST", "/v1/chat/completions", "{", 400}, {"POST", "/v1/chat/completions", "{}", 400}, {"POST", "/v1/responses", "[]", 400}, {"POST", "/v1/responses", "{}", 400},
			{"POST", "/v1/embeddings", "", 400}, {"POST", "/v1/embeddings", "{}", 400}, {"POST", "/v1/files", "{}", 400},
		} {
			resp, body := c.openai(row.method, row.path, row.body)
			if m, _ := get(t, body, "error.message").(string); resp.StatusCode != row.status || m == "" {
				t.Errorf("%s %s: %d %s", row.method, row.path, resp.StatusCode, body)
			}
		}
		if got := c.s.Counts(good); got.Unauthorized != 0 {
			t.Errorf("a bad request is no bad key: %+v", got)
		}
	}
}

func TestAnthropic(t *testing.T) {
	c := start(t, Options{Kind: "anthropic", Words: 3})
	do := func(method, path, body string) (*http.Response, string) {
		return c.do(method, path, body, "x-api-key: "+good, "anthropic-version: 2023-06-01")
	}
	_, body := do("POST", "/v1/messages", `{"model":"claude","max_tokens":9,"messages":[{}]}`)
	if get(t, body, "content.0.text") != "A postern is" || get(t, body, "stop_reason") != "end_turn" || get(t, body, "usage.output_tokens") != 3. {
		t.Errorf("%s", body)
	}
	resp, body := do("POST", "/v1/messages", `{"model":"claude","max_tokens":2,"stream":true,"messages":[{}]}`)
	names, data := events(t, body)
	if want := []string{"message_start", "content_block_start", "ping", "content_block_delta", "content_block_delta", "content_block_stop", "message_delta", "message_stop"}; !slices.Equal(names, want) {
		t.Errorf("events %q", names)
	}
	if get(t, data[0], "message.usage.input_tokens") != 1. || get(t, data[6], "delta.stop_reason") != "max_tokens" || get(t, data[6], "usage.output_tokens") != 2. || get(t, data[4], "delta.text") != "postern " {
		t.Errorf("%q", data)
	}
	if resp.Header.Get("Request-Id") == "" {
		t.Error("no request id")
	}
	if _, body := do("GET", "/v1/models?limit=1", ""); get(t, body, "data.0.type") != "model" {
		t.Errorf("%s", body)
	}
	if _, body := do("POST", "/v1/messages/count_tokens", `{"messages":[{"content":"hello"}]}`); get(t, body, "input_tokens") != 5. {
		t.Errorf("%s", body)
	}
	for path, status := range map[string]int{"/v1/messages": 400, "/v1/messages/count_tokens": 400, "/v1/none": 404} {
		resp, body := do("POST", path, "{")
		if resp.StatusCode != status || get(t, body, "type") != "error" || get(t, body, "error.message") == "" {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	if resp, body := do("POST", "/v1/messages", `{"model":"m"}`); resp.StatusCode != 400 {
		t.Errorf("%s", body)
	}
	if resp, body := c.do("GET", "/v1/models", "", "x-api-key: "+good); resp.StatusCode != 400 || !strings.Contains(body, "anthropic-version") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func TestGemini(t *testing.T) {
	c := start(t, Options{Kind: "gemini", Words: 3})
	do := func(method, path, body string) (*http.Response, string) {
		return c.do(method, path, body, "x-goog-api-key: "+good)
	}
	_, body := do("POST", "/v1beta/models/g:generateContent", `{"contents":[{}]}`)
	if get(t, body, "candidates.0.content.parts.0.text") != "A postern is" || get(t, body, "candidates.0.finishReason") != "STOP" || get(t, body, "usageMetadata.totalTokenCount") != 4. {
		t.Errorf("%s", body)
	}
	_, body = do("POST", "/v1beta/models/g:streamGenerateContent?alt=sse", `{"contents":[{}],"generationConfig":{"maxOutputTokens":2}}`)
	names, data := events(t, body)
	if len(data) != 2 || names[0] != "" || get(t, data[1], "candidates.0.finishReason") != "MAX_TOKENS" || get(t, data[0], "candidates.0.content.parts.0.text") != "A " {
		t.Errorf("%q", data)
	}
	_, body = do("POST", "/v1/models/g:streamGenerateContent", `{"contents":[{}]}`)
	if get(t, body, "2.candidates.0.finishReason") != "STOP" {
		t.Errorf("%s", body)
	}
	if _, body = do("POST", "/v1beta/models/e:embedContent", `{"content":{},"outputDimensionality":3}`); len(get(t, body, "embedding.values").([]any)) != 3 {
		t.Errorf("%s", body)
	}
	if _, body = do("POST", "/v1beta/models/e:batchEmbedContents", `{"requests":[{"content":{"a":1}},{"content":{}}]}`); len(get(t, body, "embeddings").([]any)) != 2 {
		t.Errorf("%s", body)
	}
	if _, body = do("POST", "/v1beta/models/e:countTokens", `{"contents":[{}]}`); get(t, body, "totalTokens") != 1. {
		t.Errorf("%s", body)
	}
	if _, body = do("GET", "/v1beta/models", ""); get(t, body, "models.0.name") != "models/gemini-2.5-flash" {
		t.Errorf("%s", body)
	}
	if _, body = do("GET", "/v1beta/models/g", ""); get(t, body, "name") != "models/g" {
		t.Errorf("%s", body)
	}
	// The key in the query is taken, too.
	if resp, body := c.do("GET", "/v1beta/models?key="+good, ""); resp.StatusCode != 200 {
		t.Errorf("%s", body)
	}
	for path, status := range map[string]int{
		"/v9/models/g:generateContent": 404, "/v1beta/models/g:none": 404, "/v1beta/none": 404, "/v1beta/models/g:countTokens": 400,
	} {
		body := "{}"
		if status == 400 {
			body = "{"
		}
		resp, got := do("POST", path, body)
		if resp.StatusCode != status || get(t, got, "error.code") != float64(status) {
			t.Errorf("%s: %d %s", path, resp.StatusCode, got)
		}
	}
	for _, body := range []string{`{}`, `{"contents":[{}],"outputDimensionality":-1}`} {
		if resp, got := do("POST", "/v1beta/models/g:generateContent", body); resp.StatusCode != 400 {
			t.Errorf("%s: %s", body, got)
		}
	}
}

func TestGeminiResumableUpload(t *testing.T) {
	c := start(t, Options{Kind: "gemini", Hosts: []string{"generativelanguage.googleapis.com"}})
	do := func(method, path, body string, headers ...string) (*http.Response, string) {
		return c.do(method, path, body, append(headers, "x-goog-api-key: "+good)...)
	}
	const base = "https://generativelanguage.googleapis.com"
	resp, _ := do("POST", base+"/upload/v1beta/files", `{"file":{"displayName":"mine"}}`,
		"X-Goog-Upload-Protocol: resumable", "X-Goog-Upload-Command: start", "X-Goog-Upload-Header-Content-Type: text/plain")
	at := resp.Header.Get("X-Goog-Upload-URL")
	if !strings.HasPrefix(at, base+"/upload/v1beta/files?upload_id=") || resp.Header.Get("X-Goog-Upload-Status") != "active" {
		t.Fatalf("%v", resp.Header)
	}
	if resp, _ = do("POST", at, "hello ", "X-Goog-Upload-Command: upload", "X-Goog-Upload-Offset: 0"); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
	if resp, _ = do("POST", at, "again", "X-Goog-Upload-Command: upload", "X-Goog-Upload-Offset: 0"); resp.StatusCode != 400 {
		t.Error("a piece was taken twice")
	}
	if resp, _ = do("POST", at, "", "X-Goog-Upload-Command: query"); resp.Header.Get("X-Goog-Upload-Size-Received") != "6" {
		t.Errorf("%v", resp.Header)
	}
	if resp, _ = do("POST", at, "", "X-Goog-Upload-Command: cancel"); resp.StatusCode != 400 {
		t.Error(resp.Status)
	}
	resp, body := do("POST", at, "world", "X-Goog-Upload-Command: upload, finalize", "X-Goog-Upload-Offset: 6")
	sum := sha256.Sum256([]byte("hello world"))
	if resp.Header.Get("X-Goog-Upload-Status") != "final" || get(t, body, "file.sizeBytes") != "11" || get(t, body, "file.sha256Hash") != hex.EncodeToString(sum[:]) ||
		get(t, body, "file.displayName") != "mine" || get(t, body, "file.mimeType") != "text/plain" {
		t.Errorf("%v %s", resp.Header, body)
	}
	name := get(t, body, "file.name").(string)
	if resp, _ = do("POST", at, "", "X-Goog-Upload-Command: finalize", "X-Goog-Upload-Offset: 11"); resp.StatusCode != 404 {
		t.Error("an upload ended twice")
	}
	if _, body = do("GET", "/v1beta/"+name, ""); get(t, body, "state") != "ACTIVE" {
		t.Errorf("%s", body)
	}
	if resp, _ = do("DELETE", "/v1beta/"+name, ""); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
	if resp, _ = do("GET", "/v1beta/"+name, ""); resp.StatusCode != 404 {
		t.Error(resp.Status)
	}
	if resp, _ = do("POST", "/upload/v1beta/files", ""); resp.StatusCode != 400 {
		t.Error(resp.Status)
	}
	if resp, _ = c.do("POST", at, "", "X-Goog-Upload-Command: query"); resp.StatusCode != 403 {
		t.Error("an upload went on without a key")
	}
}

func TestEcho(t *testing.T) {
	c := start(t, Options{Kind: "echo"})
	const header = "Authorization: Bearer " + good
	do := func(query string) (*http.Response, string) {
		return c.do("POST", "/any/path?key="+bad+"&"+query, `say "`+good+`"`, header, "X-Mine: a/b")
	}
	resp, body := do("status=401")
	if resp.StatusCode != 401 || get(t, body, "headers.Authorization.0") != "Bearer "+good || get(t, body, "body") != `say "`+good+`"` ||
		get(t, body, "path") != "/any/path" || !strings.Contains(get(t, body, "query").(string), bad) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if r := last(c.s); r.Key != good || r.Status != 401 {
		t.Errorf("%+v", r)
	}
	if _, body = do("in=raw"); body != `say "`+good+`"` {
		t.Errorf("%q", body)
	}
	resp, _ = do("in=header")
	for _, h := range []string{"X-Echo-Authorization", "X-Echo-Key", "Set-Cookie", "Location", "Link"} {
		if !strings.Contains(strings.Join(resp.Header.Values(h), " "), good) && h != "X-Echo-Key" && h != "Location" {
			t.Errorf("%s: %q", h, resp.Header.Values(h))
		}
	}
	if resp.Header.Get("X-Echo-Key") != bad || !strings.Contains(resp.Header.Get("Location"), bad) {
		t.Errorf("%v", resp.Header)
	}
	_, body = do("in=sse&size=5")
	_, data := events(t, body)
	if all := strings.Join(data, ""); len(data) < 10 || len(data[0]) != 5 || get(t, all, "headers.X-Mine.0") != "a/b" {
		t.Errorf("%q", data)
	}
	if _, body = do("in=chunks&size=3"); get(t, body, "body") != `say "`+good+`"` {
		t.Errorf("%q", body)
	}
	_, body = do("as=base64")
	for _, line := range strings.Fields(body) {
		if b, err := base64.StdEncoding.DecodeString(line); err != nil || !bytes.Contains(b, []byte(good)) {
			t.Errorf("%q %v", line, err)
		}
	}
	if _, body = do("as=percent"); !strings.Contains(body, url.QueryEscape(`say \"`+good)) {
		t.Errorf("%q", body)
	}
	if _, body = do("as=json"); !strings.Contains(body, `\"Bearer `+good+`\"`) {
		t.Errorf("%q", body)
	}
	resp, body = c.do("POST", "/?as=gzip", "", header, "Accept-Encoding: identity")
	z, err := gzip.NewReader(strings.NewReader(body))
	if err != nil || resp.Header.Get("Content-Encoding") != "gzip" {
		t.Fatal(err, resp.Header)
	}
	if b, err := io.ReadAll(z); err != nil || !bytes.Contains(b, []byte(good)) {
		t.Errorf("%s %v", b, err)
	}
	resp, body = do("in=trailer")
	if resp.Trailer.Get("X-Echo-Authorization") != "Bearer "+good {
		t.Errorf("%v after %q", resp.Trailer, body)
	}
}

// What comes in goes out before all has come in, on both versions of HTTP.
func TestEchoRawIsFullDuplex(t *testing.T) {
	c := start(t, Options{Kind: "echo"})
	h1 := c.s.Transport()
	h1.ForceAttemptHTTP2 = false
	defer h1.CloseIdleConnections()
	for name, rt := range map[string]http.RoundTripper{"HTTP/2.0": c.c.Transport, "HTTP/1.1": h1} {
		pr, pw := io.Pipe()
		req, err := http.NewRequest("POST", c.s.URL()+"/?in=raw", pr)
		if err != nil {
			t.Fatal(err)
		}
		go fmt.Fprint(pw, "ping")
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatal(name, err)
		}
		got := make([]byte, 4)
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != "ping" || resp.Proto != name {
			t.Errorf("%s: %q %v", resp.Proto, got, err)
		}
		pw.Close()
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}
