// Command client is the test cluster's application: it asks for completions as
// an SDK does, at OPENAI_BASE_URL or else at OpenAI's own address, which Go's
// client reaches by HTTPS_PROXY and SSL_CERT_FILE. Called as curl it makes the
// one request that `helm test` asks for.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if filepath.Base(os.Args[0]) == "curl" {
		status, _, err := send(ctx, http.MethodGet, os.Args[len(os.Args)-1], "curl")
		fmt.Println(status, err)
		if err != nil || status != http.StatusOK {
			os.Exit(22)
		}
		return
	}
	name := flag.String("as", "client", "User-Agent")
	n := flag.Int("n", 0, "how many requests; 0: until SIGTERM")
	pace := flag.Duration("every", 100*time.Millisecond, "between two requests")
	flag.Parse()
	base := os.Getenv("OPENAI_BASE_URL")
	if base == "" {
		base = "https://api.openai.com/v1"
	}
	failed := false
	tick := time.NewTicker(*pace)
	for i := 0; *n == 0 || i < *n; i++ {
		status, body, err := send(ctx, http.MethodPost, base+"/chat/completions", *name)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil || status != http.StatusOK:
			failed = true
			fmt.Println("failed:", status, body, err)
		case i%50 == 0:
			fmt.Println("answered:", body)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
	if failed {
		os.Exit(1)
	}
}

func send(ctx context.Context, method, url, name string) (int, string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var body io.Reader
	if method == http.MethodPost {
		body = strings.NewReader(`{"model": "gpt-5-nano", "messages": [{"role": "user", "content": "Say hello."}]}`)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("User-Agent", name)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+os.Getenv("OPENAI_API_KEY"))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}
