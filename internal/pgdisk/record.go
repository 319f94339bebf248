package pgdisk

import (
	"encoding/binary"
	"fmt"
	"time"
)

// The resource manager "XLOG" and its kinds of record that this package looks into
// (src/include/access/rmgrlist.h, src/include/catalog/pg_control.h).
const (
	rmgrXLOG = 0

	infoMask                = 0xF0 // the rest of Info belongs to the WAL machinery
	infoCheckPointShutdown  = 0x00
	infoCheckPointOnline    = 0x10
	infoSwitch              = 0x40
	infoEndOfRecovery       = 0x90
	infoOverwriteContrecord = 0xD0
)

// maxBuiltinRmgr is RM_MAX_BUILTIN_ID (logical messages), the same in 13 to 18.
// Extensions have 128 to 255, since 15.
const (
	maxBuiltinRmgr = 21
	minCustomRmgr  = 128
	customSince    = 15
)

// recordHeaderSize is SizeOfXLogRecord.
const recordHeaderSize = 24

// maxKeptData bounds Record.Data. The longest record of the kinds kept is a checkpoint
// of some 114 bytes.
const maxKeptData = 256

// Record is a valid WAL record: its header, and where it is.
type Record struct {
	Timeline TimelineID // the record is on, by the history read along
	Start    LSN        // of its header
	// End is the first position after it, aligned to 8 bytes: PostgreSQL's EndRecPtr. For a
	// segment switch it is the end of the segment. It may be the very start of a page, where
	// the next record begins only behind the page's header.
	End         LSN
	TotalLength uint32 // in bytes, header included, page headers not
	XID         uint32
	Prev        LSN // start of the record before it
	Info        uint8
	Rmgr        uint8
	CRC         uint32 // CRC-32C of the whole record, as stored and checked
	// Data is what follows the header. It is kept only for checkpoints and for the other
	// short records of the resource manager XLOG that this package decodes, else nil.
	Data []byte
}

// isXLOG says whether the record is of the resource manager XLOG and of this kind.
func (r Record) isXLOG(info uint8) bool { return r.Rmgr == rmgrXLOG && r.Info&infoMask == info }

// IsShutdownCheckpoint says whether the record is the last one that a primary writes
// when it is shut down cleanly. A crash recovery also ends with one.
func (r Record) IsShutdownCheckpoint() bool { return r.isXLOG(infoCheckPointShutdown) }

// IsCheckpoint says whether the record is a checkpoint of either kind.
func (r Record) IsCheckpoint() bool {
	return r.isXLOG(infoCheckPointShutdown) || r.isXLOG(infoCheckPointOnline)
}

// IsEndOfRecovery says whether the record is what a promoted server writes instead of a
// checkpoint.
func (r Record) IsEndOfRecovery() bool { return r.isXLOG(infoEndOfRecovery) }

// IsSwitch says whether the record ends its segment (pg_switch_wal).
func (r Record) IsSwitch() bool { return r.isXLOG(infoSwitch) }

// keepsData says whether Data is kept for this kind of record.
func (r Record) keepsData() bool {
	return r.TotalLength <= maxKeptData &&
		(r.IsCheckpoint() || r.IsEndOfRecovery() || r.isXLOG(infoOverwriteContrecord))
}

// CheckPoint is the body of a checkpoint record (src/include/catalog/pg_control.h).
type CheckPoint struct {
	Redo           LSN
	ThisTimeline   TimelineID
	PrevTimeline   TimelineID // differs if the record begins ThisTimeline
	FullPageWrites bool
	NextXID        uint64 // with the epoch in the upper half
	Time           time.Time
}

const checkPointSize = 88 // sizeof(CheckPoint), the same in 13 to 18

// CheckPoint decodes a checkpoint record. The error is [ErrNotACheckPoint].
func (r Record) CheckPoint() (CheckPoint, error) {
	if !r.IsCheckpoint() {
		return CheckPoint{}, fmt.Errorf("record at %s of timeline %d: %w (resource manager %d, info %02X)", r.Start, r.Timeline, ErrNotACheckPoint, r.Rmgr, r.Info)
	}
	b, err := r.mainData(checkPointSize)
	if err != nil {
		return CheckPoint{}, err
	}
	le := binary.LittleEndian
	return CheckPoint{
		Redo:           LSN(le.Uint64(b)),
		ThisTimeline:   TimelineID(le.Uint32(b[8:])),
		PrevTimeline:   TimelineID(le.Uint32(b[12:])),
		FullPageWrites: b[16] != 0,
		NextXID:        le.Uint64(b[24:]),
		Time:           time.Unix(int64(le.Uint64(b[64:])), 0),
	}, nil
}

// mainDataShort is XLR_BLOCK_ID_DATA_SHORT: the only header of a record without block
// references and with less than 256 bytes of data.
const mainDataShort = 255

// mainData returns the body of a record that has no block references, at least size
// bytes of it.
func (r Record) mainData(size int) ([]byte, error) {
	if len(r.Data) < 2+size || r.Data[0] != mainDataShort || int(r.Data[1]) != len(r.Data)-2 {
		return nil, fmt.Errorf("record at %s of timeline %d: %w: body of %d bytes, expected %d and their header", r.Start, r.Timeline, ErrNotACheckPoint, len(r.Data), size)
	}
	return r.Data[2:], nil
}

// parseHeader fills what a record's header holds. b has recordHeaderSize bytes.
func (r *Record) parseHeader(b []byte) {
	le := binary.LittleEndian
	r.TotalLength = le.Uint32(b)
	r.XID = le.Uint32(b[4:])
	r.Prev = LSN(le.Uint64(b[8:]))
	r.Info = b[16]
	r.Rmgr = b[17]
	r.CRC = le.Uint32(b[20:])
}

// validRmgr is RmgrIdIsValid of src/include/access/rmgr.h. Custom resource managers are
// accepted whether or not their extension is loaded, which is not to be seen here.
func validRmgr(id uint8, major int) bool {
	return id <= maxBuiltinRmgr || (major >= customSince && id >= minCustomRmgr)
}

func align8(n uint64) uint64 { return (n + 7) &^ 7 }
