package vault

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/test/tools"
)

// A value that was read and destroyed is found nowhere in this process. Vault
// and its CLI make the value, so that the test itself never holds it: it keeps
// the bytes inverted.
func TestAReadValueIsGoneAfterDestroy(t *testing.T) {
	for name, opts := range map[string]vaulttest.Options{"plain": {}, "tls": {TLS: true}} {
		t.Run(name, func(t *testing.T) {
			v := vaulttest.Start(t, opts)
			generate := exec.Command("sh", "-c", `"$VAULT" write -field=random_bytes -f sys/tools/random/48 | "$VAULT" kv put -mount=secret postern/`+key+` api_key=-`)
			generate.Env = []string{"VAULT=" + tools.Vault(t), "VAULT_ADDR=" + v.Address, "VAULT_TOKEN=" + v.RootToken, "VAULT_CACERT=" + v.CAFile, "HOME=" + t.TempDir()}
			if out, err := generate.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			cfg := withToken(t, v.Address, v.RootToken)
			cfg.CAFile = v.CAFile
			s := open(t, cfg, quick())

			var inverted []byte
			for range 3 {
				got, err := s.Get(t.Context(), key, 0)
				if err != nil {
					t.Fatal(err)
				}
				got.Fields["api_key"].Use(func(b []byte) {
					inverted = inverted[:0]
					for _, c := range b[:48] {
						inverted = append(inverted, ^c)
					}
					if n := inMemory(t, inverted); n == 0 {
						t.Error("the live value is not found: the search is blind")
					}
				})
				got.Destroy()
			}
			// The connection's reader clears its buffer when it waits for the
			// next answer, which it does in its own goroutine.
			eventually(t, "the value to be gone", func() bool { return inMemory(t, inverted) == 0 })
		})
	}
}

// inMemory counts where the bytes whose inverse is given lie in this process's writable memory.
func inMemory(t *testing.T, inverted []byte) (n int) {
	t.Helper()
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	buf := make([]byte, 1<<20)
	defer clear(buf)
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(mode, "rw") || strings.HasSuffix(lines.Text(), "[vvar]") {
			continue
		}
		for at := from; at < to; at += uint64(len(buf) - len(inverted)) {
			got, _ := mem.ReadAt(buf[:min(uint64(len(buf)), to-at)], int64(at)) // guard pages cannot be read
			n += countInverted(buf[:got], inverted)
			clear(buf[:got])
		}
	}
	return n
}

func countInverted(b, inverted []byte) (n int) {
	first := ^inverted[0]
	for {
		i := bytes.IndexByte(b, first)
		if i < 0 || len(b)-i < len(inverted) {
			return n
		}
		same := true
		for j := range inverted {
			if b[i+j] != ^inverted[j] {
				same = false
				break
			}
		}
		if same {
			n++
		}
		b = b[i+1:]
	}
}
