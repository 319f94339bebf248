package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// role is what an instance is right now, by its processes and its pg_control.
type role int

const (
	down        role = iota // no postmaster
	primary                 // writable, or a primary that recovers from a crash
	standby                 // in archive recovery, consistent or not
	stopping                // a postmaster that has been told to stop
	parkedDown              // stopped by demote, to be started as a standby
	ambiguousUp             // a postmaster that has not come far enough to tell
)

// facts are what one look at the instance shows.
type facts struct {
	role       role
	postmaster postgres.Postmaster
	control    pgdisk.Control
}

// look takes the facts. The error is about pg_control: the processes can always be told.
func (a *Agent) look() (facts, error) {
	var f facts
	pm, pmErr := a.pg.Postmaster()
	ctl, err := pgdisk.ReadControl(a.pg.DataDir)
	f.postmaster, f.control = pm, ctl
	if pmErr != nil {
		if !errors.Is(pmErr, postgres.ErrNotRunning) {
			return f, pmErr
		}
		if a.vol.Parked {
			f.role = parkedDown
		}
		return f, err
	}
	if err != nil {
		return f, err
	}
	switch ctl.State {
	case pgdisk.InProduction:
		f.role = primary
	case pgdisk.InCrashRecovery:
		f.role = primary
	case pgdisk.InArchiveRecovery:
		f.role = standby
	case pgdisk.ShuttingDown, pgdisk.ShutDown, pgdisk.ShutDownInRecovery:
		switch {
		case pm.Status == "" && a.vol.Parked:
			f.role = stopping // it has removed its lock file and is not gone; one that is being started is told below
		case pm.Status == "":
			// Its lock file is being written, or was removed just now.
			f.role = ambiguousUp
		case pm.Status == "stopping":
			f.role = stopping
		default:
			f.role = primary // pg_control still says how the last run ended, or see endsRecovery
		}
	default:
		f.role = ambiguousUp
	}
	if (pm.Status == "starting" || pm.Status == "") && f.role != standby && a.pg.HasStandbySignal() {
		// It was started as a standby; pg_control still says how the last run ended, also before the postmaster has
		// written its status, which it does only after it has its shared memory.
		f.role = standby
	}
	return f, nil
}

// endsRecovery reports whether a server writes the checkpoint at the end of a crash recovery, which may take minutes. It is one
// of a shutdown (CHECKPOINT_END_OF_RECOVERY in CreateCheckPoint, xlog.c), so that pg_control says "shutting down" and then
// "shut down" of a primary that is about to be writable. A postmaster that was told to stop has written that into its lock file
// first (pmdie in postmaster.c).
func endsRecovery(ctl pgdisk.Control, pm postgres.Postmaster) bool {
	return (ctl.State == pgdisk.ShuttingDown || ctl.State == pgdisk.ShutDown) && pm.Status != "stopping" && pm.Status != ""
}

// diedInRecovery reports whether a server that runs no more died while it wrote that checkpoint: one that was shut down has
// removed its lock file, and one that died on the way there had written into it that it stops.
func (a *Agent) diedInRecovery(ctl pgdisk.Control) bool {
	return endsRecovery(ctl, postgres.Postmaster{Status: a.pg.LastStatus()})
}

// diedAsPrimary reports whether a server that runs no more was a primary, and died without a shutdown.
func (a *Agent) diedAsPrimary(ctl pgdisk.Control) bool {
	return (ctl.State == pgdisk.InProduction || ctl.State == pgdisk.InCrashRecovery || a.diedInRecovery(ctl)) && !a.pg.HasStandbySignal()
}

