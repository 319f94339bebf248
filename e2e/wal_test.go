package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// timeline is the timeline that a primary writes.
func (s *scenario) timeline(primary string) uint32 {
	s.t.Helper()
	v, err := strconv.ParseUint(s.sql(primary, "SELECT left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)"), 16, 32)
	s.must(err)
	return uint32(v)
}

// fork reads a timeline's history file on a node: where it left the timeline was. Between the two may lie numbers that
// were passed over, because somebody had meant to start them: timelines that end where they begin, without a record.
func (s *scenario) fork(node string, timeline, was uint32) uint64 {
	s.t.Helper()
	path := filepath.Join(s.walDir(node), fmt.Sprintf("%08X.history", timeline))
	b, err := os.ReadFile(path)
	s.must(err)
	var at uint64
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		parent, err := strconv.ParseUint(f[0], 10, 32)
		s.must(err)
		left := parseLSN(s.t, f[1])
		switch {
		case uint32(parent) == was:
			at = left
		case uint32(parent) > was && left != at:
			s.t.Errorf("%s: timeline %d was left at %s and timeline %d at %s, expected nothing between them:\n%s", path, was, formatLSN(at), parent, f[1], b)
		}
	}
	if at == 0 {
		s.t.Fatalf("%s has no line for timeline %d:\n%s", path, was, b)
	}
	return at
}

// walDir is a node's pg_wal, as this program sees it.
func (s *scenario) walDir(node string) string {
	return filepath.Join(s.lab.Dir, "nodes", node, "data", "pg_wal")
}

// waldump is pg_waldump on a node's WAL of a timeline. It is told the file to begin with: without, it learns how large a segment
// is from any file that it finds first, which may be one that a server is just making.
func (s *scenario) waldump(node string, timeline uint32, from uint64, more ...string) *exec.Cmd {
	args := append([]string{"-p", s.walDir(node), "-s", formatLSN(from)}, more...)
	first := s.segmentName(timeline, from)
	last := first // with one name it would stop at that file's end
	for at := from; s.exists(node, s.segmentName(timeline, at)); at += uint64(s.lab.WALSegMB) << 20 {
		last = s.segmentName(timeline, at)
	}
	return exec.CommandContext(s.ctx, filepath.Join(s.lab.Bindir, "pg_waldump"), append(args, first, last)...)
}

// exists reports whether a file is there in a node's pg_wal.
func (s *scenario) exists(node, name string) bool {
	_, err := os.Stat(filepath.Join(s.walDir(node), name))
	return err == nil
}

// segmentName is the file that holds a position of a timeline.
func (s *scenario) segmentName(timeline uint32, at uint64) string {
	segment := uint64(s.lab.WALSegMB) << 20
	return fmt.Sprintf("%08X%08X%08X", timeline, at>>32, at%(1<<32)/segment)
}

// walRecord is a WAL record as pg_waldump shows it.
type walRecord struct {
	start, end uint64
	desc       string
}

var (
	dumpLine = regexp.MustCompile(`(?m)len \(rec/tot\): *\d+/ *(\d+), .*lsn: ([0-9A-F]+/[0-9A-F]+), prev [0-9A-F]+/[0-9A-F]+, desc: (.*)$`)
	dumpEnd  = regexp.MustCompile(`error in WAL record at ([0-9A-F]+/[0-9A-F]+): `) // the last valid record, behind which there is none
)

// lastRecord reads the last record of a timeline in a node's pg_wal with pg_waldump, looking from shortly before a
// position on.
func (s *scenario) lastRecord(node string, timeline uint32, near uint64) walRecord {
	s.t.Helper()
	segment := uint64(s.lab.WALSegMB) << 20
	from := (near - min(near, 64<<10)) / 8192 * 8192
	if begin := (near - 1) / segment * segment; from < begin {
		// A record may begin in the segment before and end here. But that one may be gone, or another timeline's, or have zeros at
		// its end, because it was switched from.
		if last, _, err := s.dumped(node, timeline, from, segment); err == nil {
			return last
		}
		from = begin
	}
	last, cmd, err := s.dumped(node, timeline, from, segment)
	if err != nil {
		s.t.Fatalf("%s: %v", cmd, err)
	}
	return last
}

