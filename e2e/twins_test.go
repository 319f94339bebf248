package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/load"
)

// twinsCluster is a lab in which a node that lost its power stays off until the test switches it on.
func twinsCluster(t *testing.T) *cluster {
	o := ordinary()
	o.AutoReturn = time.Hour
	c := testCluster(t, "twins", o)
	c.useFaults(t, true)
	return c
}

// Ensure no two instances ever write timelines of the same number, and that one whose rows nobody has does not come back
// as a healthy standby. B is promoted from A's note, commits, and loses its power before anybody streamed from it; another
// node, which ends where B began, becomes primary.
//
// Trap 30: no timeline number is used twice.
// Trap 32: what is about to be promoted is known before it commits.
func TestTwins(t *testing.T) {
	for _, tt := range []struct{ name, until string }{
		// Before its claim is published as effective: nobody knows more than that it was about to.
		{"the new primary dies at once", "promote/request-promotion after"},
		{"the new primary dies when its claim is known", "monitor/publish after"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := twinsCluster(t)
			s := c.begin(t, 4*time.Minute, true)
			twin := s.others[0]
			was := s.timeline(s.old)
			kept, lost := s.markers()
			s.promoteAlone(twin, tt.until)
			mine := s.timeline(twin)
			s.mark(twin, lost)
			s.must(s.lab.Power(s.ctx, twin, false))
			s.load.Mark("power off")
			s.stage("%s wrote timeline %d, from %d, and is off", twin, mine, was)

			primary := s.promotedBut(twin)
			s.must(s.load.AwaitAck(s.within(roleLimit)))
			theirs := s.timeline(primary)
			if theirs <= mine {
				t.Errorf("%s writes timeline %d; %s wrote %d before: no number may be used twice", primary, theirs, twin, mine)
			}
			s.nothingOf(primary, theirs, mine, was)
			third := s.third(primary, twin)
			s.streamsFrom(third, primary)
			s.mark(primary, kept)
			s.stage("%s is primary on timeline %d, %s streams from it", primary, theirs, third)

			s.must(s.lab.HealAll(s.ctx))
			s.load.Mark("power on")
			s.must(s.lab.Power(s.ctx, twin, true))
			s.diverged(twin)
			s.notServing(twin, primary, 3*time.Second)
			s.load.Mark("after the return")

			// An order changes nothing about it, and nobody notices.
			s.move(twin)
			s.must(s.lab.WaitIdle(s.within(healLimit)))
			s.notServing(twin, primary, time.Second)
			if got := s.promoted(""); got != primary || s.timeline(got) != theirs {
				t.Errorf("after the order to move to the twin %s, %s is primary on timeline %d; expected still %s on %d", twin, got, s.timeline(got), primary, theirs)
			}
			s.clear()
			s.streamsFrom(third, primary)
			// The two others go on as if there was no twin.
			s.load.Mark("handover")
			s.move(third)
			s.newPrimary(theirs, third)
			s.must(s.load.AwaitAck(s.within(roleLimit)))
			s.streamsFrom(primary, third)
			s.proven(primary, theirs, third)
			s.nothingOf(third, s.timeline(third), mine, was)

			r := s.stopLoad()
			for node, want := range map[string]string{primary: kept, third: kept} {
				if got := s.marks(node, kept, lost); got != want {
					t.Errorf("%s has the marks %q, expected %q", node, got, want)
				}
			}
			for _, mark := range []string{"power on", "after the return"} {
				if g := r.GapAfter(mark); g.Duration() > here(3*time.Second) {
					t.Errorf("%s: nobody could write for %.0f ms: the twin's return must disturb nobody", mark, g.Ms)
				}
			}
			s.noFailedActions(twin)
			t.Logf("outages: takeover %.0f ms, return %.0f ms, order to move %.0f ms, handover %.0f ms", r.GapAfter("power off").Ms, r.GapAfter("power on").Ms, r.GapAfter("after the return").Ms, r.GapAfter("handover").Ms)
		})
	}
}

