package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// rewind takes what the cluster passed over out of this instance, and starts it. Whatever it needs is checked before
// anything is touched. What a second run needs is put aside first: pg_rewind overwrites the very WAL in which it finds
// the blocks to replace, and is not made to be run twice.
func (a *Agent) rewind(ctx context.Context, lock *os.File) error {
	r, err := a.store.LoadRewind()
	if err != nil {
		return err
	}
	src := a.rewindSource(lock)
	if r == nil {
		if r, err = a.prepareRewind(ctx, src); err != nil {
			return err
		}
	} else if !r.Done {
		a.pg.BinDir = r.BinDir // PG_VERSION, by which it is found, may be half written
		a.say("the rewind was cut short: beginning again")
		if err := a.restoreTarget(r); err != nil {
			return fmt.Errorf("a rewind was cut short, and what a second run needs cannot be put back (%w): make this instance anew: %s", err, a.cloneCommands())
		}
		if err := a.checkSource(ctx, src); err != nil {
			return err
		}
	}
	if !r.Done {
		a.say(fmt.Sprintf("pg_rewind is at work since %s; what is lost is kept in %s", a.clock.Now().Format(time.TimeOnly), r.Keep))
		var out string
		if err := a.do("pg-rewind", func() (err error) { out, err = a.pgRewind(ctx, src); return err }); err != nil {
			return src.why(out, err)
		}
		if strings.Contains(out, "no rewind required") {
			if err := a.cutWAL(r); err != nil {
				return err
			}
		}
		r.Done = true
		if err := a.do("rewound", func() error { return a.store.SaveRewind(*r) }); err != nil {
			return err
		}
	}
	return a.finishRewind(ctx, r)
}

// rewindSource is how the programs of a rewind reach the primary.
type rewindSource struct {
	conninfo string
	password string
	tool     postgres.Tool
}

func (a *Agent) rewindSource(lock *os.File) rewindSource {
	conninfo, password := postgres.SplitPassword(
		a.params.RewindConninfo,
		[2]string{"dbname", "postgres"}, [2]string{"connect_timeout", "10"}, [2]string{"target_session_attrs", "read-write"},
	)
	if password == "" && a.env[asStandby] != "" {
		_, password = postgres.SplitPassword(a.pg.Settings()["primary_conninfo"])
	}
	s := rewindSource{conninfo: conninfo, password: password, tool: postgres.Tool{Files: []*os.File{lock}}}
	if password != "" {
		s.tool.Env = []string{"PGPASSWORD=" + password} // not in a command line, which everybody may read
	}
	return s
}

// complaintLine is how PostgreSQL's programs begin what matters: "pg_rewind: error: …", "psql: error: …", "FATAL:  …".
var complaintLine = regexp.MustCompile(`(?m)^(?:[a-z_]+: )?(?:error|fatal|detail|ERROR|FATAL|DETAIL):\s+(.*)$`)

// why makes an error of what a program said; no password is repeated.
func (s rewindSource) why(out string, err error) error {
	var said []string
	for _, m := range complaintLine.FindAllStringSubmatch(out, -1) {
		said = append(said, strings.TrimSpace(m[1]))
	}
	text := strings.Join(said, "; ")
	if text == "" {
		lines := strings.Split(strings.TrimSpace(out), "\n")
		text = lines[len(lines)-1]
	}
	if s.password != "" {
		text = strings.ReplaceAll(text, s.password, "***")
	}
	if len(text) > 400 {
		text = text[:400] + "..."
	}
	return fmt.Errorf("%w: %s", err, text)
}

