package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// assertInterval is how often scores and bulletin are asserted although nothing seems to have changed.
const assertInterval = time.Minute

// retryAfter is how long a refusal lasts where there is neither a primary nor a note whose owner starts again, for whatever was
// missing to come.
const retryAfter = 30 * time.Second

// retrySoon is the same where what was missing may be there in seconds: whoever answered reads on in its WAL from where it
// came, and says the next time how far that goes.
const retrySoon = 5 * time.Second

// upkeep keeps right what this node says of itself. In the normal case it spawns nothing.
func (a *Agent) upkeep(ctx context.Context, f facts, st baton.Standing, status string, timeline pgdisk.TimelineID) error {
	if a.unlocked {
		return nil
	}
	attrd := a.cluster.Incarnation(a.vol.Attrd)
	if attrd != a.vol.Attrd || a.age(time.Unix(a.vol.Asserted, 0)) > assertInterval {
		if err := a.reassert(ctx, attrd); err != nil {
			return err
		}
		if st.Primary {
			if err := a.keepPlaceholders(ctx, timeline); err != nil {
				a.log.Warn("history files of numbers that were passed over are not archived", "error", err)
			}
		}
		// Also who is primary no more: it may not be for a long time.
		if err := a.forgetClaim(ctx); err != nil {
			a.log.Warn("the claim in the cluster's configuration is not removed", "error", err)
		}
	}
	a.renewSentinel()
	a.ensureSentinel()
	if err := a.learnUnread(ctx); err != nil && !st.Primary {
		return err // without it, it has no score to be promoted with
	}
	if err := a.followPrimary(ctx, st, timeline); err != nil {
		return err
	}
	if a.state.Refusal != nil && !st.Primary {
		lift, err := a.mayLift(ctx, st, timeline)
		if err != nil {
			return err
		}
		if lift {
			a.log.Info("lifting the refusal", "was", a.state.Refusal.Reason)
			a.state.Refusal = nil
			if err := a.save("lift-refusal"); err != nil {
				return err
			}
		} else {
			st.Forbidden = true
			if status == "" {
				status = "refused: " + a.state.Refusal.Reason + a.wayOut
			}
		}
	}
	if a.unsettled() {
		list, err := a.others(ctx)
		if err != nil {
			return err
		}
		if a.learn(list) {
			if err := a.save("learn"); err != nil {
				return err
			}
		}
	}
	if st.Primary && a.leaving() {
		if a.age(a.vol.Refused) < tendFor {
			return nil // its score says that it leaves the role; Pacemaker may not have begun yet
		}
		a.log.Warn("nobody has taken the role over: keeping it", "was", a.state.Refusal.Reason)
		a.state.Refusal = nil
		if err := a.save("lift-refusal"); err != nil {
			return err
		}
	}
	score, forbid := baton.Score(st)
	if !st.Primary && !st.Streaming && !st.OwnNote && !forbid && a.wouldLower(score, status) {
		if hold, err := a.changing(ctx); err != nil || hold {
			return err
		}
	}
	if !st.Primary && !forbid && a.vol.Score != pacemaker.Score(score).String() {
		// About to write over what stands there: look first.
		if called, err := a.calledOff(ctx); err != nil || called {
			return err // the next monitor goes on from the refusal
		}
		was, err := pacemaker.ParseScore(a.vol.Score)
		if st.Streaming && (err != nil || pacemaker.Score(score) > was) {
			hold, err := a.primaryIsLow(ctx, timeline)
			if err != nil {
				return err
			}
			if hold {
				return nil // the next monitor raises it
			}
		}
	}
	if !st.Primary && !forbid && a.vol.Score == pacemaker.NegInfinity.String() && a.state.Refusal == nil {
		// A node that cannot save refuses every promotion, and could not save that: raised, it would be asked again and again.
		if err := a.save("lift-refusal"); err != nil {
			return err
		}
	}
	if err := a.assertScore(ctx, score, forbid); err != nil {
		return err
	}
	a.assertStatus(ctx, status)
	if a.kept() > 0 {
		a.spawnAftercare()
	}
	if st.Primary || st.Streaming {
		return a.dropOverrides(f)
	}
	return nil
}

// wouldLower reports whether score and status would say that a standby, which followed until now, does not.
func (a *Agent) wouldLower(score int, status string) bool {
	was, err := pacemaker.ParseScore(a.vol.Score)
	if err != nil || was > baton.ScoreFollows {
		return false
	}
	return pacemaker.Score(score) < was || pacemaker.Score(score) == was && status != a.vol.Status
}

