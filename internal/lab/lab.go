package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Lab is a running lab, or one that ran. Its methods may be used from several
// goroutines, and from several programs at once.
type Lab struct {
	Options
	lifeline *os.File // held open: the supervisor ends when it closes

	mu   sync.Mutex
	held map[string]*os.File // see hold
}

// Up makes a lab and returns when it has a primary that all other nodes stream from
// (with StayOff: when everything is in place and no node runs). The lab runs on when
// this program ends, unless Lifeline is set.
func Up(ctx context.Context, o Options) (*Lab, error) {
	if !helperReady {
		return nil, errors.New("lab.RunHelper was not called first thing in main or TestMain")
	}
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	if err := requirements(o); err != nil {
		return nil, err
	}
	var err error
	if o.Major, err = majorVersion(o.Bindir); err != nil {
		return nil, err
	}
	l := &Lab{Options: o}
	if pid := l.supervisor(); pid != 0 {
		if !o.Replace {
			return nil, fmt.Errorf("lab %s is up already (%s, supervisor %d): take it down first (pgbaton-lab down --name %s) or give another --name", o.Name, o.Dir, pid, o.Name)
		}
		if err := l.Down(ctx); err != nil {
			return nil, err
		}
	}
	if err := removeDir(o.Dir); err != nil {
		return nil, fmt.Errorf("remove the remains of an earlier lab: %w", err)
	}
	begin := time.Now()
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(err, removeDir(o.Dir))
	}
	o.logf("%6.1f s  files of %d nodes are in place below %s", time.Since(begin).Seconds(), o.Nodes, o.Dir)
	if err := l.spawn(ctx); err != nil {
		return nil, err
	}
	if o.StayOff {
		return l, nil
	}
	o.logf("%6.1f s  nodes are powered on", time.Since(begin).Seconds())
	if o.Systemd {
		return l, l.waitBooted(ctx)
	}
	if o.Agent == "none" {
		if err := l.startPlain(ctx); err != nil {
			return l, err
		}
		o.logf("%6.1f s  every other node streams from %s", time.Since(begin).Seconds(), o.Names[0])
		return l, nil
	}
	primary, err := l.WaitPromoted(ctx, "")
	if err != nil {
		return l, fmt.Errorf("%w (the lab is left as it is: pgbaton-lab logs, then pgbaton-lab down)", err)
	}
	o.logf("%6.1f s  %s is promoted", time.Since(begin).Seconds(), primary)
	if o.Slots {
		if err := l.makeSlots(ctx); err != nil {
			return l, err
		}
	}
	if err := l.WaitAllStreaming(ctx); err != nil {
		return l, err
	}
	o.logf("%6.1f s  every other node streams from it", time.Since(begin).Seconds())
	return l, nil
}

// Open finds a running lab by name; dir is where its state is, empty for the default.
func Open(name, dir string) (*Lab, error) {
	if name == "" {
		name = "lab"
	}
	if dir == "" {
		dir = filepath.Join(DefaultRoot, name)
	}
	l := &Lab{}
	if err := readJSON(filepath.Join(dir, "lab.json"), &l.Options); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("there is no lab %s (no %s/lab.json): pgbaton-lab up makes one", name, dir)
		}
		return nil, err
	}
	if l.supervisor() == 0 {
		return nil, fmt.Errorf("lab %s is not running any more (its files are still in %s): pgbaton-lab up makes it anew, pgbaton-lab down removes them", name, dir)
	}
	return l, nil
}

// OpenDead is Open for a lab whose supervisor may be gone, to read its logs or to
// remove it.
func OpenDead(name, dir string) (*Lab, error) {
	l, err := Open(name, dir)
	if err == nil {
		return l, nil
	}
	if name == "" {
		name = "lab"
	}
	if dir == "" {
		dir = filepath.Join(DefaultRoot, name)
	}
	l = &Lab{}
	if readJSON(filepath.Join(dir, "lab.json"), &l.Options) == nil {
		return l, nil
	}
	return nil, err
}

