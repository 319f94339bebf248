package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/lab/follow"
)

// trapped is a lab with maxlag, so that a takeover says what it knows to be lost, and with the defaults of PostgreSQL that
// others have come to grief over. On its nodes the account postgres is in a group more than on this machine.
func trapped(t *testing.T) lab.Options {
	t.Helper()
	host, err := os.ReadFile("/etc/group")
	if err != nil {
		t.Fatal(err)
	}
	groups := filepath.Join(t.TempDir(), "group")
	if err := os.WriteFile(groups, fmt.Appendf(host, "pgbaton-e2e:x:%s:postgres\n", nodesGroup), 0o644); err != nil {
		t.Fatal(err)
	}
	o := ordinary()
	o.Params = map[string]string{"maxlag": strconv.Itoa(1 << 30)}
	o.Files = map[string]string{"/etc/group": groups}
	return o
}

// nodesGroup is the number of that group.
const nodesGroup = "64998"

// Ensure the cluster does not fall into the traps that no other test is about. The numbers are those of testdata/traps.txt.
func TestTraps_Cluster(t *testing.T) {
	tell(t, "traps", trapped(t), 4*time.Minute, []story{
		{"27 groups of the server's account", accountsGroups},
		{"22 wal_retrieve_retry_interval", retryInterval},
		{"41 dirty buffers", dirtyBuffers},
		{"14 a standby does not follow", notFollowing},
		{"6 failure right after a change of roles", failureAfterChange},
		{"23 a wait for a synchronous standby is cancelled", cancelledWait},
	})
}

