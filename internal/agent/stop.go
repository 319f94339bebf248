package agent

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// stop ends the instance under every configuration, however broken. It fails only over a process that survives SIGKILL:
// then the node must be fenced before anybody else is promoted.
func (a *Agent) stop(ctx context.Context) error {
	if err := a.endRejoin(ctx); err != nil {
		return ocf.Errorf(ocf.ErrGeneric, "%w", err)
	}
	f, lookErr := a.look()
	var foreign *postgres.ForeignError
	if errors.As(lookErr, &foreign) {
		return ocf.Errorf(ocf.ErrGeneric, "%w: end it by hand", foreign)
	}
	wasStandby := f.role == standby || f.control.State == pgdisk.InArchiveRecovery || f.control.State == pgdisk.ShutDownInRecovery // or has died as one
	if wasStandby || !a.plan.Restarts(a.inv.Node) {
		a.leave(ctx, wasStandby)
	}
	a.serving = f.role == primary
	var err error
	switch {
	case f.postmaster.PID == 0:
	case f.role == stopping:
		f, err = a.awaitEnd(ctx, f) // a demote was killed while its checkpoint was written, or somebody else stops it
	default:
		// A pg_control that cannot be read does not make the server any less alive.
		f, err = a.endPrimary(ctx, f)
	}
	if err != nil {
		return err
	}
	if f.postmaster.PID != 0 && f.postmaster.Alive() {
		if err := a.seeOff(ctx, f.postmaster.Process); err != nil {
			return ocf.Errorf(ocf.ErrGeneric, "%w", err)
		}
	}
	if a.release == nil {
		// Whoever has the lock of actions may be about to start a crashed server in place.
		vol := journal.LoadVolatile(a.inv.Resource)
		vol.Stopped = true
		if err := journal.SaveVolatile(a.inv.Resource, vol); err != nil {
			a.log.Warn("volatile state", "error", err)
		}
	}
	if n, err := a.killLeftovers(ctx); err != nil {
		return ocf.Errorf(ocf.ErrGeneric, "%w", err)
	} else if n > 0 {
		a.log.Warn("killed what was left of the server", "processes", n)
	}

	if ctl, err := pgdisk.ReadControl(a.pg.DataDir); err == nil && !a.rewinding() {
		f.control = ctl
		a.afterStop(ctx, f)
		a.withdraw(ctx, ctl)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.log.Warn("pg_control", "error", err)
	}
	out := a.vol.Out != nil
	a.vol.Parked, a.vol.Stopped, a.vol.Out = false, true, nil
	if !a.plan.Restarts(a.inv.Node) {
		a.stayInformed(ctx)
		a.vol.Live, a.vol.Saw = false, 0 // it is not there for what comes, whatever it has answered for
	}
	a.saveVolatile()
	switch {
	case a.plan.Restarts(a.inv.Node):
	case out:
		a.spawnDetached(unmarkAction)
	default:
		a.deleteScore(ctx)
	}
	return nil
}

func (a *Agent) deleteScore(ctx context.Context) {
	if err := a.do("delete-score", func() error { return a.cluster.DeleteScore(ctx, a.inv.Node) }); err != nil {
		a.log.Warn("promotion score not removed", "error", err)
	}
	a.vol.Score = ""
	a.saveVolatile()
}

// unmarkAction is a hidden action: it takes away the score that a stop leaves to an instance that was kept out. The instance
// counts as started before Pacemaker has the result of that stop, and again as soon as a start has begun, before that can set
// a score; and whenever it does, it must be seen that it cannot be promoted. Only with the resource the score has to go.
const unmarkAction = "unmark"

// unmarkLimit is how long after its stop a resource may be removed for that: pcs and crmsh do so at once.
const unmarkLimit = time.Minute

// unmark waits for the end of the resource, and deletes the score then.
func (a *Agent) unmark(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, unmarkLimit)
	defer cancel()
	gone := false
	a.poll(wait, "the end of the resource", 2*time.Second, func() (bool, error) {
		ours, err := a.cluster.Ours(wait)
		gone = err == nil && !ours
		return gone || !journal.LoadVolatile(a.inv.Resource).Stopped, nil
	})
	if !gone {
		return nil // it was started again, or may be
	}
	locked, cancel := context.WithTimeout(ctx, lockedFor)
	defer cancel()
	release, err := a.hold(locked)
	if err != nil {
		return err
	}
	defer release()
	score, there, err := a.cluster.ScoreInCIB(locked, a.inv.Node)
	if err == nil && there && score == pacemaker.NegInfinity && a.vol.Stopped { // else it is of another agent
		a.deleteScore(locked)
	}
	return err
}

