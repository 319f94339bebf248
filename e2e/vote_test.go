package e2e

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// Ensure that of two nodes with PostgreSQL, which have a quorum alone with a node that only votes, none is promoted that was
// switched on while the other is away: what that did last it cannot know. Who was there takes over alone.
func TestTwoAndAVote(t *testing.T) {
	o := staysOff()
	o.Voter = true
	c := testCluster(t, "vote", o)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	s := &scenario{t: t, lab: c.lab, ctx: ctx, last: time.Now()}
	t.Cleanup(func() {
		if t.Failed() {
			c.lab.Dump(context.Background(), t.Output())
		}
	})
	s.old = s.promoted("")
	s.others = slices.DeleteFunc(slices.Clone(c.lab.Instances()), func(n string) bool { return n == s.old })
	first, second := s.old, s.others[0]
	s.sql(first, "CREATE TABLE votes (what text)")
	row := func(node, what string) { s.sql(node, "INSERT INTO votes VALUES ('"+what+"')") }
	primary := func(node string) {
		s.promoted(node)
		s.must(c.lab.WaitAllStreaming(s.within(healLimit)))
		s.stage("%s is primary, the other follows", node)
	}
	s.stage("%s is primary, %s its standby", first, second)

	// The standby was gone for long when the primary goes.
	s.powerOff(second)
	row(first, "alone")
	s.powerOff(first)
	s.powerOn(second)
	s.alone(second, first)
	s.powerOn(first)
	primary(first)

	// The survivor takes over, and is lost itself.
	s.settled()
	s.powerOff(first)
	s.promoted(second)
	s.await(roleLimit, func() error {
		if _, err := s.lab.SQL(s.ctx, second, "INSERT INTO votes VALUES ('survivor')"); err != nil {
			return lab.NotYet("%v", err)
		}
		return nil
	})
	s.stage("%s was there, and took over alone", second)
	s.run(second, "crm_resource", "--restart", "-r", lab.Clone)
	s.promoted(second)
	s.stage("%s was restarted, and is primary: nothing could be without its node", second)
	s.powerOff(second)
	s.powerOn(first)
	s.alone(first, second)
	s.powerOn(second)
	primary(second)

	// And with the note of its own clean end.
	s.settled()
	s.move(first)
	primary(first)
	s.clear()
	s.powerOff(second)
	row(first, "after the handover")
	s.powerOff(first)
	s.powerOn(second)
	s.alone(second, first)
	s.powerOn(first)
	primary(first)
	for _, n := range c.lab.Instances() {
		if got := s.sql(n, "SELECT string_agg(what, ', ' ORDER BY what) FROM votes"); got != "after the handover, alone, survivor" {
			t.Errorf("%s has the rows %q, expected all three", n, got)
		}
	}
	s.noFailedActions("")
}

// alone checks that a node that came back alone is not promoted, and says whom it waits for.
func (s *scenario) alone(node, other string) {
	s.t.Helper()
	s.keptOut(node, "^refused: .*start "+other)
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if p := s.status().Promoted(); len(p) > 0 {
			s.t.Fatalf("%v promoted without %s", p, other)
		}
	}
	s.stage("%s is alone and not promoted", node)
}
