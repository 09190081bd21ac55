//go:build !linux

package cluster_test

import (
	"errors"
	"runtime"
	"testing"

	"github.com/postern-proxy/postern/test/cluster"
)

func TestCluster(t *testing.T) {
	cluster.NotRun(t, "cluster", errors.New("a node of Kubernetes needs Linux, this is "+runtime.GOOS))
}
