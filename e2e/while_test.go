package e2e

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/lab/follow"
)

// Ensure a handover copes with what a server in use has going on.
func TestHandoverWhile(t *testing.T) {
	tell(t, "plain", ordinary(), 4*time.Minute, []story{
		{"replay is paused on the target", whileReplayIsPaused},
		{"the target is far behind in replay", whileFarBehind},
		{"transactions are open and prepared", whileTransactions},
		{"the WAL ends with a segment", segmentFull},
		{"a base backup runs", whileBaseBackup},
		{"two requests come at once", twoRequests},
		{"the address is left where nobody is promoted", addressLeft},
		{"the cluster is in maintenance", whileMaintenance},
		{"a standby is cascaded from the target", whileCascaded},
		{"the third node's server hangs", whileThirdHangs},
		{"a person forces the roles", forcedRoles},
	})
}

// whileThirdHangs stops all processes of the server that has no part in the handover.
//
// Trap 12: what does not come is waited for within bounds.
func whileThirdHangs(s *scenario) {
	target, third, was := s.others[0], s.others[1], s.timeline(s.old)
	from := s.logs.Count()
	s.must(s.lab.SignalPostgres(third, syscall.SIGSTOP, true))
	s.move(target)
	s.newPrimary(was, target)
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	for _, msg := range []string{"pre-demote", "pre-promote"} { // without these two there was no handover
		_, err := s.logs.Await(s.within(roleLimit), from, msg+" on "+third, func(l follow.Line) bool { return l.Node == third && l.Msg == msg && l.Attrs["ms"] != "" })
		s.must(err)
	}
	for _, l := range s.logs.From(from) {
		if l.Node != third || l.Attrs["ms"] == "" || !strings.HasSuffix(l.Msg, "-demote") && !strings.HasSuffix(l.Msg, "-promote") {
			continue
		}
		took, err := strconv.Atoi(l.Attrs["ms"])
		s.must(err)
		s.t.Logf("%s of %s, whose server hangs, took %d ms", l.Msg, third, took)
		// A second by design; what a busy machine adds is not the agent's.
		if limit := time.Second + here(time.Second); took > int(limit.Milliseconds()) {
			s.t.Errorf("%s of %s took %d ms, expected at most %s: a sick third node held everybody up", l.Msg, third, took, limit)
		}
	}
	// Whether the sentinel has ended the hung server by now or not.
	if err := s.lab.SignalPostgres(third, syscall.SIGCONT, true); err != nil {
		s.t.Logf("SIGCONT: %v", err)
	}
	s.handover(was, target)
}

// addressLeft demotes the primary in one plan and wants its address stopped in a later one, as where a plan is made anew in
// between: with a mandatory order Pacemaker would block that for good, and the node could not be shut down.
func addressLeft(s *scenario) {
	s.stopLoad()
	meta := func(rsc string, args ...string) {
		s.run(s.others[0], append([]string{"crm_resource", "-r", rsc, "--meta"}, args...)...)
		s.must(s.lab.WaitIdle(s.within(healLimit)))
	}
	meta(lab.VIPResource, "-p", "is-managed", "-v", "false")
	meta(lab.Clone, "-p", "target-role", "-v", "Unpromoted")
	if st := s.status(); len(st.Promoted()) > 0 || st.VIP != s.old {
		s.t.Fatalf("promoted: %v, the address is on %q; expected nobody, and the address still on %s", st.Promoted(), st.VIP, s.old)
	}
	meta(lab.VIPResource, "-d", "is-managed")
	if at := s.status().VIP; at != "" {
		s.t.Errorf("nobody is promoted, and the address is on %s for ever: %s", at, s.run(s.others[0], "crm_simulate", "-sL"))
	}
	s.stage("the address went although the demotion was in an earlier plan")
	meta(lab.Clone, "-d", "target-role")
	now := s.promoted("")
	if at := s.status().VIP; at != now {
		s.t.Errorf("%s is primary, the address is on %q", now, at)
	}
	s.noFailures()
	s.streaming()
}

