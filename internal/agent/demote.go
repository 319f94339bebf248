package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// demote ends the primary and leaves a note of how its WAL ends. It brings it back as a standby unless the plan stops
// it next, and waits for neither: what still lingers (an archiver, a walsender that still feeds its standby) is no
// primary any more, and is looked after outside of Pacemaker's actions.
func (a *Agent) demote(ctx context.Context) error {
	if a.vol.Out != nil && !a.vol.Out.Running {
		if _, err := a.pg.Postmaster(); err != nil || a.rejoining() {
			return nil // it is kept out: nothing of it is a primary
		}
	}
	f, err := a.look()
	var foreign *postgres.ForeignError
	switch {
	case errors.As(err, &foreign):
		return ocf.Errorf(ocf.ErrGeneric, "%w: end it by hand", foreign)
	case err != nil && f.postmaster.PID != 0:
		a.log.Warn("what runs here cannot be told: ending it as a primary", "error", err)
		f.role = primary
	}
	switch f.role {
	case primary:
		a.serving = true
		if !a.plan.Known() {
			a.hurrySenders(f) // no pre-demote did, and a standby that is cut off would turn the clean end into a crash
		}
		f, err = a.endPrimary(ctx, f)
		if err != nil {
			return err
		}
	case stopping:
		// A demote before this one was killed, or somebody else stops it.
		if f, err = a.awaitEnd(ctx, f); err != nil {
			return err
		}
	case standby, ambiguousUp:
		return a.demoteStandby(ctx, f)
	case parkedDown:
		return nil
	}
	if err := a.leaveNote(ctx, f); err != nil {
		return err
	}
	a.record("done", "", false)
	if a.plan.Leaves(a.inv.Node) || a.plan.Restarts(a.inv.Node) {
		a.park()
		return nil
	}
	if f.postmaster.PID != 0 && f.postmaster.Alive() {
		a.park()
		a.spawnAftercare()
		return nil
	}
	if err := a.startAsStandby(ctx); err != nil {
		// Nothing of the primary runs any more, and that is what demote is for; a monitor says what is wrong.
		if left, lerr := a.pg.Leftovers(); lerr == nil && len(left) == 0 {
			a.log.Error("demoted, and not started as a standby", "error", err)
			return nil
		}
		return err
	}
	return nil
}

// dead reports whether this node has given its crashed instance up.
func (a *Agent) dead() bool { return a.state.Refusal != nil && a.state.Refusal.Dead }

// endPrimary shuts the primary down, fast; if it does not get there in half of the time, at once; then with SIGKILL. It
// returns as soon as pg_control says that it is shut down: nothing is written after that.
func (a *Agent) endPrimary(ctx context.Context, f facts) (facts, error) {
	a.endedPrimary = f.role == primary
	what := "shutting the server down"
	if a.endedPrimary {
		what = "shutting the primary down"
	}
	a.log.Info(what, "change", a.changeNow(), "pid", f.postmaster.PID)
	if a.recovers() {
		// It has nothing to write: its recovery begins again anyway. And a fast shutdown would not end it as what it is. Before the
		// first checkpoint is replayed pg_control says "shut down in recovery" then, as of a standby (CreateRestartPoint, xlog.c).
		a.log.Info("it recovers from a crash: no checkpoint to wait for")
		return a.endAtOnce(ctx, f)
	}
	if err := a.do("fast-stop", func() error { return f.postmaster.Signal(postgres.FastStop) }); err != nil {
		a.log.Warn("fast stop", "error", err)
	}
	return a.awaitEnd(ctx, f)
}

