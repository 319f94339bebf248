package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// start brings the instance up as a standby, always: who becomes primary is decided by promote. It does not wait for
// recovery to finish, only until the server is past what a wrong configuration would make it die of.
func (a *Agent) start(ctx context.Context) error {
	a.renewSentinel()
	if a.rejoining() {
		return nil // it was started before, and is kept out
	}
	if a.rewinding() {
		// What is in the data directory may be half of the primary's, its configuration too.
		if err := a.halfRewound(ctx); err != nil {
			return err
		}
		return a.started(ctx)
	}
	if err := a.validate(ctx); err != nil {
		return err
	}
	f, err := a.look()
	if err != nil {
		return ocf.Errorf(ocf.ErrInstalled, "%w", err)
	}
	switch f.role {
	case standby:
		return a.started(ctx)
	case primary:
		return ocf.Errorf(ocf.ErrGeneric, "PostgreSQL in %s already runs as a primary, started by somebody else: stop it and let the cluster start it", a.pg.DataDir)
	case stopping:
		if err := a.seeOff(ctx, f.postmaster.Process); err != nil {
			return err
		}
	case ambiguousUp:
		wait, cancel := a.share(ctx, 0.5)
		defer cancel()
		err := a.poll(wait, "the old postmaster to end", 5*time.Millisecond, func() (bool, error) {
			now, err := a.look()
			if err == nil && now.role == standby {
				return true, nil // it was not an old one
			}
			return !f.postmaster.Alive(), nil
		})
		if err != nil {
			return err
		}
		if f, err = a.look(); err == nil && f.role == standby {
			return a.started(ctx)
		}
	}
	a.noticeAbsence(f)
	if err := a.startAsStandby(ctx); err != nil {
		return err
	}
	return a.started(ctx)
}

// noticeAbsence forgets what an instance was there for that somebody else has ended, nobody knows when: it does not know what
// has been since.
func (a *Agent) noticeAbsence(f facts) {
	if f.role == down && !a.vol.Stopped {
		a.vol.Live, a.vol.Saw, a.vol.Informed = false, 0, ""
		a.saveVolatile()
	}
}

// startAsStandby starts an instance that is down, if its history is the cluster's; otherwise it is kept out. What an
// ended primary left to say or to archive is put in safety first: on a standby both would be lost.
func (a *Agent) startAsStandby(ctx context.Context) error {
	if a.rewinding() {
		return a.halfRewound(ctx)
	}
	if n, err := a.killLeftovers(ctx); err != nil {
		return err
	} else if n > 0 {
		a.log.Warn("ended what was left of a server", "processes", n)
	}
	if removed, err := a.pg.RemoveStaleLocks(); err != nil {
		return ocf.Errorf(ocf.ErrGeneric, "%w", err)
	} else if len(removed) > 0 {
		a.log.Warn("removed lock files that a server left behind", "files", removed)
	}
	ctl, err := pgdisk.ReadControl(a.pg.DataDir)
	if err != nil {
		return ocf.Errorf(ocf.ErrInstalled, "%w", err)
	}
	if err := a.mendHistory(ctx, ctl); err != nil {
		a.log.Error("history of this instance's timeline", "error", err)
	}
	if a.inv.Action == "start" || a.inv.Action == rejoinAction {
		a.vol.Found = nil // the data directory may be another one
	}
	a.readRest(ctx, ctl)
	changed := a.identify(ctl)
	changed = a.settleOwnClaims(ctl) || changed
	switch a.inv.Action {
	case "demote", "promote", "notify":
		// In the middle of a change of roles everybody has just been heard.
	default:
		changed = a.learnAtStart(ctx, ctl) || changed
	}
	if v := a.returning(ctx, ctl); v.Rejoin != baton.Follow {
		if changed {
			if err := a.save("save-state"); err != nil {
				return err
			}
		}
		return a.keepOut(ctx, ctl, v)
	}
	if ctl.State == pgdisk.ShutDown && !a.primaryStays() {
		// Also how a fresh cluster gets its first primary: the one that was stopped cleanly as one. Beside a primary that goes on
		// nobody's end counts.
		note, err := a.noteFromDisk(ctl)
		switch {
		case err != nil:
			a.log.Warn("no note of the clean shutdown", "error", err)
		case note.NewerThan(a.state.Note):
			a.state.Note, changed = note, true
			a.details["note"] = note.String()
		}
	}
	changed = a.recordInstance() || changed
	if changed {
		if err := a.save("save-state"); err != nil {
			return err
		}
	}
	kept, err := a.keepUnarchived(ctl)
	if err != nil {
		return ocf.Errorf(ocf.ErrGeneric, "keeping WAL that is not archived yet: %w", err)
	}
	if err := a.dropPlaceholders(ctl); err != nil {
		return err
	}
	if err := a.do("standby-signal", a.pg.SetStandbySignal); err != nil {
		return err
	}
	if err := a.do("cancel-promotion", a.pg.CancelPromotion); err != nil {
		return err
	}
	if err := a.do("settings", func() error { _, err := a.override(standbySetting); return err }); err != nil {
		return err
	}
	if err := a.do("spawn", func() (err error) { a.spawned, err = a.pg.Spawn(); return err }); err != nil {
		return ocf.Errorf(ocf.ErrInstalled, "%w", err)
	}
	if a.vol.Parked || a.vol.Stopped || a.vol.Out != nil || a.vol.Stall != nil {
		a.vol.Parked, a.vol.Stopped, a.vol.Out = false, false, nil
		a.vol.Stall = nil // nothing of what hung runs any more
		a.saveVolatile()
	}
	a.resting, a.restless = nil, nil
	if a.state.Recovered {
		a.state.Recovered = false
		if err := a.save("save-state"); err != nil {
			return err
		}
	}
	if kept {
		a.spawnAftercare()
	}
	return nil
}

