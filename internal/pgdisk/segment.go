package pgdisk

import (
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
)

// SegmentName is the name of the file in pg_wal that holds lsn on timeline tli
// (XLogFileName in src/include/access/xlog_internal.h). segSize is in bytes.
func SegmentName(tli TimelineID, lsn LSN, segSize uint32) string {
	perID := (uint64(1) << 32) / uint64(segSize)
	segno := uint64(lsn) / uint64(segSize)
	return fmt.Sprintf("%08X%08X%08X", uint32(tli), uint32(segno/perID), uint32(segno%perID))
}

// ParseSegmentName reads the name of a WAL segment: its timeline and the LSN at which it
// begins. ok is false for the names of other files, and for a segment that cannot
// exist with this size.
func ParseSegmentName(name string, segSize uint32) (tli TimelineID, start LSN, ok bool) {
	if len(name) != 24 {
		return 0, 0, false
	}
	var part [3]uint64
	for i := range part {
		hex := name[8*i : 8*i+8]
		for _, c := range []byte(hex) {
			// strconv would also take lower case, signs and underscores.
			if (c < '0' || c > '9') && (c < 'A' || c > 'F') {
				return 0, 0, false
			}
		}
		part[i], _ = strconv.ParseUint(hex, 16, 32)
	}
	perID := (uint64(1) << 32) / uint64(segSize)
	if part[0] == 0 || part[2] >= perID {
		return 0, 0, false
	}
	return TimelineID(part[0]), LSN((part[1]*perID + part[2]) * uint64(segSize)), true
}

// HoldsWAL reports whether a file of the WAL that should begin at start does. PostgreSQL makes files for WAL to come ahead, out of
// zeros or of older segments that it renames (RemoveXlogFile in xlog.c): those say another address in their first page
// (xlp_pageaddr in access/xlog_internal.h), or none. What cannot be read may hold it.
func HoldsWAL(path string, start LSN) bool {
	f, err := openFile(path)
	if err != nil {
		return true
	}
	defer f.Close()
	header := make([]byte, 16)
	_, err = io.ReadFull(f, header)
	return err != nil || LSN(binary.LittleEndian.Uint64(header[8:])) == start
}
