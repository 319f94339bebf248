package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Instance is one PostgreSQL server as its parameters describe it. The zero value is of no use.
type Instance struct {
	DataDir   string // holds PG_VERSION and global/pg_control
	ConfigDir string // holds postgresql.conf; the same as DataDir unless the distribution splits them
	BinDir    string
	SocketDir string // directory of the Unix socket, or a host name
	Port      int
	StartArgs []string // added to the server's command line
	LogFile   string   // takes the server's standard error as long as no logging collector does
	Owner     Account
	// RecordedUID is the uid that ran the server when it last started, 0 if not known: the parameters may have been
	// changed since.
	RecordedUID uint32
	// RecordedDir is the data directory at that time, without symbolic links: what one led to cannot be asked any more
	// once it is gone.
	RecordedDir string
}

// Process is one process incarnation: a pid alone may be reused.
type Process struct {
	PID   int
	Start uint64 // clock ticks since boot, field 22 of /proc/PID/stat
}

// Postmaster is what postmaster.pid and /proc say of the server of this data directory.
type Postmaster struct {
	Process
	Status string // line 8 of postmaster.pid: starting, ready, standby, stopping ("" before it was written)
}

// ForeignError says that a server of this data directory runs as a user that is neither that of the parameters nor the
// owner of the directory.
type ForeignError struct {
	Path string
	PID  int
	Exe  string
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("pid %d (%s) serves this data directory as another user: %s", e.PID, e.Exe, e.Path)
}

// ErrNotRunning says that no postmaster serves the data directory. Left-over children may still run: see
// [Instance.Leftovers].
var ErrNotRunning = errors.New("no postmaster is running")

// Postmaster finds the running postmaster, or says [ErrNotRunning]. One that has only just been started counts, although
// it has not written its pid file yet. A pid file whose process is gone, a zombie or somebody else's does not count; a
// server that serves this very directory as a user that nobody here knows is a [ForeignError].
func (i *Instance) Postmaster() (Postmaster, error) {
	path := filepath.Join(i.DataDir, "postmaster.pid")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return i.starting()
	}
	if err != nil {
		return Postmaster{}, err
	}
	lines := strings.Split(string(data), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil || pid == 0 {
		return i.starting() // empty: being written, or left by a crash of the file system
	}
	if pid < 0 {
		pid = -pid // a standalone backend (postgres --single) holds the directory
	}
	st, ok := readStat(pid)
	if !ok || st.zombie {
		return i.starting()
	}
	if !i.owns(pid) {
		exe, _ := os.Readlink(procPath(pid, "exe"))
		if filepath.Base(strings.TrimSuffix(exe, " (deleted)")) == "postgres" {
			if cwd, _ := os.Readlink(procPath(pid, "cwd")); cwd == i.RealDataDir() {
				return Postmaster{}, &ForeignError{Path: path, PID: pid, Exe: exe}
			}
		}
		return i.starting() // the pid was reused
	}
	return Postmaster{Process: Process{PID: pid, Start: st.start}, Status: lockFileStatus(lines)}, nil
}

// LastStatus is what the last postmaster wrote of itself into its lock file, "" if that is gone: it is removed by a shutdown, and
// stays after a crash.
func (i *Instance) LastStatus() string {
	data, err := os.ReadFile(filepath.Join(i.DataDir, "postmaster.pid"))
	if err != nil {
		return ""
	}
	return lockFileStatus(strings.Split(string(data), "\n"))
}

// lockFileStatus is the line LOCK_FILE_LINE_PM_STATUS (miscadmin.h).
func lockFileStatus(lines []string) string {
	if len(lines) <= 7 {
		return ""
	}
	return strings.TrimSpace(lines[7])
}

// starting finds a postmaster that has not written its pid file yet, which it does some milliseconds after its start:
// unlike its children, it has no title of its own ("postgres: ..."). A child that was cut off between its fork and its
// title looks the same.
func (i *Instance) starting() (Postmaster, error) {
	list, err := i.Leftovers()
	if err != nil {
		return Postmaster{}, err
	}
	for _, p := range list {
		// Without a command line, execve(2) is still setting it up: Spawn returns in the middle of that.
		args := arguments(p.PID)
		for ; args == nil && i.owns(p.PID); args = arguments(p.PID) {
			time.Sleep(100 * time.Microsecond)
		}
		if args != nil && !strings.HasPrefix(args[0], "postgres:") && i.owns(p.PID) {
			return Postmaster{Process: p}, nil
		}
	}
	return Postmaster{}, ErrNotRunning
}

// Alive reports whether this very incarnation still runs. A zombie does not.
func (p Process) Alive() bool {
	st, ok := readStat(p.PID)
	return ok && !st.zombie && st.start == p.Start
}