// supervisor returns the pid of the lab's supervisor, 0 if none runs. The lock tells,
// the number alone could be another process's by now.
func (l *Lab) supervisor() int {
	path := filepath.Join(l.Dir, "lock")
	if _, err := os.Stat(path); err != nil {
		return 0
	}
	if f, err := lockFile(path); err == nil {
		f.Close()
		return 0
	}
	var pid int
	b, _ := os.ReadFile(filepath.Join(l.Dir, "supervisor.pid"))
	_, _ = fmt.Sscan(string(b), &pid)
	return pid
}

// SupervisorPID is the pid of the process that everything of the lab hangs on, 0 if
// it is gone.
func (l *Lab) SupervisorPID() int { return l.supervisor() }

// spawn starts the supervisor and waits until it has started the nodes.
func (l *Lab) spawn(ctx context.Context) error {
	logFile, err := os.Create(filepath.Join(l.Dir, "supervisor.log"))
	if err != nil {
		return err
	}
	defer logFile.Close()
	readyR, readyW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer readyR.Close()
	lifeR, lifeW, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", l.Dir)
	cmd.Args[0] = "pgbaton-lab"
	cmd.Env = []string{modeVar + "=supervisor", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{readyW, lifeR}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET |
			syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
	}
	err = cmd.Start()
	readyW.Close()
	lifeR.Close()
	if err != nil {
		lifeW.Close()
		return fmt.Errorf("start the supervisor: %w", err)
	}
	go func() { _ = cmd.Wait() }()
	if l.Lifeline {
		l.lifeline = lifeW
	} else {
		lifeW.Close()
	}
	if err := os.WriteFile(filepath.Join(l.Dir, "supervisor.pid"), fmt.Appendln(nil, cmd.Process.Pid), 0o644); err != nil {
		return err
	}
	if d, ok := ctx.Deadline(); ok {
		_ = readyR.SetReadDeadline(d)
	}
	line, err := bufio.NewReader(readyR).ReadString('\n')
	if err != nil || line != "ok\n" {
		_ = cmd.Process.Kill()
		text, _ := os.ReadFile(logFile.Name())
		return fmt.Errorf("the supervisor did not come up: %s %w\n%s", strings.TrimSpace(line), err, text)
	}
	return nil
}

func (l *Lab) ask(req request) (reply, error) {
	return ask(filepath.Join(l.Dir, "control.sock"), req)
}

// hold opens the network namespaces of the supervisor and of all that descends from it, and returns what they are called.
// Once the supervisor is gone these are those of the last call. They must be held open: the kernel gives the number of one
// that is gone to the next that anybody on this machine makes.
func (l *Lab) hold() (map[string]*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	supervisor := l.supervisor()
	if supervisor == 0 {
		return l.held, nil
	}
	parents, err := parents()
	if err != nil {
		return nil, err
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	now := map[string]*os.File{}
	for pid := range parents {
		p := pid
		for p != 0 && p != supervisor {
			p = parents[p]
		}
		if p == 0 {
			continue
		}
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			continue // it has ended
		}
		name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if now[name] != nil || name == own { // never the one in which everybody else is
			f.Close()
			continue
		}
		now[name] = f
	}
	closeAll(l.held)
	l.held = now
	return now, nil
}

// release lets go what hold has opened.
func (l *Lab) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	closeAll(l.held)
	l.held = nil
}