// dumped is the last record of a timeline in a node's pg_wal, and the command that was asked.
func (s *scenario) dumped(node string, timeline uint32, from, segment uint64) (walRecord, *exec.Cmd, error) {
	cmd := s.waldump(node, timeline, from)
	out, _ := cmd.CombinedOutput() // it ends with an error where the WAL ends
	last, err := lastDumped(string(out), segment)
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return last, cmd, err
}

// lastDumped is the last record that pg_waldump printed. Where it ends follows from its length: the message behind it names
// that place only sometimes, and no position at all where the record fills its page.
func lastDumped(out string, segment uint64) (walRecord, error) {
	lines := dumpLine.FindAllStringSubmatch(out, -1)
	end := dumpEnd.FindStringSubmatch(out)
	if len(lines) == 0 {
		return walRecord{}, errors.New("a record expected")
	}
	last := lines[len(lines)-1]
	total, err1 := strconv.ParseUint(last[1], 10, 32)
	start, err2 := readLSN(last[2])
	if err := errors.Join(err1, err2); err != nil {
		return walRecord{}, err
	}
	record := walRecord{start: start, end: recordEnd(start, total, segment), desc: last[3]}
	switch {
	case end == nil && record.end%segment != 0: // else all files were read
		return walRecord{}, errors.New("an end expected")
	case end != nil && end[1] != formatLSN(start):
		return walRecord{}, fmt.Errorf("it ended after the record at %s, and printed none after that at %s", end[1], formatLSN(start))
	}
	return record, nil
}

// Ensure what pg_waldump 15 says of the last record is understood, whatever it met behind it. (Shutdown checkpoints of one
// server, each at another distance from its page's end; and the messages for a record that goes on to a page that is missing.)
func TestLastDumped(t *testing.T) {
	const checkpoint = "rmgr: XLOG        len (rec/tot):    114/   114, tx:          0, lsn: 0/0%X, prev 0/02001B60, desc: CHECKPOINT_SHUTDOWN redo 0/%[1]X; tli 1; shutdown\n"
	for _, tt := range []struct {
		start, end uint64
		message    string
	}{
		{0x2001F70, 0x2001FE8, "pg_waldump: error: error in WAL record at 0/2001F70: invalid record length at 0/2001FE8: wanted 24, got 0\n"},
		{0x2001F78, 0x2001FF0, "pg_waldump: error: error in WAL record at 0/2001F78: invalid record length at 0/2001FF0: wanted 24, got 0\n"},
		{0x2001F88, 0x2002000, "pg_waldump: error: error in WAL record at 0/2001F88: invalid magic number 0000 in log segment 000000010000000000000002, offset 8192\n"},
		{0x2001F78, 0x2001FF0, "pg_waldump: error: error in WAL record at 0/2001F78: unexpected pageaddr 0/1002000 in log segment 000000010000000000000002, offset 8192\n"},
		{0x2001F70, 0x2001FE8, "pg_waldump: error: error in WAL record at 0/2001F70: there is no contrecord flag at 0/2002000\n"},
		{0x2001FB0, 0x2002040, "pg_waldump: error: error in WAL record at 0/2001FB0: invalid record length at 0/2002040: wanted 24, got 0\n"},
		{0x2FFFFB0, 0x3000050, "pg_waldump: error: error in WAL record at 0/2FFFFB0: invalid record length at 0/3000050: wanted 24, got 0\n"},
		{0x2FFFF88, 0x3000000, ""}, // the last file is full
	} {
		got, err := lastDumped(fmt.Sprintf(checkpoint, tt.start)+tt.message, 16<<20)
		if err != nil || got.start != tt.start || got.end != tt.end {
			t.Errorf("%s: got %X to %X, %v; expected the end at %X", tt.message, got.start, got.end, err, tt.end)
		}
	}
	for _, message := range []string{"", "pg_waldump: error: error in WAL record at 0/2002000: invalid record length at 0/2002078: wanted 24, got 0\n"} {
		if got, err := lastDumped(fmt.Sprintf(checkpoint, 0x2001F88)+message, 16<<20); err == nil {
			t.Errorf("%q: got %+v, expected an error: it printed no end of this record", message, got)
		}
	}
}

