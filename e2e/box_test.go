package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// box is one machine without a cluster: namespaces of its own for mounts, processes, network and host name, in which the
// real agent drives a real PostgreSQL. Whatever runs in it ends with the test, also with one that is killed: the first
// process of the box ends when the pipe to the test does.
type box struct {
	t    testing.TB
	dir  string // everything of the box lies below; the path has a space in it, always
	pid  int    // of the first process, as the host sees it
	node string // host name, which is the node's name where no cluster gives one
}

// boxOptions say how a box differs from a plain one.
type boxOptions struct {
	node    string // "n1" if empty
	zombies bool   // the first process reaps nobody, as that of many a container
	noAttrd string // "failing" (the default) or "absent": how attrd_updater is without a cluster
}

const (
	boxPort  = 5433
	boxBin   = "/usr/lib/postgresql/15/bin"
	boxAgent = "/usr/lib/ocf/resource.d/pgbaton/postgresql"
	// boxPatience is more than any action may take here: beyond it the test fails, it is no measure of anything.
	boxPatience = 60 * time.Second
)

// newBox makes a box. It needs root, and says so.
func newBox(t testing.TB, o boxOptions) *box {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatalf("this test makes namespaces and runs servers as another user: run it as root, not as uid %d", os.Geteuid())
	}
	if o.node == "" {
		o.node = "n1"
	}
	dir, err := os.MkdirTemp("", "pgbaton box ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b := &box{t: t, dir: dir, node: o.node}
	t.Cleanup(func() { os.RemoveAll(dir) })

	agent := built(t, buildAgent)
	if err := os.MkdirAll("/var/lib/pgbaton", 0o755); err != nil { // a mount point; what is mounted there is the box's
		t.Fatal(err)
	}
	for _, sub := range []string{"state", "ocf/pgbaton"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	reaper := ""
	if !o.zombies {
		reaper = "tini -s --"
	}
	attrd := ":"
	if o.noAttrd == "absent" {
		attrd = `: >"$1/none"; chmod 0644 "$1/none"; mount --bind "$1/none" /usr/sbin/attrd_updater; mount --bind "$1/none" /usr/sbin/crm_node`
	}
	// $1 is the box's directory, $2 the agent, $3 the host name.
	script := `set -e
mount --make-rprivate /
mount -t proc proc /proc
hostname "$3"
ip link set lo up
cp "$2" "$1/ocf/pgbaton/postgresql"
for d in /usr/lib/ocf/resource.d/*; do
	case $d in */pgbaton) continue;; esac
	mkdir -p "$1/ocf/${d##*/}"; mount --bind "$d" "$1/ocf/${d##*/}"
done
mount --rbind "$1/ocf" /usr/lib/ocf/resource.d
mount --bind "$1/state" /var/lib/pgbaton
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=755 log /var/log
mkdir /var/log/crmsh /var/log/pcsd
install -d -o postgres -g postgres -m 2775 /run/postgresql
` + attrd + `
echo ready
exec ` + reaper + ` cat`
	cmd := exec.Command("sh", "-c", script, "box", dir, agent, o.node)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("making a box: %v", err)
	}
	b.pid = cmd.Process.Pid
	t.Cleanup(func() {
		stdin.Close()
		cmd.Process.Kill() // the kernel ends all processes of the box with its first
		cmd.Wait()
	})
	late := time.AfterFunc(boxPatience, func() { cmd.Process.Kill() })
	defer late.Stop()
	ready := make([]byte, len("ready\n"))
	if _, err := io.ReadFull(stdout, ready); err != nil {
		cmd.Wait()
		t.Fatalf("making a box: %v: %s", err, stderr.String())
	}
	return b
}

// of is the same box, for a subtest: what fails there is its failure.
func (b *box) of(t testing.TB) *box {
	c := *b
	c.t = t
	return &c
}

// path is a path below the box's directory.
func (b *box) path(name ...string) string {
	return filepath.Join(append([]string{b.dir}, name...)...)
}

// result is how a program ended.
type result struct {
	code           int
	stdout, stderr string
	took           time.Duration
}

// reason is the exit reason that Pacemaker would show.
func (r result) reason() string {
	last := ""
	for line := range strings.Lines(r.stderr) {
		if s, ok := strings.CutPrefix(line, "ocf-exit-reason:"); ok {
			last = strings.TrimRight(s, "\n")
		}
	}
	return last
}

// command prepares a program that runs in the box as root.
func (b *box) command(ctx context.Context, env []string, argv ...string) *exec.Cmd {
	args := append([]string{"-t", strconv.Itoa(b.pid), "-m", "-p", "-n", "-u", "-i", "--"}, argv...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}, env...)
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	return cmd
}

// exec runs a program in the box.
func (b *box) exec(env []string, argv ...string) result {
	b.t.Helper()
	return b.execWithin(boxPatience, env, argv...)
}

// execWithin is exec for a program that runs many actions.
func (b *box) execWithin(patience time.Duration, env []string, argv ...string) result {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := b.command(ctx, env, argv...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err := cmd.Run()
	r := result{stdout: stdout.String(), stderr: stderr.String(), took: time.Since(began)}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Exited():
		r.code = exit.ExitCode()
	case err != nil:
		b.t.Fatalf("%q: %v\n%s%s", argv, err, r.stdout, r.stderr)
	}
	return r
}

// must runs a program in the box that has to succeed, and returns what it printed.
func (b *box) must(argv ...string) string {
	b.t.Helper()
	r := b.exec(nil, argv...)
	if r.code != 0 {
		b.t.Fatalf("%q: exit code %d\n%s%s", argv, r.code, r.stdout, r.stderr)
	}
	return strings.TrimSpace(r.stdout)
}

// postgres runs a program in the box as the server's user.
func (b *box) postgres(argv ...string) string {
	b.t.Helper()
	return b.must(append([]string{"setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"}, argv...)...)
}

// eventually waits until cond holds; what it waits for is said if it does not.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("gave up after 20 s waiting for %s", what)
}

// kill sends a signal to processes of the box; those that have ended meanwhile are passed over.
func (b *box) kill(signal string, pids ...int) {
	b.t.Helper()
	args := []string{"sh", "-c", `s=$1; shift; for p; do kill -s "$s" "$p" 2>/dev/null; done; true`, "kill", signal}
	for _, p := range pids {
		args = append(args, strconv.Itoa(p))
	}
	b.must(args...)
}

func pids(out string) []int {
	var list []int
	for _, s := range strings.Fields(out) {
		if p, err := strconv.Atoi(s); err == nil {
			list = append(list, p)
		}
	}
	return list
}
