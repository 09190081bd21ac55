package cluster

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// Level is how much of a cluster a machine can run. Each level has all that the ones below it have.
type Level int

const (
	// None: not even a control plane. What is to be shown needs plain processes.
	None Level = iota
	// ControlPlane: the API server, the controllers and the scheduler, as plain processes; no pod runs.
	ControlPlane
	// HostNetwork: pods run, in the node's network only (hostNetwork: true).
	HostNetwork
	// Pods: pods have a network of their own; no Services, no names.
	Pods
	// Full: Services and DNS too.
	Full
)

var levels = []string{"none", "control-plane", "host-network", "pods", "full"}

func (l Level) String() string { return levels[l] }

// highest is the level that $POSTERN_CLUSTER_LEVEL allows, and why it is less
// than the machine's: tests of the lower levels set it.
func highest() (Level, string, error) {
	name := os.Getenv("POSTERN_CLUSTER_LEVEL")
	if name == "" {
		return Full, "", nil
	}
	i := slices.Index(levels, name)
	if i < 0 {
		return None, "", fmt.Errorf("POSTERN_CLUSTER_LEVEL is %q, not one of %s", name, strings.Join(levels, ", "))
	}
	return Level(i), "POSTERN_CLUSTER_LEVEL is " + name, nil
}