// proven checks a handover with pg_waldump and a .history file alone: the new primary's timeline forks from the old one
// at the end of the shutdown checkpoint, which is the last record that the old primary wrote on it.
func (s *scenario) proven(from string, was uint32, to string) (now uint32) {
	s.t.Helper()
	now = s.timeline(to)
	if now <= was {
		s.t.Fatalf("%s writes timeline %d; %s wrote %d before", to, now, from, was)
	}
	fork := s.fork(to, now, was)
	last := s.lastRecord(from, was, fork)
	if !strings.HasPrefix(last.desc, "CHECKPOINT_SHUTDOWN") {
		s.t.Errorf("the last record of %s on timeline %d, at %s, is %q, expected CHECKPOINT_SHUTDOWN", from, was, formatLSN(last.start), last.desc)
	}
	if last.end != fork {
		s.t.Errorf("timeline %d of %s forks at %s; the shutdown checkpoint of %s ends at %s", now, to, formatLSN(fork), from, formatLSN(last.end))
	}
	return now
}

// forksAtTheEnd checks with pg_waldump and a .history file alone that a new primary has everything that the old one had
// written: its timeline forks where the last valid record of the old one ends.
func (s *scenario) forksAtTheEnd(now string, was uint32) {
	s.t.Helper()
	timeline := s.timeline(now)
	fork := s.fork(now, timeline, was)
	last := s.lastRecord(s.old, was, fork)
	if last.end != fork {
		s.t.Errorf("timeline %d of %s forks at %s; the WAL of %s on timeline %d ends at %s, with %q", timeline, now, formatLSN(fork), s.old, was, formatLSN(last.end), last.desc)
	}
}

// commitsAfter counts the transactions that a node committed on a timeline from a position on, with pg_waldump: what a
// takeover without them has lost.
func (s *scenario) commitsAfter(node string, timeline uint32, from uint64) int {
	s.t.Helper()
	cmd := s.waldump(node, timeline, from, "-r", "Transaction")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) { // it ends with an error where the WAL ends
		s.t.Fatal(err)
	}
	return len(regexp.MustCompile(`(?m)desc: COMMIT `).FindAllString(string(out), -1))
}

// walBetween reads a node's WAL of a timeline from a position on with pg_waldump: where the first record begins and where
// the last one ends that is complete at the other position.
func (s *scenario) walBetween(node string, timeline uint32, from, to uint64) (first, end uint64) {
	s.t.Helper()
	cmd := s.waldump(node, timeline, from)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) { // it ends with an error where the WAL ends
		s.t.Fatal(err)
	}
	for _, m := range dumpLine.FindAllStringSubmatch(string(out), -1) {
		at := parseLSN(s.t, m[2])
		if first == 0 {
			first = at
		}
		if at > to {
			break
		}
		end = at // where the next one begins
	}
	return first, end
}

func parseLSN(t testing.TB, text string) uint64 {
	t.Helper()
	lsn, err := readLSN(text)
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

func readLSN(text string) (uint64, error) {
	high, low, ok := strings.Cut(text, "/")
	hi, err1 := strconv.ParseUint(high, 16, 32)
	lo, err2 := strconv.ParseUint(low, 16, 32)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("%q is no position in WAL", text)
	}
	return hi<<32 | lo, nil
}

func formatLSN(lsn uint64) string { return fmt.Sprintf("%X/%X", lsn>>32, lsn&0xFFFFFFFF) }
