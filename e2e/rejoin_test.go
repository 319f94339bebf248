package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/lab/follow"
)

// rejoinCluster is a lab in which a node that lost its power stays off until the test switches it on, and in which the
// first checkpoint after a promotion does not take minutes: a rewind waits for it.
func rejoinCluster(t *testing.T) *cluster {
	o := ordinary()
	o.AutoReturn = time.Hour
	o.Conf["checkpoint_timeout"] = "30s"
	command := built(t, buildCommand)
	o.Files = map[string]string{"/usr/bin/pgbaton": command}
	c := testCluster(t, "rejoin", o)
	c.useFaults(t, true)
	return c
}

// Ensure an old primary that returns with WAL of its own is recognised before it serves anybody, stays out and says what
// to do; and that what it says works: by the first command it is rewound and joins, with its own configuration, and what
// it had is kept. (Scenario 53.)
//
// Trap 13: an old primary that has diverged is recognised before it serves anybody.
func TestOldPrimaryReturns(t *testing.T) {
	c := rejoinCluster(t)
	s := c.begin(t, 5*time.Minute, true)
	s.setRewind("")
	old := s.old
	// Something that is this node's alone: another node's would replace it.
	s.run(old, "sh", "-c", "echo '# only here' >> "+s.lab.DataDir()+"/postgresql.conf; echo secret > "+s.lab.DataDir()+"/server.key; chmod 600 "+s.lab.DataDir()+"/server.key; chown postgres: "+s.lab.DataDir()+"/server.key")
	primary, kept, lost := s.takeOverFrom(old)

	w := s.watchOut(old)
	s.must(s.lab.Power(s.ctx, old, true))
	text := s.keptOut(old, `^diverged: its WAL of timeline \d+ ends at \S+, but \S+ started timeline \d+ at \S+; to have it rewound: `)
	s.notRunning(old, 8*time.Second) // several monitors
	s.noFailedActions(old)
	commands := commandsIn(text)
	if len(commands) < 5 {
		t.Fatalf("expected a command for the rewind and those for a clone in %q", text)
	}
	s.stage("does: %s", commands[0])
	s.run(primary, "sh", "-c", commands[0])
	s.rewound(old)
	w.end()
	s.joined(old, kept, lost)
	conf := s.run(old, "sh", "-c", "tail -n 1 "+s.lab.DataDir()+"/postgresql.conf; cat "+s.lab.DataDir()+"/server.key; stat -c %U:%a "+s.lab.DataDir()+"/server.key")
	if conf != "# only here\nsecret\npostgres:600" {
		t.Errorf("the node's own files after the rewind: %q", conf)
	}
	if s.sql(old, "SHOW cluster_name") != old {
		t.Errorf("%s runs with another node's configuration", old)
	}
	// What was lost is still there, and the command shows it.
	dump := s.run(old, "sh", "-c", "sed -n 's/^    //p' /var/lib/pgbaton/"+lab.Resource+"/lost-*/README | sh 2>/dev/null || true")
	if !strings.Contains(dump, "COMMIT") {
		t.Errorf("the transactions that were lost, by the command in README: %q", dump)
	}
	s.run(old, "rm", s.lab.DataDir()+"/server.key")
	s.finishRejoined(old)
	s.handoverTo(old)
}

