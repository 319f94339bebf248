package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/pgbaton/pgbaton/internal/durable"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// What lies in the directory of a rewind besides the WAL that will be lost.
const (
	asideControl = "pg_control"
	asideOwn     = "own"      // the user's own files
	asideOlder   = "for-redo" // WAL before the fork, for a second run
)

// segmentName is how long the name of a WAL segment is; nothing else in the directory of a rewind has one of that length.
const segmentName = 24

// putAside copies what pg_rewind will overwrite or remove and somebody may still need: the WAL from the fork on, which
// nobody else has; the WAL from the last common checkpoint on and pg_control, for a second run; the user's own files.
func (a *Agent) putAside(ctl pgdisk.Control, fork forkPoint, r *journal.Rewind) error {
	entries, err := os.ReadDir(a.walDir())
	if err != nil {
		return err
	}
	size := pgdisk.LSN(ctl.SegmentSize)
	lost, older := []string{}, []string{}
	tip := max(ctl.CheckPointTimeline, ctl.MinRecoveryTimeline)
	history, err := pgdisk.ReadHistory(a.walDir(), tip)
	if err != nil {
		return err
	}
	for _, e := range entries {
		t, start, ok := pgdisk.ParseSegmentName(e.Name(), ctl.SegmentSize)
		_, ancestor := history.SwitchPointOf(t)
		switch {
		case strings.HasSuffix(e.Name(), ".history"):
			older = append(older, e.Name())
		case !ok || (t != tip && !ancestor) || start < fork.checkpoint-fork.checkpoint%size:
		case !pgdisk.HoldsWAL(filepath.Join(a.walDir(), e.Name()), start):
			// An older file that was renamed for WAL to come.
		case t >= fork.timeline && start >= fork.at-fork.at%size:
			lost = append(lost, e.Name())
		default:
			older = append(older, e.Name())
		}
	}
	megabytes := int64(len(lost)) * int64(ctl.SegmentSize) >> 20
	if a.params.RewindKeep > 0 && megabytes > a.params.RewindKeep {
		return fmt.Errorf("this instance has %d MB of WAL that nobody else has, from %s on, more than rewind_keep=%d allows to keep: to keep it: $ crm_resource -r %s -p rewind_keep -v %d # or to throw it away: $ crm_resource -r %s -p rewind_keep -v 0",
			megabytes, fork.at, a.params.RewindKeep, a.inv.Resource, megabytes, a.inv.Resource)
	}
	var room syscall.Statfs_t
	segments := len(lost) + 4
	for _, name := range older {
		if !strings.HasSuffix(name, ".history") { // a few lines
			segments++
		}
	}
	need := int64(segments) * int64(ctl.SegmentSize)
	// Of a preparation that was cut short everything is still in the data directory, and it takes up the room that is asked for.
	tmp := filepath.Join(a.store.Dir, "lost.new")
	if err := errors.Join(os.MkdirAll(a.store.Dir, 0o755), os.RemoveAll(tmp)); err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := syscall.Statfs(a.store.Dir, &room); err == nil && int64(room.Bavail)*room.Bsize < need {
		return fmt.Errorf("%s has no room for %d MB of WAL that a rewind puts aside: make room there", a.store.Dir, need>>20)
	}
	for _, d := range []string{tmp, filepath.Join(tmp, asideOlder), filepath.Join(tmp, asideOwn)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	for _, n := range lost {
		if err := copyAs(filepath.Join(a.walDir(), n), filepath.Join(tmp, n)); err != nil {
			return err
		}
	}
	for _, n := range older {
		if err := copyAs(filepath.Join(a.walDir(), n), filepath.Join(tmp, asideOlder, n)); err != nil {
			return err
		}
	}
	if err := copyAs(pgdisk.ControlPath(a.pg.DataDir), filepath.Join(tmp, asideControl)); err != nil {
		return err
	}
	own, err := a.ownFiles()
	if err != nil {
		return err
	}
	for _, f := range own {
		r.Files = append(r.Files, f.name)
		if !f.small {
			continue
		}
		to := filepath.Join(tmp, asideOwn, f.name)
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return err
		}
		if err := copyAs(filepath.Join(a.pg.DataDir, f.name), to); err != nil {
			return err
		}
	}
	text := fmt.Sprintf("WAL of %s that the cluster passed over: %s.\nIt is from before the rewind of %s. To see its transactions:\n\n    %s\n\nNothing needs this directory any more; remove it when nobody asks for them.\n",
		a.inv.Node, r.Reason, r.Began.Format(time.RFC3339), a.waldump(r))
	if err := os.WriteFile(filepath.Join(tmp, "README"), []byte(text), 0o644); err != nil {
		return err
	}
	if err := os.Rename(tmp, r.Keep); err != nil {
		return err
	}
	return durable.SyncDirs(a.store.Dir)
}