// candidate reads where this instance's WAL ends; if ctx ends before that, its position is how far it came. With a session to a
// server in recovery it starts at the replay position, otherwise at what pg_control vouches for. full asks for the last record
// even if it lies before the replay position.
func (a *Agent) candidate(ctx context.Context, sess *postgres.Session, note *baton.Note, full bool) (baton.Candidate, error) {
	c := baton.Candidate{Node: a.inv.Node, Left: a.state.Left, Informed: a.informed()}
	ctl, err := pgdisk.ReadControl(a.pg.DataDir)
	if err != nil {
		return c, err
	}
	c.SystemID = ctl.SystemIdentifier
	from, onTimeline := ctl.Redo, pgdisk.TimelineID(0)
	switch {
	case ctl.State == pgdisk.ShutDown:
		from = ctl.CheckPoint
	case ctl.MinRecoveryPoint > from && ctl.MinRecoveryTimeline == ctl.CheckPointTimeline:
		from = ctl.MinRecoveryPoint
	}
	received := pgdisk.LSN(0)
	if sess != nil {
		v, err := sess.Standby(ctx)
		if err != nil {
			return c, err
		}
		if v.Replayed > from {
			from = v.Replayed
		}
		if v.Streaming {
			onTimeline = v.Timeline
		}
		received = v.Received
	}
	if full && ctl.State != pgdisk.ShutDown {
		from = ctl.Redo
	}
	tli, err := a.timeline(ctl, from, onTimeline)
	if err != nil {
		return c, err
	}
	wal := pgdisk.OpenWAL(a.pg.DataDir, ctl)
	var known *pgdisk.Record
	if !full {
		if known = a.foundBefore(wal, tli, from); known != nil {
			from = known.End
		}
	}
	if !full && received > from {
		// Gigabytes may wait to be replayed; what the WAL receiver has flushed need not be read again.
		if first, err := wal.FirstRecordIn(tli, received); err == nil && from < first && first <= received {
			from, known = first, nil
		}
	}
	began := a.clock.Now()
	end, err := wal.FindEnd(ctx, tli, from)
	if err != nil || a.clock.Now().Sub(began) > longWalk {
		a.keepFound(tli, end)
	}
	c.Position = end.Position
	if err != nil {
		return c, err
	}
	if end.HasLast {
		c.Last = lastRecord(end.Last)
	} else if known != nil {
		c.Last = lastRecord(*known)
	} else if note != nil && note.End == end.LSN && note.Timeline == end.Timeline {
		if r, err := wal.ReadRecord(note.Timeline, note.Start); err == nil && r.End == end.LSN {
			c.Last = lastRecord(r)
		}
	}
	if c.History, err = pgdisk.ReadHistory(a.walDir(), c.Position.Timeline); err != nil {
		if c.Position.Timeline != ctl.CheckPointTimeline {
			return c, err
		}
		c.History = nil // a history file may have been removed long ago; the rules then rest on the rest
	}
	c.Identity = a.identity(wal, c.Position.Timeline)
	return c, nil
}

// foundBefore is the record up to which this instance's WAL was found to be valid before, if it lies behind from and still is
// there; nil otherwise. A server that recovers from a crash takes no connections, and after a loss of power gigabytes may
// lie between its last checkpoint and the end: whoever asks for its position waits for less than it takes to read them.
func (a *Agent) foundBefore(wal *pgdisk.WAL, tli pgdisk.TimelineID, from pgdisk.LSN) *pgdisk.Record {
	was := a.vol.Found
	if was == nil || was.Timeline != tli || was.End <= from {
		return nil
	}
	r, err := wal.ReadRecord(tli, was.Start)
	if err != nil || r.End != was.End || r.CRC != was.CRC {
		return nil
	}
	return &r
}

// longWalk is how long a walk through the WAL takes that is worth not to be repeated.
const longWalk = 50 * time.Millisecond

// keepFound remembers how far a walk came, also one that ran out of time: the next one goes on from there.
func (a *Agent) keepFound(tli pgdisk.TimelineID, end pgdisk.End) {
	if !end.HasLast {
		return
	}
	if a.vol.Found = found(tli, end.Last); !a.unlocked {
		a.saveVolatile()
	}
}

