package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
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
	ctx, cancel := context.WithTimeout(context.Background(), boxPatience)
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

// instance is one PostgreSQL in a box, with the parameters by which the agent knows it.
type instance struct {
	b        *box
	resource string
	data     string
	params   map[string]string
}

// resourceName matches what the name of a resource does not hold.
var resourceName = regexp.MustCompile(`[^a-z0-9]+`)

// newInstance makes a primary that was shut down cleanly and is configured as the README asks for.
func (b *box) newInstance(name string) *instance {
	b.t.Helper()
	in := b.describe(name)
	template, err := b.template()
	if err != nil {
		b.t.Fatal(err)
	}
	b.must("cp", "-a", template, in.data)
	in.configure()
	return in
}

var templateLock sync.Mutex

// template is a data directory as initdb leaves it, made once for each release of PostgreSQL: initdb takes longer than
// most tests.
func (b *box) template() (string, error) {
	b.t.Helper()
	templateLock.Lock()
	defer templateLock.Unlock()
	version := resourceName.ReplaceAllString(b.must(boxBin+"/initdb", "--version"), "-")
	path, err := filepath.Abs("../bin/e2e/" + version)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	fresh := b.path("fresh data")
	b.must("install", "-d", "-o", "postgres", "-g", "postgres", "-m", "0700", fresh)
	b.postgres(boxBin+"/initdb", "-D", fresh, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--wal-segsize=1")
	// Another run of these tests may be at the same: whoever is first wins.
	b.must("cp", "-a", fresh, path+"."+strconv.Itoa(b.pid))
	if err := os.Rename(path+"."+strconv.Itoa(b.pid), path); err != nil {
		os.RemoveAll(path + "." + strconv.Itoa(b.pid))
		if _, err2 := os.Stat(path); err2 != nil {
			return "", err
		}
	}
	return path, nil
}

// describe gives the parameters of an instance that need not be there.
func (b *box) describe(name string) *instance {
	b.t.Helper()
	dir := b.path(name)
	for _, sub := range []string{"", "socket dir"} {
		b.must("install", "-d", "-o", "postgres", "-g", "postgres", "-m", "0755", filepath.Join(dir, sub))
	}
	in := &instance{b: b, resource: resourceName.ReplaceAllString(name, "-"), data: filepath.Join(dir, "data dir")}
	in.params = map[string]string{
		"pgdata": in.data, "pghost": filepath.Join(dir, "socket dir"), "pgport": strconv.Itoa(boxPort),
		"logfile": filepath.Join(dir, "log dir", "server.log"),
	}
	return in
}

// configure appends the settings that a standby of a box needs.
func (in *instance) configure() {
	in.b.t.Helper()
	in.set("unix_socket_directories", `"`+in.params["pghost"]+`"`)
	in.set("listen_addresses", "")
	in.set("primary_conninfo", fmt.Sprintf("host='%s' port=%d user=postgres application_name=%s", in.params["pghost"], boxPort, in.b.node))
	in.set("wal_keep_size", "64MB")
	in.set("shared_buffers", "16MB")
	in.set("fsync", "off") // no machine is crashed here
}

// set appends one setting to postgresql.conf.
func (in *instance) set(name, value string) {
	in.b.t.Helper()
	in.write("postgresql.conf", fmt.Sprintf("%s = '%s'\n", name, strings.ReplaceAll(value, "'", "''")), os.O_APPEND)
}

// write writes to a file of the data directory, owned by the server's user.
func (in *instance) write(name, content string, flag int) {
	in.b.t.Helper()
	path := filepath.Join(in.data, name)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|flag, 0o600)
	if err != nil {
		in.b.t.Fatal(err)
	}
	defer f.Close()
	uid, gid := serverIDs(in.b.t)
	if _, err := f.WriteString(content); err != nil {
		in.b.t.Fatal(err)
	}
	if err := f.Chown(uid, gid); err != nil {
		in.b.t.Fatal(err)
	}
}