// withdraw says what came of this node's attempts to be promoted. Nobody else can tell, and as long as it is not said of an attempt
// that was cut short, it counts: after a cold start nobody is promoted but this node, which may not be started again.
func (a *Agent) withdraw(ctx context.Context, ctl pgdisk.Control) {
	if a.settleOwnClaims(ctl) {
		if err := a.save("save-state"); err != nil {
			a.log.Error("what came of this node's attempts is not saved", "error", err)
			return
		}
	} else if !a.hasWithdrawn() {
		return
	}
	if err := a.publish(ctx, "publish", nil, nil); err != nil {
		a.log.Warn("bulletin not published", "error", err)
	}
}

// hasWithdrawn reports whether the newest claim of this node came to nothing. A start that failed may not have told the others.
func (a *Agent) hasWithdrawn() bool {
	for _, c := range slices.Backward(a.state.Claims) {
		if c.Node == a.inv.Node {
			return c.State == baton.Withdrawn
		}
	}
	return false
}

// afterStop leaves the note, unless a demote has published it for this very end, and keeps what is not archived.
func (a *Agent) afterStop(ctx context.Context, f facts) {
	known := a.state.Note != nil && a.vol.Ended != "" && a.vol.Ended == ended(a.state.Note, f.control)
	if !known && f.control.State != pgdisk.InArchiveRecovery && f.control.State != pgdisk.ShutDownInRecovery {
		was := a.state.Note
		if err := a.leaveNote(ctx, f); err != nil {
			a.log.Error("note not saved", "error", err)
		}
		if a.state.Note != was { // else a demote has said in the journal what it did, or was killed before it could
			a.record("done", "", true)
		}
	}
	if f.control.State == pgdisk.ShutDown && !a.plan.Restarts(a.inv.Node) {
		if kept, err := a.keepUnarchived(f.control); err != nil {
			a.log.Error("keeping WAL that is not archived yet", "error", err)
		} else if kept {
			a.spawnAftercare()
		}
	}
}

// quorateLimit is how long a stop waits for Pacemaker's word on the quorum.
const quorateLimit = 2 * time.Second

// primaryStays reports whether another node has the role by the plan, and keeps it.
func (a *Agent) primaryStays() bool {
	return slices.ContainsFunc(a.plan.Promoted, func(n string) bool { return n != a.inv.Node && !pacemaker.Contains(a.plan.Demote, n) })
}

// leave writes down that this instance goes: a standby while a primary runs, as far as it knows, misses what is committed
// from now on; where the primary has ended, its note says what there is to have. And whatever was there, the next primary may
// go on without it, with a quorum to which its node belongs; not where it is stopped because its node has lost the quorum, since
// Pacemaker starts it again as soon as that is back.
func (a *Agent) leave(ctx context.Context, wasStandby bool) {
	brief, cancel := context.WithTimeout(ctx, quorateLimit)
	defer cancel()
	quorate, err := a.cluster.Quorate(brief)
	if err != nil {
		a.log.Warn("whether this node has quorum is not known", "error", err)
	}
	was := a.state
	a.state.Away = a.state.Away || quorate || err != nil
	if wasStandby && a.state.Left == nil {
		a.state.Left = a.leaves()
	}
	if a.state.Away == was.Away && a.state.Left == was.Left {
		return
	}
	if err := a.save("save-left"); err != nil {
		a.log.Error("not written down that a primary runs without this node, or may", "error", err)
	}
}

// stayInformed notes that nothing can happen without this node from now on, though its instance ends: of two nodes it is the one
// that is left. Otherwise it could not be primary again before the other one is back.
func (a *Agent) stayInformed(ctx context.Context) {
	was := a.vol.Informed
	a.vol.Informed = ""
	list := a.participants()
	if len(list) != 2 {
		return
	}
	brief, cancel := context.WithTimeout(ctx, quorateLimit)
	defer cancel()
	online, err := a.cluster.Online(brief)
	if err != nil || !slices.Contains(online, a.inv.Node) || pacemaker.Contains(online, list[0]) && pacemaker.Contains(online, list[1]) {
		return
	}
	now := a.cluster.Incarnation(a.vol.Attrd)
	if was != now && !baton.Informed(a.vol.Live, a.vol.Saw, a.inv.Node, a.state.Claims) {
		return
	}
	a.vol.Informed = now
}

// informed: see [baton.Candidate].
func (a *Agent) informed() bool {
	return a.vol.Informed != "" && a.cluster.Incarnation(a.vol.Informed) == a.vol.Informed
}

// leaves is what a standby leaves behind that stops now, nil if nothing.
func (a *Agent) leaves() *baton.Left {
	know := baton.Knowledge{Note: a.state.Note, Claims: a.state.Claims}
	// There is one, whatever this node has not heard yet of a note that it used up; or this node has seen one since it booted.
	if _, err := know.Usable(""); !a.primaryStays() && (err == nil || !a.vol.Live) {
		return nil
	}
	left := &baton.Left{Primary: "another node"}
	for _, c := range a.state.Claims {
		// It may not have heard yet that somebody's claim took effect.
		if c.State == baton.Effective || (c.Open() && c.Node != a.inv.Node) {
			left.Primary, left.Timeline = c.Node, c.Timeline
		}
	}
	return left
}