// forcedRoles demotes and promotes by crm_resource --force-..., which tells the agent of no plan: the old primary's own disk
// ends with its clean shutdown, that of a standby which was cut off before does not.
func forcedRoles(s *scenario) {
	standby, third := s.others[0], s.others[1]
	s.stopLoad()
	force := func(node, action string) (string, error) {
		return s.lab.Run(s.ctx, node, "crm_resource", "--force-"+action, "-r", lab.Resource, "-V")
	}
	s.run(third, "crm_resource", "-r", lab.Clone, "--meta", "-p", "is-managed", "-v", "false")
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	s.cutStandby(standby)
	s.sql(s.old, "SELECT pg_logical_emit_message(true, 'e2e', 'only here and on "+third+"'); SELECT pg_switch_wal()")
	if out, err := force(s.old, "demote"); err != nil {
		s.t.Fatalf("--force-demote on %s: %v: %s", s.old, err, out)
	}
	s.await(healLimit, func() error {
		if out, err := s.lab.SQL(s.ctx, s.old, "SELECT pg_is_in_recovery()"); err != nil || out != "t" {
			return lab.NotYet("%s is not back as a standby: %q (%v)", s.old, out, err)
		}
		return nil
	})
	s.stage("%s was demoted by force", s.old)
	out, err := force(standby, "promote")
	if err == nil {
		s.t.Errorf("--force-promote on %s, which lacks WAL, succeeded: %s", standby, out)
	}
	s.logged(standby, `not promoted: `+standby+` lacks the last \d+ bytes of WAL`)
	if out := s.sql(standby, "SELECT pg_is_in_recovery()"); out != "t" {
		s.t.Fatalf("%s was promoted without the end of the WAL", standby)
	}
	if out, err := force(s.old, "promote"); err != nil {
		s.t.Fatalf("--force-promote on %s, which has everything: %v: %s", s.old, err, out)
	}
	if out := s.sql(s.old, "SELECT pg_is_in_recovery()"); out != "f" {
		s.t.Errorf("%s is not writable after --force-promote", s.old)
	}
	s.stage("%s was promoted by force, %s was not", s.old, standby)
	s.must(s.lab.HealAll(s.ctx))
	s.run(third, "crm_resource", "-r", lab.Clone, "--meta", "-d", "is-managed")
	s.promoted(s.old)
	s.streaming()
	s.sameRows()
}

// handover moves the role, checks the proof and ends the scenario.
func (s *scenario) handover(was uint32, to string) {
	s.t.Helper()
	s.newPrimary(was, to)
	s.stage("%s is primary", to)
	s.proven(s.old, was, to)
	s.streaming()
	s.highest(to)
	s.clear()
	s.finish()
	s.primaryIs(to)
}

// Trap 18: a target whose replay is paused gets there, with everything.
func whileReplayIsPaused(s *scenario) {
	target, was := s.others[0], s.timeline(s.old)
	s.sql(target, "SELECT pg_wal_replay_pause()")
	// Something that the target has and cannot show before it goes on.
	s.sql(s.old, "CREATE TABLE while_paused AS SELECT 42 AS answer")
	s.move(target)
	s.newPrimary(was, target)
	if got := s.sql(target, "SELECT answer FROM while_paused; DROP TABLE while_paused"); got != "42" {
		s.t.Errorf("what was committed while replay was paused on %s is %q there, expected 42", target, got)
	}
	s.handover(was, target)
}

