package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/durable"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// Rewind says that pg_rewind is at work on this node's data directory, or was until it was cut short: what is there is
// half of one history and half of another, and must not be started. It stands outside of the data directory, where
// pg_rewind removes what the other side does not have.
type Rewind struct {
	Version int       `json:"version"`
	Began   time.Time `json:"began"`
	Boot    string    `json:"boot,omitempty"` // of the kernel when it began
	Up      float64   `json:"up,omitempty"`   // seconds since that boot, which nobody sets
	DataDir string    `json:"data_dir"`
	BinDir  string    `json:"bin_dir"`
	Reason  string    `json:"reason"` // how the instance differed
	// Keep is the directory that holds what a second run needs and what will be lost.
	Keep     string            `json:"keep"`
	Timeline pgdisk.TimelineID `json:"timeline"` // on which the histories parted
	Fork     pgdisk.LSN        `json:"fork"`     // where
	Files    []string          `json:"files"`    // the user's own in the data directory
	Unneeded bool              `json:"unneeded"` // pg_rewind sees nothing to do but for WAL that was not replayed
	Done     bool              `json:"done"`     // pg_rewind has ended well: only the user's own files are to be put back
}

// Stamp notes when the rewind begins, by the clock and by the time since the boot.
func (r *Rewind) Stamp(now time.Time) {
	r.Began = now
	r.Boot, r.Up = uptime()
}

// Since is a time by the clock of now, before which the rewind had not begun: a node that has just lost its power may begin it by a wrong
// clock, which is set back meanwhile. Too early does no harm but for the time that it takes.
func (r *Rewind) Since(now time.Time) time.Time {
	boot, up := uptime()
	since := r.Began
	if boot == "" || boot != r.Boot {
		since = since.Add(-24 * time.Hour) // an RTC in local time
	} else if began := now.Add(-time.Duration((up - r.Up) * float64(time.Second))); began.Before(since) {
		since = began
	}
	if now.Before(since) {
		return time.Time{}
	}
	return since.Add(-time.Second) // file systems have clocks of their own, a tick behind
}

func uptime() (boot string, seconds float64) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", 0
	}
	text, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return "", 0
	}
	if _, err := fmt.Sscan(string(text), &seconds); err != nil {
		return "", 0
	}
	return strings.TrimSpace(string(id)), seconds
}

const rewindVersion = 1

// RewindPath is where the marker of a rewind stands.
func (s Store) RewindPath() string { return filepath.Join(s.Dir, "rewind.json") }

// LoadRewind reads the marker, nil if no rewind is under way. One that cannot be read is an error: a rewind may be.
func (s Store) LoadRewind() (*Rewind, error) {
	data, err := os.ReadFile(s.RewindPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("marker of a rewind: %w", err)
	}
	var r Rewind
	err = json.Unmarshal(data, &r)
	if err == nil && r.Version != rewindVersion {
		err = fmt.Errorf("version %d, expected %d", r.Version, rewindVersion)
	}
	if err != nil {
		return nil, fmt.Errorf("a rewind may be half done, but %s cannot be read: clone this node anew and remove it: %w", s.RewindPath(), err)
	}
	return &r, nil
}

// SaveRewind writes the marker durably.
func (s Store) SaveRewind(r Rewind) error {
	r.Version = rewindVersion
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return replace(s.RewindPath(), append(data, '\n'))
}

// DropRewind removes the marker durably.
func (s Store) DropRewind() error {
	if err := os.Remove(s.RewindPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.SyncDirs(s.Dir)
}