// prepareRewind checks what a rewind needs, puts aside what it takes away, and leaves the marker.
func (a *Agent) prepareRewind(ctx context.Context, src rewindSource) (*journal.Rewind, error) {
	a.say("checking what a rewind needs")
	for _, p := range []string{"pg_rewind", "psql", "postgres"} {
		if _, err := os.Stat(filepath.Join(a.pg.BinDir, p)); err != nil {
			return nil, fmt.Errorf("there is no %s in %q: install it, or correct bindir", p, a.pg.BinDir)
		}
	}
	ctl, err := pgdisk.ReadControl(a.pg.DataDir)
	if err != nil {
		return nil, err
	}
	if !ctl.DataChecksums && !ctl.WALLogHints {
		return nil, fmt.Errorf("this instance has neither data checksums nor wal_log_hints=on, without which pg_rewind cannot work: make it anew, and set wal_log_hints=on everywhere for the next time: %s", a.cloneCommands())
	}
	if n := a.kept(); n > 0 {
		return nil, fmt.Errorf("%d WAL files in %s must be archived first: see to archive_command", n, filepath.Join(a.walDir(), keepDir))
	}
	if role, err := a.cluster.Held(ctx); err != nil || role == "" {
		return nil, fmt.Errorf("the resource is not managed here now (maintenance, no quorum): waiting until it is (%v)", err)
	}
	if err := a.checkSource(ctx, src); err != nil {
		return nil, err
	}
	if ctl, err = a.recoverCrash(ctx, ctl, src); err != nil {
		return nil, err
	}
	if err := a.fetchHistory(ctx, ctl, src); err != nil {
		return nil, err
	}
	fork, err := a.dryRun(ctx, src)
	if err != nil {
		return nil, err
	}
	if err := a.checkSourceWAL(ctx, ctl, src, fork); err != nil {
		return nil, err
	}
	r := &journal.Rewind{
		Began: a.clock.Now(), DataDir: a.pg.RealDataDir(), BinDir: a.pg.BinDir, Reason: a.vol.Out.Reason,
		Timeline: fork.timeline, Fork: fork.at,
	}
	r.Keep = filepath.Join(a.store.Dir, fmt.Sprintf("lost-%s-%d-%08X-%08X", r.Began.UTC().Format("20060102T150405"), fork.timeline, uint64(fork.at)>>32, uint64(fork.at)&0xFFFFFFFF))
	if err := a.do("keep-lost", func() error { return a.putAside(ctl, fork, r) }); err != nil {
		return nil, err
	}
	if err := a.do("mark-rewind", func() error { return a.store.SaveRewind(*r) }); err != nil {
		return nil, err
	}
	a.details["kept"] = a.waldump(r)
	a.record("begins", r.Reason, true)
	a.log.Warn("rewinding", "reason", r.Reason, "fork", fork.at, "timeline", fork.timeline, "kept", a.waldump(r))
	return r, nil
}