func (a *Agent) awaitEnd(ctx context.Context, f facts) (facts, error) {
	written := false
	ended := func() (bool, error) {
		_, recovers := startupProcess(f.postmaster) // asked first: it writes pg_control once more, and ends
		ctl, err := pgdisk.ReadControl(a.pg.DataDir)
		if err != nil {
			return !f.postmaster.Alive(), nil // being written, or damaged for good
		}
		f.control = ctl
		if ctl.State == pgdisk.ShutDown || ctl.State == pgdisk.ShutDownInRecovery {
			written = !recovers // after the checkpoint at the end of a crash recovery the server goes on: see endsRecovery
		}
		return written || !f.postmaster.Alive(), nil
	}
	part := 0.5
	if f.postmaster.Stopped() || a.hung() || a.recovers() {
		part = 0 // it cannot react to anything but SIGKILL, or has nothing to write: its recovery begins again anyway
	}
	half, cancel := a.share(ctx, part)
	defer cancel()
	if err := a.poll(half, "the fast shutdown to write its checkpoint", 2*time.Millisecond, ended); err != nil {
		a.log.Warn("immediate shutdown", "reason", err)
		a.do("immediate-stop", func() error { return f.postmaster.Signal(postgres.ImmediateStop) })
		some, cancel := a.share(ctx, part)
		defer cancel()
		if err := a.poll(some, "the immediate shutdown", 2*time.Millisecond, ended); err != nil {
			a.log.Warn("killing the server", "reason", err)
		}
	}
	if written {
		return f, nil
	}
	return a.endAtOnce(ctx, f)
}

// endAtOnce ends a server with SIGKILL, its lock file left as it is: that tells what it was.
func (a *Agent) endAtOnce(ctx context.Context, f facts) (facts, error) {
	if _, err := a.killLeftovers(ctx); err != nil {
		return f, ocf.Errorf(ocf.ErrGeneric, "%w", err)
	}
	if ctl, err := pgdisk.ReadControl(a.pg.DataDir); err == nil {
		f.control = ctl
	}
	return f, nil
}

// leaveNote publishes how the instance ended, on disk first. An instance that was a standby leaves none.
func (a *Agent) leaveNote(ctx context.Context, f facts) error {
	a.serving = false
	switch f.control.State {
	case pgdisk.ShutDown:
	case pgdisk.InProduction, pgdisk.ShuttingDown, pgdisk.InCrashRecovery:
		if _, err := a.killLeftovers(ctx); err != nil {
			// The end of its WAL may still move. Without a note the old primary is found by its position.
			a.log.Error("no note", "error", err)
			return nil
		}
	default:
		return nil
	}
	a.readRest(ctx, f.control)
	// A note would promote this instance, and it alone: over the rows of everybody else.
	at, err := a.atRest(ctx, f.control)
	if err == nil && !a.wasPrimaryOn(at.Position.Timeline) {
		if err := a.learnAll(ctx); err != nil {
			a.log.Warn("no word from the other nodes", "error", err)
		}
	}
	if err == nil && baton.Unclaimed(a.state.Claims, at.Position.Timeline) {
		// Promoted by hand. If it was the only primary, it was the cluster's all the same.
		other, err := a.primaryElsewhere(ctx)
		if err != nil || other != "" || !a.endedPrimary {
			a.log.Warn("no note: nobody claimed the timeline of what has ended here", "timeline", at.Position.Timeline, "primary", other, "error", err)
			return nil
		}
		if err := a.claimTimeline(f.control, at.Position.Timeline); err != nil {
			return err
		}
	}
	v := a.returning(ctx, f.control)
	// A primary that was started by hand, and is the only one, was the cluster's all the same.
	if v.Rejoin != baton.Follow && !(v.Rejoin == baton.Await && a.endedPrimary) {
		a.log.Warn("no note: what has ended here was not the cluster's primary", "reason", v.Reason)
		return nil
	}
	var note *baton.Note
	// A server that was given up and died at the end of its crash recovery was not shut down, whatever pg_control says: nobody
	// has that checkpoint, and nobody will get it.
	if f.control.State == pgdisk.ShutDown && !(a.dead() && a.diedInRecovery(f.control)) {
		note, err = a.noteFromDisk(f.control)
	} else {
		note, err = a.crashNote(ctx, f.control)
		if err == nil && !a.wasPrimaryOn(note.Timeline) {
			// A clone that never ran, or was promoted by hand: the primary that this pg_control speaks of may be alive.
			a.log.Warn("no note: nothing known of this node says that it was primary", "timeline", note.Timeline, "pg_control", f.control.State)
			return nil
		}
	}
	if err != nil {
		// Without a note nobody has a proof; the old primary is still found by its position.
		a.log.Error("no note", "error", err)
		return nil
	}
	if note.NewerThan(a.state.Note) {
		a.state.Note = note
	}
	a.settleOwnClaims(f.control)
	a.details["note"] = a.state.Note.String()
	a.log.Info("the primary has ended", "note", a.state.Note, "change", a.changeNow())
	if err := a.save("save-note"); err != nil {
		// The others save it, too, and it can be read again here. A demote that failed now would have nobody hear of it.
		a.log.Error("note not saved", "error", err)
	}
	if err := a.publish(ctx, "publish-note", nil, nil); err != nil {
		a.log.Warn("note not published; it is on disk and stop publishes it again", "error", err)
		return nil
	}
	a.vol.Ended = ended(a.state.Note, f.control) // saved with what comes next; without, stop publishes it once more
	return nil
}

