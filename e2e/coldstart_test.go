package e2e

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/lab/follow"
)

// coldLimit is how long a cluster that was stopped cleanly may take from the last needed start to a primary, besides what
// Corosync and Pacemaker take to form it.
const coldLimit = 3 * time.Second

// staysOff is a lab in which a node that lost its power stays off until the test switches it on.
func staysOff() lab.Options {
	o := failing()
	o.AutoReturn = time.Hour
	// A node that has not been seen since the others started is fenced by default, which does nothing but take time here:
	// it is off.
	o.Properties = map[string]string{"startup-fencing": "false"}
	return o
}

// Ensure a cluster of which nothing ran any more finds its way back, in whatever order the nodes return.
func TestColdStart(t *testing.T) {
	tell(t, "cold", staysOff(), 4*time.Minute, []story{
		{"46 power loss of all, all return", func(s *scenario) { s.powerLoss(0) }},
		{"46 power loss of all, the primary returns first", func(s *scenario) { s.powerLoss(3*time.Second, s.old) }},
		{"46 power loss of all, the primary returns last", func(s *scenario) { s.powerLoss(3*time.Second, s.others...) }},
		{"46 power loss of all, the last primary recovers for long", longRecovery},
		{"47 clean stop of all, all return", func(s *scenario) { s.cleanStop(0) }},
		{"47 clean stop of all, the primary returns first", func(s *scenario) { s.cleanStop(3*time.Second, s.old) }},
		{"47 clean stop of all, the primary returns last", func(s *scenario) { s.cleanStop(3*time.Second, s.others...) }},
		{"47 clean stop of all, one returns alone", func(s *scenario) { s.cleanStop(10*time.Second, s.others[0]) }},
		{"47 those return who missed the end", missedTheEnd},
		{"47 who lost its power long ago returns, and the rest was away", longGone},
	})
}

// powerOn switches nodes on at once, and returns when.
func (s *scenario) powerOn(nodes ...string) time.Time {
	s.t.Helper()
	began := time.Now()
	for _, n := range nodes {
		s.must(s.lab.Power(s.ctx, n, true))
	}
	return began
}

// rest are the nodes besides these.
func (s *scenario) rest(nodes []string) []string {
	var list []string
	for _, n := range s.lab.Names {
		if !strings.Contains(" "+strings.Join(nodes, " ")+" ", " "+n+" ") {
			list = append(list, n)
		}
	}
	return list
}

// powerLoss cuts the power of all nodes at once. These return first, the others after a while.
func (s *scenario) powerLoss(after time.Duration, first ...string) {
	s.t.Helper()
	was := s.timeline(s.old)
	s.load.Mark("power off")
	var wg sync.WaitGroup
	for _, n := range s.lab.Names {
		wg.Go(func() {
			if err := s.lab.Power(s.ctx, n, false); err != nil {
				s.t.Errorf("taking the power of %s: %v", n, err)
			}
		})
	}
	wg.Wait()
	began := s.powerOn(first...)
	time.Sleep(after)
	if len(s.rest(first)) > 1 {
		began = time.Now() // the first were not enough
	}
	s.powerOn(s.rest(first)...)
	now := s.newPrimary(was, "")
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s is primary, %.1f s after enough nodes were on", now, time.Since(began).Seconds())
	for _, n := range s.lab.Names {
		if n != now {
			s.returned(n, now)
		}
	}
	s.takenOver(now, was, "power off", 0)
}

// longRecovery has the last primary come back with so much WAL that it cannot say in half a second how far that goes, and with
// a recovery that takes longer than any action may. It has all rows, and nobody is promoted over it.
func longRecovery(s *scenario) {
	was := s.timeline(s.old)
	settings := map[string]string{"max_wal_size": "16GB", "checkpoint_timeout": "1h", "wal_keep_size": "8GB"}
	for name, value := range settings {
		s.sql(s.old, fmt.Sprintf("ALTER SYSTEM SET %s = '%s'", name, value))
	}
	s.sql(s.old, "SELECT pg_reload_conf()")
	s.sql(s.old, "CHECKPOINT")
	s.cutStandby(s.others...)
	s.sql(s.old, "SELECT count(pg_logical_emit_message(false, 'test', repeat('x', 1000000))) FROM generate_series(1, 2000)")
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s has 2 GB of WAL behind its last checkpoint that nobody else has", s.old)
	s.load.Mark("power off")
	s.powerCut(s.lab.Names...)
	s.must(s.lab.HealAll(s.ctx))
	s.powerOn(s.lab.Names...)
	pid := s.stopRecovery(roleLimit)
	s.staysUnpromoted(75 * time.Second)
	s.stage("nobody was promoted while the recovery of %s was stopped", s.old)
	s.noFailedActions("")
	s.must(s.lab.Signal(syscall.SIGCONT, pid))
	began := time.Now()
	now := s.newPrimary(was, s.old)
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s is primary, %.1f s after its recovery went on", now, time.Since(began).Seconds())
	for _, n := range s.others {
		s.returned(n, now)
	}
	for name := range settings {
		s.sql(s.old, "ALTER SYSTEM RESET "+name)
	}
	s.sql(s.old, "SELECT pg_reload_conf()")
	s.takenOver(now, was, "power off", 0)
}

