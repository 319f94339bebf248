package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/durable"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// aftercareAction is a hidden action: what an ended primary still needs and no action should wait for. It runs
// detached, one a resource, and is started again by the monitor as long as there is something to do.
const aftercareAction = "aftercare"

// keepDir holds second links to WAL files that an ended primary had not archived. It lies in pg_wal because a hard link
// needs the same file system; PostgreSQL passes over names it does not know there.
const keepDir = "pgbaton-archive"

// lingerLimit is how long an old postmaster may finish an archive command before it is told to go.
const lingerLimit = time.Minute

// keepUnarchived takes the segments that an ended primary has not archived out of PostgreSQL's hands: a standby with
// archive_mode=on neither archives nor keeps them (XLogArchiveCheckDone in
// src/backend/access/transam/xlogarchive.c), and the archive would have a hole. It reports whether anything waits to be
// archived.
func (a *Agent) keepUnarchived(ctl pgdisk.Control) (bool, error) {
	dir := filepath.Join(a.walDir(), keepDir)
	switch ctl.State {
	case pgdisk.ShutDown, pgdisk.ShuttingDown, pgdisk.InProduction, pgdisk.InCrashRecovery:
	default:
		return a.kept() > 0, nil // a standby's own archive_mode=always looks after itself
	}
	ready, err := pgdisk.ArchiveBacklog(a.pg.DataDir)
	if err != nil {
		return a.kept() > 0, err
	}
	unmarked := a.unmarked(ctl)
	backlog := append(slices.Clone(ready), unmarked...)
	if len(backlog) == 0 {
		return a.kept() > 0, nil
	}
	err = a.do("keep-unarchived", func() error {
		wal, err := a.openKeep()
		if err != nil {
			return err
		}
		defer wal.Close()
		for _, name := range backlog {
			err := wal.Link(name, filepath.Join(keepDir, name))
			if _, gone := wal.Lstat(name); err != nil && !errors.Is(err, os.ErrExist) && !errors.Is(gone, os.ErrNotExist) {
				return err
			}
		}
		// The links first: what is marked as archived is nobody's business any more.
		if err := durable.SyncDirs(dir); err != nil {
			return err
		}
		for _, name := range unmarked {
			f, err := wal.Create(filepath.Join("archive_status", name+".done"))
			if err != nil {
				return err
			}
			f.Close()
		}
		for _, name := range ready {
			mark := filepath.Join("archive_status", name)
			if err := wal.Rename(mark+".ready", mark+".done"); err != nil {
				return err
			}
		}
		return durable.SyncDirs(filepath.Join(a.walDir(), "archive_status"))
	})
	if err != nil {
		return false, err
	}
	a.log.Info("WAL that is not archived yet is kept for later", "files", len(backlog), "first", backlog[0], "last", backlog[len(backlog)-1], "directory", dir)
	a.details["unarchived"] = fmt.Sprintf("%d, from %s", len(backlog), backlog[0])
	return true, nil
}

// openKeep opens pg_wal with keepDir in it. Both are the server's user's, who may have put a link there: root reaches
// nothing outside of pg_wal through what is returned.
func (a *Agent) openKeep() (*os.Root, error) {
	wal, err := os.OpenRoot(a.walDir())
	if err != nil {
		return nil, err
	}
	err = wal.Mkdir(keepDir, 0o700)
	if err == nil && os.Geteuid() == 0 {
		err = wal.Lchown(keepDir, int(a.pg.Owner.UID), int(a.pg.Owner.GID))
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		wal.Close()
		return nil, err
	}
	info, err := wal.Lstat(keepDir)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is no directory: remove it", filepath.Join(a.walDir(), keepDir))
	}
	if err != nil {
		wal.Close()
		return nil, err
	}
	return wal, nil
}

