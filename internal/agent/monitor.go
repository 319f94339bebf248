package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// stoppedFor is how long a postmaster must stay stopped to count as hung: a person with a debugger is quicker or not
// on a production server.
const stoppedFor = time.Second

// sentinelLimit is how long a monitor that finds a crash waits for the sentinel to deal with it.
const sentinelLimit = 4 * time.Second

// monitor tells what the instance is, under every configuration. A recurring one also keeps right what this node says
// of itself: score, bulletin, settings left over from a change of roles.
func (a *Agent) monitor(ctx context.Context) error {
	err := a.examine(ctx)
	var role roleCode
	if !errors.As(err, &role) || (role.code != ocf.FailedPromoted && role.code != ocf.ErrGeneric) || a.inv.Probe || a.release == nil || a.tending || !a.sentinelRuns() {
		return err
	}
	// The sentinel has noticed it too, and what it does about it is no failed action.
	a.release()
	a.release = nil
	moved := func() bool {
		st, err := a.store.Load()
		return err == nil && st.Refusal != nil && st.Refusal.Crashed && a.age(journal.LoadVolatile(a.inv.Resource).Refused) < tendFor
	}
	wait, cancel := context.WithTimeout(ctx, sentinelLimit)
	defer cancel()
	a.poll(wait, "the sentinel", 20*time.Millisecond, func() (bool, error) {
		pm, err := a.pg.Postmaster()
		return moved() || (err == nil && !pm.Stopped()) || journal.LoadVolatile(a.inv.Resource).Out != nil, nil
	})
	if moved() {
		return roleCode{ocf.DegradedPromoted, role.reason + "; another node is to take over"}
	}
	a.unlocked = true // it is looked at again, and not touched
	a.reload()        // the sentinel may have found that it has diverged, and keep it out
	return a.examine(ctx)
}

func (a *Agent) examine(ctx context.Context) error {
	if out, err := a.monitorOut(ctx); out {
		return err
	}
	f, err := a.look()
	if err != nil {
		if f.postmaster.PID == 0 {
			var foreign *postgres.ForeignError
			if errors.As(err, &foreign) {
				return roleCode{ocf.ErrGeneric, err.Error()}
			}
			return a.monitorDown(ctx, f, err)
		}
		return roleCode{ocf.ErrGeneric, err.Error()}
	}
	if a.inv.Probe && !a.unlocked && (f.role == primary || f.role == standby) && a.vol.Asserted != 0 {
		// Another agent may have had it since, and removed what this one had said: the next monitor says it again.
		a.vol.Asserted = 0
		a.saveVolatile()
	}
	switch f.role {
	case down, parkedDown:
		return a.monitorDown(ctx, f, nil)
	case primary:
		return a.monitorPrimary(ctx, f)
	case stopping:
		if a.vol.Parked {
			if !a.inv.Probe && !a.unlocked {
				a.spawnAftercare() // the old postmaster lingers; nobody may see to it any more
			}
			return nil
		}
		return roleCode{ocf.ErrGeneric, fmt.Sprintf("the server (pid %d) is shutting down and nobody here asked it to", f.postmaster.PID)}
	}
	if a.inv.Probe {
		return nil
	}
	return a.monitorStandby(ctx, f)
}

// monitorDown tells a clean stop from a crash.
func (a *Agent) monitorDown(ctx context.Context, f facts, ctlErr error) error {
	left, _ := a.pg.Leftovers()
	if a.vol.Parked && len(left) == 0 && !a.inv.Probe {
		if a.unlocked {
			return nil // somebody is bringing it back
		}
		// Plans change: a demote that was followed by a stop is not always. Somebody must bring it back.
		if _, err := a.unpark(ctx); err != nil {
			return ocf.Errorf(ocf.ErrGeneric, "starting the parked instance: %w", err)
		}
		_, err := a.monitorOut(ctx)
		return err
	}
	switch {
	case len(left) > 0 && errors.Is(ctlErr, fs.ErrNotExist):
		return roleCode{ocf.ErrGeneric, fmt.Sprintf("%s is gone, processes of its server that still run: %d", a.pg.DataDir, len(left))}
	case len(left) > 0:
		return roleCode{a.crashCode(f), fmt.Sprintf("the postmaster is gone, processes of it that still run: %d", len(left))}
	case ctlErr != nil, a.inv.Probe, a.vol.Stopped:
		return roleCode{ocf.NotRunning, ""}
	case f.control.State == pgdisk.InProduction || f.control.State == pgdisk.InArchiveRecovery || f.control.State == pgdisk.InCrashRecovery || a.diedInRecovery(f.control):
		return roleCode{a.crashCode(f), fmt.Sprintf("the server is gone without a shutdown, pg_control says %q", f.control.State)}
	}
	return roleCode{ocf.NotRunning, ""}
}