// Ensure pgbaton rejoin says on the node itself what it has that the cluster has not, changes nothing unless it is told to,
// says why a rewind stopped, and rewinds although rewind_conninfo is not set; and that it knows who needs nothing.
func TestRejoinCommand(t *testing.T) {
	c := rejoinCluster(t)
	s := c.begin(t, 6*time.Minute, true)
	s.setRewind("")
	old := s.old
	code, text := s.pgbaton(old, "rejoin", "--yes")
	s.expect(code, 0, text, old+" needs nothing: it is the primary")
	code, text = s.pgbaton(s.others[0], "rejoin", "--yes")
	s.expect(code, 0, text, s.others[0]+" needs nothing: it is a standby and streams")
	_, kept, lost := s.takeOverFrom(old)
	w := s.watchOut(old)
	s.must(s.lab.Power(s.ctx, old, true))
	s.keptOut(old, `^diverged: `)

	for _, args := range [][]string{{"rejoin", "--dry-run"}, {"rejoin"}} {
		code, text = s.pgbaton(old, args...)
		want := 0
		if len(args) == 1 {
			want = 3 // nobody is there to answer
		}
		s.expect(code, want, text, "is kept out", "bytes of WAL, from ", "committed transaction", "What will be done")
	}
	s.stage("%s", text)
	s.notRunning(old, 3*time.Second)
	dump := regexp.MustCompile(`(?m)\$ (.*pg_waldump.*)$`).FindStringSubmatch(text)
	if dump == nil || !strings.Contains(s.run(old, "sh", "-c", dump[1]+" 2>/dev/null || true"), "COMMIT") {
		t.Errorf("the command that shows the transactions shows none, or is missing: %q", dump)
	}
	code, text = s.pgbaton(old, "rejoin", "--yes", "--conninfo", "host="+lab.VIP+" user=nobody password=sesame")
	s.expect(code, 1, text, "the rewind stopped: ", `role "nobody" does not exist`)
	if strings.Contains(text, "sesame") {
		t.Errorf("shows the password: %s", text)
	}
	s.notRunning(old, time.Second)

	code, text = s.pgbaton(old, "rejoin", "--yes")
	s.expect(code, 0, text, "pg_rewind is at work", old+" streams", "pg_waldump -p /var/lib/pgbaton/"+lab.Resource+"/lost-")
	s.stage("%s", text)
	w.end()
	s.joined(old, kept, lost)
	code, text = s.pgbaton(old, "rejoin", "--yes")
	s.expect(code, 0, text, old+" needs nothing: it is a standby and streams")
	code, text = s.pgbaton(old, "history", "1")
	s.expect(code, 0, text, "return of "+old+": rewound")
	s.finishRejoined(old)
	s.handoverTo(old)
}

// Ensure a node is recognised, and rewound, that has lost the history file of its own timeline. (Scenario 57.)
func TestHistoryMissing(t *testing.T) {
	c := rejoinCluster(t)
	s := c.begin(t, 5*time.Minute, true)
	s.setRewind(rewindConninfo)
	old, was := s.old, s.timeline(s.old)
	_, kept, lost := s.takeOverFrom(old)
	s.must(os.Remove(filepath.Join(s.walDir(old), fmt.Sprintf("%08X.history", was))))
	w := s.watchOut(old)
	s.must(s.lab.Power(s.ctx, old, true))
	s.keptOut(old, `^diverged: its WAL of timeline \d+ ends at`)
	s.rewound(old)
	w.end()
	s.joined(old, kept, lost)
	s.finishRejoined(old)
}

// takeOverFrom gives a primary a row that nobody else has, takes its power and waits until another node is primary, which
// gets one that is to be kept.
func (s *scenario) takeOverFrom(old string) (primary, kept, lost string) {
	s.t.Helper()
	kept, lost = s.markers()
	was := s.timeline(old)
	s.must(s.lab.Cut(s.ctx, lab.Link{From: old, To: lab.Client}))
	s.cutStandby(s.others...)
	s.mark(old, lost)
	s.must(s.lab.Power(s.ctx, old, false))
	s.must(s.lab.HealAll(s.ctx))
	primary = s.promotedBut(old)
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s had a row of its own on timeline %d and is off, %s is primary on timeline %d", old, was, primary, s.timeline(primary))
	s.fenced = fencings(s.t, s.lab)
	s.mark(primary, kept)
	return primary, kept, lost
}

// keptOut waits until a node counts as started, has -INFINITY and crm_mon -A says what the pattern says, and returns that.
func (s *scenario) keptOut(node, pattern string) string {
	s.t.Helper()
	re := regexp.MustCompile(pattern)
	var text string
	s.await(healLimit, func() error {
		st, err := s.lab.View(s.ctx)
		if err != nil {
			return lab.NotYet("%v", err)
		}
		n := st.Node(node)
		text = n.Attributes[statusAttribute]
		if n.Role != "Unpromoted" || n.Score != "-INFINITY" || !re.MatchString(text) {
			return lab.NotYet("%s is %s and has the score %q, and crm_mon -A says of it %q; expected Unpromoted, -INFINITY and %s", node, n.Role, n.Score, text, pattern)
		}
		return nil
	})
	s.stage("crm_mon -A says of %s: %s", node, text)
	return text
}

// notRunning looks for a while whether a node serves anybody: it must not. To Pacemaker it is started.
func (s *scenario) notRunning(node string, d time.Duration) {
	s.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if pid, err := s.lab.Postmaster(node); err == nil && pid != 0 {
			s.t.Fatalf("a server runs on %s (pid %d), which has diverged", node, pid)
		}
		if role := s.status().Node(node).Role; role != "Unpromoted" {
			s.t.Fatalf("%s is %q for Pacemaker, expected Unpromoted", node, role)
		}
	}
}

