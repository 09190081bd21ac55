// Package cluster brings up a real Kubernetes of one node for tests, with a real
// Vault beside it, and takes all of it down again.
//
// etcd, the API server, the controllers, the scheduler, containerd, the kubelet
// and the cluster's network live in mount, network and process namespaces of
// their own, so that several clusters run side by side, nothing on the machine
// changes, and the end of the namespaces' first process is the end of
// everything. A test process reaches what is inside by [Cluster.Dial] and can
// listen there by [Cluster.Listen].
//
// Where the machine does not allow a node, less is brought up: [Level] says
// what, and [Cluster.Why] why. A test says by [NotRun] what it could not show then.
package cluster
