package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// Ensure clusters of two and of five nodes do what one of three does: a handover to each node in turn, a crash, the loss
// of a standby's node, and that of the primary's.
func TestShape(t *testing.T) {
	for _, nodes := range []int{2, 5} {
		o := failing()
		o.Nodes = nodes
		t.Run(fmt.Sprintf("%d nodes", nodes), func(t *testing.T) {
			tell(t, fmt.Sprintf("shape%d", nodes), o, 4*time.Minute, []story{
				{"handovers", handoverToEach},
				{"node standby", primaryInStandby},
				{"33 postmaster killed", postmasterKilled},
				{"standby's node power off", standbyPowerOff},
				{"41 node power off", powerOff},
			})
		})
	}
}

func handoverToEach(s *scenario) {
	from := s.old
	timeline := s.timeline(from)
	for i, to := range append(s.others, s.old) {
		mark := fmt.Sprintf("handover %d", i+1)
		s.load.Mark(mark)
		s.move(to)
		s.promoted(to)
		s.streaming()
		s.highest(to)
		timeline = s.proven(from, timeline, to)
		s.clear()
		s.stage("%s to %s, timeline %d", from, to, timeline)
		from = to
	}
	r := s.finish()
	for i := range s.lab.Names {
		s.outage(r, fmt.Sprintf("handover %d", i+1), 0)
	}
}

func primaryInStandby(s *scenario) {
	was := s.timeline(s.old)
	s.load.Mark("standby")
	s.standby(s.old, true)
	now := s.newPrimary(was, "")
	s.proven(s.old, was, now)
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	s.standby(s.old, false)
	s.outage(s.finish(), "standby", 0)
	s.primaryIs(now)
}

// standbyPowerOff takes a standby's node: nobody notices, and it comes back by itself.
func standbyPowerOff(s *scenario) {
	node, was := s.others[0], s.timeline(s.old)
	postmaster, err := s.lab.Postmaster(s.old)
	s.must(err)
	s.load.Mark("power off")
	s.powerOff(node)
	s.stage("%s is off", node)
	s.await(healLimit, func() error {
		st, err := s.lab.View(s.ctx)
		if err != nil || !st.Node(node).Online {
			return lab.NotYet("%s is not back (%v)", node, err)
		}
		return nil
	})
	s.streaming()
	r := s.stopLoad()
	s.outage(r, "power off", here(blinkLimit))
	if now := s.timeline(s.old); now != was {
		s.t.Errorf("%s writes timeline %d, before a standby's node was lost it was %d", s.old, now, was)
	}
	if after, err := s.lab.Postmaster(s.old); err != nil || after != postmaster {
		s.t.Errorf("the server of %s was restarted because the node of a standby was lost (%v)", s.old, err)
	}
	s.onlyFenced(node)
	s.noFailedActions(node)
	s.sameRows()
	s.primaryIs(s.old)
}
