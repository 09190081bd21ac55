//go:build linux

package cluster

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/template"
	"time"

	"github.com/postern-proxy/postern/test/tools"
)

//go:embed files
var files embed.FS

// The cluster's addresses. Each cluster has a network of its own, so that all may have the same.
const (
	nodeIP   = "10.77.0.1"
	podNet   = "10.244.0.0/24"
	services = "10.96.0.0/16"
	apiIP    = "10.96.0.1"
	dnsIP    = "10.96.0.10"
	nodeName = "node1"
)

// upTimeout bounds how long the whole may take, also where all processors are busy with other tests.
const upTimeout = 5 * time.Minute

// Cluster is a running cluster. Its methods may be called concurrently.
type Cluster struct {
	Level      Level
	Why        string        // why the level is not Full; "" if it is
	Lacks      bool          // the reason is not the machine's kernel or rights: something is missing that could be there
	IP         string        // what listens here, or by Listen, is reached by pods
	CA         *CA           // of every server in the cluster
	Kubeconfig string        // the administrator's, a file
	Dir        string        // everything's state and logs
	UpIn       time.Duration // how long it took until the node was Ready

	api   string // host:port of the API server
	bin   map[string]string
	node  *namespaces // nil at ControlPlane
	procs processes
	users map[string]pair
	runc  string
	cni   string

	mu  sync.Mutex
	env []string // what else commands in the cluster are told
}

// Up brings up as much of a cluster as the machine can run. All of it ends with
// Down, and with the calling process.
func Up(ctx context.Context) (*Cluster, error) {
	limit, why, err := highest()
	if err != nil {
		return nil, err
	}
	if limit == None {
		return nil, errors.New("nothing is to be brought up: " + why)
	}
	sweep()
	c, err := up(ctx, limit, why)
	var node nodeError
	if errors.As(err, &node) {
		fmt.Fprintf(os.Stderr, "cluster: a node does not run here, so there is none: %v\n", err)
		c, err = up(ctx, ControlPlane, "the node did not come up: "+node.Error())
		if c != nil {
			c.Lacks = true // everything was looked at before: a fault cannot be told from a machine's limit
		}
	}
	return c, err
}

// nodeError is why a node does not come up where everything that was looked at before is as it needs it.
type nodeError struct{ error }

func up(ctx context.Context, limit Level, why string) (_ *Cluster, err error) {
	ctx, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	c := &Cluster{Level: limit, Why: why, Lacks: why != "", bin: map[string]string{}}
	if err := c.find(tools.ControlPlane); err != nil {
		return nil, err
	}
	if c.bin["helm"], err = tools.BuildHelm(); err != nil {
		return nil, err
	}
	if c.Dir, err = os.MkdirTemp("", fmt.Sprintf("%s%d-", prefix, os.Getpid())); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, c.Logs())
			err = errors.Join(err, c.Down())
		}
	}()
	if err := c.settle(ctx); err != nil {
		return nil, err
	}
	began := time.Now()
	if err := c.prepare(); err != nil {
		return nil, err
	}
	if c.node != nil {
		if err := c.startContainerd(); err != nil {
			return nil, err
		}
	}
	if err := c.startControlPlane(ctx); err != nil {
		return nil, err
	}
	if c.node != nil {
		if err := c.startNode(ctx); err != nil {
			return nil, nodeError{err}
		}
	}
	if err := c.await(ctx, "the ServiceAccount default", c.found("/api/v1/namespaces/default/serviceaccounts/default")); err != nil {
		return nil, err
	}
	c.UpIn = time.Since(began)
	return c, nil
}

// Down ends everything and removes it.
func (c *Cluster) Down() error {
	c.procs.kill(c.node)
	var errs []error
	if c.node != nil {
		errs = append(errs, c.node.close())
	}
	return errors.Join(append(errs, os.RemoveAll(c.Dir))...)
}

// find builds programs that are missing, and remembers where they are.
func (c *Cluster) find(programs []tools.GoBinary) error {
	for _, p := range programs {
		path, err := p.Build()
		if err != nil {
			return err
		}
		c.bin[p.Name] = path
	}
	return nil
}

