package fake

import (
	"encoding/json"
	"net/http"
	"strings"
)

var geminiModels = []string{"gemini-2.5-flash", "gemini-embedding-001"}

// gemini speaks the Gemini API: generateContent, streamGenerateContent,
// embedContent, countTokens, models and files.
func (s *Server) gemini(x *exchange) {
	path, post := x.r.URL.Path, x.r.Method == http.MethodPost
	version, rest, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	upload := version == "upload"
	if upload {
		version, rest, _ = strings.Cut(rest, "/")
	}
	if !s.geminiAdmits(x, !post && rest == "models") {
		return
	}
	model, verb, isVerb := strings.Cut(strings.TrimPrefix(rest, "models/"), ":")
	switch {
	case version != "v1beta" && version != "v1" && version != "v1alpha":
		geminiError(x, http.StatusNotFound, "NOT_FOUND", "unknown path: "+path)
	case upload && post && rest == "files":
		s.geminiUpload(x)
	case !post && rest == "models":
		var out []obj
		for _, name := range geminiModels {
			out = append(out, geminiModel(name))
		}
		x.json(http.StatusOK, obj{"models": out})
	case strings.HasPrefix(rest, "files/") && !post:
		s.geminiFile(x, strings.TrimPrefix(rest, "files/"))
	case strings.HasPrefix(rest, "models/") && isVerb && post:
		s.geminiVerb(x, model, verb)
	case strings.HasPrefix(rest, "models/") && !post:
		x.json(http.StatusOK, geminiModel(model))
	default:
		geminiError(x, http.StatusNotFound, "NOT_FOUND", "unknown path: "+path)
	}
}

// geminiAdmits judges the key, from the header or the query, and answers where
// it is refused: a bad key is a 400 here.
func (s *Server) geminiAdmits(x *exchange, lists bool) bool {
	key := x.r.Header.Get("X-Goog-Api-Key")
	if key == "" && x.r.URL.RawQuery != "" {
		key = x.r.URL.Query().Get("key")
	}
	st := x.judge(key, lists)
	switch {
	case key == "":
		geminiError(x, http.StatusForbidden, "PERMISSION_DENIED", "this method wants an API key; send it as x-goog-api-key")
	case st == Revoked:
		geminiError(x, http.StatusBadRequest, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", obj{
			"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com",
			"metadata": obj{"service": "generativelanguage.googleapis.com"},
		})
	case st == Forbidden:
		geminiError(x, http.StatusForbidden, "PERMISSION_DENIED", "the caller may not use this model")
	case st == Limited:
		geminiError(x, http.StatusTooManyRequests, "RESOURCE_EXHAUSTED", "the current quota is used up")
	default:
		return true
	}
	return false
}

func geminiError(x *exchange, status int, name, message string, details ...obj) {
	e := obj{"code": status, "message": message, "status": name}
	if details != nil {
		e["details"] = details
	}
	x.json(status, obj{"error": e})
}

func geminiModel(name string) obj {
	return obj{
		"name": "models/" + name, "version": "001", "displayName": name, "inputTokenLimit": 1048576, "outputTokenLimit": 65536,
		"supportedGenerationMethods": []string{"generateContent", "countTokens", "embedContent"},
	}
}

func (s *Server) geminiFile(x *exchange, id string) {
	f, ok := s.file(id)
	switch {
	case !ok:
		geminiError(x, http.StatusNotFound, "NOT_FOUND", "there is no such file")
	case x.r.Method == http.MethodDelete:
		s.forget(id)
		x.json(http.StatusOK, obj{})
	default:
		x.json(http.StatusOK, f.gemini(x.r.Host))
	}
}

type geminiRequest struct {
	Contents         []json.RawMessage `json:"contents"`
	Content          json.RawMessage   `json:"content"`
	Requests         []geminiRequest   `json:"requests"`
	Dimensions       int               `json:"outputDimensionality"`
	GenerationConfig struct {
		MaxOutputTokens int `json:"maxOutputTokens"`
	} `json:"generationConfig"`
}

func (s *Server) geminiVerb(x *exchange, model, verb string) {
	var q geminiRequest
	if err := x.decode(&q); err != nil {
		geminiError(x, http.StatusBadRequest, "INVALID_ARGUMENT", err.Error())
		return
	}
	if q.Dimensions < 0 || q.Dimensions > 4096 {
		geminiError(x, http.StatusBadRequest, "INVALID_ARGUMENT", "outputDimensionality is out of range")
		return
	}
	embedding := func(q geminiRequest) obj { return obj{"values": vector(q.Content, q.Dimensions)} }
	switch verb {
	case "generateContent", "streamGenerateContent":
		s.generate(x, model, q, verb == "streamGenerateContent")
	case "countTokens":
		x.json(http.StatusOK, obj{"totalTokens": tokens(q.Contents)})
	case "embedContent":
		x.json(http.StatusOK, obj{"embedding": embedding(q)})
	case "batchEmbedContents":
		out := make([]obj, len(q.Requests))
		for i, one := range q.Requests {
			out[i] = embedding(one)
		}
		x.json(http.StatusOK, obj{"embeddings": out})
	default:
		geminiError(x, http.StatusNotFound, "NOT_FOUND", "unknown method: "+verb)
	}
}

func (s *Server) generate(x *exchange, model string, q geminiRequest, stream bool) {
	if len(q.Contents) == 0 {
		geminiError(x, http.StatusBadRequest, "INVALID_ARGUMENT", "contents is not specified")
		return
	}
	words, short := cut(s.words(), q.GenerationConfig.MaxOutputTokens)
	finish := "STOP"
	if short {
		finish = "MAX_TOKENS"
	}
	id := s.id("resp-")
	in := tokens(q.Contents)
	chunk := func(text string, out int, finish any) obj {
		c := obj{"content": obj{"role": "model", "parts": []obj{{"text": text}}}, "index": 0}
		if finish != nil {
			c["finishReason"] = finish
		}
		return obj{
			"candidates": []obj{c}, "modelVersion": model, "responseId": id,
			"usageMetadata": obj{"promptTokenCount": in, "candidatesTokenCount": out, "totalTokenCount": in + out},
		}
	}
	switch {
	case !stream:
		x.json(http.StatusOK, chunk(strings.Join(words, ""), len(words), finish))
	case x.r.URL.Query().Get("alt") != "sse": // one array, which the caller gets whole
		all := make([]obj, len(words))
		for i, w := range words {
			all[i] = chunk(w, i+1, nil)
		}
		all[len(all)-1] = chunk(words[len(words)-1], len(words), finish)
		x.json(http.StatusOK, all)
	default:
		x.stream()
		for i, w := range words {
			var last any
			if i == len(words)-1 {
				last = finish
			}
			if !x.event("", chunk(w, i+1, last)) {
				return
			}
		}
	}
}
