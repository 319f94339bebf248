package pgdisk

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// damageMajor is the version on whose golden files damage is tried.
const damageMajor = 17

// segmentFile is the file that holds lsn.
func (g golden) segmentFile(tli TimelineID, lsn LSN) string {
	return filepath.Join(g.data, "pg_wal", SegmentName(tli, lsn, testSeg))
}

// patch changes the bytes at lsn, in the file of timeline tli.
func (g golden) patch(t testing.TB, tli TimelineID, lsn LSN, b []byte) {
	t.Helper()
	f, err := os.OpenFile(g.segmentFile(tli, lsn), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, int64(lsn%testSeg)); err != nil {
		t.Fatal(err)
	}
}

func (g golden) read(t testing.TB, tli TimelineID, lsn LSN, n int) []byte {
	t.Helper()
	f, err := os.Open(g.segmentFile(tli, lsn))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, int64(lsn%testSeg)); err != nil {
		t.Fatal(err)
	}
	return b
}

func (g golden) wal(t testing.TB) *WAL {
	t.Helper()
	c, err := ReadControl(g.data)
	if err != nil {
		t.Fatal(err)
	}
	return OpenWAL(g.data, c)
}

func (g golden) findEnd(t testing.TB, tli TimelineID, from LSN) End {
	t.Helper()
	end, err := g.wal(t).FindEnd(context.Background(), tli, from)
	if err != nil {
		t.Fatal(err)
	}
	return end
}

// makeRecord is a record with a right checksum: a logical message, or whatever rmgr
// and data say. length is what its header says, if not 0.
func makeRecord(prev LSN, rmgr, info uint8, data []byte, length uint32) []byte {
	b := make([]byte, recordHeaderSize, recordHeaderSize+len(data)+8)
	b = append(b, data...)
	if length == 0 {
		length = uint32(len(b))
	}
	le := binary.LittleEndian
	le.PutUint32(b, length)
	le.PutUint64(b[8:], uint64(prev))
	b[16], b[17] = info, rmgr
	crc := crc32.Checksum(b[recordHeaderSize:], castagnoli)
	le.PutUint32(b[20:], crc32.Update(crc, castagnoli, b[:20]))
	return b
}

// TestDamagedRecord flips bytes: a damaged record is never taken for valid, and
// nothing before it is lost.
func TestDamagedRecord(t *testing.T) {
	g := loadGolden(t, damageMajor)
	from := g.first(t)
	all := walk(t, g.wal(t), 2, from)
	last := all[len(all)-1]
	rng := rand.New(rand.NewPCG(1, 2))
	// Every byte of the short records, some of the long ones.
	for i, rec := range all {
		tried := 0
		for at := rec.Start; at < rec.End && tried < int(rec.TotalLength); {
			tli := TimelineID(1)
			if at-at%testSeg >= last.Start-last.Start%testSeg {
				tli = 2 // the last segment is there twice
			}
			header := LSN(shortPageHeader)
			if at%testSeg < testPage {
				header = longPageHeader
			}
			if at%testPage < header {
				at += header - at%testPage
				continue
			}
			if at >= rec.End-LSN(align8(uint64(rec.TotalLength))-uint64(rec.TotalLength)) {
				break // what fills up to the next record
			}
			was := g.read(t, tli, at, 1)
			g.patch(t, tli, at, []byte{was[0] ^ 1<<rng.IntN(8)})
			end := g.findEnd(t, 2, rec.Start)
			if end.HasLast {
				t.Errorf("record %d (%+v) with a wrong byte at %s: got %+v", i, rec, at, end.Last)
			}
			g.patch(t, tli, at, was)
			tried++
			if rec.TotalLength < 256 {
				at++
			} else {
				at += LSN(1 + rng.IntN(int(rec.TotalLength)/20))
			}
		}
		if i > 0 {
			// A walk that comes from before ends before it.
			b := g.read(t, fileTLI(rec, last), rec.Start+4, 1)
			g.patch(t, fileTLI(rec, last), rec.Start+4, []byte{^b[0]})
			if end := g.findEnd(t, 2, from); end.LSN != all[i-1].End || end.Last.CRC != all[i-1].CRC {
				t.Errorf("record %d damaged: end is %s, want %s", i, end.LSN, all[i-1].End)
			}
			g.patch(t, fileTLI(rec, last), rec.Start+4, b)
		}
	}
	if end := g.findEnd(t, 2, from); end.Last.CRC != last.CRC || end.LSN != last.End {
		t.Errorf("mended again: got %+v", end)
	}
}

