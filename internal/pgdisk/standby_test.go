package pgdisk

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// TestStandby reads the WAL of a standby while it arrives, through the clean shutdown of
// its primary and through promotions: of itself, and of the server that it follows.
func TestStandby(t *testing.T) {
	for _, major := range []int{13, 15, 18} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			primary := newServer(t, major, 1)
			primary.configure("max_wal_senders = 5", "hot_standby = on", "wal_keep_size = 256MB")
			primary.start()
			standby := primary.clone(t)
			standby.start()
			q, sq := primary.session(), standby.session()
			q.exec("CREATE TABLE t (i int, x text)")
			waitStreaming(t, q)

			// While it arrives.
			done := make(chan struct{})
			enough := make(chan struct{})
			go func() {
				defer close(done)
				c, err := primary.tryConnect()
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close(context.Background())
				for {
					select {
					case <-enough:
						return
					default:
					}
					if _, err := c.Exec(context.Background(), "INSERT INTO t SELECT i, repeat('x', 900) FROM generate_series(1, 200) i"); err != nil {
						t.Error(err)
						return
					}
				}
			}()
			from := standby.control().Replayed().LSN
			last, looks, moved := from, 0, 0
			// A WAL receiver that waits for the disk writes nothing meanwhile: how long it takes until the end was seen to
			// move often enough is the disk's affair.
			deadline := time.After(time.Minute)
			for running, enough := true, enough; running; {
				select {
				case <-done:
					running = false
				case <-deadline:
					t.Errorf("the end moved only %d times in %d looks: nothing was read while it arrived", moved, looks)
					close(enough)
					enough = nil
				default:
				}
				if moved == 20 && enough != nil {
					close(enough)
					enough = nil
				}
				received := sq.lsn("SELECT coalesce(pg_last_wal_receive_lsn(), '0/0')")
				replayed := sq.lsn("SELECT pg_last_wal_replay_lsn()")
				end := standby.findEnd(1, last)
				written := q.lsn("SELECT pg_current_wal_insert_lsn()")
				// What is received may end within a record; what is replayed does not.
				if end.LSN < replayed || end.LSN+testSeg < received || end.LSN > written {
					t.Fatalf("end %s, but %s is replayed, %s received, %s written (stop: %v)", end.LSN, replayed, received, written, end.Stop)
				}
				if end.LSN < last {
					t.Fatalf("the end went back from %s to %s", last, end.LSN)
				}
				if end.LSN > last {
					moved++
				}
				last = end.LSN
				looks++
			}

			// The clean shutdown: the standby has the record, the same one.
			q.close()
			sq.close()
			primary.stop(syscall.SIGINT)
			note, err := primary.wal().ShutdownCheckpoint(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			end, err := standby.wal().Position(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if !end.HasLast || end.LSN != note.End || end.Last.CRC != note.CRC || end.Last.Start != note.Start || end.Timeline != 1 {
				t.Errorf("standby ends with %+v, the primary with %+v", end, note)
			}
			sq = standby.session()
			if got := sq.value("SELECT pg_promote(true, 30)"); got != "t" {
				t.Fatalf("not promoted: %s", standby.readLog())
			}
			h, err := ReadHistory(standby.wal().dir, 2)
			if err != nil {
				t.Fatal(err)
			}
			if at, _ := h.SwitchPointOf(1); at != note.End {
				t.Errorf("switch point %s, want the end of the record %s", at, note.End)
			}

			// The old primary follows on the new timeline.
			sq.exec("INSERT INTO t VALUES (1, 'on timeline 2')")
			primary.follow(standby)
			primary.start()
			waitStreaming(t, sq)
			flushed := sq.flushed()
			q = primary.session()
			waitReplayed(t, q, flushed)
			end, err = primary.wal().Position(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if end.Timeline != 2 || end.LSN < flushed {
				t.Errorf("the old primary stands at %s, want timeline 2 and at least %s (stop: %v)", end.Position, flushed, end.Stop)
			}
			a, err := primary.wal().Identity(2)
			if err != nil {
				t.Fatal(err)
			}
			b, err := standby.wal().Identity(2)
			if err != nil {
				t.Fatal(err)
			}
			if a != b {
				t.Errorf("timeline 2 is %s on one server, %s on the other", a, b)
			}
			// From before the switch point, where both old and new segment are on the disk.
			if over := primary.findEnd(2, note.Start); over.LSN < flushed || over.Timeline != 2 {
				t.Errorf("over the switch point: got %s", over.Position)
			}
			// A clean stop of a standby leaves no shutdown checkpoint of its own.
			q.close()
			primary.stop(syscall.SIGINT)
			if c := primary.control(); c.State != ShutDownInRecovery {
				t.Errorf("state of a stopped standby: got %q", c.State)
			}
			if _, err := primary.wal().ShutdownCheckpoint(context.Background()); err == nil {
				t.Error("a stopped standby passes for a primary that was shut down")
			}
		})
	}
}

// TestTwins: two standbys promoted from the same end make two timelines that have number
// and switch point in common, and are told apart.
func TestTwins(t *testing.T) {
	one := newServer(t, waldumpMajor, 1)
	one.start()
	one.stop(syscall.SIGINT)
	two := one.copy(t)
	var ids []TimelineIdentity
	for _, s := range []*server{one, two} {
		s.promote()
		q := s.session()
		q.flushed()
		q.close()
		id, err := s.wal().Identity(2)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if ids[0].Switch != ids[1].Switch || one.historyFile(2) != two.historyFile(2) {
		t.Errorf("no twins: %s and %s", ids[0], ids[1])
	}
	if ids[0] == ids[1] {
		t.Errorf("twins have the same identity %s", ids[0])
	}
}

// copy copies the data directory of a stopped server.
func (s *server) copy(t testing.TB) *server {
	t.Helper()
	c := &server{t: t, major: s.major, dir: serverDir(t)}
	c.data = filepath.Join(c.dir, "data")
	run(t, "/bin/cp", "-a", s.data, c.data)
	c.configure("unix_socket_directories = '" + c.dir + "'")
	t.Cleanup(func() { c.stop(syscall.SIGQUIT) })
	return c
}

// clone makes a standby of a server, which is stopped for that.
func (s *server) clone(t testing.TB) *server {
	t.Helper()
	s.stop(syscall.SIGINT)
	c := s.copy(t)
	s.start()
	c.follow(s)
	return c
}

// follow makes a stopped server a standby of another.
func (s *server) follow(primary *server) {
	s.t.Helper()
	s.configure("primary_conninfo = 'host="+primary.dir+" user=postgres'", "wal_retrieve_retry_interval = '100ms'")
	if err := os.WriteFile(filepath.Join(s.data, "standby.signal"), nil, 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func waitStreaming(t testing.TB, q *session) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); q.value("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "0"; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no standby streams")
		}
	}
}

func waitReplayed(t testing.TB, q *session, lsn LSN) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); q.lsn("SELECT pg_last_wal_replay_lsn()") < lsn; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s is not replayed", lsn)
		}
	}
}
