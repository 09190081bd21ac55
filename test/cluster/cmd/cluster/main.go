//go:build linux

// Command cluster brings up a Kubernetes of one node with a Vault in it, runs a
// command there, and takes everything down again:
//
//	go run ./test/cluster/cmd/cluster                      until Ctrl-C
//	go run ./test/cluster/cmd/cluster kubectl get pods -A
//	go run ./test/cluster/cmd/cluster sh
//
// The command has KUBECONFIG, VAULT_ADDR, VAULT_TOKEN, VAULT_CACERT, and kubectl,
// helm and vault in its PATH. The images are in the node as postern:dev
// and postern-injector:dev.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/postern-proxy/postern/test/cluster"
)

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "cluster: %v\n", err)
		code = 1
	}
	os.Exit(code)
}

func run(command []string) (code int, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c, err := cluster.Up(ctx)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, c.Down()) }()
	fmt.Println(c)
	if _, err := c.StartVault(ctx); err != nil {
		return 1, err
	}
	if c.Level >= cluster.HostNetwork {
		if err := load(ctx, c); err != nil {
			return 1, err
		}
	}
	if len(command) == 0 {
		fmt.Printf("export KUBECONFIG=%s\n", c.Kubeconfig)
		if pid := c.Pid(); pid != 0 {
			fmt.Printf("in another terminal: nsenter -t %d -n kubectl get pods -A\n", pid)
		}
		fmt.Println("Ctrl-C takes it down")
		<-ctx.Done()
		return 0, nil
	}
	// From here on Ctrl-C is for the command, which gets it from the terminal too.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	stop()
	cmd := c.Command(context.Background(), command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// load builds the images and loads them, if the machine can build any.
func load(ctx context.Context, c *cluster.Cluster) error {
	builder, err := cluster.NewBuilder(ctx, filepath.Join(c.Dir, "builder"))
	if err != nil {
		fmt.Printf("NOT RUN: images: %v\n", err)
		return nil
	}
	for target, name := range map[string]string{"agent": "postern:dev", "injector": "postern-injector:dev"} {
		archive := filepath.Join(c.Dir, target+".tar")
		if err := builder.Build(ctx, cluster.Target{Name: target, Image: name}, archive); err != nil {
			return err
		}
		if err := c.Load(ctx, archive); err != nil {
			return err
		}
	}
	return nil
}
