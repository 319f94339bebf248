package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// mourn acts on a death that no action of ours brought about. The server is started again as what it was: the disk of a
// crashed primary has what nobody else has for certain, and a standby's death concerns nobody else. A primary that does
// not start again leaves the role to the others. It reports whether the server died once more.
func (a *Agent) mourn(ctx context.Context, pm postgres.Postmaster, revivals *[]time.Time) (again bool, err error) {
	noticed := a.clock.Now()
	release, err := a.hold(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	// Actions wait for the lock: what hangs must not hold them up for ever.
	locked, cancel := context.WithTimeout(ctx, lockedFor)
	defer cancel()
	if _, err := a.pg.Postmaster(); !errors.Is(err, postgres.ErrNotRunning) {
		return false, nil // somebody has started it again
	}
	if a.outdated() {
		return false, nil // another sentinel takes over, with those that are in force
	}
	if a.vol.Parked || a.vol.Stopped || a.vol.Out != nil || a.rewinding() {
		return false, nil // an action of ours, or a server that only recovers to be rewound
	}
	ctl, err := pgdisk.ReadControl(a.pg.DataDir)
	gone := errors.Is(err, fs.ErrNotExist)
	if err != nil && !gone {
		return false, err
	}
	crashedPrimary := a.diedAsPrimary(ctl)
	crashedStandby := ctl.State == pgdisk.InArchiveRecovery
	if !gone && !crashedPrimary && !crashedStandby {
		return false, nil // a shutdown, by us or by a person
	}
	held, err := a.cluster.Held(locked)
	if err != nil || held == "" {
		return false, err
	}
	a.log.Warn("the postmaster died", "pid", pm.PID, "pg_control", ctl.State, "role", held)
	if crashedPrimary && held == pacemaker.RolePromoted {
		if _, err := a.killLeftovers(locked); err != nil {
			// The kernel takes its time with the memory of a large server. What it never lets go, monitor and demote will find.
			return true, fmt.Errorf("what is left of the server does not end: %w", err)
		}
	}
	switch {
	case crashedStandby && held != pacemaker.RolePromoted:
		if !a.mayRevive(revivals) {
			return false, errors.New("the standby keeps dying: leaving it to the monitor")
		}
		return false, a.startAsStandby(locked)
	case held != pacemaker.RolePromoted:
		return false, nil // Pacemaker has other plans with what was a primary
	case a.ownNote():
		// Its demote has told everybody how it ended, and was cut short. Whatever it wrote now would be behind that.
		return false, nil
	case gone:
		return false, a.leaveRole(ctx, noticed, fmt.Sprintf("%s is gone", a.pg.DataDir), true, release)
	case !a.mayRevive(revivals):
		return false, a.leaveRole(ctx, noticed, "its server keeps dying", true, release)
	}
	if err := a.restartInPlace(locked); errors.Is(err, errStopped) {
		return false, err
	} else if err != nil {
		a.log.Error("the primary does not start again", "error", err)
		return false, a.leaveRole(ctx, noticed, fmt.Sprintf("its server died and does not start again: %v", err), true, release)
	}
	release()
	return a.awaitWritable(ctx, noticed)
}

// mayRevive counts another start of a server that died.
func (a *Agent) mayRevive(revivals *[]time.Time) bool {
	now := a.clock.Now()
	recent := (*revivals)[:0]
	for _, t := range *revivals {
		if now.Sub(t) < revivalWindow {
			recent = append(recent, t)
		}
	}
	*revivals = append(recent, now)
	return len(*revivals) <= maxRevivals
}

// errStopped says that a stop, which waited for the lock and went on without it, has said that the instance is stopped.
var errStopped = errors.New("it was stopped while its crash was dealt with")

// restartInPlace starts a crashed primary as the primary that it was. It is the one start that is not a standby's, and
// under the lock of all actions, only while Pacemaker has the role here: whoever else could become primary does so after
// this node's demote or stop, which wait for the lock and find what runs, or after its fencing. The timeline goes on, and
// the standbys connect again.
func (a *Agent) restartInPlace(ctx context.Context) error {
	a.change = baton.Change{Kind: baton.RestartInPlace, From: a.inv.Node, To: a.inv.Node}
	if a.vol.Stall != nil {
		a.vol.Stall = nil // nothing of what hung runs any more
		a.saveVolatile()
	}
	if removed, err := a.pg.RemoveStaleLocks(); err != nil {
		return err
	} else if len(removed) > 0 {
		a.log.Warn("removed lock files that a server left behind", "files", removed)
	}
	size := logSize(a.pg.LogFile)
	if err := ctx.Err(); err != nil {
		return err // it hung: whoever waited for the lock may have gone on without it
	}
	stopped := func() bool { return journal.LoadVolatile(a.inv.Resource).Stopped }
	if stopped() {
		return errStopped
	}
	if err := a.do("spawn", func() (err error) { a.spawned, err = a.pg.Spawn(); return err }); err != nil {
		return err
	}
	if stopped() { // it may have looked for processes just before there was one
		_, err := a.killLeftovers(ctx)
		return errors.Join(errStopped, err)
	}
	return a.awaitRecovery(ctx, size)
}

// awaitWritable follows a primary's crash recovery, which may take long. It reports whether the server died of it.
func (a *Agent) awaitWritable(ctx context.Context, noticed time.Time) (died bool, err error) {
	patience := crashPatience
	if limit := time.Duration(a.params.RecoveryLimit) * time.Second; limit > 0 {
		patience = min(patience, limit)
	}
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = a.poll(limited, "the end of crash recovery", 5*time.Millisecond, func() (bool, error) {
		pm, err := a.pg.Postmaster()
		died = err != nil
		return died || pm.Status == "ready", nil
	})
	took := a.clock.Now().Sub(noticed).Milliseconds()
	switch {
	case died:
		a.log.Warn("the server died in crash recovery", "ms", took)
		return true, nil
	case err != nil:
		a.log.Warn("crash recovery goes on", "ms", took)
		return false, nil
	}
	a.log.Info("the crashed primary serves again", "change", a.changeNow(), "ms", took)
	a.details = map[string]string{"restart_ms": fmt.Sprint(took)}
	a.began = noticed // of this, not of the sentinel
	a.record("done", "its postmaster died", true)
	return false, nil
}

// recovers reports whether a primary is in crash recovery: after it was started again, or after one of its backends
// crashed.
func (a *Agent) recovers() bool {
	pm, err := a.pg.Postmaster()
	if err != nil || a.pg.HasStandbySignal() {
		return false
	}
	ctl, err := pgdisk.ReadControl(a.pg.DataDir)
	// It reads the data directory before it says in pg_control what it is about to do.
	return err == nil && (ctl.State == pgdisk.InCrashRecovery || ctl.State == pgdisk.InProduction && pm.Status == "starting" || endsRecovery(ctl, pm))
}

// endRecovery gives the role away if the crash recovery of a primary has taken longer than the user wants to wait, and
// somebody else could have it: without another candidate the recovery is the shortest way to a primary.
func (a *Agent) endRecovery(ctx context.Context, since time.Time) error {
	limit := a.params.RecoveryLimit
	if limit == 0 || a.clock.Now().Sub(since) < time.Duration(limit)*time.Second {
		return nil
	}
	release, err := a.hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	locked, cancel := context.WithTimeout(ctx, lockedFor)
	defer cancel()
	held, err := a.cluster.Held(locked)
	if err != nil || held != pacemaker.RolePromoted || !a.recovers() || a.state.Refusal != nil {
		return err
	}
	scores, err := a.cluster.Scores(locked)
	if err != nil {
		return err
	}
	for node, s := range scores {
		if node != a.inv.Node && s != pacemaker.NegInfinity {
			reason := fmt.Sprintf("its crash recovery has taken longer than crash_recovery_limit=%d seconds", limit)
			return a.leaveRole(ctx, since, reason, true, release)
		}
	}
	return nil
}

// leaveRole lets go of the role. A mere score moves it, without a failed action: demote leaves the crash note, and whoever
// can prove that it has everything is promoted. dead: nobody will ever get anything from this instance; the best of the
// others will do. Otherwise the role comes back here if everybody has refused.
func (a *Agent) leaveRole(ctx context.Context, noticed time.Time, reason string, dead bool, release func()) error {
	a.log.Warn("leaving the role to others", "reason", reason)
	a.state.Refusal = &baton.Refusal{Reason: reason, Crashed: true, Dead: dead}
	if err := a.save("save-refusal"); err != nil {
		a.log.Error("why this node leaves the role is not saved", "error", err) // a full disk is no reason to keep it
	}
	a.vol.Score, a.vol.Refused = "", a.clock.Now()
	a.saveVolatile()
	locked, cancel := context.WithTimeout(ctx, lockedFor)
	defer cancel()
	if err := a.assertScore(locked, 0, true); err != nil {
		return err
	}
	a.assertStatus(locked, "refused: "+reason)
	a.began, a.details = noticed, map[string]string{}
	a.change = baton.Change{Kind: baton.Takeover, From: a.inv.Node}
	a.record("left", reason, false)
	release()
	if dead {
		return nil
	}
	return a.takeBack(ctx)
}

// stoppedLooks is how often in a row a postmaster must be found stopped by a signal to count as hung: a person with a
// debugger is quicker, or not on a production server.
const stoppedLooks = 3

func countStopped(pm postgres.Postmaster, before int) int {
	if pm.Stopped() {
		return before + 1
	}
	return 0
}

// endHung deals with a server that is stopped by a signal. A primary gives the role away, and its demote ends it; a
// standby is killed and started again by whoever mourns it.
func (a *Agent) endHung(ctx context.Context, pm postgres.Postmaster) error {
	noticed := a.clock.Now()
	release, err := a.hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	locked, cancel := context.WithTimeout(ctx, lockedFor)
	defer cancel()
	held, err := a.cluster.Held(locked)
	if err != nil || held == "" || !pm.Stopped() {
		return err
	}
	if held != pacemaker.RolePromoted {
		a.log.Warn("the postmaster is stopped by a signal: ending it", "pid", pm.PID)
		_, err := a.killLeftovers(locked)
		return err
	}
	return a.leaveRole(ctx, noticed, fmt.Sprintf("its postmaster (pid %d) is stopped by a signal", pm.PID), false, release)
}

// goneLooks is how often in a row the data directory must be found without its files before a server is ended over it.
const goneLooks = 2

// countGone counts in how many looks in a row both pg_control and the lock file of a living server were missing. The
// postmaster itself looks for its lock file once a minute, and ends when it is not there.
func (a *Agent) countGone(pm postgres.Postmaster, before int) int {
	_, control := os.Stat(filepath.Join(a.pg.DataDir, "global", "pg_control"))
	_, lock := os.Stat(filepath.Join(a.pg.DataDir, "postmaster.pid"))
	if errors.Is(control, fs.ErrNotExist) && errors.Is(lock, fs.ErrNotExist) && pm.Alive() {
		return before + 1
	}
	return 0
}

// endGone ends a primary whose files are gone: what it still commits is written to nothing. Whoever mourns it leaves the
// role. A standby's monitor says what is wrong with it.
func (a *Agent) endGone(ctx context.Context, pm postgres.Postmaster) error {
	release, err := a.flock(ctx, "action.lock")
	if err != nil {
		return err
	}
	defer release()
	locked, cancel := context.WithTimeout(ctx, lockedFor)
	defer cancel()
	held, err := a.cluster.Held(locked)
	if err != nil || held != pacemaker.RolePromoted || a.countGone(pm, 0) == 0 {
		return err
	}
	a.log.Warn("the data directory is gone: ending the server", "path", a.pg.DataDir, "pid", pm.PID)
	if err := a.do("immediate-stop", func() error { return pm.Signal(postgres.ImmediateStop) }); err != nil {
		return err
	}
	_, err = a.killLeftovers(locked)
	return err
}

// takeBack waits until the role has found a new owner, and claims it back if everybody else refused.
func (a *Agent) takeBack(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, crashPatience)
	defer cancel()
	lift := false
	err := a.poll(limited, "another node to take over", 250*time.Millisecond, func() (bool, error) {
		st, err := a.store.Load()
		if err != nil || st.Refusal == nil || !st.Refusal.Crashed {
			return true, err // somebody has settled it
		}
		scores, err := a.cluster.Scores(limited)
		if err != nil {
			return false, err
		}
		others := false
		for node, s := range scores {
			if node != a.inv.Node && s == baton.ScorePrimary {
				return true, nil // somebody has taken over
			}
			others = others || (node != a.inv.Node && s != pacemaker.NegInfinity)
		}
		lift = !others
		return lift, nil
	})
	if err == nil && !lift {
		return nil
	}
	if taken, err := a.roleTaken(ctx); err != nil || taken {
		return err
	}
	a.log.Warn("nobody else can take over: taking the role back", "waited_for", err)
	release, err := a.hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	a.state.Refusal = nil
	if err := a.save("lift-refusal"); err != nil {
		return err
	}
	locked, cancel := context.WithTimeout(ctx, lockedFor)
	defer cancel()
	return a.assertScore(locked, baton.ScorePrimary, false)
}

// roleTaken reports whether somebody else has begun a newer timeline than this node last did, or is about to: an attempt
// under way may take longer than this node's patience, and is settled by its outcome.
func (a *Agent) roleTaken(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, lockedFor)
	defer cancel()
	list, err := a.others(ctx)
	if err != nil {
		return false, err
	}
	own := uint64(0)
	taken := false
	for _, c := range baton.Gather(list, "").Claims { // oldest first
		switch {
		case c.Node == a.inv.Node && c.State == baton.Effective:
			own, taken = c.Seq, false
		case c.Node != a.inv.Node && c.Open() && c.Seq > own:
			taken = true
		}
	}
	return taken, nil
}
