package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// made are all the buffers that a test's server has borrowed for the first time.
type made struct {
	mu   sync.Mutex
	bufs []*[]byte
}

// record puts pools in place of the package's that remember what they make,
// until the test and its server have ended. There it looks at each.
func record(t *testing.T, keys ...string) {
	m := &made{}
	pool := func(size int) *sync.Pool {
		return &sync.Pool{New: func() any {
			b := make([]byte, size)
			m.mu.Lock()
			defer m.mu.Unlock()
			m.bufs = append(m.bufs, &b)
			return &b
		}}
	}
	small, large := smallPool, largePool
	smallPool, largePool = pool(smallBuf), pool(largeBuf)
	t.Cleanup(func() {
		smallPool, largePool = small, large
		if len(m.bufs) == 0 {
			t.Error("no buffer was borrowed: nothing is seen here")
		}
		for _, b := range m.bufs {
			for _, key := range keys {
				if i := bytes.Index(*b, []byte(key[8:])); i >= 0 {
					t.Errorf("a key is in a buffer of %d bytes that was given back, at %d", len(*b), i)
				}
			}
		}
	})
}

// A buffer that was given back holds no key: neither the one that a request's head
// was written from nor one that an answer was read into which repeats the key.
func TestBuffersAreWiped(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	plain := ok + "Content-Length: 2\r\n\r\nok"
	chunk := fmt.Sprintf("%x\r\n%s\r\n", len(key1), key1)
	post := func(size int) string {
		return fmt.Sprintf("POST PRE/v1/x HTTP/1.1\r\nHost: HOST\r\nContent-Length: %d\r\n\r\n%s", size, strings.Repeat("b", size))
	}
	const get = "GET PRE/v1/models HTTP/1.1\r\nHost: HOST\r\n\r\n"
	for _, c := range []struct{ name, request, answer string }{
		{"plain", get, plain},
		{"a short body", post(5), plain},
		{"a long body", post(100 << 10), plain},
		{"a long head", "GET PRE/v1/models HTTP/1.1\r\nHost: HOST\r\nX-A: " + strings.Repeat("a", smallBuf) + "\r\n\r\n", plain},
		{"chunks", "POST PRE/v1/x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", plain},
		{"an echo in the head", get, ok + "X-Echo: " + key1 + "\r\nContent-Length: 2\r\n\r\nok"},
		{"an echo in a long head", get, ok + "X-A: " + strings.Repeat("a", smallBuf-100) + "\r\nX-Echo: " + key1 + "\r\nX-B: " + strings.Repeat("b", 100) + "\r\nContent-Length: 2\r\n\r\nok"},
		{"an echo in chunks", get, ok + "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n" + chunk + chunk + "0\r\n\r\n"},
		{"an echo in a trailer", get, ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Echo: " + key1 + "\r\n\r\n"},
		{"an echo in an extension", get, ok + "Transfer-Encoding: chunked\r\n\r\n2;a=" + key1 + "\r\nok\r\n0\r\n\r\n"},
		{"an echo that is no answer", get, "HTTP/1.1 " + key1 + "\r\n\r\n"},
		{"a refusal that is not passed on", get, "HTTP/1.1 401 No\r\nContent-Length: " + fmt.Sprint(len(key1)) + "\r\n\r\n" + key1},
		{"more than was said", get, plain + key1},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			record(t, key1, key2)
			w := newWorld(t, nil, withKeys(key1, key2))
			w.rawUpstream(t, says(func() string { return c.answer }))
			for _, y := range w.ways() {
				y.SetDeadline(time.Now().Add(10 * time.Second))
				go io.WriteString(y, y.fill(c.request))
				resp, err := http.ReadResponse(bufio.NewReader(y), nil)
				if err != nil {
					t.Fatal(err)
				}
				if body, _ := io.ReadAll(resp.Body); !slices.Contains([]int{200, 401, 502}, resp.StatusCode) || bytes.Contains(body, []byte(key1[8:])) {
					t.Errorf("%s %q", resp.Status, body)
				}
				y.Close()
			}
		})
	}
}