// fileTLI is the timeline of the file where a record of the golden files is read from.
func fileTLI(rec, last Record) TimelineID {
	if rec.Start/testSeg == last.Start/testSeg {
		return 2
	}
	return 1
}

// TestStaleRecord plants intact records where none was written: what is left in
// recycled segments.
func TestStaleRecord(t *testing.T) {
	g := loadGolden(t, damageMajor)
	end := g.findEnd(t, 2, g.first(t))
	message := make([]byte, 40)
	for _, test := range []struct {
		name   string
		record []byte
		want   error // nil: it is taken
	}{
		{"the true next one", makeRecord(end.Last.Start, 21, 0, message, 0), nil},
		{"links to an older one", makeRecord(end.Last.Prev, 21, 0, message, 0), ErrBadPrevLink},
		{"links into a removed segment", makeRecord(0x123450, 21, 0, message, 0), ErrBadPrevLink},
		{"links to nothing", makeRecord(0, 21, 0, message, 0), ErrBadPrevLink},
		{"links ahead", makeRecord(end.LSN+8, 21, 0, message, 0), ErrBadPrevLink},
		{"a first checkpoint, not at a segment's start", makeRecord(0, 0, 0, message, 0), ErrBadPrevLink},
		{"no such resource manager", makeRecord(end.Last.Start, 22, 0, message, 0), ErrBadResourceManager},
		{"of an extension", makeRecord(end.Last.Start, 128, 0, message, 0), nil},
		{"shorter than its header", makeRecord(end.Last.Start, 21, 0, message, 23), ErrBadLength},
		{"longer than anything", makeRecord(end.Last.Start, 21, 0, message, 0xFFFFFFFF), ErrWrongPageAddress},
		{"longer than it is", makeRecord(end.Last.Start, 21, 0, message, 72), ErrBadCRC},
		{"length zero", make([]byte, 64), ErrNoRecord},
	} {
		t.Run(test.name, func(t *testing.T) {
			was := g.read(t, 2, end.LSN, 128)
			g.patch(t, 2, end.LSN, test.record)
			defer g.patch(t, 2, end.LSN, was)
			for _, from := range []LSN{g.first(t), end.Last.Start, end.LSN} {
				got := g.findEnd(t, 2, from)
				if test.want == nil {
					if got.LSN <= end.LSN {
						t.Errorf("from %s: got %s, %v: not taken", from, got.LSN, got.Stop)
					}
					continue
				}
				if got.LSN != end.LSN || got.HasLast != (from < end.LSN) {
					t.Errorf("from %s: got %+v", from, got)
				}
				if !errors.Is(got.Stop, test.want) && !(test.want == ErrWrongPageAddress && errors.Is(got.Stop, ErrBadMagic)) {
					t.Errorf("from %s: stop %v, want %v", from, got.Stop, test.want)
				}
			}
		})
	}
}

