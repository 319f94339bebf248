package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/lab/follow"
)

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
			if n := s.status().Node(node); n.Role != "Stopped" || n.Score != "-INFINITY" {
				s.t.Errorf("%s is %s and has the score %q, expected Stopped and -INFINITY", node, n.Role, n.Score)
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

// rewound waits for the end of a rewind.
func (s *scenario) rewound(node string) {
	s.t.Helper()
	l, err := s.logs.Await(s.within(90*time.Second), 0, "the rewind of "+node, func(l follow.Line) bool {
		return l.Node == node && l.Msg == "rewound and started"
	})
	s.must(err)
	s.stage("%s was rewound in %s ms", node, l.Attrs["ms"])
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
