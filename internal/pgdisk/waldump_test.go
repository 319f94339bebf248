package pgdisk

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// waldumpMajor is the one version of which pg_waldump and pg_controldata are at hand.
const waldumpMajor = 15

var dumpLine = regexp.MustCompile(`^rmgr: (\S+) +len \(rec/tot\): *(\d+)/ *(\d+), tx: +(\d+), lsn: ([0-9A-F/]+), prev ([0-9A-F/]+), desc: (\S*)`)

// dumped is a record as pg_waldump prints it.
type dumped struct {
	start, prev LSN
	length      uint32
	xid         uint32
	rmgr, desc  string
}

// waldump runs pg_waldump from a position to the end of the WAL, and returns what it
// printed, and its last message.
func waldump(t *testing.T, s *server, tli TimelineID, from LSN) ([]dumped, string) {
	t.Helper()
	cmd := command(t, tool(t, waldumpMajor, "pg_waldump"), "-p", filepath.Join(s.data, "pg_wal"), "-t", fmt.Sprint(tli), "-s", from.String())
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	_ = cmd.Run() // it always fails: at the end of the WAL
	var all []dumped
	for line := range strings.Lines(stdout.String()) {
		m := dumpLine.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("pg_waldump printed %.200q", line)
		}
		length, err1 := strconv.ParseUint(m[3], 10, 32)
		xid, err2 := strconv.ParseUint(m[4], 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		all = append(all, dumped{mustLSN(t, m[5]), mustLSN(t, m[6]), uint32(length), uint32(xid), m[1], m[7]})
	}
	return all, strings.TrimSpace(stderr.String())
}

// invalidAt is where pg_waldump says that it met no valid record.
var (
	invalidAt   = regexp.MustCompile(`(?:invalid record length|incorrect prev-link \S+|invalid resource manager ID \d+|checksum in record|contrecord flag|contrecord length \d+ \(expected \d+\)) at ([0-9A-F/]+)`)
	recordError = regexp.MustCompile(`error in WAL record at ([0-9A-F/]+): (.*)`)
)

// compareDump: every record and the end by pg_waldump.
func compareDump(t *testing.T, s *server, tli TimelineID, from LSN) End {
	t.Helper()
	want, message := waldump(t, s, tli, from)
	got := s.records(tli, from)
	for i := range min(len(got), len(want)) {
		g, w := got[i], want[i]
		if g.Start != w.start || g.Prev != w.prev || g.TotalLength != w.length || g.XID != w.xid ||
			g.IsSwitch() != (w.rmgr == "XLOG" && w.desc == "SWITCH") ||
			g.IsShutdownCheckpoint() != (w.desc == "CHECKPOINT_SHUTDOWN") {
			t.Fatalf("record %d: got %+v, pg_waldump %+v", i, g, w)
		}
	}
	if len(got) != len(want) {
		t.Fatalf("got %d records from %s on, pg_waldump %d; it says %q", len(got), from, len(want), message)
	}
	end := s.findEnd(tli, from)
	if m := recordError.FindStringSubmatch(message); m != nil && len(want) > 0 {
		if at := mustLSN(t, m[1]); at != end.Last.Start {
			t.Errorf("last record: got %s, pg_waldump says %q", end.Last.Start, message)
		}
		var stop *InvalidError
		if m := invalidAt.FindStringSubmatch(message); m != nil && errors.As(end.Stop, &stop) && mustLSN(t, m[1]) != stop.LSN && !errors.Is(end.Stop, ErrBadContinuation) {
			t.Errorf("stop: got %v, pg_waldump says %q", stop, message)
		}
	}
	t.Logf("%d records, end %s; pg_waldump: %s; stop: %v", len(got), end.Position, message, end.Stop)
	return end
}

