package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// state is one state of an instance, how to bring it about, and what a truthful monitor answers.
type state struct {
	name    string
	make    func(t *testing.T, in *instance) *instance
	probe   int    // a probe: is it running here?
	monitor int    // a recurring monitor: is it as it should be?
	reason  string // part of the exit reason of the recurring monitor
}

// Ensure monitor tells the truth in every state, a probe and a recurring one, and that stop ends every state: nothing of
// the server is left, and monitor says so.
//
// Trap 8: a primary that answers late or not at all is degraded, not dead.
func TestMonitor(t *testing.T) {
	t.Parallel()
	b := newBox(t, boxOptions{})
	clean := b.newInstance("template")
	for n, s := range []state{
		{
			name:  "no data directory",
			make:  func(t *testing.T, in *instance) *instance { in.b.must("rm", "-r", in.data); return in },
			probe: 7, monitor: 7,
		},
		{
			name: "never initialised",
			make: func(t *testing.T, in *instance) *instance {
				in.b.must("find", in.data, "-mindepth", "1", "-delete")
				return in
			},
			probe: 7, monitor: 7,
		},
		{name: "stopped primary", make: as(), probe: 7, monitor: 7},
		{name: "stopped standby", make: as("start", "stop"), probe: 7, monitor: 7},
		{name: "standby", make: func(t *testing.T, in *instance) *instance {
			in.expect(0, "start")
			in.answers()
			return in
		}, probe: 0, monitor: 0},
		{name: "standby right after start", make: as("start"), probe: 0, monitor: 0},
		{name: "primary", make: as("start", "promote"), probe: 8, monitor: 8},
		{
			name: "parked", // a recurring monitor brings it back
			make: func(t *testing.T, in *instance) *instance {
				as("start", "promote")(t, in)
				park(t, in)
				return in
			},
			probe: 7, monitor: 0,
		},
		{name: "starting: crash recovery", make: inCrashRecovery, probe: 0, monitor: 0},
		{name: "standby without its first WAL", make: noWAL, probe: 0, monitor: 0},
		{name: "standby not yet consistent", make: notConsistent, probe: 0, monitor: 0},
		{
			name: "primary started by somebody else",
			make: func(t *testing.T, in *instance) *instance {
				in.byHand("start")
				return in
			},
			probe: 8, monitor: 8,
		},
		{
			name: "all connections taken",
			make: func(t *testing.T, in *instance) *instance {
				in.set("max_connections", "4")
				in.set("superuser_reserved_connections", "0")
				// A standby does not start with less than pg_control has noted, a primary does and notes it.
				in.byHand("start")
				in.byHand("stop")
				as("start", "promote")(t, in)
				for range 4 {
					in.b.must(append([]string{"sh", "-c", `"$@" >/dev/null 2>&1 &`, "background"}, in.psql("select pg_sleep(600)")...)...)
				}
				eventually(t, "four connections", func() bool {
					taken := 0
					for _, p := range in.processes() {
						if strings.Contains(in.b.exec(nil, "cat", fmt.Sprintf("/proc/%d/cmdline", p)).stdout, "[local] SELECT") {
							taken++
						}
					}
					return taken == 4
				})
				return in
			},
			probe: 8, monitor: 191, reason: "all its connections are taken",
		},
		{
			name: "primary that lets nobody in",
			make: func(t *testing.T, in *instance) *instance {
				as("start", "promote")(t, in)
				in.write("pg_hba.conf", "local all all reject\n", os.O_TRUNC)
				in.b.kill("HUP", in.postmaster())
				eventually(t, "the server to refuse connections", func() bool { return in.b.exec(nil, in.psql("select 1")...).code != 0 })
				return in
			},
			probe: 8, monitor: 191, reason: "does not answer",
		},
		{
			name: "primary stopped by a signal",
			make: func(t *testing.T, in *instance) *instance {
				as("start", "promote")(t, in)
				in.b.kill("STOP", in.postmaster())
				return in
			},
			probe: 8, monitor: 9, reason: "is stopped by a signal",
		},
		{
			name: "crashed primary",
			make: func(t *testing.T, in *instance) *instance {
				as("start", "promote")(t, in)
				in.crash()
				return in
			},
			probe: 7, monitor: 9, reason: `pg_control says "in production"`,
		},
		{
			name: "crashed standby",
			make: func(t *testing.T, in *instance) *instance {
				as("start")(t, in)
				in.crash()
				return in
			},
			probe: 7, monitor: 1, reason: "without a shutdown",
		},
		{
			name: "crashed primary with left-over children",
			make: func(t *testing.T, in *instance) *instance {
				as("start", "promote")(t, in)
				leaveOrphan(t, in)
				return in
			},
			probe: 9, monitor: 9, reason: "the postmaster is gone, processes of it that still run: 1",
		},
		{
			name: "crashed standby with left-over children",
			make: func(t *testing.T, in *instance) *instance {
				as("start")(t, in)
				in.answers()
				leaveOrphan(t, in)
				return in
			},
			probe: 1, monitor: 1, reason: "the postmaster is gone, processes of it that still run: 1",
		},
		{
			name: "shut down by somebody else, not yet gone",
			make: func(t *testing.T, in *instance) *instance {
				as("start", "promote")(t, in)
				for _, p := range in.processes() {
					if p != in.postmaster() {
						in.b.kill("STOP", p) // it cannot end
					}
				}
				in.b.kill("INT", in.postmaster())
				eventually(t, "the postmaster to say that it is stopping", func() bool {
					data, _ := os.ReadFile(filepath.Join(in.data, "postmaster.pid"))
					return strings.Contains(string(data), "stopping")
				})
				return in
			},
			probe: 8, monitor: 8,
		},
		{
			name: "postmaster.pid names a process that is no server",
			make: func(t *testing.T, in *instance) *instance {
				as("start", "stop")(t, in)
				pid := in.b.must("sh", "-c", "setpriv --reuid=postgres --regid=postgres --clear-groups -- sleep 600 >/dev/null 2>&1 & echo $!")
				in.stalePID(pid)
				return in
			},
			probe: 7, monitor: 7,
		},
		{
			name: "postmaster.pid of a crashed primary names another server",
			make: func(t *testing.T, in *instance) *instance {
				as("start", "promote")(t, in)
				in.crash()
				other := clean.copyTo(in.b, in.resource+" other")
				other.byHand("start")
				in.stalePID(strconv.Itoa(other.postmaster()))
				t.Cleanup(func() {
					other.sql("select 1") // it was left alone
					other.byHand("stop")
				})
				return in
			},
			probe: 7, monitor: 9, reason: `pg_control says "in production"`,
		},
		{
			name: "postmaster.pid is empty",
			make: func(t *testing.T, in *instance) *instance {
				as("start", "stop")(t, in)
				in.write("postmaster.pid", "", os.O_TRUNC)
				return in
			},
			probe: 7, monitor: 7,
		},
		{
			name: "pg_control is unreadable, stopped",
			make: func(t *testing.T, in *instance) *instance {
				in.write("global/pg_control", "junk", os.O_TRUNC)
				return in
			},
			probe: 7, monitor: 7,
		},
		{
			name: "pg_control is unreadable, running",
			make: func(t *testing.T, in *instance) *instance {
				as("start", "promote")(t, in)
				in.sql("checkpoint") // nobody writes it anew so soon
				in.write("global/pg_control", "junk", os.O_TRUNC)
				return in
			},
			probe: 1, monitor: 1, reason: "pg_control",
		},
		{
			name: "wrong binaries",
			make: func(t *testing.T, in *instance) *instance {
				as("start", "promote")(t, in)
				return in.with(map[string]string{"bindir": "/nowhere"})
			},
			probe: 8, monitor: 8,
		},
		{
			name: "wrong system user",
			make: func(t *testing.T, in *instance) *instance {
				as("start", "promote")(t, in)
				return in.with(map[string]string{"system_user": "daemon"})
			},
			probe: 8, monitor: 191, reason: "does not answer",
		},
		{
			name: "no such system user",
			make: func(t *testing.T, in *instance) *instance {
				as("start", "promote")(t, in)
				return in.with(map[string]string{"system_user": "nosuchuser"})
			},
			probe: 8, monitor: 8,
		},
		{
			name: "data directory given to somebody else",
			make: func(t *testing.T, in *instance) *instance {
				in.b.must("chown", "-R", "daemon", in.data)
				return in
			},
			probe: 7, monitor: 7,
		},
		{
			name: "data directory gone under a running server",
			make: func(t *testing.T, in *instance) *instance {
				as("start", "promote")(t, in)
				in.b.kill("STOP", in.processes()...) // or it would notice and end
				in.b.must("rm", "-r", in.data)
				return in
			},
			probe: 1, monitor: 1, reason: "global/pg_control: no such file or directory",
		},
		{
			name: "every parameter is wrong",
			make: func(t *testing.T, in *instance) *instance {
				as("start", "promote")(t, in)
				broken := map[string]string{}
				for _, p := range []string{"system_user", "bindir", "pgdata", "datadir", "pghost", "pgport", "start_opts", "maxlag", "logfile"} {
					broken[p] = `bro ken, "`
				}
				return in.with(broken)
			},
			probe: 8, monitor: 191, reason: "does not answer",
		},
		{
			name: "the state of this node is damaged",
			make: func(t *testing.T, in *instance) *instance {
				as("start", "promote")(t, in)
				if err := os.WriteFile(in.b.path("state", in.resource, "state.json"), []byte("{"), 0o644); err != nil {
					t.Fatal(err)
				}
				return in
			},
			probe: 8, monitor: 8,
		},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			b := b.of(t)
			in := clean.copyTo(b, fmt.Sprintf("i%d", n))
			defer func() {
				b.kill("KILL", in.processes()...)
				if t.Failed() {
					t.Logf("server: %s\nagent: %s", in.serverLog(), in.agentLog())
				}
			}()
			in = s.make(t, in)
			timeout := "OCF_RESKEY_CRM_meta_timeout=4000"

			if r := in.action("monitor", "OCF_RESKEY_CRM_meta_interval=0", timeout); r.code != s.probe {
				t.Errorf("probe: exit code %d, want %d\n%s", r.code, s.probe, r.stderr)
			}
			r := in.action("monitor", timeout)
			if r.code != s.monitor || !strings.Contains(r.reason(), s.reason) {
				t.Errorf("monitor: exit code %d (%q), want %d (%q)", r.code, r.reason(), s.monitor, s.reason)
			}
			r = in.action("stop", timeout)
			if r.code != 0 {
				t.Errorf("stop: exit code %d\n%s\nserver: %s", r.code, r.stderr, in.serverLog())
			}
			if left := in.processes(); len(left) > 0 {
				t.Errorf("after stop these run: %d", left)
			}
			if r.took > 4*time.Second {
				t.Errorf("stop took %s, its time-out is 4 s", r.took)
			}
			if r := in.action("monitor"); r.code != 7 {
				t.Errorf("monitor after stop: exit code %d, want 7\n%s", r.code, r.stderr)
			}
			if r := in.action("stop"); r.code != 0 {
				t.Errorf("stop of what is stopped: exit code %d\n%s", r.code, r.stderr)
			}
		})
	}
}

