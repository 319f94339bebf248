package pgdisk

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestSegmentName(t *testing.T) {
	const mb = 1 << 20
	for _, test := range []struct {
		tli  TimelineID
		lsn  LSN
		size uint32
		want string
	}{
		// By pg_walfile_name(), and by pg_controldata in TestWALDump for the other sizes.
		{1, 0x16B3748, 16 * mb, "000000010000000000000001"},
		{1, 0xFFFFFFFF, 16 * mb, "0000000100000000000000FF"},
		{1, 0x100000000, 16 * mb, "000000010000000100000000"},
		{0xAB, 0x16B374D848, 16 * mb, "000000AB00000016000000B3"},
		{2, 0x16B374D848, 1 * mb, "000000020000001600000B37"},
		{2, 0x16B374D848, 1024 * mb, "000000020000001600000002"},
	} {
		got := SegmentName(test.tli, test.lsn, test.size)
		if got != test.want {
			t.Errorf("SegmentName(%d, %s, %d): got %s, want %s", test.tli, test.lsn, test.size, got, test.want)
		}
		tli, start, ok := ParseSegmentName(got, test.size)
		if want := test.lsn - test.lsn%LSN(test.size); !ok || tli != test.tli || start != want {
			t.Errorf("ParseSegmentName(%s): got %d %s %v, want %d %s", got, tli, start, ok, test.tli, want)
		}
	}
	for _, name := range []string{
		"", "00000002.history", "000000010000000000000001.partial", "00000001000000000000000g", "00000001000000000000000a",
		"000000000000000000000001", "000000010000000000000100", "+0000001000000000000000A", "xlogtemp.1234567890123456",
	} {
		if _, _, ok := ParseSegmentName(name, 16*mb); ok {
			t.Errorf("ParseSegmentName(%q): got ok", name)
		}
	}
}

func TestParseHistory(t *testing.T) {
	const text = "1\t0/16B3748\tno recovery target specified\n\n# a comment\n  \n2 \t 1/3000000\tbefore 2000-01-01 00:00:00+00\n5\t1/3000000"
	want := History{{1, 0x16B3748, "no recovery target specified"}, {2, 0x103000000, "before 2000-01-01 00:00:00+00"}, {5, 0x103000000, ""}}
	got, err := ParseHistory(strings.NewReader(text))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	again, err := ParseHistory(strings.NewReader(got.String()))
	if err != nil || !reflect.DeepEqual(again, want) {
		t.Errorf("its own text %q: got %v, %v", got.String(), again, err)
	}
	for _, bad := range []string{
		"x", "1", "1\t", "1\t0", "1\t0/", "1\t0/G", "0\t0/1\n", "-1\t0/1", "4294967296\t0/1", "1\t0/100000000\t",
		"2\t0/1\tx\n1\t0/2\ty", "2\t0/1\tx\n2\t0/2\ty", "1 0/1 " + strings.Repeat("x", maxHistoryLine),
	} {
		if h, err := ParseHistory(strings.NewReader(bad)); !errors.Is(err, ErrBadHistory) {
			t.Errorf("%.40q: got %v, %v, want %v", bad, h, err, ErrBadHistory)
		}
	}
}

func TestHistoryLine(t *testing.T) {
	h := History{{1, 0x100, ""}, {2, 0x200, ""}, {4, 0x200, ""}}
	for _, test := range []struct {
		lsn  LSN
		want TimelineID
	}{{0, 1}, {0xFF, 1}, {0x100, 2}, {0x1FF, 2}, {0x200, 7}, {0x300, 7}} {
		if got := h.TimelineAt(7, test.lsn); got != test.want {
			t.Errorf("timeline at %s: got %d, want %d", test.lsn, got, test.want)
		}
	}
	// Recovered along timeline 2 to a point before it began: 2 is in the history, and has
	// nothing on it.
	odd := History{{1, 0x300, ""}, {2, 0x200, ""}}
	if got := odd.TimelineAt(3, 0x1FF); got != 1 {
		t.Errorf("before the early point: got %d, want 1", got)
	}
	if got := odd.TimelineAt(3, 0x250); got != 3 {
		t.Errorf("behind the early point: got %d, want 3", got)
	}
	if got, ok := odd.SwitchPointOf(1); !ok || got != 0x200 {
		t.Errorf("end of timeline 1: got %s, %v, want 0/200", got, ok)
	}
	if _, ok := odd.SwitchPointOf(3); ok {
		t.Error("timeline 3 is no ancestor of itself")
	}
}

