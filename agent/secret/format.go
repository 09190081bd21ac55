package secret

import (
	"fmt"
	"log/slog"
)

// Redacted is what a Value prints as, everywhere.
const Redacted = "[redacted]"

var (
	_ fmt.Formatter  = (*Value)(nil)
	_ fmt.GoStringer = (*Value)(nil)
	_ slog.LogValuer = (*Value)(nil)
)

// String says [redacted].
func (*Value) String() string { return Redacted }

// GoString says [redacted].
func (*Value) GoString() string { return Redacted }

// Format says [redacted] for every verb and flag.
func (*Value) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(Redacted)) }

// LogValue says [redacted]. slog does not ask it of a Value inside a struct;
// there MarshalJSON and Format answer.
func (*Value) LogValue() slog.Value { return slog.StringValue(Redacted) }

// MarshalJSON says "[redacted]".
func (*Value) MarshalJSON() ([]byte, error) { return []byte(`"` + Redacted + `"`), nil }

// MarshalText says [redacted].
func (*Value) MarshalText() ([]byte, error) { return []byte(Redacted), nil }
