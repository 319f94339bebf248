package pgdisk

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// HistoryEntry is one line of a timeline history file: Timeline was left at Switch for
// the timeline of the next entry, or, in the last entry, for the one the file is of.
type HistoryEntry struct {
	Timeline TimelineID
	Switch   LSN
	Reason   string // free text of the server
}

// History is the ancestry of a timeline, oldest first, the timeline itself not
// included. Timeline 1 has none. The timeline numbers increase; the switch points
// usually do, but need not: a server that was recovered along timeline 2 to a point
// before 2 began writes 2 into the history all the same.
type History []HistoryEntry

// HistoryFileName is the name in pg_wal of the history file of timeline tli.
func HistoryFileName(tli TimelineID) string { return fmt.Sprintf("%08X.history", uint32(tli)) }

// ParseHistory reads a timeline history file as readTimeLineHistory in
// src/backend/access/transam/timeline.c does. Errors are [*FileError] with
// [ErrBadHistory], or those of r.
func ParseHistory(r io.Reader) (History, error) {
	var h History
	lines := bufio.NewReader(r)
	for n := 1; ; n++ {
		line, err := readLine(lines)
		if errors.Is(err, io.EOF) {
			return h, nil
		}
		if err != nil {
			return nil, err
		}
		e, ok, err := parseHistoryLine(line)
		if err != nil {
			return nil, &FileError{Reason: ErrBadHistory, Expected: "timeline, switch point and reason", Got: fmt.Sprintf("%q in line %d: %v", line, n, err)}
		}
		if !ok {
			continue
		}
		if len(h) > 0 && e.Timeline <= h[len(h)-1].Timeline {
			return nil, &FileError{Reason: ErrBadHistory, Expected: fmt.Sprintf("a timeline above %d", h[len(h)-1].Timeline), Got: fmt.Sprintf("%d in line %d", e.Timeline, n)}
		}
		h = append(h, e)
	}
}

// maxHistoryLine and maxHistorySize bound what a damaged file can make us read. The
// server writes lines of some 100 bytes; a cluster has a few hundred timelines at most.
const (
	maxHistoryLine = 1 << 12
	maxHistorySize = 1 << 22
)

// readLine returns a line without its end, or io.EOF after the last.
func readLine(r *bufio.Reader) (string, error) {
	var sb strings.Builder
	for {
		c, err := r.ReadByte()
		if errors.Is(err, io.EOF) && sb.Len() > 0 {
			return sb.String(), nil
		}
		if err != nil {
			return "", err
		}
		if c == '\n' {
			return sb.String(), nil
		}
		if sb.Len() == maxHistoryLine {
			return "", &FileError{Reason: ErrBadHistory, Expected: fmt.Sprintf("lines of at most %d bytes", maxHistoryLine), Got: "more"}
		}
		sb.WriteByte(c)
	}
}

// parseHistoryLine is ok for a line that holds an entry, and not for an empty one or a
// comment.
func parseHistoryLine(line string) (e HistoryEntry, ok bool, err error) {
	line = strings.TrimLeft(line, " \t\r\v\f")
	if line == "" || line[0] == '#' {
		return HistoryEntry{}, false, nil
	}
	id, rest := cutSpace(line)
	n, err := strconv.ParseUint(id, 10, 32)
	if err != nil || n == 0 {
		return HistoryEntry{}, false, fmt.Errorf("%q is no timeline", id)
	}
	at, reason := cutSpace(rest)
	lsn, err := ParseLSN(at)
	if err != nil {
		return HistoryEntry{}, false, err
	}
	return HistoryEntry{Timeline: TimelineID(n), Switch: lsn, Reason: strings.TrimRight(reason, "\r")}, true, nil
}

// cutSpace splits s after its first word.
func cutSpace(s string) (word, rest string) {
	i := strings.IndexAny(s, " \t")
	if i < 0 {
		return s, ""
	}
	return s[:i], strings.TrimLeft(s[i:], " \t")
}

// ReadHistory reads the history file of timeline tli in walDir. Timeline 1 has an empty
// history and no file. Errors: [ErrBadHistory], [os.ErrNotExist] and others of the
// operating system.
func ReadHistory(walDir string, tli TimelineID) (History, error) {
	if tli == 1 {
		return nil, nil
	}
	path := filepath.Join(walDir, HistoryFileName(tli))
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			// The server would take it for a timeline without ancestors. That would be a guess.
			return nil, fmt.Errorf("the ancestry of timeline %d is unknown: %w: copy that file from another node or from the archive", tli, err)
		}
		return nil, err
	}
	defer f.Close()
	h, err := ParseHistory(io.LimitReader(f, maxHistorySize))
	if err == nil {
		err = h.fits(tli)
	}
	var fe *FileError
	if errors.As(err, &fe) {
		fe.Path = path
	}
	if err != nil {
		return nil, err
	}
	return h, nil
}

// fits checks that h can be the history of tli: the server numbers a timeline above all
// its ancestors, and only timeline 1 has none.
func (h History) fits(tli TimelineID) error {
	if len(h) == 0 {
		return &FileError{Reason: ErrBadHistory, Expected: fmt.Sprintf("the ancestors of timeline %d", tli), Got: "none"}
	}
	if last := h[len(h)-1].Timeline; last >= tli {
		return &FileError{Reason: ErrBadHistory, Expected: fmt.Sprintf("ancestors below timeline %d", tli), Got: fmt.Sprint(last)}
	}
	return nil
}

// String is the text of the history file as the server would write it
// (writeTimeLineHistory): an empty line between the parent's file and the new entry.
func (h History) String() string {
	var sb strings.Builder
	for i, e := range h {
		if i > 0 {
			sb.WriteByte('\n')
		}
		fmt.Fprintf(&sb, "%d\t%s\t%s\n", e.Timeline, e.Switch, e.Reason)
	}
	return sb.String()
}

// SwitchPointOf says where this history leaves the ancestor tli: the first position that
// is not on tli any more. ok is false if tli is no ancestor.
func (h History) SwitchPointOf(tli TimelineID) (lsn LSN, ok bool) {
	for _, e := range h {
		if e.Timeline == tli {
			lsn, ok = e.Switch, true
		} else if ok && e.Switch < lsn {
			// A later timeline left the line before tli did: see History.
			lsn = e.Switch
		}
	}
	return lsn, ok
}

// TimelineAt says which timeline the byte at lsn is on, in the history h of tli
// (tliOfPointInHistory in timeline.c).
func (h History) TimelineAt(tli TimelineID, lsn LSN) TimelineID {
	for i := len(h) - 1; i >= 0; i-- {
		if lsn >= h[i].Switch {
			break
		}
		tli = h[i].Timeline
	}
	return tli
}

// begin is where timeline t of the line to tli begins: 0 for the oldest.
func (h History) begin(t TimelineID) LSN {
	var begin LSN
	for _, e := range h {
		if e.Timeline >= t {
			break
		}
		begin = e.Switch
	}
	return begin
}