func TestReadHistory(t *testing.T) {
	dir := t.TempDir()
	if h, err := ReadHistory(dir, 1); err != nil || len(h) != 0 {
		t.Errorf("timeline 1: got %v, %v", h, err)
	}
	if _, err := ReadHistory(dir, 2); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: got %v", err)
	}
	for _, text := range []string{"", "2\t0/1\tx\n", "1\t0/1\tx\n3\t0/2\ty\n"} {
		if err := os.WriteFile(filepath.Join(dir, HistoryFileName(2)), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if h, err := ReadHistory(dir, 2); !errors.Is(err, ErrBadHistory) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%q as the history of 2: got %v, %v", text, h, err)
		}
	}
}

func TestNewestTimeline(t *testing.T) {
	data := t.TempDir()
	dir := filepath.Join(data, "pg_wal")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"00000002.history": "1\t0/200\tx\n",
		"00000003.history": "1\t0/300\tx\n",
		"00000004.history": "1\t0/300\tx\n3\t0/400\tx\n",
		"0000000a.history": "1\t0/900\tx\n", // not a name of PostgreSQL's
		"00000009.backup":  "x",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w := OpenWAL(data, Control{})
	for _, test := range []struct {
		at   Position
		want TimelineID
	}{
		{Position{1, 0x100}, 4},
		{Position{1, 0x300}, 4}, // exactly at the switch point
		{Position{1, 0x301}, 1}, // diverged from all
		{Position{2, 0x210}, 2}, // 3 and 4 do not have 2 among their ancestors
		{Position{3, 0x400}, 4},
		{Position{3, 0x408}, 3},
		{Position{4, 0x500}, 4},
	} {
		got, err := w.NewestTimeline(test.at)
		if err != nil || got != test.want {
			t.Errorf("from %s: got %d, %v, want %d", test.at, got, err, test.want)
		}
	}
}

func TestArchiveBacklog(t *testing.T) {
	data := t.TempDir()
	if _, err := ArchiveBacklog(data); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no data directory: got %v", err)
	}
	if err := os.Mkdir(filepath.Join(data, "pg_wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := ArchiveBacklog(data); err != nil || len(got) != 0 {
		t.Errorf("no archive_status: got %v, %v", got, err)
	}
	status := filepath.Join(data, "pg_wal", "archive_status")
	if err := os.Mkdir(status, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"00000002000000000000000B.ready", "000000010000000000000009.done", "00000003.history.ready", "00000001000000000000000A.partial.ready",
		"000000010000000000000009.00000028.backup.ready", "00000002.history.ready", "short.ready", "00000001000000000000000Z.ready",
	} {
		if err := os.WriteFile(filepath.Join(status, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"00000002.history", "00000003.history", "000000010000000000000009.00000028.backup", "00000001000000000000000A.partial",
		"00000002000000000000000B",
	}
	got, err := ArchiveBacklog(data)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

func TestReadControlErrors(t *testing.T) {
	data := t.TempDir()
	if _, err := ReadControl(data); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: got %v", err)
	}
	if err := os.Mkdir(filepath.Join(data, "global"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		b    []byte
		want error
	}{
		{"short", make([]byte, 100), ErrTruncated},
		{"zeros", make([]byte, controlFileSize), ErrUnsupportedVersion},
		{"12", append([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0xB1, 4, 0, 0}, make([]byte, controlFileSize)...), ErrUnsupportedVersion},
		{"big-endian", append([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0x14}, make([]byte, controlFileSize)...), ErrUnsupportedVersion},
		{"wrong checksum", append([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0x14, 5, 0, 0}, make([]byte, controlFileSize)...), ErrBadCRC},
	} {
		if err := os.WriteFile(ControlPath(data), test.b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadControl(data); !errors.Is(err, test.want) || !strings.Contains(err.Error(), ControlPath(data)) {
			t.Errorf("%s: got %v, want %v with the path", test.name, err, test.want)
		}
	}
}
