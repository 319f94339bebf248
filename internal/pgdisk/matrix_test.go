package pgdisk

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestServers holds what this package reads against what the server itself says, for
// every version: SQL functions, the log of its recovery, and pg_walinspect where there
// is one.
func TestServers(t *testing.T) {
	for _, major := range majors {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			s := newServer(t, major, 1)
			s.start()
			q := s.session()
			checkControl(t, q)
			keepWAL(q, 256)
			begin := s.control().CheckPoint
			awkward(q)
			end := q.flushed()
			if major >= 15 {
				compareInspect(t, q, begin, end)
			}
			keepWAL(q, 0)
			checkCrash(t, s, q)
			checkPageEnds(t, s)
			checkShutdown(t, s)
			checkTimelines(t, s)
		})
	}
}

// keepWAL says how many megabytes of WAL a checkpoint leaves alone, instead of recycling.
func keepWAL(q *session, mb int) {
	q.s.t.Helper()
	q.exec(fmt.Sprintf("ALTER SYSTEM SET wal_keep_size = '%dMB'", mb), "SELECT pg_reload_conf()")
}

// checkControl: pg_control by SQL.
func checkControl(t *testing.T, q *session) {
	t.Helper()
	q.exec("CHECKPOINT")
	c := q.s.control()
	got := []string{
		fmt.Sprint(c.ControlVersion), fmt.Sprint(c.CatalogVersion), fmt.Sprint(c.SystemIdentifier),
		c.CheckPoint.String(), c.Redo.String(), fmt.Sprint(c.CheckPointTimeline), fmt.Sprint(c.CheckPointPrevTimeline), fmt.Sprint(c.CheckPointTime.Unix()),
		c.MinRecoveryPoint.String(), fmt.Sprint(c.MinRecoveryTimeline), c.BackupStart.String(), c.BackupEnd.String(), strconv.FormatBool(c.BackupEndRequired)[:1],
		fmt.Sprint(c.BlockSize), fmt.Sprint(c.WALBlockSize), fmt.Sprint(c.SegmentSize), strconv.FormatBool(c.DataChecksums),
	}
	want := q.rows(`SELECT pg_control_version, catalog_version_no, system_identifier,
		checkpoint_lsn, redo_lsn, timeline_id, prev_timeline_id, extract(epoch FROM checkpoint_time)::bigint,
		min_recovery_end_lsn, min_recovery_end_timeline, backup_start_lsn, backup_end_lsn, end_of_backup_record_required,
		database_block_size, wal_block_size, bytes_per_wal_segment, (data_page_checksum_version <> 0)::text
		FROM pg_control_system(), pg_control_checkpoint(), pg_control_recovery(), pg_control_init()`)[0]
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("pg_control, column %d of the query: got %s, want %s", i+1, got[i], want[i])
		}
	}
	if !c.WALLogHints { // no SQL function shows it
		t.Errorf("wal_log_hints is on, pg_control says it is off")
	}
	if c.Major != q.s.major || c.State != InProduction {
		t.Errorf("got version %d %q, want %d in production", c.Major, c.State, q.s.major)
	}
}

// awkward writes WAL of many kinds: full-page images, records longer than segments,
// segment switches, prepared transactions.
func awkward(q *session) {
	q.s.t.Helper()
	q.exec(
		"CREATE TABLE IF NOT EXISTS words (id serial PRIMARY KEY, word text, numbers int[])",
		"CREATE INDEX IF NOT EXISTS words_gin ON words USING gin (numbers)",
		"INSERT INTO words (word, numbers) SELECT repeat(md5(i::text), 1 + i % 20), ARRAY[i, i % 7] FROM generate_series(1, 3000) i",
		"CHECKPOINT", // full-page images from here on
		"UPDATE words SET word = word || 'x' WHERE id % 3 = 0",
		"SELECT pg_switch_wal()",
		"DELETE FROM words WHERE id % 5 = 0",
		"VACUUM words",
		"SELECT pg_logical_emit_message(false, 'long', repeat('a', 2500000))",
		"SELECT pg_logical_emit_message(true, 'long', repeat('b', 100000))",
		"BEGIN", "INSERT INTO words (word) VALUES ('prepared')", "PREPARE TRANSACTION 'p1'",
		"BEGIN", "SAVEPOINT a", "INSERT INTO words (word) VALUES ('sub')", "ROLLBACK TO a", "COMMIT",
		"COMMIT PREPARED 'p1'",
		"SELECT pg_switch_wal()",
		"CREATE DATABASE d"+strconv.Itoa(q.s.runs), "DROP DATABASE d"+strconv.Itoa(q.s.runs),
		"CLUSTER words USING words_pkey", "TRUNCATE words",
		"CREATE TABLE t2 AS SELECT * FROM generate_series(1, 1000) i", "DROP TABLE t2",
		"SET synchronous_commit = off", "INSERT INTO words (word) VALUES ('late')", "SET synchronous_commit = on",
	)
}

