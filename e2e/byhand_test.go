package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/lab/follow"
	"github.com/pgbaton/pgbaton/internal/load"
)

// Ensure the commands for a clone are the right ones, for a twin: it has the same timeline number and the same switch
// point as the cluster's, and pg_rewind would find nothing to do. (Scenario 58, made by hand: pgbaton makes no twins.)
func TestTwinReturns(t *testing.T) {
	c := rejoinCluster(t)
	s := c.begin(t, 6*time.Minute, false)
	s.setRewind(rewindConninfo)
	twin, was := s.others[0], s.timeline(s.old)
	kept, lost := s.markers()
	// Everybody ends with the same shutdown checkpoint.
	s.run(s.old, "crm_resource", "--meta", "-r", lab.Clone, "-p", "target-role", "-v", "Stopped")
	s.await(roleLimit, func() error {
		for _, n := range s.status().Nodes {
			if n.Role != "Stopped" {
				return lab.NotYet("%s is %s", n.Name, n.Role)
			}
		}
		return nil
	})
	ctl := s.pgCtl(twin, "start", "-o", "-c listen_addresses= -c primary_conninfo= -c restore_command=")
	s.pgCtl(twin, "promote")
	s.mark(twin, lost)
	s.pgCtl(twin, "stop", "-m", "fast")
	s.must(s.lab.Power(s.ctx, twin, false))
	s.stage("%s was promoted by hand while the cluster was stopped: %s", twin, firstLineOf(ctl))
	s.await(healLimit, func() error {
		if now := fencings(t, s.lab); slices.Equal(now, s.fenced) {
			return lab.NotYet("%s is not fenced", twin)
		}
		return nil
	})
	s.fenced = fencings(t, s.lab)
	s.run(s.old, "crm_resource", "--meta", "-r", lab.Clone, "-d", "target-role")
	primary := s.promotedBut(twin)
	s.mark(primary, kept)
	s.stage("%s is primary on timeline %d", primary, s.timeline(primary))

	w := s.watchOut(twin)
	s.must(s.lab.Power(s.ctx, twin, true))
	if now := s.timeline(primary); now != was+1 {
		// Every attempt of the cluster takes a number of its own: one that nobody answered in time, on a machine that is short
		// of processors, has used up the number that was to be the twin's.
		s.keptOut(twin, fmt.Sprintf(`^diverged: its timeline %d is no ancestor of timeline %d of `, was+1, now))
		s.rewound(twin)
		w.end()
		s.joined(twin, kept, lost)
		s.finishRejoined(twin)
		s.stage("no twin this time: %s is primary on timeline %d, %s was promoted by hand to %d", primary, now, twin, was+1)
		return
	}
	text := s.keptOut(twin, `^diverged: its timeline \d+ is (a twin|another one)`)
	s.notRunning(twin, 4*time.Second)
	w.end()
	code, said := s.pgbaton(twin, "rejoin", "--yes")
	s.expect(code, 3, said, "is kept out", "pg_rewind is no help")
	for _, cmd := range commandsIn(text) {
		if !strings.Contains(said, cmd+"\n") {
			t.Errorf("pgbaton rejoin does not say the command %q: %s", cmd, said)
		}
		s.stage("does: %s", cmd)
		s.run(twin, "sh", "-c", cmd)
	}
	s.joined(twin, kept, lost)
	s.finishRejoined(twin)
}

// Ensure a standby that somebody promotes by hand beside the primary takes nothing away from it, and is rewound. (Scenario
// 54.)
func TestPromotedByHand(t *testing.T) {
	c := rejoinCluster(t)
	s := c.begin(t, 5*time.Minute, true)
	s.setRewind(rewindConninfo)
	rogue, was := s.others[0], s.timeline(s.old)
	kept, lost := s.markers()
	s.load.Mark("promoted by hand")
	s.pgCtl(rogue, "promote")
	s.mark(rogue, lost)
	s.mark(s.old, kept)
	s.stage("%s was promoted by hand", rogue)
	s.keptOut(rogue, `^diverged: it was promoted by hand to timeline \d+, which nobody in the cluster claimed; `+s.old+` is the primary`)
	s.rewound(rogue)
	s.joined(rogue, kept, lost)
	if now := s.timeline(s.old); now != was {
		t.Errorf("%s writes timeline %d; before somebody promoted %s it was %d", s.old, now, rogue, was)
	}
	r := s.stopLoadBut(rogue)
	if g := r.GapAfter("promoted by hand"); g.Duration() > here(3*time.Second) {
		t.Errorf("nobody could write for %.0f ms: somebody else's promotion must disturb nobody", g.Ms)
	}
	s.run(s.old, "crm_resource", "--cleanup") // the monitor found a primary where none was expected
	s.finishRejoined(rogue)
	s.handoverTo(rogue)
}

