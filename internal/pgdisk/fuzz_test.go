package pgdisk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

func FuzzParseControl(f *testing.F) {
	for _, major := range majors {
		b, err := os.ReadFile(ControlPath(loadGolden(f, major).data))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:300], false)
		f.Add(b[:300], true)
	}
	f.Fuzz(func(t *testing.T, b []byte, sum bool) {
		b = append(bytes.Clone(b), make([]byte, max(0, controlFileSize-len(b)))...)
		if layout, ok := controlLayout[binary.LittleEndian.Uint32(b[8:])]; ok && sum {
			binary.LittleEndian.PutUint32(b[layout.crc:], crc32.Checksum(b[:layout.crc], castagnoli))
		}
		c, err := ParseControl(b)
		if err != nil {
			return
		}
		if c.Major < 13 || c.Major > 18 || !powerOfTwo(c.SegmentSize, 1<<20, 1<<30) || c.State.String() == "" {
			t.Errorf("taken for valid: %+v", c)
		}
	})
}

func FuzzParseHistory(f *testing.F) {
	for _, major := range majors {
		b, err := os.ReadFile(filepath.Join(loadGolden(f, major).data, "pg_wal", HistoryFileName(2)))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b), uint64(1))
	}
	f.Add("1\t0/300\tx\n2\t0/200\ty\n# comment\n\n7\tFFFFFFFF/FFFFFFFF\t", uint64(0x250))
	f.Fuzz(func(t *testing.T, text string, at uint64) {
		h, err := ParseHistory(bytes.NewReader([]byte(text)))
		if err != nil {
			if !errors.Is(err, ErrBadHistory) {
				t.Errorf("an error of another kind: %v", err)
			}
			return
		}
		again, err := ParseHistory(bytes.NewReader([]byte(h.String())))
		if err != nil || again.String() != h.String() {
			t.Errorf("%q is read as %v, and that as %v, %v", text, h, again, err)
		}
		// The two views of a history agree: an ancestor owns nothing past its end.
		tli := h.TimelineAt(1<<32-1, LSN(at))
		if end, ok := h.SwitchPointOf(tli); ok && LSN(at) >= end {
			t.Errorf("%s is on timeline %d of %q, which ends at %s", LSN(at), tli, text, end)
		}
	})
}

const fuzzPage = 1024

// fuzzWAL is a pg_wal of one segment that holds the fuzzer's bytes.
type fuzzWAL struct {
	w     *WAL
	path  string
	start LSN
}

