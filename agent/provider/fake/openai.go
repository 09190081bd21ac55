package fake

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"hash/fnv"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"
)

// openai speaks OpenAI's formats: models, chat completions, responses,
// embeddings and files.
func (s *Server) openai(x *exchange) {
	x.Header().Set("X-Request-Id", s.id("req_"))
	path := x.r.URL.Path
	if !s.openaiAdmits(x, x.r.Method == http.MethodGet && path == "/v1/models") {
		return
	}
	post := x.r.Method == http.MethodPost
	switch name, isModel := strings.CutPrefix(path, "/v1/models/"); {
	case path == "/v1/models" && !post:
		x.json(http.StatusOK, obj{"object": "list", "data": s.openaiModels()})
	case isModel && !post:
		s.openaiModel(x, name)
	case path == "/v1/chat/completions" && post:
		s.chat(x)
	case path == "/v1/responses" && post:
		s.responses(x)
	case path == "/v1/embeddings" && post:
		s.embeddings(x)
	case path == "/v1/files" && post:
		s.openaiUpload(x)
	case strings.HasPrefix(path, "/v1/files/") && !post:
		s.openaiFile(x, strings.TrimPrefix(path, "/v1/files/"))
	default:
		openaiError(x, http.StatusNotFound, "invalid_request_error", nil, "unknown URL: "+x.r.Method+" "+path)
	}
}

// openaiAdmits judges the key and answers where it is refused.
func (s *Server) openaiAdmits(x *exchange, lists bool) bool {
	key := bearer(x.r)
	st := x.judge(key, lists)
	switch {
	case key == "":
		openaiError(x, http.StatusUnauthorized, "invalid_request_error", nil,
			"no API key was given; send it in an Authorization header with the Bearer scheme")
	case st == Revoked:
		openaiError(x, http.StatusUnauthorized, "invalid_request_error", "invalid_api_key", "Incorrect API key provided: "+mask(key)+".")
	case st == Forbidden:
		openaiError(x, http.StatusForbidden, "invalid_request_error", "missing_scope", "this key may not do this operation: it lacks the scope model.request")
	case st == Limited:
		openaiError(x, http.StatusTooManyRequests, "insufficient_quota", "insufficient_quota", "the current quota is used up; check plan and billing")
	default:
		return true
	}
	return false
}

func openaiError(x *exchange, status int, kind string, code any, message string) {
	x.json(status, obj{"error": obj{"message": message, "type": kind, "param": nil, "code": code}})
}

func (s *Server) modelNames() []string {
	return map[string][]string{
		"openai":    {"gpt-4o-mini", "gpt-5", "text-embedding-3-small"},
		"qubittron": {"qubittron-1", "qubittron-1-mini"},
	}[s.o.Kind]
}

func (s *Server) openaiModels() []obj {
	var out []obj
	for _, name := range s.modelNames() {
		out = append(out, openaiModel(name))
	}
	return out
}

func openaiModel(name string) obj {
	return obj{"id": name, "object": "model", "created": 1715367049, "owned_by": "system"}
}

func (s *Server) openaiModel(x *exchange, name string) {
	if !slices.Contains(s.modelNames(), name) {
		openaiError(x, http.StatusNotFound, "invalid_request_error", "model_not_found", "there is no such model")
		return
	}
	x.json(http.StatusOK, openaiModel(name))
}

type chatRequest struct {
	Model         string            `json:"model"`
	Messages      []json.RawMessage `json:"messages"`
	Stream        bool              `json:"stream"`
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	MaxTokens           int `json:"max_tokens"`
	MaxCompletionTokens int `json:"max_completion_tokens"`
}

