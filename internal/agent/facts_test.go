package agent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// Ensure the timeline of a standby that streams from nobody is the one whose WAL it has replayed, also where that ends with a
// segment, as after pg_switch_wal or archive_timeout; and is pg_control's where there is only a history file.
func TestTimeline(t *testing.T) {
	const segment = 16 << 20
	dir := t.TempDir()
	wal := filepath.Join(dir, "pg_wal")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(wal, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(wal, 0o700); err != nil {
		t.Fatal(err)
	}
	write("00000009.history", "8\t0/9161730\tno recovery target specified\n")
	write("0000000B.history", "8\t0/9161730\tno recovery target specified\n9\t0/9198E40\tno recovery target specified\n")
	write("00000008"+"00000000"+"00000009", "")
	write("0000000B"+"00000000"+"00000009", "")
	a := &Agent{pg: &postgres.Instance{DataDir: dir}}
	ctl := pgdisk.Control{CheckPointTimeline: 8, SegmentSize: segment}
	for _, c := range []struct {
		from      pgdisk.LSN
		streaming pgdisk.TimelineID
		want      pgdisk.TimelineID
	}{
		{0x9161730, 0, 11}, // not reached yet, and it is on its way there
		{0x91DE7B0, 0, 11},
		{0xA000000, 0, 11}, // all of the segment
		{0xA000028, 0, 8},  // past all that it has of that timeline: its own
		{0xA000000, 9, 9},
	} {
		got, err := a.timeline(ctl, c.from, c.streaming)
		if err != nil || got != c.want {
			t.Errorf("from %s, streaming timeline %d: timeline %d, %v; want %d", c.from, c.streaming, got, err, c.want)
		}
	}
}