// settle finds the highest level that works here and, for a node, makes its namespaces.
func (c *Cluster) settle(ctx context.Context) error {
	lower := func(to Level, reason error) {
		if to < c.Level {
			c.Level, c.Why, c.Lacks = to, strings.Join(strings.Fields(reason.Error()), " "), false
		}
	}
	without := func(to Level, program error) {
		lower(to, program)
		c.Lacks = os.Geteuid() == 0 // others may install nothing
	}
	var err error
	if c.Level > ControlPlane {
		if c.runc, err = tools.Runc.Find(); err != nil {
			without(ControlPlane, err)
		} else if _, err := tools.IP.Find(); err != nil {
			without(ControlPlane, err)
		}
	}
	if c.Level > ControlPlane {
		if err := c.find(tools.Node); err != nil {
			return err
		}
		if c.bin["pause"], err = goBuild(ctx, c.Dir, "./test/cluster/pause"); err != nil {
			return err
		}
		if c.node, err = newNamespaces(c.bin["pause"], filepath.Base(c.Dir)); err != nil {
			lower(ControlPlane, err)
		}
	}
	if c.Level > HostNetwork {
		if bridge, err := tools.Bridge.Find(); err != nil {
			without(HostNetwork, err)
		} else if err := c.node.run(ctx, nil, "sh", "-c", "ip link add probe0 type bridge && ip link delete probe0"); err != nil {
			lower(HostNetwork, err)
		} else {
			c.cni = filepath.Dir(bridge)
		}
	}
	if c.Level > Pods {
		if _, err := tools.IPTables.Find(); err != nil {
			without(Pods, err)
		} else if err := c.node.run(ctx, nil, "iptables", "-t", "nat", "-S"); err != nil {
			lower(Pods, err)
		}
	}
	if c.node != nil {
		if err := c.setUp(ctx); err != nil {
			lower(ControlPlane, fmt.Errorf("no network or mounts for a node: %w", err))
			node := c.node
			c.node = nil
			if err := node.close(); err != nil {
				return err
			}
		}
	}
	c.IP = "127.0.0.1"
	if c.node != nil {
		c.IP = nodeIP
	}
	return nil
}

// setUp prepares the node's namespaces.
func (c *Cluster) setUp(ctx context.Context) error {
	bridge, dns := "no", ""
	if c.Level >= Pods {
		bridge = "yes"
	}
	if c.Level >= Full {
		dns = dnsIP
	}
	script, err := files.ReadFile("files/setup.sh")
	if err != nil {
		return err
	}
	env := []string{"NODE_IP=" + nodeIP, "SERVICES=" + services, "DNS_IP=" + dns, "BRIDGE=" + bridge}
	return c.node.run(ctx, env, "sh", "-c", string(script))
}

// goBuild builds a program of this module into dir.
func goBuild(ctx context.Context, dir, pkg string) (string, error) {
	root, err := tools.Root()
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, filepath.Base(pkg))
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, pkg)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", pkg, err, out)
	}
	return program, nil
}

