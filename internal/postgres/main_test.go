package postgres

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

const bin = "/usr/lib/postgresql/15/bin"

// standStill makes this program, under whatever name and command line, stand still.
const standStill = "PGBATON_TEST_STAND_STILL"

// TestMain runs the tests in a pid namespace of their own: a server is started in a session of its own here, as the
// agent does, and yet none outlives a test, also one that is killed.
func TestMain(m *testing.M) {
	if os.Getenv(standStill) != "" {
		time.Sleep(time.Hour)
	}
	if os.Geteuid() != 0 {
		fmt.Fprintf(os.Stderr, "these tests run servers as another user: run them as root, not as uid %d\n", os.Geteuid())
		os.Exit(1)
	}
	if os.Getpid() != 1 {
		os.Exit(isolated())
	}
	if err := errors.Join(syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""), syscall.Mount("proc", "/proc", "proc", 0, "")); err != nil {
		fmt.Fprintln(os.Stderr, "a /proc of its own:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func isolated() int {
	runtime.LockOSThread() // Pdeathsig is about the thread
	exe, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command(exe, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// testInstance makes an instance that was shut down cleanly; its paths have spaces in them.
func testInstance(t *testing.T) *Instance {
	t.Helper()
	owner, err := LookupAccount("postgres")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "pgbaton test ")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, int(owner.UID), int(owner.GID)); err != nil {
		t.Fatal(err)
	}
	i := &Instance{
		DataDir: filepath.Join(dir, "data"), ConfigDir: filepath.Join(dir, "data"), BinDir: bin, SocketDir: dir, Port: 5433,
		LogFile: filepath.Join(dir, "log dir", "server.log"), Owner: owner,
		StartArgs: []string{"-c", `unix_socket_directories="` + dir + `"`, "-c", "listen_addresses=", "-c", "fsync=off"},
	}
	cmd := exec.Command(bin+"/initdb", "-D", i.DataDir, "-U", "postgres", "-A", "trust", "--no-sync", "--wal-segsize=1")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: owner.credential()}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	return i
}
