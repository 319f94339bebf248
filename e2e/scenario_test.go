package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/lab/follow"
	"github.com/pgbaton/pgbaton/internal/load"
)

// statusAttribute is what crm_mon -A shows of a node that has something to say.
const statusAttribute = "pgbaton-status-" + lab.Resource

// scenario is one story on a healthy cluster: a primary, two or more standbys that stream, clients that write.
type scenario struct {
	t   *testing.T
	lab *lab.Lab
	ctx context.Context

	old    string   // the primary when it began
	others []string // the other nodes, in their order after it
	load   *load.Run
	logs   *follow.Follower // of the agents
	fenced []string         // events before it

	last time.Time // end of the stage before

	result lab.Result // what the table of a soak is made of
}

// begin makes the cluster healthy, and the scenario; limit bounds all of it. Without load no client writes.
func (c *cluster) begin(t *testing.T, limit time.Duration, withLoad bool) *scenario {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	s := &scenario{t: t, lab: c.lab, ctx: ctx, last: time.Now()}
	t.Cleanup(func() {
		if t.Failed() {
			c.lab.Dump(context.Background(), t.Output())
		}
	})
	t.Cleanup(s.keepResult)
	if err := c.lab.Healthy(ctx); err != nil {
		t.Logf("reset: %v", err)
		s.must(c.lab.Reset(ctx))
	}
	s.must(noRefusals(ctx, c.lab))
	s.old, s.fenced = s.promoted(""), fencings(t, c.lab)
	n := len(c.lab.Names)
	for i := 1; i < n; i++ {
		s.others = append(s.others, c.lab.Names[(slices.Index(c.lab.Names, s.old)+i)%n])
	}
	if c.faulty {
		for _, n := range c.lab.Names {
			s.must(s.faults(n).clear())
		}
	}
	s.logs = follow.Start(c.lab)
	t.Cleanup(s.logs.Close)
	t.Cleanup(func() {
		if s.load != nil {
			s.load.Stop()
		}
	})
	if withLoad {
		s.startLoad(load.Options{})
	}
	s.stage("healthy, %s is primary", s.old)
	if resultsFile != "" {
		time.Sleep(rand.N(5 * time.Second)) // a soak meets the monitors at another moment each time
	}
	return s
}

// story is a scenario under load, as the subtest of that name.
type story struct {
	name string
	run  func(*scenario)
}

// tell runs stories one after the other, each on the healthy cluster of that name and with the agent that is installed;
// limit bounds each.
func tell(t *testing.T, cluster string, o lab.Options, limit time.Duration, stories []story) {
	var today share
	for _, st := range stories {
		today.run(t, st.name, func(t *testing.T) {
			c := testCluster(t, cluster, o)
			c.useFaults(t, false)
			st.run(c.begin(t, limit, true))
		})
	}
}

// powerOff takes a node's power and waits until the cluster has noticed and fenced it: a node that is back before that is
// fenced then, and is off for good.
func (s *scenario) powerOff(node string) {
	s.t.Helper()
	s.must(s.lab.Power(s.ctx, node, false))
	s.await(roleLimit, func() error {
		if st, err := s.lab.View(s.ctx); err != nil || st.Node(node).Online {
			return lab.NotYet("%s still is online (%v)", node, err)
		}
		return nil
	})
	s.must(s.lab.WaitIdle(s.within(healLimit)))
}

// noRefusals waits until every node may be promoted: a refusal of the scenario before is lifted by the next monitor.
func noRefusals(ctx context.Context, l *lab.Lab) error {
	ctx, cancel := context.WithTimeout(ctx, healLimit)
	defer cancel()
	return lab.Poll(ctx, 100*time.Millisecond, func() error {
		st, err := l.View(ctx)
		if err != nil {
			return lab.NotYet("%v", err)
		}
		for _, n := range st.Nodes {
			if scoreOf(n) < 0 {
				return lab.NotYet("%s has the score %q (%s)", n.Name, n.Score, n.Attributes[statusAttribute])
			}
		}
		return nil
	})
}

// stage prints how long the time until now took.
func (s *scenario) stage(format string, args ...any) {
	now := time.Now()
	s.t.Logf("%6.1f s  %s", now.Sub(s.last).Seconds(), fmt.Sprintf(format, args...))
	s.last = now
}

func (s *scenario) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *scenario) status() *lab.Status {
	s.t.Helper()
	st, err := s.lab.View(s.ctx)
	s.must(err)
	return st
}

// run runs a command on a node that has the cluster's software running.
func (s *scenario) run(node string, argv ...string) string {
	s.t.Helper()
	out, err := s.lab.Run(s.ctx, node, argv...)
	s.must(err)
	return out
}

func (s *scenario) sql(node, query string) string {
	s.t.Helper()
	out, err := s.lab.SQL(s.ctx, node, query)
	s.must(err)
	return out
}

// within bounds a wait.
func (s *scenario) within(limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(s.ctx, limit)
	s.t.Cleanup(cancel)
	return ctx
}

// await polls until ok returns nil or an error that is not made by lab.NotYet.
func (s *scenario) await(limit time.Duration, ok func() error) {
	s.t.Helper()
	s.must(lab.Poll(s.within(limit), 200*time.Millisecond, ok))
}

// move orders the role to a node, as an operator does.
func (s *scenario) move(to string) {
	s.t.Helper()
	s.run(to, "crm_resource", "--move", "-r", lab.Clone, "--promoted", "--node", to)
}

// ban forbids the role on a node.
func (s *scenario) ban(node string) {
	s.t.Helper()
	s.run(node, "crm_resource", "--ban", "-r", lab.Clone, "--promoted", "--node", node)
}