func newFuzzWAL(t testing.TB, c Control, start LSN) fuzzWAL {
	t.Helper()
	data := t.TempDir()
	if err := os.Mkdir(filepath.Join(data, "pg_wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	return fuzzWAL{OpenWAL(data, c), filepath.Join(data, "pg_wal", SegmentName(1, start, c.SegmentSize)), start}
}

// How the bytes are repaired before they are read, so that the fuzzer comes further
// than to the first check.
const (
	repairPages   = 1 << iota // magic, address, timeline and long header of each page
	repairSums                // checksums of the records, as far as their chain goes
	repairLinks               // and their links
	repairLengths             // what a page says is left of a record
)

func (f fuzzWAL) repair(b []byte, how uint8) {
	le := binary.LittleEndian
	if how&repairPages != 0 {
		for at := 0; at+longPageHeader <= len(b); at += fuzzPage {
			le.PutUint16(b[at:], pageMagic[f.w.ctl.Major])
			le.PutUint16(b[at+2:], le.Uint16(b[at+2:])&(pageAllFlags&^pageLongHeader))
			le.PutUint32(b[at+4:], 1)
			le.PutUint64(b[at+8:], uint64(f.start)+uint64(at))
			if at == 0 {
				le.PutUint16(b[at+2:], le.Uint16(b[at+2:])|pageLongHeader)
				le.PutUint64(b[24:], f.w.ctl.SystemIdentifier)
				le.PutUint32(b[32:], f.w.ctl.SegmentSize)
				le.PutUint32(b[36:], f.w.ctl.WALBlockSize)
			}
		}
	}
	prev := uint64(f.start) - 64
	for at := longPageHeader; how&repairSums != 0 && at+recordHeaderSize <= len(b); {
		total := int(le.Uint32(b[at:]))
		if total < recordHeaderSize || at%fuzzPage > fuzzPage-recordHeaderSize {
			return
		}
		if how&repairLinks != 0 {
			le.PutUint64(b[at+8:], prev)
		}
		// The parts of the record on its pages.
		var crc uint32
		from, left := at, total
		for left > 0 {
			end := min(from+left, from-from%fuzzPage+fuzzPage)
			if end > len(b) {
				return
			}
			part := b[from:end]
			left -= len(part)
			if from == at {
				part = part[recordHeaderSize:]
			}
			crc = crc32.Update(crc, castagnoli, part)
			from = end
			if left > 0 {
				if end+shortPageHeader > len(b) {
					return
				}
				if how&repairLengths != 0 {
					le.PutUint16(b[end+2:], pageFirstIsContrecord)
					le.PutUint32(b[end+16:], uint32(left))
				}
				from = end + shortPageHeader
			}
		}
		le.PutUint32(b[at+20:], crc32.Update(crc, castagnoli, b[at:at+20]))
		prev = uint64(f.start) + uint64(at)
		at = int(align8(uint64(from)))
		if at%fuzzPage == 0 {
			at += shortPageHeader
		}
	}
}

// FuzzWAL reads arbitrary bytes as WAL: no panic, no endless walk, no memory beyond a
// walk's own, and results that agree with each other.
func FuzzWAL(f *testing.F) {
	g := loadGolden(f, damageMajor)
	c, err := ReadControl(g.data)
	if err != nil {
		f.Fatal(err)
	}
	// Small pages, so that small inputs have many.
	c.WALBlockSize = fuzzPage
	first := g.first(f)
	begin := first - first%testSeg
	genuine := g.read(f, 1, first, 2*fuzzPage)
	for _, lengths := range [][]uint32{
		{24, 120, 50},
		{fuzzPage - longPageHeader, 64},          // ends with its page
		{fuzzPage - longPageHeader - 8, 64, 114}, // the next one's header is split
		{3 * fuzzPage, 24},
		{0xFFFFFFFF},
	} {
		b := make([]byte, 4*fuzzPage)
		for i, at := 0, uint32(longPageHeader); i < len(lengths) && at < 4*fuzzPage; i++ {
			binary.LittleEndian.PutUint32(b[at:], lengths[i])
			at += lengths[i] + lengths[i]/fuzzPage*shortPageHeader
			at = (at + 7) &^ 7
			if at%fuzzPage == 0 {
				at += shortPageHeader
			}
		}
		for _, how := range []uint8{0, repairPages, repairPages | repairSums | repairLinks, 0x0F} {
			f.Add(b, how, uint32(longPageHeader))
			f.Add(b, how, uint32(0))
		}
	}
	f.Add(genuine, uint8(0), uint32(0))
	f.Add(genuine, uint8(0x0F), uint32(longPageHeader))

	fw := newFuzzWAL(f, c, begin)
	ctx := context.Background()
	f.Fuzz(func(t *testing.T, b []byte, how uint8, at uint32) {
		if len(b) > 16*fuzzPage {
			return
		}
		b = bytes.Clone(b)
		fw.repair(b, how)
		if err := os.WriteFile(fw.path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		from := begin + LSN(at)

		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		end, err := fw.w.FindEnd(ctx, 1, from)
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 4*readAheadWalk {
			t.Errorf("FindEnd took %d bytes for %d", got, len(b))
		}
		rec, recErr := fw.w.ReadRecord(1, from)
		if err != nil {
			return // cut short, or of another cluster
		}
		if !isInvalid(end.Stop) {
			t.Errorf("stop: got %v", end.Stop)
		}
		if !end.HasLast {
			if end.LSN != from {
				t.Errorf("nothing from %s on, but the end is %s", from, end.LSN)
			}
			return
		}
		if end.LSN <= from || end.LSN > begin+testSeg || end.LSN != end.Last.End || end.Last.Start < from {
			t.Errorf("from %s: %+v", from, end)
		}
		if recErr == nil && rec.End > end.LSN {
			t.Errorf("the record at %s ends at %s, but the end is %s", from, rec.End, end.LSN)
		}
		last, err := fw.w.ReadRecord(1, end.Last.Start)
		if err != nil || last.CRC != end.Last.CRC || last.End != end.LSN {
			t.Errorf("the last record read alone is %+v, %v, in the walk it was %+v", last, err, end.Last)
		}
		again, err := fw.w.FindEnd(ctx, 1, end.LSN)
		if err == nil && again.HasLast {
			t.Errorf("behind the end %s there is more: %+v", end.LSN, again)
		}
	})
}
