package e2e

import (
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// Ensure nobody is promoted by his position over a primary that ended cleanly and whose agent could not say so: killed before it had
// published the note that it had saved, with standbys that were behind. stop says it; and when that node is back it is primary again,
// with every row.
func TestNoteNotPublished(t *testing.T) {
	c := testCluster(t, "ends", ordinary())
	c.useFaults(t, true)
	s := c.begin(t, 5*time.Minute, true)
	was := s.timeline(s.old)
	s.cutStandby(s.others...)
	s.must(s.load.AwaitAck(s.within(roleLimit))) // which they do not have
	f := s.faults(s.old)
	s.must(f.plant("kill", "demote/publish-note before"))
	s.standby(s.old, true)
	s.await(here(time.Minute), func() error {
		if !f.exists("killed") {
			return lab.NotYet("the demote of %s was not killed", s.old)
		}
		return nil
	})
	s.await(here(time.Minute), func() error {
		if role := s.status().Node(s.old).Role; role != "Stopped" {
			return lab.NotYet("%s is %s", s.old, role)
		}
		return nil
	})
	s.stage("%s has ended, its agent was killed before it published the note", s.old)
	s.must(s.lab.HealAll(s.ctx))
	s.staysUnpromoted(20 * time.Second)
	s.standby(s.old, false)
	s.promoted(s.old)
	s.stage("%s is back and primary", s.old)
	if now := s.timeline(s.old); now <= was {
		t.Errorf("its timeline is %d, after %d: it was not promoted", now, was)
	}
	s.run(s.others[0], "crm_resource", "--cleanup", "-r", lab.Resource, "-N", s.old) // the demote that was killed, as pgbaton status says
	s.streaming()
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.finish()
}

// Ensure rows count that a primary wrote when somebody had started it again, by hand, after it had ended and left its note. What the agent
// says then is to give it back to the cluster, which stops it first.
func TestStartedBehindItsNote(t *testing.T) {
	c := testCluster(t, "ends", ordinary())
	c.useFaults(t, false)
	s := c.begin(t, 5*time.Minute, false)
	_, lost := s.markers()
	s.run(s.old, "crm_resource", "--meta", "-r", lab.Clone, "-p", "target-role", "-v", "Stopped")
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	s.pgCtl(s.old, "start", "-o", "-c synchronous_standby_names=")
	s.mark(s.old, lost)
	s.stage("%s was started by hand and has a row that nobody else has", s.old)
	s.run(s.old, "crm_resource", "--meta", "-r", lab.Clone, "-d", "target-role")
	s.await(here(time.Minute), func() error {
		if st := s.status(); len(st.Failed) == 0 {
			return lab.NotYet("the start on %s has not failed", s.old)
		}
		return nil
	})
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	s.staysUnpromoted(10 * time.Second)
	s.stage("nobody is primary: %s", s.status().Node(s.others[0]).Attributes[statusAttribute])
	s.run(s.old, "crm_resource", "--cleanup")
	s.promoted(s.old)
	if got := s.marks(s.old, "0", lost); got != lost {
		t.Errorf("%s has the marks %q, expected %q", s.old, got, lost)
	}
	s.streaming()
	s.handoverTo(s.others[0])
	if got := s.marks(s.others[0], "0", lost); got != lost {
		t.Errorf("%s has the marks %q, expected %q", s.others[0], got, lost)
	}
	s.sameRows()
}