// changing reports, once for each note, that a primary has ended and that nobody has taken the role over yet. Every standby has
// lost its primary then, and a score or a status that is written in the middle of a change of roles has Pacemaker make its plan
// anew, with all its notifications (abort_unless_down in daemons/controld/controld_te_callbacks.c): the target asks everybody once
// more. If it lasts, the next monitor says so.
func (a *Agent) changing(ctx context.Context) (bool, error) {
	list, err := a.others(ctx)
	if err != nil {
		return false, err
	}
	note, err := baton.Gather(list, "").Settled().Usable("")
	if err != nil || a.vol.Held == note.Nonce {
		return false, nil
	}
	a.vol.Held = note.Nonce
	a.saveVolatile()
	return true, nil
}

// forgetClaim takes this node's claim out of the cluster's configuration once every participant knows it, or a newer one.
func (a *Agent) forgetClaim(ctx context.Context) error {
	if a.vol.Recorded == "" && a.vol.Forgotten {
		return nil
	}
	recorded, err := a.cluster.RecordedClaims(ctx, a.state.SystemID)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(recorded, func(c baton.Claim) bool { return c.Node == a.inv.Node })
	if i >= 0 {
		underWay := func(c baton.Claim) bool {
			return c.Nonce == recorded[i].Nonce && c.Open() && c.State != baton.Effective
		}
		if slices.ContainsFunc(a.state.Claims, underWay) {
			return nil
		}
		list, err := a.others(ctx)
		if err != nil {
			return err
		}
		for _, n := range a.participants() {
			known := slices.ContainsFunc(list, func(b baton.Bulletin) bool {
				return b.Node == n && slices.ContainsFunc(b.Claims, func(c baton.Claim) bool { return c.Seq >= recorded[i].Seq })
			})
			if !known {
				return nil
			}
		}
		if err := a.do("forget-claim", func() error { return a.cluster.ForgetClaim(ctx, a.inv.Node) }); err != nil {
			return err
		}
	}
	a.vol.Recorded, a.vol.Forgotten = "", true
	a.saveVolatile()
	return nil
}

// followPrimary keeps known how far the primary had written, where maxlag asks for it: the primary publishes it, and the
// standbys remember it, since its attributes go with its node.
func (a *Agent) followPrimary(ctx context.Context, st baton.Standing, timeline pgdisk.TimelineID) error {
	if a.params.MaxLag == 0 {
		return nil
	}
	if st.Primary && (st.Written == 0 || a.unclaimed(timeline)) {
		return nil // it did not say, or is a server that was promoted by hand beside the cluster's primary
	}
	if st.Primary {
		a.vol.Primary = &pgdisk.Position{Timeline: timeline, LSN: st.Written}
		a.saveVolatile()
		return a.publish(ctx, "publish-position", nil, nil)
	}
	list, err := a.others(ctx)
	if err != nil {
		return err
	}
	if p := baton.Gather(list, "").Primary; p.Timeline != 0 {
		a.vol.Primary = &p
		a.saveVolatile()
	}
	return nil
}

// unsettled reports whether this node still wonders how somebody's attempt ended.
func (a *Agent) unsettled() bool {
	return slices.ContainsFunc(a.state.Claims, func(c baton.Claim) bool {
		return c.Node != a.inv.Node && (c.State == baton.Intended || c.State == baton.Claimed)
	})
}

// reassert writes score and bulletin again: attrd may have been restarted, and with it went both. A -INFINITY that this
// node did not set itself was set by a primary that called a handover off.
func (a *Agent) reassert(ctx context.Context, attrd string) error {
	scores, err := a.cluster.Scores(ctx)
	if err != nil {
		return err
	}
	if _, err := a.adopt(scores); err != nil {
		return err
	}
	if err := a.publish(ctx, "publish", nil, nil); err != nil {
		return err
	}
	if attrd != a.vol.Attrd {
		a.vol.Status = statusUnknown
	}
	a.vol.Attrd, a.vol.Asserted = attrd, a.clock.Now().Unix()
	a.saveVolatile()
	return nil
}

// calledOff reports whether a primary has called a handover to this node off since its score was set last.
func (a *Agent) calledOff(ctx context.Context) (bool, error) {
	scores, err := a.cluster.Scores(ctx)
	if err != nil {
		return false, err
	}
	return a.adopt(scores)
}

