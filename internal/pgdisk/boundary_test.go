package pgdisk

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
)

const (
	testPage = 8192
	testSeg  = 1 << 20
)

// emitted is the length of a record of pg_logical_emit_message(false, 'p', n bytes): the
// record's header, that of its data, and the message with its own
// (src/include/replication/message.h).
func emitted(n int) int {
	const message = 24 + 2 // SizeOfLogicalMessage, the prefix and its zero
	size := recordHeaderSize + 2 + message + n
	if message+n > 255 {
		size += 3
	}
	return size
}

// padTo writes a record that ends exactly at to, a position less than a page away or a
// few pages, and says whether it came out so: the server may write one of its own
// in between.
func padTo(q *session, to LSN) bool {
	q.s.t.Helper()
	at := q.lsn("SELECT pg_current_wal_insert_lsn()")
	room := int(to) - int(at)
	// Page headers between here and there are no part of the record.
	for p := at - at%testPage + testPage; p < to; p += testPage {
		room -= shortPageHeader
		if p%testSeg == 0 {
			room -= longPageHeader - shortPageHeader
		}
	}
	n := room - emitted(0)
	if emitted(n) > room {
		n -= 3
	}
	if n < 0 || (emitted(n)+7)&^7 != room {
		q.s.t.Fatalf("no record fits between %s and %s", at, to)
	}
	got := q.lsn(fmt.Sprintf("SELECT pg_logical_emit_message(false, 'p', repeat('p', %d))", n))
	return got == to
}

// nextEnd is the next end of a page, or segment, that leaves room for a record.
func nextEnd(at LSN, unit LSN) LSN {
	return at - at%unit + unit + testPage*LSN(btoi(unit-at%unit < 512 && unit == testPage)) + unit*LSN(btoi(unit-at%unit < 512 && unit != testPage))
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// checkPageEnds: records that end exactly with a page or a segment are read, are the
// end, and are a place to go on from.
func checkPageEnds(t *testing.T, s *server) {
	t.Helper()
	for _, unit := range []LSN{testPage, testSeg} {
		hit := false
		for try := 0; try < 10 && !hit; try++ {
			q := s.session()
			// The segments that the long record leaves behind are recycled, and the next is one of them.
			q.exec("SELECT pg_logical_emit_message(false, 'long', repeat('a', 4000000))", "CHECKPOINT", "SELECT pg_switch_wal()",
				"SELECT pg_logical_emit_message(false, 'p', 'x')")
			from := s.control().CheckPoint
			to := nextEnd(q.lsn("SELECT pg_current_wal_insert_lsn()"), unit)
			hit = padTo(q, to)
			if !hit {
				q.close()
				continue
			}
			q.flushed()
			q.close()
			live := s.findEnd(1, from)
			s.stop(syscall.SIGQUIT)
			end := s.findEnd(1, from)
			if live.LSN != to || end.LSN != to || end.Last.End != to {
				t.Errorf("a record that ends with a unit of %d at %s: end is %s live, %s after a crash (stop: %v)", unit, to, live.LSN, end.LSN, end.Stop)
			}
			if unit == testPage && !errors.Is(end.Stop, ErrWrongPageAddress) {
				t.Errorf("the page behind a full page of a recycled segment: got %v", end.Stop)
			}
			// From the very end: nothing, and the same end.
			if again := s.findEnd(1, to); again.HasLast || again.LSN != to {
				t.Errorf("from %s: got %+v", to, again)
			}
			s.start()
			if got := s.redoDone(); got != end.Last.Start {
				t.Errorf("last record: got %s, the server replayed up to %s", end.Last.Start, got)
			}
			// Now there is more: the position at the boundary is where it begins.
			more := s.findEnd(1, to)
			if !more.HasLast || more.LSN <= to {
				t.Errorf("from the boundary %s after a restart: got %+v", to, more)
			}
		}
		if !hit {
			t.Errorf("no record ended at a multiple of %d in ten tries", unit)
		}
	}
}

// checkShutdown: the shutdown checkpoint is the last record, and pg_control says the
// same; also when it ends with a page or a segment, or begins right behind one.
func checkShutdown(t *testing.T, s *server) {
	t.Helper()
	const record = 120 // of a shutdown checkpoint, aligned
	for _, place := range []struct {
		name   string
		unit   LSN
		before LSN // the record begins that much before the unit's end
	}{
		{"anywhere", 0, 0},
		{"ends with a page", testPage, record},
		{"ends with a segment", testSeg, record},
		{"begins behind a page's header", testPage, 0},
		{"begins behind a segment's header", testSeg, 0},
		{"over a page's end, header whole", testPage, 48},
		{"over a page's end, header split", testPage, 8},
		{"over a segment's end, header split", testSeg, 16},
	} {
		hit := false
		for try := 0; try < 10 && !hit; try++ {
			want := LSN(0)
			hit = true
			if place.unit != 0 {
				q := s.session()
				want = nextEnd(q.lsn("SELECT pg_current_wal_insert_lsn()")+place.before+256, place.unit) - place.before
				hit = padTo(q, want)
				q.close()
			}
			s.stop(syscall.SIGINT)
			c := s.control()
			if c.State != ShutDown {
				t.Fatalf("state after a shutdown: got %q", c.State)
			}
			if place.unit != 0 && place.before == 0 {
				want += shortPageHeader
				if place.unit == testSeg {
					want += longPageHeader - shortPageHeader
				}
			}
			hit = hit && (want == 0 || c.CheckPoint == want)
			checkShutdownRecord(t, s, c)
			s.start()
		}
		if !hit {
			t.Errorf("no shutdown checkpoint that %s in ten tries", place.name)
		}
	}
}

// checkShutdownRecord compares the record that pg_control names with pg_control.
func checkShutdownRecord(t *testing.T, s *server, c Control) {
	t.Helper()
	rec, err := s.wal().ReadRecord(c.CheckPointTimeline, c.CheckPoint)
	if err != nil {
		t.Fatal(err)
	}
	cp, err := rec.CheckPoint()
	if err != nil {
		t.Fatal(err)
	}
	if !rec.IsShutdownCheckpoint() || cp.Redo != c.Redo || cp.Redo != rec.Start || cp.ThisTimeline != c.CheckPointTimeline || cp.PrevTimeline != c.CheckPointPrevTimeline || !cp.Time.Equal(c.CheckPointTime) {
		t.Errorf("record %+v %+v, pg_control %+v", rec, cp, c)
	}
	for _, from := range []LSN{c.CheckPoint, rec.Prev} {
		if from < rec.Start-rec.Start%testSeg {
			continue // the checkpoint itself may have removed that segment
		}
		end := s.findEnd(c.CheckPointTimeline, from)
		if !end.HasLast || end.Last.Start != rec.Start || end.LSN != rec.End || end.Timeline != c.CheckPointTimeline || end.Last.CRC != rec.CRC {
			t.Errorf("end from %s: got %+v, want that of %+v", from, end, rec)
		}
	}
}
