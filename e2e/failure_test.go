package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// failing are the options of a lab for failures: the monitor's intervals are those that the README recommends, so that
// whatever heals within a second or two was not healed by a monitor. A fenced node comes back by itself. The standbys look
// for the primary on each node; with PGBATON_FAILURE_VIP=1, which make soak sets in every other round, by the virtual IP.
func failing() lab.Options {
	return lab.Options{
		Direct: os.Getenv("PGBATON_FAILURE_VIP") == "",
		Ops: map[string]lab.Op{
			"promote": {OnFail: "demote"},
			"notify":  {Timeout: "20s"},
			"stop":    {Timeout: "30s"},
		},
		AutoReturn: 2 * time.Second,
	}
}

// Limits of issue 3.
const (
	crashLimit   = 2500 * time.Millisecond // the primary's postmaster is killed: until clients write again
	revivalLimit = 5 * time.Second         // a standby is killed: until it streams again
	blinkLimit   = time.Second             // what counts as no outage on a machine that is busy with a whole cluster
	lossLimit    = 6 * time.Second         // the primary's node is gone, from when corosync has seen it until clients write again
)

// Ensure the cluster survives the failures of one node's PostgreSQL, by their numbers in the list of scenarios.
func TestFailure(t *testing.T) {
	tell(t, "failure", failing(), 3*time.Minute, []story{
		{"33 postmaster killed", postmasterKilled},
		{"35 all of PostgreSQL killed", serverKilled},
		{"34 backend killed", backendKilled},
		{"standby killed", standbyKilled},
		{"39 PostgreSQL stopped", serverStopped},
		{"39 standby stopped", standbyStopped},
		{"40 agent stopped", sentinelStopped},
		{"36 start fails after a crash", startFails},
		{"33 crash recovery takes too long", recoverySlow},
		{"37 data directory gone", dataGone},
		{"41 node power off", powerOff},
		{"attrd dies on the primary's node", attrdKilled},
	})
}

// Trap 5: a crash does not wait for the next monitor.
func postmasterKilled(s *scenario) { s.crash(false) }

// Trap 4: nothing that a killed server leaves behind fails a stop.
func serverKilled(s *scenario) { s.crash(true) }

// crash kills the primary's server: nothing is lost, nothing is fenced, nobody's action fails, and soon clients write
// again, here or there.
func (s *scenario) crash(all bool) {
	s.t.Helper()
	was := s.timeline(s.old)
	s.load.Mark("crash")
	s.must(s.lab.SignalPostgres(s.old, syscall.SIGKILL, all))
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	now := s.promoted("")
	s.stage("%s is primary", now)
	if s.timeline(now) != was {
		s.forksAtTheEnd(now, was)
	}
	s.outage(s.finish(), "crash", here(crashLimit))
	s.primaryIs(now)
}

func backendKilled(s *scenario) {
	was := s.timeline(s.old)
	postmaster, err := s.lab.Postmaster(s.old)
	s.must(err)
	procs, err := s.lab.Processes(s.old)
	s.must(err)
	backend := 0
	for _, p := range procs {
		if strings.HasPrefix(p.Args, "postgres: ") && strings.Contains(p.Args, " load load ") {
			backend = p.PID
		}
	}
	if backend == 0 {
		s.t.Fatalf("no backend of a client on %s: %+v", s.old, procs)
	}
	s.load.Mark("crash")
	s.must(s.lab.Signal(syscall.SIGKILL, backend))
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	// The next monitor looks at it, too.
	time.Sleep(16 * time.Second)
	if after, err := s.lab.Postmaster(s.old); err != nil || after != postmaster {
		s.t.Errorf("%s was restarted although PostgreSQL recovered by itself (%v)", s.old, err)
	}
	r := s.finish()
	if now := s.timeline(s.old); now != was {
		s.t.Errorf("%s writes timeline %d, before the crash it was %d", s.old, now, was)
	}
	s.outage(r, "crash", here(crashLimit))
	s.primaryIs(s.old)
}

