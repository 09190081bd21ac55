package framing_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/test/tools"
)

// upstream starts a server that answers each request with the digest of what it
// saw, and returns how to connect to it.
type upstream struct {
	name  string
	start func(*world) (dial func() (net.Conn, error), err error)
}

var upstreams = []upstream{{"nginx", startNginx}, {"node", startNode}, {"go", startGo}}

var trusting = &tls.Config{InsecureSkipVerify: true} // what is tried here is framing

func secureDial(network, addr string) func() (net.Conn, error) {
	return func() (net.Conn, error) { return tls.Dial(network, addr, trusting) }
}

func answerSeen(w http.ResponseWriter, text string) {
	w.Header().Set("X-Saw", digest(text))
	io.WriteString(w, text[:min(len(text), 4096)])
}

// goFields are a request's as net/http keeps them.
func goFields(r *http.Request) []field {
	fs := []field{{"host", r.Host}}
	for name, vs := range r.Header {
		for _, v := range vs {
			fs = append(fs, field{name, v})
		}
	}
	return fs
}

// goServer records as net/http sees it. omit names fields that somebody before it has added.
func goServer(omit ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler) // no whole request was seen
		}
		for _, name := range omit {
			r.Header.Del(name)
		}
		answerSeen(w, seen(r.Method, r.RequestURI, goFields(r), body))
	}
}

func startGo(w *world) (func() (net.Conn, error), error) {
	s := httptest.NewUnstartedServer(goServer())
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	w.t.Cleanup(s.Close)
	return secureDial("tcp", s.Listener.Addr().String()), nil
}

func startNode(w *world) (func() (net.Conn, error), error) {
	node, err := exec.LookPath("node")
	if err != nil {
		return nil, err
	}
	out, _, err := nodeProgram(w, node, "testdata/server.js", w.certFile, w.keyFile)
	if err != nil {
		return nil, err
	}
	port, err := out.ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("node's server does not say its port: %w", err)
	}
	return secureDial("tcp", "127.0.0.1:"+strings.TrimSpace(port)), nil
}

// nodeProgram starts one that ends when its standard input does, at the end of the test.
func nodeProgram(w *world, node string, args ...string) (*bufio.Reader, io.WriteCloser, error) {
	cmd := exec.Command(node, args...)
	cmd.Env = agenttest.Env(w.dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	w.t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	return bufio.NewReader(out), in, nil
}

// nginxConf takes whatever nginx is able to take, and passes what it saw to a
// server of net/http, which is not before it has read the whole body.
const nginxConf = `daemon off;
worker_processes 1;
pid %[1]s/nginx.pid;
error_log %[1]s/nginx.log crit;
%[5]s
events { worker_connections 4096; }
http {
  access_log off;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  client_max_body_size 0;
  client_header_buffer_size 16k; large_client_header_buffers 8 256k;
  ignore_invalid_headers off; underscores_in_headers on;
  keepalive_timeout 3600s; keepalive_requests 100000000;
  server {
    listen unix:%[1]s/nginx.sock ssl;
    ssl_certificate %[2]s; ssl_certificate_key %[3]s;
    location / {
      proxy_pass http://%[4]s;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Connection "";
      proxy_buffer_size 64k; proxy_buffers 8 64k;
      proxy_ignore_client_abort on;
    }
  }
}
`

func startNginx(w *world) (func() (net.Conn, error), error) {
	nginx, err := tools.Nginx.Find()
	if err != nil {
		return nil, err
	}
	behind := httptest.NewServer(goServer())
	w.t.Cleanup(behind.Close)
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;" // the test's folder is for nobody else
	}
	conf := fmt.Sprintf(nginxConf, w.dir, w.certFile, w.keyFile, behind.Listener.Addr(), user)
	cmd := exec.Command(nginx, "-c", w.write("nginx.conf", conf), "-e", filepath.Join(w.dir, "nginx.log"))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	w.t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	})
	dial := secureDial("unix", filepath.Join(w.dir, "nginx.sock"))
	for began := time.Now(); ; {
		c, err := dial()
		if err == nil {
			c.Close()
			return dial, nil
		}
		if time.Since(began) > 10*time.Second {
			return nil, errors.Join(errors.New("nginx does not listen"), err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// against runs a test against one upstream, with a tap for each lane.
func against(t *testing.T, u upstream, run func(*world, []*tap)) {
	w := newWorld(t)
	dial, err := u.start(w)
	if err != nil {
		agenttest.NotRun(t, "framing against "+u.name, err)
		return
	}
	taps := make([]*tap, lanes)
	addrs := make([]string, lanes)
	for i := range taps {
		taps[i] = newTap(t, &tls.Config{Certificates: []tls.Certificate{w.cert}}, dial)
		addrs[i] = taps[i].addr
	}
	w.start(addrs)
	for _, p := range taps {
		if _, err := p.take(); err != nil { // what the agent probed
			t.Fatal(err)
		}
	}
	run(w, taps)
	w.intact()
}