// Trap 18: a target that is far behind in replay is found before anything is stopped.
func whileFarBehind(s *scenario) {
	target, was := s.others[0], s.timeline(s.old)
	before, err := s.lab.Postmaster(s.old)
	s.must(err)
	s.sql(target, "SELECT pg_wal_replay_pause()")
	s.sql(s.old, "CREATE TABLE filler AS SELECT repeat(md5(n::text), 30) AS f FROM generate_series(1, 90000) n")
	s.stage("wrote what %s does not replay", target)
	s.move(target)
	l, err := s.logs.Await(s.within(roleLimit), 0, "the handover to be called off", func(l follow.Line) bool {
		return l.Node == s.old && l.Msg == "calling the handover off"
	})
	s.must(err)
	if !strings.Contains(l.Attrs["reason"], "has not replayed") {
		s.t.Errorf("called off because %q, expected the WAL that %s has not replayed", l.Attrs["reason"], target)
	}
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	s.stage("called off: %s", l.Attrs["reason"])
	if after, err := s.lab.Postmaster(s.old); err != nil || after != before {
		s.t.Errorf("%s was restarted although the handover was called off (%v)", s.old, err)
	}
	s.noFailures()
	s.sql(target, "SELECT pg_wal_replay_resume()")
	s.sql(s.old, "DROP TABLE filler")
	s.streaming()
	s.clear()
	s.lifted(target)
	s.stage("replayed and cleared, %s may be promoted", target)
	s.move(target)
	s.handover(was, target)
}

// segmentFull ends the WAL with a segment, as archive_timeout does on an idle server, while a standby has had no restart point
// since the role moved; then that loses its primary. It is on the newest timeline, and not where its pg_control says.
func segmentFull(s *scenario) {
	target, third, was := s.others[0], s.others[1], s.timeline(s.old)
	s.move(target)
	s.newPrimary(was, target)
	s.streaming()
	s.highest(target)
	s.clear()
	s.stopLoad()
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	segment := uint64(s.lab.WALSegMB) << 20
	whole := func() (string, bool) {
		at, pending, _ := strings.Cut(s.sql(third, "SELECT pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()"), "|")
		return at, pending != "t" && parseLSN(s.t, at)%segment == 0
	}
	s.sql(target, "CHECKPOINT") // the one after the promotion, which would write on
	at := ""
	for {
		s.await(healLimit, func() error {
			s.sql(target, "SELECT pg_switch_wal()")
			if at, ok := whole(); !ok {
				return lab.NotYet("%s has replayed up to %s, expected a whole segment", third, at)
			}
			return nil
		})
		receiver, err := strconv.Atoi(s.sql(third, "SELECT pid FROM pg_stat_wal_receiver"))
		s.must(err)
		s.cutStandby(third)
		s.must(s.lab.Signal(syscall.SIGTERM, s.hostPID(third, receiver)))
		s.await(healLimit, func() error {
			if out := s.sql(third, fmt.Sprintf("SELECT count(*) FROM pg_stat_wal_receiver WHERE pid = %d", receiver)); out != "0" {
				return lab.NotYet("the WAL receiver of %s runs on", third)
			}
			return nil
		})
		var ok bool
		if at, ok = whole(); ok {
			break
		}
		s.stage("%s got more than a whole segment before it was cut off, up to %s: once more", third, at) // a checkpoint, autovacuum
		s.must(s.lab.HealAll(s.ctx))
		s.streaming()
	}
	s.stage("%s has replayed a whole segment of timeline %d, and lost %s", third, s.timeline(target), target)
	for end := time.Now().Add(12 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if n := s.status().Node(third); n.Score == "-INFINITY" || strings.HasPrefix(n.Attributes[statusAttribute], "diverged") {
			s.t.Fatalf("%s has the score %q, and crm_mon -A says of it: %s", third, n.Score, n.Attributes[statusAttribute])
		}
	}
	if now, _ := whole(); now != at {
		s.t.Errorf("%s has replayed up to %s meanwhile, it was at %s and is cut off", third, now, at)
	}
	s.must(s.lab.HealAll(s.ctx))
	s.streaming()
	s.noFailures()
	s.primaryIs(target)
}