func closeAll(files map[string]*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// parents maps every process of this machine to its parent.
func parents() (map[int]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	list := map[int]int{}
	for _, d := range dirs {
		stat, err := os.ReadFile(d + "/stat")
		if err != nil {
			continue
		}
		// pid (name) state parent ...; a name may have spaces and parentheses.
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		pid, err1 := strconv.Atoi(filepath.Base(d))
		parent, err2 := strconv.Atoi(f[1])
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		list[pid] = parent
	}
	return list, nil
}

// Leftovers lists the processes on this machine that are in one of the lab's network namespaces: those that it has, or had
// at the last call before its supervisor was gone. None after Down, and soon after the supervisor was killed.
func (l *Lab) Leftovers() ([]Process, error) {
	ours, err := l.hold()
	if err != nil {
		return nil, err
	}
	return processesIn("net", slices.Collect(maps.Keys(ours))...)
}

// Down ends the lab: nothing of it runs or is mounted afterwards, which is checked,
// and its directory is removed. A lab whose supervisor is gone is cleaned up too.
func (l *Lab) Down(ctx context.Context) error {
	now := time.Now()
	_ = os.Chtimes(l.Dir, now, now) // a sweep leaves a young one alone: this one is being taken down already
	if err := l.Kill(ctx); err != nil {
		return err
	}
	if err := removeDir(l.Dir); err != nil {
		return fmt.Errorf("remove the files of lab %s: %w", l.Name, err)
	}
	return nil
}

// Kill is Down without the removal of the files: the supervisor is killed with
// SIGKILL, and everything with it.
func (l *Lab) Kill(ctx context.Context) error {
	if _, err := l.hold(); err != nil {
		return err
	}
	if pid := l.supervisor(); pid != 0 {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return fmt.Errorf("kill the supervisor, %d: %w", pid, err)
		}
	}
	if l.lifeline != nil {
		l.lifeline.Close()
	}
	for _, n := range l.Names {
		l.thaw(n)
	}
	var left []Process
	for began := time.Now(); ; {
		var err error
		gone := l.supervisor() == 0
		if left, err = l.Leftovers(); err != nil {
			return err
		}
		if gone && len(left) == 0 {
			l.release()
			return nil
		}
		if gone && time.Since(began) > 2*time.Second {
			// A thread of the supervisor that the kernel does not let go yet (a disk, a namespace that is being taken apart)
			// keeps what it started alive.
			for _, p := range left {
				_ = syscall.Kill(p.PID, syscall.SIGKILL)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lab %s is not gone: supervisor %d, processes: %+v: %w", l.Name, l.supervisor(), left, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Power switches a node on or off. Off is a loss of power: SIGKILL to everything, the
// network falls silent. On returns when the node's init runs, not when it has joined.
func (l *Lab) Power(_ context.Context, node string, on bool) error {
	op := "off"
	if on {
		op = "on"
	}
	_, err := l.ask(request{Op: op, Node: node})
	return err
}

// Shutdown shuts a node down in good order, as "systemctl poweroff" would: Pacemaker
// stops its resources and leaves, then Corosync, then the node is off. It returns
// when it is off.
func (l *Lab) Shutdown(_ context.Context, node string) error {
	_, err := l.ask(request{Op: "stop", Node: node})
	return err
}

// Cut cuts a link, or makes it lossy. Links that are cut already stay cut.
func (l *Lab) Cut(_ context.Context, link Link) error {
	_, err := l.ask(request{Op: "cut", Link: link})
	return err
}

// Heal heals a link that was cut, which must be given as it was cut.
func (l *Lab) Heal(_ context.Context, link Link) error {
	_, err := l.ask(request{Op: "heal", Link: link})
	return err
}

// HealAll heals every link.
func (l *Lab) HealAll(_ context.Context) error {
	_, err := l.ask(request{Op: "heal"})
	return err
}

// PowerState tells which nodes are on (the client included), as the pid of each one's
// init on the host, and which links are cut.
func (l *Lab) PowerState() (map[string]int, []Link, error) {
	r, err := l.ask(request{Op: "state"})
	return r.Inits, r.Cut, err
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

func copyFile(from, to string, mode os.FileMode) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close(), os.Chmod(to, mode))
}

// Sweep removes the files of dead labs below [DefaultRoot] whose names begin with a
// prefix: what tests leave that were killed. Labs that run are left alone.
func Sweep(prefix string) error {
	dirs, err := filepath.Glob(filepath.Join(DefaultRoot, prefix+"*"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		l := &Lab{Options: Options{Name: filepath.Base(d), Dir: d}}
		// Not one that another test is building, or taking down, which has no supervisor.
		fi, err := os.Stat(d)
		if err != nil || l.supervisor() != 0 || time.Since(fi.ModTime()) < time.Minute {
			continue
		}
		if err := removeDir(d); err != nil {
			return err
		}
	}
	return nil
}
