// Command gosdk runs the official Go SDKs against whatever the environment
// points them at, and prints JSON lines: one {"name", "ok", …} for each case,
// and while a case streams one {"name", "event": "chunk"} at its first chunk.
//
//	gosdk openai/chat openai/stream …
//
// Nothing is configured here: base URLs, keys, proxies and CAs come from the
// environment alone, as they do in an application.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptrace"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/responses"
)

// line is what is printed of a case.
type line struct {
	Name     string   `json:"name"`
	Event    string   `json:"event,omitempty"`
	OK       bool     `json:"ok"`
	Text     string   `json:"text,omitempty"`
	Chunks   int      `json:"chunks,omitempty"`
	Items    int      `json:"items,omitempty"`
	Error    *failure `json:"error,omitempty"`
	Attempts int      `json:"attempts,omitempty"`
}

type failure struct {
	Type    string `json:"type"`
	Status  int    `json:"status"`
	Message string `json:"message"`
}

// cases fill in the line and return the SDK's own error.
var cases = map[string]func(context.Context, *line) error{
	"openai/chat":       openaiChat,
	"openai/stream":     openaiStream,
	"openai/responses":  openaiResponses,
	"openai/embeddings": openaiEmbeddings,
	"openai/models":     openaiModels,
	"anthropic/chat":    anthropicChat,
	"anthropic/stream":  anthropicStream,
	"anthropic/models":  anthropicModels,
}

func main() {
	for _, name := range os.Args[1:] {
		run(name)
	}
}

func run(name string) {
	f, ok := cases[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "gosdk: no case %q\n", name)
		os.Exit(2)
	}
	var attempts atomic.Int32
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest: func(httptrace.WroteRequestInfo) { attempts.Add(1) },
	})
	l := line{Name: name}
	if err := f(ctx, &l); err != nil {
		l.Error = describe(err)
	}
	l.OK = l.Error == nil
	l.Attempts = int(attempts.Load())
	emit(l)
}

func emit(l line) { json.NewEncoder(os.Stdout).Encode(l) }

// chunk notes one text of a stream.
func (l *line) chunk(text string) {
	if text == "" {
		return
	}
	if l.Chunks == 0 {
		emit(line{Name: l.Name, Event: "chunk"})
	}
	l.Chunks++
	l.Text += text
}

// describe tells what an application can learn of an error.
func describe(err error) *failure {
	f := &failure{Type: strings.TrimPrefix(fmt.Sprintf("%T", err), "*"), Message: err.Error()}
	if e := (*openai.Error)(nil); errors.As(err, &e) {
		// Its Error() is the status alone; what the provider said is a field.
		f.Type, f.Status, f.Message = "openai.Error", e.StatusCode, e.Message
	}
	if e := (*anthropic.Error)(nil); errors.As(err, &e) {
		f.Type, f.Status = "anthropic.Error", e.StatusCode
	}
	return f
}

func openaiAsk() openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model:    "gpt-4o-mini",
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Say hello.")},
	}
}

func openaiChat(ctx context.Context, l *line) error {
	client := openai.NewClient()
	answer, err := client.Chat.Completions.New(ctx, openaiAsk())
	if err != nil {
		return err
	}
	l.Text = answer.Choices[0].Message.Content
	return nil
}

func openaiStream(ctx context.Context, l *line) error {
	client := openai.NewClient()
	events := client.Chat.Completions.NewStreaming(ctx, openaiAsk())
	defer events.Close()
	for events.Next() {
		for _, choice := range events.Current().Choices {
			l.chunk(choice.Delta.Content)
		}
	}
	return events.Err()
}

func openaiEmbeddings(ctx context.Context, l *line) error {
	client := openai.NewClient()
	answer, err := client.Embeddings.New(ctx, openai.EmbeddingNewParams{
		Model: "text-embedding-3-small",
		Input: openai.EmbeddingNewParamsInputUnion{OfString: openai.String("hello")},
	})
	if err != nil {
		return err
	}
	l.Items = len(answer.Data[0].Embedding)
	l.Text = fmt.Sprint(l.Items, " dimensions")
	return nil
}

func openaiModels(ctx context.Context, l *line) error {
	client := openai.NewClient()
	pages := client.Models.ListAutoPaging(ctx)
	for pages.Next() {
		l.Text += pages.Current().ID + " "
		l.Items++
	}
	return pages.Err()
}

func anthropicAsk() anthropic.MessageNewParams {
	return anthropic.MessageNewParams{
		Model:     "claude-sonnet-4-5",
		MaxTokens: 64,
		Messages:  []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("Say hello."))},
	}
}

func anthropicChat(ctx context.Context, l *line) error {
	client := anthropic.NewClient()
	answer, err := client.Messages.New(ctx, anthropicAsk())
	if err != nil {
		return err
	}
	l.Text = answer.Content[0].Text
	return nil
}

func anthropicStream(ctx context.Context, l *line) error {
	client := anthropic.NewClient()
	events := client.Messages.NewStreaming(ctx, anthropicAsk())
	defer events.Close()
	for events.Next() {
		l.chunk(events.Current().Delta.Text)
	}
	return events.Err()
}

func anthropicModels(ctx context.Context, l *line) error {
	client := anthropic.NewClient()
	pages := client.Models.ListAutoPaging(ctx, anthropic.ModelListParams{})
	for pages.Next() {
		l.Text += pages.Current().ID + " "
		l.Items++
	}
	return pages.Err()
}

func openaiResponses(ctx context.Context, l *line) error {
	client := openai.NewClient()
	answer, err := client.Responses.New(ctx, responses.ResponseNewParams{
		Model: "gpt-4o-mini",
		Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("Say hello.")},
	})
	if err != nil {
		return err
	}
	l.Text = answer.OutputText()
	return nil
}