// Ensure a note promotes nobody once somebody was promoted from it and committed: the node of the new primary leaves, the
// others still end exactly where the old note says, and nobody may take the role; it comes back with its node.
//
// Trap 31: a note proves nothing once somebody was promoted from it.
func TestStaleNote(t *testing.T) {
	c := twinsCluster(t)
	s := c.begin(t, 4*time.Minute, true)
	first, second := s.old, s.others[0]
	_, mark := s.markers()
	s.promoteAlone(second, "promote/request-promotion after")
	timeline := s.timeline(second)
	s.mark(second, mark)
	_, err := s.faults(second).remove("pause")
	s.must(err)
	s.await(roleLimit, func() error {
		st, err := s.lab.View(s.ctx)
		if err != nil || st.Node(second).Role != "Promoted" {
			return lab.NotYet("%s is %q in Pacemaker's eyes, expected Promoted (%v)", second, st.Node(second).Role, err)
		}
		return nil
	})
	s.stage("%s is primary on timeline %d, nobody streams from it", second, timeline)

	s.standby(second, true)
	reason := regexp.MustCompile(`^refused: .`)
	for _, n := range []string{first, s.others[1]} {
		s.await(roleLimit, func() error {
			st, err := s.lab.View(s.ctx)
			if err != nil {
				return lab.NotYet("%v", err)
			}
			if p := st.Promoted(); slices.Contains(p, first) || slices.Contains(p, s.others[1]) {
				return fmt.Errorf("%v promoted, without the rows that %s committed", p, second)
			}
			if text := st.Node(n).Attributes[statusAttribute]; !reason.MatchString(text) || st.Node(n).Score != "-INFINITY" {
				return lab.NotYet("crm_mon -A says of %s, whose score is %q: %q; expected it to refuse", n, st.Node(n).Score, text)
			}
			return nil
		})
		s.stage("crm_mon -A says of %s: %s", n, s.status().Node(n).Attributes[statusAttribute])
	}
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	if p := s.status().Promoted(); len(p) > 0 {
		t.Errorf("%v promoted, expected nobody", p)
	}

	s.must(s.lab.HealAll(s.ctx))
	s.standby(second, false)
	s.promoted(second)
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s is back and primary", second)
	s.clear()
	s.lifted(first)
	s.lifted(s.others[1])
	r := s.finish()
	for _, n := range s.lab.Names {
		if got := s.marks(n, mark, mark); got != mark {
			t.Errorf("%s does not have the row that %s committed", n, second)
		}
	}
	if w := r.Writable[s.others[1]]; len(w) > 0 {
		t.Errorf("%s was writable: %+v", s.others[1], w)
	}
}

// Ensure a walsender whose queue is full, because its standby's port was cut under load, holds nobody up for long:
// shutdown waits for it for wal_sender_timeout, 60 s by default.
//
// Trap 34: a walsender whose queue is full does not withhold the end.
func TestFullQueue(t *testing.T) {
	c := twinsCluster(t)
	scene := func(name string, f func(s *scenario)) {
		t.Run(name, func(t *testing.T) {
			f(c.begin(t, 3*time.Minute, true))
		})
	}
	scene("of a third node, cut before the move", func(s *scenario) {
		target, third := s.others[0], s.others[1]
		s.fillQueue(third)
		s.load.Mark("move")
		s.move(target)
		s.promoted(target)
		s.must(s.load.AwaitAck(s.within(roleLimit)))
		s.must(s.lab.HealAll(s.ctx))
		s.highest(target)
		s.clear()
		s.bounded(s.finish(), "move", 15*time.Second)
	})
	scene("of a third node, cut when the primary is told to stop", func(s *scenario) {
		target, third := s.others[0], s.others[1]
		s.pause(s.old, "demote/fast-stop before", func() { s.move(target) }, func() {
			s.fillQueue(third)
			s.load.Mark("stop")
		})
		s.promoted(target)
		s.must(s.load.AwaitAck(s.within(roleLimit)))
		s.must(s.lab.HealAll(s.ctx))
		s.highest(target)
		s.clear()
		s.bounded(s.finish(), "stop", 15*time.Second)
	})
	scene("of the target, cut when the primary is told to stop", func(s *scenario) {
		target, was := s.others[0], s.timeline(s.old)
		s.pause(s.old, "demote/fast-stop before", func() { s.move(target) }, func() {
			s.fillQueue(target)
			s.load.Mark("stop")
		})
		s.refused(target)
		if got := s.newPrimary(was, ""); got == target {
			s.t.Errorf("%s was promoted, which could not have everything", target)
		}
		s.must(s.load.AwaitAck(s.within(roleLimit)))
		s.must(s.lab.HealAll(s.ctx))
		s.clear()
		s.lifted(target)
		r := s.finish()
		s.bounded(r, "stop", 15*time.Second)
		if w := r.Writable[target]; len(w) > 0 {
			s.t.Errorf("%s was writable: %+v", target, w)
		}
	})
}