func standbyKilled(s *scenario) {
	node, was := s.others[0], s.timeline(s.old)
	s.load.Mark("crash")
	killed := time.Now()
	s.must(s.lab.SignalPostgres(node, syscall.SIGKILL, false))
	s.await(roleLimit, func() error {
		out, err := s.lab.SQL(s.ctx, s.old, "SELECT state FROM pg_stat_replication WHERE application_name = '"+node+"' AND backend_start > to_timestamp("+strconv.FormatInt(killed.Unix(), 10)+")")
		if err != nil || out != "streaming" {
			return lab.NotYet("%s does not stream from %s again: %q (%v)", node, s.old, out, err)
		}
		return nil
	})
	took := time.Since(killed)
	s.t.Logf("streams again after %.2f s", took.Seconds())
	if took > here(revivalLimit) {
		s.t.Errorf("%s streams again after %.1f s, expected at most %s", node, took.Seconds(), here(revivalLimit))
	}
	r := s.finish()
	s.outage(r, "crash", here(blinkLimit))
	if now := s.timeline(s.old); now != was {
		s.t.Errorf("%s writes timeline %d, before a standby was killed it was %d", s.old, now, was)
	}
	s.primaryIs(s.old)
}

// serverStopped stops the primary's server by a signal, children and all: it is alive and serves nobody.
//
// Trap 7: a primary that is stopped by a signal is found, and ended.
func serverStopped(s *scenario) {
	was := s.timeline(s.old)
	s.load.Mark("stop")
	s.must(s.lab.SignalPostgres(s.old, syscall.SIGSTOP, true))
	now := s.newPrimary(was, "")
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s is primary", now)
	s.forksAtTheEnd(now, was)
	s.outage(s.finish(), "stop", here(10*time.Second))
	s.primaryIs(now)
}

func standbyStopped(s *scenario) {
	node, was := s.others[0], s.timeline(s.old)
	before, err := s.lab.Postmaster(node)
	s.must(err)
	s.load.Mark("stop")
	s.must(s.lab.SignalPostgres(node, syscall.SIGSTOP, true))
	s.await(roleLimit, func() error {
		if now, err := s.lab.Postmaster(node); err != nil || now == before {
			return lab.NotYet("the server of %s was not started again (%v)", node, err)
		}
		return nil
	})
	s.stage("the server of %s was started again", node)
	r := s.finish()
	s.outage(r, "stop", here(blinkLimit))
	if now := s.timeline(s.old); now != was {
		s.t.Errorf("%s writes timeline %d, before a standby was stopped it was %d", s.old, now, was)
	}
}

// sentinelStopped leaves a crash to the monitor, which is a failed action then, and Pacemaker recovers the instance.
//
// Trap 36: its stop keeps the score, and the role stays where it was.
func sentinelStopped(s *scenario) {
	procs, err := s.lab.Processes(s.old)
	s.must(err)
	stopped := 0
	for _, p := range procs {
		if strings.HasSuffix(p.Args, " sentinel") {
			s.must(s.lab.Signal(syscall.SIGSTOP, p.PID))
			stopped = p.PID
		}
	}
	if stopped == 0 {
		s.t.Fatalf("no sentinel runs on %s", s.old)
	}
	was := s.timeline(s.old)
	s.load.Mark("crash")
	s.must(s.lab.SignalPostgres(s.old, syscall.SIGKILL, false))
	now := s.newPrimary(was, "")
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s is primary", now)
	if now != s.old {
		s.t.Errorf("%s is primary, expected %s, which Pacemaker recovered", now, s.old)
	}
	s.must(s.lab.Signal(syscall.SIGCONT, stopped))
	s.forksAtTheEnd(now, was)
	s.streaming()
	r := s.stopLoad()
	s.outage(r, "crash", here(30*time.Second))
	s.onlyFenced()
	s.sameRows()
	for _, f := range s.status().Failed {
		if !strings.HasPrefix(f, lab.Resource+"_monitor_15000 on "+s.old+":") {
			s.t.Errorf("failed action: %s", f)
		}
	}
}