// TestWALDump: all segment sizes, record by record, by pg_waldump; pg_control by
// pg_controldata.
func TestWALDump(t *testing.T) {
	for _, segMB := range []int{1, 16, 64, 1024} {
		t.Run(fmt.Sprintf("%dMB", segMB), func(t *testing.T) {
			t.Parallel()
			s := newServer(t, waldumpMajor, segMB)
			if segMB > 64 {
				// One more segment is all that fits the time of a test.
				s.configure("min_wal_size = 2GB", "max_wal_size = 2GB", "wal_init_zero = off")
			}
			s.start()
			q := s.session()
			keepWAL(q, 256*segMB)
			from := s.control().CheckPoint
			if segMB <= 64 {
				awkward(q)
				if segMB == 16 {
					bench := filepath.Join(filepath.Dir(tool(t, waldumpMajor, "pg_waldump")), "pgbench")
					run(t, bench, "-h", s.dir, "-U", "postgres", "-i", "-q", "postgres")
					run(t, bench, "-h", s.dir, "-U", "postgres", "-c", "2", "-T", "2", "postgres")
				}
				awkwardEnd(q)
			} else {
				q.exec("CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 10000) i",
					"SELECT pg_switch_wal()", "SELECT pg_logical_emit_message(true, 'x', repeat('long', 1000000))")
			}
			q.flushed()
			q.close()
			s.stop(syscall.SIGQUIT)
			compareDump(t, s, 1, from)
			compareControlData(t, s)
			s.start()
			s.stop(syscall.SIGINT)
			end := compareDump(t, s, 1, from)
			compareControlData(t, s)
			if !end.Last.IsShutdownCheckpoint() {
				t.Errorf("the last record is no shutdown checkpoint: %+v", end.Last)
			}
			if segMB > 64 {
				return
			}
			// A second timeline: pg_waldump does not follow the history, so from its first record on.
			s.promote()
			q = s.session()
			awkward(q)
			q.flushed()
			q.close()
			s.stop(syscall.SIGINT)
			compareControlData(t, s)
			first, err := s.wal().FirstRecord(2)
			if err != nil {
				t.Fatal(err)
			}
			second := compareDump(t, s, 2, first.Start)
			if over := s.findEnd(2, from); over.LSN != second.LSN || over.Timeline != 2 {
				t.Errorf("end over the switch point: got %s, want %s", over.Position, second.Position)
			}
			// The parent's own file ends where it was left.
			if first := s.findEnd(1, from); first.LSN != end.LSN {
				t.Errorf("end of timeline 1: got %s, want %s", first.Position, end.Position)
			}
		})
	}
}

// awkwardEnd ends the WAL in the middle of a page after long records.
func awkwardEnd(q *session) {
	for n := range 20 {
		q.exec(fmt.Sprintf("SELECT pg_logical_emit_message(false, 'p', repeat('p', %d))", n*1237))
	}
}

// compareControlData: pg_control by pg_controldata.
func compareControlData(t *testing.T, s *server) {
	t.Helper()
	c := s.control()
	want := map[string]string{}
	for line := range strings.Lines(run(t, tool(t, waldumpMajor, "pg_controldata"), s.data)) {
		name, value, ok := strings.Cut(line, ":")
		if ok {
			want[name] = strings.TrimSpace(value)
		}
	}
	checkControlData(t, c, want)
}

// checkControlData compares with the lines of pg_controldata.
func checkControlData(t *testing.T, c Control, want map[string]string) {
	t.Helper()
	yes := func(b bool) string { return map[bool]string{true: "yes", false: "no"}[b] }
	const when = "Mon Jan _2 15:04:05 2006"
	checksums := map[bool]string{false: "0", true: "1"}[c.DataChecksums]
	hints := map[bool]string{true: "on", false: "off"}[c.WALLogHints]
	for name, got := range map[string]string{
		"pg_control version number":          fmt.Sprint(c.ControlVersion),
		"Catalog version number":             fmt.Sprint(c.CatalogVersion),
		"Database system identifier":         fmt.Sprint(c.SystemIdentifier),
		"Database cluster state":             c.State.String(),
		"pg_control last modified":           c.Time.UTC().Format(when),
		"Latest checkpoint location":         c.CheckPoint.String(),
		"Latest checkpoint's REDO location":  c.Redo.String(),
		"Latest checkpoint's REDO WAL file":  SegmentName(c.CheckPointTimeline, c.Redo, c.SegmentSize),
		"Latest checkpoint's TimeLineID":     fmt.Sprint(c.CheckPointTimeline),
		"Latest checkpoint's PrevTimeLineID": fmt.Sprint(c.CheckPointPrevTimeline),
		"Time of latest checkpoint":          c.CheckPointTime.UTC().Format(when),
		"Minimum recovery ending location":   c.MinRecoveryPoint.String(),
		"Min recovery ending loc's timeline": fmt.Sprint(c.MinRecoveryTimeline),
		"Backup start location":              c.BackupStart.String(),
		"Backup end location":                c.BackupEnd.String(),
		"End-of-backup record required":      yes(c.BackupEndRequired),
		"wal_log_hints setting":              hints,
		"Database block size":                fmt.Sprint(c.BlockSize),
		"WAL block size":                     fmt.Sprint(c.WALBlockSize),
		"Bytes per WAL segment":              fmt.Sprint(c.SegmentSize),
		"Data page checksum version":         checksums,
	} {
		if want[name] != got {
			t.Errorf("pg_control, %s: got %s, want %q", name, got, want[name])
		}
	}
}

