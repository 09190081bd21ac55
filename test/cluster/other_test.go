//go:build !linux

package cluster_test

import (
	"errors"
	"runtime"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest"
)

func TestCluster(t *testing.T) {
	agenttest.NotRun(t, "cluster", errors.New("a node of Kubernetes needs Linux, this is "+runtime.GOOS))
}
