package pgdisk

import (
	"errors"
	"fmt"
)

// Reasons why a place in the WAL holds no valid record. They arrive wrapped in an
// [*InvalidError], which adds the place; test for them with [errors.Is].
var (
	// ErrNoRecord: the place where a record would begin holds zeros: the usual end.
	ErrNoRecord = errors.New("no record, zeros")
	// ErrBadLength: a record's length is impossible.
	ErrBadLength = errors.New("invalid record length")
	// ErrBadResourceManager: a record names a resource manager that this version has not.
	ErrBadResourceManager = errors.New("invalid resource manager")
	// ErrBadPrevLink: a record does not point back to the record before it. It is left
	// from an earlier use of the segment.
	ErrBadPrevLink = errors.New("incorrect link to the previous record")
	// ErrBadCRC: checksum and contents differ. Also used for pg_control.
	ErrBadCRC = errors.New("incorrect checksum")
	// ErrBadContinuation: a record goes on over a page's end, but the next page does not
	// continue it; or the place given is inside a record.
	ErrBadContinuation = errors.New("record is not continued on the next page")
	// ErrBadOffset: the position given cannot be the start of a record.
	ErrBadOffset = errors.New("not a record boundary")
	// ErrBadMagic: a page is empty, or of another version, or encrypted.
	ErrBadMagic = errors.New("invalid page magic")
	// ErrBadPageHeader: a page's flags or its long header are impossible.
	ErrBadPageHeader = errors.New("invalid page header")
	// ErrWrongPageAddress: the page was written for another position: a recycled segment.
	ErrWrongPageAddress = errors.New("unexpected page address")
	// ErrWrongTimeline: the page was written on a timeline that this position does not
	// belong to.
	ErrWrongTimeline = errors.New("page of another timeline")
	// ErrMissingSegment: there is no file for the segment.
	ErrMissingSegment = errors.New("no such WAL segment")
	// ErrPastSwitchPoint: the record reaches past the end of an ancestor timeline, and
	// there is no segment of the descendant to read on in.
	ErrPastSwitchPoint = errors.New("past the end of an ancestor timeline")
)

// Failures of the reading itself. They are never an [End].Stop.
var (
	// ErrUnsupportedVersion: a version of PostgreSQL or a machine layout that this
	// package does not know.
	ErrUnsupportedVersion = errors.New("unsupported version of PostgreSQL")
	// ErrBadControl: pg_control is intact by its checksum, but makes no sense.
	ErrBadControl = errors.New("invalid pg_control")
	// ErrNotAFile: something else stands in the place of a file.
	ErrNotAFile = errors.New("not a regular file")
	// ErrTruncated: a file is shorter than it must be.
	ErrTruncated = errors.New("file cut short")
	// ErrWrongSystem: a segment was written by another cluster (system identifier,
	// segment size or page size).
	ErrWrongSystem = errors.New("WAL of another cluster")
	// ErrSegmentRemoved: the position is older than what pg_wal still holds.
	ErrSegmentRemoved = errors.New("WAL segment already removed")
	// ErrBadHistory: a timeline history file cannot be parsed, or contradicts itself.
	ErrBadHistory = errors.New("invalid timeline history")
	// ErrNotACheckPoint: a record was asked for its checkpoint and is none.
	ErrNotACheckPoint = errors.New("not a checkpoint record")
	// ErrNoIdentity: the timeline has no first record of its own on this disk.
	ErrNoIdentity = errors.New("timeline without identity")
)

// InvalidError says why a place in the WAL holds no valid record. It unwraps to one of
// the reasons above.
type InvalidError struct {
	Reason   error  // one of the sentinels above
	Path     string // the segment, or where it should be
	LSN      LSN    // the record's or the page's position
	Timeline TimelineID
	Expected string // empty where there is nothing to say
	Got      string
}

func (e *InvalidError) Error() string {
	s := fmt.Sprintf("%s at %s of timeline %d (%s)", e.Reason, e.LSN, e.Timeline, e.Path)
	if e.Expected != "" {
		s += ": expected " + e.Expected
	}
	if e.Got != "" {
		s += ", got " + e.Got
	}
	return s
}

// Unwrap gives the reason to [errors.Is].
func (e *InvalidError) Unwrap() error { return e.Reason }

// FileError says what is wrong with a file as a whole. It unwraps to one of the
// sentinels above.
type FileError struct {
	Reason   error
	Path     string
	Expected string
	Got      string
}

func (e *FileError) Error() string {
	s := fmt.Sprintf("%s: %s", e.Path, e.Reason)
	if e.Expected != "" {
		s += ": expected " + e.Expected
	}
	if e.Got != "" {
		s += ", got " + e.Got
	}
	return s
}

// Unwrap gives the reason to [errors.Is].
func (e *FileError) Unwrap() error { return e.Reason }
