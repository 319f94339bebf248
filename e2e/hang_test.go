package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/load"
)

// hungLimit is how long a primary that cannot commit may stay primary: a monitor's interval, the 30 s for which it must
// show no progress, and what demote, stop and fencing take.
const hungLimit = 75 * time.Second

// onDisks is a lab whose data directories are disks that can be made to hang.
func onDisks() lab.Options {
	o := failing()
	o.Disks = true
	return o
}

// Ensure a primary on which no commit can end loses its role, whatever else of it still answers, and is surely ended or
// its node fenced before anybody else is promoted.
//
// Trap 21: hung disk: primary looks healthy for hours.
func TestHung(t *testing.T) {
	tell(t, "disks", onDisks(), 4*time.Minute, []story{
		{"disk hangs", diskHangs},
		{"disk hangs, all connections taken", diskHangsUnseen},
		{"who writes the WAL is stopped", writerStopped},
		{"disk hangs for a while", diskHangsAWhile},
		{"38 WAL volume full", diskFull},
	})
}

// hang makes the primary's disk hang, and checks that this is what a test wants: it answers.
func (s *scenario) hang() {
	s.t.Helper()
	s.hangUnasked()
	if out := s.sql(s.old, "SELECT count(*) > 0 FROM pg_class"); out != "t" {
		s.t.Fatalf("%s does not answer to a query that reads: %q", s.old, out)
	}
	s.stage("%s answers to who reads", s.old)
}

func diskHangs(s *scenario) {
	was := s.timeline(s.old)
	s.hang()
	s.degraded("no commit has ended for")
	now := s.afterHang(was)
	s.onlyFenced(s.old)
	if _, ok := s.fencedAt(s.old); !ok {
		s.t.Errorf("%s was not fenced: nothing else ends a process that its disk does not let go", s.old)
	}
	s.returned(s.old, now)
	r := s.takenOver(now, was, "hang", hungLimit)
	if r.LostWrites() > 0 {
		s.t.Errorf("%d acknowledged writes are lost", r.LostWrites())
	}
}

// diskHangsUnseen takes all connections, those for superusers too: the server cannot be asked.
func diskHangsUnseen(s *scenario) {
	was := s.timeline(s.old)
	s.takeConnections()
	s.hangUnasked()
	now := s.afterHang(was)
	s.onlyFenced(s.old)
	s.returned(s.old, now)
	s.takenOver(now, was, "hang", hungLimit)
}

// hangUnasked is hang for a server to which nobody can connect.
func (s *scenario) hangUnasked() {
	s.t.Helper()
	s.load.Mark("hang")
	s.must(s.lab.HangDisk(s.old, true))
	s.t.Cleanup(func() { s.lab.HangDisk(s.old, false) })
	s.stage("the disk of %s hangs", s.old)
}

// writerStopped stops the process that holds the lock under which WAL is written, by a signal, and lets its disk go on:
// nobody can commit any more, and everything can be killed. The last of its WAL was never flushed, and so never sent: the
// role may come back for that, once. When it hangs again, somebody else gets it.
func writerStopped(s *scenario) {
	was, began := s.timeline(s.old), time.Now()
	s.stopWriter()
	now := s.afterHang(was)
	s.onlyFenced()
	if now != s.old {
		s.forksAtTheEnd(now, was)
		s.outage(s.finish(), "hang", hungLimit)
		s.primaryIs(now)
		return
	}
	s.streaming()
	was = s.timeline(s.old)
	s.stopWriter()
	now = s.afterHang(was)
	if now == s.old {
		s.t.Fatalf("%s hung twice, and is primary again", s.old)
	}
	s.onlyFenced()
	fork := s.fork(now, s.timeline(now), was)
	s.missing(now, began, int64(s.lastRecord(s.old, was, fork).end-fork))
	s.returned(s.old, now)
	if r := s.takenOver(now, was, "hang", hungLimit); r.LostWrites() > 0 {
		s.t.Errorf("%d acknowledged writes are lost", r.LostWrites())
	}
}

// stopWriter stops whoever writes WAL on the primary.
func (s *scenario) stopWriter() {
	s.t.Helper()
	s.hang()
	holder := 0
	s.await(10*time.Second, func() error {
		out, err := s.lab.SQL(s.ctx, s.old, "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'IO' AND wait_event IN ('WALWrite', 'WALSync')")
		if err != nil || len(strings.Fields(out)) != 1 {
			return lab.NotYet("not one process of %s writes WAL: %q (%v)", s.old, out, err)
		}
		inner, err := strconv.Atoi(out)
		s.must(err)
		holder = s.hostPID(s.old, inner)
		return nil
	})
	s.must(s.lab.Signal(syscall.SIGSTOP, holder))
	s.must(s.lab.HangDisk(s.old, false))
	time.Sleep(time.Second)
	if out := s.sql(s.old, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'WALWrite' AND wait_event_type = 'LWLock'"); out == "0" {
		s.t.Fatalf("nobody on %s waits for the lock under which WAL is written", s.old)
	}
	s.stage("pid %d holds that lock and is stopped", holder)
}