// compareInspect: every record by pg_walinspect.
func compareInspect(t *testing.T, q *session, begin, end LSN) {
	t.Helper()
	q.exec("CREATE EXTENSION IF NOT EXISTS pg_walinspect")
	want := q.rows(fmt.Sprintf(`SELECT start_lsn, end_lsn, prev_lsn, xid, record_length, resource_manager, record_type
		FROM pg_get_wal_records_info('%s', '%s')`, begin, end))
	if len(want) < 1000 {
		t.Fatalf("only %d records between %s and %s: the load is too small to compare", len(want), begin, end)
	}
	all := q.s.records(1, begin)
	if len(all) < len(want) {
		t.Fatalf("read %d records from %s on, the server has %d", len(all), begin, len(want))
	}
	for i, w := range want {
		r := all[i]
		got := fmt.Sprintf("%s %s %s %d %d", r.Start, r.End, r.Prev, r.XID, r.TotalLength)
		if w[5] == "XLOG" && w[6] == "SWITCH" {
			// The view ends a switch where its bytes end.
			w[1] = r.End.String()
			if !r.IsSwitch() || r.End%LSN(1<<20) != 0 {
				t.Errorf("segment switch at %s: ends at %s", r.Start, r.End)
			}
		}
		if strings.Join(w[:5], " ") != got {
			t.Fatalf("record %d: got %s, want %s", i, got, strings.Join(w, " "))
		}
		if is := w[5] == "XLOG" && w[6] == "CHECKPOINT_SHUTDOWN"; is != r.IsShutdownCheckpoint() {
			t.Errorf("record at %s: shutdown checkpoint %v, want %v", r.Start, !is, is)
		}
	}
}

// checkCrash: the end of WAL after a crash, by the log of the recovery. Several
// times, so that segments are recycled in between.
func checkCrash(t *testing.T, s *server, q *session) {
	t.Helper()
	for range 2 {
		awkward(q)
		q.exec("CHECKPOINT")
		q.exec("SELECT pg_logical_emit_message(false, 'rest', repeat('c', 5000))")
		atLeast := q.flushed()
		q.close()
		s.stop(syscall.SIGQUIT)
		c := s.control()
		if c.State != InProduction {
			t.Fatalf("state after a crash: got %q", c.State)
		}
		end := s.findEnd(1, c.Redo)
		if end.LSN < atLeast {
			t.Errorf("end %s after a crash, but the server had flushed up to %s", end.LSN, atLeast)
		}
		if from := s.findEnd(1, c.CheckPoint); from.LSN != end.LSN || from.Last.CRC != end.Last.CRC {
			t.Errorf("end from the checkpoint %s, from redo %s", from.LSN, end.LSN)
		}
		if again := s.findEnd(1, end.LSN); again.HasLast || again.LSN != end.LSN {
			t.Errorf("from the end %s there is more: %+v", end.LSN, again)
		}
		s.start()
		if got := s.redoDone(); got != end.Last.Start {
			t.Errorf("last record: got %s, the server replayed up to %s (stop: %v)\n%s", end.Last.Start, got, end.Stop, s.readLog())
		}
		q = s.session()
	}
	q.close()
}

// TestControlWhileWritten reads pg_control while the server writes it.
func TestControlWhileWritten(t *testing.T) {
	s := newServer(t, waldumpMajor, 1)
	s.start()
	q := s.session()
	q.exec("CREATE TABLE t (i int)")
	var enough atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := s.tryConnect()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close(context.Background())
		// Where both share a processor, it is not for a number of checkpoints to say how many of them were seen.
		for n := 0; n < 200 || !enough.Load(); n++ {
			if _, err := c.Exec(context.Background(), "INSERT INTO t VALUES (1); CHECKPOINT"); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	var last LSN
	seen, looks := 0, 0
	limit := time.Now().Add(30 * time.Second)
	for running := true; running; looks++ {
		select {
		case <-done:
			running = false
		default:
		}
		c := s.control()
		if c.CheckPoint < last {
			t.Fatalf("the checkpoint went back from %s to %s", last, c.CheckPoint)
		}
		if c.CheckPoint > last {
			seen++
		}
		last = c.CheckPoint
		enough.Store(seen >= 20 || time.Now().After(limit))
	}
	if seen < 20 {
		t.Errorf("saw only %d checkpoints in %d looks", seen, looks)
	}
	if got := q.lsn("SELECT checkpoint_lsn FROM pg_control_checkpoint()"); got != last {
		t.Errorf("the last checkpoint: got %s, want %s", last, got)
	}
}
