package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// throttleLooks is how often Pacemaker looks at a node's load (throttle_timer in daemons/controld).
const throttleLooks = 30 * time.Second

// Ensure that whoever has most is promoted when a primary's node is lost while Pacemaker throttles, which makes it run one
// action at a time in the whole cluster: no promote of another one may fail because it has heard too late.
func TestThrottled(t *testing.T) {
	c := testCluster(t, "failure", failing())
	c.useFaults(t, false)
	for i, name := range []string{"one standby is behind", "the other is"} {
		t.Run(name, func(t *testing.T) {
			s := c.begin(t, 4*time.Minute, true)
			if i == 0 {
				s.run(s.old, "crm_attribute", "-n", "load-threshold", "-v", "1%")
				time.Sleep(throttleLooks + 2*time.Second)
			}
			behind, ahead := s.others[0], s.others[1]
			if i == 1 {
				behind, ahead = ahead, behind
			}
			was := s.timeline(s.old)
			s.run(behind, "crm_attribute", "--promotion", lab.Resource, "-N", behind, "-v", "900") // asked first, and never above the primary
			s.must(s.lab.WaitIdle(s.within(roleLimit)))
			s.cutStandby(behind)
			time.Sleep(time.Second) // of what the clients write now, it gets nothing
			s.load.Mark("power off")
			s.must(s.lab.Power(s.ctx, s.old, false))
			s.newPrimary(was, ahead)
			s.must(s.load.AwaitAck(s.within(roleLimit)))
			s.stage("%s is primary", ahead)
			s.noFailedActions(s.old)
			s.must(s.lab.HealAll(s.ctx))
			s.onlyFenced(s.old)
			s.returned(s.old, ahead)
			s.takenOver(ahead, was, "power off", 0)
		})
	}
	// The old primary's post-demote, and its stop, may be over before the target's post-demote begins: then no notification of it
	// sees the challenge, whose answer the target needs, since the third node cannot give one. Each of the two may come first.
	t.Run("the primary's node leaves, and a standby is down", func(t *testing.T) {
		s := c.begin(t, 4*time.Minute, true)
		down := s.others[1]
		s.standby(down, true)
		for i, old := range []string{s.old, s.others[0], s.old} {
			mark, was := fmt.Sprintf("standby %d", i+1), s.timeline(old)
			s.must(s.lab.WaitIdle(s.within(healLimit)))
			s.load.Mark(mark)
			s.standby(old, true)
			now := s.newPrimary(was, "")
			s.must(s.load.AwaitAck(s.within(roleLimit)))
			s.proven(old, was, now)
			s.noFailedActions("")
			s.standby(old, false)
			s.stage("%s to %s", old, now)
			s.await(healLimit, func() error {
				if st, err := s.lab.View(s.ctx); err != nil || scoreOf(st.Node(old)) < 100 {
					return lab.NotYet("%s does not follow yet (%v)", old, err)
				}
				return nil
			})
		}
		s.standby(down, false)
		r := s.finish()
		for i := range 3 {
			s.outage(r, fmt.Sprintf("standby %d", i+1), 0)
		}
	})
	if _, err := c.lab.Run(t.Context(), c.lab.Names[0], "crm_attribute", "-n", "load-threshold", "-v", "400%"); err != nil {
		t.Error(err) // the next test on this lab would be throttled
	}
}