// afterHang waits for a newer timeline, for longer than newPrimary does.
func (s *scenario) afterHang(was uint32) (now string) {
	s.t.Helper()
	s.await(2*time.Minute, func() error {
		for _, n := range s.lab.Names {
			out, err := s.lab.SQL(s.ctx, n, "SELECT NOT pg_is_in_recovery() AND ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int > "+fmt.Sprint(was))
			if err == nil && out == "t" {
				now = n
				return nil
			}
		}
		return lab.NotYet("nobody has begun a timeline after %d", was)
	})
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s is primary", now)
	s.logged(s.old, `leaving the role to others.*no commit has ended for 3\d s: pid \d+ waits`)
	return now
}

// hostPID is what the host calls a process of a node.
func (s *scenario) hostPID(node string, inner int) int {
	s.t.Helper()
	pid, err := s.lab.HostPID(node, inner)
	s.must(err)
	return pid
}

// diskHangsAWhile is no failure: it is shown, and nothing is done.
func diskHangsAWhile(s *scenario) {
	was := s.timeline(s.old)
	before, err := s.lab.Postmaster(s.old)
	s.must(err)
	s.hang()
	time.Sleep(20 * time.Second)
	s.degraded("no commit has ended for")
	s.must(s.lab.HangDisk(s.old, false))
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("the disk goes on")
	time.Sleep(15 * time.Second)
	s.notRestarted(was, before)
}

// diskFull leaves the primary no room for another WAL segment: PostgreSQL ends itself over that, and does not start again.
func diskFull(s *scenario) {
	was, began := s.timeline(s.old), time.Now()
	filler := s.lab.Dir + "/nodes/" + s.old + "/data/filler"
	s.load.Mark("full")
	if out, err := exec.CommandContext(s.ctx, "dd", "if=/dev/zero", "of="+filler, "bs=1M").CombinedOutput(); err == nil || !strings.Contains(string(out), "No space left") {
		s.t.Fatalf("the disk of %s is not full: %v: %s", s.old, err, out)
	}
	s.t.Cleanup(func() { os.Remove(filler) })
	// Until the segment at hand is full, and those that are kept for later.
	go func() {
		for s.ctx.Err() == nil {
			if _, err := s.lab.SQL(s.ctx, s.old, "SELECT count(pg_logical_emit_message(true, 'e2e', repeat('full ', 1000))) FROM generate_series(1, 500)"); err != nil {
				return
			}
		}
	}()
	now := s.newPrimary(was, "")
	if now == s.old {
		s.t.Fatalf("%s is primary, and has a full disk", now)
	}
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s is primary", now)
	s.onlyFenced()
	s.logged(s.old, `leaving the role to others`)
	fork, only := s.fork(now, s.timeline(now), was), 0
	said := s.promotion(now, began).Details
	if said["result"] != "equal: nothing lost" {
		only = s.commitsAfter(s.old, was, fork)
	}
	s.must(os.Remove(filler))
	s.run(now, "crm_resource", "--cleanup", "-r", lab.Resource, "-N", s.old)
	s.returned(s.old, now)
	r := s.load.Stop()
	s.load = nil
	s.t.Logf("%d rows acknowledged, %d writes lost; %s says %v", r.Acknowledged, r.LostWrites(), now, said)
	if r.CheckError != "" || r.LostWrites() > only {
		s.t.Errorf("%d writes are lost, %d were committed in WAL that %s did not have (%s)", r.LostWrites(), only, now, r.CheckError)
	}
	for _, o := range r.Overlaps {
		s.t.Errorf("two writable nodes: %+v", o)
	}
	s.outage(r, "full", here(30*time.Second))
	s.primaryIs(now)
}

// notRestarted checks that nothing was done about a primary.
func (s *scenario) notRestarted(was uint32, before int) {
	s.t.Helper()
	if after, err := s.lab.Postmaster(s.old); err != nil || after != before {
		s.t.Errorf("%s was restarted: its postmaster was %d, and is %d (%v)", s.old, before, after, err)
	}
	s.finish()
	if now := s.timeline(s.old); now != was {
		s.t.Errorf("%s writes timeline %d, before it was %d", s.old, now, was)
	}
	s.primaryIs(s.old)
}

// degraded waits until Pacemaker shows what is wrong with the primary.
func (s *scenario) degraded(text string) {
	s.t.Helper()
	s.await(40*time.Second, func() error {
		st, err := s.lab.View(s.ctx)
		if err != nil {
			return lab.NotYet("%v", err)
		}
		i := slices.IndexFunc(st.Failed, func(f string) bool {
			return strings.Contains(f, " on "+s.old+": ") && strings.Contains(f, text)
		})
		if i < 0 {
			return lab.NotYet("crm_mon does not show %q of %s: %q", text, s.old, st.Failed)
		}
		s.stage("crm_mon shows: %s", st.Failed[i])
		return nil
	})
}

