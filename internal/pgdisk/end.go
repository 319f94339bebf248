package pgdisk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
)

// End is where the valid WAL ends. Its Position is the end of the last valid record and
// the timeline which that record is on (the byte before LSN).
type End struct {
	Position
	Last    Record // the last valid record
	HasLast bool   // false: there was none from the start of the search on
	// Stop is the [*InvalidError] that says why nothing valid follows.
	Stop error
}

// FindEnd walks along the history of timeline tli from the record boundary from to the
// last valid record, by the rules of recovery: every record's page headers, length,
// checksum and link to the one before. from may also be the start of a page or a
// segment, where a record ended.
//
// If there is nothing valid at from, the end is from itself, with HasLast false. It is an error
// (not an end) if something could not be read, is cut short or belongs to another cluster,
// and if the segment of from is already removed ([ErrSegmentRemoved]). If ctx ends, the End that comes
// with its error says how far the WAL is valid at least.
func (w *WAL) FindEnd(ctx context.Context, tli TimelineID, from LSN) (End, error) {
	r, err := w.reader(ctx, tli, readAheadWalk)
	if err != nil {
		return End{}, err
	}
	return r.findEnd(from)
}

// FindEndAlong is FindEnd for a timeline whose history file is missing: h is what is known of its ancestors from
// elsewhere, which need not be all of them.
func (w *WAL) FindEndAlong(ctx context.Context, tli TimelineID, h History, from LSN) (End, error) {
	r, err := w.readerOf(ctx, tli, h, readAheadWalk)
	if err != nil {
		return End{}, err
	}
	r.partial = true
	return r.findEnd(from)
}

func (r *reader) findEnd(from LSN) (End, error) {
	defer r.close()

	end := End{Position: Position{Timeline: r.timelineBefore(from), LSN: from}}
	rec, err := r.first(from)
	for err == nil {
		end.Last, end.HasLast = rec, true
		end.Position = Position{Timeline: r.timelineBefore(rec.End), LSN: rec.End}
		prev := rec.Start
		rec, err = r.next(rec.End, &prev)
	}
	var invalid *InvalidError
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return end, err
	case !errors.As(err, &invalid):
		return End{}, err
	}
	if !end.HasLast && errors.Is(err, ErrMissingSegment) && r.segmentOf(invalid.LSN) == r.segmentOf(from) {
		if removed := r.removed(from); removed != nil {
			return End{}, removed
		}
	}
	end.Stop = err
	return end, nil
}

// timelineBefore is the timeline of the byte before lsn.
func (r *reader) timelineBefore(lsn LSN) TimelineID {
	if lsn == 0 {
		return r.history.TimelineAt(r.tli, 0)
	}
	return r.history.TimelineAt(r.tli, lsn-1)
}

// next reads the record at lsn, or, when that one was given up by a crash, the one with
// which the server went on.
func (r *reader) next(lsn LSN, prev *LSN) (Record, error) {
	rec, err := r.record(lsn, prev)
	var gone *overwrittenError
	if !errors.As(err, &gone) {
		return rec, err
	}
	rec, err = r.record(gone.next, prev)
	if err != nil {
		return Record{}, err
	}
	// VerifyOverwriteContrecord in xlogrecovery.c.
	if start, ok := rec.overwritten(); !ok || start != gone.start {
		return Record{}, r.invalid(ErrBadContinuation, rec.Start, fmt.Sprintf("a mark that the record at %s was given up", gone.start), fmt.Sprintf("resource manager %d, info %02X, %s", rec.Rmgr, rec.Info, start))
	}
	return rec, nil
}

// overwritten is where the record began that was given up before this one.
func (r Record) overwritten() (LSN, bool) {
	if !r.isXLOG(infoOverwriteContrecord) {
		return 0, false
	}
	b, err := r.mainData(8)
	if err != nil {
		return 0, false
	}
	return LSN(binary.LittleEndian.Uint64(b)), true
}

