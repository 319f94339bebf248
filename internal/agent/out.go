package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// An instance whose history is not the cluster's is kept out: its server is down, so that it serves nobody, and its score
// is -INFINITY. For Pacemaker it is started all the same, with a monitor that says "degraded": a start that failed would
// ban the node until a person comes, one that waited for a rewind would hold up every other change in the cluster.

// keepOut leaves the instance down.
func (a *Agent) keepOut(ctx context.Context, ctl pgdisk.Control, v baton.Return) error {
	was := a.vol.Out
	a.vol.Out = &journal.Out{Rejoin: v.Rejoin, Reason: v.Reason, Basis: a.basis(ctl)}
	a.vol.Parked, a.vol.Stopped = false, false
	if err := a.do("keep-out", func() error { return journal.SaveVolatile(a.inv.Resource, a.vol) }); err != nil {
		return err
	}
	if was == nil || was.Reason != v.Reason {
		a.log.Warn("kept out: the server is not started", "verdict", v.Rejoin, "reason", v.Reason)
		a.record(journal.KeptOut, v.Reason, true)
	}
	if !a.rewinding() {
		if kept, err := a.keepUnarchived(ctl); err != nil {
			a.log.Error("keeping WAL that is not archived yet", "error", err)
		} else if kept {
			a.spawnAftercare()
		}
	}
	a.vol.Score, a.vol.Status = "", statusUnknown // whatever was set last: both must be written
	if err := a.sayOut(ctx); err != nil {
		return err
	}
	if err := a.awaitMark(ctx); err != nil {
		a.log.Warn("kept out, but the cluster may show it a little later", "error", err)
	}
	return nil
}

// markLimit is how long the start of an instance that is kept out waits for the CIB to show that.
const markLimit = 5 * time.Second

// awaitMark waits until whoever sees in the CIB that this instance counts as started sees there, too, that it is kept out:
// the result of an action comes there by another way than the attributes do.
func (a *Agent) awaitMark(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, markLimit)
	defer cancel()
	if err := a.awaitForbidden(limited, a.inv.Node); err != nil {
		return err
	}
	return a.poll(limited, "the status of "+a.inv.Node+" to stand in the CIB", 10*time.Millisecond, func() (bool, error) {
		text, err := a.cluster.StatusInCIB(limited, a.inv.Node)
		return err == nil && text == a.vol.Status, nil
	})
}

// halfRewound keeps the instance out because of the marker of a rewind.
func (a *Agent) halfRewound(ctx context.Context) error {
	r, err := a.store.LoadRewind()
	v := baton.Return{Rejoin: baton.Rewind}
	if err == nil {
		err = a.sameTarget(r)
	}
	if err != nil {
		v = baton.Return{Rejoin: baton.Clone, Reason: err.Error()}
	} else {
		v.Reason = r.Reason
		if err := a.restoreOwn(r); err != nil {
			a.log.Warn("local configuration not put back yet", "error", err)
		}
	}
	return a.keepOut(ctx, pgdisk.Control{}, v)
}

// takeOut is for a server that is found to have diverged while it runs: it is stopped by the detached part, since that
// may take longer than a monitor.
func (a *Agent) takeOut(ctx context.Context, ctl pgdisk.Control, v baton.Return) error {
	a.vol.Out = &journal.Out{Rejoin: v.Rejoin, Reason: v.Reason, Basis: a.basis(ctl), Running: true}
	if err := a.do("keep-out", func() error { return journal.SaveVolatile(a.inv.Resource, a.vol) }); err != nil {
		return err
	}
	a.log.Warn("diverged: the server is taken out", "verdict", v.Rejoin, "reason", v.Reason)
	a.record(journal.TakenOut, v.Reason, true)
	err := a.sayOut(ctx)
	a.spawnDetached(rejoinAction)
	return err
}

// basis tells apart what a verdict rests on: the claims, and how the server ended.
func (a *Agent) basis(ctl pgdisk.Control) string {
	return fmt.Sprintf("%s %s %s %d", newestClaim(a.state.Claims), ctl.CheckPoint, ctl.State, ctl.Time.Unix())
}

// sayOut shows why the instance is kept out, and that it cannot be promoted.
func (a *Agent) sayOut(ctx context.Context) error {
	err := a.assertScore(ctx, 0, true)
	a.assertStatus(ctx, a.outStatus())
	return err
}

// unfit says why this instance cannot be promoted, if it is kept out.
func (a *Agent) unfit() string {
	if a.vol.Out == nil {
		return ""
	}
	return "kept out: " + a.vol.Out.Reason
}

// monitorOut is the monitor of an instance that is kept out. It goes on to the ordinary one (false) if the instance is
// not kept out any more.
func (a *Agent) monitorOut(ctx context.Context) (bool, error) {
	o := a.vol.Out
	if o == nil {
		return false, nil
	}
	degraded := roleCode{ocf.Degraded, "kept out: " + o.Reason}
	if a.unlocked {
		return true, degraded
	}
	busy := a.rejoining()
	if !busy && !o.Running {
		if _, err := a.pg.Postmaster(); err == nil {
			a.log.Warn("the server was started by somebody else, although this instance is kept out")
			a.vol.Out = nil
			a.saveVolatile()
			return false, nil
		}
	}
	if a.inv.Probe {
		return true, nil
	}
	if !busy && !o.Running && !a.rewinding() {
		back, err := a.reconsider(ctx)
		if err != nil {
			a.log.Warn("kept out", "error", err)
		}
		if back {
			return false, nil
		}
	}
	if attrd := a.cluster.Incarnation(a.vol.Attrd); attrd != a.vol.Attrd || a.age(time.Unix(a.vol.Asserted, 0)) > assertInterval {
		if err := a.reassert(ctx, attrd); err != nil {
			a.log.Warn("upkeep", "error", err)
		}
	}
	if err := a.sayOut(ctx); err != nil {
		a.log.Warn("promotion score not set", "error", err)
	}
	if a.kept() > 0 && !busy && !a.rewinding() {
		a.spawnAftercare()
	}
	a.tell(ctx)
	if !busy && (a.vol.Out.Running || a.mayRewind()) {
		a.spawnDetached(rejoinAction)
	}
	degraded.reason = "kept out: " + a.vol.Out.Reason
	if text, _ := a.doing(); text != "" {
		degraded.reason = "kept out: " + text
	}
	return true, degraded
}

// reconsider asks the rule again where something has changed since, and starts the instance if it may come in.
func (a *Agent) reconsider(ctx context.Context) (bool, error) {
	if err := a.learnAll(ctx); err != nil {
		return false, err
	}
	ctl, err := pgdisk.ReadControl(a.pg.DataDir)
	if err != nil {
		return false, err
	}
	if a.basis(ctl) == a.vol.Out.Basis && a.vol.Out.Rejoin != baton.Await && !a.orderedHere(ctx) {
		return false, nil
	}
	v := a.returning(ctx, ctl)
	if v.Rejoin != baton.Follow {
		return false, a.keepOut(ctx, ctl, v)
	}
	a.log.Info("not kept out any more", "was", a.vol.Out.Reason)
	return true, a.startAsStandby(ctx)
}