// noteKept has the journal say where what is lost is to be found afterwards, and the command that shows its transactions.
func (a *Agent) noteKept(r *journal.Rewind) {
	if a.params.RewindKeep > 0 {
		a.details["kept"], a.details["waldump"] = r.Keep, a.waldump(r)
	}
}

// waldump is the command that shows the transactions that were lost.
func (a *Agent) waldump(r *journal.Rewind) string {
	return ocf.JoinArgs(filepath.Join(r.BinDir, "pg_waldump"), "-p", r.Keep, "-t", fmt.Sprint(r.Timeline), "-s", r.Fork.String(), "--rmgr=Transaction")
}

// restoreTarget brings the data directory to where a second run of pg_rewind does all that the first one did: its WAL
// from the last common checkpoint on, and its pg_control, are those from before. Relation files that the first run has
// touched are removed, so that they come as a whole from the primary: of one that was being extended, or whose blocks
// did not reach the disk before a loss of power, pg_rewind would believe what is there.
func (a *Agent) restoreTarget(r *journal.Rewind) error {
	return a.do("restore-target", func() error {
		for _, d := range []string{r.Keep, filepath.Join(r.Keep, asideOlder)} {
			entries, err := os.ReadDir(d)
			if err != nil {
				return err
			}
			for _, e := range entries {
				if len(e.Name()) == segmentName || strings.HasSuffix(e.Name(), ".history") {
					if err := copyAs(filepath.Join(d, e.Name()), filepath.Join(a.walDir(), e.Name())); err != nil {
						return err
					}
				}
			}
		}
		removed := 0
		for _, top := range []string{"base", "global", "pg_tblspc"} {
			root := filepath.Join(a.pg.DataDir, top)
			dirs := []string{root}
			if top == "pg_tblspc" {
				// Of this version: a cluster of another one may have a tablespace in the same place.
				var err error
				if dirs, err = filepath.Glob(filepath.Join(root, "*", fmt.Sprintf("PG_%d_*", a.majorVersion()))); err != nil {
					return err
				}
			}
			for _, d := range dirs {
				n, err := removeTouched(d, r.Since(a.clock.Now()))
				if err != nil {
					return err
				}
				removed += n
			}
		}
		a.log.Info("relation files that the rewind has touched will come as a whole", "files", removed)
		if err := copyAs(filepath.Join(r.Keep, asideControl), pgdisk.ControlPath(a.pg.DataDir)); err != nil {
			return err
		}
		// Only now: see sameTarget.
		if err := os.Remove(filepath.Join(a.pg.DataDir, "backup_label")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// sameTarget makes sure that the data directory still is what a rewind was cut short in, and not what a person has put in its
// place: its pg_control is that from before, or pg_rewind, which writes it last, has just put backup_label beside it
// (perform_rewind in pg_rewind.c).
func (a *Agent) sameTarget(r *journal.Rewind) error {
	replaced := func(found string) error {
		return fmt.Errorf("a rewind of %s was cut short on %s, and this is another data directory (%s): if it is complete, forget the rewind, as root on %s: %s",
			r.DataDir, r.Began.Format(time.DateTime), found, a.inv.Node, commands([]string{"rm", a.store.RewindPath()}))
	}
	if dir := a.pg.RealDataDir(); dir != r.DataDir {
		return replaced("it is " + dir)
	}
	was, err := os.ReadFile(filepath.Join(r.Keep, asideControl))
	if err != nil {
		return fmt.Errorf("what a rewind that was cut short has put aside: %w", err)
	}
	now, err := os.ReadFile(pgdisk.ControlPath(a.pg.DataDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if bytes.Equal(was, now) {
		return nil
	}
	label, err := os.ReadFile(filepath.Join(a.pg.DataDir, "backup_label"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && len(label) == 0 {
		return nil // a loss of power took what was in it; that of a base backup is on disk before the backup is complete
	}
	if ctl, bad := pgdisk.ReadControl(a.pg.DataDir); bad == nil && len(label) == 0 && ctl.State == pgdisk.InArchiveRecovery {
		return fmt.Errorf("a rewind of %s was cut short on %s: the power may have gone right after pg_rewind had written pg_control, or somebody has put another data directory there; only who knows that it is another one, and complete, may forget the rewind (%s). To make it anew, as root on %s: %s",
			r.DataDir, r.Began.Format(time.DateTime), ocf.JoinArgs("rm", a.store.RewindPath()), a.inv.Node, a.cloneCommands())
	}
	if !bytes.Contains(label, []byte("BACKUP METHOD: pg_rewind")) {
		return replaced("pg_control is neither that from before nor one that pg_rewind wrote")
	}
	return nil
}

// relationFile is the name of a relation's segment or fork (isRelDataFile in src/bin/pg_rewind/filemap.c, and forks).
var relationFile = regexp.MustCompile(`^[0-9]+(_[a-z]+)?(\.[0-9]+)?$`)

func removeTouched(root string, since time.Time) (n int, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !relationFile.MatchString(d.Name()) {
			return err
		}
		info, err := d.Info()
		if err != nil || info.ModTime().Before(since) {
			return err
		}
		n++
		return os.Remove(path)
	})
	return n, err
}

// dropForeign removes what pg_rewind, which copies all below the data directory, has brought of the primary's WAL that waits to be
// archived: of this node's own there was none, or the rewind would not have begun.
func (a *Agent) dropForeign() error {
	if a.kept() == 0 {
		return nil
	}
	wal, err := a.openKeep()
	if err != nil {
		return err
	}
	defer wal.Close()
	for _, name := range a.keptNames() {
		if err := wal.Remove(filepath.Join(keepDir, name)); err != nil {
			return err
		}
	}
	return nil
}

// dropAside leaves of what was put aside what nobody else has.
func (a *Agent) dropAside(r *journal.Rewind) {
	drop := []string{filepath.Join(r.Keep, asideOlder), filepath.Join(r.Keep, asideOwn), filepath.Join(r.Keep, asideControl)}
	if a.params.RewindKeep == 0 {
		drop = []string{r.Keep}
	}
	for _, d := range drop {
		if err := os.RemoveAll(d); err != nil {
			a.log.Warn("left behind by the rewind", "error", err)
		}
	}
}

// copyAs copies a file or a symbolic link, with owner and mode, and flushes it: aside, then renamed, so that what is
// there is never half of it.
func copyAs(from, to string) error {
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	tmp := to + ".pgbaton"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	if info.Mode()&fs.ModeSymlink != 0 {
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		if err := os.Symlink(target, tmp); err != nil {
			return err
		}
	} else if err := copyContent(from, tmp, info.Mode().Perm()); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		if err := os.Lchown(tmp, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if err := os.Rename(tmp, to); err != nil {
		return err
	}
	return durable.SyncDirs(filepath.Dir(to))
}

func copyContent(from, to string, mode fs.FileMode) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Chmod(mode), dst.Sync(), dst.Close())
}
