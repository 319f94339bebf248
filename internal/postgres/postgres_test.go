package postgres

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("gave up after 20 s waiting for %s", what)
}

func connect(t *testing.T, i *Instance) *Session {
	t.Helper()
	var sess *Session
	eventually(t, "the server to take connections", func() bool {
		var err error
		sess, err = i.Connect(t.Context())
		return err == nil
	})
	t.Cleanup(sess.Close)
	return sess
}

func log(t *testing.T, i *Instance) string {
	data, _ := os.ReadFile(i.LogFile)
	return string(data)
}

// Ensure a server can be started, found, asked, promoted and killed, and that each answer is about this very server.
//
// Trap 38: an administrator's shell in the data directory is no left-over of a server.
func TestInstance(t *testing.T) {
	i := testInstance(t)
	ctx := t.Context()
	if _, err := i.Postmaster(); !errors.Is(err, ErrNotRunning) {
		t.Fatalf("before its start: %v, want %v", err, ErrNotRunning)
	}
	if err := i.SetStandbySignal(); err != nil {
		t.Fatal(err)
	}
	p, err := i.Spawn()
	if err != nil {
		t.Fatal(err)
	}
	// From now on it is there, although it has not written its pid file yet.
	for n := 0; ; n++ {
		pm, err := i.Postmaster()
		if err == nil && pm.Process != p {
			t.Fatalf("the postmaster is %v, want %v", pm.Process, p)
		}
		if err == nil && pm.Status == "ready" {
			break
		}
		if !p.Alive() || n > 20000 {
			t.Fatalf("the postmaster is %v, %v; log: %s", pm, err, log(t, i))
		}
		time.Sleep(time.Millisecond)
	}
	sess := connect(t, i)
	if in, err := sess.InRecovery(ctx); err != nil || !in {
		t.Fatalf("in recovery: %v, %v; want a standby", in, err)
	}
	if v, err := sess.Standby(ctx); err != nil || v.Streaming || v.Itself || v.Replayed == 0 {
		t.Errorf("%+v, %v; want a standby that does not stream", v, err)
	}

	pm, err := i.Postmaster()
	if err != nil {
		t.Fatal(err)
	}
	startup := false
	for _, title := range pm.Children() {
		startup = startup || strings.HasPrefix(title, "startup recovering")
	}
	if !startup {
		t.Errorf("children %v, want a startup process among them", pm.Children())
	}
	if err := i.RequestPromotion(pm.Process); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the promotion", func() bool { in, err := sess.InRecovery(ctx); return err == nil && !in })
	if i.HasStandbySignal() {
		t.Error("standby.signal is there after a promotion")
	}

	// Others that look a little like it: a shell in its directory, a program of its name elsewhere, a server's program
	// run there by root.
	bystanders := map[string]*exec.Cmd{
		"a shell of the server's user in the data directory": command(i, i.DataDir, "/bin/sleep", "600"),
		"a shell of root in the data directory":              {Path: "/bin/sleep", Args: []string{"sleep", "600"}, Dir: i.DataDir},
		"a server's program elsewhere":                       command(i, "/", copyOf(t, "/bin/sleep", "postgres"), "600"),
	}
	contained := command(i, i.DataDir, copyOf(t, "/bin/sleep", "postgres"), "600")
	contained.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
	bystanders["a server of a container, whose paths are the same there"] = contained
	for what, cmd := range bystanders {
		if err := cmd.Start(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer cmd.Wait()
		defer cmd.Process.Kill()
	}
	held := len(pm.Children()) + 1
	eventually(t, "the servers' processes to settle", func() bool {
		left, err := i.Leftovers()
		held = len(pm.Children()) + 1
		return err == nil && len(left) == held
	})

	// A pid alone is not a process.
	other := pm.Process
	other.Start++
	if err := other.Signal(syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) || other.Alive() {
		t.Errorf("a signal to another incarnation: %v, want %v", err, syscall.ESRCH)
	}
	if !pm.Alive() {
		t.Fatal("the signal hit")
	}

	// The postmaster is gone, a child that cannot notice is left.
	var child Process
	eventually(t, "the checkpointer to say what it is", func() bool { // it has its parent's name at first
		for p, title := range pm.Children() {
			if strings.Contains(title, "checkpointer") {
				child = p
			}
		}
		return child.PID != 0
	})
	if err := errors.Join(child.Signal(syscall.SIGSTOP), pm.Signal(syscall.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other children to end", func() bool { left, err := i.Leftovers(); return err == nil && len(left) == 1 })
	if _, err := i.Postmaster(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a killed postmaster: %v, want %v", err, ErrNotRunning)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if n, err := i.KillLeftovers(ctx); n < 1 || err != nil {
		t.Errorf("killed %d, %v; want 1", n, err)
	}
	if child.Alive() {
		t.Error("the child survived")
	}
	for what, cmd := range bystanders {
		if cmd.Process.Signal(syscall.Signal(0)) != nil {
			t.Errorf("%s was killed", what)
		}
	}
}

func command(i *Instance, dir, path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: i.Owner.credential()}
	return cmd
}

// copyOf copies a program under another name into a directory of its own.
func copyOf(t *testing.T, path, name string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(filepath.Join(dir, name), data, 0o755)); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// Ensure an old primary that follows itself, as it does through a virtual IP that has not moved yet, is not taken for a
// standby that streams; nor for itself one that feeds others.
func TestSession_Itself(t *testing.T) {
	i := testInstance(t)
	i.StartArgs = append(i.StartArgs, "-c", "primary_conninfo=host='"+i.SocketDir+"' port=5433 user=postgres application_name=n1")
	if err := i.SetStandbySignal(); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Spawn(); err != nil {
		t.Fatal(err)
	}
	sess := connect(t, i)
	eventually(t, "the server to follow itself", func() bool {
		v, err := sess.Standby(t.Context())
		if err != nil || v.Streaming {
			t.Fatalf("%+v, %v; want one that does not stream", v, err)
		}
		return v.Itself
	})
}

// Ensure locks of a server that is gone are removed if somebody else has its pid, and only then.
func TestRemoveStaleLocks(t *testing.T) {
	i := testInstance(t)
	pidFile := filepath.Join(i.DataDir, "postmaster.pid")
	socketLock := filepath.Join(i.SocketDir, ".s.PGSQL.5433.lock")
	other := command(i, "/", "/bin/sleep", "600")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer other.Process.Kill()
	write := func(path string, pid int, dir string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(fmtLock(pid, dir)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const nobody = 4194303
	for _, tt := range []struct {
		name      string
		pid       int
		dir       string // in the socket's lock file
		pidGone   bool
		socketToo bool
	}{
		{"of a process that is gone", nobody, i.DataDir, false, false}, // PostgreSQL copes
		{"of another process", other.Process.Pid, i.DataDir, true, true},
		{"the socket is another server's", other.Process.Pid, "/elsewhere", true, false},
	} {
		write(pidFile, tt.pid, i.DataDir)
		write(socketLock, tt.pid, tt.dir)
		removed, err := i.RemoveStaleLocks()
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if _, err := os.Stat(pidFile); errors.Is(err, fs.ErrNotExist) != tt.pidGone {
			t.Errorf("%s: postmaster.pid: %v (removed %q)", tt.name, err, removed)
		}
		if _, err := os.Stat(socketLock); errors.Is(err, fs.ErrNotExist) != tt.socketToo {
			t.Errorf("%s: lock of the socket: %v (removed %q)", tt.name, err, removed)
		}
	}
	write(pidFile, other.Process.Pid, i.DataDir)
	write(socketLock, other.Process.Pid, i.DataDir)
	if _, err := i.RemoveStaleLocks(); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Spawn(); err != nil {
		t.Fatal(err)
	}
	connect(t, i)
	if removed, err := i.RemoveStaleLocks(); err == nil || len(removed) > 0 {
		t.Errorf("of a running server: removed %q, %v", removed, err)
	}
}

// Ensure what is written into the directories of the server's user is his, and that no link there leads root astray.
func TestWrite_Links(t *testing.T) {
	i := testInstance(t)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("root's"), 0o600); err != nil {
		t.Fatal(err)
	}
	untouched := func(after string) {
		t.Helper()
		data, err := os.ReadFile(outside)
		info, err2 := os.Stat(outside)
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		if string(data) != "root's" || info.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Fatalf("after %s: root's file holds %q and belongs to uid %d", after, data, info.Sys().(*syscall.Stat_t).Uid)
		}
	}
	for _, name := range []string{"standby.signal", "standby.signal.pgbaton"} {
		if err := os.Symlink(outside, filepath.Join(i.DataDir, name)); err != nil {
			t.Fatal(err)
		}
		if err := i.SetStandbySignal(); err != nil {
			t.Errorf("%s is a link: %v", name, err)
		}
		untouched("standby.signal")
		info, err := os.Lstat(filepath.Join(i.DataDir, "standby.signal"))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != 0o600 || info.Sys().(*syscall.Stat_t).Uid != i.Owner.UID {
			t.Errorf("standby.signal has mode %v and belongs to uid %d", info.Mode(), info.Sys().(*syscall.Stat_t).Uid)
		}
		os.Remove(filepath.Join(i.DataDir, "standby.signal"))
	}

	if err := os.MkdirAll(filepath.Dir(i.LogFile), 0o755); err != nil {
		t.Fatal(err)
	}
	for what, make := range map[string]func() error{
		"a symbolic link": func() error { return os.Symlink(outside, i.LogFile) },
		"a hard link":     func() error { return os.Link(outside, i.LogFile) },
		"a pipe":          func() error { return syscall.Mkfifo(i.LogFile, 0o600) },
	} {
		if err := make(); err != nil {
			if what == "a hard link" && errors.Is(err, syscall.EXDEV) {
				t.Fatalf("%s: %v: TMPDIR must be one file system", what, err)
			}
			t.Fatal(err)
		}
		if _, err := i.Spawn(); err == nil {
			t.Errorf("logfile is %s: the server was started", what)
		}
		untouched("logfile is " + what)
		os.Remove(i.LogFile)
	}
}

// Ensure overrides win over every other file, leave no trace, and keep the mode and the user's own lines.
func TestOverride(t *testing.T) {
	i := testInstance(t)
	auto := filepath.Join(i.DataDir, "postgresql.auto.conf")
	own := "# Do not edit this file manually!\nwork_mem = '7MB'\nwal_sender_timeout = '30s'"
	if err := errors.Join(os.WriteFile(auto, []byte(own), 0o600), os.Chmod(auto, 0o640)); err != nil {
		t.Fatal(err)
	}
	for n, memory := range []string{"2MB", "1MB", "1MB"} { // the second replaces the first, the third changes nothing
		if changed, err := i.Override([2]string{"wal_sender_timeout", "2s"}, [2]string{"work_mem", memory}); err != nil || changed != (n < 2) {
			t.Fatalf("override %d: changed %t, %v", n+1, changed, err)
		}
	}
	for name, want := range map[string]string{"wal_sender_timeout": "2000", "work_mem": "1024"} {
		if got, err := i.ConfiguredValue(t.Context(), name); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", name, got, err, want)
		}
	}
	if data, _ := os.ReadFile(auto); strings.Count(strings.ToLower(string(data)), "work_mem") != 2 {
		t.Errorf("want one line of the user's and one of ours:\n%s", data)
	}
	info, err := os.Stat(auto)
	if err != nil || info.Mode().Perm() != 0o640 || info.Sys().(*syscall.Stat_t).Uid != i.Owner.UID {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if changed, err := i.Override(); !changed || err != nil {
		t.Errorf("take them back: %t, %v", changed, err)
	}
	if data, _ := os.ReadFile(auto); strings.TrimRight(string(data), "\n") != own {
		t.Errorf("got %q, want what was there before, %q", data, own)
	}
	if changed, err := i.Override(); changed || err != nil {
		t.Errorf("take nothing back: %t, %v", changed, err)
	}
}

func TestLookupAccount(t *testing.T) {
	root, err := LookupAccount("root")
	if err != nil || root.UID != 0 || root.Home != "/root" || len(root.Groups) == 0 {
		t.Errorf("root: %+v, %v", root, err)
	}
	for _, name := range []string{"nosuchuser", "--help", "", "root:x"} {
		if a, err := LookupAccount(name); err == nil || !strings.Contains(err.Error(), "correct the parameter system_user") {
			t.Errorf("%q: %+v, %v; want an error", name, a, err)
		}
	}
}

func TestActivity(t *testing.T) {
	for title, want := range map[string]string{
		"postgres: checkpointer \x00\x00":                                        "checkpointer",
		"postgres: startup recovering 000000010000000000000003":                  "startup recovering 000000010000000000000003",
		"postgres: startup1: walwriter ":                                         "walwriter",
		"postgres: archiver: walsender load 10.0.0.2(38012) streaming 0/3000148": "walsender load 10.0.0.2(38012) streaming 0/3000148",
		"/usr/lib/postgresql/15/bin/postgres\x00-D\x00/startup\x00":              "",
	} {
		if got := activity(title); got != want {
			t.Errorf("%q: %q, want %q", title, got, want)
		}
	}
}