// first reads the record at from, before which no record is known to which it must link
// back. The server then only wants an earlier link. That is not enough here: in a page of a recycled
// segment that is half overwritten, an old record may stand at from, intact. So the record
// that it links back to must end where it begins; where that one's segment is gone, it
// must be the first record that begins in its own.
func (r *reader) first(from LSN) (Record, error) {
	rec, err := r.next(from, nil)
	if err != nil {
		return Record{}, err
	}
	bad := func(got string) error {
		return r.invalid(ErrBadPrevLink, rec.Start, "a link to the record that ends here", got)
	}
	if rec.Prev == 0 {
		// The very first record of a cluster, also after pg_resetwal and pg_upgrade.
		if rec.IsShutdownCheckpoint() && rec.Start == r.segmentOf(rec.Start)+longPageHeader {
			return rec, nil
		}
		return Record{}, bad("none")
	}
	prev, err := r.record(rec.Prev, nil)
	switch {
	case err == nil:
		if prev.Start == rec.Prev && r.follows(prev, rec) {
			return rec, nil
		}
		return Record{}, bad(fmt.Sprintf("%s, which ends at %s", rec.Prev, prev.End))
	case errors.Is(err, ErrMissingSegment):
		start, err := r.firstIn(r.segmentOf(rec.Start))
		if err != nil {
			return Record{}, err
		}
		if start == rec.Start && rec.Prev < r.segmentOf(rec.Start) {
			return rec, nil
		}
		return Record{}, bad(fmt.Sprintf("%s, which is not on this disk, while the first record of the segment begins at %s", rec.Prev, start))
	}
	var invalid *InvalidError
	if errors.As(err, &invalid) {
		return Record{}, bad(fmt.Sprintf("%s, where no valid record is: %v", rec.Prev, err))
	}
	return Record{}, err
}

// follows says whether rec begins where prev ended.
func (r *reader) follows(prev, rec Record) bool {
	if prev.End == rec.Start {
		return true
	}
	// After a record that was given up there is a gap, and the mark of it.
	if start, ok := rec.overwritten(); ok {
		return start == prev.End || (prev.End == r.pageOf(prev.End) && start > prev.End && start <= prev.End+longPageHeader)
	}
	// prev ended with its page.
	header := LSN(shortPageHeader)
	if prev.End == r.segmentOf(prev.End) {
		header = longPageHeader
	}
	return prev.End == r.pageOf(prev.End) && rec.Start == prev.End+header
}

// firstIn is where the first record begins that begins in the segment at seg
// (XLogFindNextRecord in xlogreader.c).
func (r *reader) firstIn(seg LSN) (LSN, error) {
	size := LSN(r.ctl.WALBlockSize)
	for addr := seg; addr < seg+LSN(r.ctl.SegmentSize); addr += size {
		p, err := r.page(addr)
		if err != nil {
			return 0, err
		}
		start := addr + LSN(p.header())
		if p.flags()&pageFirstIsContrecord == 0 {
			return start, nil
		}
		start += LSN(align8(uint64(p.remaining())))
		if start < addr+size {
			return start, nil
		}
		if start == addr+size {
			// It ends with its page: the next page begins with a header, and a record.
			continue
		}
	}
	return 0, r.invalid(ErrNoRecord, seg, "a record that begins in this segment", "")
}

// FirstRecordIn is where the first record begins that begins in the segment of lsn, along the history of timeline tli: a
// record boundary from which [WAL.FindEnd] may start where it is known otherwise that WAL is valid up to lsn.
func (w *WAL) FirstRecordIn(tli TimelineID, lsn LSN) (LSN, error) {
	r, err := w.reader(context.Background(), tli, readAheadOne)
	if err != nil {
		return 0, err
	}
	defer r.close()
	return r.firstIn(r.segmentOf(lsn))
}

