package sealed

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

const (
	formatV1 = "postern-sealed-v1"

	maxFile   = 64 << 20 // bytes
	maxHeader = 4 << 10  // bytes that are read before the mac has been checked

	macSize   = 32
	tailStart = ",\n  \"mac\": \""
	tailEnd   = "\"\n}\n"
)

// tailSize is the length of the member that holds the mac, always the last bytes of a file.
var tailSize = len(tailStart) + base64.StdEncoding.EncodedLen(macSize) + len(tailEnd)

// The ways a file can be no sealed store. The texts complete "FILE …".
var (
	errEmpty  = errors.New("is empty")
	errCutOff = errors.New("is cut off or is no sealed store")
	errHeader = errors.New("does not begin like a sealed store")
	errEdited = errors.New("was changed by something other than postern: its authentication code does not match")
)

// newerError is a file of a format that this version does not know.
type newerError string

func (e newerError) Error() string {
	return fmt.Sprintf("has the format %.40q, and this postern reads %q", string(e), formatV1)
}

// header is what is read before the mac can be checked.
type header struct {
	Format string
	Key    keySlot
}

// split separates the authenticated bytes from the mac and reads the header.
// It trusts nothing and its work is bounded by maxHeader.
func split(data []byte) (h header, body, mac []byte, err error) {
	if len(data) == 0 {
		return h, nil, nil, errEmpty
	}
	if h, err = readHeader(data); err != nil {
		return h, nil, nil, err
	}
	if len(data) < tailSize {
		return h, nil, nil, errCutOff
	}
	body, tail := data[:len(data)-tailSize], data[len(data)-tailSize:]
	text, ok := bytes.CutPrefix(tail, []byte(tailStart))
	if !ok {
		return h, nil, nil, errCutOff
	}
	if text, ok = bytes.CutSuffix(text, []byte(tailEnd)); !ok {
		return h, nil, nil, errCutOff
	}
	mac, err = base64.StdEncoding.Strict().AppendDecode(nil, text)
	if err != nil || len(mac) != macSize {
		return h, nil, nil, errCutOff
	}
	return h, body, mac, nil
}

// readHeader reads the first two members, format and key, by position.
func readHeader(data []byte) (h header, err error) {
	dec := json.NewDecoder(bytes.NewReader(data[:min(len(data), maxHeader)]))
	dec.DisallowUnknownFields()
	for _, want := range []json.Token{json.Delim('{'), "format"} {
		if got, err := dec.Token(); err != nil || got != want {
			return h, errHeader
		}
	}
	if err := dec.Decode(&h.Format); err != nil {
		return h, errHeader
	}
	if h.Format != formatV1 {
		return h, newerError(h.Format)
	}
	if got, err := dec.Token(); err != nil || got != "key" {
		return h, errHeader
	}
	if err := dec.Decode(&h.Key); err != nil {
		return h, errHeader
	}
	return h, h.Key.check()
}

// decodeBody reads a body that its mac has vouched for.
func decodeBody(body []byte) (*document, error) {
	dec := json.NewDecoder(io.MultiReader(bytes.NewReader(body), bytes.NewReader([]byte("\n}\n"))))
	dec.DisallowUnknownFields()
	d := &document{}
	if err := dec.Decode(d); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("more than one document")
	}
	return d, d.check()
}

// encodeBody writes everything but the mac.
func encodeBody(d *document) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(d); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n}\n")), nil
}

// join puts a body and its mac together into a file.
func join(body, mac []byte) []byte {
	data := make([]byte, 0, len(body)+tailSize)
	data = append(append(data, body...), tailStart...)
	data = base64.StdEncoding.AppendEncode(data, mac)
	return append(data, tailEnd...)
}

// parse reads a whole file: header, key, mac, document. unlock turns a header
// into keys; parse does not destroy them.
func parse(data []byte, unlock func(header) (*keys, error)) (*document, error) {
	h, body, mac, err := split(data)
	if err != nil {
		return nil, err
	}
	k, err := unlock(h)
	if err != nil {
		return nil, err
	}
	if ok, err := k.verify(body, mac); err != nil {
		return nil, err
	} else if !ok {
		return nil, errEdited
	}
	d, err := decodeBody(body)
	if err != nil {
		return nil, fmt.Errorf("was written by a postern with other rules (%w)", err)
	}
	return d, nil
}
