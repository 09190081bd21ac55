// Package redact finds known secrets in bytes on their way out and takes them
// away: in logs it writes [redacted] instead, in response bodies it overwrites
// byte for byte so that lengths hold.
//
// A Set knows values. Each is looked for in four forms:
//
//   - raw;
//   - base64, standard and URL alphabet, wherever the value stands inside a
//     longer encoded text (Basic credentials): the characters that depend on the
//     value alone. Up to four bits at either end of the value share a character
//     with their neighbours and are left;
//   - percent-encoded as the common encoders do it, and every byte as %XX, upper
//     or lower case throughout;
//   - JSON-escaped, with and without \/ and \u00XX for the characters that some
//     encoders escape so.
//
// Other encodings (hex, base64 broken into lines, compression, one form inside
// another) are not found.
//
// While a value is live its bytes and everything computed from them lie in the
// arena of agent/secret. After Retire the bytes are gone and keyed hashes stay,
// which still recognise the value until they are forgotten.
//
// How it is fast: every form is at least 16 bytes, so wherever it stands, one of
// the eight words of 8 bytes that begin at eight successive places of it lies at
// a multiple of 8 in the text. A filter knows these eight words of every form
// (behind the public prefix, which would match too often); a text is read a word
// at a time, and only what the filter lets through is compared in full.
package redact
