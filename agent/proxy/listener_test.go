package proxy

import "testing"

// Clients never get all the files that there are, however few these are.
func TestClientsLeaveFilesForProviders(t *testing.T) {
	for files, want := range map[uint64]int64{
		0: 16, 64: 16, 256: 96, 1024: 480, 20_000: 9968, 1 << 20: maxConns, ^uint64(0): maxConns,
	} {
		if got := mostConns(files); got != want {
			t.Errorf("%d files: %d connections, want %d", files, got, want)
		}
	}
}