// Ensure a standby that somebody starts by hand without standby.signal beside the primary, and so on the same timeline, is kept
// out, and that what it wrote neither keeps the role from anybody nor takes it. (Scenario 54.)
func TestStartedByHand(t *testing.T) {
	c := rejoinCluster(t)
	for _, tt := range []struct {
		name string
		then func(s *scenario, to string) (primary string)
	}{
		{"handover", func(s *scenario, to string) string {
			was := s.timeline(s.old)
			s.move(to)
			s.newPrimary(was, to)
			s.proven(s.old, was, to)
			s.clear()
			return to
		}},
		{"all stopped and started", func(s *scenario, _ string) string {
			s.run(s.old, "crm_resource", "--meta", "-r", lab.Clone, "-p", "target-role", "-v", "Stopped")
			s.must(s.lab.WaitIdle(s.within(healLimit)))
			s.run(s.old, "crm_resource", "--meta", "-r", lab.Clone, "-d", "target-role")
			return s.promoted(s.old)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := c.begin(t, 5*time.Minute, false)
			rogue := s.others[0]
			kept, lost := s.markers()
			s.run(s.old, "crm_resource", "--ban", "-r", lab.Resource, "-N", rogue)
			s.must(s.lab.WaitIdle(s.within(healLimit)))
			s.run(rogue, "rm", filepath.Join(s.lab.DataDir(), "standby.signal"))
			s.pgCtl(rogue, "start", "-o", "-c listen_addresses= -c synchronous_standby_names=")
			s.mark(rogue, lost)
			s.sql(rogue, "CREATE TABLE rogue AS SELECT generate_series(1, 20000)") // more than the primary writes meanwhile
			s.pgCtl(rogue, "stop", "-m", "fast")
			s.mark(s.old, kept)
			s.stage("%s was started by hand on timeline %d, that of %s", rogue, s.timeline(s.old), s.old)
			s.run(s.old, "crm_resource", "--clear", "-r", lab.Resource, "-N", rogue)
			w := s.watchOut(rogue)
			s.keptOut(rogue, `^diverged: somebody started it as a primary on timeline \d+, which is that of `+s.old)

			primary := tt.then(s, s.others[1])
			s.stage("%s is primary", primary)
			text := s.keptOut(rogue, `^diverged: somebody started it as a primary on timeline \d+, which is that of `+s.old)
			w.end()
			if got := s.marks(primary, kept, lost); got != kept {
				t.Errorf("%s has the marks %q, expected %q", primary, got, kept)
			}
			for _, cmd := range commandsIn(text) {
				s.stage("does: %s", cmd)
				s.run(rogue, "sh", "-c", cmd)
			}
			s.joined(rogue, kept, lost)
			s.finishRejoined(rogue)
		})
	}
}

// Ensure a primary that a person promotes on purpose, in maintenance, is taken over by the cluster and hands over with proof
// afterwards.
func TestPromotedByHandInMaintenance(t *testing.T) {
	c := rejoinCluster(t)
	s := c.begin(t, 5*time.Minute, false)
	to := s.others[0]
	kept, lost := s.markers()
	s.mark(s.old, kept)
	s.run(to, "crm_attribute", "-n", "maintenance-mode", "-v", "true")
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	s.pgCtl(s.old, "stop", "-m", "fast")
	s.pgCtl(to, "promote")
	s.run(to, "crm_resource", "--refresh")
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	s.run(to, "crm_attribute", "-n", "maintenance-mode", "-D")
	s.stage("%s was promoted by hand instead of %s, and the cluster looked again", to, s.old)
	_, err := s.logs.Await(s.within(healLimit), 0, "a claim", func(l follow.Line) bool {
		return l.Node == to && strings.Contains(l.Msg, "its timeline is claimed now")
	})
	s.must(err)
	s.promoted(to)
	s.streaming()
	s.highest(to)
	s.stage("%s is primary, all others stream", to)
	s.mayBePromoted(s.old)
	s.handoverTo(s.old)
	if got := s.marks(s.old, kept, lost); got != kept {
		t.Errorf("%s has the marks %q, expected %q", s.old, got, kept)
	}
	s.finishRejoined(s.old)
}

// stopLoadBut is stopLoad where a person made a node writable beside the primary.
func (s *scenario) stopLoadBut(node string) load.Report {
	s.t.Helper()
	r := s.endLoad()
	r.Overlaps = slices.DeleteFunc(r.Overlaps, func(o load.Overlap) bool { return slices.Contains(o.Nodes[:], node) })
	if err := r.Err(); err != nil {
		s.t.Error(err)
	}
	return r
}

// pgCtl is what a person does who does not ask the cluster.
func (s *scenario) pgCtl(node, action string, args ...string) string {
	s.t.Helper()
	argv := append([]string{filepath.Join(s.lab.Bindir, "pg_ctl"), "-D", s.lab.DataDir(), "-w", "-l", "/tmp/by-hand.log", action}, args...)
	cmd, err := s.lab.CommandAs(s.ctx, node, "postgres", argv...)
	s.must(err)
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s on %s: %v: %s", cmd, node, err, out)
	}
	return string(out)
}

func firstLineOf(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
