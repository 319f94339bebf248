package agent

import (
	"context"
	"errors"
	"fmt"
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

// assertInterval is how often scores and bulletin are asserted although nothing seems to have changed.
const assertInterval = time.Minute

// retryAfter is how long a refusal lasts where there is neither a primary nor a note whose owner starts again, for whatever was
// missing to come.
const retryAfter = 30 * time.Second

// retrySoon is the same where what was missing may be there in seconds: whoever answered reads on in its WAL from where it
// came, and says the next time how far that goes.
const retrySoon = 5 * time.Second

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
		return err == nil && st.Refusal != nil && st.Refusal.Crashed
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
	if err := a.assertScore(ctx, score, forbid); err != nil {
		return err
	}
	a.assertStatus(ctx, status)
	if a.kept() > 0 {
		a.spawnAftercare()
		return nil
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
	text := fmt.Sprintf("; the way out: let %s come back (crm_standby -D -N NODE for a standby, crm_resource --clear -r CLONE for a ban), or pgbaton promote --accept-data-loss %s", who, node)
	if r.Soon {
		text = "; it is tried again every few seconds" + text
	}
	return text
}
