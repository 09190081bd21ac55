package secret

import (
	"bytes"
	"fmt"
)

// Placeholder stands where an SDK demands a key; the agent replaces it. It is no
// secret and never a key.
const Placeholder = "attached-by-postern"

// The lengths a provider key may have, in bytes.
const (
	MinKey = 16
	MaxKey = 16 << 10
)

// CheckKey says whether b can be a provider key: 16 to 16384 bytes of visible
// ASCII (0x21–0x7e), not the placeholder, and no template that nobody filled in.
// The error names what is wrong and what to do, and never any of the bytes.
func CheckKey(b []byte) error {
	for i, c := range b {
		if c >= 0x21 && c <= 0x7e {
			continue
		}
		end := ""
		if i == len(bytes.TrimRight(b, " \t\r\n")) {
			end = " at the end: store the key without it (printf %s, not echo)"
		}
		return fmt.Errorf("key: byte %d of %d is %s%s; a key is visible ASCII only", i+1, len(b), nameByte(c), end)
	}
	switch {
	case len(b) == 0:
		return fmt.Errorf("key: empty; give a key of %d to %d bytes", MinKey, MaxKey)
	case len(b) < MinKey:
		return fmt.Errorf("key: %d bytes; shorter than %d is refused, for it could not be told from ordinary text", len(b), MinKey)
	case len(b) > MaxKey:
		return fmt.Errorf("key: %d bytes; longer than %d is refused", len(b), MaxKey)
	case string(b) == Placeholder:
		return fmt.Errorf("key: it is the placeholder %q; give the provider's real key", Placeholder)
	case bytes.Contains(b, []byte("${")), bytes.Contains(b, []byte("{{")):
		return fmt.Errorf(`key: it holds an unresolved template ("${" or "{{"); give the key itself`)
	}
	return nil
}

func nameByte(c byte) string {
	switch {
	case c == '\n' || c == '\r':
		return "a line break"
	case c == ' ' || c == '\t':
		return "a space"
	case c < 0x20 || c == 0x7f:
		return "a control character"
	default:
		return "not ASCII"
	}
}