// bounded checks how long nobody could write after a mark: far less than the 60 s for which an unprepared primary waits
// for a walsender, whatever the machine adds.
func (s *scenario) bounded(r load.Report, mark string, limit time.Duration) {
	s.t.Helper()
	g := r.GapAfter(mark)
	if limit = here(limit); g.Duration() > limit {
		s.t.Errorf("nobody could write for %.0f ms, expected %s at most", g.Ms, limit)
	}
	stopped := time.Duration(0)
	var told time.Time
	for _, l := range s.logs.From(0) {
		switch {
		case l.Node == s.old && l.Msg == "shutting the primary down":
			told = l.Time
		case l.Node == s.old && l.Msg == "the primary has ended":
			stopped = max(stopped, l.Time.Sub(told))
		}
	}
	s.t.Logf("outage %.0f ms, of which the primary took %d ms to shut down", g.Ms, stopped.Milliseconds())
}

// promoteAlone hands the role over to a node that from then on nobody can stream from and no client can reach: what it
// commits, nobody has. It returns when the server is writable and its agent waits at the point until.
func (s *scenario) promoteAlone(to, until string) {
	s.t.Helper()
	f := s.faults(to)
	at := func(point string) {
		s.await(30*time.Second, func() error {
			b, err := os.ReadFile(filepath.Join(f.dir, "paused"))
			if string(b) != point {
				return lab.NotYet("the agent on %s has not come to %q, but to %q (%v)", to, point, b, err)
			}
			return nil
		})
	}
	const before = "promote/request-promotion before"
	s.must(f.plant("pause", before))
	s.move(to)
	at(before)
	s.cutStandby(to)
	s.must(s.lab.Cut(s.ctx, lab.Link{From: to, To: lab.Client}))
	s.must(f.plant("pause", until))
	at(until)
	s.await(roleLimit, func() error {
		if out, err := s.lab.SQL(s.ctx, to, "SELECT pg_is_in_recovery()"); err != nil || out != "f" {
			return lab.NotYet("%s is not writable: pg_is_in_recovery() is %q (%v)", to, out, err)
		}
		return nil
	})
}

// promotedBut waits until another node than that one is primary.
func (s *scenario) promotedBut(node string) (primary string) {
	s.t.Helper()
	s.await(roleLimit, func() error {
		name, err := s.lab.WaitPromoted(s.within(roleLimit), "")
		if err != nil || name == node {
			return lab.NotYet("%s is primary, expected another node than %s (%v)", name, node, err)
		}
		primary = name
		return nil
	})
	return primary
}

// third is the node besides these two.
func (s *scenario) third(a, b string) string {
	i := slices.IndexFunc(s.lab.Names, func(n string) bool { return n != a && n != b })
	return s.lab.Names[i]
}

