package e2e

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/load"
)

// rollBackLimit is how long clients may be without a primary when a move turns out to be impossible after the stop.
const rollBackLimit = 15 * time.Second

// atStop is where the agent of the primary has done everything but to stop it.
const atStop = "demote/fast-stop before"

// Ensure that a handover which cannot finish ends by the table of DESIGN.md, without a person, a loss or a failure.
func TestRollBack(t *testing.T) {
	c := testCluster(t, "plain", ordinary())
	c.useFaults(t, true)
	var today share
	today.run(t, "move, the target misses the end", func(t *testing.T) { moveWithoutProof(t, c) })
	today.run(t, "move, the target is cut off before", func(t *testing.T) { moveCalledOff(t, c) })
	for _, l := range leaving() {
		today.run(t, l.name+", with proof", func(t *testing.T) { leaveWithProof(t, c, l) })
		today.run(t, l.name+", only the other standby has the proof", func(t *testing.T) { leaveToOther(t, c, l) })
		today.run(t, l.name+", nobody has the proof", func(t *testing.T) { leaveToNobody(t, c, l) })
	}
	today.run(t, "the target changes when it has asked", func(t *testing.T) { targetChanges(t, c) })
	today.run(t, "restart of the clone", func(t *testing.T) { restartClone(t, c) })
}

// moveWithoutProof cuts the target off at the moment when the primary is told to stop.
//
// Trap 16: a named target without the proof is not promoted.
// Trap 17: the old primary, already shut down, serves again.
func moveWithoutProof(t *testing.T, c *cluster) {
	s := c.begin(t, 4*time.Minute, true)
	was, target := s.timeline(s.old), s.others[0]
	if v := s.sql(s.old, "SHOW wal_sender_timeout"); v != "1min" {
		t.Fatalf("wal_sender_timeout is %s, this test wants the default", v)
	}
	s.load.Mark("move")
	var stopped time.Time
	s.pause(s.old, atStop, func() { s.move(target) }, func() {
		s.cutStandby(target)
		stopped = time.Now()
	})
	s.stage("%s cut off, %s told to stop", target, s.old)
	s.newPrimary(was, s.old)
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s is primary again", s.old)
	s.refused(target)
	s.proven(s.old, was, s.old)
	s.streamsFrom(s.others[1], s.old)
	s.stage("%s streams again", s.others[1])
	s.noFailures()

	s.must(s.lab.HealAll(s.ctx))
	s.clear()
	s.lifted(target)
	s.streaming()
	s.stage("healed: the refusal is lifted, %s streams", target)
	was = s.timeline(s.old)
	s.load.Mark("move again")
	s.move(target)
	s.newPrimary(was, target)
	s.streaming()
	s.proven(s.old, was, target)
	r := s.finish()
	s.highest(target)
	s.clear()

	gap := r.GapAfter("move")
	if took := gap.End().Sub(stopped); took > here(rollBackLimit) || gap.Ms < 1 {
		t.Errorf("%.1f s from the stop to the next acknowledged commit, expected at most %s (gap: %+v)", took.Seconds(), here(rollBackLimit), gap)
	} else {
		t.Logf("%.2f s from the stop to the next acknowledged commit", took.Seconds())
	}
}

// moveCalledOff cuts the target off before the move: nothing may be stopped at all.
//
// Trap 18: a target that does not follow is found before anything is stopped.
func moveCalledOff(t *testing.T, c *cluster) {
	s := c.begin(t, 3*time.Minute, false)
	s.startLoad(patient)
	was, target := s.timeline(s.old), s.others[0]
	started := s.sql(s.old, "SELECT pg_postmaster_start_time()")
	s.cutStandby(target)
	s.load.Mark("move")
	s.move(target)
	s.await(roleLimit, func() error {
		st, err := s.lab.View(s.ctx)
		if err != nil || st.Node(target).Score != "-INFINITY" {
			return lab.NotYet("the score of %s is %q, expected -INFINITY: %v", target, st.Node(target).Score, err)
		}
		return nil
	})
	s.stage("called off")
	s.must(s.lab.WaitIdle(s.within(roleLimit)))
	s.promoted(s.old)
	s.refused(target)
	if now := s.timeline(s.old); now != was {
		t.Errorf("%s writes timeline %d, before the move %d: it was demoted", s.old, now, was)
	}
	if now := s.sql(s.old, "SELECT pg_postmaster_start_time()"); now != started {
		t.Errorf("the server of %s started at %s, before the move it was %s", s.old, now, started)
	}
	s.must(s.load.AwaitAck(s.within(10 * time.Second)))
	r := s.stopLoad()
	if len(r.Errors) > 0 {
		t.Errorf("the clients had errors: %v", r.Errors)
	}
	t.Logf("longest gap: %.0f ms", r.GapAfter("move").Ms)
	s.must(s.lab.HealAll(s.ctx))
	s.clear()
	s.lifted(target)
	s.streaming()
	s.stage("healed: the refusal is lifted, %s streams", target)
	s.move(target)
	s.newPrimary(was, target)
	s.streaming()
	s.proven(s.old, was, target)
	s.finish()
	s.highest(target)
	s.clear()
}

