//go:build race

package e2e_test

// slower is how much longer things may take: this process, with the provider,
// the clients and what stands before Vault in it, is many times slower under the race detector.
const slower = 3
