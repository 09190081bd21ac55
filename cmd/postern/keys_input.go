package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/postern-proxy/postern/agent/secret"
)

// maxKeyInput bounds what is read as a key, line ends included.
const maxKeyInput = 64 << 10

var errNoKey = errors.New("no key was given")

func keyFileFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "file", "", "read the key from this file instead of standard input")
}

func providerIDFlag(cmd *cobra.Command, id *string) {
	cmd.Flags().StringVar(id, "provider-id", "", "what the provider calls the key, as its console shows it: postern server ends it there by this")
}

// keyInput says where a key is read from, and what it is called.
type keyInput struct {
	prompt  string // on a terminal
	subject string // what an error begins with, as in "openai"
	usage   string // the command that it may be piped into
	file    string // in place of standard input
}

// forKey reads the value of a named key.
func forKey(name, usage, file string) keyInput {
	return keyInput{prompt: "Key for " + name, subject: name, usage: usage, file: file}
}

// read reads a key's bytes into the arena; every buffer on the way is wiped.
func (in keyInput) read(cmd *cobra.Command) (*secret.Value, error) {
	value, err := in.readOptional(cmd)
	if errors.Is(err, errNoKey) {
		return nil, fmt.Errorf("%w; pipe it in (%s < key.txt) or type it at the prompt", err, in.usage)
	}
	return value, err
}

// readOptional is read where nothing need be given: that is errNoKey.
func (in keyInput) readOptional(cmd *cobra.Command) (*secret.Value, error) {
	var b []byte
	var err error
	stdin, isFile := cmd.InOrStdin().(*os.File)
	switch {
	case in.file != "":
		b, err = readWiped(in.file)
	case isFile && term.IsTerminal(int(stdin.Fd())):
		fmt.Fprintf(cmd.ErrOrStderr(), "%s (not shown): ", in.prompt)
		b, err = readHidden(cmd.Context(), int(stdin.Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
	default:
		b, err = readBounded(cmd.InOrStdin())
	}
	if err != nil {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	defer secret.Wipe(b)
	end := len(b)
	for end > 0 && (b[end-1] == '\n' || b[end-1] == '\r') {
		end--
	}
	if end == 0 {
		return nil, errNoKey
	}
	if err := secret.CheckKey(b[:end]); err != nil {
		return nil, fmt.Errorf("%s %w", in.subject, err) // which begins with "key: "
	}
	return secret.New(b[:end])
}

// readHidden reads a line from a terminal without echo. Ctrl-C ends it, with
// the terminal as it was.
func readHidden(ctx context.Context, fd int) ([]byte, error) {
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	type answer struct {
		b   []byte
		err error
	}
	got := make(chan answer, 1)
	go func() {
		b, err := term.ReadPassword(fd)
		got <- answer{b, err}
	}()
	select {
	case a := <-got:
		return a.b, a.err
	case <-ctx.Done():
		term.Restore(fd, before)
		return nil, errors.New("interrupted; nothing was stored")
	}
}

func readWiped(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readBounded(f)
}

func readBounded(r io.Reader) ([]byte, error) {
	b := make([]byte, maxKeyInput)
	n, err := io.ReadFull(r, b)
	if err == nil {
		secret.Wipe(b)
		return nil, fmt.Errorf("more than %d bytes: that is no key", maxKeyInput)
	}
	if err != io.EOF && err != io.ErrUnexpectedEOF {
		secret.Wipe(b)
		return nil, err
	}
	return b[:n], nil
}