// Stopped reports whether this incarnation was stopped by a signal: it lives, and does nothing.
func (p Process) Stopped() bool {
	st, ok := readStat(p.PID)
	return ok && st.stopped && st.start == p.Start
}

// WaitsFor says for which file this incarnation waits in the kernel, uninterruptibly: the one whose descriptor is the first
// argument of its system call. switches is how often the kernel has scheduled it: the same number twice means that all this
// time was one and the same wait.
func (p Process) WaitsFor() (path string, switches uint64, ok bool) {
	st, ok := readStat(p.PID)
	if !ok || !st.uninterruptible || st.start != p.Start {
		return "", 0, false
	}
	call, err := os.ReadFile(procPath(p.PID, "syscall")) // proc(5): number, arguments in hexadecimal
	f := strings.Fields(string(call))
	if err != nil || len(f) < 2 {
		return "", 0, false
	}
	fd, err := strconv.ParseUint(f[1], 0, 64)
	if err != nil {
		return "", 0, false
	}
	if path, err = os.Readlink(procPath(p.PID, "fd/"+strconv.FormatUint(fd, 10))); err != nil {
		return "", 0, false
	}
	status, err := os.ReadFile(procPath(p.PID, "status"))
	if err != nil {
		return "", 0, false
	}
	for line := range strings.Lines(string(status)) {
		if name, value, _ := strings.Cut(line, ":"); strings.HasSuffix(name, "voluntary_ctxt_switches") { // both kinds
			n, _ := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
			switches += n
		}
	}
	return path, switches, true
}

// Leftovers lists the server processes that hold the data directory: by working directory, executable and owner
// together, since an administrator's shell may stand in that directory too.
func (i *Instance) Leftovers() ([]Process, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var list []Process
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || !i.owns(pid) {
			continue
		}
		if st, ok := readStat(pid); ok && !st.zombie {
			list = append(list, Process{PID: pid, Start: st.start})
		}
	}
	return list, nil
}

// Children lists the processes whose parent is p, with what each says that it does: see activity.
func (p Process) Children() map[Process]string {
	found := map[Process]string{}
	var pids []string
	threads, _ := filepath.Glob(procPath(p.PID, "task/*/children")) // a postmaster has one thread; others start children from any
	for _, t := range threads {
		data, _ := os.ReadFile(t)
		pids = append(pids, strings.Fields(string(data))...)
	}
	if dirs, err := os.ReadDir("/proc"); len(threads) == 0 && err == nil {
		for _, d := range dirs { // a kernel without CONFIG_PROC_CHILDREN
			pids = append(pids, d.Name())
		}
	}
	for _, s := range pids {
		pid, err := strconv.Atoi(s)
		if err != nil {
			continue
		}
		st, ok := readStat(pid)
		if !ok || st.zombie || st.ppid != p.PID {
			continue
		}
		title, _ := os.ReadFile(procPath(pid, "cmdline"))
		found[Process{PID: pid, Start: st.start}] = activity(string(title))
	}
	return found
}

// activity is what a server's process writes behind "postgres: " and its cluster_name (init_ps_display in ps_status.c), as in
// "startup recovering 000000010000000000000003" or "walsender replicator 10.0.0.2(38012) streaming 0/3000148"; "" as long as it
// has not written it. A cluster_name may be any of these words.
func activity(title string) string {
	title, ok := strings.CutPrefix(strings.TrimRight(title, " \x00"), "postgres: ")
	if !ok {
		return ""
	}
	if at := strings.LastIndex(title, ": "); at >= 0 {
		title = title[at+2:]
	}
	return title
}

// Signal sends to this incarnation, and only to it.
func (p Process) Signal(sig syscall.Signal) error {
	if !p.Alive() {
		return syscall.ESRCH
	}
	return syscall.Kill(p.PID, sig)
}

