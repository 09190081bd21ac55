package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// process is one peer's: a program and the workers it started.
type process struct{ cmd *exec.Cmd }

// start runs cmd and reads with address what it says about where it listens.
func start(cmd *exec.Cmd, address func(*bufio.Reader) (string, error), fromStderr bool) (*process, string, error) {
	var pipe io.ReadCloser
	var err error
	if fromStderr {
		pipe, err = cmd.StderrPipe()
	} else {
		cmd.Stderr = os.Stderr
		pipe, err = cmd.StdoutPipe()
	}
	if err != nil {
		return nil, "", err
	}
	if err := cmd.Start(); err != nil {
		return nil, "", err
	}
	p := &process{cmd}
	br := bufio.NewReader(pipe)
	addr, err := address(br)
	if err != nil {
		p.stop()
		return nil, "", fmt.Errorf("%s did not start: %w", filepath.Base(cmd.Path), err)
	}
	go io.Copy(io.Discard, br)
	return p, addr, nil
}

// pids are the process and its children.
func (p *process) pids() []int {
	pids := []int{p.cmd.Process.Pid}
	all, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range all {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
		if parent, _ := strconv.Atoi(f[1]); parent == p.cmd.Process.Pid {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// cpu is the time that the kernel has run the process's threads, to the
// nanosecond (the first figure of each thread's schedstat).
func (p *process) cpu() time.Duration {
	var sum int64
	for _, pid := range p.pids() {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		for _, file := range tasks {
			b, err := os.ReadFile(file)
			if err != nil {
				continue
			}
			n, _ := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
			sum += n
		}
	}
	return time.Duration(sum)
}

// rss is the resident set in KiB, of the process and its workers.
func (p *process) rss() int {
	sum := 0
	for _, pid := range p.pids() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
				n, _ := strconv.Atoi(strings.Fields(rest)[0])
				sum += n
			}
		}
	}
	return sum
}

// stop ends it, workers included.
func (p *process) stop() {
	for _, pid := range p.pids()[1:] {
		if w, err := os.FindProcess(pid); err == nil {
			defer w.Kill()
		}
	}
	p.cmd.Process.Kill()
	p.cmd.Wait()
}
