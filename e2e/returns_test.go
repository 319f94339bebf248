package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/load"
)

// returnLimit is how long it may take from the moment when enough nodes have power until clients write: they boot, form a
// cluster, fence who is missing, recover and decide.
const returnLimit = 40 * time.Second

// lateCluster is a lab in which nodes without power stay off until the test switches them on, and come back by
// themselves then: whoever has diverged is rewound. maxlag is there for what it makes them say, and allows everything.
func lateCluster(t *testing.T) *cluster {
	o := ordinary()
	o.AutoReturn = time.Hour
	o.Conf["checkpoint_timeout"] = "30s" // a rewind waits for the first checkpoint after a promotion
	o.Params = map[string]string{"rewind_conninfo": rewindConninfo, "maxlag": "1073741824"}
	c := testCluster(t, "late", o)
	c.useFaults(t, true)
	return c
}

// Ensure a cluster that loses two of its three nodes, one after the other or both at once, is without a primary rather than
// with one that lacks what it need not lack; that it has one again once enough is there, whoever comes first; and that whoever
// comes back late, or in the middle of something, is compared with the others before it serves.
func TestLateReturns(t *testing.T) {
	for _, tt := range []struct {
		name string
		run  func(*scenario)
	}{
		{"42 primary and best standby, the standby returns first", func(s *scenario) { s.twoAtOnce(s.others[0], s.old) }},
		{"42 primary and best standby, the primary returns first", func(s *scenario) { s.twoAtOnce(s.old, s.others[0]) }},
		{"43 primary, then the new one, the first returns first", func(s *scenario) { s.oneAfterTheOther(true) }},
		{"43 primary, then the new one, the second returns first", func(s *scenario) { s.oneAfterTheOther(false) }},
		{"44 back before the others are asked", func(s *scenario) { s.backMeanwhile("pre-promote/publish-challenge before") }},
		{"44 back before the server is promoted", func(s *scenario) { s.backMeanwhile("promote/request-promotion before") }},
		{"44 back before anybody knows of the promotion", func(s *scenario) { s.backMeanwhile("promote/save-effective before") }},
		{"45 the most advanced standby was in maintenance", func(s *scenario) { s.bestComesLate(false) }},
		{"45 the most advanced standby had lost its power", func(s *scenario) { s.bestComesLate(true) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.run(lateCluster(t).begin(t, 5*time.Minute, true))
		})
	}
}

// twoAtOnce takes the power of the primary and of the standby that has most of its WAL, under load. (Scenario 42.) The third
// node lacks WAL, has no quorum, and must wait; the second one to return gives it a quorum, and one of the two that lost
// their power is primary then: what that has, nobody loses.
func (s *scenario) twoAtOnce(first, second string) {
	best, third, was := s.others[0], s.others[1], s.timeline(s.old)
	s.cutStandby(third)
	time.Sleep(2 * time.Second)
	near, behind := s.position(s.old), parseLSN(s.t, s.sql(third, "SELECT pg_last_wal_replay_lsn()"))
	s.cutStandby(best)
	time.Sleep(300 * time.Millisecond) // what is committed now, nobody else has
	s.load.Mark("power off")
	s.powerCut(s.old, best)
	s.must(s.lab.HealAll(s.ctx))
	ends := map[string]uint64{}
	for _, n := range []string{s.old, best} {
		ends[n] = s.lastRecord(n, was, near).end
	}
	s.stage("the WAL of %s ends at %s, that of %s at %s; both are off", s.old, formatLSN(ends[s.old]), best, formatLSN(ends[best]))
	if behind >= ends[best] || ends[best] >= ends[s.old] {
		s.t.Fatalf("%s was at %s: each was meant to have less than the one before", third, formatLSN(behind))
	}
	s.staysUnpromoted(8 * time.Second)
	s.stage("%s is alone and not promoted", third)

	on := s.switchboard()
	began := time.Now()
	on.power(first)
	now := s.newPrimary(was, first)
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.writesAgain(now, began)
	fork := s.fork(now, s.timeline(now), was)
	if fork != ends[first] {
		s.t.Errorf("%s begins its timeline at %s; its own WAL ended at %s", now, formatLSN(fork), formatLSN(ends[first]))
	}
	lost := 0
	if ends[s.old] > fork {
		lost = s.commitsAfter(s.old, was, fork)
	}
	s.stage("%d transactions of %s were in WAL that %s had not received", lost, s.old, now)
	on.power(second)
	s.neverWritable(s.allBack(now, lost, s.old, best), third)
}