// cleanStop shuts all nodes down in good order, at once: nothing is lost, whoever returns.
func (s *scenario) cleanStop(after time.Duration, first ...string) {
	s.t.Helper()
	was := s.timeline(s.old)
	s.load.Mark("stop")
	var wg sync.WaitGroup
	for _, n := range s.lab.Names {
		wg.Go(func() {
			if err := s.lab.Shutdown(s.ctx, n); err != nil {
				s.t.Errorf("shutting %s down: %v", n, err)
			}
		})
	}
	wg.Wait()
	s.stage("all nodes are down")
	stopped := s.logs.Count() // the role was passed on before the last node had stopped
	began := s.powerOn(first...)
	for end := time.Now().Add(after); time.Now().Before(end) && len(first) == 1; time.Sleep(200 * time.Millisecond) {
		if out, err := s.lab.SQL(s.ctx, first[0], "SELECT pg_is_in_recovery()"); err == nil && out == "f" {
			s.t.Fatalf("%s, alone, was promoted", first[0])
		}
	}
	time.Sleep(max(0, after-time.Since(began)))
	if len(s.rest(first)) > 1 {
		began = time.Now()
	}
	s.powerOn(s.rest(first)...)
	now := s.newPrimary(was, "")
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s is primary, %.1f s after enough nodes were on", now, time.Since(began).Seconds())
	s.coldStartIsQuick(now, stopped)
	r := s.finish()
	s.outage(r, "stop", 0)
}

// coldStartIsQuick checks the time from the last start of an instance that was needed to the promotion, by the lines of the
// agents' logs from number since on.
func (s *scenario) coldStartIsQuick(now string, since int) {
	s.t.Helper()
	promoted, err := s.logs.Await(s.within(roleLimit), since, "the promotion of "+now, func(l follow.Line) bool { return l.Node == now && l.Msg == "promoted" })
	s.must(err)
	var started time.Time
	for _, l := range s.logs.From(since) {
		if l.Node == now && l.Msg == "start" && l.Time.Before(promoted.Time) {
			started = l.Time
		}
	}
	if started.IsZero() {
		s.t.Fatalf("the agent's log of %s has no start before the promotion", now)
	}
	took := promoted.Time.Sub(started)
	s.t.Logf("promoted %.2f s after %s had started", took.Seconds(), now)
	if took > here(coldLimit) {
		s.t.Errorf("%s was promoted %.1f s after it had started, expected at most %s", now, took.Seconds(), here(coldLimit))
	}
}

// missedTheEnd has the standbys leave in good order, one after the other, while the primary goes on writing; then it loses
// its quorum, and all that it had. The two standbys return without it: they must not be promoted, and say why. It comes
// back, and is.
//
// Trap 1: after a full stop the end of the WAL on disk decides, not what a server says that it has received.
func missedTheEnd(s *scenario) {
	was := s.timeline(s.old)
	s.cutStandby(s.others...)
	time.Sleep(time.Second)
	s.stage("nobody receives what %s writes", s.old)
	for _, n := range s.others {
		s.must(s.lab.Shutdown(s.ctx, n))
	}
	s.must(s.lab.Shutdown(s.ctx, s.old))
	s.must(s.lab.HealAll(s.ctx))
	s.stage("all nodes are down, %s last", s.old)
	s.powerOn(s.others...)
	for _, n := range s.others {
		s.staysOut(n, "refused: ", fmt.Sprintf("without what %s wrote last", s.old))
	}
	s.servesAgain(was)
	s.finish()
}

// staysOut waits until a node says why it refuses, in crm_mon -A. Nobody may be promoted meanwhile; the old primary has no
// power, and counts as one until it was fenced.
func (s *scenario) staysOut(node, says, lacking string) {
	s.t.Helper()
	text := ""
	s.await(healLimit, func() error {
		st, err := s.lab.View(s.ctx)
		if err != nil {
			return lab.NotYet("%v", err)
		}
		if p := st.Promoted(); slices.ContainsFunc(p, func(n string) bool { return n != s.old }) {
			s.t.Fatalf("%v is promoted %s", p, lacking)
		}
		text = st.Node(node).Attributes[statusAttribute]
		if !strings.HasPrefix(text, says) || st.Node(node).Score != "-INFINITY" {
			return lab.NotYet("%s has the score %q, and crm_mon -A says of it: %q, expected %q", node, st.Node(node).Score, text, says)
		}
		return nil
	})
	s.stage("crm_mon -A says of %s: %s", node, text)
}

// servesAgain switches the old primary on, which must become primary again.
func (s *scenario) servesAgain(was uint32) {
	s.t.Helper()
	s.powerOn(s.old)
	now := s.newPrimary(was, "")
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s is primary", now)
	if now != s.old {
		s.t.Errorf("%s was promoted, expected %s", now, s.old)
	}
}

// longGone has one standby lose its power, and the other one's instance stopped for maintenance, while the primary goes on
// with the quorum of their nodes. Then it is lost, and the first one returns: with as much as it had long ago, and with a
// quorum. It must not be promoted, and say why. The old primary comes back, and is.
func longGone(s *scenario) {
	was, gone, away := s.timeline(s.old), s.others[0], s.others[1]
	s.must(s.lab.Power(s.ctx, gone, false))
	s.await(roleLimit, func() error {
		st, err := s.lab.View(s.ctx)
		if err != nil || st.Node(gone).Online {
			return lab.NotYet("%s is not lost yet (%v)", gone, err)
		}
		return nil
	})
	s.away(away)
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.must(s.lab.Power(s.ctx, s.old, false))
	s.powerOn(gone)
	s.staysOut(gone, "refused: nobody who answered saw how "+s.old+" ended", fmt.Sprintf("without what %s wrote while it was away", s.old))
	s.servesAgain(was)
	s.run(s.old, "crm_attribute", "-N", away, "-n", "standby", "-D")
	s.wasFenced()
	s.finish()
}
