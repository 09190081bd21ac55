//go:build !linux

package wall_test

import (
	"errors"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest"
)

func runInside(t *testing.T) {
	agenttest.NotRun(t, "wall", errors.New("network namespaces are Linux's"))
}

func settle() error { return errors.New("network namespaces are Linux's") }

func memoryDir(r *run) string { r.t.Fatal("a tmpfs is Linux's"); return "" }