// crashCode is 9 for what was a primary: demote, stop, start, promote follow; and 1 for a standby.
func (a *Agent) crashCode(f facts) ocf.ExitCode {
	if a.diedAsPrimary(f.control) {
		return ocf.FailedPromoted
	}
	return ocf.ErrGeneric
}

// monitorPrimary: running is promoted, whether it answers or not; slow is not dead.
func (a *Agent) monitorPrimary(ctx context.Context, f facts) error {
	if a.inv.Probe {
		return roleCode{ocf.RunningPromoted, ""}
	}
	if f.postmaster.Stopped() {
		a.clock.Sleep(ctx, stoppedFor)
		if f.postmaster.Stopped() {
			return roleCode{ocf.FailedPromoted, fmt.Sprintf("the postmaster (pid %d) is stopped by a signal and cannot serve anybody", f.postmaster.PID)}
		}
	}
	wait, cancel := a.share(ctx, 0.4)
	defer cancel()
	sess, err := a.pg.Connect(wait)
	if err == nil {
		defer sess.Close()
		_, err = sess.InRecovery(wait)
	}
	st, shown := baton.Standing{Primary: true}, ""
	timeline := max(f.control.CheckPointTimeline, f.control.MinRecoveryTimeline)
	if err := a.takeOn(f); err != nil {
		a.log.Warn("a server that ran before is not taken on", "error", err)
	}
	if err == nil && a.params.MaxLag > 0 {
		st.Written, err = sess.CurrentLSN(wait)
	}
	if !a.unlocked && a.unclaimed(timeline) {
		other, err := a.claimByHand(ctx, f, timeline)
		if err != nil {
			a.log.Warn("timeline of a primary that this agent did not promote", "error", err)
		}
		if other != "" {
			// With a primary's score it would be as good a primary as that one.
			st, shown = baton.Standing{Forbidden: true}, fmt.Sprintf("promoted by hand to timeline %d, while %s is the primary", timeline, other)
		}
	}
	if !a.unlocked && a.ownNote() && a.state.Note.Timeline == timeline && f.control.State == pgdisk.InProduction {
		if err := a.claimTimeline(f.control, timeline); err != nil {
			a.log.Warn("the note of a primary that was started again as one still stands", "note", a.state.Note, "error", err)
		}
	}
	// Score and bulletin need no session.
	if err := a.upkeep(ctx, f, st, shown, timeline); err != nil {
		a.log.Warn("upkeep", "error", err)
	}
	if sess != nil {
		a.show(wait, sess)
	}
	slow := a.commits(wait, sess, err)
	if a.hung() && (!a.sentinelRuns() || a.age(a.vol.Stall.Last) > lockedFor) {
		// The sentinel may hang, too, with the lock: where it notes why it leaves the role may be on the same disk.
		return roleCode{ocf.FailedPromoted, slow}
	}
	if a.vol.Stall == nil {
		a.tell(wait) // it flushes to a disk that may be the one which does not answer
	}
	switch {
	case slow != "":
		return roleCode{ocf.DegradedPromoted, "runs as primary, but " + slow}
	case err == nil, errors.Is(err, postgres.ErrStarting):
		return roleCode{ocf.RunningPromoted, ""}
	case errors.Is(err, postgres.ErrTooManyClients):
		return roleCode{ocf.DegradedPromoted, "runs as primary, but all its connections are taken: raise superuser_reserved_connections or max_connections"}
	}
	return roleCode{ocf.DegradedPromoted, "runs as primary, but does not answer: " + err.Error()}
}

