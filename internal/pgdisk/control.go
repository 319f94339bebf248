package pgdisk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"math/bits"
	"os"
	"path/filepath"
	"time"
)

// castagnoli is CRC-32C, the checksum of pg_control and of WAL records
// (src/include/port/pg_crc32c.h).
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ControlState is DBState of src/include/catalog/pg_control.h: what the server was
// doing when it last wrote pg_control. InProduction in the file of a server that does
// not run means that it crashed.
type ControlState int

// The states, with the numbers that the file holds.
const (
	StartingUp ControlState = iota
	ShutDown
	ShutDownInRecovery
	ShuttingDown
	InCrashRecovery
	InArchiveRecovery
	InProduction
)

// String is what pg_controldata prints as "Database cluster state".
func (s ControlState) String() string {
	switch s {
	case StartingUp:
		return "starting up"
	case ShutDown:
		return "shut down"
	case ShutDownInRecovery:
		return "shut down in recovery"
	case ShuttingDown:
		return "shutting down"
	case InCrashRecovery:
		return "in crash recovery"
	case InArchiveRecovery:
		return "in archive recovery"
	case InProduction:
		return "in production"
	}
	return fmt.Sprintf("unrecognized status code %d", int(s))
}

// Control is the part of pg_control (ControlFileData) that matters to high
// availability. Times have a resolution of one second.
type Control struct {
	SystemIdentifier uint64 // of the cluster, the same on primary and standbys
	ControlVersion   uint32 // 1300, 1700 or 1800
	CatalogVersion   uint32
	Major            int // of PostgreSQL, 13 to 18, from CatalogVersion

	State ControlState
	Time  time.Time // of the last write of the file

	CheckPoint             LSN        // start of the last checkpoint record (on a standby: restartpoint)
	CheckPointTimeline     TimelineID // the timeline that record is on
	CheckPointPrevTimeline TimelineID // differs only if that record began the timeline
	Redo                   LSN        // where replay from that checkpoint begins
	CheckPointTime         time.Time

	// How far replay must come before the data are consistent; zero on a primary. It is
	// the end of a record, so a record boundary.
	MinRecoveryPoint    LSN
	MinRecoveryTimeline TimelineID
	BackupStart         LSN  // redo of a base backup not yet replayed to its end, or zero
	BackupEnd           LSN  // where such a backup, taken from a standby, ends, or zero
	BackupEndRequired   bool // the record "backup end" must still be replayed

	SegmentSize  uint32 // of a WAL segment, bytes
	BlockSize    uint32 // of a data page, bytes
	WALBlockSize uint32 // of a WAL page, bytes

	DataChecksums bool // pages of data carry checksums (pg_rewind needs these or WALLogHints)
	WALLogHints   bool

	// What the primary had room for when it last said so in WAL: a hot standby does not start with less
	// (CheckRequiredParameterValues in src/backend/access/transam/xlog.c).
	MaxConnections, MaxWorkerProcesses, MaxWALSenders, MaxPreparedTransactions, MaxLocksPerTransaction int
}

// ControlPath is where pg_control is in a data directory.
func ControlPath(dataDir string) string { return filepath.Join(dataDir, "global", "pg_control") }

// The file is written in one piece, but a reader may see half of the old one and half of
// the new. The server's own tools read again in the hope that the next look is whole
// (src/common/controldata_utils.c); the bound keeps a monitor quick.
const (
	controlTries = 10
	controlPause = 5 * time.Millisecond
)

// controlFileSize is PG_CONTROL_FILE_SIZE, the same in every version.
const controlFileSize = 8192

// ReadControl reads and checks dataDir/global/pg_control. A read that caught the server
// in the middle of a write is repeated for up to 50 ms. The errors are those of
// [ParseControl], with the path, and those of the operating system
// ([os.ErrNotExist], [os.ErrPermission]).
func ReadControl(dataDir string) (Control, error) {
	path := ControlPath(dataDir)
	for try := 1; ; try++ {
		c, err := readControlOnce(path)
		torn := errors.Is(err, ErrBadCRC) || errors.Is(err, ErrTruncated)
		if !torn || try == controlTries {
			return c, err
		}
		time.Sleep(controlPause)
	}
}

func readControlOnce(path string) (Control, error) {
	f, err := os.Open(path)
	if err != nil {
		return Control{}, err
	}
	defer f.Close()
	buf := make([]byte, controlFileSize)
	n, err := io.ReadFull(f, buf)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return Control{}, err
	}
	c, err := ParseControl(buf[:n])
	var fe *FileError
	if errors.As(err, &fe) {
		fe.Path = path
	}
	return c, err
}

// controlLayout is what differs between the formats of pg_control: only the position of
// the checksum, which is the last field (1800 added default_char_signedness).
var controlLayout = map[uint32]struct{ crc int }{
	1300: {crc: 288}, // PostgreSQL 13 to 16
	1700: {crc: 288}, // 17
	1800: {crc: 292}, // 18
}

// catalogMajor maps CATALOG_VERSION_NO of every release to its major version. It never
// changes within a major. A number that is not here is a beta, a fork or the future: its
// WAL may look alike and mean something else.
var catalogMajor = map[uint32]struct {
	major   int
	control uint32
}{
	202007201: {13, 1300},
	202107181: {14, 1300},
	202209061: {15, 1300},
	202307071: {16, 1300},
	202406281: {17, 1700},
	202506291: {18, 1800},
}

