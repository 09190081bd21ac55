package sealed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// helpers are what the test binary does when it is started as another process.
// Each works on the store in SEALED_DIR and fails by exit code and standard error.
var helpers = map[string]func(){
	"crash":     helpCrash,
	"count":     helpCount,
	"hammer":    helpHammer,
	"forbidden": helpForbidden,
}

// helper prepares another process; pairs are further environment variables.
func helper(t *testing.T, name, dir string, pairs ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(append(os.Environ(), "SEALED_HELPER="+name, "SEALED_DIR="+dir), pairs...)
	cmd.Stderr = os.Stderr
	return cmd
}

func must[T any](v T, err error) T {
	check(err)
	return v
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "helper:", err)
		os.Exit(1)
	}
}

func helperStore() *Store { return must(Open(options(os.Getenv("SEALED_DIR")))) }

func helperFields(text string) map[string]*secret.Value {
	return map[string]*secret.Value{"api_key": must(secret.New([]byte(text)))}
}

// helpCrash writes "new" and kills itself before step number SEALED_STEP. It
// exits with 0 if there are not that many steps.
func helpCrash() {
	die := must(strconv.Atoi(os.Getenv("SEALED_STEP")))
	s := helperStore()
	n := 0
	s.disk.before = func(step string) error {
		if n == die {
			if step == "sync file" && os.Getenv("SEALED_TORN") != "" {
				tear(s.file)
			}
			fmt.Println(step)
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		n++
		return nil
	}
	must(s.Put(context.Background(), "a", helperFields("new value"), store.Any))
}

// tear cuts the temporary file in half, as a crash of the machine would.
func tear(file string) {
	for _, e := range must(os.ReadDir(filepath.Dir(file))) {
		if strings.HasPrefix(e.Name(), tempPrefix(file)) {
			name := filepath.Join(filepath.Dir(file), e.Name())
			check(os.Truncate(name, must(os.Stat(name)).Size()/2))
		}
	}
}

// helpCount raises a number that it shares with other processes SEALED_N times,
// by reading, checking and setting, and writes a path of its own as often.
func helpCount() {
	s := helperStore()
	own := "own/" + os.Getenv("SEALED_ID")
	for i := range must(strconv.Atoi(os.Getenv("SEALED_N"))) {
		for done := false; !done; {
			current := 0
			sec, err := s.Get(context.Background(), "shared", 0)
			if err == nil {
				current = sec.Version.Number
				sec.Destroy()
			} else if !errors.Is(err, store.ErrNotFound) {
				check(err)
			}
			_, err = s.Put(context.Background(), "shared", helperFields(fmt.Sprint(current+1)), current)
			if done = err == nil; !done && !errors.Is(err, store.ErrConflict) {
				check(err)
			}
		}
		must(s.Put(context.Background(), own, helperFields(fmt.Sprint(i+1)), i))
	}
}

// helpHammer writes forever and says each version number once it is written.
func helpHammer() {
	s := helperStore()
	for n := 1; ; n++ {
		v := must(s.Put(context.Background(), "a", helperFields(fmt.Sprintf("value %d", n)), store.Any))
		fmt.Println(v.Number)
	}
}

// helpForbidden runs as somebody who may read the store and not change its directory.
func helpForbidden() {
	s := helperStore()
	sec := must(s.Get(context.Background(), "a", 0))
	sec.Destroy()
	_, err := s.Put(context.Background(), "a", helperFields("new value"), store.Any)
	fmt.Println(err)
	if !errors.Is(err, store.ErrForbidden) {
		check(errors.New("the write was not forbidden"))
	}
	dir := os.Getenv("SEALED_DIR")
	for _, o := range []Options{
		{File: filepath.Join(dir, "postern.sealed"), KeyFile: filepath.Join(dir, "locked.key")},
		{File: filepath.Join(dir, "locked.sealed"), KeyFile: filepath.Join(dir, "postern.key"), Create: true},
		{File: filepath.Join(dir, "locked", "postern.sealed"), KeyFile: filepath.Join(dir, "postern.key"), Create: true},
	} {
		_, err := Open(o)
		fmt.Println(err)
		if !errors.Is(err, store.ErrForbidden) {
			check(errors.New("opening was not forbidden"))
		}
	}
}

// asNobody lets a command run as an ordinary user if the tests run as root, who
// may do anything. The binary is copied to where that user can reach it.
func asNobody(t *testing.T, cmd *exec.Cmd, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	const nobody = 65534
	to := filepath.Join(dir, "helper")
	from, err := os.Open(cmd.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(f, from); err != nil {
		t.Fatal(err)
	}
	f.Close()
	cmd.Path = to
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(filepath.Base(path), "postern") {
			err = os.Chown(path, nobody, nobody)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
