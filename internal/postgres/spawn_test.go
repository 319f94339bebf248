package postgres

import (
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
)

// Ensure a server is there from the moment that Spawn returns. A monitor that finds neither a pid file nor a process reports
// that nothing runs, and Pacemaker recovers what has just been started.
func TestInstance_Spawn(t *testing.T) {
	i := testInstance(t)
	var done atomic.Bool
	defer done.Store(true)
	for range runtime.NumCPU() + 1 { // where the new process has to wait for a processor, such a moment is long
		go func() {
			for n := 0; !done.Load(); n++ { // busy
			}
		}()
	}
	for start := range 100 {
		p, err := i.Spawn()
		if err != nil {
			t.Fatal(err)
		}
		for look := 0; ; look++ {
			pm, err := i.Postmaster()
			if !p.Alive() {
				t.Fatalf("start %d, look %d: the server died: %s", start, look, log(t, i))
			}
			if err != nil || pm.Process != p {
				cwd, _ := os.Readlink(procPath(p.PID, "cwd"))
				t.Errorf("start %d, look %d: the postmaster is %v, %v; want %v, which is in %s by now", start, look, pm, err, p, cwd)
				break
			}
			if pm.Status != "" {
				break
			}
		}
		if err := p.Signal(ImmediateStop); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the server to end", func() bool {
			left, err := i.Leftovers()
			return err == nil && len(left) == 0 && !p.Alive()
		})
		if _, err := i.Postmaster(); !errors.Is(err, ErrNotRunning) {
			t.Fatalf("after its end: %v, want %v", err, ErrNotRunning)
		}
	}
}

// Ensure a postmaster is known by its command line while it is in the directory of its executable, and nothing else there is
// taken for one.
func TestInstance_Spawn_Elsewhere(t *testing.T) {
	i := testInstance(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	exe := copyOf(t, self, "postgres")
	i.BinDir = filepath.Dir(exe)
	for _, tt := range []struct {
		what   string
		args   []string
		dir    string // where it is: that of its executable unless said
		root   bool
		expect bool
	}{
		{what: "as it is spawned", args: []string{"-D", i.ConfigDir, "-p", "5433"}, expect: true},
		{what: "of another directory", args: []string{"-D", i.ConfigDir + "2", "-p", "5433"}},
		{what: "of another data directory by the same configuration", args: []string{"-D", i.ConfigDir, "-c", "data_directory=/tmp"}, dir: "/tmp"},
		{what: "asks for a setting in one word", args: []string{"-D", i.ConfigDir, "-Cport"}},
		{what: "asks for a setting", args: []string{"-D", i.ConfigDir, "-C", "port"}},
		{what: "asks for a setting, as the agent does", args: []string{"-C", "port", "-D", i.ConfigDir}},
		{what: "asks for a setting, as the agent does, in the data directory", args: []string{"-C", "port", "-D", i.ConfigDir}, dir: i.RealDataDir()},
		{what: "asks for the version, in the data directory", args: []string{"-V"}, dir: i.RealDataDir()},
		{what: "serves, in the data directory", args: []string{"-D", i.ConfigDir, "-c", "archive_command=-C"}, dir: i.RealDataDir(), expect: true},
		{what: "root's", args: []string{"-D", i.ConfigDir, "-p", "5433"}, root: true},
		{what: "of a child", args: nil},
	} {
		cmd := command(i, cmp.Or(tt.dir, filepath.Dir(exe)), exe, tt.args...)
		if tt.root {
			cmd.SysProcAttr.Credential = nil
		}
		cmd.Env = []string{standStill + "=1"}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "its command line", func() bool { // execve(2) sets it up after Start has returned
			line, err := os.ReadFile(procPath(cmd.Process.Pid, "cmdline"))
			return err == nil && len(line) > 0
		})
		pm, err := i.Postmaster()
		left, lerr := i.Leftovers()
		held := slices.ContainsFunc(left, func(p Process) bool { return p.PID == cmd.Process.Pid })
		if found := err == nil && pm.PID == cmd.Process.Pid; found != tt.expect || held != tt.expect || lerr != nil {
			t.Errorf("%s: the postmaster is %v, %v, what holds the directory is %v, %v; want %v", tt.what, pm, err, left, lerr, tt.expect)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Errorf("%s: %v", tt.what, err)
		}
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != -1 {
			t.Errorf("%s: it ended by itself: %v", tt.what, err)
		}
	}
}