// startFails crashes a primary that cannot start any more.
func startFails(s *scenario) {
	conf := filepath.Join(s.lab.Dir, "nodes", s.old, "data", "postgresql.conf")
	good, err := os.ReadFile(conf)
	s.must(err)
	s.must(os.WriteFile(conf, append(good, "\nshared_buffers = 'broken by the test'\n"...), 0o600))
	defer os.WriteFile(conf, good, 0o600)
	was, began := s.timeline(s.old), time.Now()
	s.load.Mark("crash")
	s.must(s.lab.SignalPostgres(s.old, syscall.SIGKILL, false))
	now := s.newPrimary(was, "")
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s is primary", now)
	if now == s.old {
		s.t.Fatalf("%s is primary, and cannot start", now)
	}
	s.onlyFenced()
	fork := s.fork(now, s.timeline(now), was)
	end := s.lastRecord(s.old, was, fork).end
	s.missing(now, began, int64(end-fork))
	s.must(os.WriteFile(conf, good, 0o600))
	s.run(now, "crm_resource", "--cleanup", "-r", lab.Resource, "-N", s.old)
	s.returned(s.old, now)
	s.takenOver(now, was, "crash", here(10*time.Second))
}

// dataGone removes all files under a running primary.
func dataGone(s *scenario) {
	was := s.timeline(s.old)
	s.load.Mark("gone")
	data := filepath.Join(s.lab.Dir, "nodes", s.old, "data")
	entries, err := os.ReadDir(data)
	s.must(err)
	conf := map[string][]byte{}
	for _, e := range entries {
		if name := filepath.Join(data, e.Name()); strings.HasSuffix(name, ".conf") {
			conf[name], err = os.ReadFile(name)
			s.must(err)
		}
		s.must(os.RemoveAll(filepath.Join(data, e.Name())))
	}
	now := s.newPrimary(was, "")
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s is primary", now)
	if now == s.old {
		s.t.Fatalf("%s is primary, and has no data", now)
	}
	s.onlyFenced()
	r := s.endLoad()
	s.t.Logf("%d of %d acknowledged rows lost", r.Lost, r.Acknowledged)
	s.outage(r, "gone", here(5*time.Second))
	for _, o := range r.Overlaps {
		s.t.Errorf("two writable nodes: %+v", o)
	}
	for name, b := range conf {
		s.must(os.WriteFile(name, b, 0o600))
	}
	s.must(s.lab.Rebuild(s.ctx, s.old))
	s.streaming()
}

// powerOff cuts the power of the primary's node. It is fenced, and comes back.
func powerOff(s *scenario) {
	was := s.timeline(s.old)
	s.load.Mark("power off")
	off := time.Now()
	s.must(s.lab.Power(s.ctx, s.old, false))
	now := s.newPrimary(was, "")
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s is primary", now)
	s.onlyFenced(s.old)
	if at, ok := s.fencedAt(s.old); ok {
		s.t.Logf("fenced after %.2f s", at.Sub(off).Seconds())
	}
	s.returned(s.old, now)
	s.takenOver(now, was, "power off", s.lab.LossSeen()+here(lossLimit))
}