// started waits until the server is past its start-up checks, and says where it stands.
func (a *Agent) started(ctx context.Context) error {
	if a.vol.Out != nil {
		if err := a.publish(ctx, "publish", nil, nil); err != nil {
			a.log.Warn("bulletin not published", "error", err)
		}
		if a.mayRewind() {
			a.spawnDetached(rejoinAction)
		}
		return nil
	}
	if err := a.awaitRecovery(ctx, logSize(a.pg.LogFile)); err != nil {
		return err
	}
	if a.spawned.PID == 0 {
		a.learnRecorded(ctx) // otherwise before it was started
	}
	a.confirmOwnNote(ctx)
	score, _ := baton.Score(baton.Standing{OwnNote: a.ownNote(), Starting: true})
	if a.state.Refusal != nil {
		a.state.Refusal = nil
		if err := a.save("save-state"); err != nil {
			return err
		}
	}
	if err := a.publish(ctx, "publish", nil, nil); err != nil {
		a.log.Warn("bulletin not published", "error", err)
	}
	if a.unjudged != "" {
		a.assertStatus(ctx, a.unjudged+seenNext)
	}
	if err := a.assertScore(ctx, score, a.unjudged != ""); err != nil {
		a.log.Warn("promotion score not set", "error", err)
	}
	return nil
}

// seenNext ends what a status says that cannot tell yet whether the instance has diverged.
const seenNext = ": whether this instance has diverged is seen by the next monitor"

// awaitRecovery waits until the server has begun recovery. size is that of its log before it was started. One that takes long
// for it and lives is taken for one that will: with hundreds of gigabytes of shared memory to set up, or of temporary files to
// remove, that is a minute's work, and neither a failed start nor a reason to give a crashed primary up.
func (a *Agent) awaitRecovery(ctx context.Context, size int64) error {
	var startup postgres.Process
	var since time.Time
	half, cancel := a.share(ctx, 0.5)
	defer cancel()
	lives := false
	err := a.poll(half, "the server to begin recovery", 5*time.Millisecond, func() (bool, error) {
		lives = false
		pm, err := a.pg.Postmaster()
		if errors.Is(err, postgres.ErrNotRunning) {
			if lives = a.spawned.Alive(); lives {
				return false, nil // about to show up
			}
			return false, a.diedAtStart(size)
		}
		if err != nil {
			return false, err
		}
		lives = true
		if pm.Status == "ready" || pm.Status == "standby" {
			return true, nil
		}
		// Configuration, sockets and pg_hba.conf are behind a postmaster that has a startup process. Recovery itself is
		// not waited for, be it from a crash or for the first WAL of a base backup: it may take longer than any time-out.
		p, ok := startupProcess(pm)
		if !ok {
			return false, nil
		}
		if p != startup {
			startup, since = p, a.clock.Now()
		}
		ctl, err := pgdisk.ReadControl(a.pg.DataDir)
		recovering := err == nil && (ctl.State == pgdisk.InArchiveRecovery || ctl.State == pgdisk.InCrashRecovery)
		return recovering || a.clock.Now().Sub(since) > time.Second, nil
	})
	if err != nil && lives && half.Err() != nil {
		a.log.Warn("the server lives, and has not begun recovery yet", "waited", err)
		return nil
	}
	return err
}

