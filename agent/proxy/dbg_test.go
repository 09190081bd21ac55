package proxy

import (
	"bufio"
	"io"
	"net/http"
	"testing"
	"time"
)

func TestDbg(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		io.WriteString(rw, "half")
		rw.(http.Flusher).Flush()
		<-r.Context().Done()
		t.Log("upstream done", time.Now())
	})
	y := w.ways()[0]
		io.WriteString(y, y.fill("GET PRE/v1/stream HTTP/1.1\r\nHost: HOST\r\n\r\n"))
		y.SetDeadline(time.Now().Add(10 * time.Second))
		resp, err := http.ReadResponse(bufio.NewReader(y), nil)
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(resp.Body, make([]byte, 4))
		t.Log("read half", time.Now())
			y.raw.CloseWrite()
		b, err := io.ReadAll(resp.Body)
		t.Logf("%q %v %v", b, err, time.Now())
	time.Sleep(100*time.Millisecond)
	t.Log(w.log.String())
}
