package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

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
	if role, err := a.cluster.Held(ctx); err != nil {
		return nil, fmt.Errorf("whether the resource is managed here is not known: %w", err)
	} else if role == "" {
		return nil, errors.New("the resource is not managed here now (maintenance, no quorum): waiting until it is")
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
		DataDir: a.pg.RealDataDir(), BinDir: a.pg.BinDir, Reason: a.vol.Out.Reason,
		Timeline: fork.timeline, Fork: fork.at, Unneeded: fork.unneeded,
	}
	r.Stamp(a.clock.Now())
	r.Keep = filepath.Join(a.store.Dir, fmt.Sprintf("lost-%s-%d-%08X-%08X", r.Began.UTC().Format("20060102T150405"), fork.timeline, uint64(fork.at)>>32, uint64(fork.at)&0xFFFFFFFF))
	if err := a.do("keep-lost", func() error { return a.putAside(ctl, fork, r) }); err != nil {
		return nil, err
	}
	if err := a.do("mark-rewind", func() error { return a.store.SaveRewind(*r) }); err != nil {
		return nil, err
	}
	a.noteKept(r)
	a.record(journal.RewindBegun, r.Reason, true)
	a.log.Warn("rewinding", "reason", r.Reason, "fork", fork.at, "timeline", fork.timeline, "kept", a.details["kept"])
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

// recoverCrash brings a data directory that was not shut down cleanly to where pg_rewind can begin. So does it with that of a
// standby that has gone over to another timeline and had no checkpoint there: pg_rewind takes the timeline of its last
// checkpoint for its own (until version 16), and would look for the WAL behind the fork on that one.
func (a *Agent) recoverCrash(ctx context.Context, ctl pgdisk.Control, src rewindSource) (pgdisk.Control, error) {
	if ctl.State == pgdisk.ShutDown || (ctl.State == pgdisk.ShutDownInRecovery && ctl.CheckPointTimeline >= ctl.MinRecoveryTimeline) {
		return ctl, nil
	}
	if _, err := os.Stat(filepath.Join(a.pg.DataDir, "backup_label")); err == nil {
		return ctl, fmt.Errorf("this is a base backup that was never started: make it anew: %s", a.cloneCommands())
	}
	a.say(fmt.Sprintf("recovering from the crash first (pg_control says %q)", ctl.State))
	if _, err := a.pg.RemoveStaleLocks(); err != nil {
		return ctl, err
	}
	err := a.noteRecovered(ctx)
	if err != nil {
		return ctl, err
	}
	err = a.do("crash-recovery", func() error {
		// A single-user server refuses to be a standby. Every start writes the file again.
		if err := os.Remove(filepath.Join(a.pg.DataDir, "standby.signal")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
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

// noteRecovered writes down who closes this instance: nobody started it by hand.
func (a *Agent) noteRecovered(ctx context.Context) error {
	release, err := a.hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	a.state.Recovered = true
	return a.save("save-recovered")
}

// fetchHistory gets the history file of this instance's timeline if it is missing here: pg_rewind compares the two
// histories. The user of rewind_conninfo may be able to where the one of primary_conninfo was not.
func (a *Agent) fetchHistory(ctx context.Context, ctl pgdisk.Control, src rewindSource) error {
	return a.takeHistory(ctl, func(_ pgdisk.TimelineID, name string) (string, error) {
		return a.query(ctx, src, "select pg_catalog.convert_from(pg_catalog.pg_read_binary_file('pg_wal/"+name+"'), 'SQL_ASCII')")
	})
}

// forkPoint is what pg_rewind says of a rewind.
type forkPoint struct {
	timeline   pgdisk.TimelineID
	at         pgdisk.LSN // where the histories parted
	checkpoint pgdisk.LSN // of the last common checkpoint: from there on it reads this instance's WAL
	unneeded   bool       // only what was not replayed lies behind the fork
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
	p.unneeded = strings.Contains(out, unneeded)
	p.checkpoint = p.at // nothing before the fork is read again then
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