// oneAfterTheOther takes the primary's power, and that of the one that took over, each with WAL of its own. (Scenario 43.)
// The third node was a member beside the second primary until that went, has not all of its WAL, and cannot know what else
// it did: it waits for it, and the first one, which knows nothing of the second, is no help. Whoever comes first, the second
// is primary in the end. (Had the third all of that WAL, it could be as well.)
func (s *scenario) oneAfterTheOther(firstReturns bool) {
	first, was := s.old, s.timeline(s.old)
	second, kept, lost := s.takeOverFrom(first)
	third := s.third(first, second)
	s.streamsFrom(third, second)
	theirs := s.timeline(second)
	lostRows := s.commitsAfter(first, was, s.fork(second, theirs, was))
	near := s.position(second)
	s.cutStandby(third)
	time.Sleep(300 * time.Millisecond) // what is committed now, the third does not have
	s.load.Mark("power off again")
	s.powerCut(second)
	s.must(s.lab.HealAll(s.ctx))
	end := s.lastRecord(second, theirs, near).end
	behind := parseLSN(s.t, s.sql(third, "SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())"))
	s.stage("%s is off, too; its WAL of timeline %d ends at %s, %s has %s", second, theirs, formatLSN(end), third, formatLSN(behind))
	if behind >= end {
		s.t.Fatalf("%s was meant to lack the last of it", third)
	}
	s.staysUnpromoted(4 * time.Second)

	on := s.switchboard()
	if firstReturns {
		on.power(first)
		s.isMember(first)
		for n, why := range map[string]string{
			third: `^refused: ` + third + ` left while ` + second + ` was primary of timeline \d+, .*start ` + second,
			first: `^(diverged: its WAL of timeline \d+ ends at|refused: )`,
		} {
			s.keptOut(n, why)
		}
		for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
			if p := s.status().Promoted(); len(p) > 0 {
				s.t.Fatalf("%v promoted without what %s committed", p, second)
			}
		}
		s.stage("nobody is promoted")
	}
	began := time.Now()
	on.power(second)
	now := s.newPrimary(theirs, second)
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.writesAgain(now, began)
	if fork := s.fork(now, s.timeline(now), theirs); fork != end {
		s.t.Errorf("%s begins its timeline at %s; its own WAL ended at %s", now, formatLSN(fork), formatLSN(end))
	}
	on.power(first)
	s.rewound(first)
	s.allBack(now, lostRows, first, second)
	for _, n := range s.lab.Names {
		if got := s.marks(n, kept, lost); got != kept {
			s.t.Errorf("%s has the marks %q, expected %q", n, got, kept)
		}
	}
	s.handoverTo(first)
}

// backMeanwhile has the primary's node, which has WAL of its own, come back while the agent of whoever takes over waits in the
// middle. (Scenario 44.) Once PostgreSQL was asked for the promotion there is no way back; before that its disk may still
// decide, and nothing is lost then.
func (s *scenario) backMeanwhile(point string) {
	was := s.timeline(s.old)
	kept, lost := s.markers()
	s.load.Mark("power off")
	s.must(s.lab.Cut(s.ctx, lab.Link{From: s.old, To: lab.Client}))
	s.cutStandby(s.others...)
	s.mark(s.old, lost)
	near := s.position(s.old)
	for _, n := range s.others {
		s.must(s.faults(n).plant("pause", point))
	}
	s.powerCut(s.old)
	end := s.lastRecord(s.old, was, near).end
	s.must(s.lab.HealAll(s.ctx))
	target := s.pausedAt(point)
	s.stage("the agent on %s waits at %s", target, point)
	on := s.switchboard()
	on.power(s.old)
	s.isMember(s.old)
	if s.pausedAt(point) != target {
		s.t.Fatalf("%s does not wait any more", target)
	}
	s.stage("%s is back", s.old)
	began := time.Now()
	for _, n := range s.others {
		_, err := s.faults(n).remove("pause")
		s.must(err)
	}
	now := s.newPrimary(was, "")
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.writesAgain(now, began)
	fork := s.fork(now, s.timeline(now), was)
	want, rows := kept, s.commitsAfter(s.old, was, fork)
	s.mark(now, kept)
	switch {
	case now == s.old && fork == end && !strings.HasPrefix(point, "promote/"):
		want, rows = kept+","+lost, 0
	case now != target:
		s.t.Errorf("%s is primary from %s on; the WAL of %s ended at %s, and %s was at %s", now, formatLSN(fork), s.old, formatLSN(end), target, point)
	default:
		s.rewound(s.old)
	}
	s.allBack(now, rows, s.old)
	for _, n := range s.lab.Names {
		if got := s.marks(n, kept, lost); got != want {
			s.t.Errorf("%s has the marks %q, expected %q", n, got, want)
		}
	}
}