// takeConnections takes every connection of the primary, those for superusers too, and returns what gives them back.
func (s *scenario) takeConnections() (release func()) {
	s.t.Helper()
	n, err := strconv.Atoi(s.sql(s.old, "SELECT current_setting('max_connections')::int"))
	s.must(err)
	var wg sync.WaitGroup
	var inputs []io.Closer
	for range n {
		// Idle: a backend that sleeps would not notice that its client is gone.
		cmd, err := s.lab.CommandAs(s.ctx, s.old, "postgres", s.lab.Bindir+"/psql", "-Xq", "-h", "/var/run/postgresql", "-d", "postgres")
		s.must(err)
		in, err := cmd.StdinPipe()
		s.must(err)
		s.must(cmd.Start())
		inputs = append(inputs, in)
		wg.Go(func() { cmd.Wait() })
	}
	release = sync.OnceFunc(func() {
		for _, in := range inputs {
			in.Close()
		}
		wg.Wait()
	})
	s.t.Cleanup(release)
	s.await(roleLimit, func() error {
		if _, err := s.lab.SQL(s.ctx, s.old, "SELECT 1"); err == nil || !strings.Contains(err.Error(), "too many clients") && !strings.Contains(err.Error(), "remaining connection slots") {
			return lab.NotYet("%s still takes connections (%v)", s.old, err)
		}
		return nil
	})
	s.stage("all %d connections of %s are taken", n, s.old)
	return release
}

// Ensure a primary that is merely slow is neither restarted nor replaced.
//
// Trap 8: monitor timeout of an overloaded or sync-blocked primary restarts a healthy primary.
func TestSlowIsNotDead(t *testing.T) {
	for _, tt := range []struct {
		name string
		slow func(*scenario)
	}{
		{"all connections taken", func(s *scenario) {
			release := s.takeConnections()
			time.Sleep(50 * time.Second)
			s.degraded("all its connections are taken")
			release()
		}},
		{"synchronous standby gone", syncStandbyGone},
		{"a hundred clients and checkpoints", hundredClients},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := onDisks()
			o.Ops["monitor-promoted"] = lab.Op{Interval: "4s"}
			c := testCluster(t, "slow", o)
			c.useFaults(t, false)
			s := c.begin(t, 4*time.Minute, true)
			was := s.timeline(s.old)
			before, err := s.lab.Postmaster(s.old)
			s.must(err)
			tt.slow(s)
			s.notRestarted(was, before)
			for _, l := range s.logs.From(0) {
				if strings.Contains(l.Attrs["reason"], "no commit has ended") && l.Msg != "monitor" || l.Msg == "leaving the role to others" {
					t.Errorf("%s: %s %v", l.Node, l.Msg, l.Attrs)
				}
			}
		})
	}
}

// syncStandbyGone has every commit of a client wait for a standby that is cut off.
func syncStandbyGone(s *scenario) {
	s.sql(s.old, "ALTER SYSTEM SET synchronous_standby_names = '"+s.others[0]+"'")
	s.sql(s.old, "SELECT pg_reload_conf()")
	defer func() {
		s.sql(s.old, "ALTER SYSTEM RESET synchronous_standby_names")
		s.sql(s.old, "SELECT pg_reload_conf()")
		s.must(s.load.AwaitAck(s.within(roleLimit)))
	}()
	s.cutStandby(s.others[0])
	s.await(20*time.Second, func() error {
		if out := s.sql(s.old, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"); out == "0" {
			return lab.NotYet("nobody waits for the synchronous standby")
		}
		return nil
	})
	s.stage("clients wait for %s, which is cut off", s.others[0])
	time.Sleep(45 * time.Second)
	s.must(s.lab.HealAll(s.ctx))
}

// hundredClients is more load than this machine can take.
func hundredClients(s *scenario) {
	s.stopLoad()
	// They are patient: ninety who give up after a moment and come again keep a slow server from answering anybody.
	r, err := load.Start(s.ctx, s.lab, load.Options{Clients: 90, Every: time.Millisecond, ConnectTimeout: 10 * time.Second, AnswerTimeout: 10 * time.Second})
	s.must(err)
	s.load = r
	end := time.Now().Add(45 * time.Second)
	for time.Now().Before(end) {
		s.sql(s.old, "CREATE TABLE flood AS SELECT repeat(md5(n::text), 10) AS f FROM generate_series(1, 30000) n")
		s.sql(s.old, "CHECKPOINT")
		s.sql(s.old, "DROP TABLE flood")
	}
}