func (s *Server) chat(x *exchange) {
	var q chatRequest
	if err := x.decode(&q); err != nil {
		openaiError(x, http.StatusBadRequest, "invalid_request_error", nil, err.Error())
		return
	}
	if q.Model == "" || len(q.Messages) == 0 {
		openaiError(x, http.StatusBadRequest, "invalid_request_error", nil, "model and messages are required")
		return
	}
	words, short := cut(s.words(), max(q.MaxTokens, q.MaxCompletionTokens))
	finish := "stop"
	if short {
		finish = "length"
	}
	in, out := tokens(q.Messages), len(words)
	usage := obj{
		"prompt_tokens": in, "completion_tokens": out, "total_tokens": in + out,
		"prompt_tokens_details":     obj{"cached_tokens": 0, "audio_tokens": 0},
		"completion_tokens_details": obj{"reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
	}
	head := obj{"id": s.id("chatcmpl-"), "created": x.at.Unix(), "model": q.Model, "service_tier": "default", "system_fingerprint": "fp_0000000000"}
	if !q.Stream {
		head["object"] = "chat.completion"
		head["choices"] = []obj{{
			"index": 0, "logprobs": nil, "finish_reason": finish,
			"message": obj{"role": "assistant", "content": strings.Join(words, ""), "refusal": nil, "annotations": []any{}},
		}}
		head["usage"] = usage
		x.json(http.StatusOK, head)
		return
	}
	head["object"] = "chat.completion.chunk"
	if q.StreamOptions.IncludeUsage {
		head["usage"] = nil
	}
	send := func(delta obj, finish any) bool {
		head["choices"] = []obj{{"index": 0, "delta": delta, "logprobs": nil, "finish_reason": finish}}
		return x.event("", head)
	}
	x.stream()
	if !send(obj{"role": "assistant", "content": "", "refusal": nil}, nil) {
		return
	}
	for _, w := range words {
		if !send(obj{"content": w}, nil) {
			return
		}
	}
	if !send(obj{}, finish) {
		return
	}
	if q.StreamOptions.IncludeUsage {
		head["choices"], head["usage"] = []obj{}, usage
		if !x.event("", head) {
			return
		}
	}
	x.raw("", []byte("[DONE]"))
}

// tokens guesses: four bytes of the request's text are one.
func tokens(parts []json.RawMessage) int {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	return n/4 + 1
}

func (s *Server) embeddings(x *exchange) {
	var q struct {
		Model      string          `json:"model"`
		Input      json.RawMessage `json:"input"`
		Format     string          `json:"encoding_format"`
		Dimensions int             `json:"dimensions"`
	}
	if err := x.decode(&q); err != nil {
		openaiError(x, http.StatusBadRequest, "invalid_request_error", nil, err.Error())
		return
	}
	var inputs []json.RawMessage
	if json.Unmarshal(q.Input, &inputs) != nil || len(inputs) > 0 && inputs[0][0] >= '0' && inputs[0][0] <= '9' {
		inputs = []json.RawMessage{q.Input} // one text, or one list of tokens
	}
	if q.Model == "" || len(q.Input) == 0 || q.Dimensions < 0 || q.Dimensions > 4096 {
		openaiError(x, http.StatusBadRequest, "invalid_request_error", nil, "model and input are required, and at most 4096 dimensions")
		return
	}
	data := make([]obj, len(inputs))
	for i, in := range inputs {
		v := vector(in, q.Dimensions)
		data[i] = obj{"object": "embedding", "index": i, "embedding": v}
		if q.Format == "base64" {
			var b []byte
			for _, f := range v {
				b = binary.LittleEndian.AppendUint32(b, math.Float32bits(f))
			}
			data[i]["embedding"] = base64.StdEncoding.EncodeToString(b)
		}
	}
	n := tokens(inputs)
	x.json(http.StatusOK, obj{"object": "list", "model": q.Model, "data": data, "usage": obj{"prompt_tokens": n, "total_tokens": n}})
}

// vector is a text's embedding: the same for the same text, of 16 numbers where n is 0.
func vector(text []byte, n int) []float32 {
	if n <= 0 {
		n = 16
	}
	h := fnv.New32a()
	h.Write(text)
	seed := h.Sum32()
	out := make([]float32, n)
	for i := range out {
		seed = seed*1664525 + 1013904223
		out[i] = float32(seed>>8)/(1<<23) - 1
	}
	return out
}

// responses is the Responses API, with the events that SDKs build an answer from.
func (s *Server) responses(x *exchange) {
	var q struct {
		Model     string          `json:"model"`
		Input     json.RawMessage `json:"input"`
		Stream    bool            `json:"stream"`
		MaxTokens int             `json:"max_output_tokens"`
	}
	if err := x.decode(&q); err != nil {
		openaiError(x, http.StatusBadRequest, "invalid_request_error", nil, err.Error())
		return
	}
	if q.Model == "" || len(q.Input) == 0 {
		openaiError(x, http.StatusBadRequest, "invalid_request_error", nil, "model and input are required")
		return
	}
	words, short := cut(s.words(), q.MaxTokens)
	r := response{id: s.id("resp_"), item: s.id("msg_"), model: q.Model, at: x.at, in: len(q.Input)/4 + 1, words: words, short: short}
	if !q.Stream {
		x.json(http.StatusOK, r.object(true))
		return
	}
	x.stream()
	r.stream(x)
}

type response struct {
	id, item, model string
	at              time.Time
	in              int // tokens
	words           []string
	short           bool
}

func (r *response) text() string { return strings.Join(r.words, "") }

func (r *response) status() string {
	if r.short {
		return "incomplete"
	}
	return "completed"
}

func part(text string) obj {
	return obj{"type": "output_text", "text": text, "annotations": []any{}, "logprobs": []any{}}
}

func (r *response) message(status string, content ...obj) obj {
	if content == nil {
		content = []obj{}
	}
	return obj{"type": "message", "id": r.item, "status": status, "role": "assistant", "content": content}
}

// object is the response as a whole, or as it stands at the beginning of its stream.
func (r *response) object(done bool) obj {
	o := obj{
		"id": r.id, "object": "response", "created_at": r.at.Unix(), "model": r.model, "status": "in_progress", "output": []any{},
		"error": nil, "incomplete_details": nil, "instructions": nil, "max_output_tokens": nil, "metadata": obj{}, "parallel_tool_calls": true,
		"previous_response_id": nil, "reasoning": obj{"effort": nil, "summary": nil}, "service_tier": "default", "store": true, "temperature": 1.0,
		"text": obj{"format": obj{"type": "text"}}, "tool_choice": "auto", "tools": []any{}, "top_p": 1.0, "truncation": "disabled", "usage": nil, "user": nil,
	}
	if !done {
		return o
	}
	out := len(r.words)
	o["status"] = r.status()
	o["output"] = []obj{r.message(r.status(), part(r.text()))}
	o["usage"] = obj{
		"input_tokens": r.in, "input_tokens_details": obj{"cached_tokens": 0},
		"output_tokens": out, "output_tokens_details": obj{"reasoning_tokens": 0}, "total_tokens": r.in + out,
	}
	if r.short {
		o["incomplete_details"] = obj{"reason": "max_output_tokens"}
	}
	return o
}

func (r *response) stream(x *exchange) {
	n := 0
	send := func(kind string, v obj) bool {
		v["type"], v["sequence_number"] = kind, n
		n++
		return x.event(kind, v)
	}
	here := func(v obj) obj {
		v["output_index"] = 0
		return v
	}
	inItem := func(v obj) obj {
		v["item_id"], v["content_index"] = r.item, 0
		return here(v)
	}
	if !send("response.created", obj{"response": r.object(false)}) ||
		!send("response.in_progress", obj{"response": r.object(false)}) ||
		!send("response.output_item.added", here(obj{"item": r.message("in_progress")})) ||
		!send("response.content_part.added", inItem(obj{"part": part("")})) {
		return
	}
	for _, w := range r.words {
		if !send("response.output_text.delta", inItem(obj{"delta": w, "logprobs": []any{}})) {
			return
		}
	}
	_ = send("response.output_text.done", inItem(obj{"text": r.text(), "logprobs": []any{}})) &&
		send("response.content_part.done", inItem(obj{"part": part(r.text())})) &&
		send("response.output_item.done", here(obj{"item": r.message(r.status(), part(r.text()))})) &&
		send("response."+r.status(), obj{"response": r.object(true)})
}