// TestGivenUpRecord: a crash in the middle of a record that spans segments; the server
// goes on over the rest and marks that. Readers must follow it.
func TestGivenUpRecord(t *testing.T) {
	for _, major := range []int{13, 15, 18} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			s := newServer(t, major, 1)
			s.start()
			q := s.session()
			keepWAL(q, 256)
			q.exec("SELECT pg_switch_wal()", "CHECKPOINT", "CREATE TABLE t (i int)")
			from := s.control().Redo
			whole := q.flushed()
			q.exec("SELECT pg_logical_emit_message(false, 'long', repeat('x', 2500000))")
			end := q.flushed()
			q.close()
			s.stop(syscall.SIGQUIT)

			// The crash of a machine may leave this: the record's last segments never came to the disk.
			lost := s.removeFrom(1, whole+2*testSeg)
			if lost == 0 {
				t.Fatal("no segment removed")
			}
			cut := s.findEnd(1, from)
			if cut.LSN != whole || !errors.Is(cut.Stop, ErrMissingSegment) {
				t.Errorf("end before the cut record: got %s, want %s (of %s); stop %v", cut.LSN, whole, end, cut.Stop)
			}
			s.start()
			if got := s.redoDone(); got != cut.Last.Start {
				t.Errorf("last record: got %s, the server replayed up to %s", cut.Last.Start, got)
			}
			q = s.session()
			q.exec("INSERT INTO t VALUES (1)")
			flushed := q.flushed()
			if major >= 15 {
				q.close()
				s.stop(syscall.SIGQUIT)
			} else {
				q.close()
				s.stop(syscall.SIGINT)
			}
			after := s.findEnd(1, from)
			if after.LSN < flushed {
				t.Fatalf("end behind a record that was given up: got %s, the server flushed up to %s (stop: %v)", after.LSN, flushed, after.Stop)
			}
			marked := false
			for _, r := range s.records(1, from) {
				if start, ok := r.overwritten(); ok {
					marked = true
					if start < whole || start > whole+longPageHeader || r.Prev != cut.Last.Start {
						t.Errorf("mark %+v for the record at %s, want %s", r, start, whole)
					}
					// From the given-up record and from the mark on, without what is before.
					for _, at := range []LSN{whole, r.Start - r.Start%testPage, r.Start} {
						if again := s.findEnd(1, at); again.LSN != after.LSN {
							t.Errorf("end from %s: got %s, want %s", at, again.LSN, after.LSN)
						}
					}
				}
			}
			if !marked {
				t.Error("the server left no mark of the record that it gave up")
			}
			if _, err := s.wal().ReadRecord(1, whole); !errors.Is(err, ErrBadContinuation) {
				t.Errorf("the given-up record: got %v", err)
			}
			if major == waldumpMajor {
				compareDump(t, s, 1, from)
			}
		})
	}
}

// TestFindEndCancelled: FindEnd gives up with its context.
func TestFindEndCancelled(t *testing.T) {
	s := newServer(t, waldumpMajor, 1)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.wal().FindEnd(ctx, 1, s.control().CheckPoint); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it was cancelled", err)
	}
}
