package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// Limits on how far the target may be behind when the primary is shut down.
const (
	nearBytes   = 16 << 20         // of WAL not yet flushed by the target
	replayBytes = 64 << 20         // of WAL not yet replayed by it
	targetLimit = 10 * time.Second // to get there
)

// preDemote prepares the handover while clients still write. Only a running primary may call it off here, and only if it
// does not have to leave: a dead one looks just like a target that does not stream.
func (a *Agent) preDemote(ctx context.Context) error {
	a.vol.Live = true
	a.saveVolatile()
	if a.vol.Out != nil {
		return nil
	}
	f, err := a.look()
	if err != nil {
		return err
	}
	if f.role == standby {
		if pacemaker.Contains(a.plan.Promote, a.inv.Node) {
			// The primary may call the handover off by this node's score: the next monitor looks at it, not the one a
			// minute later, or the refusal could neither be explained nor lifted until then.
			a.vol.Asserted = 0
			a.saveVolatile()
		}
		return a.overrideAndReload(f, [2]string{"wal_retrieve_retry_interval", "200ms"})
	}
	p := a.batonPlan()
	a.serving = f.role == primary && pacemaker.Contains(p.Demote, a.inv.Node)
	if f.role != primary || len(p.Promote) == 0 || p.Promote[0] == a.inv.Node || !pacemaker.Contains(p.Demote, a.inv.Node) {
		return nil
	}
	if slices.ContainsFunc(a.state.Claims, func(c baton.Claim) bool { return c.Node == a.inv.Node && c.State == baton.Claimed }) {
		// Its promotion was cut short: Pacemaker takes the role away whoever calls what off, and clients have no address to
		// come by, so that every wait here is outage.
		return nil
	}
	if a.state.Refusal != nil && a.state.Refusal.Crashed {
		return nil // it leaves the role because it cannot serve: there is nobody here to prepare anything with
	}
	target := p.Promote[0]
	mayCallOff := baton.CanCallOff(p, a.inv.Node)
	if attrd := a.cluster.Incarnation(a.vol.Attrd); mayCallOff {
		switch {
		case attrd != a.vol.Attrd:
			return a.reclaim(ctx, attrd, "attrd was restarted and took this primary's score along")
		case a.scoresLess(ctx, target):
			return a.reclaim(ctx, attrd, "this primary had no time yet to set its score")
		}
	}
	if mayCallOff {
		a.hurrySenders(f)
	}
	began := a.clock.Now()
	if unfinished, err := a.checkpoint(ctx); unfinished && mayCallOff {
		// The shutdown would have to write all that is left of it, be cut short by its time-out, and so become a crash.
		why := fmt.Sprintf("its own checkpoint has not ended within %s and goes on: order it again when it has, or raise the time-outs of notify and demote", a.clock.Now().Sub(began).Round(time.Second))
		return a.callOff(ctx, f, target, why)
	} else if err != nil {
		a.log.Warn("the shutdown will have more to write", "error", err)
	}
	checkpointed := a.clock.Now()
	why, err := a.targetUnfit(ctx, target, mayCallOff)
	if err != nil {
		// Not known is not unfit: the target has to prove itself anyway.
		a.log.Warn("the target's state is not known", "error", err)
		return nil
	}
	a.log.Info("prepared the handover", "to", target, "checkpoint_ms", checkpointed.Sub(began).Milliseconds(), "target_ms", a.clock.Now().Sub(checkpointed).Milliseconds(), "target", cmp.Or(why, "fit"))
	switch {
	case why == "" && !mayCallOff:
		// Only now: as long as the target was far behind, nothing might cut its walsender off.
		a.hurrySenders(f)
	case why != "" && mayCallOff:
		return a.callOff(ctx, f, target, why)
	}
	return nil
}

// hurrySenders bounds for how long a walsender that cannot get rid of its queue withholds the shutdown checkpoint.
func (a *Agent) hurrySenders(f facts) {
	if err := a.overrideAndReload(f, [2]string{"wal_sender_timeout", "2s"}); err != nil {
		a.log.Warn("wal_sender_timeout not lowered", "error", err)
	}
}

// checkpoint takes dirty buffers out of the outage while clients still write. It reports whether there were more of them than
// it had time for.
func (a *Agent) checkpoint(ctx context.Context) (unfinished bool, err error) {
	budget, cancel := a.share(ctx, 0.5)
	defer cancel()
	sess, err := a.connect(budget, false)
	if err != nil {
		return false, err
	}
	defer sess.Close()
	err = a.do("checkpoint", func() error { return sess.Checkpoint(budget) })
	return err != nil && budget.Err() != nil, err
}