// clear takes the constraints of move and ban away.
func (s *scenario) clear() {
	s.t.Helper()
	s.run(s.status().Asked, "crm_resource", "--clear", "-r", lab.Clone)
}

// standby puts a node in standby, or takes it out of it.
func (s *scenario) standby(node string, on bool) {
	s.t.Helper()
	if on {
		s.run(s.others[len(s.others)-1], "crm_attribute", "-N", node, "-n", "standby", "-v", "on")
		return
	}
	s.run(s.others[len(s.others)-1], "crm_attribute", "-N", node, "-n", "standby", "-D")
}

// promoted waits for a primary, this one unless the name is empty, and returns its name.
func (s *scenario) promoted(node string) string {
	s.t.Helper()
	name, err := s.lab.WaitPromoted(s.within(roleLimit), node)
	s.must(err)
	return name
}

// settled waits until every standby has the score of one that streams. One whose monitor raises it in the middle of a handover
// is the better target from then on, and Pacemaker drops the one that it had asked.
func (s *scenario) settled() {
	s.t.Helper()
	s.streaming()
	s.await(healLimit, func() error {
		st, err := s.lab.View(s.ctx)
		if err != nil {
			return lab.NotYet("%v", err)
		}
		for _, n := range st.Nodes {
			if slices.Contains(s.lab.Instances(), n.Name) && scoreOf(n) < 100 {
				return lab.NotYet("%s has the score %q", n.Name, n.Score)
			}
		}
		return nil
	})
	s.must(s.lab.WaitIdle(s.within(healLimit)))
}

// newPrimary waits for a primary that writes a newer timeline than was: one that was promoted since. It is this node
// unless the name is empty.
func (s *scenario) newPrimary(was uint32, node string) string {
	s.t.Helper()
	ctx := s.within(roleLimit)
	var found string
	s.must(lab.Poll(ctx, 100*time.Millisecond, func() error {
		name, err := s.lab.WaitPromoted(ctx, "")
		if err != nil {
			return err
		}
		out, err := s.lab.SQL(ctx, name, "SELECT NOT pg_is_in_recovery() AND ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int > "+fmt.Sprint(was))
		if err != nil || out != "t" {
			return lab.NotYet("%s has not begun a timeline after %d (%v)", name, was, err)
		}
		found = name
		return nil
	}))
	if node != "" && found != node {
		s.t.Fatalf("%s was promoted, expected %s", found, node)
	}
	return found
}

// highest waits until the primary's score is above all others: before that, clear could make the role bounce. It returns
// the status that showed it.
func (s *scenario) highest(primary string) *lab.Status {
	s.t.Helper()
	var last *lab.Status
	s.await(healLimit, func() error {
		st, err := s.lab.View(s.ctx)
		if err != nil {
			return lab.NotYet("%v", err)
		}
		for _, n := range st.Nodes {
			if n.Name != primary && scoreOf(n) >= scoreOf(st.Node(primary)) {
				return lab.NotYet("%s has the score %q, the primary %s has %q", n.Name, n.Score, primary, st.Node(primary).Score)
			}
		}
		last = st
		return nil
	})
	return last
}

// lifted waits until a node that refused may be promoted again.
func (s *scenario) lifted(node string) {
	s.t.Helper()
	s.await(healLimit, func() error {
		st, err := s.lab.View(s.ctx)
		if err != nil {
			return lab.NotYet("%v", err)
		}
		if scoreOf(st.Node(node)) < 0 {
			return lab.NotYet("%s still has the score %q (%s)", node, st.Node(node).Score, st.Node(node).Attributes[statusAttribute])
		}
		return nil
	})
}

// streaming waits until every other node streams from the primary.
func (s *scenario) streaming() {
	s.t.Helper()
	s.must(s.lab.WaitAllStreaming(s.within(healLimit)))
}

// scoreOf reads a promotion score; none is the lowest.
func scoreOf(n lab.NodeStatus) int {
	switch n.Score {
	case "INFINITY":
		return 1_000_000
	case "", "-INFINITY":
		return -1_000_000
	}
	v, err := strconv.Atoi(n.Score)
	if err != nil {
		return -1_000_000
	}
	return v
}

// faults is the fault directory of a node.
func (s *scenario) faults(node string) faults {
	s.t.Helper()
	f, err := openFaults(s.lab, node)
	s.must(err)
	return f
}

// pause plants a pause of the agent on a node; do what makes the agent come there in change, and what should happen
// meanwhile in meanwhile.
func (s *scenario) pause(node, point string, change, meanwhile func()) {
	s.t.Helper()
	f := s.faults(node)
	_, err := f.remove("paused") // of a pause before
	s.must(err)
	s.must(f.plant("pause", point))
	defer f.remove("pause")
	change()
	s.await(30*time.Second, func() error {
		if !f.exists("paused") {
			return lab.NotYet("the agent on %s has not come to %q", node, point)
		}
		return nil
	})
	meanwhile()
}

// cutStandby cuts the replication of nodes: port 5432 between each of them and every other node.
func (s *scenario) cutStandby(nodes ...string) {
	s.t.Helper()
	for _, n := range nodes {
		s.must(s.lab.Cut(s.ctx, lab.Link{From: n, To: "*", Port: 5432}))
	}
}

// startLoad starts two clients with some work to do.
func (s *scenario) startLoad(o load.Options) {
	s.t.Helper()
	// Each attempt to connect costs the server a process: four clients that try 25 times a second would be half of what this one
	// machine does while the role changes.
	o.Clients, o.Every, o.Appenders, o.RetryEvery = 2, 20*time.Millisecond, 2, 100*time.Millisecond
	var err error
	s.load, err = load.Start(s.ctx, s.lab, o)
	s.must(err)
}
