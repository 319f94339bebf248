package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/pgbaton/pgbaton/internal/durable"
)

// Spawn starts the server in a session of its own and does not wait for anything: a postmaster under way is what
// [Instance.Postmaster] finds. It goes on when the agent's process group is killed.
func (i *Instance) Spawn() (Process, error) {
	if !i.Owner.Known() {
		return Process{}, fmt.Errorf("starting %s: %w", filepath.Join(i.BinDir, "postgres"), ErrUnknownAccount)
	}
	log, err := i.openLog()
	if err != nil {
		return Process{}, err
	}
	defer log.Close()
	args := []string{"-D", i.ConfigDir}
	if i.ConfigDir != i.DataDir {
		args = append(args, "-c", "data_directory="+i.DataDir)
	}
	args = append(args, "-p", fmt.Sprint(i.Port))
	args = append(args, i.StartArgs...)
	cmd := exec.Command(filepath.Join(i.BinDir, "postgres"), args...)
	cmd.Dir = i.DataDir
	cmd.Env = i.Owner.env()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: i.Owner.credential()}
	if err := cmd.Start(); err != nil {
		return Process{}, fmt.Errorf("starting %s: %w", cmd.Path, err)
	}
	st, _ := readStat(cmd.Process.Pid)
	p := Process{PID: cmd.Process.Pid, Start: st.start}
	go cmd.Wait() // reaps it if it dies while this agent still runs
	return p, nil
}

// openLog opens the file that takes the server's standard error, owned by the server's user. The directory may be that
// user's: neither a link nor a pipe there may make root write to, or give away, anything else.
func (i *Instance) openLog() (*os.File, error) {
	if i.LogFile == "" {
		return os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	}
	if err := os.MkdirAll(filepath.Dir(i.LogFile), 0o755); err != nil {
		return nil, fmt.Errorf("log file of the server: %w", err)
	}
	f, err := os.OpenFile(i.LogFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o640)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("log file of the server: %s is a symbolic link: set logfile to where it leads", i.LogFile)
	}
	if err != nil {
		return nil, fmt.Errorf("log file of the server: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() && info.Mode()&fs.ModeCharDevice == 0 {
		err = fmt.Errorf("%s is neither a file nor a device: correct logfile", i.LogFile)
	}
	if err == nil && info.Mode().IsRegular() && info.Sys().(*syscall.Stat_t).Nlink != 1 {
		err = fmt.Errorf("%s has other names: correct logfile", i.LogFile)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("log file of the server: %w", err)
	}
	if os.Geteuid() == 0 && info.Mode().IsRegular() {
		if err := f.Chown(int(i.Owner.UID), int(i.Owner.GID)); err != nil {
			f.Close()
			return nil, fmt.Errorf("log file of the server: %w", err)
		}
	}
	return f, nil
}

// The signals of a postmaster (documentation, "Shutting Down the Server").
const (
	FastStop      = syscall.SIGINT
	ImmediateStop = syscall.SIGQUIT
	Reload        = syscall.SIGHUP
)

// SetStandbySignal makes the next start a standby's (documentation, "Standby Server Operation").
func (i *Instance) SetStandbySignal() error {
	return i.touch("standby.signal")
}

// HasStandbySignal reports whether the next start would be a standby's.
func (i *Instance) HasStandbySignal() bool {
	_, err := os.Stat(filepath.Join(i.DataDir, "standby.signal"))
	return err == nil
}

// RequestPromotion asks a running standby for promotion, as pg_ctl does: a file, and a signal to the postmaster
// (src/bin/pg_ctl/pg_ctl.c, do_promote). It needs no connection.
func (i *Instance) RequestPromotion(p Process) error {
	if err := i.touch("promote"); err != nil {
		return err
	}
	return p.Signal(syscall.SIGUSR1)
}

// CancelPromotion takes back a request that the postmaster has not seen.
func (i *Instance) CancelPromotion() error {
	err := os.Remove(filepath.Join(i.DataDir, "promote"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// WriteWAL puts a file into pg_wal, durably and owned by the server's user; used for timeline history files.
func (i *Instance) WriteWAL(name string, content []byte) error {
	return i.write(filepath.Join(i.DataDir, "pg_wal", name), content)
}

func (i *Instance) touch(name string) error {
	return i.write(filepath.Join(i.DataDir, name), nil)
}

// write replaces a file: written aside, flushed, renamed, its directory flushed. The directory is the server's user's: a
// link that waits there under the name of the new file is removed, never written through. The mode is that of the old
// file, else what the server itself would give it.
func (i *Instance) write(path string, content []byte) error {
	tmp := path + ".pgbaton"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	mode := fs.FileMode(0o600)
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
		mode = info.Mode().Perm()
	} else if dir, err := os.Stat(i.DataDir); err == nil && dir.Mode()&0o050 != 0 {
		mode = 0o640 // initdb --allow-group-access
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	if err := f.Chmod(mode); err != nil { // whatever the umask
		f.Close()
		return err
	}
	if os.Geteuid() == 0 {
		if err := f.Chown(int(i.Owner.UID), int(i.Owner.GID)); err != nil {
			f.Close()
			return err
		}
	}
	return durable.Put(f, content, path)
}