// ended names the end of a server for which a note was published. Whoever starts it by hand, and as what it was, writes behind that
// note on the same timeline, and changes pg_control.
func ended(note *baton.Note, ctl pgdisk.Control) string {
	return fmt.Sprintf("%s %s %s %d", note.Nonce, ctl.State, ctl.CheckPoint, ctl.CheckPointTimeline)
}

// wasPrimaryOn reports whether this node was primary, or about to be, on a timeline. A data directory alone does not say
// so: pg_basebackup copies the pg_control of a running primary, "in production".
func (a *Agent) wasPrimaryOn(timeline pgdisk.TimelineID) bool {
	return slices.ContainsFunc(a.state.Claims, func(c baton.Claim) bool {
		return c.Node == a.inv.Node && c.Timeline == timeline && (c.State == baton.Claimed || c.State == baton.Effective)
	})
}

// crashNote reads where the WAL of a crashed primary ends. Nothing of it may run any more.
func (a *Agent) crashNote(ctx context.Context, ctl pgdisk.Control) (*baton.Note, error) {
	c, err := a.atRest(ctx, ctl)
	if err != nil {
		return nil, err
	}
	if c.Last == nil {
		return nil, fmt.Errorf("no valid record found from %s on", ctl.Redo)
	}
	kind := baton.Crash
	if a.dead() {
		kind = baton.Abandoned
	}
	return &baton.Note{
		Kind: kind, SystemID: ctl.SystemIdentifier, Timeline: c.Position.Timeline,
		Start: c.Last.Start, End: c.Last.End, CRC: c.Last.CRC, Node: a.inv.Node, Nonce: nonce(),
	}, nil
}

// demoteStandby has nothing to end. But a promote of this node may have been killed after it asked the server: such a
// server is stopped and started again, for only on a stopped one can be told whether it went through.
func (a *Agent) demoteStandby(ctx context.Context, f facts) error {
	open := false
	for _, c := range a.state.Claims {
		open = open || (c.Node == a.inv.Node && c.State == baton.Claimed)
	}
	if !open {
		return nil
	}
	a.log.Warn("a promotion of this node was cut short: restarting the server to find out how far it came")
	if err := a.do("cancel-promotion", a.pg.CancelPromotion); err != nil {
		return err
	}
	f, err := a.endPrimary(ctx, f)
	if err != nil {
		return err
	}
	if err := a.seeOff(ctx, f.postmaster.Process); err != nil {
		return err
	}
	if err := a.leaveNote(ctx, f); err != nil {
		return err
	}
	return a.startAsStandby(ctx)
}

// killLeftovers ends what is left of a server. Only then does the end of its WAL stand still.
func (a *Agent) killLeftovers(ctx context.Context) (n int, err error) {
	if left, err := a.pg.Leftovers(); err == nil && len(left) == 0 {
		return 0, nil
	}
	if a.hung() {
		// A process that its disk does not let go outlives every wait, and nobody is promoted before that is said.
		limited, cancel := context.WithTimeout(ctx, survivorsLimit)
		defer cancel()
		ctx = limited
	}
	err = a.do("kill-leftovers", func() error { n, err = a.pg.KillLeftovers(ctx); return err })
	return n, err
}

// park leaves the instance down on purpose.
func (a *Agent) park() {
	a.vol.Parked = true
	if err := a.do("park", func() error { return journal.SaveVolatile(a.inv.Resource, a.vol) }); err != nil {
		a.log.Warn("volatile state", "error", err)
	}
}

// unpark starts a parked instance whose old postmaster is gone. It reports whether it did.
func (a *Agent) unpark(ctx context.Context) (bool, error) {
	if !a.vol.Parked {
		return false, nil
	}
	if _, err := a.pg.Postmaster(); !errors.Is(err, postgres.ErrNotRunning) {
		return false, err
	}
	return true, a.startAsStandby(ctx)
}