// targetUnfit waits until the target confirms WAL that was written after this was called, and is near in replay. It says
// what is missing when the time is over, "" if nothing is; the error is about this server, which could not be asked.
func (a *Agent) targetUnfit(ctx context.Context, target string, mayCallOff bool) (string, error) {
	limit := targetLimit
	if !mayCallOff {
		limit = time.Hour // bounded by ctx: this is the last chance
	}
	some, cancel := a.share(ctx, 0.7)
	defer cancel()
	wait, cancel := context.WithTimeout(some, limit)
	defer cancel()
	sess, err := a.connect(wait, false)
	if err != nil {
		return "", err
	}
	defer sess.Close()
	mark, err := sess.CurrentLSN(wait)
	if err != nil {
		return "", err
	}
	why := target + " is not connected"
	err = a.poll(wait, "the target", 20*time.Millisecond, func() (bool, error) {
		senders, err := sess.Senders(wait)
		if err != nil {
			return false, err
		}
		flushed, _, err := sess.Flushed(wait, target)
		if err != nil {
			return false, err
		}
		why = unfit(target, senders, flushed, mark)
		return why == "", nil
	})
	if err != nil && wait.Err() == nil {
		return "", err
	}
	return why, nil
}

// unfit says why a handover to target would fail or take long, by the primary's view of its standbys; "" if nothing is
// known against it.
func unfit(target string, senders []postgres.Sender, flushed, mark pgdisk.LSN) string {
	i := slices.IndexFunc(senders, func(s postgres.Sender) bool { return s.Name == target })
	if i < 0 {
		return fmt.Sprintf("%s is not connected (is its application_name %q?)", target, target)
	}
	switch s := senders[i]; {
	case s.State != "streaming":
		return fmt.Sprintf("%s is in state %q, not streaming", target, s.State)
	case flushed < mark:
		return fmt.Sprintf("%s has not confirmed WAL up to %s, only up to %s", target, mark, flushed)
	case s.Unflush > nearBytes:
		return fmt.Sprintf("%s is %d bytes of WAL behind", target, s.Unflush)
	case s.Unreplay > replayBytes:
		return fmt.Sprintf("%s has not replayed %d bytes of WAL (is replay paused?)", target, s.Unreplay)
	}
	return ""
}

// callOff takes the target out of the running before anything was stopped: the clients notice nothing.
func (a *Agent) callOff(ctx context.Context, f facts, target, why string) error {
	a.log.Warn("calling the handover off", "to", target, "reason", why)
	a.record("called off", why, false)
	if err := a.do("call-off", func() error { return a.cluster.SetScore(ctx, target, pacemaker.NegInfinity) }); err != nil {
		return err
	}
	err := a.awaitForbidden(ctx, target)
	return errors.Join(err, a.dropOverrides(f))
}

// reclaim sets the score of a running primary again: attrd was restarted, and took it along, so that the standbys' scores
// are the highest and this plan was made. With the score in the CIB it is made anew, and moves the role only if somebody
// wants that. Nothing else could be quicker: Pacemaker plans as soon as the new attrd has wiped the old one's attributes,
// and demotes as soon as this notification has ended. A permanent score would outlive the node that it belongs to.
func (a *Agent) reclaim(ctx context.Context, attrd, why string) error {
	a.log.Warn(why+": setting it", "change", a.changeNow())
	a.record("called off", why, false)
	a.vol.Score = ""
	err := a.poll(ctx, "attrd to take the score", 20*time.Millisecond, func() (bool, error) {
		return a.assertScore(ctx, baton.ScorePrimary, false) == nil, nil // it may still be starting
	})
	if err != nil {
		return err
	}
	err = a.poll(ctx, "this primary's score to stand in the CIB", 10*time.Millisecond, func() (bool, error) {
		s, ok, err := a.cluster.ScoreInCIB(ctx, a.inv.Node)
		return err == nil && ok && s == baton.ScorePrimary, nil
	})
	// The bulletin went with the score.
	return errors.Join(err, a.reassert(ctx, attrd))
}

// scoresLess reports whether this primary's first monitor has not run yet, and the target's has: then the plan may have no other
// reason than that the target has come up in between, and clients would lose their primary for nothing.
func (a *Agent) scoresLess(ctx context.Context, target string) bool {
	if a.vol.Score == pacemaker.Score(baton.ScorePrimary).String() {
		return false
	}
	scores, err := a.cluster.Scores(ctx)
	own, there := scores[a.inv.Node]
	return err == nil && there && own < scores[target]
}

func (a *Agent) overrideAndReload(f facts, setting [2]string) error {
	return a.do("override", func() error {
		if _, err := a.override(setting); err != nil {
			return err
		}
		return f.postmaster.Signal(postgres.Reload)
	})
}

// override puts settings in force for the duration of a change of roles, in place of those before. As long as WAL files
// are still to be archived through a second link, the server must not overwrite them, whatever its role is by now: to
// recycle a segment is to write into the very file that the second link holds (wal_recycle, since 12).
func (a *Agent) override(settings ...[2]string) (changed bool, err error) {
	if a.kept() > 0 {
		settings = append(settings, [2]string{"wal_recycle", "off"})
	}
	return a.pg.Override(settings...)
}

// dropOverrides takes back what was set for the duration of a change of roles.
func (a *Agent) dropOverrides(f facts) error {
	return a.do("drop-overrides", func() error {
		changed, err := a.override()
		if err != nil || !changed {
			return err
		}
		return f.postmaster.Signal(postgres.Reload)
	})
}