// diverged waits until a node is known to be unfit for good, and crm_mon -A says why.
func (s *scenario) diverged(node string) {
	s.t.Helper()
	s.await(healLimit, func() error {
		st, err := s.lab.View(s.ctx)
		if err != nil {
			return lab.NotYet("%v", err)
		}
		n := st.Node(node)
		text := n.Attributes[statusAttribute]
		if n.Score != "-INFINITY" || !regexp.MustCompile(`^diverged: .*timeline \d+`).MatchString(text) {
			return lab.NotYet("%s has the score %q, and crm_mon -A says of it %q; expected -INFINITY, and how it diverged", node, n.Score, text)
		}
		return nil
	})
	s.stage("crm_mon -A says of %s: %s", node, s.status().Node(node).Attributes[statusAttribute])
}

// notServing looks for a while whether a node that has diverged serves anybody: it must not.
func (s *scenario) notServing(node, primary string, d time.Duration) {
	s.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if out := s.sql(primary, "SELECT state FROM pg_stat_replication WHERE application_name = '"+node+"' AND state = 'streaming'"); out != "" {
			s.t.Fatalf("%s streams from %s as if it was a healthy standby", node, primary)
		}
		if pid, err := s.lab.Postmaster(node); err == nil && pid != 0 {
			s.t.Fatalf("a server runs on %s (pid %d), which has diverged", node, pid)
		}
	}
}

// markers are two rows that no client writes, by their numbers.
func (s *scenario) markers() (kept, lost string) {
	n := time.Now().UnixMicro()
	return strconv.FormatInt(n, 10), strconv.FormatInt(n+1, 10)
}

// mark commits such a row on a node.
func (s *scenario) mark(node, number string) {
	s.t.Helper()
	_, err := s.lab.SQLIn(s.ctx, node, "load", "INSERT INTO written (client, seq) VALUES (-1, "+number+")")
	s.must(err)
}

// marks says which of these rows a node has.
func (s *scenario) marks(node, a, b string) string {
	s.t.Helper()
	out, err := s.lab.SQLIn(s.ctx, node, "load", "SELECT string_agg(seq::text, ',' ORDER BY seq) FROM written WHERE client = -1 AND seq IN ("+a+", "+b+")")
	s.must(err)
	return out
}

// nothingOf checks the history of a primary's timeline: it comes from its parent, and the timeline not has no part in it.
// The number alone would keep standbys from following that lack the last segment before the fork.
func (s *scenario) nothingOf(primary string, timeline, not, parent uint32) {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.walDir(primary), fmt.Sprintf("%08X.history", timeline)))
	s.must(err)
	var ancestors []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 {
			ancestors = append(ancestors, f[0])
		}
	}
	if !slices.Contains(ancestors, fmt.Sprint(parent)) || slices.Contains(ancestors, fmt.Sprint(not)) {
		s.t.Errorf("the history of timeline %d, which %s writes, should have %d and nothing of %d: %s", timeline, primary, parent, not, b)
	}
}

// fillQueue cuts a standby's port and writes until its walsender cannot get rid of megabytes.
func (s *scenario) fillQueue(node string) {
	s.t.Helper()
	s.cutStandby(node)
	// With a commit, which flushes it: only then is it sent. At once, since before a shutdown a walsender waits for two seconds only.
	s.sql(s.old, "SELECT count(pg_logical_emit_message(true, 'e2e', repeat('x', 1 << 20))) FROM generate_series(1, 24)")
	s.await(30*time.Second, func() error {
		out, err := s.lab.SQL(s.ctx, s.old, fmt.Sprintf("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), sent_lsn)::bigint FROM pg_stat_replication WHERE application_name = '%s'", node))
		queue, _ := strconv.Atoi(out)
		if err != nil || queue < 8<<20 {
			return lab.NotYet("the walsender of %s has %q bytes to send, expected a full queue (%v)", node, out, err)
		}
		return nil
	})
	s.stage("the walsender of %s has more than 8 MB to send and cannot", node)
}