func serverIDs(t testing.TB) (uid, gid int) {
	t.Helper()
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatalf("the tests need PostgreSQL's user: %v", err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return uid, gid
}

// copyTo copies a stopped instance, to be used by the test of b.
func (in *instance) copyTo(b *box, name string) *instance {
	b.t.Helper()
	out := b.describe(name)
	b.must("cp", "-a", in.data, out.data)
	out.configure()
	return out
}

// with is the same instance, some parameters changed; an empty value takes one away.
func (in *instance) with(params map[string]string) *instance {
	out := &instance{b: in.b, resource: in.resource, data: in.data, params: map[string]string{}}
	for _, m := range []map[string]string{in.params, params} {
		for k, v := range m {
			out.params[k] = v
			if v == "" {
				delete(out.params, k)
			}
		}
	}
	return out
}

// env is the environment of an action, as Pacemaker makes it for a resource that is no clone.
func (in *instance) env(extra ...string) []string {
	env := []string{"OCF_ROOT=/usr/lib/ocf", "OCF_RESOURCE_INSTANCE=" + in.resource, "OCF_RESKEY_CRM_meta_timeout=20000"}
	for k, v := range in.params {
		env = append(env, "OCF_RESKEY_"+k+"="+v)
	}
	return append(env, extra...)
}

// action runs an action of the agent, alone: without a cluster, and without notify variables.
func (in *instance) action(action string, extra ...string) result {
	in.b.t.Helper()
	env := in.env(extra...)
	if action == "monitor" && !strings.Contains(strings.Join(extra, " "), "_meta_interval=") {
		env = append(env, "OCF_RESKEY_CRM_meta_interval=15000")
	}
	return in.b.exec(env, boxAgent, action)
}

// expect runs an action and fails the test unless it ends with code.
func (in *instance) expect(code int, action string, extra ...string) result {
	in.b.t.Helper()
	r := in.action(action, extra...)
	if r.code != code {
		in.b.t.Fatalf("%s: exit code %d, want %d\n%s%s\nserver: %s", action, r.code, code, r.stdout, r.stderr, in.serverLog())
	}
	return r
}

// byHand has pg_ctl start or stop the server, behind the agent's back.
func (in *instance) byHand(what string) {
	in.b.t.Helper()
	in.b.postgres(boxBin+"/pg_ctl", "-D", in.data, "-w", "-s", "-l", in.params["pghost"]+"/pg_ctl.log", "-o", "-p "+in.params["pgport"], what)
}

// serverLog is what the server wrote.
func (in *instance) serverLog() string {
	data, err := os.ReadFile(in.params["logfile"])
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// agentLog is what the agent wrote to its own log.
func (in *instance) agentLog() string {
	in.b.t.Helper()
	return in.b.exec(nil, "cat", "/var/log/pgbaton/"+in.resource+".log").stdout
}

// sql runs a statement on the instance, in the box.
func (in *instance) sql(stmt string) string {
	in.b.t.Helper()
	return in.b.must(in.psql(stmt)...)
}

func (in *instance) psql(stmt string) []string {
	return []string{boxBin + "/psql", "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-h", in.params["pghost"], "-p", in.params["pgport"], "-U", "postgres", "-d", "postgres", "-c", stmt}
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

// answers waits until the instance takes connections.
func (in *instance) answers() {
	in.b.t.Helper()
	eventually(in.b.t, "the server to take connections", func() bool {
		return in.b.exec(nil, in.psql("select 1")...).code == 0
	})
}

// postmaster is the pid in postmaster.pid, as the box sees it.
func (in *instance) postmaster() int {
	in.b.t.Helper()
	data, err := os.ReadFile(filepath.Join(in.data, "postmaster.pid"))
	if err != nil {
		in.b.t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(data), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		in.b.t.Fatal(err)
	}
	return pid
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