// Ensure a postmaster that nobody reaps is a dead one: monitor says so, and it neither keeps demote, stop and start from
// their work nor the next server from its lock files, although kill(2) and PostgreSQL's own start call it alive.
//
// Trap 4: a postmaster that nobody reaps is dead.
func TestMonitor_Zombie(t *testing.T) {
	t.Parallel()
	b := newBox(t, boxOptions{zombies: true})
	in := b.newInstance("one")
	as("start", "promote")(t, in)
	zombie := func() {
		t.Helper()
		pm := in.postmaster()
		b.kill("KILL", pm)
		in.gone()
		if stat := b.must("cat", fmt.Sprintf("/proc/%d/stat", pm)); !strings.Contains(stat, "(postgres) Z ") {
			t.Fatalf("want a zombie, got %s", stat)
		}
	}
	zombie()
	in.expect(7, "monitor", "OCF_RESKEY_CRM_meta_interval=0")
	in.expect(9, "monitor")
	in.expect(0, "demote")
	in.answers()
	in.expect(0, "monitor")
	zombie()
	in.expect(1, "monitor")
	in.expect(0, "stop")
	in.expect(7, "monitor")
	in.expect(0, "start")
	in.answers()
	in.expect(0, "monitor")
	in.expect(0, "stop")
}