// leave is a way in which the primary has to leave its node.
type leave struct {
	name  string
	start func(*scenario)
	undo  func(*scenario)
}

func leaving() []leave {
	stopped := make(chan error, 1)
	return []leave{
		{"ban", func(s *scenario) { s.ban(s.old) }, func(s *scenario) { s.clear() }},
		{"node standby", func(s *scenario) { s.standby(s.old, true) }, func(s *scenario) { s.standby(s.old, false) }},
		{
			"clean stop of the node",
			func(s *scenario) {
				ctx := s.within(3 * time.Minute)
				go func() { stopped <- s.lab.StopCluster(ctx, s.old) }()
			},
			func(s *scenario) {
				select {
				case err := <-stopped:
					s.must(err)
				case <-s.ctx.Done():
					s.t.Fatalf("Pacemaker on %s did not stop: %v", s.old, s.ctx.Err())
				}
				s.must(s.lab.StartCluster(s.ctx, s.old))
			},
		},
	}
}

// Trap 3: node standby and a clean shutdown ask for the proof like any handover.
// Trap 15: the node that returns does not take the role back.
// Trap 37: what the leaving node had published goes with it; the others have copied it.
func leaveWithProof(t *testing.T, c *cluster, l leave) {
	s := c.begin(t, 3*time.Minute, true)
	was := s.timeline(s.old)
	s.load.Mark(l.name)
	l.start(s)
	now := s.newPrimary(was, "")
	if now == s.old {
		t.Fatalf("%s is primary again, it had to leave", now)
	}
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s is primary", now)
	s.proven(s.old, was, now)
	l.undo(s)
	s.streaming()
	s.stage("%s is back as a standby", s.old)
	r := s.finish()
	t.Logf("outage: %.0f ms", r.GapAfter(l.name).Ms)
	s.primaryIs(now)
}

func leaveToOther(t *testing.T, c *cluster, l leave) {
	s := c.begin(t, 4*time.Minute, true)
	s.settled()
	was := s.timeline(s.old)
	var target, other string
	s.load.Mark(l.name)
	s.pause(s.old, atStop, func() { l.start(s) }, func() {
		target = s.planned()
		other = s.others[1-slices.Index(s.others, target)]
		s.cutStandby(target)
	})
	s.stage("%s is to be promoted, and cut off", target)
	s.newPrimary(was, other)
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s is primary", other)
	s.proven(s.old, was, other)
	s.refused(target)
	s.noFailures()
	l.undo(s)
	s.must(s.lab.HealAll(s.ctx))
	s.streaming()
	s.lifted(target)
	s.stage("healed: the refusal is lifted, %s streams", target)
	r := s.finish()
	t.Logf("outage: %.0f ms", r.GapAfter(l.name).Ms)
	s.primaryIs(other)
}

// Trap 3: without the proof nobody is promoted, whatever the plan looks like.
func leaveToNobody(t *testing.T, c *cluster, l leave) {
	s := c.begin(t, 4*time.Minute, true)
	was := s.timeline(s.old)
	s.load.Mark(l.name)
	s.pause(s.old, atStop, func() { l.start(s) }, func() { s.cutStandby(s.others...) })
	s.stage("both standbys are cut off")
	for _, n := range s.others {
		s.refused(n)
		s.logged(n, `refusing the promotion.*reason=`)
		s.wayOut(n)
	}
	s.must(s.lab.WaitIdle(s.within(roleLimit)))
	if st := s.status(); len(st.Promoted()) != 0 {
		t.Fatalf("%v was promoted without a proof", st.Promoted())
	}
	s.noFailures()
	s.stage("nobody is promoted")
	l.undo(s)
	r := s.comesBack(was)
	for _, n := range s.others {
		if len(r.Writable[n]) > 0 {
			t.Errorf("%s was writable: %+v", n, r.Writable[n])
		}
	}
	s.primaryIs(s.old)
}

// targetChanges takes the plan from a target that has asked and gives it to the other standby, which lacks the end of the WAL
// as well and is answered late. It must not be promoted in the hope of that answer, and fail.
func targetChanges(t *testing.T, c *cluster) {
	s := c.begin(t, 4*time.Minute, true)
	s.settled()
	was := s.timeline(s.old)
	s.load.Mark("standby")
	var target, other string
	s.pause(s.old, atStop, func() { s.standby(s.old, true) }, func() {
		target = s.planned()
		other = s.others[1-slices.Index(s.others, target)]
		s.cutStandby(s.others...)
		s.must(s.faults(target).plant("pause", "post-demote/publish-challenge after"))
	})
	defer s.faults(target).remove("pause")
	if s.pausedAt("post-demote/publish-challenge after") != target {
		t.Fatalf("%s asked, Pacemaker's plan was to promote %s", other, target)
	}
	s.stage("%s has asked", target)
	s.run(other, "crm_attribute", "--promotion", lab.Resource, "-N", other, "-v", "2000")
	s.must(s.faults(target).plant("pause", "pre-promote/publish-answer before"))
	if s.pausedAt("pre-promote/publish-answer before") != target {
		t.Fatalf("%s is asked, expected %s", other, target)
	}
	s.stage("%s is the target now, and %s has not answered", other, target)
	s.refused(other)
	_, err := s.faults(target).remove("pause")
	s.must(err)
	s.refused(target)
	s.must(s.lab.WaitIdle(s.within(roleLimit)))
	s.noFailures()
	s.standby(s.old, false)
	s.comesBack(was)
	s.primaryIs(s.old)
}