// bestComesLate loses the primary while the standby that has most of its WAL is a node without an instance: in maintenance,
// or back from a loss of power and not to be used yet. (Scenario 45.) The other one, which was cut off from replication long
// before, takes over, and says how many bytes are lost. The best one returns when that is done: what it has more is history.
func (s *scenario) bestComesLate(lostPower bool) {
	best, third, was := s.others[0], s.others[1], s.timeline(s.old)
	kept, lost := s.markers()
	began := time.Now()
	on := s.switchboard()
	s.cutStandby(third)
	time.Sleep(time.Second)
	s.sql(s.old, "SELECT pg_logical_emit_message(true, 'e2e', repeat('lost ', (1 << 20) / 5))")
	s.mark(s.old, lost)
	marked := s.position(s.old)
	s.await(healLimit, func() error {
		if at := s.sql(best, "SELECT pg_last_wal_replay_lsn()"); parseLSN(s.t, at) < marked {
			return lab.NotYet("%s has replayed up to %s, expected %s", best, at, formatLSN(marked))
		}
		return nil
	})
	if lostPower {
		s.powerOff(best)
		s.run(s.old, "crm_attribute", "-N", best, "-n", "standby", "-v", "on")
		on.power(best)
		s.isMember(best)
		s.must(s.lab.WaitIdle(s.within(healLimit)))
		s.stage("%s is back without its instance", best)
	} else {
		s.away(best)
	}
	words := s.losePrimary(1 << 20)
	now := s.newPrimary(was, third)
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	fork := s.fork(now, s.timeline(now), was)
	rows := s.commitsAfter(s.old, was, fork)
	s.stage("%s is primary; it lacks %d transactions of %s, %d of which %s has", now, rows, s.old, s.commitsAfter(best, was, fork), best)
	s.saysWhatIsLost(now, was, began, words)
	if end := s.lastRecord(best, was, marked).end; end < marked || fork >= marked {
		s.t.Fatalf("the WAL of %s ends at %s, %s begins its timeline at %s: the first was meant to be beyond %s, the second not", best, formatLSN(end), now, formatLSN(fork), formatLSN(marked))
	}
	s.must(s.lab.HealAll(s.ctx))
	s.mark(now, kept)

	s.load.Mark("return")
	w := s.watchOut(best)
	s.run(now, "crm_attribute", "-N", best, "-n", "standby", "-D")
	s.keptOut(best, `^diverged: its WAL of timeline \d+ ends at \S+, but `+now+` started timeline \d+ at `+formatLSN(fork))
	s.rewound(best)
	w.end()
	on.power(s.old)
	s.rewound(s.old)
	r := s.allBack(now, rows, s.old, best)
	for _, n := range s.lab.Names {
		if got := s.marks(n, kept, lost); got != kept {
			s.t.Errorf("%s has the marks %q, expected %q", n, got, kept)
		}
	}
	if g := r.GapAfter("return"); g.Duration() > here(3*time.Second) {
		s.t.Errorf("nobody could write for %.0f ms: the return of %s must disturb nobody", g.Ms, best)
	}
	s.neverWritable(r, best)
}

// position is how far a primary has written.
func (s *scenario) position(node string) uint64 {
	s.t.Helper()
	return parseLSN(s.t, s.sql(node, "SELECT pg_current_wal_lsn()"))
}

// powerCut takes the power of nodes at once.
func (s *scenario) powerCut(nodes ...string) {
	s.t.Helper()
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			if err := s.lab.Power(s.ctx, n, false); err != nil {
				s.t.Errorf("power of %s: %v", n, err)
			}
		})
	}
	wg.Wait()
}

