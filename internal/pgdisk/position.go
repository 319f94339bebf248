package pgdisk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrNotShutDown: the server did not shut down cleanly as a primary, or something was
// written since.
var ErrNotShutDown = errors.New("no clean shutdown of a primary")

// ShutdownCheckpoint is the record with which a primary was shut down: pg_control says
// "shut down" and names it, it is a shutdown checkpoint that says the same as pg_control, and
// nothing valid follows it. Anything else is [ErrNotShutDown], wrapping the cause, or a
// failure of the reading. pg_control is the one given to [OpenWAL]: read it after
// the shutdown.
func (w *WAL) ShutdownCheckpoint(ctx context.Context) (Record, error) {
	c := w.ctl
	fail := func(format string, args ...any) (Record, error) {
		return Record{}, fmt.Errorf("%w in %s: %w", ErrNotShutDown, w.dir, fmt.Errorf(format, args...))
	}
	if c.State != ShutDown {
		return fail("pg_control says %q, expected %q", c.State, ShutDown)
	}
	end, err := w.FindEnd(ctx, c.CheckPointTimeline, c.CheckPoint)
	if err != nil {
		return Record{}, err
	}
	if !end.HasLast {
		return fail("pg_control names a checkpoint at %s of timeline %d: %w", c.CheckPoint, c.CheckPointTimeline, end.Stop)
	}
	rec := end.Last
	if rec.Start != c.CheckPoint || !rec.IsShutdownCheckpoint() {
		return fail("the last record is the one at %s (resource manager %d, info %02X), expected a shutdown checkpoint at %s, as pg_control says", rec.Start, rec.Rmgr, rec.Info, c.CheckPoint)
	}
	cp, err := rec.CheckPoint()
	if err != nil {
		return fail("%w", err)
	}
	if cp.Redo != rec.Start || cp.ThisTimeline != c.CheckPointTimeline || rec.Timeline != c.CheckPointTimeline {
		return fail("the record at %s says redo %s on timeline %d, expected its own position on timeline %d", rec.Start, cp.Redo, cp.ThisTimeline, c.CheckPointTimeline)
	}
	return rec, nil
}

// Replayed is a position that the data in this directory have reached for certain: the
// later one of the last checkpoint's start and the minimum recovery point. It is a record
// boundary, good for [WAL.FindEnd].
func (c Control) Replayed() Position {
	at := Position{Timeline: c.CheckPointTimeline, LSN: c.CheckPoint}
	if c.MinRecoveryPoint > at.LSN {
		at = Position{Timeline: max(c.MinRecoveryTimeline, at.Timeline), LSN: c.MinRecoveryPoint}
	}
	return at
}

// NewestTimeline is the highest timeline that has a history file in pg_wal in which the
// data lie: those that have replayed up to at. This is the timeline that a standby with
// recovery_target_timeline = latest follows. Without one it is at's own.
//
// A history that leaves at's timeline before at is none of this instance's future: the
// instance has diverged from it, and it is passed over.
func (w *WAL) NewestTimeline(at Position) (TimelineID, error) {
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		return 0, err
	}
	newest := at.Timeline
	for _, e := range entries {
		tli, ok := parseHistoryName(e.Name())
		if !ok || tli <= newest {
			continue
		}
		h, err := ReadHistory(w.dir, tli)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return 0, err
		}
		if end, ok := h.SwitchPointOf(at.Timeline); ok && at.LSN <= end {
			newest = tli
		}
	}
	return newest, nil
}

// parseHistoryName reads what HistoryFileName writes.
func parseHistoryName(name string) (TimelineID, bool) {
	if len(name) != 16 || filepath.Ext(name) != ".history" {
		return 0, false
	}
	// A segment's name with that timeline has the same form of number.
	tli, _, ok := ParseSegmentName(name[:8]+"0000000000000000", 1<<20)
	return tli, ok
}

// Position is where the valid WAL of this instance ends, whether its server runs or not:
// FindEnd along [WAL.NewestTimeline] from [Control.Replayed].
func (w *WAL) Position(ctx context.Context) (End, error) {
	at := w.ctl.Replayed()
	tli, err := w.NewestTimeline(at)
	if err != nil {
		return End{}, err
	}
	return w.FindEnd(ctx, tli, at.LSN)
}