// primaryIsLow reports whether the primary of the timeline that this node streams still has the score of a standby: it
// gets its own by its first monitor, after the promotion. A standby whose score rose above that would be given the role at
// once.
func (a *Agent) primaryIsLow(ctx context.Context, timeline pgdisk.TimelineID) (bool, error) {
	scores, err := a.cluster.Scores(ctx)
	if err != nil {
		return false, err
	}
	list, err := a.others(ctx)
	if err != nil {
		return false, err
	}
	for _, c := range slices.Backward(baton.Gather(list, "").Claims) {
		if c.Open() && c.Timeline == timeline && c.Node != a.inv.Node {
			score, there := scores[c.Node]
			return there && score != baton.ScorePrimary, nil // without a score it is gone, or its attrd was restarted
		}
	}
	return false, nil // it was promoted by hand
}

// adopt compares this node's score with what was set last. A -INFINITY from elsewhere becomes this node's own refusal,
// which it lifts by the same rule; any other difference is mended by the next assertScore.
func (a *Agent) adopt(scores map[string]pacemaker.Score) (bool, error) {
	s, ok := scores[a.inv.Node]
	if ok && s == pacemaker.NegInfinity && a.vol.Score != s.String() {
		a.log.Info("the primary called a handover to this node off")
		a.state.Refusal = &baton.Refusal{Reason: "the primary called a handover to this node off, see its log"}
		a.vol.Score = s.String()
		a.saveVolatile()
		return true, a.save("save-refusal")
	}
	if !ok || s.String() != a.vol.Score {
		a.vol.Score = ""
	}
	return false, nil
}

// mayLift gathers what lifting a refusal depends on.
func (a *Agent) mayLift(ctx context.Context, st baton.Standing, timeline pgdisk.TimelineID) (bool, error) {
	if a.state.Refusal.Crashed && a.age(a.vol.Refused) < crashPatience && !st.Streaming {
		return false, nil // the sentinel waits for somebody to take over
	}
	list, err := a.others(ctx)
	if err != nil {
		return false, err
	}
	scores, err := a.cluster.Scores(ctx)
	if err != nil {
		return false, err
	}
	primaryExists := false
	for node, s := range scores {
		primaryExists = primaryExists || (node != a.inv.Node && s == baton.ScorePrimary)
	}
	know := baton.Gather(list, "")
	newest := pgdisk.TimelineID(0)
	for _, c := range know.Claims {
		if c.State == baton.Effective {
			newest = max(newest, c.Timeline)
		}
	}
	favoured, err := a.cluster.Favoured(ctx, a.inv.Node)
	if err != nil {
		return false, err
	}
	note, err := know.Usable("")
	var used *baton.UsedUpError
	underWay := errors.As(err, &used) && used.By.State != baton.Effective
	// A WAL receiver whose primary lost its power says for up to wal_receiver_timeout that it streams.
	if !primaryExists {
		who := "the nodes that have more"
		if note != nil {
			who = note.Node
		} else if last := know.Last(""); last != nil {
			who = last.Node
		}
		if who == a.inv.Node {
			who = "the nodes that have more"
		}
		a.wayOut = wayOut(*a.state.Refusal, who, a.inv.Node)
	}
	proven := false
	if note != nil {
		if c, err := a.candidate(ctx, nil, note, false); err == nil {
			proven = baton.Proof(*note, c) == nil
		}
	}
	if order, err := a.cluster.Order(ctx, a.inv.Node); err == nil && order != nil && order.Stake == know.Stake("") {
		a.log.Warn("ordered to be promoted in spite of a loss", "by", order.By, "at", order.At, "stake", order.Stake)
		return true, nil
	}
	if a.state.Refusal.Starting && !primaryExists {
		return !st.Starting, nil
	}
	patience := retryAfter
	if a.state.Refusal.Soon {
		patience = retrySoon
	}
	patient := a.age(a.vol.Refused) < patience
	if !primaryExists && (note == nil || note.Kind == baton.Abandoned || a.state.Refusal.Soon) && patient {
		return false, nil // nothing will have changed
	}
	streamsCurrent := st.Streaming && (newest == 0 || timeline >= newest)
	return a.state.Refusal.Lift(primaryExists || st.Streaming, streamsCurrent, favoured, underWay && patient, note, proven), nil
}

// wayOut is what a person can do about a node's refusal while there is no primary; who has what it lacks.
func wayOut(r baton.Refusal, who, node string) string {
	if r.Starting {
		return "; wait: it is promoted by itself when it can be"
	}
	text := fmt.Sprintf("; the way out: let %s come back (crm_standby -D -N NODE for a standby, crm_resource --clear -r RESOURCE for a ban), or pgbaton promote --accept-data-loss %s", who, node)
	if r.Soon {
		text = "; it is tried again every few seconds" + text
	}
	return text
}
