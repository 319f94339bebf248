package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// Ensure a standby whose replay is held up by a query, for as long as that takes, takes the role all the same: in a handover, and
// with much to replay when the primary is lost.
func TestReplayLag(t *testing.T) {
	tell(t, "failure", failing(), 4*time.Minute, []story{
		{"handover, a query holds up the replay", func(s *scenario) {
			target := s.others[0]
			was := s.timeline(s.old)
			defer s.holdReplay(0, target)()
			s.load.Mark("move")
			s.move(target)
			s.promoted(target)
			s.stage("%s is primary", target)
			s.streaming()
			s.proven(s.old, was, target)
			s.clear()
			s.outage(s.finish(), "move", 0)
		}},
		{"takeover, a query holds up the replay of much", func(s *scenario) {
			was := s.timeline(s.old)
			defer s.holdReplay(400, s.others...)()
			s.load.Mark("power off")
			s.powerCut(s.old)
			now := s.newPrimary(was, "")
			s.stage("%s is primary", now)
			s.wasFenced()
			s.returned(s.old, now)
			s.takenOver(now, was, "power off", 0)
		}},
	})
}

// holdReplay has a query on each of these standbys hold up its replay, behind which lie so many megabytes of WAL. The function that
// it returns takes the settings back, and ends the queries: that of a standby which nobody wanted to promote still runs.
func (s *scenario) holdReplay(megabytes int, nodes ...string) func() {
	s.t.Helper()
	for _, n := range s.lab.Names {
		s.sql(n, "ALTER SYSTEM SET max_standby_streaming_delay = -1")
		s.sql(n, "SELECT pg_reload_conf()")
	}
	s.sql(s.old, "CREATE TABLE held AS SELECT n FROM generate_series(1, 1000) n")
	s.streaming()
	for _, n := range nodes {
		go s.lab.SQL(s.ctx, n, "SELECT pg_sleep(600)")
		s.await(healLimit, func() error {
			if out, err := s.lab.SQL(s.ctx, n, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND backend_xmin IS NOT NULL"); err != nil || out != "1" {
				return lab.NotYet("%s: %s, %v", n, out, err)
			}
			return nil
		})
	}
	s.sql(s.old, "DELETE FROM held")
	s.sql(s.old, "VACUUM held")
	if megabytes > 0 {
		s.sql(s.old, "SELECT count(pg_logical_emit_message(false, 'test', repeat('x', 1000000))) FROM generate_series(1, "+fmt.Sprint(megabytes)+")")
	}
	for _, n := range nodes {
		s.await(healLimit, func() error {
			out, err := s.lab.SQL(s.ctx, n, "SELECT pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) > "+fmt.Sprint(megabytes*900000))
			if err != nil || out != "t" {
				return lab.NotYet("%s: %s, %v", n, out, err)
			}
			return nil
		})
	}
	s.stage("the replay of %v is held up", nodes)
	return func() {
		for _, n := range s.lab.Names { // one that is kept out has no server, and is made anew
			s.lab.SQL(s.ctx, n, "ALTER SYSTEM RESET max_standby_streaming_delay")
			s.lab.SQL(s.ctx, n, "SELECT pg_reload_conf()")
			s.lab.SQL(s.ctx, n, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'")
		}
		s.sql(s.status().Promoted()[0], "DROP TABLE held")
	}
}