// mayBePromoted waits until a node is an ordinary standby again.
func (s *scenario) mayBePromoted(node string) {
	s.t.Helper()
	s.await(healLimit, func() error {
		st, err := s.lab.View(s.ctx)
		if err != nil {
			return lab.NotYet("%v", err)
		}
		if n := st.Node(node); scoreOf(n) != 100 || n.Attributes[statusAttribute] != "" {
			return lab.NotYet("%s has the score %q, and crm_mon -A says of it %q; expected 100 and nothing", node, n.Score, n.Attributes[statusAttribute])
		}
		return nil
	})
	s.stage("%s streams, and may be promoted", node)
}

// joined waits until a node is an ordinary standby again, and checks that it has the row of the cluster and not its own.
func (s *scenario) joined(node, kept, lost string) {
	s.t.Helper()
	s.mayBePromoted(node)
	s.streaming()
	if got := s.marks(node, kept, lost); got != kept {
		s.t.Errorf("%s has the marks %q, expected %q", node, got, kept)
	}
}

// finishRejoined is finish after a node was kept out, which its monitor reported in a way that Pacemaker lists.
func (s *scenario) finishRejoined(node string) {
	s.t.Helper()
	s.streaming()
	if s.load != nil {
		s.stopLoad()
	}
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	s.noFailedActions(node)
	if now := fencings(s.t, s.lab); !slices.Equal(now, s.fenced) {
		s.t.Errorf("fenced: %q, before: %q", now, s.fenced)
	}
	s.sameRows()
	s.run(s.status().Asked, "crm_resource", "--cleanup")
	s.stage("all nodes stream and have the same rows")
}

// handoverTo checks that a node that came back is as good as any other.
func (s *scenario) handoverTo(node string) {
	s.t.Helper()
	from := s.promoted("")
	was := s.timeline(from)
	// A parameter that was changed while it ran has taken the place of its promotion in Pacemaker's history: a plan that is
	// dropped just now, for a cleanup that is still under way, would make Pacemaker forget who is promoted.
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	s.move(node)
	s.newPrimary(was, node)
	s.proven(from, was, node)
	s.streaming()
	s.highest(node)
	s.clear()
	s.stage("%s took the role, with proof", node)
}

// commandsIn are the commands in a status, each behind a dollar sign.
func commandsIn(text string) []string {
	var list []string
	for _, part := range strings.Split(text, " $ ")[1:] {
		list = append(list, strings.TrimSpace(part))
	}
	return list
}

// outWatch looks ten times a second what crm_mon says of a node that has diverged.
type outWatch struct {
	s      *scenario
	cancel context.CancelFunc
	done   sync.WaitGroup
	looked int
	bad    []string
}

// watchOut begins to look: whenever the instance counts as started it must have its mark and must not be one that could be
// promoted. A node without power has neither, and nothing of it runs.
func (s *scenario) watchOut(node string) *outWatch {
	ctx, cancel := context.WithCancel(s.ctx)
	w := &outWatch{s: s, cancel: cancel}
	began := s.logs.Count()
	w.done.Go(func() {
		for ; ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
			st, err := s.lab.View(ctx)
			if err != nil {
				continue
			}
			over := slices.ContainsFunc(s.logs.From(began), func(l follow.Line) bool { return l.Node == node && l.Msg == "rewound and started" })
			n := st.Node(node)
			if over || !shownStarted(n) {
				continue
			}
			w.looked++
			if bad := unmarked(n); bad != "" {
				w.bad = append(w.bad, bad)
			}
		}
	})
	return w
}

// shownStarted tells whether crm_mon shows a node's instance as started. A node without power has none.
func shownStarted(n lab.NodeStatus) bool {
	return n.Power && (n.Role == "Unpromoted" || n.Role == "Promoted")
}

// unmarked says what is wrong with a node if it has diverged: it is started, and has no mark, or a score that could be promoted.
func unmarked(n lab.NodeStatus) string {
	if !shownStarted(n) || n.Score == "-INFINITY" && n.Attributes[statusAttribute] != "" {
		return ""
	}
	return fmt.Sprintf("%s: %s, score %q, says %q", time.Now().Format("15:04:05.000"), n.Role, n.Score, n.Attributes[statusAttribute])
}

func (w *outWatch) end() {
	w.s.t.Helper()
	w.cancel()
	w.done.Wait()
	if w.looked == 0 {
		w.s.t.Error("crm_mon never showed the node as started while it was kept out")
	}
	for _, b := range w.bad {
		w.s.t.Errorf("a node that has diverged, without its mark or with a score that could be promoted: %s", b)
	}
	w.s.stage("crm_mon was read %d times while the node was kept out", w.looked)
}