// outlets switches nodes on, and on again when they are fenced: who lost its power where nobody had the quorum to fence it is
// fenced when it joins, which Pacemaker calls a reboot.
type outlets struct {
	mu sync.Mutex
	on []string
}

// switchboard has all nodes off that are off.
func (s *scenario) switchboard() *outlets {
	o := &outlets{}
	ctx, cancel := context.WithCancel(s.ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for ; ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
			has, _, err := s.lab.PowerState()
			if err != nil {
				continue
			}
			o.mu.Lock()
			for _, n := range o.on {
				if has[n] == 0 {
					_ = s.lab.Power(ctx, n, true) // once more in a moment
				}
			}
			o.mu.Unlock()
		}
	})
	s.t.Cleanup(func() { cancel(); wg.Wait() })
	return o
}

func (o *outlets) power(node string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.on = append(o.on, node)
}

// isMember waits until a node is back in the cluster, whatever runs there.
func (s *scenario) isMember(node string) {
	s.t.Helper()
	s.await(healLimit, func() error {
		if st, err := s.lab.View(s.ctx); err != nil || !st.Node(node).Online {
			return lab.NotYet("%s is not online (%v)", node, err)
		}
		return nil
	})
}

// pausedAt waits until the agent of a node other than the old primary waits at a point, and returns which.
func (s *scenario) pausedAt(point string) (node string) {
	s.t.Helper()
	for _, n := range s.others {
		_, err := s.faults(n).remove("paused") // who waits writes it again and again
		s.must(err)
	}
	s.await(roleLimit, func() error {
		for _, n := range s.others {
			if b, err := os.ReadFile(filepath.Join(s.faults(n).dir, "paused")); err == nil && string(b) == point {
				node = n
				return nil
			}
		}
		return lab.NotYet("no agent has come to %q", point)
	})
	return node
}

// writesAgain says how long the clients waited since enough was there, and holds it to a limit.
func (s *scenario) writesAgain(now string, began time.Time) {
	s.t.Helper()
	took := time.Since(began)
	s.stage("%s is primary on timeline %d, and clients write, %.1f s after enough was there", now, s.timeline(now), took.Seconds())
	if took > here(returnLimit) {
		s.t.Errorf("nobody could write for %.1f s when enough was there, expected at most %s", took.Seconds(), here(returnLimit))
	}
}

// allBack waits until every node streams without a hand on it, ends the clients, and checks what must be true in the end: no
// more rows are lost than were committed in WAL that the new primary had no way to have, never two nodes were writable,
// nobody was fenced but who had lost its power, nothing failed, and all nodes have the same rows.
func (s *scenario) allBack(now string, rows int, off ...string) load.Report {
	s.t.Helper()
	s.must(s.lab.WaitAllStreaming(s.within(2 * time.Minute)))
	s.must(noRefusals(s.ctx, s.lab))
	s.stage("all nodes stream, and may be promoted")
	r := s.endLoad()
	if r.CheckError != "" || r.LostWrites() > rows {
		s.t.Errorf("%d acknowledged writes are lost, %d were committed in WAL that nobody else had (%s)", r.LostWrites(), rows, r.CheckError)
	}
	for _, o := range r.Overlaps {
		s.t.Errorf("two writable nodes: %+v", o)
	}
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	st := s.status()
	for _, f := range st.Failed {
		if !strings.Contains(f, ": OCF_DEGRADED ") && !strings.Contains(f, " (degraded) ") { // what a node that is kept out says
			s.t.Errorf("failed action: %s", f)
		}
	}
	for _, n := range st.Nodes {
		if n.FailCount != "" && n.FailCount != "0" {
			s.t.Errorf("%s has a fail count of %s", n.Name, n.FailCount)
		}
	}
	s.onlyFenced(off...)
	s.primaryIs(now)
	s.sameRows()
	s.run(now, "crm_resource", "--cleanup")
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	s.stage("%d rows acknowledged, %d writes lost of %d transactions that could be; fenced %v; all nodes have the same rows", r.Acknowledged, r.LostWrites(), rows, s.fencedSince())
	return r
}

// neverWritable checks that a node was at no time.
func (s *scenario) neverWritable(r load.Report, node string) {
	s.t.Helper()
	if w := r.Writable[node]; len(w) > 0 {
		s.t.Errorf("%s was writable: %+v", node, w)
	}
}
