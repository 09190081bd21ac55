//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// namespaces are the node's mount, network and process namespaces and its
// cgroup. They end with their first process, and so does everything in them.
type namespaces struct {
	first   *process
	netFile string
	cgroup  string
}

func newNamespaces(pause, cgroup string) (*namespaces, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("only root may make a node's namespaces and cgroups")
	}
	for _, program := range []string{"nsenter", "sh", "mount"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("a node needs %s: %w", program, err)
		}
	}
	n := &namespaces{cgroup: cgroup}
	if err := n.makeCgroups(); err != nil {
		return nil, errors.Join(fmt.Errorf("no cgroup for a node: %w", err), n.removeCgroups())
	}
	cmd := exec.Command(pause)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID}
	first, err := startProcess("pause", cmd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("no namespaces for a node: %w", err), n.removeCgroups())
	}
	n.first = first
	n.netFile = fmt.Sprintf("/proc/%d/ns/net", first.pid())
	return n, nil
}

// path is a path of the node's mount namespace, as seen from outside.
func (n *namespaces) path(inside string) string {
	return fmt.Sprintf("/proc/%d/root%s", n.first.pid(), inside)
}

// enter are the words before a command that put it into all the namespaces.
func (n *namespaces) enter() []string {
	return []string{"nsenter", "--target", fmt.Sprint(n.first.pid()), "--mount", "--net", "--pid", "--"}
}

// run runs a command in the namespaces.
func (n *namespaces) run(ctx context.Context, env []string, words ...string) error {
	what := strings.Join(words, " ")
	if strings.Contains(what, "\n") { // a script says itself what failed
		what = words[0]
	}
	words = append(n.enter(), words...)
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Env = append(os.Environ(), append(env, "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", what, err, out)
	}
	return nil
}

// overlays says whether this file system can be the lower and upper half of an overlay.
func (n *namespaces) overlays(dir string) bool {
	probe, err := os.MkdirTemp(dir, "overlay-")
	if err != nil {
		return false
	}
	defer os.RemoveAll(probe)
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(probe, name), 0o755); err != nil {
			return false
		}
	}
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", probe)
	merged := filepath.Join(probe, "merged")
	if err := n.run(context.Background(), nil, "mount", "-t", "overlay", "-o", options, "overlay", merged); err != nil {
		return false
	}
	return n.run(context.Background(), nil, "umount", merged) == nil
}

func (n *namespaces) close() error {
	n.first.kill()
	<-n.first.exited
	return n.removeCgroups()
}

// makeCgroups makes the cgroup that the kubelet puts pods below, in the one
// hierarchy of version 2 or in each of version 1's.
func (n *namespaces) makeCgroups() error {
	var info unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &info); err != nil {
		return err
	}
	if info.Type == unix.CGROUP2_SUPER_MAGIC {
		own := filepath.Join("/sys/fs/cgroup", n.cgroup)
		if err := os.Mkdir(own, 0o755); err != nil {
			return err
		}
		controllers, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		if err != nil {
			return err
		}
		for _, name := range strings.Fields(string(controllers)) {
			// What cannot be handed on is missed by the kubelet, which says so, or not needed.
			_ = os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+"+name), 0)
			_ = os.WriteFile(filepath.Join(own, "cgroup.subtree_control"), []byte("+"+name), 0)
		}
		return nil
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	made := 0
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[2] != "cgroup" {
			continue
		}
		own := filepath.Join(fields[1], n.cgroup)
		if err := os.Mkdir(own, 0o755); errors.Is(err, fs.ErrExist) {
			continue // one hierarchy may be mounted twice
		} else if err != nil {
			return err
		}
		made++
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} { // a new set is empty, and then nothing may run in it
			if value, err := os.ReadFile(filepath.Join(fields[1], name)); err == nil {
				if err := os.WriteFile(filepath.Join(own, name), value, 0); err != nil {
					return err
				}
			}
		}
	}
	if made == 0 {
		return errors.New("none is mounted below /sys/fs/cgroup")
	}
	return nil
}

// removeCgroups removes the cgroup with all below it, once its processes are gone.
func (n *namespaces) removeCgroups() error { return removeCgroups(n.cgroup, 10*time.Second) }