// prepare writes the keys, certificates and configurations of everything.
func (c *Cluster) prepare() error {
	for _, dir := range []string{"log", "pki", "kubelet", "containerd", "etcd"} {
		if err := os.MkdirAll(filepath.Join(c.Dir, dir), 0o755); err != nil {
			return err
		}
	}
	var err error
	if c.CA, err = newCA(); err != nil {
		return err
	}
	port, err := c.port(6443)
	if err != nil {
		return err
	}
	c.api = net.JoinHostPort(c.IP, port)
	signing, err := signingPair()
	if err != nil {
		return err
	}
	c.users = map[string]pair{}
	write := map[string][]byte{
		"pki/ca.crt": c.CA.PEM, "pki/sa.key": signing.key, "pki/sa.pub": signing.cert,
		"resolv.conf": nil, "hosts": nil,
	}
	for _, u := range []struct {
		name, organisation, user string
		hosts                    []string
	}{
		{"admin", "system:masters", "admin", nil},
		{"cm", "", "system:kube-controller-manager", nil},
		{"sched", "", "system:kube-scheduler", nil},
		{"proxy", "", "system:kube-proxy", nil},
		{"kubelet", "system:nodes", "system:node:" + nodeName, []string{nodeIP, "127.0.0.1", nodeName}},
		{"apiserver", "", "kube-apiserver", []string{
			c.IP, "127.0.0.1", apiIP, "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
		}},
	} {
		p, err := c.CA.issue(u.organisation, u.user, u.hosts...)
		if err != nil {
			return err
		}
		c.users[u.name] = p
		write["pki/"+u.name+".crt"], write["pki/"+u.name+".key"] = p.cert, p.key
		write[u.name+".kubeconfig"] = c.kubeconfig(p)
	}
	if c.node != nil {
		rendered, err := c.render()
		if err != nil {
			return err
		}
		for name, content := range rendered {
			write[name] = content
		}
	}
	for name, content := range write {
		if err := os.WriteFile(filepath.Join(c.Dir, name), content, 0o600); err != nil {
			return err
		}
	}
	c.Kubeconfig = filepath.Join(c.Dir, "admin.kubeconfig")
	if c.node == nil {
		return nil
	}
	conflist, err := os.ReadFile(filepath.Join(c.Dir, "pods.conflist"))
	if err != nil {
		return err
	}
	return os.WriteFile(c.node.path("/etc/cni/net.d/10-pods.conflist"), conflist, 0o644)
}

// containerdSocket is inside the node's mount namespace.
const containerdSocket = "/run/containerd/containerd.sock"

// pauseImage holds each pod's namespaces.
const pauseImage = "postern.test/pause:1"

func (c *Cluster) render() (map[string][]byte, error) {
	snapshotter := "overlayfs"
	if !c.node.overlays(c.Dir) {
		snapshotter = "native"
	}
	data := map[string]any{
		"Dir": c.Dir, "IP": nodeIP, "Node": nodeName, "PodNet": podNet, "DNS": dnsIP, "Level": c.Level,
		"Cgroup": c.node.cgroup, "Containerd": containerdSocket, "Snapshotter": snapshotter, "Pause": pauseImage,
		"Shim": c.bin["containerd-shim-runc-v2"], "Runc": c.runc, "CNI": c.cni,
	}
	rendered := map[string][]byte{}
	for _, name := range []string{"containerd.toml", "kubelet.yaml", "kube-proxy.yaml", "Corefile", "pods.conflist"} {
		t, err := template.New(name).Option("missingkey=error").ParseFS(files, "files/"+name)
		if err != nil {
			return nil, err
		}
		var out bytes.Buffer
		if err := t.Execute(&out, data); err != nil {
			return nil, err
		}
		rendered[name] = out.Bytes()
	}
	return rendered, nil
}