// Ensure monitor tells the truth, and stop stops, where another action holds the lock, or nothing can be written at all.
func TestMonitor_Locked(t *testing.T) {
	t.Parallel()
	b := newBox(t, boxOptions{})
	in := b.newInstance("one")
	as("start", "promote")(t, in)
	timeout := "OCF_RESKEY_CRM_meta_timeout=4000"
	holder := b.must("sh", "-c", `flock "$1" sleep 600 >/dev/null 2>&1 & echo $!`, "sh", "/run/pgbaton/"+in.resource+"/action.lock")
	eventually(t, "the lock to be held", func() bool {
		return b.exec(nil, "flock", "-n", "/run/pgbaton/"+in.resource+"/action.lock", "true").code != 0
	})
	in.expect(8, "monitor", timeout)
	in.expect(8, "monitor", timeout, "OCF_RESKEY_CRM_meta_interval=0")
	in.expect(0, "stop", timeout)
	in.expect(7, "monitor", timeout)
	b.kill("KILL", append(pids(holder), pids(b.must("sh", "-c", `pidof sleep || true`))...)...)

	as("start", "promote")(t, in)
	for _, dir := range []string{"/run/pgbaton", "/var/log/pgbaton"} {
		b.must("rm", "-r", dir)
		b.must("touch", dir) // no directory can be made there
	}
	b.must("sh", "-c", "rm -r /var/lib/pgbaton/* && mount -t tmpfs -o ro none /var/lib/pgbaton")
	in.expect(8, "monitor", timeout)
	in.expect(0, "stop", timeout)
	if left := in.processes(); len(left) > 0 {
		t.Errorf("after stop these run: %d", left)
	}
	in.expect(7, "monitor", timeout)
}

