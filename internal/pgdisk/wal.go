package pgdisk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// WAL reads the write-ahead log in a data directory's pg_wal. It holds no file open
// between calls and may be used by several goroutines. Reading while the server or its
// WAL receiver appends is fine: a call sees at least what was there when it began.
type WAL struct {
	dir string
	ctl Control
}

// OpenWAL prepares the reading of dataDir/pg_wal, which may be a symbolic link. c says
// version, system identifier and sizes; it comes from [ReadControl] of the same
// directory.
func OpenWAL(dataDir string, c Control) *WAL {
	return &WAL{dir: filepath.Join(dataDir, "pg_wal"), ctl: c}
}

// ReadRecord reads and checks the record that starts at start, following the history of
// timeline tli: page headers, the record over pages and segments, its checksum. start
// may also be the start of a page, when a record begins behind the page's header. The
// link to the previous record is not checked.
//
// That there is no valid record is an [*InvalidError]; what else can go wrong, see
// the package's comment.
func (w *WAL) ReadRecord(tli TimelineID, start LSN) (Record, error) {
	r, err := w.reader(context.Background(), tli, readAheadOne)
	if err != nil {
		return Record{}, err
	}
	defer r.close()
	return r.record(start, nil)
}

// How much a reader takes from a file at once, in bytes: a record and its neighbour, or
// a walk along the whole log.
const (
	readAheadOne  = 16 << 10
	readAheadWalk = 256 << 10
)

// reader reads along the history of one timeline.
type reader struct {
	*WAL
	ctx     context.Context
	tli     TimelineID
	history History
	partial bool // history does not go back to timeline 1

	// The segment that is open, or was missing; segment is its first LSN.
	file    *os.File
	path    string
	segment LSN
	fileTLI TimelineID

	buf      []byte // cap is how much is read at once; it grows while the walk goes on
	most     int    // up to this
	bufStart LSN    // page boundary
	header   [recordHeaderSize]byte
}

