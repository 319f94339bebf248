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
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/lab/follow"
	"github.com/pgbaton/pgbaton/internal/load"
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

const statusAttribute = "pgbaton-status-" + lab.Resource

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

// Ensure the commands for a clone are the right ones, for a twin: it has the same timeline number and the same switch
// point as the cluster's, and pg_rewind would find nothing to do. (Scenario 58, made by hand: pgbaton makes no twins.)
func TestTwinReturns(t *testing.T) {
	c := rejoinCluster(t)
	s := c.begin(t, 6*time.Minute, false)
	s.setRewind(rewindConninfo)
	twin := s.others[0]
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
	if g := r.GapAfter("promoted by hand"); g.Duration() > 3*time.Second {
		t.Errorf("nobody could write for %.0f ms: somebody else's promotion must disturb nobody", g.Ms)
	}
	s.run(s.old, "crm_resource", "--cleanup") // the monitor found a primary where none was expected
	s.finishRejoined(rogue)
	s.handoverTo(rogue)
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

// Ensure a rewind that is killed midway leaves a data directory that nobody starts, and goes on by itself. (Scenario 55.)
func TestRewindKilled(t *testing.T) {
	c := rejoinCluster(t)
	for _, tt := range []struct {
		name string
		kill func(s *scenario, node string)
	}{
		{"the programs", func(s *scenario, node string) { s.must(s.lab.Signal(syscall.SIGKILL, s.rewinders(node)...)) }},
		{"the node", func(s *scenario, node string) {
			s.powerOff(node)
			s.fenced = fencings(s.t, s.lab) // as it must be, for that
			s.must(s.lab.Power(s.ctx, node, true))
		}},
		{"by a stop", func(s *scenario, node string) {
			s.run(node, "crm_resource", "--ban", "-r", lab.Resource, "-N", node)
			s.must(s.lab.WaitIdle(s.within(healLimit)))
			if left := s.rewinders(node); len(left) > 0 {
				s.t.Errorf("the resource is stopped on %s, and processes of the rewind still run: %v", node, left)
			}
			s.run(node, "crm_resource", "--clear", "-r", lab.Resource, "-N", node)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := c.begin(t, 5*time.Minute, true)
			s.setRewind("")
			old := s.old
			primary, kept, lost := s.takeOverFrom(old)
			// So much that it takes a while, and a table that did not exist before.
			s.sql(primary, "DROP TABLE IF EXISTS filler")
			s.sql(primary, "CREATE TABLE filler AS SELECT n, repeat(md5(n::text), 60) AS f FROM generate_series(1, 60000) n")
			s.sql(primary, "CHECKPOINT")
			table := s.sql(primary, "SELECT pg_relation_filepath('filler')")
			s.must(s.lab.Power(s.ctx, old, true))
			s.keptOut(old, `^diverged: `)
			s.setRewind(rewindConninfo)
			s.stopInTheMiddle(old, table)
			if state := s.control(old); state != "shut down" {
				t.Fatalf("pg_control of %s says %q, expected %q: pg_rewind was already at its end", old, state, "shut down")
			}
			w := s.watchOut(old)
			since := s.logs.Count()
			s.stage("pg_rewind is in the middle")
			tt.kill(s, old)
			s.stage("killed")
			l, err := s.logs.Await(s.within(healLimit), since, "the rewind to go on", func(l follow.Line) bool {
				return l.Node == old && l.Msg == "rejoin" && strings.Contains(l.Attrs["doing"], "cut short")
			})
			s.must(err)
			s.stage("%s", l.Attrs["doing"])
			s.rewound(old)
			w.end()
			s.joined(old, kept, lost)
			for _, n := range []string{old, primary} {
				if got := s.sql(n, "SELECT count(*), sum(n), count(DISTINCT f) FROM filler"); got != "60000|1800030000|60000" {
					t.Errorf("the table that was half copied is %q on %s", got, n)
				}
			}
			// Every block of it, by its checksum.
			if out := s.run(old, "sh", "-c", "grep -c 'page verification failed' /var/log/postgresql/postgresql.log || true"); out != "0" {
				t.Errorf("pages with a wrong checksum on %s: %s", old, out)
			}
			s.sql(primary, "DROP TABLE filler")
			s.finishRejoined(old)
		})
	}
}

// Ensure a rewind that is not possible says why, and stays out; and goes on once it is. (Scenario 56.)
func TestRewindImpossible(t *testing.T) {
	c := rejoinCluster(t)
	s := c.begin(t, 6*time.Minute, true)
	s.setRewind("host=" + lab.VIP + " user=nobody password=sesame")
	old := s.old
	primary, kept, lost := s.takeOverFrom(old)
	w := s.watchOut(old)
	s.must(s.lab.Power(s.ctx, old, true))
	s.keptOut(old, `the rewind stopped: .*role "nobody" does not exist`)
	s.setRewind("host=10.77.0.99 user=replicator password=sesame connect_timeout=1")
	s.keptOut(old, `the rewind stopped: the primary cannot be reached by rewind_conninfo: .*10\.77\.0\.99`)
	s.setRewind("host=" + lab.VIP + " user=load dbname=load password=sesame")
	s.keptOut(old, `the rewind stopped: the user load may not read files on the primary: grant execute`)
	s.run(old, "mv", s.lab.Bindir+"/pg_rewind", s.lab.Bindir+"/pg_rewind.away")
	s.setRewind(rewindConninfo + " password=sesame")
	s.keptOut(old, `the rewind stopped: there is no pg_rewind in "`+s.lab.Bindir+`"`)
	s.run(old, "mv", s.lab.Bindir+"/pg_rewind.away", s.lab.Bindir+"/pg_rewind")
	s.sql(primary, "ALTER SYSTEM SET full_page_writes = off")
	s.sql(primary, "SELECT pg_reload_conf()")
	s.keptOut(old, `the rewind stopped: full_page_writes is off on the primary`)
	s.notRunning(old, time.Second)
	s.sql(primary, "ALTER SYSTEM RESET full_page_writes")
	s.sql(primary, "SELECT pg_reload_conf()")
	s.rewound(old)
	w.end()
	s.joined(old, kept, lost)
	// The password is nowhere but in the log of Pacemaker itself, which says every change of its configuration.
	for _, n := range s.lab.Names {
		if out := s.run(n, "sh", "-c", "grep -rls sesame /var/log/pgbaton /var/lib/pgbaton /run/pgbaton; crm_mon -1A | grep sesame; true"); out != "" {
			t.Errorf("the password of rewind_conninfo stands on %s in: %s", n, out)
		}
	}
	s.finishRejoined(old)
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

// rewindConninfo reaches the primary as the standbys do, by its virtual IP and with no more rights than a rewind needs.
const rewindConninfo = "host=" + lab.VIP + " user=replicator"

// setRewind sets the parameter rewind_conninfo of the resource, and takes it away again at the end.
func (s *scenario) setRewind(conninfo string) {
	s.t.Helper()
	by := s.status().Asked
	if conninfo == "" {
		s.run(by, "crm_resource", "-r", lab.Resource, "-d", "rewind_conninfo")
		return
	}
	s.run(by, "crm_resource", "-r", lab.Resource, "-p", "rewind_conninfo", "-v", conninfo)
	s.stage("rewind_conninfo is set")
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
		st, err := s.lab.Status(s.ctx)
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

// rewound waits for the end of a rewind.
func (s *scenario) rewound(node string) {
	s.t.Helper()
	l, err := s.logs.Await(s.within(90*time.Second), 0, "the rewind of "+node, func(l follow.Line) bool {
		return l.Node == node && l.Msg == "rewound and started"
	})
	s.must(err)
	s.stage("%s was rewound in %s ms", node, l.Attrs["ms"])
}

// mayBePromoted waits until a node is an ordinary standby again.
func (s *scenario) mayBePromoted(node string) {
	s.t.Helper()
	s.await(healLimit, func() error {
		st, err := s.lab.Status(s.ctx)
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

func firstLineOf(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
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

// rewinders are the processes of a rewind on a node.
func (s *scenario) rewinders(node string) (pids []int) {
	s.t.Helper()
	procs, err := s.lab.Processes(node)
	s.must(err)
	for _, p := range procs {
		if p.State != "Z" && (p.Name == "pg_rewind" || p.Name == "postgresql" && strings.Contains(p.Args, "rejoin")) {
			pids = append(pids, p.PID)
		}
	}
	return pids
}

// control is what pg_control of a node says of its server. pg_rewind writes it last.
func (s *scenario) control(node string) string {
	s.t.Helper()
	out := s.run(node, filepath.Join(s.lab.Bindir, "pg_controldata"), s.lab.DataDir())
	for line := range strings.Lines(out) {
		if state, ok := strings.CutPrefix(line, "Database cluster state:"); ok {
			return strings.TrimSpace(state)
		}
	}
	s.t.Fatalf("pg_controldata on %s: %s", node, out)
	return ""
}

// stopInTheMiddle stops pg_rewind on a node when it has copied part of a table that only the primary has.
func (s *scenario) stopInTheMiddle(node, table string) {
	s.t.Helper()
	path := filepath.Join(s.lab.Dir, "nodes", node, "data", table)
	var pid int
	s.must(lab.Poll(s.within(healLimit), 2*time.Millisecond, func() error {
		procs, err := s.lab.Processes(node)
		s.must(err)
		for _, p := range procs {
			if p.Name == "pg_rewind" && p.State != "Z" && strings.Contains(p.Args, "--source-server") && !strings.Contains(p.Args, "--dry-run") {
				pid = p.PID
				return nil
			}
		}
		return lab.NotYet("pg_rewind does not run on %s", node)
	}))
	// A little further each time.
	for end := time.Now().Add(healLimit); time.Now().Before(end); {
		s.must(s.lab.Signal(syscall.SIGSTOP, pid))
		if info, err := os.Stat(path); err == nil && info.Size() > 1<<20 {
			s.stage("pg_rewind has copied %d MB of the new table", info.Size()>>20)
			return
		}
		s.must(s.lab.Signal(syscall.SIGCONT, pid))
		time.Sleep(2 * time.Millisecond)
	}
	s.t.Fatalf("pg_rewind on %s does not copy %s", node, path)
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
			st, err := s.lab.Status(ctx)
			if err != nil {
				continue
			}
			over := slices.ContainsFunc(s.logs.From(began), func(l follow.Line) bool { return l.Node == node && l.Msg == "rewound and started" })
			n := st.Node(node)
			if over || !n.Power || (n.Role != "Unpromoted" && n.Role != "Promoted") {
				continue
			}
			w.looked++
			if n.Score != "-INFINITY" || n.Attributes[statusAttribute] == "" {
				w.bad = append(w.bad, fmt.Sprintf("%s: %s, score %q, says %q", time.Now().Format("15:04:05.000"), n.Role, n.Score, n.Attributes[statusAttribute]))
			}
		}
	})
	return w
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