// attrdKilled ends Pacemaker's attribute manager under a healthy primary, whose score goes with it. Nobody notices.
//
// Trap 40: attrd dies under a healthy primary, whose score goes with it.
// Trap 10: no score outlives the instance that it belongs to.
func attrdKilled(s *scenario) {
	was := s.timeline(s.old)
	for n := range 3 {
		s.load.Mark(fmt.Sprintf("attrd %d", n))
		killed := time.Now()
		s.must(s.lab.Signal(syscall.SIGKILL, s.attrd(s.old)))
		time.Sleep(5 * time.Second)
		s.highest(s.old)
		s.stage("the primary is on top again, %.1f s after attrd died", time.Since(killed).Seconds())
	}
	r := s.finish()
	for n := range 3 {
		s.outage(r, fmt.Sprintf("attrd %d", n), here(blinkLimit))
	}
	if now := s.timeline(s.old); now != was {
		s.t.Errorf("%s writes timeline %d, before attrd died on it it was %d", s.old, now, was)
	}
	s.primaryIs(s.old)
	// No score outlives the instance that it belongs to, wherever it was set.
	s.standby(s.old, true)
	now := s.newPrimary(was, "")
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	if n := s.status().Node(s.old); n.Score != "" {
		s.t.Errorf("%s is in standby and still has the score %q", s.old, n.Score)
	}
	s.standby(s.old, false)
	s.streaming()
	s.primaryIs(now)
}

// attrd is a node's attribute manager.
func (s *scenario) attrd(node string) int {
	s.t.Helper()
	procs, err := s.lab.Processes(node)
	s.must(err)
	for _, p := range procs {
		if p.Name == "pacemaker-attrd" && p.State != "Z" {
			return p.PID
		}
	}
	s.t.Fatalf("no pacemaker-attrd runs on %s", node)
	return 0
}

// recoverySlow keeps a crashed primary in crash recovery for longer than the user wants to wait: the best of the others
// takes over, and says what is lost. Without another node, the recovery is waited for.
func recoverySlow(s *scenario) {
	s.run(s.old, "crm_resource", "-r", lab.Resource, "-p", "crash_recovery_limit", "-v", "4")
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	// A reload takes the place of the promotion in Pacemaker's history: a plan that is dropped once the monitor was
	// cancelled then makes it forget who is promoted. Another primary has a promotion there.
	s.handoverTo(s.others[0])
	s.old = s.others[0]
	defer func() {
		s.run(s.status().Asked, "crm_resource", "-r", lab.Resource, "-d", "crash_recovery_limit")
	}()
	// One that has not counted the crashes of the stories before: after four in ten minutes it does not try again.
	s.must(installAgent(s.ctx, s.lab, s.old, agentInNode))
	s.await(healLimit, func() error { return newSentinel(s, s.old) })
	was, began := s.timeline(s.old), time.Now()
	// So much to replay that its recovery can be caught.
	s.sql(s.old, "CREATE TABLE bulk AS SELECT n, repeat('x', 500) AS t FROM generate_series(1, 200000) n")
	s.load.Mark("crash")
	s.must(s.lab.SignalPostgres(s.old, syscall.SIGKILL, true))
	startup := s.stopRecovery(10 * time.Second)
	now := s.newPrimary(was, "")
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s is primary", now)
	if now == s.old {
		s.t.Fatalf("%s is primary, and its recovery is stopped (pid %d)", now, startup)
	}
	s.onlyFenced()
	fork := s.fork(now, s.timeline(now), was)
	s.missing(now, began, int64(s.lastRecord(s.old, was, fork).end-fork))
	s.returned(s.old, now)
	s.sql(now, "DROP TABLE IF EXISTS bulk") // it may be among what is lost
	s.takenOver(now, was, "crash", 4*time.Second+here(10*time.Second))
}

// stopRecovery stops the recovery of the old primary as soon as it has begun, and returns its process.
func (s *scenario) stopRecovery(limit time.Duration) (pid int) {
	s.t.Helper()
	s.must(lab.Poll(s.within(limit), 5*time.Millisecond, func() error {
		procs, err := s.lab.Processes(s.old)
		if err != nil {
			return err
		}
		for _, p := range procs {
			if strings.HasPrefix(p.Args, "postgres:") && strings.Contains(p.Args, " startup ") {
				pid = p.PID
				return s.lab.Signal(syscall.SIGSTOP, pid)
			}
		}
		return lab.NotYet("no startup process on %s", s.old)
	}))
	s.stage("the startup process of %s is stopped", s.old)
	return pid
}
