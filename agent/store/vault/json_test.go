package vault

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

var jsonSeeds = []string{
	`{}`, `[]`, `""`, `0`, `-0`, `1.5e+7`, `-12.0E-3`, `true`, `false`, `null`, ` {"a" : [1, {"b":"c"}] , "d":null} `,
	`{"api_key":"sk-\u0041\u00e9\ud83d\ude00\"\\\/\b\f\n\r\t"}`, `{"a":"\ud800"}`, `{"a":"\ud800\u0041"}`, `{"a":"\udc00\ud800"}`,
	"{\"a\":\"\xff\"}", "{\"a\":\"\x01\"}", `{"a":"\x"}`, `{"a":"\u12"}`, `{"a":1,}`, `{,}`, `[1,]`, `[1 2]`, `{"a" 1}`, `{1:2}`,
	`01`, `1.`, `.5`, `1e`, `+1`, `tru`, `nul`, `"a`, `"a\`, `"\u`, `{"a":`, `[`, `{`, `{}x`, `{} {}`, "\ufeff{}", ``, ` `,
	`{"a":1,"a":2}`, `{"\u0061":1}`, strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth), strings.Repeat("[", maxDepth+2) + strings.Repeat("]", maxDepth+2),
}

func FuzzDocumentAgreesWithEncodingJSON(f *testing.F) {
	for _, seed := range jsonSeeds {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		whole, err := document(b)
		valid := json.Valid(b)
		if err == nil && !valid {
			t.Fatalf("accepted %q, which encoding/json refuses", b)
		}
		if err != nil {
			if valid && !errors.Is(err, errUTF8) && !nestsDeeply(b) {
				t.Fatalf("refused %q: %v", b, err)
			}
			if valid && errors.Is(err, errUTF8) && utf8.Valid(b) {
				t.Fatalf("called %q bad Unicode", b)
			}
			return
		}
		var want any
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.UseNumber()
		if err := dec.Decode(&want); err != nil {
			t.Fatal(err)
		}
		got, err := tree(whole)
		if errors.Is(err, errUTF8) { // a lone surrogate: encoding/json puts U+FFFD in its place
			if plain, _ := json.Marshal(want); !bytes.Contains(plain, []byte("\ufffd")) && !bytes.Contains(plain, []byte(`\ufffd`)) {
				t.Fatalf("called %q bad Unicode", b)
			}
			return
		}
		if err != nil {
			t.Fatalf("%q was accepted and then failed: %v", b, err)
		}
		wantJSON, _ := json.Marshal(want)
		gotJSON, _ := json.Marshal(got)
		if !bytes.Equal(wantJSON, gotJSON) {
			t.Fatalf("%q reads as %s, want %s", b, gotJSON, wantJSON)
		}
	})
}

// nestsDeeply over-estimates: brackets inside strings count too.
func nestsDeeply(b []byte) bool {
	return bytes.Count(b, []byte("["))+bytes.Count(b, []byte("{")) > maxDepth
}

// tree builds what encoding/json would from a value that document returned.
func tree(v []byte) (any, error) {
	switch v[0] {
	case '{':
		out := map[string]any{}
		err := members(v, func(name, value []byte) error {
			key, err := text(name)
			if err != nil {
				return err
			}
			out[key], err = tree(value)
			return err
		})
		return out, err
	case '[':
		out := []any{}
		err := elements(v, func(value []byte) error {
			element, err := tree(value)
			out = append(out, element)
			return err
		})
		return out, err
	case '"':
		return text(v)
	case 't', 'f':
		return boolean(v)
	case 'n':
		return nil, nil
	}
	return json.Number(v), nil
}

func FuzzQuoteRoundTrip(f *testing.F) {
	for _, seed := range jsonSeeds {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if !utf8.Valid(b) {
			return // only valid UTF-8 can be written
		}
		quoted := appendQuoted(nil, b)
		if len(quoted) > quotedLen(len(b)) {
			t.Fatalf("%d bytes for %d, more than quotedLen says", len(quoted), len(b))
		}
		var want string
		if err := json.Unmarshal(quoted, &want); err != nil || want != string(b) {
			t.Fatalf("encoding/json reads %q as %q: %v", quoted, want, err)
		}
		back := make([]byte, len(quoted))
		n, err := unquote(back, quoted)
		if err != nil || !bytes.Equal(back[:n], b) {
			t.Fatalf("unquote reads %q as %q: %v", quoted, back[:n], err)
		}
	})
}

func TestScalarsRefuseOtherTypes(t *testing.T) {
	for _, v := range []string{`"1"`, `true`, `{}`, `1.5`, `99999999999999999999`} {
		if _, err := integer([]byte(v)); err == nil {
			t.Errorf("integer(%s) is accepted", v)
		}
	}
	for _, v := range []string{`"true"`, `1`, `[]`} {
		if _, err := boolean([]byte(v)); err == nil {
			t.Errorf("boolean(%s) is accepted", v)
		}
	}
	for _, v := range []string{`1`, `true`, `{}`} {
		if _, err := text([]byte(v)); err == nil {
			t.Errorf("text(%s) is accepted", v)
		}
	}
	for _, v := range []string{`"yesterday"`, `7`} {
		if _, err := instant([]byte(v)); err == nil {
			t.Errorf("instant(%s) is accepted", v)
		}
	}
	for _, v := range []string{`[]`, `1`, ``} {
		if err := members([]byte(v), nil); err == nil {
			t.Errorf("members(%s) is accepted", v)
		}
	}
	if err := elements([]byte(`{}`), nil); err == nil {
		t.Error("elements({}) is accepted")
	}
}

func TestSyntaxErrorsDoNotQuoteTheText(t *testing.T) {
	for _, seed := range jsonSeeds {
		if _, err := document([]byte(`{"k":"sk-canary-value-123456"` + seed)); err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("error holds the text: %v", err)
		}
	}
}