// keepPlaceholders has the history files of timeline numbers that were passed over archived. A recovery from the archive
// looks for one history file after the other and ends on the timeline before the first that is missing
// (findNewestTimeLine in src/backend/access/transam/timeline.c); the server archives only what it wrote itself. The mark
// that the server makes for an archived file (".done") says that it was seen to.
func (a *Agent) keepPlaceholders(ctx context.Context, timeline pgdisk.TimelineID) error {
	status := filepath.Join(a.walDir(), "archive_status")
	for _, t := range a.histories() {
		name := pgdisk.HistoryFileName(t)
		if _, err := os.Lstat(filepath.Join(status, name+".done")); err == nil || t >= timeline || !a.isPlaceholder(name) {
			continue
		}
		if mode, err := a.pg.ConfiguredValue(ctx, "archive_mode"); err != nil || mode == "off" {
			return err
		}
		err := a.do("keep-unarchived", func() error {
			wal, err := a.openKeep()
			if err != nil {
				return err
			}
			defer wal.Close()
			if err := wal.Link(name, filepath.Join(keepDir, name)); err != nil && !errors.Is(err, os.ErrExist) {
				return err
			}
			return a.pg.WriteWAL(filepath.Join("archive_status", name+".done"), nil)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// isPlaceholder tells whether a file of pg_wal is the history file of a timeline number that was passed over.
func (a *Agent) isPlaceholder(name string) bool {
	var t uint32
	if _, err := fmt.Sscanf(name, "%08X.history", &t); err != nil {
		return false
	}
	h, err := pgdisk.ReadHistory(a.walDir(), pgdisk.TimelineID(t))
	return err == nil && baton.IsPlaceholder(h)
}

// archiverHasWork reports whether the server has files to archive itself.
func (a *Agent) archiverHasWork() bool {
	ready, err := filepath.Glob(filepath.Join(a.walDir(), "archive_status", "*.ready"))
	return err != nil || len(ready) > 0
}

// unmarked lists the whole segments of a primary that crashed, behind its last checkpoint, which are neither marked as archived nor
// as to be: the server does not flush that mark (XLogArchiveNotify in src/backend/access/transam/xlogarchive.c), so that a loss of
// power may take it, and a primary's next checkpoint makes up for it, which this one does not come to.
func (a *Agent) unmarked(ctl pgdisk.Control) []string {
	if ctl.State == pgdisk.ShutDown || a.resting == nil || a.restingControl != ctl || !a.wasPrimaryOn(a.resting.Position.Timeline) {
		return nil // of a clone that never ran, all are the primary's
	}
	entries, err := os.ReadDir(a.walDir())
	if err != nil {
		return nil
	}
	end, size := a.resting.Position, pgdisk.LSN(ctl.SegmentSize)
	var names []string
	for _, e := range entries {
		tli, start, ok := pgdisk.ParseSegmentName(e.Name(), ctl.SegmentSize)
		if !ok || tli != end.Timeline || start+size <= ctl.Redo || start+size > end.LSN {
			continue
		}
		marked := slices.ContainsFunc([]string{".ready", ".done"}, func(mark string) bool {
			_, err := os.Stat(filepath.Join(a.walDir(), "archive_status", e.Name()+mark))
			return err == nil
		})
		if !marked {
			names = append(names, e.Name())
		}
	}
	if len(names) == 0 {
		return nil
	}
	brief, cancel := context.WithTimeout(context.Background(), modeLimit)
	defer cancel()
	if mode, err := a.pg.ConfiguredValue(brief, "archive_mode"); err != nil || mode == "off" {
		return nil
	}
	return names
}

// modeLimit is how long a server program is waited for that is asked for its configuration.
const modeLimit = 5 * time.Second

// kept counts the files that wait to be archived.
func (a *Agent) kept() int { return len(a.keptNames()) }

// spawnAftercare starts the aftercare: it outlives this action and its process group.
func (a *Agent) spawnAftercare() { a.spawnDetached(aftercareAction) }

// spawnDetached runs a hidden action of this agent in a session of its own, with more in its environment.
func (a *Agent) spawnDetached(action string, more ...string) {
	exe, err := os.Executable()
	if err != nil {
		a.log.Error(action, "error", err)
		return
	}
	cmd := exec.Command(exe, action)
	cmd.Env = append(os.Environ(), more...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := a.do("spawn-"+action, cmd.Start); err != nil {
		a.log.Error(action, "error", err)
		return
	}
	cmd.Process.Release()
}

// aftercare brings a parked instance back once its old postmaster is gone, and archives what was kept. Each has a lock of its
// own: an archive_command may fail for hours, and the next demote's instance must not be left down for that.
func (a *Agent) aftercare(ctx context.Context) error {
	if release := a.onlyOne(ctx, "aftercare.lock"); release != nil {
		if err := a.bringBack(ctx); err != nil {
			a.log.Error("bringing the old primary back", "error", err)
		}
		release()
	}
	release := a.onlyOne(ctx, "archive.lock")
	if release == nil {
		return nil
	}
	defer release()
	return a.archiveKept(ctx)
}

// onlyOne takes a lock if nobody has it. Otherwise it returns nil: another one is at it.
func (a *Agent) onlyOne(ctx context.Context, lock string) (release func()) {
	brief, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	release, err := a.flock(brief, lock)
	if err != nil {
		return nil
	}
	return release
}

// bringBack waits for an old postmaster that still archives or feeds a standby, and starts the instance as a standby.
func (a *Agent) bringBack(ctx context.Context) error {
	if !journal.LoadVolatile(a.inv.Resource).Parked {
		return nil
	}
	var late error
	pm, err := a.pg.Postmaster()
	if err == nil {
		a.endArchiver(pm)
		limited, cancel := context.WithTimeout(ctx, lingerLimit)
		late = a.awaitLingering(limited, pm.Process)
		cancel()
	}
	ctx, cancel := context.WithTimeout(ctx, lingerLimit) // actions wait for the lock
	defer cancel()
	release, err := a.hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	if late != nil && a.vol.Parked {
		// Under the lock: a promote that takes the role back ends the old postmaster, too, and its new one must not be killed for it.
		f, err := a.look()
		if err != nil {
			return err
		}
		if f.role == stopping && f.postmaster.Process == pm.Process {
			a.log.Warn("ending the old postmaster", "reason", late)
			if err := a.endLingering(ctx, pm.Process); err != nil {
				return err
			}
		}
	}
	started, err := a.unpark(ctx)
	if started && err == nil {
		a.log.Info("the old primary is back as a standby")
	}
	return err
}

// endArchiver lets the archiver finish the file it is at and no more (pgarch_ArchiverCopyLoop in
// src/backend/postmaster/pgarch.c): the rest is archived from what was kept.
func (a *Agent) endArchiver(pm postgres.Postmaster) {
	for p, title := range pm.Children() {
		if strings.HasPrefix(title, "archiver") {
			a.do("end-archiver", func() error { return p.Signal(syscall.SIGTERM) })
		}
	}
}

// archiveKept runs the user's archive_command for every kept file, in the order PostgreSQL would have.
func (a *Agent) archiveKept(ctx context.Context) error {
	if a.kept() == 0 || a.rewinding() { // what is there then is the primary's, and half copied
		return nil
	}
	wal, err := a.openKeep()
	if err != nil {
		a.log.Error("WAL waits to be archived", "error", err)
		return err
	}
	defer wal.Close()
	dir := filepath.Join(a.walDir(), keepDir)
	failed := 0
	for {
		names := a.keptNames()
		if len(names) == 0 {
			return nil // the directory stays: somebody may be about to put a link there
		}
		command, err := a.archiveCommand(ctx)
		if err != nil {
			a.log.Error("WAL waits to be archived", "files", len(names), "first", names[0], "directory", dir, "error", err)
			return err
		}
		began := a.clock.Now()
		if err := a.archiveOne(ctx, command, names[0]); err != nil {
			if a.isPlaceholder(names[0]) && !a.archiverHasWork() {
				// The server's own files get through: the archive has a file of this name already, from whoever did start
				// the timeline, and a command that refuses to archive a name twice is right.
				a.log.Warn("archive_command does not take the history file of a number that was passed over", "file", names[0], "error", err)
				if err := wal.Remove(filepath.Join(keepDir, names[0])); err != nil {
					return err
				}
				continue
			}
			if failed%60 == 0 {
				a.log.Warn("archive_command failed, trying again", "file", names[0], "waiting", len(names), "error", err)
			}
			if failed++; failed > 3600 {
				return err
			}
			a.clock.Sleep(ctx, time.Second)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			continue
		}
		failed = 0
		if err := a.do("archived", func() error { return wal.Remove(filepath.Join(keepDir, names[0])) }); err != nil {
			return err
		}
		a.log.Info("archived for the old primary", "file", names[0], "waiting", len(names)-1, "ms", a.clock.Now().Sub(began).Milliseconds())
	}
}

// keptNames orders as PostgreSQL archives: timeline history files first, then by name. Placeholders come last: what nobody
// wrote must not hold up what somebody did.
func (a *Agent) keptNames() []string {
	list, _ := os.ReadDir(filepath.Join(a.walDir(), keepDir))
	names := make([]string, 0, len(list))
	for _, e := range list {
		if pgdisk.Archivable(e.Name()) { // anything else is not ours, and would stand in the way
			names = append(names, e.Name())
		}
	}
	rank := func(name string) int {
		switch {
		case !strings.HasSuffix(name, ".history"):
			return 1
		case a.isPlaceholder(name):
			return 2
		}
		return 0
	}
	slices.SortFunc(names, func(x, y string) int {
		return cmp.Or(cmp.Compare(rank(x), rank(y)), strings.Compare(x, y))
	})
	return names
}

// archiveCommand asks the server's own configuration, which works whether it runs or not.
func (a *Agent) archiveCommand(ctx context.Context) (string, error) {
	get := func(name string) (string, error) { return a.pg.ConfiguredValue(ctx, name) }
	if a.majorVersion() >= 15 {
		if lib, err := get("archive_library"); err == nil && lib != "" {
			return "", fmt.Errorf("archive_library=%s can only be called by the server: copy the files into the archive by hand", lib)
		}
	}
	command, err := get("archive_command")
	if err != nil {
		return "", err
	}
	if command == "" || command == "(disabled)" {
		return "", errors.New("archive_command is empty: set it, or copy the files into the archive by hand")
	}
	return command, nil
}

func (a *Agent) majorVersion() int {
	ctl, err := pgdisk.ReadControl(a.pg.DataDir)
	if err != nil {
		return 0
	}
	return ctl.Major
}

// archiveOne runs archive_command as the server would: by the shell, in the data directory, as its user, with %p and
// %f replaced (documentation, "Continuous Archiving"). The command is the user's own configuration; the only thing put
// into it is the name of a WAL file, checked by its form.
func (a *Agent) archiveOne(ctx context.Context, command, name string) error {
	path := filepath.Join("pg_wal", keepDir, name)
	line := strings.NewReplacer("%%", "%", "%p", path, "%f", name).Replace(command)
	limited, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	return a.do("archive", func() error { return a.pg.Shell(limited, line) })
}