func whileTransactions(s *scenario) {
	target, was := s.others[0], s.timeline(s.old)
	s.sql(s.old, "CREATE TABLE transactions (what text)")
	s.sql(s.old, "BEGIN; INSERT INTO transactions VALUES ('prepared'); PREPARE TRANSACTION 'baton'")
	open, err := s.lab.CommandAs(s.ctx, s.old, "postgres", filepath.Join(s.lab.Bindir, "psql"), "-Xq", "-h", "/var/run/postgresql", "-d", "postgres",
		"-c", "INSERT INTO transactions VALUES ('open'); SELECT pg_sleep(1800)")
	s.must(err)
	s.must(open.Start())
	defer open.Wait()
	s.await(10*time.Second, func() error {
		if s.sql(s.old, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(1800)%' AND backend_xid IS NOT NULL") != "1" {
			return lab.NotYet("the open transaction has not begun")
		}
		return nil
	})
	s.move(target)
	s.newPrimary(was, target)
	s.sql(target, "COMMIT PREPARED 'baton'")
	if got := s.sql(target, "SELECT what FROM transactions; DROP TABLE transactions"); got != "prepared" {
		s.t.Errorf("after the handover there is %q, expected the row of the prepared transaction and not that of the open one", got)
	}
	s.handover(was, target)
}

func whileBaseBackup(s *scenario) {
	target, was := s.others[0], s.timeline(s.old)
	backup, err := s.lab.CommandAs(s.ctx, s.old, "postgres", filepath.Join(s.lab.Bindir, "pg_basebackup"), "-h", "/var/run/postgresql",
		"-D", "/tmp/backup", "-X", "stream", "--checkpoint=fast", "--max-rate=500k")
	s.must(err)
	s.must(backup.Start())
	s.await(20*time.Second, func() error {
		if s.sql(s.old, "SELECT phase FROM pg_stat_progress_basebackup") != "streaming database files" {
			return lab.NotYet("the base backup does not run")
		}
		return nil
	})
	s.stage("a base backup runs")
	s.move(target)
	s.newPrimary(was, target)
	var exit *exec.ExitError
	if err := backup.Wait(); !errors.As(err, &exit) {
		s.t.Errorf("the base backup ended with %v although its server was shut down", err)
	}
	s.run(s.old, "rm", "-rf", "/tmp/backup")
	s.handover(was, target)
}

func twoRequests(s *scenario) {
	was := s.timeline(s.old)
	var wg sync.WaitGroup
	errs := make([]error, len(s.others))
	for i, n := range s.others {
		wg.Go(func() {
			_, errs[i] = s.lab.Run(s.ctx, n, "crm_resource", "--move", "-r", lab.Clone, "--promoted", "--node", n)
		})
	}
	wg.Wait()
	if errs[0] != nil && errs[1] != nil {
		s.t.Fatalf("both requests failed: %v", errors.Join(errs...))
	}
	to := s.newPrimary(was, "")
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	s.stage("%s is primary", to)
	to = s.newPrimary(was, "") // the second request may have moved it on
	s.streaming()
	s.highest(to)
	s.clear()
	s.finish()
	s.primaryIs(to)
	if to == s.old {
		s.t.Errorf("%s is primary after two requests to move the role away from it", to)
	}
}

func whileMaintenance(s *scenario) {
	target, was := s.others[0], s.timeline(s.old)
	s.run(target, "crm_attribute", "-n", "maintenance-mode", "-v", "true")
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	s.move(target)
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	if now := s.timeline(s.old); now != was {
		s.t.Errorf("%s writes timeline %d, before the maintenance it was %d", s.old, now, was)
	}
	s.must(s.load.AwaitAck(s.within(10 * time.Second)))
	s.stage("nothing happens in maintenance")
	s.run(target, "crm_attribute", "-n", "maintenance-mode", "-D")
	s.handover(was, target)
}

func whileCascaded(s *scenario) {
	target, third, was := s.others[0], s.others[1], s.timeline(s.old)
	s.sql(third, "ALTER SYSTEM SET primary_conninfo = 'host="+target+" user=replicator application_name="+third+"'")
	defer func() {
		s.sql(third, "ALTER SYSTEM RESET primary_conninfo")
		s.sql(third, "SELECT pg_reload_conf()")
	}()
	s.sql(third, "SELECT pg_reload_conf()")
	s.await(healLimit, func() error {
		if out := s.sql(target, "SELECT state FROM pg_stat_replication WHERE application_name = '"+third+"'"); out != "streaming" {
			return lab.NotYet("%s does not stream from %s: %q", third, target, out)
		}
		return nil
	})
	s.stage("%s streams from %s, which is a standby", third, target)
	s.move(target)
	s.handover(was, target)
}
