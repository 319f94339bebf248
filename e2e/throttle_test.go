package e2e

import (
	"os"
	"path/filepath"
	"regexp"
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
			was, began := s.timeline(s.old), time.Now()
			s.run(behind, "crm_attribute", "--promotion", lab.Resource, "-N", behind, "-v", "900") // asked first, and never above the primary
			s.must(s.lab.WaitIdle(s.within(roleLimit)))
			s.cutStandby(behind)
			time.Sleep(time.Second) // of what the clients write now, it gets nothing
			s.load.Mark("power off")
			s.must(s.lab.Power(s.ctx, s.old, false))
			s.newPrimary(was, ahead)
			s.saidPromoted(ahead, began)
			s.must(s.load.AwaitAck(s.within(roleLimit)))
			s.stage("%s is primary", ahead)
			s.noFailedActions(s.old)
			s.must(s.lab.HealAll(s.ctx))
			s.onlyFenced(s.old)
			s.returned(s.old, ahead)
			s.takenOver(ahead, was, "power off", 0)
		})
	}
	// The old primary's post-demote may be over before that of the target begins, and then it is stopped: no notification of it sees
	// the challenge, and the third node cannot answer either.
	t.Run("the primary's node leaves, and is asked late", func(t *testing.T) {
		c.useFaults(t, true)
		s := c.begin(t, 4*time.Minute, true)
		target, down, was := s.others[0], s.others[1], s.timeline(s.old)
		s.standby(down, true)
		s.must(s.lab.WaitIdle(s.within(healLimit)))
		s.load.Mark("standby")
		s.pause(target, "post-demote/save-intent before", func() { s.standby(s.old, true) }, func() { time.Sleep(time.Second) })
		s.newPrimary(was, target)
		s.must(s.load.AwaitAck(s.within(roleLimit)))
		s.proven(s.old, was, target)
		s.noFailedActions("")
		s.standby(s.old, false)
		s.standby(down, false)
		s.outage(s.finish(), "standby", here(5*time.Second))
		s.primaryIs(target)
	})
	if _, err := c.lab.Run(t.Context(), c.lab.Names[0], "crm_attribute", "-n", "load-threshold", "-v", "400%"); err != nil {
		t.Error(err) // the next test on this lab would be throttled
	}
}

// saidLimit is how long after its promotion a new primary may have no score above all others': the sentinel waits a second for
// Pacemaker to run a monitor, looks once a second, and runs one itself.
const saidLimit = 5 * time.Second

// saidPromoted checks how late a new primary said that it is one, however late Pacemaker runs its first monitor: until then a plan
// may take the role away from it again.
func (s *scenario) saidPromoted(node string, since time.Time) {
	s.t.Helper()
	promoted := s.promotion(node, since).Time
	said := regexp.MustCompile(`(?m)^time=(\S+) .*msg="promotion score" .*score=1001 `)
	s.await(roleLimit, func() error {
		log, err := os.ReadFile(filepath.Join(s.lab.Dir, "nodes", node, "log/pgbaton", lab.Resource+".log"))
		if err != nil {
			return err
		}
		for _, m := range said.FindAllSubmatch(log, -1) {
			at, err := time.Parse(time.RFC3339Nano, string(m[1]))
			if err != nil || at.Before(promoted) {
				continue
			}
			s.stage("%s had the score of a primary %.1f s after its promotion", node, at.Sub(promoted).Seconds())
			if at.Sub(promoted) > here(saidLimit) {
				s.t.Errorf("%s had the score of a primary %.1f s after its promotion, expected within %s", node, at.Sub(promoted).Seconds(), here(saidLimit))
			}
			return nil
		}
		return lab.NotYet("%s is promoted, and has not set its score", node)
	})
}