// comesBack waits until the old primary, which may come back, is promoted with its own proof, heals the links, and ends the
// scenario when both refusals are lifted.
func (s *scenario) comesBack(was uint32) load.Report {
	s.t.Helper()
	s.newPrimary(was, s.old)
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s is primary again", s.old)
	s.proven(s.old, was, s.old)
	s.must(s.lab.HealAll(s.ctx))
	s.streaming()
	for _, n := range s.others {
		s.lifted(n)
	}
	s.stage("healed: the refusals are lifted")
	return s.finish()
}

// Trap 36: the score outlives the stop of a recovery in place, and the role stays.
func restartClone(t *testing.T, c *cluster) {
	s := c.begin(t, 4*time.Minute, true)
	was := s.timeline(s.old)
	s.load.Mark("restart")
	s.run(s.others[1], "crm_resource", "--restart", "-r", lab.Clone)
	s.stage("crm_resource --restart has ended")
	s.newPrimary(was, s.old)
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.proven(s.old, was, s.old)
	r := s.finish()
	t.Logf("outage: %.0f ms", r.GapAfter("restart").Ms)
	for _, n := range s.others {
		if len(r.Writable[n]) > 0 {
			t.Errorf("%s was writable: %+v", n, r.Writable[n])
		}
	}
}

// planned is the node that Pacemaker's plan promotes, read from the environment of the demote that is paused on the old
// primary.
func (s *scenario) planned() string {
	s.t.Helper()
	procs, err := s.lab.Processes(s.old)
	s.must(err)
	for _, p := range procs {
		if !strings.HasSuffix(p.Args, " demote") {
			continue
		}
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.PID))
		s.must(err)
		for v := range strings.SplitSeq(string(env), "\x00") {
			if node, ok := strings.CutPrefix(v, "OCF_RESKEY_CRM_meta_notify_promote_uname="); ok && strings.TrimSpace(node) != "" {
				return strings.TrimSpace(node)
			}
		}
	}
	s.t.Fatalf("no demote with a node to be promoted runs on %s: %+v", s.old, procs)
	return ""
}

// refused waits until a node has the score -INFINITY and crm_mon -A says why.
func (s *scenario) refused(node string) {
	s.t.Helper()
	why := ""
	s.await(roleLimit, func() error {
		st, err := s.lab.View(s.ctx)
		if err != nil {
			return lab.NotYet("%v", err)
		}
		n := st.Node(node)
		why = n.Attributes[statusAttribute]
		if n.Score != "-INFINITY" || !strings.HasPrefix(why, "refused: ") {
			return lab.NotYet("%s has the score %q and the status %q, expected -INFINITY and why it was refused", node, n.Score, why)
		}
		return nil
	})
	s.stage("crm_mon -A: %s: %s", node, why)
}

// wayOut waits until a node that refused says what a person can do about it, in crm_mon -A and in pgbaton status.
func (s *scenario) wayOut(node string) {
	s.t.Helper()
	want := regexp.MustCompile(`the way out: let ` + s.old + ` come back \(crm_standby -D -N NODE .*pgbaton promote --accept-data-loss ` + node)
	s.await(roleLimit, func() error {
		st, err := s.lab.View(s.ctx)
		if err != nil {
			return lab.NotYet("%v", err)
		}
		if why := st.Node(node).Attributes[statusAttribute]; !want.MatchString(why) {
			return lab.NotYet("crm_mon -A says of %s %q, expected %q", node, why, want)
		}
		return nil
	})
}

// streamsFrom waits until a node streams from another.
func (s *scenario) streamsFrom(node, primary string) {
	s.t.Helper()
	s.await(healLimit, func() error {
		out, err := s.lab.SQL(s.ctx, primary, "SELECT state FROM pg_stat_replication WHERE application_name = '"+node+"'")
		if err != nil || out != "streaming" {
			return lab.NotYet("%s does not stream from %s: %q, %v", node, primary, out, err)
		}
		return nil
	})
}

// logged checks that the agent's log on a node has a line that matches.
func (s *scenario) logged(node, pattern string) {
	s.t.Helper()
	b, err := os.ReadFile(s.lab.Dir + "/nodes/" + node + "/log/pgbaton/" + lab.Resource + ".log")
	s.must(err)
	if !regexp.MustCompile(pattern).Match(b) {
		s.t.Errorf("the agent's log of %s has no line that matches %s", node, pattern)
	}
}