// ParseControl decodes the bytes of a pg_control. Its errors are [*FileError] with an
// empty path, of the kinds [ErrTruncated], [ErrUnsupportedVersion], [ErrBadCRC] and
// [ErrBadControl].
func ParseControl(b []byte) (Control, error) {
	fail := func(reason error, expected, got string) (Control, error) {
		return Control{}, &FileError{Reason: reason, Expected: expected, Got: got}
	}
	if len(b) < controlFileSize {
		return fail(ErrTruncated, fmt.Sprintf("%d bytes", controlFileSize), fmt.Sprint(len(b)))
	}
	le := binary.LittleEndian
	version := le.Uint32(b[8:])
	layout, ok := controlLayout[version]
	if !ok {
		got := fmt.Sprintf("format %d", version)
		if swapped := bits.ReverseBytes32(version); version%65536 == 0 && swapped < 10000 {
			got = fmt.Sprintf("format %d of a big-endian machine", swapped)
		}
		return fail(ErrUnsupportedVersion, "pg_control of PostgreSQL 13 to 18 (format 1300, 1700 or 1800)", got)
	}
	if want, got := le.Uint32(b[layout.crc:]), crc32.Checksum(b[:layout.crc], castagnoli); want != got {
		return fail(ErrBadCRC, fmt.Sprintf("%08X as the file says", want), fmt.Sprintf("%08X", got))
	}
	c := Control{
		SystemIdentifier:       le.Uint64(b[0:]),
		ControlVersion:         version,
		CatalogVersion:         le.Uint32(b[12:]),
		State:                  ControlState(le.Uint32(b[16:])),
		Time:                   time.Unix(int64(le.Uint64(b[24:])), 0),
		CheckPoint:             LSN(le.Uint64(b[32:])),
		Redo:                   LSN(le.Uint64(b[40:])),
		CheckPointTimeline:     TimelineID(le.Uint32(b[48:])),
		CheckPointPrevTimeline: TimelineID(le.Uint32(b[52:])),
		CheckPointTime:         time.Unix(int64(le.Uint64(b[104:])), 0),
		MinRecoveryPoint:       LSN(le.Uint64(b[136:])),
		MinRecoveryTimeline:    TimelineID(le.Uint32(b[144:])),
		BackupStart:            LSN(le.Uint64(b[152:])),
		BackupEnd:              LSN(le.Uint64(b[160:])),
		BackupEndRequired:      b[168] != 0,
		WALLogHints:            b[176] != 0,

		MaxConnections:          int(int32(le.Uint32(b[180:]))),
		MaxWorkerProcesses:      int(int32(le.Uint32(b[184:]))),
		MaxWALSenders:           int(int32(le.Uint32(b[188:]))),
		MaxPreparedTransactions: int(int32(le.Uint32(b[192:]))),
		MaxLocksPerTransaction:  int(int32(le.Uint32(b[196:]))),
		BlockSize:               le.Uint32(b[216:]),
		WALBlockSize:            le.Uint32(b[224:]),
		SegmentSize:             le.Uint32(b[228:]),
		DataChecksums:           le.Uint32(b[252:]) != 0,
	}
	release, ok := catalogMajor[c.CatalogVersion]
	if !ok || release.control != version {
		return fail(ErrUnsupportedVersion, "a release of PostgreSQL 13 to 18",
			fmt.Sprintf("catalog version %d with pg_control format %d", c.CatalogVersion, version))
	}
	c.Major = release.major
	if align, float := le.Uint32(b[204:]), math.Float64frombits(le.Uint64(b[208:])); align != 8 || float != 1234567 {
		return fail(ErrUnsupportedVersion, "a 64-bit server (alignment 8, IEEE doubles)",
			fmt.Sprintf("alignment %d, 1234567 stored as %g", align, float))
	}
	if c.State < StartingUp || c.State > InProduction {
		return fail(ErrBadControl, "a cluster state of 0 to 6", fmt.Sprint(int(c.State)))
	}
	if !powerOfTwo(c.SegmentSize, 1<<20, 1<<30) {
		return fail(ErrBadControl, "a WAL segment size of 1 MB to 1 GB", fmt.Sprint(c.SegmentSize))
	}
	if !powerOfTwo(c.WALBlockSize, 1<<10, 1<<16) {
		return fail(ErrBadControl, "a WAL page size of 1 kB to 64 kB", fmt.Sprint(c.WALBlockSize))
	}
	if !powerOfTwo(c.BlockSize, 1<<10, 1<<15) {
		return fail(ErrBadControl, "a page size of 1 kB to 32 kB", fmt.Sprint(c.BlockSize))
	}
	if c.CheckPointTimeline == 0 || c.Redo > c.CheckPoint || c.CheckPoint%8 != 0 {
		return fail(ErrBadControl, "a checkpoint on a timeline, its redo position not after it",
			fmt.Sprintf("timeline %d, redo %s, checkpoint %s", c.CheckPointTimeline, c.Redo, c.CheckPoint))
	}
	return c, nil
}

func powerOfTwo(n, low, high uint32) bool {
	return n >= low && n <= high && n&(n-1) == 0
}
