package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/postern-proxy/postern/test/tools"
)

// freePort is a port that nobody listens on just now: programs that cannot say
// which one the kernel gave them are told one.
func freePort() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// listening waits until somebody accepts at addr.
func listening(addr string) func(*bufio.Reader) (string, error) {
	return func(*bufio.Reader) (string, error) {
		var err error
		for range 500 {
			var c net.Conn
			if c, err = net.Dial("tcp", addr); err == nil {
				c.Close()
				return addr, nil
			}
			time.Sleep(10 * time.Millisecond)
		}
		return "", err
	}
}

const nginxMain = `
daemon off; worker_processes 2; pid %[1]s/nginx.pid; error_log stderr crit;
events { worker_connections 8192; }
http {
  client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  keepalive_requests 1000000000; keepalive_timeout 3600s;
  %[2]s
}
`

// startNginx runs nginx with http's content, listening at addr.
func (s *stage) startNginx(name, addr, http string) (*process, error) {
	nginx, err := tools.Nginx.Find()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(s.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxMain, dir, http), 0o600); err != nil {
		return nil, err
	}
	return s.started(exec.Command(nginx, "-e", "stderr", "-p", dir, "-c", conf), listening(addr))
}

// startUpstream is the provider: nginx over TLS with a fixed answer, so that
// what stands between costs more than what it stands in front of.
func (s *stage) startUpstream() (err error) {
	if s.upstream, err = freePort(); err != nil {
		return err
	}
	_, err = s.startNginx("upstream", s.upstream, fmt.Sprintf(`
  access_log off;
  server {
    listen %s ssl; ssl_certificate %[2]s; ssl_certificate_key %[2]s; default_type application/json;
    if ($http_authorization !~ "^Bearer sk-proj-bench") { return 401; }
    location / { return 200 '%[3]s'; }
  }`, s.upstream, s.cert, answer))
	return err
}

// nginxProxy is nginx as one would put it there by hand: TLS verified, sessions
// and connections reused, one field set, an access log in batches.
func (s *stage) nginxProxy() (*process, string, error) {
	addr, err := freePort()
	if err != nil {
		return nil, "", err
	}
	p, err := s.startNginx("nginx", addr, fmt.Sprintf(`
  access_log access.log combined buffer=64k flush=1s;
  upstream provider { server %s; keepalive 512; keepalive_requests 1000000000; }
  upstream streams { server %s; keepalive 512; keepalive_requests 1000000000; }
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Authorization "Bearer %[4]s";
  proxy_ssl_verify on; proxy_ssl_trusted_certificate %[3]s; proxy_ssl_name localhost; proxy_ssl_server_name on;
  server {
    listen %[5]s;
    location /openai/ { proxy_pass https://provider/; }
    location /streams/ { proxy_pass https://streams/; proxy_buffering off; proxy_read_timeout 1h; }
  }`, s.upstream, s.streams, s.cert, apiKey, addr))
	return p, addr, err
}

// haproxyProxy is haproxy, likewise.
func (s *stage) haproxyProxy() (*process, string, error) {
	haproxy, err := tools.HAProxy.Find()
	if err != nil {
		return nil, "", err
	}
	addr, err := freePort()
	if err != nil {
		return nil, "", err
	}
	conf := filepath.Join(s.dir, "haproxy.cfg")
	err = os.WriteFile(conf, fmt.Appendf(nil, `
global
  nbthread 2
  maxconn 8192
defaults
  mode http
  timeout connect 10s
  timeout client 1h
  timeout server 1h
  http-reuse always
frontend in
  bind %[1]s
  http-request set-header Authorization "Bearer %[5]s"
  use_backend streams if { path_beg /streams/ }
  default_backend provider
backend provider
  http-request replace-path /openai/(.*) /\1
  server a %[2]s ssl verify required ca-file %[4]s sni str(localhost) verifyhost localhost
backend streams
  http-request replace-path /streams/(.*) /\1
  server b %[3]s ssl verify required ca-file %[4]s sni str(localhost) verifyhost localhost
`, addr, s.upstream, s.streams, s.caFile(), apiKey), 0o600)
	if err != nil {
		return nil, "", err
	}
	p, err := s.started(exec.Command(haproxy, "-db", "-f", conf), listening(addr))
	return p, addr, err
}

// caFile is the certificate without its key, which haproxy would complain about.
func (s *stage) caFile() string {
	b, _ := os.ReadFile(s.cert)
	cert, _, _ := strings.Cut(string(b), "-----BEGIN PRIVATE KEY")
	file := filepath.Join(s.dir, "ca.pem")
	os.WriteFile(file, []byte(cert), 0o600)
	return file
}

// started runs a program that says nothing about where it listens.
func (s *stage) started(cmd *exec.Cmd, address func(*bufio.Reader) (string, error)) (*process, error) {
	p, _, err := start(cmd, address, false)
	if err == nil {
		s.procs = append(s.procs, p)
	}
	return p, err
}