// Trap 27: the server runs with the supplementary groups of its account, by which it may read a certificate's key.
func accountsGroups(s *scenario) {
	for _, n := range s.lab.Names {
		want := strings.Fields(s.run(n, "id", "-G", "postgres"))
		slices.Sort(want)
		if !slices.Contains(want, nodesGroup) {
			s.t.Fatalf("the account postgres of %s is in the groups %v, expected %s among them", n, want, nodesGroup)
		}
		pid, err := s.lab.Postmaster(n)
		s.must(err)
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		s.must(err)
		var got []string
		for line := range strings.Lines(string(b)) {
			if list, ok := strings.CutPrefix(line, "Groups:"); ok {
				got = strings.Fields(list)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			s.t.Errorf("the server of %s runs with the groups %v, expected %v", n, got, want)
		}
	}
	s.finish()
}

// Trap 22: with wal_retrieve_retry_interval at its 5 s a promotion waits for nothing, although it comes just when the WAL
// receiver has lost its primary.
func retryInterval(s *scenario) {
	for range 4 {
		was, to, began := s.timeline(s.old), s.others[0], time.Now()
		// Its first monitor takes back what a standby is started with.
		s.await(healLimit, func() error {
			if out, err := s.lab.SQL(s.ctx, to, "SHOW wal_retrieve_retry_interval"); err != nil || out != "5s" {
				return lab.NotYet("wal_retrieve_retry_interval is %s on %s, expected the default (%v)", out, to, err)
			}
			return nil
		})
		s.move(to)
		s.newPrimary(was, to)
		s.must(s.load.AwaitAck(s.within(roleLimit)))
		ms, err := strconv.Atoi(s.promotion(to, began).Details["promotion_ms"])
		s.must(err)
		s.t.Logf("PostgreSQL on %s took %d ms to become writable", to, ms)
		if ms > 2500 {
			s.t.Errorf("PostgreSQL on %s took %d ms to become writable: it waited for wal_retrieve_retry_interval", to, ms)
		}
		s.streaming()
		s.highest(to)
		s.clear()
		for _, n := range s.lab.Names {
			s.await(healLimit, func() error {
				if out := s.sql(n, "SHOW wal_retrieve_retry_interval"); out != "5s" {
					return lab.NotYet("%s still has wal_retrieve_retry_interval at %s", n, out)
				}
				return nil
			})
		}
		s.others = append(s.others[1:], s.old)
		s.old = to
	}
	s.finish()
}

// Trap 41: dirty buffers are written while clients still write, not when the primary shuts down.
func dirtyBuffers(s *scenario) {
	was, to := s.timeline(s.old), s.others[0]
	s.sql(s.old, "CREATE TABLE dirty AS SELECT n, repeat(md5(n::text), 20) AS f FROM generate_series(1, 120000) n")
	s.sql(s.old, "CHECKPOINT")
	s.sql(s.old, "UPDATE dirty SET n = n + 1")
	buffers := s.sql(s.old, "SELECT setting::int * 8 / 1024 FROM pg_settings WHERE name = 'shared_buffers'")
	s.await(healLimit, func() error {
		if out := s.sql(s.old, "SELECT bool_and(replay_lsn > pg_current_wal_lsn() - 4000000) FROM pg_stat_replication"); out != "t" {
			return lab.NotYet("the standbys have not replayed all that yet")
		}
		return nil
	})
	s.stage("shared buffers (%s MB) are full of what is not on disk", buffers)
	s.load.Mark("move")
	s.move(to)
	s.newPrimary(was, to)
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.proven(s.old, was, to)
	line := func(msg string) follow.Line {
		l, err := s.logs.Await(s.within(roleLimit), 0, s.old+": "+msg, func(l follow.Line) bool { return l.Node == s.old && l.Msg == msg })
		s.must(err)
		return l
	}
	asked, told, ended := line("prepared the handover"), line("shutting the primary down"), line("the primary has ended")
	s.t.Logf("%s ms for the checkpoint before", asked.Attrs["checkpoint_ms"])
	if told.Time.Before(asked.Time) {
		s.t.Fatalf("%s prepared the handover at %s, after it had begun to shut down at %s", s.old, asked.Time, told.Time)
	}
	took := ended.Time.Sub(told.Time)
	s.t.Logf("%d ms for the shutdown", took.Milliseconds())
	if took > 2*time.Second {
		s.t.Errorf("the shutdown of %s took %s: it had buffers to write", s.old, took)
	}
	s.streaming()
	s.highest(to)
	s.clear()
	s.sql(to, "DROP TABLE dirty")
	s.outage(s.finish(), "move", here(5*time.Second))
}

// Trap 14: a standby that does not follow has a lower score than one that does, and crm_mon -A says why.
func notFollowing(s *scenario) {
	node := s.others[0]
	s.sql(s.old, "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE application_name = '"+node+"'")
	s.cutStandby(node)
	shown := func() string { return s.status().Node(node).Attributes[statusAttribute] }
	s.await(healLimit, func() error {
		if text := shown(); !strings.HasPrefix(text, "does not follow: ") {
			return lab.NotYet("crm_mon -A says of %s, which is cut off: %q", node, text)
		}
		return nil
	})
	st := s.status()
	if mine, other := scoreOf(st.Node(node)), scoreOf(st.Node(s.others[1])); mine >= other {
		s.t.Errorf("%s, which is cut off, has the score %d, %s has %d", node, mine, s.others[1], other)
	}
	s.stage("crm_mon -A says of %s: %s", node, shown())
	s.must(s.lab.HealAll(s.ctx))
	s.streaming()
	s.await(healLimit, func() error {
		if text := shown(); text != "" {
			return lab.NotYet("%s streams again, and crm_mon -A says of it: %q", node, text)
		}
		return nil
	})
	s.finish()
}

// Trap 6: every node keeps its own score, so that a failure before the new primary's first monitor finds somebody to
// promote.
func failureAfterChange(s *scenario) {
	was, to := s.timeline(s.old), s.others[0]
	s.move(to)
	s.await(roleLimit, func() error {
		out, err := s.lab.SQL(s.ctx, to, "SELECT NOT pg_is_in_recovery()")
		if err != nil || out != "t" {
			return lab.NotYet("%s is not primary yet: %q (%v)", to, out, err)
		}
		return nil
	})
	mid := s.timeline(to)
	s.load.Mark("power off")
	s.must(s.lab.Power(s.ctx, to, false))
	s.stage("%s was primary on timeline %d, from %d, and lost its power", to, mid, was)
	now := s.newPrimary(mid, "")
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s is primary", now)
	s.onlyFenced(to)
	s.clear()
	s.returned(to, now)
	// What it did not promise it may have lost; nothing else.
	r := s.endLoad()
	from := s.fork(to, mid, was)
	if b, err := os.ReadFile(filepath.Join(s.walDir(now), fmt.Sprintf("%08X.history", s.timeline(now)))); err != nil {
		s.t.Error(err)
	} else if regexp.MustCompile(fmt.Sprintf(`(?m)^%d\t`, mid)).Match(b) {
		from = s.fork(now, s.timeline(now), mid)
	} // otherwise nobody had heard of that timeline, and everything on it is gone
	if only := s.commitsAfter(to, mid, from); r.CheckError != "" || r.LostWrites() > only {
		s.t.Errorf("%d writes are lost, %d were committed in WAL that %s did not have (%s)", r.LostWrites(), only, now, r.CheckError)
	}
	for _, o := range r.Overlaps {
		s.t.Errorf("two writable nodes: %+v", o)
	}
	s.outage(r, "power off", here(20*time.Second))
	s.primaryIs(now)
}

// Trap 23: a client that cancels its wait for the synchronous standby is told that its transaction stands, on this node;
// after a failover it does not. PostgreSQL can do no better, and neither can a cluster manager but say what is lost.
func cancelledWait(s *scenario) {
	was, began := s.timeline(s.old), time.Now()
	s.sql(s.old, "CREATE TABLE waits (what text)")
	s.sql(s.old, "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'")
	s.sql(s.old, "SELECT pg_reload_conf()")
	s.await(healLimit, func() error {
		if out := s.sql(s.old, "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'"); out == "0" {
			return lab.NotYet("no standby is synchronous")
		}
		return nil
	})
	s.cutStandby(s.others...)
	cmd, err := s.lab.CommandAs(s.ctx, s.old, "postgres", s.lab.Bindir+"/psql", "-X", "-h", "/var/run/postgresql", "-d", "postgres", "-c", "INSERT INTO waits VALUES ('cancelled')")
	s.must(err)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	s.must(cmd.Start())
	s.await(healLimit, func() error {
		if out := s.sql(s.old, "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE 'INSERT INTO waits%'"); out == "0" {
			return lab.NotYet("the INSERT does not wait for a standby")
		}
		return nil
	})
	s.must(cmd.Wait())
	if !strings.Contains(said.String(), "canceling wait for synchronous replication") || !strings.Contains(said.String(), "INSERT 0 1") {
		s.t.Fatalf("psql said %q, expected a warning and that the row is inserted", said.String())
	}
	if out := s.sql(s.old, "SELECT what FROM waits"); out != "cancelled" {
		s.t.Fatalf("the row is not there on %s: %q", s.old, out)
	}
	s.stage("psql was told: %s", strings.ReplaceAll(strings.TrimSpace(said.String()), "\n", " "))
	time.Sleep(10 * time.Second) // the primary's monitor says how far it is, and then the standbys' hear it
	s.load.Mark("power off")
	s.must(s.lab.Power(s.ctx, s.old, false))
	now := s.newPrimary(was, "")
	s.stage("%s is primary", now)
	if out := s.sql(now, "SELECT count(*) FROM waits"); out != "0" {
		s.t.Errorf("%s has %s rows that no standby had confirmed", now, out)
	}
	fork := s.fork(now, s.timeline(now), was)
	end := s.lastRecord(s.old, was, fork).end
	lost, err := strconv.ParseUint(s.promotion(now, began).Details["missing_bytes"], 10, 64)
	s.must(err)
	if lost == 0 || fork+lost > end {
		s.t.Errorf("%s says that %d bytes are lost; its timeline forks at %s, the WAL of %s ends at %s", now, lost, formatLSN(fork), s.old, formatLSN(end))
	}
	s.stage("the row is gone, and %s says that at least %d bytes of WAL are lost", now, lost)
	s.must(s.lab.HealAll(s.ctx))
	s.sql(now, "DROP TABLE waits")
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	r := s.stopLoad()
	s.outage(r, "power off", 0)
	s.returned(s.old, now)
	// Its setting must not come back with it.
	s.must(os.WriteFile(s.lab.Dir+"/nodes/"+s.old+"/data/postgresql.auto.conf", nil, 0o600))
}
