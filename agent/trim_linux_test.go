package agent

import (
	"fmt"
	"os"
	"testing"
)

func TestOnlyWhatTheFileHoldsIsForgotten(t *testing.T) {
	const smaps = `00400000-00b21000 r-xp 00000000 fe:00 11 /postern
Rss:                6404 kB
Anonymous:             0 kB
00b21000-0125d000 r--p 00721000 fe:00 11 /postern
Anonymous:             0 kB
0125d000-0126d000 r--p 00e5d000 fe:00 11 /postern
Anonymous:            16 kB
0126d000-012f0000 rw-p 00e6d000 fe:00 11 /postern
Anonymous:             0 kB
7f4bcc410000-7f4bcc700000 rw-p 00000000 00:00 0 
Anonymous:             0 kB
7f4bcd000000-7f4bcd001000 r--p 00000000 fe:00 12 /lib/other
Anonymous:             0 kB
`
	if got, want := fmt.Sprintf("%x", unchanged([]byte(smaps), "/postern")), "[{400000 b21000} {b21000 125d000}]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// Of this process's own there is something to forget, and it goes on.
func TestTheProgramGoesOn(t *testing.T) {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	if len(unchanged(smaps, program)) == 0 {
		t.Errorf("no mapping of %s in\n%s", program, smaps)
	}
	forgetProgram()
	if fmt.Sprint(unchanged(smaps, "/nowhere")) != "[]" {
		t.Error("another file's")
	}
}