// learnRecorded takes over the claims that were made while this node ran no instance.
func (a *Agent) learnRecorded(ctx context.Context) {
	list, err := a.cluster.RecordedClaims(ctx, a.state.SystemID)
	if a.vol.Unread != (err != nil) {
		a.vol.Unread = err != nil
		a.saveVolatile()
	}
	if err != nil {
		a.unjudged = "the claims in the cluster's configuration cannot be read"
		a.log.Warn(a.unjudged, "error", err)
		return
	}
	merged := baton.MergeClaims(a.state.Claims, list)
	if slices.Equal(merged, a.state.Claims) {
		return
	}
	a.state.Claims = merged
	if err := a.save("learn"); err != nil {
		a.log.Error("what the others know is not saved", "error", err)
	}
}

// learnUnread takes over the claims that could not be read when the instance started. Who made them counts on it that they are
// known here.
func (a *Agent) learnUnread(ctx context.Context) error {
	if !a.vol.Unread {
		return nil
	}
	a.learnRecorded(ctx)
	if a.vol.Unread {
		return errors.New(a.unjudged)
	}
	return nil
}

func startupProcess(pm postgres.Postmaster) (postgres.Process, bool) {
	for p, title := range pm.Children() {
		if isKind(title, "startup", "recovering", "waiting") {
			return p, true
		}
	}
	return postgres.Process{}, false
}

// diedAtStart makes an error of the last thing that the server said.
func (a *Agent) diedAtStart(from int64) error {
	reason := "the server ended right after its start"
	if line := lastFatal(a.pg.LogFile, from); line != "" {
		reason += ": " + line
	}
	return ocf.Errorf(ocf.ErrGeneric, "%s (log: %s)", reason, a.pg.LogFile)
}

func logSize(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// lastFatal finds the last FATAL line of the server's log, reading at most its last 8 kB. What a WAL receiver says is
// passed over: the server does not end of it, and libpq repeats parts of primary_conninfo, where a password may stand.
func lastFatal(path string, from int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if size := logSize(path); size-from > 8192 || from >= size {
		from = max(0, size-8192)
	}
	f.Seek(from, io.SeekStart)
	data, _ := io.ReadAll(io.LimitReader(f, 8192))
	for _, line := range reversed(bytes.Split(data, []byte("\n"))) {
		if bytes.Contains(line, []byte("primary server")) || bytes.Contains(line, []byte("connection string")) || bytes.Contains(line, []byte("connection info")) {
			continue
		}
		if i := bytes.Index(line, []byte("FATAL:")); i >= 0 {
			return string(bytes.TrimSpace(line[i+len("FATAL:"):]))
		}
	}
	return ""
}

func reversed(list [][]byte) [][]byte {
	out := make([][]byte, 0, len(list))
	for n := len(list) - 1; n >= 0; n-- {
		out = append(out, list[n])
	}
	return out
}

// standbySetting is what a standby runs with until it streams: it asks for its primary often, since the primary may be on
// its way.
var standbySetting = [2]string{"wal_retrieve_retry_interval", "200ms"}

// reloadParameters is called when a parameter was changed that needs no restart.
func (a *Agent) reloadParameters(ctx context.Context) error {
	a.renewSentinel()
	if a.vol.Out == nil {
		return a.validate(ctx)
	}
	// What is in the data directory may be half of another node's. What stopped a rewind may be mended now.
	os.Remove(a.doingPath())
	return a.invalid
}

// validate checks what start needs, and says how to mend it.
func (a *Agent) validate(ctx context.Context) error {
	if a.invalid != nil {
		return a.invalid
	}
	return a.validateInstance(ctx)
}