// KillLeftovers ends every process that holds the data directory, with SIGKILL, and waits until they are gone: only
// then does the end of its WAL stand still. The error names what could not be killed (it hangs in the kernel).
//
// A process on its way out gives up its memory before its files (do_exit in Linux' kernel/exit.c): its executable cannot
// be asked any more and [Instance.Leftovers] does not see it, but it is not gone. What was killed is therefore waited
// for by its own incarnation.
func (i *Instance) KillLeftovers(ctx context.Context) (int, error) {
	killed := map[Process]bool{}
	for {
		list, err := i.Leftovers()
		if err != nil {
			return len(killed), err
		}
		for _, p := range list {
			if !killed[p] && p.Signal(syscall.SIGKILL) == nil {
				killed[p] = true
			}
		}
		for p := range killed {
			if p.Alive() && !slices.Contains(list, p) {
				list = append(list, p)
			}
		}
		if len(list) == 0 {
			return len(killed), nil
		}
		select {
		case <-ctx.Done():
			return len(killed), fmt.Errorf("pid %d and %d more of %s survive SIGKILL (a disk that does not answer?): %w", list[0].PID, len(list)-1, i.DataDir, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// RealDataDir is the data directory without symbolic links, as the working directory of a server shows it.
func (i *Instance) RealDataDir() string {
	if real, err := filepath.EvalSymlinks(i.DataDir); err == nil {
		return real
	}
	if i.RecordedDir != "" {
		return i.RecordedDir
	}
	return i.DataDir
}

// owns: working directory, executable and owner together. The owner is whom the parameters name, or the server's start
// recorded, or the data directory belongs to (the server refuses to run as anybody else: checkDataDir in
// src/backend/utils/init/miscinit.c), so that a wrong parameter does not make a running server invisible.
func (i *Instance) owns(pid int) bool {
	exe, err := os.Readlink(procPath(pid, "exe"))
	if err != nil || filepath.Base(strings.TrimSuffix(exe, " (deleted)")) != "postgres" {
		return false
	}
	cwd, err := os.Readlink(procPath(pid, "cwd"))
	if err != nil || (strings.TrimSuffix(cwd, " (deleted)") != i.RealDataDir() && !(i.isBinDir(cwd) && i.spawned(pid))) {
		return false
	}
	info, err := os.Stat(procPath(pid, ""))
	if err != nil || elsewhere(pid) || onlyTells(pid) {
		return false
	}
	uid := info.Sys().(*syscall.Stat_t).Uid
	if uid == 0 {
		return false // no server runs as root
	}
	if uid == i.Owner.UID || uid == i.RecordedUID {
		return true
	}
	dir, err := os.Stat(i.DataDir)
	return err == nil && uid == dir.Sys().(*syscall.Stat_t).Uid
}

// elsewhere reports whether a process is in another pid namespace: a host sees the servers of its containers, with the paths
// that they have there.
func elsewhere(pid int) bool {
	self, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return false
	}
	its, err := os.Readlink(procPath(pid, "ns/pid"))
	return err == nil && its != self
}

// spawned reports whether a server's command line is one of [Instance.Spawn]. That is how a postmaster is known while it is
// not in its data directory: before version 16 it goes, at the very beginning, through the directories of its executable, to
// resolve symbolic links (resolve_symlinks in src/common/exec.c).
func (i *Instance) spawned(pid int) bool {
	args := arguments(pid)
	return len(args) > 3 && args[1] == "-D" && args[2] == i.ConfigDir
}

// onlyTells reports whether a program of the server was asked for its version or for a setting, as [Instance.ConfiguredValue] does
// beside everything else, in the data directory. It looks like a postmaster that has no lock file yet, and serves nothing.
func onlyTells(pid int) bool {
	args := arguments(pid)
	return len(args) > 1 && slices.ContainsFunc(args[1:], func(arg string) bool { return strings.HasPrefix(arg, "-C") || arg == "-V" })
}

// arguments are those of a process, its own name first; none if it has ended, or if execve(2) is still setting it up.
func arguments(pid int) []string {
	line, err := os.ReadFile(procPath(pid, "cmdline"))
	if err != nil || len(line) == 0 {
		return nil
	}
	return strings.Split(string(line), "\x00")
}

func (i *Instance) isBinDir(dir string) bool {
	real, err := filepath.EvalSymlinks(filepath.Join(i.BinDir, "postgres"))
	return dir == i.BinDir || err == nil && dir == filepath.Dir(real)
}

type procStat struct {
	zombie  bool
	stopped bool
	// uninterruptible: it waits in the kernel, and no signal reaches it.
	uninterruptible bool
	ppid            int
	start           uint64
}

// readStat reads /proc/PID/stat (proc(5)); the command name in parentheses may hold anything.
func readStat(pid int) (procStat, bool) {
	data, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		return procStat{}, false
	}
	end := bytes.LastIndexByte(data, ')')
	if end < 0 {
		return procStat{}, false
	}
	f := strings.Fields(string(data[end+1:]))
	if len(f) < 20 {
		return procStat{}, false
	}
	ppid, _ := strconv.Atoi(f[1])
	start, _ := strconv.ParseUint(f[19], 10, 64)
	return procStat{zombie: f[0] == "Z" || f[0] == "X", stopped: f[0] == "T", uninterruptible: f[0] == "D", ppid: ppid, start: start}, true
}

func procPath(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}
