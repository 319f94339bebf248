package e2e

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// Ensure the oldest and the newest version of PostgreSQL hand over and survive a crash like the one that all other tests
// use. PGBATON_ALL_VERSIONS=1 takes those between them too.
func TestVersions(t *testing.T) {
	versions := []string{"13", "18"}
	if os.Getenv("PGBATON_ALL_VERSIONS") == "1" {
		versions = []string{"13", "14", "16", "17", "18"}
	}
	cache := os.Getenv("PGBATON_PG_CACHE")
	if cache == "" {
		cache = "/var/cache/pgbaton/postgresql"
	}
	for _, v := range versions {
		t.Run(v, func(t *testing.T) {
			bindir := filepath.Join(cache, v, "bin")
			if _, err := os.Stat(filepath.Join(bindir, "postgres")); err != nil {
				t.Fatalf("%v: scripts/postgres-matrix.sh %s installs it", err, v)
			}
			o := ordinary()
			o.Bindir = bindir
			c := testCluster(t, "pg"+v, o)
			c.useFaults(t, false)
			if c.lab.Major != v {
				t.Fatalf("the lab runs PostgreSQL %s, expected %s", c.lab.Major, v)
			}
			versionHandovers(t, c)
			versionCrash(t, c)
		})
	}
	if err := endCluster(); err != nil {
		t.Fatal(err)
	}
}

// versionHandovers hands over twice, to different nodes, under load.
func versionHandovers(t *testing.T, c *cluster) {
	s := c.begin(t, 2*time.Minute, true)
	from, timeline := s.old, s.timeline(s.old)
	for i, to := range s.others[:2] {
		mark := fmt.Sprintf("handover %d", i+1)
		s.load.Mark(mark)
		s.move(to)
		s.promoted(to)
		s.streaming()
		timeline = s.provenOnDisk(from, timeline, to)
		s.highest(to)
		s.clear()
		s.stage("%s: %s to %s, timeline %d", mark, from, to, timeline)
		from = to
	}
	r := s.finish()
	for i := range 2 {
		mark := fmt.Sprintf("handover %d", i+1)
		t.Logf("%s: outage %.0f ms", mark, r.GapAfter(mark).Ms)
	}
}

// versionCrash kills the primary's postmaster. Somebody is primary again, everybody streams, nobody is fenced.
func versionCrash(t *testing.T, c *cluster) {
	s := c.begin(t, 2*time.Minute, true)
	const since = "SELECT extract(epoch FROM pg_postmaster_start_time()) WHERE NOT pg_is_in_recovery()"
	before := s.sql(s.old, since)
	s.load.Mark("crash")
	s.must(s.lab.SignalPostgres(s.old, syscall.SIGKILL, false))
	// Its server is started again where it was, or, if that fails, another node's takes over.
	var now string
	s.await(roleLimit, func() error {
		name, err := s.lab.WaitPromoted(s.within(roleLimit), "")
		if err != nil {
			return lab.NotYet("%v", err)
		}
		out, err := s.lab.SQL(s.ctx, name, since)
		if err != nil || out == "" || out == before {
			return lab.NotYet("%s is not primary with another server than before: %q (%v)", name, out, err)
		}
		now = name
		return nil
	})
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	s.streaming()
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	r := s.stopLoad()
	st := s.status()
	if now := fencings(t, s.lab); !slices.Equal(now, s.fenced) {
		t.Errorf("fenced: %q, before: %q: a crash that can be cleaned up must not cost the node", now, s.fenced)
	}
	s.sameRows()
	s.stage("crash of %s: %s is primary, outage %.0f ms, %d rows acknowledged, %d writes lost, failed actions %q", s.old, now, r.GapAfter("crash").Ms, r.Acknowledged, r.LostWrites(), st.Failed)
}

// PostgreSQL's own numbers (src/include/access/xlogrecord.h, xlog_internal.h).
const (
	walPage       = 8192
	walPageHeader = 24
	walFirstPage  = 40 // header of a segment's first page
	walAlign      = 8
)

// provenOnDisk checks a handover without any program of PostgreSQL but the servers themselves, for versions of which
// there is no pg_waldump. The old primary, by now a standby, still says by SQL where its last checkpoint is; the length
// of that record and what stands behind it is read from the WAL file.
func (s *scenario) provenOnDisk(from string, was uint32, to string) (now uint32) {
	s.t.Helper()
	row := strings.Split(s.sql(from, "SELECT checkpoint_lsn, redo_lsn, timeline_id FROM pg_control_checkpoint()"), "|")
	if len(row) != 3 || row[0] != row[1] || row[2] != strconv.Itoa(int(was)) {
		s.t.Fatalf("the checkpoint of %s (at|redo|timeline) is %q, expected a shutdown checkpoint, which is its own redo point, on timeline %d", from, row, was)
	}
	start := parseLSN(s.t, row[0])
	segment := uint64(s.lab.WALSegMB) << 20
	path := filepath.Join(s.walDir(from), s.segmentName(was, start))
	wal, err := os.ReadFile(path)
	s.must(err)
	if uint64(len(wal)) != segment {
		s.t.Fatalf("%s has %d bytes, expected %d", path, len(wal), segment)
	}
	record := wal[start%segment:]
	length := uint64(binary.LittleEndian.Uint32(record))
	end := recordEnd(start, length, segment)
	// The first 20 bytes of a record: length, transaction, previous record, info, resource manager.
	if room := walPage - start%walPage; room >= 24 && (record[16]&0xF0 != 0 || record[17] != 0) {
		s.t.Errorf("the record at %s of %s has info %02x and resource manager %d, expected a shutdown checkpoint: 0 and 0", row[0], path, record[16], record[17])
	}
	if end/segment == start/segment && end%walPage > walPageHeader && walPage-end%walPage >= 16 {
		if prev := binary.LittleEndian.Uint64(wal[end%segment+8:]); prev == start {
			s.t.Errorf("behind the shutdown checkpoint of %s at %s stands another record, at %s", from, row[0], formatLSN(end))
		}
	}
	now = s.timeline(to)
	if now <= was {
		s.t.Fatalf("%s writes timeline %d; %s wrote %d before", to, now, from, was)
	}
	if fork := s.fork(to, now, was); fork != end {
		s.t.Errorf("timeline %d of %s forks at %s; the shutdown checkpoint of %s, %s, ends at %s", now, to, formatLSN(fork), from, row[0], formatLSN(end))
	}
	return now
}

// recordEnd is where a record ends that starts somewhere and has a length, page headers on its way not counted.
func recordEnd(start, length, segment uint64) uint64 {
	at := start
	for left := (length + walAlign - 1) / walAlign * walAlign; ; {
		room := walPage - at%walPage
		if left <= room {
			return at + left
		}
		left -= room
		at += room
		if at%segment == 0 {
			at += walFirstPage
		} else {
			at += walPageHeader
		}
	}
}

// Ensure the arithmetic above, by hand.
func TestRecordEnd(t *testing.T) {
	for _, tt := range []struct{ start, length, want uint64 }{
		{0x3000028, 114, 0x3000028 + 120},
		{0x3002000 - 120, 114, 0x3002000},          // ends with its page
		{0x3002000 - 112, 114, 0x3002000 + 24 + 8}, // 8 bytes on the next page
		{0x4000000 - 112, 114, 0x4000000 + 40 + 8}, // in the next segment
	} {
		if got := recordEnd(tt.start, tt.length, 16<<20); got != tt.want {
			t.Errorf("%d bytes from %s end at %s, want %s", tt.length, formatLSN(tt.start), formatLSN(got), formatLSN(tt.want))
		}
	}
}
