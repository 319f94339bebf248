package pgdisk

import (
	"encoding/binary"
	"fmt"
)

// Page headers: XLogPageHeaderData and XLogLongPageHeaderData of
// src/include/access/xlog_internal.h. The first page of a segment has the long one.
const (
	shortPageHeader = 24
	longPageHeader  = 40

	pageFirstIsContrecord          = 0x0001
	pageLongHeader                 = 0x0002
	pageFirstIsOverwriteContrecord = 0x0008
	pageAllFlags                   = 0x000F
)

// pageMagic is XLOG_PAGE_MAGIC by major version.
var pageMagic = map[int]uint16{13: 0xD106, 14: 0xD10D, 15: 0xD110, 16: 0xD113, 17: 0xD116, 18: 0xD118}

// page is a WAL page whose header has been checked.
type page struct {
	data []byte // the whole page
	addr LSN
}

func (p page) flags() uint16 { return binary.LittleEndian.Uint16(p.data[2:]) }

// remaining is xlp_rem_len: how many bytes of a record begun earlier are left at this
// page's start, all of them, not only those on this page.
func (p page) remaining() uint32 { return binary.LittleEndian.Uint32(p.data[16:]) }

// header is the size of the page's header.
func (p page) header() int {
	if p.flags()&pageLongHeader != 0 {
		return longPageHeader
	}
	return shortPageHeader
}

// unknownAncestor reports whether the page at addr may be of timeline t because the history does not tell: the first page
// of a segment is often older than all that is known.
func (r *reader) unknownAncestor(t TimelineID, addr LSN) bool {
	oldest := r.tli
	if len(r.history) > 0 {
		oldest = r.history[0].Timeline
		if addr >= r.history[0].Switch {
			return false
		}
	}
	return r.partial && t > 0 && t < oldest
}

// checkPage checks the header of the page at addr as XLogReaderValidatePageHeader does.
// It is stricter in one thing: the server only wants page timelines not to go backwards, this wants
// the very timeline that the history has at addr.
func (r *reader) checkPage(b []byte, addr LSN) error {
	le := binary.LittleEndian
	bad := func(reason error, expected, got string) error { return r.invalid(reason, addr, expected, got) }
	offset := uint64(addr) % uint64(r.ctl.SegmentSize)

	if want, got := pageMagic[r.ctl.Major], le.Uint16(b); got != want {
		if got == 0 {
			return bad(ErrBadMagic, fmt.Sprintf("%04X", want), "zeros")
		}
		return bad(ErrBadMagic, fmt.Sprintf("%04X (PostgreSQL %d)", want, r.ctl.Major), fmt.Sprintf("%04X", got))
	}
	flags := le.Uint16(b[2:])
	if flags&^pageAllFlags != 0 || (offset == 0 && flags&pageLongHeader == 0) {
		return bad(ErrBadPageHeader, "flags that exist, and a long header at a segment's start", fmt.Sprintf("flags %04X", flags))
	}
	if got := LSN(le.Uint64(b[8:])); got != addr {
		return bad(ErrWrongPageAddress, addr.String(), got.String())
	}
	if flags&pageLongHeader != 0 {
		if offset != 0 {
			return bad(ErrBadPageHeader, "a long header only at a segment's start", fmt.Sprintf("flags %04X", flags))
		}
		sysid, segSize, blkSize := le.Uint64(b[24:]), le.Uint32(b[32:]), le.Uint32(b[36:])
		if sysid != r.ctl.SystemIdentifier || segSize != r.ctl.SegmentSize || blkSize != r.ctl.WALBlockSize {
			return &FileError{
				Reason:   ErrWrongSystem,
				Path:     r.path,
				Expected: fmt.Sprintf("system identifier %d, segments of %d bytes, pages of %d", r.ctl.SystemIdentifier, r.ctl.SegmentSize, r.ctl.WALBlockSize),
				Got:      fmt.Sprintf("%d, %d, %d", sysid, segSize, blkSize),
			}
		}
	}
	if want, got := r.history.TimelineAt(r.tli, addr), TimelineID(le.Uint32(b[4:])); got != want && !r.unknownAncestor(got, addr) {
		return bad(ErrWrongTimeline, fmt.Sprint(want), fmt.Sprint(got))
	}
	return nil
}
