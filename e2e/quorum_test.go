package e2e

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// Ensure a standby that is away for maintenance does not keep the last one from taking over, and that the cluster does not
// forget it: the claim that too few instances could store is known to every node that comes back.
func TestQuorum(t *testing.T) {
	c := twinsCluster(t)
	t.Run("the primary's node leaves while a standby is away", func(t *testing.T) {
		s := c.begin(t, 3*time.Minute, true)
		was, target, away := s.timeline(s.old), s.others[0], s.others[1]
		s.away(away)
		s.load.Mark("standby")
		s.run(target, "crm_attribute", "-N", s.old, "-n", "standby", "-v", "on")
		s.newPrimary(was, target)
		s.must(s.load.AwaitAck(s.within(roleLimit)))
		s.proven(s.old, was, target)
		s.noFailures()
		s.stage("%s is primary, the only instance", target)
		s.run(target, "crm_attribute", "-N", s.old, "-n", "standby", "-D")
		s.run(target, "crm_attribute", "-N", away, "-n", "standby", "-D")
		r := s.finish()
		t.Logf("outage: %.0f ms", r.GapAfter("standby").Ms)
	})
	t.Run("the primary's node is lost while a standby is away", func(t *testing.T) {
		// Without load: what the lost node wrote and nobody received would be another story.
		s := c.begin(t, 4*time.Minute, false)
		was, target, away := s.timeline(s.old), s.others[0], s.others[1]
		_, mark := s.markers()
		s.away(away)
		s.must(s.lab.Power(s.ctx, s.old, false))
		s.newPrimary(was, target)
		s.logged(target, `it goes into the cluster's configuration`)
		s.mark(target, mark)
		s.stage("%s is primary, the only instance", target)

		// Now the only node that has this goes, and the others, which are a majority, come back.
		s.must(s.lab.Power(s.ctx, target, false))
		s.must(s.lab.Power(s.ctx, s.old, true))
		s.await(roleLimit, func() error {
			st, err := s.lab.View(s.ctx)
			if err != nil || !st.Node(s.old).Online {
				return lab.NotYet("%s is not back (%v)", s.old, err)
			}
			return nil
		})
		s.run(away, "crm_attribute", "-N", away, "-n", "standby", "-D")
		for n, why := range map[string]string{
			s.old: `^refused: .*start ` + target, // it has more than the other one, and knows that this is not all
			// It left while the first of the three primaries served.
			away: `^refused: (` + away + ` left while ` + s.old + ` was primary|.*start ` + target + `|` + s.old + ` has more WAL)`,
		} {
			s.await(roleLimit, func() error {
				st, err := s.lab.View(s.ctx)
				if err != nil {
					return lab.NotYet("%v", err)
				}
				said := st.Node(n).Attributes[statusAttribute]
				if !regexp.MustCompile(why).MatchString(said) {
					return lab.NotYet("crm_mon -A says of %s: %q; expected %q", n, said, why)
				}
				return nil
			})
			s.stage("crm_mon -A says of %s: %s", n, s.status().Node(n).Attributes[statusAttribute])
		}
		s.must(s.lab.WaitIdle(s.within(healLimit)))
		if p := s.status().Promoted(); len(p) > 0 {
			t.Errorf("%v promoted without the rows of %s", p, target)
		}

		s.must(s.lab.Power(s.ctx, target, true))
		s.promoted(target)
		s.wasFenced()
		s.streaming()
		s.lifted(s.old)
		s.lifted(away)
		s.await(2*time.Minute, func() error {
			out, err := s.lab.Run(s.ctx, target, "cibadmin", "--query", "--local", "--scope=nodes")
			if err != nil || strings.Contains(out, "pgbaton-claim") {
				return lab.NotYet("the claim still stands in the configuration, though every node knows it (%v)", err)
			}
			return nil
		})
		for _, n := range s.lab.Names {
			if got := s.marks(n, mark, mark); got != mark {
				t.Errorf("%s does not have the row that %s committed", n, target)
			}
		}
	})
}

// away stops the instance of a node for maintenance.
func (s *scenario) away(node string) {
	s.t.Helper()
	s.run(s.old, "crm_attribute", "-N", node, "-n", "standby", "-v", "on")
	s.await(roleLimit, func() error {
		st, err := s.lab.View(s.ctx)
		if err != nil || st.Node(node).Role != "Stopped" {
			return lab.NotYet("%s is %q, expected no instance there (%v)", node, st.Node(node).Role, err)
		}
		return nil
	})
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	s.stage("%s is in standby", node)
}