func found(tli pgdisk.TimelineID, r pgdisk.Record) *journal.Found {
	return &journal.Found{Timeline: tli, Start: r.Start, End: r.End, CRC: r.CRC}
}

func lastRecord(r pgdisk.Record) *baton.LastRecord {
	return &baton.LastRecord{Start: r.Start, End: r.End, CRC: r.CRC, ShutdownCheckpoint: r.IsShutdownCheckpoint()}
}

// identity is the checksum of the first record of a timeline, 0 if it is not on disk any more.
func (a *Agent) identity(wal *pgdisk.WAL, tli pgdisk.TimelineID) uint32 {
	if tli <= 1 {
		return 0
	}
	id, err := wal.Identity(tli)
	if err != nil {
		return 0
	}
	return id.CRC
}

// timeline finds the timeline that recovery is on at from: the one the WAL receiver says, else the newest whose history
// runs through pg_control's and that either has not been reached yet or has WAL of its own up to from. A history file
// alone is not enough: a diverged standby fetches that of its primary before it finds out.
func (a *Agent) timeline(ctl pgdisk.Control, from pgdisk.LSN, streaming pgdisk.TimelineID) (pgdisk.TimelineID, error) {
	base := max(ctl.CheckPointTimeline, ctl.MinRecoveryTimeline)
	if streaming >= base {
		return streaming, nil
	}
	for _, t := range a.startedTimelines() {
		if t <= base {
			break
		}
		h, err := pgdisk.ReadHistory(a.walDir(), t)
		if err != nil {
			return 0, err
		}
		sw, ok := h.SwitchPointOf(base)
		if !ok {
			continue
		}
		last := sw
		if from > sw {
			last = from - 1 // at the begin of a segment, where a switch leaves it, nothing has been written yet
		}
		seg := filepath.Join(a.walDir(), pgdisk.SegmentName(t, last, ctl.SegmentSize))
		if _, err := os.Stat(seg); err == nil {
			return t, nil
		}
	}
	return base, nil
}

// histories lists the timelines that have a history file in pg_wal, newest first.
func (a *Agent) histories() []pgdisk.TimelineID {
	names, _ := filepath.Glob(filepath.Join(a.walDir(), "????????.history"))
	var list []pgdisk.TimelineID
	for _, n := range names {
		var t uint32
		if _, err := fmt.Sscanf(filepath.Base(n), "%08X.history", &t); err == nil {
			list = append(list, pgdisk.TimelineID(t))
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i] > list[j] })
	return list
}

// startedTimelines is histories without the placeholders of numbers that were passed over.
func (a *Agent) startedTimelines() []pgdisk.TimelineID {
	return slices.DeleteFunc(a.histories(), func(t pgdisk.TimelineID) bool {
		h, err := pgdisk.ReadHistory(a.walDir(), t)
		return err == nil && baton.IsPlaceholder(h)
	})
}

// connect opens a session, waiting through start-up if patient.
func (a *Agent) connect(ctx context.Context, patient bool) (*postgres.Session, error) {
	var sess *postgres.Session
	var last error
	err := a.poll(ctx, "the server to take connections", 5*time.Millisecond, func() (bool, error) {
		sess, last = a.pg.Connect(ctx)
		if last == nil {
			return true, nil
		}
		if !patient {
			return false, last
		}
		if _, err := a.pg.Postmaster(); err != nil {
			if line := lastFatal(a.pg.LogFile, 0); line != "" {
				return false, fmt.Errorf("the server ended: %s (log: %s)", line, a.pg.LogFile)
			}
			return false, fmt.Errorf("the server ended (log: %s): %w", a.pg.LogFile, err)
		}
		return false, nil
	})
	if err != nil && last != nil && ctx.Err() != nil && !errors.Is(err, last) {
		err = fmt.Errorf("%w: %w", err, last)
	}
	return sess, err
}