// port is the given one in a network of the cluster's own, and a free one else.
func (c *Cluster) port(fixed int) (string, error) {
	if c.node != nil {
		return fmt.Sprint(fixed), nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

func (c *Cluster) startContainerd() error {
	path := filepath.Dir(c.runc) + ":" + os.Getenv("PATH")
	return c.start("containerd", []string{"PATH=" + path}, "-c", filepath.Join(c.Dir, "containerd.toml"))
}

func (c *Cluster) startControlPlane(ctx context.Context) error {
	ports := make([]string, 4)
	for i, fixed := range []int{2379, 2380, 10257, 10259} {
		var err error
		if ports[i], err = c.port(fixed); err != nil {
			return err
		}
	}
	store, peer := "http://127.0.0.1:"+ports[0], "http://127.0.0.1:"+ports[1]
	_, apiPort, _ := net.SplitHostPort(c.api)
	pki := func(name string) string { return filepath.Join(c.Dir, "pki", name) }
	config := func(user string) string { return filepath.Join(c.Dir, user+".kubeconfig") }
	if err := c.start("etcd", nil, "--data-dir", filepath.Join(c.Dir, "etcd"), "--unsafe-no-fsync", "--log-level", "warn",
		"--listen-client-urls", store, "--advertise-client-urls", store,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer); err != nil {
		return err
	}
	advertise := c.IP
	if c.node == nil { // a loopback address cannot be advertised; nothing uses it without pods
		advertise = nodeIP
	}
	if err := c.start("kube-apiserver", nil, "--etcd-servers", store,
		"--bind-address", c.bindAll(), "--secure-port", apiPort, "--advertise-address", advertise,
		"--tls-cert-file", pki("apiserver.crt"), "--tls-private-key-file", pki("apiserver.key"), "--client-ca-file", pki("ca.crt"),
		"--kubelet-client-certificate", pki("admin.crt"), "--kubelet-client-key", pki("admin.key"),
		"--kubelet-certificate-authority", pki("ca.crt"), "--kubelet-preferred-address-types", "InternalIP",
		"--service-account-key-file", pki("sa.pub"), "--service-account-signing-key-file", pki("sa.key"),
		"--service-account-issuer", "https://kubernetes.default.svc.cluster.local", "--service-cluster-ip-range", services,
		"--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction", "--allow-privileged",
		// Controllers complain for ever where there is no front proxy to trust.
		"--requestheader-client-ca-file", pki("ca.crt"), "--requestheader-allowed-names", "front-proxy", "--requestheader-username-headers", "X-Remote-User",
		// A webhook by Service then works without kube-proxy too.
		"--enable-aggregator-routing"); err != nil {
		return err
	}
	if err := c.await(ctx, "the API server", c.found("/readyz")); err != nil {
		return err
	}
	if err := c.start("kube-controller-manager", nil,
		"--kubeconfig", config("cm"), "--authentication-kubeconfig", config("cm"), "--authorization-kubeconfig", config("cm"),
		"--use-service-account-credentials", "--service-account-private-key-file", pki("sa.key"), "--root-ca-file", pki("ca.crt"),
		"--leader-elect=false", "--kube-api-qps", "500", "--kube-api-burst", "1000", "--bind-address", "127.0.0.1", "--secure-port", ports[2]); err != nil {
		return err
	}
	return c.start("kube-scheduler", nil,
		"--kubeconfig", config("sched"), "--authentication-kubeconfig", config("sched"), "--authorization-kubeconfig", config("sched"),
		"--leader-elect=false", "--bind-address", "127.0.0.1", "--secure-port", ports[3])
}

// bindAll is where the API server listens: everywhere in its own network, for
// its Service too, and on loopback in the machine's.
func (c *Cluster) bindAll() string {
	if c.node != nil {
		return "0.0.0.0"
	}
	return "127.0.0.1"
}

func (c *Cluster) startNode(ctx context.Context) error {
	if err := c.await(ctx, "containerd", func(context.Context) error {
		conn, err := net.Dial("unix", c.node.path(containerdSocket))
		if err == nil {
			conn.Close()
		}
		return err
	}); err != nil {
		return err
	}
	archive := filepath.Join(c.Dir, "pause.tar")
	if err := (Archive{Name: pauseImage, Files: map[string]string{"/pause": c.bin["pause"]}, Entrypoint: []string{"/pause"}}).Write(archive); err != nil {
		return err
	}
	if err := c.Load(ctx, archive); err != nil {
		return err
	}
	if err := c.start("kubelet", nil, "--config", filepath.Join(c.Dir, "kubelet.yaml"), "--kubeconfig", filepath.Join(c.Dir, "kubelet.kubeconfig"),
		"--root-dir", filepath.Join(c.Dir, "kubelet"), "--hostname-override", nodeName, "--node-ip", nodeIP); err != nil {
		return err
	}
	if c.Level >= Full {
		if err := c.start("kube-proxy", nil, "--config", filepath.Join(c.Dir, "kube-proxy.yaml")); err != nil {
			return err
		}
		if err := c.start("coredns", nil, "-conf", filepath.Join(c.Dir, "Corefile")); err != nil {
			return err
		}
	}
	return c.await(ctx, "the node to be Ready", c.nodeReady)
}

// prefix begins the name of a cluster's folder and of its cgroup; the process that brought it up follows.
const prefix = "postern-cluster-"

// sweep removes what clusters have left whose process was killed: their own
// processes ended with it.
func sweep() {
	left, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range left {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), prefix), "-")
		pid, err := strconv.Atoi(owner)
		if err != nil || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			continue
		}
		// Another process may be sweeping too, so a failure is no reason to fail.
		_ = removeCgroups(filepath.Base(dir), 0)
		_ = os.RemoveAll(dir)
	}
}