// TestPastSwitchPoint: what an ancestor wrote after it was left is not on the line.
func TestPastSwitchPoint(t *testing.T) {
	g := loadGolden(t, damageMajor)
	h, err := ReadHistory(g.wal(t).dir, 2)
	if err != nil {
		t.Fatal(err)
	}
	at, _ := h.SwitchPointOf(1)
	from := g.first(t)
	parent := g.findEnd(t, 1, from)
	if parent.LSN != at {
		t.Fatalf("timeline 1 ends at %s, its switch point is %s", parent.LSN, at)
	}
	g.patch(t, 1, at, makeRecord(parent.Last.Start, 21, 0, make([]byte, 40), 0))
	if got := g.findEnd(t, 1, from); got.LSN <= at {
		t.Errorf("along timeline 1: got %s, want more than %s", got.LSN, at)
	}
	whole := g.findEnd(t, 2, from)
	if whole.Timeline != 2 || whole.LSN <= at {
		t.Errorf("along timeline 2: got %s", whole.Position)
	}
	if err := os.Remove(g.segmentFile(2, at)); err != nil {
		t.Fatal(err)
	}
	got := g.findEnd(t, 2, from)
	if (got.Position != Position{1, at}) || !errors.Is(got.Stop, ErrPastSwitchPoint) {
		t.Errorf("along timeline 2, without its segment: got %s, stop %v, want 1:%s", got.Position, got.Stop, at)
	}
	if again := g.findEnd(t, 2, at); again.HasLast || again.LSN != at {
		t.Errorf("from the switch point: got %+v", again)
	}
	if _, err := g.wal(t).FirstRecord(2); err == nil {
		t.Error("a first record of timeline 2 in a segment of timeline 1")
	}
	if _, err := g.wal(t).Identity(2); err == nil {
		t.Error("an identity of timeline 2 from a segment of timeline 1")
	}
}

// TestUnreadable: what is no end is an error.
func TestUnreadable(t *testing.T) {
	ctx := context.Background()
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, g golden, w *WAL) // w may be changed
		want  error
	}{
		{"cut short", func(t *testing.T, g golden, w *WAL) {
			if err := os.Truncate(g.segmentFile(1, g.first(t)+testSeg), 3*testPage); err != nil {
				t.Fatal(err)
			}
		}, ErrTruncated},
		{"empty", func(t *testing.T, g golden, w *WAL) {
			if err := os.Truncate(g.segmentFile(1, g.first(t)), 0); err != nil {
				t.Fatal(err)
			}
		}, ErrTruncated},
		{"another cluster", func(t *testing.T, g golden, w *WAL) { w.ctl.SystemIdentifier++ }, ErrWrongSystem},
		{"another segment size", func(t *testing.T, g golden, w *WAL) {
			b := g.read(t, 1, g.first(t)+testSeg-g.first(t)%testSeg, longPageHeader)
			b[34]++
			g.patch(t, 1, g.first(t)+testSeg-g.first(t)%testSeg, b)
		}, ErrWrongSystem},
		{"no history", func(t *testing.T, g golden, w *WAL) {
			if err := os.Remove(filepath.Join(w.dir, HistoryFileName(2))); err != nil {
				t.Fatal(err)
			}
		}, os.ErrNotExist},
		{"damaged history", func(t *testing.T, g golden, w *WAL) {
			if err := os.WriteFile(filepath.Join(w.dir, HistoryFileName(2)), []byte("1\tx\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, ErrBadHistory},
		{"empty history", func(t *testing.T, g golden, w *WAL) {
			if err := os.Truncate(filepath.Join(w.dir, HistoryFileName(2)), 0); err != nil {
				t.Fatal(err)
			}
		}, ErrBadHistory},
		{"removed", func(t *testing.T, g golden, w *WAL) {
			if err := os.Remove(g.segmentFile(1, g.first(t))); err != nil {
				t.Fatal(err)
			}
		}, ErrSegmentRemoved},
		{"no segment but a directory", func(t *testing.T, g golden, w *WAL) {
			path := g.segmentFile(1, g.first(t)+testSeg)
			if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o755)); err != nil {
				t.Fatal(err)
			}
		}, nil},
		{"unknown version", func(t *testing.T, g golden, w *WAL) { w.ctl.Major = 19 }, ErrUnsupportedVersion},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := loadGolden(t, damageMajor)
			w := g.wal(t)
			test.spoil(t, g, w)
			end, err := w.FindEnd(ctx, 2, g.first(t))
			if err == nil || isInvalid(err) || (test.want != nil && !errors.Is(err, test.want)) {
				t.Errorf("got %v and %+v, want %v", err, end, test.want)
			}
		})
	}
}

