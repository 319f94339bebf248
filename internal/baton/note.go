package baton

import (
	"fmt"

	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// NoteKind tells how the instance that left a note ended.
type NoteKind string

const (
	// Clean is the note of a primary that was shut down cleanly: the record it names is the shutdown checkpoint, the
	// very last record that instance wrote (ShutdownXLOG in src/backend/access/transam/xlog.c).
	Clean NoteKind = "clean"
	// Crash is the note that the agent leaves for a crashed primary once nothing of it runs: the record it names is the
	// last valid one on its disk.
	Crash NoteKind = "crash"
	// Abandoned is a crash note whose instance does not start again: nobody will get from it what the note says, so that
	// the best of the others will do. The note still tells what is lost.
	Abandoned NoteKind = "abandoned"
)

// Note is what an ended primary leaves: the last record of its WAL. Whoever has that record, checksum and all, as the
// last valid record of its own WAL has everything.
//
// Invariant: Start < End, and no primary ever wrote on Timeline at or behind End.
type Note struct {
	Kind     NoteKind
	SystemID uint64 // the cluster's system identifier
	Timeline pgdisk.TimelineID
	Start    pgdisk.LSN // where the record starts
	End      pgdisk.LSN // where it ends: the switch point of the next timeline
	CRC      uint32     // the record's CRC-32C
	Node     string     // who left it
	Nonce    string     // tells this note from every other one
}

// Position is where the WAL of whoever left the note ends.
func (n Note) Position() pgdisk.Position {
	return pgdisk.Position{Timeline: n.Timeline, LSN: n.End}
}

// NewerThan reports whether n supersedes other. Every promotion starts a timeline with a number that no claim had
// before, so timelines order notes; on one timeline the later end wins, and of one end that it was given up.
func (n Note) NewerThan(other *Note) bool {
	if other == nil {
		return true
	}
	if n.Timeline != other.Timeline {
		return n.Timeline > other.Timeline
	}
	return n.End > other.End || n.End == other.End && n.Kind == Abandoned && other.Kind != Abandoned
}

func (n Note) String() string {
	what := "shutdown checkpoint"
	if n.Kind != Clean {
		what = "last record"
	}
	return fmt.Sprintf("%s %s..%s (crc %08x) of timeline %d, left by %s", what, n.Start, n.End, n.CRC, n.Timeline, n.Node)
}

// LastRecord is the last valid record on a candidate's disk, as the proof needs it.
type LastRecord struct {
	Start, End         pgdisk.LSN
	CRC                uint32
	ShutdownCheckpoint bool
}

// Proof tells whether the candidate's WAL ends exactly with the record that the note names. The error says what is
// missing; nil is the proof.
func Proof(n Note, c Candidate) error {
	switch {
	case c.SystemID != n.SystemID:
		return fmt.Errorf("%s belongs to another database cluster: system identifier %d, expected %d", c.Node, c.SystemID, n.SystemID)
	case c.Position.Timeline != n.Timeline:
		return fmt.Errorf("%s is on timeline %d, but %s ended timeline %d", c.Node, c.Position.Timeline, n.Node, n.Timeline)
	case c.Position.LSN < n.End:
		return fmt.Errorf("%s lacks the last %d bytes of WAL: it ends at %s, but the %s", c.Node, n.End-c.Position.LSN, c.Position.LSN, n)
	case c.Position.LSN > n.End:
		return fmt.Errorf("%s has %d bytes of WAL that %s never wrote: it ends at %s, but the %s", c.Node, c.Position.LSN-n.End, n.Node, c.Position.LSN, n)
	case c.Last == nil:
		return fmt.Errorf("the last record of %s could not be read, expected the %s", c.Node, n)
	case c.Last.Start != n.Start || c.Last.End != n.End || c.Last.CRC != n.CRC:
		return fmt.Errorf("the last record of %s is %s..%s (crc %08x), expected the %s", c.Node, c.Last.Start, c.Last.End, c.Last.CRC, n)
	case n.Kind == Clean && !c.Last.ShutdownCheckpoint:
		return fmt.Errorf("the last record of %s is not a shutdown checkpoint, expected the %s", c.Node, n)
	}
	return nil
}