// monitorStandby tells how it stands and keeps its score right.
func (a *Agent) monitorStandby(ctx context.Context, f facts) error {
	wait, cancel := a.share(ctx, 0.4)
	defer cancel()
	if err := a.takeOn(f); err != nil {
		a.log.Warn("a server that ran before is not taken on", "error", err)
	}
	if !a.unlocked {
		a.confirmOwnNote(ctx)
	}
	st := baton.Standing{OwnNote: a.ownNote()}
	status, shown, caughtUp := "", "", false // shown is said where it is no failure, too
	var timeline pgdisk.TimelineID
	var v postgres.StandbyView
	sess, err := a.pg.Connect(wait)
	if err == nil {
		defer sess.Close()
		v, err = sess.Standby(wait)
		st.Streaming, timeline, caughtUp = v.Streaming, v.Timeline, v.CaughtUp
		if err == nil {
			// Also while it streams: a twin may receive, again and again, the part of its timeline that its primary passed
			// over, up to where its own WAL begins to differ.
			on := pgdisk.TimelineID(0)
			if v.Streaming {
				on = v.Timeline
			}
			if tli, terr := a.timeline(f.control, v.Replayed, on); terr == nil {
				at := pgdisk.Position{Timeline: tli, LSN: v.Replayed}
				if w := a.judgeRunning(ctx, f, at, v.Streaming); w.Rejoin == baton.Rewind || w.Rejoin == baton.Clone {
					if !a.unlocked {
						return errors.Join(roleCode{ocf.Degraded, "diverged: " + w.Reason}, a.takeOut(ctx, f.control, w))
					}
					st.Forbidden, st.Streaming, status = true, false, "diverged: "+w.Reason
				} else if !v.Streaming && a.passedOver(ctx, at) {
					st.Forbidden, shown = true, unended+seenNext
				}
			}
		}
	}
	if err != nil {
		st.Starting = true
	}
	if st.Streaming && !a.unlocked {
		a.remember(f, v)
		a.witness(timeline)
		if caughtUp && (a.state.Left != nil || a.state.Away) {
			a.state.Left, a.state.Away = nil, false
			if err := a.save("caught-up"); err != nil {
				return err
			}
		}
	}
	if status != "" {
		shown = status
	}
	if shown == "" && err == nil && !st.Streaming && !st.OwnNote && a.vol.Score == pacemaker.Score(baton.ScoreDetached).String() {
		// For the second time: at the end of a primary that is for everybody to see, and all standbys lose it for a moment.
		shown = notFollowing(v)
	}
	if err := a.upkeep(ctx, f, st, shown, timeline); err != nil {
		a.log.Warn("upkeep", "error", err)
	}
	if sess != nil {
		a.show(wait, sess)
	}
	a.tell(wait)
	if status != "" {
		return roleCode{ocf.Degraded, status}
	}
	return nil
}

// remember notes a record of the segment that this standby receives, so that little has to be read of its WAL when the server
// takes no connections and somebody asks how far that goes: all of them are taken, or it is being started again. What it has
// received and not replayed may be hours.
func (a *Agent) remember(f facts, v postgres.StandbyView) {
	end := max(v.Received, v.Replayed)
	wal := pgdisk.OpenWAL(a.pg.DataDir, f.control)
	first, err := wal.FirstRecordIn(v.Timeline, end-1)
	if err != nil || a.vol.Found != nil && a.vol.Found.Timeline == v.Timeline && a.vol.Found.Start >= first {
		return
	}
	if r, err := wal.ReadRecord(v.Timeline, first); err == nil && r.End <= end {
		a.vol.Found = found(v.Timeline, r)
		a.saveVolatile()
	}
}

// notFollowing says in crm_mon -A why a standby is not preferred.
func notFollowing(v postgres.StandbyView) string {
	if v.Itself {
		return "does not follow: its WAL receiver is connected to this very server"
	}
	return "does not follow: its WAL receiver is not connected to a primary, PostgreSQL's log says why"
}

// witness notes that there is a primary, and that this node was there for the claim of the timeline that it streams.
func (a *Agent) witness(timeline pgdisk.TimelineID) {
	saw := a.vol.Saw
	for _, c := range a.state.Claims {
		if c.Timeline == timeline {
			saw = max(saw, c.Seq)
		}
	}
	if !a.vol.Live || saw != a.vol.Saw {
		a.vol.Live, a.vol.Saw = true, saw
		a.saveVolatile()
	}
}
