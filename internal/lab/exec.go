package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Command prepares a command that runs inside a node, as root, with a plain
// environment. It ends with the node.
func (l *Lab) Command(ctx context.Context, node string, argv ...string) (*exec.Cmd, error) {
	return l.commandAs(ctx, node, 0, 0, argv...)
}

// CommandAs is Command as another user of the host's.
func (l *Lab) CommandAs(ctx context.Context, node, name string, argv ...string) (*exec.Cmd, error) {
	uid, gid, err := ids(name)
	if err != nil {
		return nil, err
	}
	return l.commandAs(ctx, node, uid, gid, argv...)
}

func (l *Lab) commandAs(ctx context.Context, node string, uid, gid int, argv ...string) (*exec.Cmd, error) {
	if len(argv) == 0 {
		return nil, errors.New("no command given")
	}
	pid, err := l.InitPID(node)
	if err != nil {
		return nil, err
	}
	args := []string{
		"-t", strconv.Itoa(pid), "-m", "-u", "-i", "-n", "-p",
		"-S", strconv.Itoa(uid), "-G", strconv.Itoa(gid), "--",
	}
	cmd := exec.CommandContext(ctx, "nsenter", append(args, argv...)...)
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8",
		"HOME=/root", "TERM=" + os.Getenv("TERM"), "COLUMNS=" + os.Getenv("COLUMNS"),
	}
	// A command that was cancelled may have children that hold its output open.
	cmd.WaitDelay = 2 * time.Second
	return cmd, nil
}

// InitPID is the pid on the host of a node's init; an error if the node is off.
func (l *Lab) InitPID(node string) (int, error) {
	if err := l.check(node); err != nil {
		return 0, err
	}
	r, err := l.ask(request{Op: "state"})
	if err != nil {
		return 0, err
	}
	pid := r.Inits[node]
	if pid == 0 {
		return 0, fmt.Errorf("%s of lab %s is off: pgbaton-lab power on %s", node, l.Name, node)
	}
	return pid, nil
}

// Root is a path by which this program reaches the files of a running node as the
// node sees them, sockets included. It is valid until the node is off.
func (l *Lab) Root(node string) (string, error) {
	pid, err := l.InitPID(node)
	return fmt.Sprintf("/proc/%d/root", pid), err
}

// Exec runs a command inside a node as root and returns its output and exit code. The
// error is only about what kept it from running to its end.
func (l *Lab) Exec(ctx context.Context, node string, argv ...string) (stdout, stderr string, exit int, err error) {
	cmd, err := l.Command(ctx, node, argv...)
	if err != nil {
		return "", "", -1, err
	}
	return finish(cmd)
}

func finish(cmd *exec.Cmd) (stdout, stderr string, exit int, err error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	var ee *exec.ExitError
	if errors.As(err, &ee) && ee.Exited() {
		return out.String(), errs.String(), ee.ExitCode(), nil
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode(), err
}

// Run is Exec for a command that should succeed: anything else is an error with what
// it wrote.
func (l *Lab) Run(ctx context.Context, node string, argv ...string) (string, error) {
	stdout, stderr, exit, err := l.Exec(ctx, node, argv...)
	if err == nil && exit != 0 {
		err = fmt.Errorf("exit code %d", exit)
	}
	if err != nil {
		return stdout, fmt.Errorf("on %s: %s: %w: %s", node, strings.Join(argv, " "), err, strings.TrimSpace(stderr+stdout))
	}
	return strings.TrimRight(stdout, "\n"), nil
}

// SQL runs a query on a node's own socket as the user postgres, with psql: rows are
// lines, columns are separated by "|".
func (l *Lab) SQL(ctx context.Context, node, query string) (string, error) {
	return l.SQLIn(ctx, node, "postgres", query)
}

// SQLIn is SQL in another database.
func (l *Lab) SQLIn(ctx context.Context, node, database, query string) (string, error) {
	cmd, err := l.CommandAs(ctx, node, "postgres", l.client("psql"), "-XAtq",
		"-v", "ON_ERROR_STOP=1", "-h", "/var/run/postgresql", "-d", database, "-c", query)
	if err != nil {
		return "", err
	}
	cmd.Env = append(cmd.Env, "PGCONNECT_TIMEOUT=5")
	stdout, stderr, exit, err := finish(cmd)
	if err == nil && exit != 0 {
		err = fmt.Errorf("psql: exit code %d", exit)
	}
	if err != nil {
		return stdout, fmt.Errorf("on %s: %q: %w: %s", node, query, err, strings.TrimSpace(stderr))
	}
	return strings.TrimRight(stdout, "\n"), nil
}

// HostPID is the pid of a node's process as the host sees it; inner is how the node does.
func (l *Lab) HostPID(node string, inner int) (int, error) {
	procs, err := l.Processes(node)
	if err != nil {
		return 0, err
	}
	for _, p := range procs {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "NSpid:" && f[len(f)-1] == strconv.Itoa(inner) {
				return p.PID, nil
			}
		}
	}
	return 0, fmt.Errorf("no process %d on %s", inner, node)
}

