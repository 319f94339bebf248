package view

import (
	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// Outside is what a person is told of an instance that is kept out because its history is not the cluster's.
type Outside struct {
	Verdict baton.Rejoin
	Reason  string
	Doing   string // what its agent is doing about it, or why that stopped
	Busy    bool   // a rewind is under way
	Begun   bool   // or was cut short: what is in the data directory must not be started

	// What it has that the cluster has not; Fork is 0 if that is not known.
	Ends         pgdisk.Position
	Timeline     pgdisk.TimelineID // on which the histories parted
	Fork         pgdisk.LSN
	Bytes        uint64 // of WAL
	Transactions int    // that it committed there; -1: not known
	Waldump      string // the command that shows them

	Conninfo string // how the primary is reached unless another one is given, without a password
	Keeps    int64  // rewind_keep, in megabytes
	StateDir string
	Clone    []string // the commands that make it anew
}