// checkSource asks the primary for what pg_rewind needs of it, and waits until its pg_control says its timeline: until
// the first checkpoint after a promotion it still says the old one, and pg_rewind (before 16) would find nothing to do.
func (a *Agent) checkSource(ctx context.Context, src rewindSource) error {
	ctl, err := pgdisk.ReadControl(a.pg.DataDir)
	if err != nil {
		return err
	}
	want := pgdisk.TimelineID(0)
	if line, ok := baton.LineOf(a.state.Claims); ok {
		want = line.Timeline
	}
	const sql = `select s.system_identifier, c.timeline_id, pg_catalog.current_setting('full_page_writes'),
  ('x' || pg_catalog."left"(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8))::pg_catalog.bit(32)::pg_catalog.int4,
  pg_catalog.has_function_privilege('pg_catalog.pg_ls_dir(text,boolean,boolean)', 'execute')
  and pg_catalog.has_function_privilege('pg_catalog.pg_stat_file(text,boolean)', 'execute')
  and pg_catalog.has_function_privilege('pg_catalog.pg_read_binary_file(text)', 'execute')
  and pg_catalog.has_function_privilege('pg_catalog.pg_read_binary_file(text,bigint,bigint,boolean)', 'execute'), current_user
  from pg_catalog.pg_control_system() s, pg_catalog.pg_control_checkpoint() c`
	for asked := false; ; {
		out, err := a.query(ctx, src, sql)
		if err != nil {
			return fmt.Errorf("the primary cannot be reached by rewind_conninfo: %w", err)
		}
		f := strings.Split(strings.TrimSpace(out), "|")
		if len(f) != 6 {
			return fmt.Errorf("the primary answered %q", out)
		}
		checkpointed, _ := strconv.ParseUint(f[1], 10, 32)
		timeline, _ := strconv.ParseUint(f[3], 10, 32)
		switch {
		case f[0] != strconv.FormatUint(ctl.SystemIdentifier, 10):
			return fmt.Errorf("rewind_conninfo leads to another database cluster: its system identifier is %s, expected %d", f[0], ctl.SystemIdentifier)
		case f[2] != "on":
			return errors.New("full_page_writes is off on the primary, without which pg_rewind cannot work: set it to on")
		case f[4] != "t":
			return fmt.Errorf("the user %s may not read files on the primary: grant execute on functions pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean), pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean) to it", f[5])
		case pgdisk.TimelineID(timeline) < want:
			return fmt.Errorf("rewind_conninfo leads to a primary on timeline %d, but the cluster is on %d", timeline, want)
		case checkpointed == timeline:
			return nil
		}
		if !asked {
			asked = true
			if _, err := a.query(ctx, src, "CHECKPOINT"); err == nil {
				continue
			}
			a.say(fmt.Sprintf("waiting for the first checkpoint of the primary on timeline %d, for up to its checkpoint_timeout: its user may not order one (grant pg_checkpoint)", timeline))
		}
		a.clock.Sleep(ctx, time.Second)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// query runs one statement on the primary, with the very connection that pg_rewind will make.
func (a *Agent) query(ctx context.Context, src rewindSource, sql string) (string, error) {
	limited, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	out, err := src.tool.Run(limited, a.pg, "psql", "-XAtqw", "-v", "ON_ERROR_STOP=1", "-d", src.conninfo, "-c", sql)
	if err != nil {
		return "", src.why(out, err)
	}
	return out, nil
}

// recoverCrash brings a data directory that was not shut down cleanly to where pg_rewind can begin.
func (a *Agent) recoverCrash(ctx context.Context, ctl pgdisk.Control, src rewindSource) (pgdisk.Control, error) {
	if ctl.State == pgdisk.ShutDown || ctl.State == pgdisk.ShutDownInRecovery {
		return ctl, nil
	}
	if _, err := os.Stat(filepath.Join(a.pg.DataDir, "backup_label")); err == nil {
		return ctl, fmt.Errorf("this is a base backup that was never started: make it anew: %s", a.cloneCommands())
	}
	a.say(fmt.Sprintf("recovering from the crash first (pg_control says %q)", ctl.State))
	if _, err := a.pg.RemoveStaleLocks(); err != nil {
		return ctl, err
	}
	// A single-user server refuses to be a standby. Every start writes the file again.
	if err := os.Remove(filepath.Join(a.pg.DataDir, "standby.signal")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ctl, err
	}
	err := a.do("crash-recovery", func() error {
		out, err := src.tool.Run(ctx, a.pg, "postgres", a.pg.SingleUserArgs()...)
		if err != nil {
			return src.why(out, err)
		}
		return nil
	})
	if err != nil {
		return ctl, err
	}
	ctl, err = pgdisk.ReadControl(a.pg.DataDir)
	if err == nil && ctl.State != pgdisk.ShutDown {
		err = fmt.Errorf("after a recovery by postgres --single pg_control says %q, expected %q", ctl.State, pgdisk.ShutDown)
	}
	return ctl, err
}

// fetchHistory gets the history file of this instance's timeline from the primary if it is missing here: pg_rewind
// compares the two histories.
func (a *Agent) fetchHistory(ctx context.Context, ctl pgdisk.Control, src rewindSource) error {
	t := max(ctl.CheckPointTimeline, ctl.MinRecoveryTimeline)
	name := pgdisk.HistoryFileName(t)
	if _, err := os.Stat(filepath.Join(a.walDir(), name)); t == 1 || err == nil {
		return nil
	}
	out, err := a.query(ctx, src, "select pg_catalog.convert_from(pg_catalog.pg_read_binary_file('pg_wal/"+name+"'), 'SQL_ASCII')")
	if err == nil {
		_, err = pgdisk.ParseHistory(strings.NewReader(out))
	}
	if err != nil {
		return fmt.Errorf("pg_wal/%s is missing here, and the primary does not have it either: copy it from the archive: %w", name, err)
	}
	a.log.Warn("took over a missing history file from the primary", "file", name)
	return a.do("history-file", func() error { return a.pg.WriteWAL(name, []byte(out)) })
}

// forkPoint is what pg_rewind says of a rewind.
type forkPoint struct {
	timeline   pgdisk.TimelineID
	at         pgdisk.LSN // where the histories parted
	checkpoint pgdisk.LSN // of the last common checkpoint: from there on it reads this instance's WAL
}

var (
	divergedAt = regexp.MustCompile(`diverged at WAL location ([0-9A-F]+/[0-9A-F]+) on timeline (\d+)`)
	// walMissing is what pg_rewind says when it cannot read this instance's WAL far enough back (parsexlog.c).
	walMissing  = regexp.MustCompile(`could not (find previous|read) WAL record|could not (open|read|seek in) file ".*pg_wal/|could not find common ancestor`)
	rewindsFrom = regexp.MustCompile(`last common checkpoint at ([0-9A-F]+/[0-9A-F]+) on timeline \d+`)
)

// dryRun has pg_rewind look at everything and touch nothing: it knows best what it needs.
func (a *Agent) dryRun(ctx context.Context, src rewindSource) (forkPoint, error) {
	var p forkPoint
	out, err := a.pgRewind(ctx, src, "--dry-run")
	if err != nil {
		err = src.why(out, err)
		if walMissing.MatchString(err.Error()) {
			err = fmt.Errorf("%w; it needs the WAL of this instance since the last common checkpoint: if that is in an archive, set restore_command; if it is nowhere, make this instance anew: %s", err, a.cloneCommands())
		}
		return p, err
	}
	m, c := divergedAt.FindStringSubmatch(out), rewindsFrom.FindStringSubmatch(out)
	if m == nil {
		return p, fmt.Errorf("pg_rewind --dry-run did not say where the histories parted: %q", out)
	}
	t, err := strconv.ParseUint(m[2], 10, 32)
	if err != nil {
		return p, err
	}
	p.timeline = pgdisk.TimelineID(t)
	if p.at, err = pgdisk.ParseLSN(m[1]); err != nil {
		return p, err
	}
	p.checkpoint = p.at // no rewind is required: nothing before the fork is read again
	if c != nil {
		p.checkpoint, err = pgdisk.ParseLSN(c[1])
	}
	return p, err
}

// checkSourceWAL makes sure that the primary still has the WAL that this instance replays once it is rewound: from the
// redo position of the last common checkpoint on. pg_rewind does not ask for it, and what lacks it can only be made anew.
func (a *Agent) checkSourceWAL(ctx context.Context, ctl pgdisk.Control, src rewindSource, fork forkPoint) error {
	from := fork.at
	if fork.checkpoint != fork.at {
		rec, err := pgdisk.OpenWAL(a.pg.DataDir, ctl).ReadRecord(max(ctl.CheckPointTimeline, ctl.MinRecoveryTimeline), fork.checkpoint)
		if err != nil {
			return err
		}
		cp, err := rec.CheckPoint()
		if err != nil {
			return err
		}
		from = cp.Redo
	}
	segment := pgdisk.SegmentName(fork.timeline, from, ctl.SegmentSize)
	out, err := a.query(ctx, src, "select pg_catalog.count(*) from pg_catalog.pg_ls_dir('pg_wal', true, false) f where pg_catalog.length(f) = 24 and pg_catalog.\"right\"(f, 16) = '"+segment[8:]+"'")
	if err != nil {
		return err
	}
	if strings.TrimSpace(out) != "0" {
		return nil
	}
	if cmd, err := a.pg.ConfiguredValue(ctx, "restore_command"); err == nil && cmd != "" {
		return nil // it may be in the archive
	}
	return fmt.Errorf("the primary has removed WAL that this instance would have to replay (from %s on, segment %s), and there is no restore_command: make it anew, and raise wal_keep_size everywhere for the next time: %s", from, segment, a.cloneCommands())
}

// pgRewind runs pg_rewind against the primary. Crash recovery has been seen to, with this instance's own configuration.
func (a *Agent) pgRewind(ctx context.Context, src rewindSource, args ...string) (string, error) {
	args = append([]string{"-D", a.pg.DataDir, "--source-server=" + src.conninfo, "--no-ensure-shutdown"}, args...)
	if a.pg.ConfigDir == a.pg.DataDir || a.majorVersion() >= 15 {
		if cmd, err := a.pg.ConfiguredValue(ctx, "restore_command"); err == nil && cmd != "" {
			args = append(args, "--restore-target-wal")
			if a.pg.ConfigDir != a.pg.DataDir {
				args = append(args, "--config-file="+a.pg.ConfigFile())
			}
		}
	}
	return src.tool.Run(ctx, a.pg, "pg_rewind", args...)
}

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
	need := int64(len(lost)+len(older)+4) * int64(ctl.SegmentSize)
	if err := os.MkdirAll(a.store.Dir, 0o755); err != nil {
		return err
	}
	if err := syscall.Statfs(a.store.Dir, &room); err == nil && int64(room.Bavail)*room.Bsize < need {
		return fmt.Errorf("%s has no room for %d MB of WAL that a rewind puts aside: make room there", a.store.Dir, need>>20)
	}
	// Of a preparation that was cut short everything is still in the data directory.
	tmp := filepath.Join(a.store.Dir, "lost.new")
	if err := os.RemoveAll(tmp); err != nil {
		return err
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
	return syncDirs(a.store.Dir)
}

// waldump is the command that shows the transactions that were lost.
func (a *Agent) waldump(r *journal.Rewind) string {
	return strings.Join([]string{
		shellQuote(filepath.Join(r.BinDir, "pg_waldump")), "-p", shellQuote(r.Keep), "-t", fmt.Sprint(r.Timeline), "-s", r.Fork.String(), "--rmgr=Transaction",
	}, " ")
}

// ownFile is a file in the data directory that is not PostgreSQL's but the user's: configuration, certificates.
type ownFile struct {
	name  string // below the data directory
	small bool   // small enough to be put aside
}

// serversOwn are the entries of a data directory that initdb and the server make (documentation, "Database File Layout").
var serversOwn = []string{
	"PG_VERSION", "base", "current_logfiles", "global", "postmaster.opts", "postmaster.pid", "promote", "standby.signal", "recovery.signal",
	"backup_label", "backup_label.old", "backup_manifest", "tablespace_map", "tablespace_map.old", "logrotate", "fallback_promote",
}

// ownFileLimit is the size up to which a file counts as configuration.
const ownFileLimit = 1 << 20

// ownFiles lists the user's files, without what the server logs.
func (a *Agent) ownFiles() ([]ownFile, error) {
	logs := a.pg.Settings()["log_directory"]
	if logs == "" {
		logs = "log"
	}
	if !filepath.IsAbs(logs) {
		logs = filepath.Join(a.pg.DataDir, logs)
	}
	var list []ownFile
	err := filepath.WalkDir(a.pg.DataDir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || path == a.pg.DataDir {
			return err
		}
		name, err := filepath.Rel(a.pg.DataDir, path)
		if err != nil {
			return err
		}
		top, _, _ := strings.Cut(name, "/")
		if top == name && (slices.Contains(serversOwn, name) || d.IsDir() && strings.HasPrefix(name, "pg_") || path == logs) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if d.IsDir() {
			return nil
		}
		if d.Type()&fs.ModeSymlink != 0 && strings.HasPrefix(name, "pg_") && !strings.HasSuffix(name, ".conf") {
			return nil // pg_wal elsewhere
		}
		info, err := d.Info()
		if err == nil && (info.Mode().IsRegular() || info.Mode()&fs.ModeSymlink != 0) {
			list = append(list, ownFile{name, info.Size() <= ownFileLimit})
		}
		return nil
	})
	return list, err
}

// restoreOwn puts the user's files back as they were before the rewind, and takes away those that came from the primary.
func (a *Agent) restoreOwn(r *journal.Rewind) error {
	now, err := a.ownFiles()
	if err != nil {
		return err
	}
	for _, f := range now {
		if !slices.Contains(r.Files, f.name) {
			if err := os.Remove(filepath.Join(a.pg.DataDir, f.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	aside := filepath.Join(r.Keep, asideOwn)
	for _, name := range r.Files {
		from, to := filepath.Join(aside, name), filepath.Join(a.pg.DataDir, name)
		if _, err := os.Lstat(from); err != nil {
			continue // too large to be put aside
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return err
		}
		if dir := filepath.Dir(to); dir != a.pg.DataDir && os.Geteuid() == 0 {
			if err := os.Lchown(dir, int(a.pg.Owner.UID), int(a.pg.Owner.GID)); err != nil {
				return err
			}
		}
		if err := copyAs(from, to); err != nil {
			return err
		}
	}
	return nil
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
		if err := os.Remove(filepath.Join(a.pg.DataDir, "backup_label")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		removed := 0
		for _, top := range []string{"base", "global", "pg_tblspc"} {
			root := filepath.Join(a.pg.DataDir, top)
			dirs := []string{root}
			if top == "pg_tblspc" {
				links, err := filepath.Glob(filepath.Join(root, "*"))
				if err != nil {
					return err
				}
				dirs = dirs[:0]
				for _, l := range links {
					if real, err := filepath.EvalSymlinks(l); err == nil {
						dirs = append(dirs, real)
					}
				}
			}
			for _, d := range dirs {
				n, err := removeTouched(d, r.Began)
				if err != nil {
					return err
				}
				removed += n
			}
		}
		a.log.Info("relation files that the rewind has touched will come as a whole", "files", removed)
		return copyAs(filepath.Join(r.Keep, asideControl), pgdisk.ControlPath(a.pg.DataDir))
	})
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

// cutWAL is for an instance whose data are on the cluster's line, and whose WAL is not: it received what it has not
// replayed. pg_rewind sees no need; the server would replay it.
func (a *Agent) cutWAL(r *journal.Rewind) error {
	return a.do("cut-wal", func() error {
		entries, err := os.ReadDir(r.Keep)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if len(e.Name()) != segmentName {
				continue
			}
			if err := os.Remove(filepath.Join(a.walDir(), e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return syncDirs(a.walDir())
	})
}

// finishRewind puts the user's files back, takes the marker away and starts the instance.
func (a *Agent) finishRewind(ctx context.Context, r *journal.Rewind) error {
	if err := a.do("own-files", func() error { return a.restoreOwn(r) }); err != nil {
		return err
	}
	if err := a.do("standby-signal", a.pg.SetStandbySignal); err != nil {
		return err
	}
	release, err := a.flock(ctx, "action.lock")
	if err != nil {
		return err
	}
	defer release()
	if err := a.reload(); err != nil {
		return err
	}
	a.state.Rewound = newestClaim(a.state.Claims)
	if err := a.save("save-rewound"); err != nil {
		return err
	}
	if err := a.do("unmark-rewind", a.store.DropRewind); err != nil {
		return err
	}
	a.dropAside(r)
	if a.vol.Out == nil {
		return nil // stopped meanwhile
	}
	a.resting = nil
	limited, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	a.say("rewound, starting")
	if err := a.startAsStandby(limited); err != nil {
		return err
	}
	a.details["kept"] = a.waldump(r)
	a.record("rewound", r.Reason, true)
	a.log.Info("rewound and started", "was", r.Reason, "kept", a.waldump(r), "ms", a.clock.Now().Sub(r.Began).Milliseconds())
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
	return syncDirs(filepath.Dir(to))
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