// park demotes a primary that the plan stops next.
func park(t *testing.T, in *instance) {
	t.Helper()
	n := in.b.node
	in.expect(0, "demote", "OCF_RESKEY_CRM_meta_on_node="+n, "OCF_RESKEY_CRM_meta_notify_promoted_uname="+n, "OCF_RESKEY_CRM_meta_notify_unpromoted_uname= ",
		"OCF_RESKEY_CRM_meta_notify_demote_uname="+n, "OCF_RESKEY_CRM_meta_notify_stop_uname="+n, "OCF_RESKEY_CRM_meta_notify_start_uname= ",
		"OCF_RESKEY_CRM_meta_notify_promote_uname= ", "OCF_RESKEY_CRM_meta_notify_active_uname="+n, "OCF_RESKEY_CRM_meta_notify_all_uname="+n,
		"OCF_RESKEY_CRM_meta_notify_available_uname="+n)
	in.gone()
	if _, err := os.Stat(filepath.Join(in.data, "standby.signal")); err == nil {
		t.Fatal("a demote that a stop follows made a standby of the instance")
	}
}

// inCrashRecovery holds a crashed primary in crash recovery: the WAL segment after that of its checkpoint is a FIFO, and
// reading it waits for a writer.
func inCrashRecovery(t *testing.T, in *instance) *instance {
	t.Helper()
	as("start", "promote")(t, in)
	in.sql("checkpoint")
	in.sql("select pg_switch_wal()")
	in.sql("create table t as select 1")
	segment := filepath.Join(in.data, "pg_wal", in.sql("select pg_walfile_name(pg_current_wal_lsn())"))
	in.crash()
	in.b.must("rm", segment)
	in.b.postgres("mkfifo", "-m", "600", segment)
	in.expect(0, "start")
	if got := in.controlState(); got != "in crash recovery" {
		t.Fatalf("pg_control says %q, want crash recovery", got)
	}
	return in
}

// baseBackup replaces the instance by a base backup of itself without any WAL.
func baseBackup(t *testing.T, in *instance) *instance {
	t.Helper()
	as("start", "promote")(t, in)
	dir := in.data + " backup"
	in.b.postgres(boxBin+"/pg_basebackup", "-D", dir, "-X", "none", "-c", "fast", "--no-sync", "-h", in.params["pghost"], "-p", in.params["pgport"], "-U", "postgres")
	in.expect(0, "stop")
	in.b.must("mv", in.data, in.data+" old")
	in.b.must("mv", dir, in.data)
	in.b.must("rm", "-rf", in.b.path("state", in.resource), "/run/pgbaton/"+in.resource)
	in.set("primary_conninfo", "host=/nowhere application_name="+in.b.node)
	return in
}

// noWAL starts a base backup that has to wait for the very first record.
func noWAL(t *testing.T, in *instance) *instance {
	t.Helper()
	baseBackup(t, in).expect(0, "start")
	in.refuses()
	return in
}

// notConsistent starts a base backup that has WAL up to its checkpoint, but not to its end.
func notConsistent(t *testing.T, in *instance) *instance {
	t.Helper()
	baseBackup(t, in)
	label, err := os.ReadFile(filepath.Join(in.data, "backup_label"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`START WAL LOCATION: \S+ \(file (\w+)\)\nCHECKPOINT LOCATION: \w+/(\w+)\n`).FindStringSubmatch(string(label))
	if m == nil {
		t.Fatalf("backup_label: %s", label)
	}
	checkpoint, err := strconv.ParseUint(m[2], 16, 32)
	if err != nil {
		t.Fatal(err)
	}
	wal, err := os.ReadFile(filepath.Join(in.data+" old", "pg_wal", m[1]))
	if err != nil {
		t.Fatal(err)
	}
	clear(wal[checkpoint%uint64(len(wal))+128:]) // the checkpoint record is 114 bytes long
	in.write("pg_wal/"+m[1], string(wal), os.O_TRUNC)
	in.expect(0, "start")
	eventually(t, "pg_control to say \"in archive recovery\"", func() bool { return in.controlState() == "in archive recovery" })
	in.refuses()
	return in
}

// leaveOrphan kills the postmaster only, while one child cannot notice.
func leaveOrphan(t *testing.T, in *instance) {
	t.Helper()
	pm := in.postmaster()
	child := 0
	for _, p := range in.processes() {
		if p != pm && strings.Contains(in.b.exec(nil, "cat", fmt.Sprintf("/proc/%d/cmdline", p)).stdout, "checkpointer") {
			child = p
		}
	}
	if child == 0 {
		t.Fatalf("no checkpointer among %d", in.processes())
	}
	in.b.kill("STOP", child)
	in.b.kill("KILL", pm)
	eventually(t, "all but the stopped child to end", func() bool { return len(in.processes()) == 1 })
}