// removeCgroups looks into every hierarchy: beside version 1 there may be one of
// version 2, where the runtime makes a cgroup of the same name.
func removeCgroups(name string, limit time.Duration) error {
	return Within(limit, func() error {
		var errs []error
		for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
			found, err := filepath.Glob(pattern + name)
			errs = append(errs, err)
			for _, cgroup := range found {
				errs = append(errs, removeTree(cgroup))
			}
		}
		return errors.Join(errs...)
	})
}

// removeTree removes folders from the bottom up; a cgroup's files go with their folder.
func removeTree(root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	slices.Reverse(dirs)
	for _, dir := range dirs {
		if e := syscall.Rmdir(dir); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = fmt.Errorf("remove %s: %w", dir, e)
		}
	}
	return err
}

// Within tries until something works or time is up.
func Within(limit time.Duration, try func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-timer.C:
			return err
		}
	}
}

// process is a running program. It ends with the calling process, however that ends.
type process struct {
	name   string
	cmd    *exec.Cmd
	exited chan struct{}
}

// startProcess starts a program on a thread that is its alone: the kernel ends
// a child with its parent's thread.
func startProcess(name string, cmd *exec.Cmd) (*process, error) {
	p := &process{name: name, cmd: cmd, exited: make(chan struct{})}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr.Setpgid = true // Ctrl-C is for who waits, who then ends the cluster
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended stands in cmd.ProcessState
			close(p.exited)
		}
	}()
	return p, <-started
}

func (p *process) pid() int { return p.cmd.Process.Pid }
func (p *process) kill()    { _ = p.cmd.Process.Kill() }

// processes are a cluster's.
type processes struct {
	mu  sync.Mutex
	all []*process
}

func (ps *processes) add(p *process) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.all = append(ps.all, p)
}

func (ps *processes) remove(p *process) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.all = slices.DeleteFunc(ps.all, func(other *process) bool { return other == p })
}

// kill ends all, and with a node's first process also what they have left behind.
func (ps *processes) kill(node *namespaces) {
	if node != nil {
		node.first.kill()
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.all {
		p.kill()
		<-p.exited
	}
	ps.all = nil
}

// ended is an error if a program has ended that should be running.
func (ps *processes) ended() error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.all {
		select {
		case <-p.exited:
			return fmt.Errorf("%s has ended: %v", p.name, p.cmd.ProcessState)
		default:
		}
	}
	return nil
}

// start starts one of the cluster's programs, in the node's namespaces if there are any.
func (c *Cluster) start(name string, env []string, args ...string) error {
	words := append([]string{c.bin[name]}, args...)
	if c.node != nil {
		words = append(c.node.enter(), words...)
	}
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Dir = c.Dir
	cmd.Env = append(append(os.Environ(), "HOME="+c.Dir, "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin"), env...)
	log, err := os.OpenFile(filepath.Join(c.Dir, "log", name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	p, err := startProcess(name, cmd)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	c.procs.add(p)
	return nil
}

// inNetwork calls f on a thread in the cluster's network. A socket stays in the
// network that it was made in, so f may make one for others to use.
func (c *Cluster) inNetwork(f func() error) error {
	if c.node == nil {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with this goroutine, because nothing else may run in that network.
		runtime.LockOSThread()
		done <- func() error {
			file, err := os.Open(c.node.netFile)
			if err != nil {
				return err
			}
			defer file.Close()
			if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter the cluster's network: %w", err)
			}
			return f()
		}()
	}()
	return <-done
}

// Dial connects to a literal address of the cluster's network.
func (c *Cluster) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = c.inNetwork(func() error {
		conn, err = (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens on a port of the cluster's IP; 0 is any free one.
func (c *Cluster) Listen(port int) (listener net.Listener, err error) {
	err = c.inNetwork(func() error {
		listener, err = net.Listen("tcp", net.JoinHostPort(c.IP, fmt.Sprint(port)))
		return err
	})
	return listener, err
}

// Pids are the processes of this name in the node's pods.
func (c *Cluster) Pids(name string) []int {
	if c.node == nil {
		return nil
	}
	var pids []int
	found, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range found { // one that has ended meanwhile cannot be read
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil || strings.TrimSpace(string(comm)) != name {
			continue
		}
		groups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		if pid, e := strconv.Atoi(filepath.Base(dir)); err == nil && e == nil && strings.Contains(string(groups), c.node.cgroup) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Pid is the first process of the node's namespaces, 0 if there is no node.
func (c *Cluster) Pid() int {
	if c.node == nil {
		return 0
	}
	return c.node.first.pid()
}