// Postmaster is the pid of a node's postmaster, as the host sees it: for signals that
// must not wait for a command to start inside the node. It is found by the data
// directory's postmaster.pid; an error if that is missing or its process is gone.
func (l *Lab) Postmaster(node string) (int, error) {
	b, err := os.ReadFile(l.nodeDir(node, "data", "postmaster.pid"))
	if err != nil {
		return 0, fmt.Errorf("postmaster of %s: %w", node, err)
	}
	first, _, _ := strings.Cut(string(b), "\n")
	inner, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil {
		return 0, fmt.Errorf("postmaster.pid of %s: %w", node, err)
	}
	procs, err := l.Processes(node)
	if err != nil {
		return 0, err
	}
	for _, p := range procs {
		if p.Inner == inner && p.Name == "postgres" {
			return p.PID, nil
		}
	}
	return 0, fmt.Errorf("postmaster.pid of %s names %d, which is no running postgres", node, inner)
}

// Process is a process of a node.
type Process struct {
	PID   int    // on the host
	Inner int    // in the node
	Name  string // of the executable as the kernel keeps it, 15 characters at most
	State string // R, S, D, T, Z as in proc(5)
	Args  string // the command line; PostgreSQL's processes say there what they do
}

// Processes lists all processes of a node.
func (l *Lab) Processes(node string) ([]Process, error) {
	initPID, err := l.InitPID(node)
	if err != nil {
		return nil, err
	}
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", initPID))
	if err != nil {
		return nil, err
	}
	return processesIn("pid", ns)
}

// processesIn lists the processes of this machine that are in one of these namespaces of a kind.
func processesIn(kind string, namespaces ...string) ([]Process, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var procs []Process
	for _, d := range dirs {
		if link, err := os.Readlink(d + "/ns/" + kind); err != nil || !slices.Contains(namespaces, link) {
			continue
		}
		status, err := os.ReadFile(d + "/status")
		if err != nil {
			continue
		}
		var p Process
		p.PID, _ = strconv.Atoi(filepath.Base(d))
		for line := range strings.Lines(string(status)) {
			name, value, _ := strings.Cut(line, ":")
			f := strings.Fields(value)
			switch {
			case len(f) == 0:
			case name == "Name":
				p.Name = strings.TrimSpace(value)
			case name == "State":
				p.State = f[0]
			case name == "NSpid":
				p.Inner, _ = strconv.Atoi(f[len(f)-1])
			}
		}
		args, _ := os.ReadFile(d + "/cmdline")
		p.Args = strings.TrimSpace(strings.ReplaceAll(string(args), "\x00", " "))
		procs = append(procs, p)
	}
	return procs, nil
}

// Signal sends a signal to processes of a node, given by their pids on the host.
func (l *Lab) Signal(sig syscall.Signal, pids ...int) error {
	hit := 0
	for _, p := range pids {
		err := syscall.Kill(p, sig)
		if errors.Is(err, syscall.ESRCH) && len(pids) > 1 {
			continue // of several, one may end by itself, or of the signal to another
		}
		if err != nil {
			return fmt.Errorf("signal %v to %d: %w", sig, p, err)
		}
		hit++
	}
	if hit == 0 && len(pids) > 0 {
		return fmt.Errorf("signal %v: none of the processes %v is there any more", sig, pids)
	}
	return nil
}

// SignalPostgres sends a signal to a node's postmaster, and with all to every
// process of PostgreSQL on it.
func (l *Lab) SignalPostgres(node string, sig syscall.Signal, all bool) error {
	pid, err := l.Postmaster(node)
	if err != nil {
		return err
	}
	pids := []int{pid}
	if all {
		procs, err := l.Processes(node)
		if err != nil {
			return err
		}
		for _, p := range procs {
			if p.Name == "postgres" && p.PID != pid && p.State != "Z" {
				pids = append(pids, p.PID)
			}
		}
	}
	return l.Signal(sig, pids...)
}

// SetAgentEnv gives the agent on a node extra environment from the next action on;
// nil takes it away. The lab must have been made with Wrap. It is lost with the
// node's power.
func (l *Lab) SetAgentEnv(ctx context.Context, node string, env map[string]string) error {
	if !l.Wrap {
		return fmt.Errorf("lab %s was made without Wrap: its agents read no extra environment", l.Name)
	}
	var b strings.Builder
	for k, v := range env {
		fmt.Fprintf(&b, "%s='%s'\n", k, strings.ReplaceAll(v, "'", `'\''`))
	}
	cmd, err := l.Command(ctx, node, "sh", "-c", "mkdir -p /run/pgbaton-lab && cat >/run/pgbaton-lab/env.new && mv /run/pgbaton-lab/env.new /run/pgbaton-lab/env")
	if err != nil {
		return err
	}
	cmd.Stdin = io.Reader(strings.NewReader(b.String()))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("set the agent's environment on %s: %w: %s", node, err, out)
	}
	return nil
}
