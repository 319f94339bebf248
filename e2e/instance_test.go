package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

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

// as runs actions one after the other, each with success.
func as(actions ...string) func(*testing.T, *instance) *instance {
	return func(t *testing.T, in *instance) *instance {
		t.Helper()
		for _, a := range actions {
			in.expect(0, a)
		}
		return in
	}
}

// byHand has pg_ctl start or stop the server, behind the agent's back.
func (in *instance) byHand(what string) {
	in.b.t.Helper()
	in.b.postgres(boxBin+"/pg_ctl", "-D", in.data, "-w", "-s", "-l", in.params["pghost"]+"/pg_ctl.log", "-o", "-p "+in.params["pgport"], what)
}

// sql runs a statement on the instance, in the box.
func (in *instance) sql(stmt string) string {
	in.b.t.Helper()
	return in.b.must(in.psql(stmt)...)
}

func (in *instance) psql(stmt string) []string {
	return []string{boxBin + "/psql", "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-h", in.params["pghost"], "-p", in.params["pgport"], "-U", "postgres", "-d", "postgres", "-c", stmt}
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

// answers waits until the instance takes connections.
func (in *instance) answers() {
	in.b.t.Helper()
	eventually(in.b.t, "the server to take connections", func() bool {
		return in.b.exec(nil, in.psql("select 1")...).code == 0
	})
}

// refuses makes sure that the server runs and takes no connection.
func (in *instance) refuses() {
	in.b.t.Helper()
	if r := in.b.exec(nil, in.psql("select 1")...); r.code == 0 || !strings.Contains(r.stderr, "not yet accepting") && !strings.Contains(r.stderr, "starting up") {
		in.b.t.Fatalf("want a server that takes no connections yet, got %d %s%s", r.code, r.stdout, r.stderr)
	}
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

// processes are the server processes with the instance's data directory as working directory, zombies not included.
func (in *instance) processes() []int {
	in.b.t.Helper()
	return pids(in.b.must("sh", "-c", `for p in $(find /proc -maxdepth 2 -path "/proc/[0-9]*/cwd" -lname "$1" 2>/dev/null); do
	p=${p%/cwd}
	case $(readlink "$p/exe") in */postgres) echo "${p#/proc/}";; esac
done; true`, "processes", in.data))
}

// crash ends every process of the server at once, those too that it makes meanwhile.
func (in *instance) crash() {
	in.b.t.Helper()
	eventually(in.b.t, "the server's processes to end", func() bool {
		left := in.processes()
		in.b.kill("KILL", left...)
		return len(left) == 0
	})
}

// gone waits until nothing of the server runs.
func (in *instance) gone() {
	in.b.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		left := in.processes()
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			in.b.t.Fatalf("gave up after 20 s waiting for %d to end\nprocesses:\n%s\nagent: %s\nserver: %s", left, in.b.must("ps", "-ef"), in.agentLog(), in.serverLog())
		}
	}
}

// stalePID writes a postmaster.pid that names another process.
func (in *instance) stalePID(pid string) {
	in.b.t.Helper()
	in.write("postmaster.pid", fmt.Sprintf("%s\n%s\n1700000000\n%s\n%s\n\n  1234 0\nready   \n", pid, in.data, in.params["pgport"], in.params["pghost"]), os.O_TRUNC)
}

// control is one line of pg_controldata.
func (in *instance) control(name string) string {
	in.b.t.Helper()
	for line := range strings.Lines(in.b.postgres(boxBin+"/pg_controldata", in.data)) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	in.b.t.Fatalf("pg_controldata does not tell %q of %s", name, in.data)
	return ""
}

// controlState is what PostgreSQL's own program reads in pg_control.
func (in *instance) controlState() string {
	in.b.t.Helper()
	return in.control("Database cluster state")
}
