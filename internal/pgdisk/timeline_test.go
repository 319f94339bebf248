package pgdisk

import (
	"errors"
	"syscall"
	"testing"
)

// checkTimelines: promotions at arbitrary places and exactly at the end of a page and of
// a segment.
func checkTimelines(t *testing.T, s *server) {
	t.Helper()
	q := s.session()
	keepWAL(q, 256)
	q.close()
	origin := s.control().CheckPoint
	for tli := TimelineID(2); tli <= 5; tli++ {
		q := s.session()
		q.exec("SELECT pg_logical_emit_message(true, 'some', 'thing')")
		var want LSN
		switch tli {
		case 3:
			want = nextEnd(q.lsn("SELECT pg_current_wal_insert_lsn()")+512, testPage)
			padTo(q, want-120)
		case 4:
			want = nextEnd(q.lsn("SELECT pg_current_wal_insert_lsn()")+512, testSeg)
			padTo(q, want-120)
		}
		q.close()
		s.stop(syscall.SIGINT)
		c := s.control()
		closed := s.findEnd(tli-1, c.CheckPoint)
		if want != 0 && closed.LSN != want {
			t.Logf("timeline %d ends at %s, not at the boundary %s", tli-1, closed.LSN, want)
		}
		s.promote()

		h, err := ReadHistory(s.wal().dir, tli)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := h.SwitchPointOf(tli - 1); !ok || got != closed.LSN || len(h) != int(tli-1) {
			t.Errorf("timeline %d: switch point %s, want the end %s of the shutdown checkpoint: %+v", tli, got, closed.LSN, h)
		}
		if got, want := h.String(), s.historyFile(tli); got != want {
			t.Errorf("history of %d: got %q, want %q", tli, got, want)
		}
		first, err := s.wal().FirstRecord(tli)
		if err != nil {
			t.Fatal(err)
		}
		if first.Timeline != tli || first.Prev != closed.Last.Start || first.Start < closed.LSN || first.Start > closed.LSN+longPageHeader {
			t.Errorf("first record of timeline %d: got %+v, want it at %s", tli, first, closed.LSN)
		}
		id, err := s.wal().Identity(tli)
		if err != nil {
			t.Fatal(err)
		}
		if id.Switch != closed.LSN || id.CRC != first.CRC || !first.IsEndOfRecovery() {
			t.Errorf("identity of timeline %d: got %s, first record %+v", tli, id, first)
		}
	}
	if _, err := s.wal().Identity(1); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("identity of timeline 1: got %v", err)
	}
	// All the way from timeline 1, through every switch point.
	q = s.session()
	flushed := q.flushed()
	q.close()
	end := s.findEnd(5, origin)
	if end.Timeline != 5 || end.LSN < flushed {
		t.Errorf("end over five timelines: got %s, the server flushed up to %s (stop: %v)", end.Position, flushed, end.Stop)
	}
	// Where the history file is missing, what is known from elsewhere need not go back to the first page of the segment.
	h, err := ReadHistory(s.wal().dir, 5)
	if err != nil {
		t.Fatal(err)
	}
	last := s.findEnd(5, s.control().Redo)
	for from := range len(h) + 1 {
		got, err := s.wal().FindEndAlong(t.Context(), 5, h[from:], s.control().Redo)
		if err != nil || got.Position != last.Position {
			t.Errorf("end with the history %v: got %s (%v, stop: %v), want %s", h[from:], got.Position, err, got.Stop, last.Position)
		}
	}
	seen := map[TimelineID]bool{}
	for _, r := range s.records(5, origin) {
		seen[r.Timeline] = true
	}
	if len(seen) != 5 {
		t.Errorf("records of timelines %v, want all of 1 to 5", seen)
	}
}