// TestEmpty: no valid WAL where it was looked for is no error, but an end without a
// record.
func TestEmpty(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, g golden, w *WAL)
		want  error
	}{
		{"no segments", func(t *testing.T, g golden, w *WAL) {
			entries, err := os.ReadDir(w.dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if _, _, ok := ParseSegmentName(e.Name(), testSeg); ok {
					if err := os.Remove(filepath.Join(w.dir, e.Name())); err != nil {
						t.Fatal(err)
					}
				}
			}
		}, ErrMissingSegment},
		{"another version", func(t *testing.T, g golden, w *WAL) { w.ctl.Major = 18 }, ErrBadMagic},
		{"zeros", func(t *testing.T, g golden, w *WAL) {
			seg := g.first(t) - g.first(t)%testSeg
			g.patch(t, 1, seg, make([]byte, testSeg))
		}, ErrBadMagic},
		{"encrypted", func(t *testing.T, g golden, w *WAL) {
			seg := g.first(t) - g.first(t)%testSeg
			b := g.read(t, 1, seg, testSeg)
			for i := range b {
				b[i] ^= 0x5a
			}
			g.patch(t, 1, seg, b)
		}, ErrBadMagic},
		{"encrypted records in plain pages", func(t *testing.T, g golden, w *WAL) {
			b := g.read(t, 1, g.first(t), 4096)
			for i := range b {
				b[i] ^= 0x5a
			}
			g.patch(t, 1, g.first(t), b)
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := loadGolden(t, damageMajor)
			w := g.wal(t)
			test.spoil(t, g, w)
			end, err := w.FindEnd(context.Background(), 2, g.first(t))
			if err != nil || end.HasLast || end.LSN != g.first(t) || end.Timeline != 1 || (test.want != nil && !errors.Is(end.Stop, test.want)) {
				t.Errorf("got %+v, %v, want an end at %s without a record, stop %v", end, err, g.first(t), test.want)
			}
			if _, err := w.ReadRecord(2, g.first(t)); !isInvalid(err) {
				t.Errorf("ReadRecord: got %v, want an InvalidError", err)
			}
			if _, err := w.ShutdownCheckpoint(context.Background()); err == nil && test.name != "zeros" && test.name[:3] != "enc" {
				t.Error("a shutdown checkpoint without WAL")
			}
		})
	}
}

// TestSymlink: pg_wal on a disk of its own.
func TestSymlink(t *testing.T) {
	g := loadGolden(t, damageMajor)
	want := g.findEnd(t, 2, g.first(t))
	elsewhere := filepath.Join(t.TempDir(), "wal")
	if err := errors.Join(os.Rename(filepath.Join(g.data, "pg_wal"), elsewhere), os.Symlink(elsewhere, filepath.Join(g.data, "pg_wal"))); err != nil {
		t.Fatal(err)
	}
	if got := g.findEnd(t, 2, g.first(t)); got.Position != want.Position || got.Last.CRC != want.Last.CRC {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestMemory: a record of more than a megabyte, and a length of 4 GB in a damaged one, are
// read in the memory that a walk takes anyway.
func TestMemory(t *testing.T) {
	g := loadGolden(t, damageMajor)
	w := g.wal(t)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := w.FindEnd(context.Background(), 2, g.first(t)); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 3*readAheadWalk {
		t.Errorf("FindEnd took %d bytes, want at most %d", got, 3*readAheadWalk)
	}
}

// TestControlDamage: every byte of pg_control is guarded by its checksum.
func TestControlDamage(t *testing.T) {
	for _, major := range majors {
		g := loadGolden(t, major)
		b, err := os.ReadFile(ControlPath(g.data))
		if err != nil {
			t.Fatal(err)
		}
		whole, err := ParseControl(b)
		if err != nil {
			t.Fatal(err)
		}
		size := controlLayout[whole.ControlVersion].crc + 4
		for i := range b {
			b[i] ^= 0x10
			c, err := ParseControl(b)
			switch {
			case i >= size && (err != nil || c != whole):
				t.Errorf("%d: byte %d is not part of the contents: got %v", major, i, err)
			case i < size && !errors.Is(err, ErrBadCRC) && !errors.Is(err, ErrUnsupportedVersion):
				t.Errorf("%d: byte %d is damaged: got %v", major, i, err)
			}
			b[i] ^= 0x10
		}
		if _, err := ParseControl(b[:len(b)-1]); !errors.Is(err, ErrTruncated) {
			t.Errorf("%d: cut short: got %v", major, err)
		}
	}
}