// removed is an error if the segment of from is not there, but a later one of the same
// line is: then from is not where the WAL ends, it is where it is already forgotten.
func (r *reader) removed(from LSN) error {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return err
	}
	seg := r.segmentOf(from)
	oldest := ""
	var oldestStart LSN
	for _, e := range entries {
		tli, start, ok := ParseSegmentName(e.Name(), r.ctl.SegmentSize)
		if !ok || start <= seg || (oldest != "" && start >= oldestStart) {
			continue
		}
		if slices.Contains(r.candidates(start), tli) {
			oldest, oldestStart = e.Name(), start
		}
	}
	if oldest == "" {
		return nil
	}
	// The WAL receiver may have made both since we looked. It makes them in order.
	path := r.path
	switch err := r.open(seg); {
	case err == nil:
		return nil
	case !errors.Is(err, ErrMissingSegment):
		return err
	}
	return &FileError{
		Reason:   ErrSegmentRemoved,
		Path:     path,
		Expected: fmt.Sprintf("the segment of %s", from),
		Got:      fmt.Sprintf("nothing before %s", oldest),
	}
}

// FirstRecord is the first record that was written on timeline tli, at its switch point.
// Timeline 1 and a timeline whose first segment is already removed have none:
// [ErrNoIdentity].
func (w *WAL) FirstRecord(tli TimelineID) (Record, error) {
	r, err := w.reader(context.Background(), tli, readAheadOne)
	if err != nil {
		return Record{}, err
	}
	defer r.close()
	return r.firstOfTimeline()
}

func (r *reader) firstOfTimeline() (Record, error) {
	if len(r.history) == 0 {
		return Record{}, fmt.Errorf("timeline %d in %s: %w: it was not made by a promotion", r.tli, r.dir, ErrNoIdentity)
	}
	at := r.history[len(r.history)-1].Switch
	rec, err := r.record(at, nil)
	if err == nil && r.fileTLI != r.tli && r.segmentOf(rec.Start) == r.segment {
		err = r.invalid(ErrWrongTimeline, at, fmt.Sprintf("a segment of timeline %d", r.tli), fmt.Sprintf("one of timeline %d", r.fileTLI))
	}
	if errors.Is(err, ErrMissingSegment) {
		return Record{}, fmt.Errorf("timeline %d: %w: its first segment is not there: %w", r.tli, ErrNoIdentity, err)
	}
	return rec, err
}

// TimelineIdentity tells timelines apart that have the same number and the same switch
// point, but were made by different servers ("twins").
type TimelineIdentity struct {
	Timeline TimelineID
	Switch   LSN
	// CRC is the checksum of the record with which the server ended its recovery: the first
	// of the timeline. It holds a time stamp, in microseconds (a shutdown checkpoint instead
	// of it: in seconds).
	CRC uint32
}

// String is "timeline:switch:crc".
func (id TimelineIdentity) String() string {
	return fmt.Sprintf("%d:%s:%08X", id.Timeline, id.Switch, id.CRC)
}

// identityRecords bounds how far behind the switch point the end of recovery may be. In
// all versions so far it is the first record.
const identityRecords = 16

// Identity is the identity of timeline tli. Should something without a time stamp come
// before the end of recovery, it is passed over: twins may have that in common.
// Errors as with [WAL.FirstRecord].
func (w *WAL) Identity(tli TimelineID) (TimelineIdentity, error) {
	r, err := w.reader(context.Background(), tli, readAheadOne)
	if err != nil {
		return TimelineIdentity{}, err
	}
	defer r.close()
	rec, err := r.firstOfTimeline()
	for range identityRecords {
		if err != nil {
			return TimelineIdentity{}, err
		}
		if rec.IsEndOfRecovery() || rec.IsShutdownCheckpoint() {
			return TimelineIdentity{Timeline: tli, Switch: r.history[len(r.history)-1].Switch, CRC: rec.CRC}, nil
		}
		prev := rec.Start
		rec, err = r.next(rec.End, &prev)
	}
	return TimelineIdentity{}, fmt.Errorf("timeline %d in %s: %w: no end of recovery among its first %d records", tli, r.dir, ErrNoIdentity, identityRecords)
}