func (w *WAL) reader(ctx context.Context, tli TimelineID, readAhead int) (*reader, error) {
	r, err := w.readerOf(ctx, tli, nil, readAhead)
	if err == nil {
		r.history, err = ReadHistory(w.dir, tli)
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (w *WAL) readerOf(ctx context.Context, tli TimelineID, h History, readAhead int) (*reader, error) {
	if _, ok := pageMagic[w.ctl.Major]; !ok || w.ctl.SegmentSize == 0 || w.ctl.WALBlockSize == 0 {
		return nil, &FileError{Reason: ErrUnsupportedVersion, Path: w.dir, Expected: "the contents of pg_control of PostgreSQL 13 to 18", Got: fmt.Sprintf("version %d", w.ctl.Major)}
	}
	if tli == 0 {
		return nil, &FileError{Reason: ErrBadHistory, Path: w.dir, Expected: "a timeline from 1 on", Got: "0"}
	}
	return &reader{WAL: w, ctx: ctx, tli: tli, history: h, most: max(readAhead, int(w.ctl.WALBlockSize))}, nil
}

func (r *reader) close() {
	if r.file != nil {
		_ = r.file.Close() // only read from
		r.file = nil
	}
}

// invalid makes the error for a place that holds nothing valid.
func (r *reader) invalid(reason error, at LSN, expected, got string) error {
	return &InvalidError{Reason: reason, Path: r.path, LSN: at, Timeline: r.history.TimelineAt(r.tli, at), Expected: expected, Got: got}
}

func (r *reader) segmentOf(lsn LSN) LSN { return lsn - lsn%LSN(r.ctl.SegmentSize) }

func (r *reader) pageOf(lsn LSN) LSN { return lsn - lsn%LSN(r.ctl.WALBlockSize) }

// open opens the file for the segment that begins at seg: that of the newest timeline
// of the history that has begun before the segment ends and that is there
// (XLogFileReadAnyTLI in src/backend/access/transam/xlogrecovery.c). Stricter than the server: the file
// of an ancestor that ended before the segment begins is not taken.
func (r *reader) open(seg LSN) error {
	if r.file != nil && r.segment == seg {
		return nil
	}
	r.close()
	r.buf = r.buf[:0]
	for _, tli := range r.candidates(seg) {
		r.path = filepath.Join(r.dir, SegmentName(tli, seg, r.ctl.SegmentSize))
		f, err := openFile(r.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		r.file, r.segment, r.fileTLI = f, seg, tli
		return nil
	}
	tli := r.history.TimelineAt(r.tli, seg)
	r.path = filepath.Join(r.dir, SegmentName(tli, seg, r.ctl.SegmentSize))
	return r.invalid(ErrMissingSegment, seg, "", "")
}

// openFile opens a file for reading. Nothing else is waited for: a pipe in its place would be for good.
func openFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &FileError{Reason: ErrNotAFile, Path: path, Expected: "a regular file", Got: info.Mode().Type().String()}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// candidates are the timelines whose files may hold the segment at seg, newest first.
func (r *reader) candidates(seg LSN) []TimelineID {
	var tlis []TimelineID
	if r.segmentOf(r.history.begin(r.tli)) <= seg {
		tlis = append(tlis, r.tli)
	}
	for i := len(r.history) - 1; i >= 0; i-- {
		t := r.history[i].Timeline
		end, _ := r.history.SwitchPointOf(t)
		if r.segmentOf(r.history.begin(t)) <= seg && seg < end {
			tlis = append(tlis, t)
		}
	}
	return tlis
}

// page returns the page at addr, which is a page boundary. The slice is good until the
// next call. When a new segment is opened its first page is checked, too, since only
// that one names the cluster.
func (r *reader) page(addr LSN) (page, error) {
	if err := r.ctx.Err(); err != nil {
		return page{}, err
	}
	seg := r.segmentOf(addr)
	if r.file == nil || r.segment != seg {
		if err := r.open(seg); err != nil {
			return page{}, err
		}
		if addr != seg {
			if _, err := r.page(seg); err != nil {
				return page{}, err
			}
		}
	}
	size := LSN(r.ctl.WALBlockSize)
	if addr < r.bufStart || addr+size > r.bufStart+LSN(len(r.buf)) {
		if err := r.fill(addr); err != nil {
			return page{}, err
		}
	}
	b := r.buf[addr-r.bufStart:][:size:size]
	if err := r.checkPage(b, addr); err != nil {
		return page{}, err
	}
	return page{data: b, addr: addr}, nil
}

// fill reads from addr on into the buffer, at least one page.
func (r *reader) fill(addr LSN) error {
	offset := int64(addr - r.segment)
	if cap(r.buf) < r.most {
		r.buf = make([]byte, 0, min(max(2*cap(r.buf), readAheadOne, int(r.ctl.WALBlockSize)), r.most))
	}
	n := min(cap(r.buf), int(int64(r.ctl.SegmentSize)-offset))
	got, err := r.file.ReadAt(r.buf[:n], offset)
	if err != nil && !errors.Is(err, io.EOF) {
		r.buf = r.buf[:0]
		return err
	}
	if got < int(r.ctl.WALBlockSize) {
		r.buf = r.buf[:0]
		// The server makes segments in full length under another name before it uses them.
		return &FileError{Reason: ErrTruncated, Path: r.path, Expected: fmt.Sprintf("%d bytes", r.ctl.SegmentSize), Got: fmt.Sprintf("%d", offset+int64(got))}
	}
	r.buf, r.bufStart = r.buf[:got], addr
	return nil
}

// overwrittenError says that the record at start was never finished: its server crashed,
// and when it came back it marked the page at next as the place where it went on.
type overwrittenError struct {
	error
	start, next LSN
}

func (e *overwrittenError) Unwrap() error { return e.error }

// record reads the record at start. If prev is not nil, the record must link back to it.
// It never holds more than one page: the checksum is computed on the way, so that a
// damaged length cannot make it allocate.
func (r *reader) record(start LSN, prev *LSN) (Record, error) {
	p, err := r.page(r.pageOf(start))
	if err != nil {
		return Record{}, err
	}
	offset := int(start - p.addr)
	if offset == 0 {
		offset = p.header()
		start += LSN(offset)
	}
	if offset < p.header() || start%8 != 0 {
		return Record{}, r.invalid(ErrBadOffset, start, "a multiple of 8 behind the page's header", "")
	}
	if offset == p.header() && p.flags()&pageFirstIsContrecord != 0 {
		return Record{}, r.invalid(ErrBadContinuation, start, "a record that begins here", "the rest of an earlier one")
	}

	rec := Record{Start: start, Timeline: r.history.TimelineAt(r.tli, start)}
	total := binary.LittleEndian.Uint32(p.data[offset:])
	switch {
	case total == 0:
		return Record{}, r.invalid(ErrNoRecord, start, "", "")
	case total < recordHeaderSize:
		return Record{}, r.invalid(ErrBadLength, start, fmt.Sprintf("at least %d", recordHeaderSize), fmt.Sprint(total))
	}

	var crc uint32
	done := uint32(0) // bytes of the record behind us
	for {
		part := p.data[offset:]
		if left := total - done; uint32(len(part)) > left {
			part = part[:left]
		}
		// The header comes first, and may be split over two pages.
		if done < recordHeaderSize {
			n := copy(r.header[done:], part)
			part = part[n:]
			done += uint32(n)
			if done == recordHeaderSize {
				rec.parseHeader(r.header[:])
				if err := r.checkHeader(rec, prev); err != nil {
					return Record{}, err
				}
			}
		}
		crc = crc32.Update(crc, castagnoli, part)
		done += uint32(len(part))
		if done >= recordHeaderSize && rec.keepsData() {
			rec.Data = append(rec.Data, part...)
		}
		if done == total {
			break
		}
		if p, err = r.continuation(start, p.addr, total-done); err != nil {
			return Record{}, err
		}
		offset = p.header()
	}
	// The header, without the checksum itself, is summed last.
	crc = crc32.Update(crc, castagnoli, r.header[:recordHeaderSize-4])
	if crc != rec.CRC {
		return Record{}, r.invalid(ErrBadCRC, start, fmt.Sprintf("%08X as the record says", rec.CRC), fmt.Sprintf("%08X", crc))
	}

	if r.pageOf(start) == p.addr {
		rec.End = LSN(align8(uint64(start) + uint64(total)))
	} else {
		rec.End = p.addr + LSN(offset) + LSN(align8(uint64(p.remaining())))
	}
	if rec.IsSwitch() {
		// Nothing else is in the segment. A switch that ends exactly with its segment does not
		// take the next one.
		rec.End = r.segmentOf(rec.End + LSN(r.ctl.SegmentSize) - 1)
	}
	if end, ok := r.history.SwitchPointOf(r.fileTLI); ok && rec.End > end {
		return Record{}, r.invalid(ErrPastSwitchPoint, start, fmt.Sprintf("nothing of timeline %d after %s", r.fileTLI, end), fmt.Sprintf("a record up to %s", rec.End))
	}
	return rec, nil
}

// checkHeader is ValidXLogRecordHeader of xlogreader.c.
func (r *reader) checkHeader(rec Record, prev *LSN) error {
	if !validRmgr(rec.Rmgr, r.ctl.Major) {
		return r.invalid(ErrBadResourceManager, rec.Start, "", fmt.Sprint(rec.Rmgr))
	}
	if prev == nil {
		if rec.Prev >= rec.Start {
			return r.invalid(ErrBadPrevLink, rec.Start, "an earlier position", rec.Prev.String())
		}
	} else if rec.Prev != *prev {
		return r.invalid(ErrBadPrevLink, rec.Start, prev.String(), rec.Prev.String())
	}
	return nil
}

// continuation returns the page after the one at addr, which must go on with the record
// that started at start and of which left bytes are missing.
func (r *reader) continuation(start, addr LSN, left uint32) (page, error) {
	addr += LSN(r.ctl.WALBlockSize)
	p, err := r.page(addr)
	if err != nil {
		return page{}, err
	}
	if p.flags()&pageFirstIsOverwriteContrecord != 0 {
		return page{}, &overwrittenError{
			r.invalid(ErrBadContinuation, addr, fmt.Sprintf("the rest of the record at %s", start), "a mark that it was given up"),
			start, addr,
		}
	}
	if p.flags()&pageFirstIsContrecord == 0 || p.remaining() != left {
		return page{}, r.invalid(ErrBadContinuation, addr, fmt.Sprintf("%d bytes of the record at %s", left, start), fmt.Sprintf("flags %04X, %d bytes", p.flags(), p.remaining()))
	}
	return p, nil
}
