package pgdisk

import (
	"fmt"
	"strconv"
	"strings"
)

// LSN is a byte position in the write-ahead log (PostgreSQL's XLogRecPtr,
// src/include/access/xlogdefs.h). Zero is PostgreSQL's "invalid" position.
type LSN uint64

// String prints the position as PostgreSQL does: two hexadecimal halves.
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// ParseLSN reads the form that [LSN.String] and PostgreSQL's pg_lsn type print.
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	if !ok {
		return 0, fmt.Errorf("%q is not an LSN: expected the form 16/B374D848", s)
	}
	h, err := strconv.ParseUint(hi, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not an LSN: %w", s, err)
	}
	l, err := strconv.ParseUint(lo, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not an LSN: %w", s, err)
	}
	return LSN(h<<32 | l), nil
}

// TimelineID numbers a timeline (src/include/access/xlogdefs.h). Zero is invalid.
type TimelineID uint32

// Position is where the valid WAL on a disk ends: a timeline, and the end of the
// last valid record on it.
type Position struct {
	Timeline TimelineID
	LSN      LSN
}

func (p Position) String() string { return fmt.Sprintf("%d:%s", p.Timeline, p.LSN) }
