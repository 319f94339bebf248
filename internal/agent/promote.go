package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// promote makes this instance the primary, if the rules still say so after what pre-promote found.
func (a *Agent) promote(ctx context.Context) error {
	if why := a.unfit(); why != "" {
		return ocf.Errorf(ocf.ErrGeneric, "not promoted: %s", why)
	}
	f, err := a.look()
	if err != nil {
		return ocf.Errorf(ocf.ErrGeneric, "%w", err)
	}
	switch f.role {
	case primary:
		return a.promotedBefore(ctx)
	case down, parkedDown, stopping:
		if err := a.comeBack(ctx, f); err != nil {
			return err
		}
	}
	some, cancel := a.share(ctx, 0.8)
	defer cancel()
	sess, err := a.connect(some, true)
	if err != nil {
		if a.plan.Known() {
			if err := a.refuseBy(ctx, baton.Refusal{Reason: notReady(err), Starting: true}, a.state.Note); err != nil {
				a.log.Error("refusal", "error", err)
			}
		}
		return ocf.Errorf(ocf.ErrGeneric, "%w", err)
	}
	defer func() { sess.Close() }()

	q, err := a.question(ctx, sess)
	if err != nil {
		return ocf.Errorf(ocf.ErrGeneric, "%w", err)
	}
	verdict, err := a.decide(ctx, sess, &q)
	if err != nil {
		return ocf.Errorf(ocf.ErrGeneric, "%w", err)
	}
	a.hear(q.Bulletins, q.Challenge.Nonce)
	if verdict.Outcome != baton.Promote {
		if a.plan.Known() {
			// Without this Pacemaker would ask this node again and again.
			if err := a.refuse(ctx, verdict.Reason, verdict.Note, q.Challenge.Claim.Seq); err != nil {
				a.log.Error("refusal", "error", err)
			}
		}
		return ocf.Errorf(ocf.ErrGeneric, "not promoted: %s", verdict.Reason)
	}
	a.log.Info("promoting", "change", a.changeNow(), "why", verdict.Reason)

	claim := q.Challenge.Claim
	if err := a.avoidTwins(verdict.Avoid); err != nil {
		return ocf.Errorf(ocf.ErrGeneric, "%w", err)
	}
	if err := a.claim(ctx, claim); err != nil {
		return ocf.Errorf(ocf.ErrGeneric, "%w", err)
	}
	pm, err := a.pg.Postmaster()
	if err != nil {
		return ocf.Errorf(ocf.ErrGeneric, "%w", err)
	}
	asked := a.clock.Now()
	if err := a.do("request-promotion", func() error { return a.pg.RequestPromotion(pm.Process) }); err != nil {
		return ocf.Errorf(ocf.ErrGeneric, "%w", err)
	}
	held := hold{agent: a, sess: sess}
	err = a.poll(ctx, "PostgreSQL to become writable", 2*time.Millisecond, func() (bool, error) {
		if !pm.Alive() {
			return false, fmt.Errorf("the server ended while it was being promoted (log: %s)", a.pg.LogFile)
		}
		in, err := sess.InRecovery(ctx)
		if err != nil || !in {
			return err == nil, err
		}
		if a.clock.Now().Sub(asked) < heldFor {
			return false, nil
		}
		v, err := sess.Standby(ctx)
		if err == nil && v.Replayed < q.Self.Position.LSN {
			if err := held.end(ctx, v.Replayed); err != nil {
				a.log.Warn("what holds up replay is not ended", "error", err)
			}
		}
		return false, nil // it may be writable by now, and have nothing to say as a standby
	})
	if err != nil {
		return ocf.Errorf(ocf.ErrGeneric, "%w", err)
	}
	a.details["promotion_ms"] = strconv.FormatInt(a.clock.Now().Sub(asked).Milliseconds(), 10)
	a.vol.Live, a.vol.Challenge, a.vol.Heard = true, "", nil
	a.vol.Saw = claim.Seq
	a.vol.Asking = nil
	a.vol.Parked = false // if who started it as a standby did not come to say so
	a.vol.Asserted = 0   // the monitor publishes the claim as effective
	a.saveVolatile()
	a.conclude(ctx, sess, claim, verdict)
	a.ensureSentinel()
	return nil
}

// promotedBefore concludes what a promote before this one could not: it was killed after it had asked the server.
func (a *Agent) promotedBefore(ctx context.Context) error {
	i := slices.IndexFunc(a.state.Claims, func(c baton.Claim) bool { return c.Node == a.inv.Node && c.State == baton.Claimed })
	if i < 0 {
		return nil
	}
	sess, err := a.connect(ctx, true)
	if err != nil {
		return ocf.Errorf(ocf.ErrGeneric, "%w", err)
	}
	defer sess.Close()
	if in, err := sess.InRecovery(ctx); err != nil {
		return ocf.Errorf(ocf.ErrGeneric, "whether an earlier promotion of this instance has come through: %w", err)
	} else if in {
		return ocf.Errorf(ocf.ErrGeneric, "an earlier promotion of this instance has not come through yet")
	}
	note := a.state.Note
	if note != nil && note.Nonce != a.state.Claims[i].Note {
		note = nil
	}
	a.vol.Asserted = 0 // the monitor publishes the claim as effective
	a.saveVolatile()
	a.conclude(ctx, sess, a.state.Claims[i], baton.Verdict{Note: note, Reason: "promoted by an action that was cut short"})
	return nil
}

// comeBack starts an instance that is down, to be promoted at once: the roll-back to an old primary.
func (a *Agent) comeBack(ctx context.Context, f facts) error {
	if f.role == stopping {
		// It still archives or feeds a standby; a primary for the clients goes first.
		if err := a.endLingering(ctx, f.postmaster.Process); err != nil {
			return ocf.Errorf(ocf.ErrGeneric, "%w", err)
		}
	}
	if err := a.startAsStandby(ctx); err != nil {
		return err
	}
	if why := a.unfit(); why != "" {
		return ocf.Errorf(ocf.ErrGeneric, "not promoted: %s", why)
	}
	return nil
}

// question collects what decides over this promotion.
func (a *Agent) question(ctx context.Context, sess *postgres.Session) (baton.Question, error) {
	lone := !a.plan.Known()
	q := baton.Question{
		Participants: a.participants(), MaxLag: a.params.MaxLag, Lone: lone, Demoted: a.demoted(),
		// Pre-promote has waited for whoever may still answer. But under load the others are asked only after it.
		Settled: lone || a.clock.Now().Sub(a.began) > settleLimit,
	}
	self, err := a.candidate(ctx, sess, a.state.Note, lone)
	if err != nil {
		return q, err
	}
	q.Self = self
	if h := a.heard(); h != nil {
		q.Challenge, q.Bulletins, q.Ordered = h.Challenge, h.Bulletins, h.Ordered
		q.Recorded, q.Available = a.recorded(ctx, q.Challenge, q.Bulletins), a.present(q.Bulletins)
		return q, nil
	}
	if q.Bulletins, err = a.others(ctx); err != nil {
		if !lone {
			return q, err
		}
		a.log.Warn("no word from the other nodes", "error", err)
		q.Bulletins = []baton.Bulletin{a.bulletin(nil, nil)}
	}
	if lone {
		know := baton.Gather(q.Bulletins, "")
		note, _ := know.Usable("")
		q.Challenge.Claim = a.newClaim(q.Self, know, note)
		return q, nil
	}
	for _, b := range q.Bulletins {
		if b.Node == a.inv.Node && b.Challenge != nil && b.Challenge.Nonce == a.vol.Challenge && a.vol.Challenge != "" {
			q.Challenge = *b.Challenge
			q.Recorded, q.Available = a.recorded(ctx, q.Challenge, q.Bulletins), a.present(q.Bulletins)
			return q, nil
		}
	}
	return q, fmt.Errorf("the pre-promote notification of this attempt did not run here: is notify=true set on the clone?")
}

// settleLimit is how long a promote waits for an answer that is not needed, and may be that of a node that has more.
const settleLimit = 2 * time.Second

// heard is what pre-promote heard from the others, if it is still the last word: an attempt of another node since then
// would have been stored here with a higher sequence number, in answer to its challenge.
func (a *Agent) heard() *journal.Heard {
	h := a.vol.Heard
	if h == nil || !a.plan.Known() || a.age(h.At) > time.Minute || h.Challenge.Claim.Seq+1 != baton.NextSeq(a.state.Claims) {
		return nil
	}
	return h
}

// decide asks the rules, and waits a moment for what may still arrive: pre-promote has waited long before. For answers without
// which nobody can be promoted it waits longer: a claim that a slow disk takes seconds to store is no reason to fail.
func (a *Agent) decide(ctx context.Context, sess *postgres.Session, q *baton.Question) (baton.Verdict, error) {
	var v baton.Verdict
	brief, cancel := a.share(ctx, 0.3)
	defer cancel()
	began := a.clock.Now()
	err := a.poll(brief, "answers or WAL", 10*time.Millisecond, func() (bool, error) {
		if v = a.decideBy(ctx, q); v.Outcome != baton.Wait {
			return true, nil
		}
		if a.clock.Now().Sub(began) > time.Second && (v.Answered || v.Behind || v.Unreachable) {
			return true, nil
		}
		next, err := a.question(ctx, sess)
		if err == nil {
			*q = next
		}
		return false, err
	})
	if v.Outcome == baton.Wait && err != nil && brief.Err() != nil && ctx.Err() == nil {
		return v, nil
	}
	return v, err
}

// newClaim numbers the timeline that a promotion would start: above everything that anybody claimed or that lies in
// pg_wal, which is what PostgreSQL will choose too (findNewestTimeLine in src/backend/access/transam/timeline.c).
func (a *Agent) newClaim(self baton.Candidate, know baton.Knowledge, note *baton.Note) baton.Claim {
	tli := self.Position.Timeline
	for _, c := range know.Claims {
		if c.Open() {
			tli = max(tli, c.Timeline)
		}
	}
	for _, t := range a.histories() {
		tli = max(tli, t)
	}
	c := baton.Claim{
		Seq: baton.NextSeq(know.Claims), Timeline: tli + 1, Parent: self.Position.Timeline, Switch: self.Position.LSN,
		Node: a.inv.Node, Nonce: nonce(), State: baton.Intended,
	}
	if note != nil {
		c.Note = note.Nonce
		if note.Kind != baton.Abandoned {
			c.Parent, c.Switch = note.Timeline, note.End
		}
	}
	return c
}

// claim stores durably that this node is about to start the timeline. The others have stored that it may.
func (a *Agent) claim(ctx context.Context, c baton.Claim) error {
	c.State = baton.Claimed
	a.state.Claims = baton.MergeClaims(a.state.Claims, []baton.Claim{c})
	return a.save("save-claim")
}

// avoidTwins puts a history file into pg_wal for every timeline number up to the claimed one, so that PostgreSQL gives
// none of them a second time ([baton.Placeholder]).
func (a *Agent) avoidTwins(claims []baton.Claim) error {
	there := a.histories()
	for _, c := range claims {
		if slices.Contains(there, c.Timeline) {
			continue
		}
		a.log.Warn("passing over a timeline number", "claim", c)
		name, content := pgdisk.HistoryFileName(c.Timeline), baton.Placeholder(c).String()
		if err := a.do("history-file", func() error { return a.pg.WriteWAL(name, []byte(content)) }); err != nil {
			return err
		}
	}
	return nil
}

// dropPlaceholders takes the history files of an attempt that came to nothing away again, before the server starts: it
// would take the highest for the timeline to follow, and wait for it for ever.
func (a *Agent) dropPlaceholders(ctl pgdisk.Control) error {
	passed := max(ctl.CheckPointTimeline, ctl.MinRecoveryTimeline)
	if started := a.startedTimelines(); len(started) > 0 {
		passed = max(passed, started[0]) // the way to a timeline that does exist leads over them
	}
	for _, t := range a.histories() {
		h, err := pgdisk.ReadHistory(a.walDir(), t)
		if err != nil || !baton.IsPlaceholder(h) || t < passed {
			continue
		}
		path := filepath.Join(a.walDir(), pgdisk.HistoryFileName(t))
		if err := a.do("drop-history-file", func() error { return os.Remove(path) }); err != nil {
			return err
		}
	}
	return nil
}

// conclude checks where the new timeline forks, and writes down what happened. The instance is writable by now: nothing
// here may fail the promotion.
func (a *Agent) conclude(ctx context.Context, sess *postgres.Session, claim baton.Claim, v baton.Verdict) {
	row, err := sess.Row(ctx, "select pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn())")
	if err == nil && len(row) == 1 && len(row[0]) == 24 {
		if t, err := strconv.ParseUint(row[0][:8], 16, 32); err == nil {
			claim.Timeline = pgdisk.TimelineID(t)
		}
	}
	claim.State = baton.Effective
	h, err := pgdisk.ReadHistory(a.walDir(), claim.Timeline)
	if err == nil && len(h) > 0 {
		claim.Parent, claim.Switch = h[len(h)-1].Timeline, h[len(h)-1].Switch
		a.details["switch_point"] = claim.Switch.String()
	}
	if v.Note != nil {
		a.details["note"], a.details["proof"] = v.Note.String(), "held"
		if claim.Switch == v.Note.End {
			a.details["result"] = journal.NothingLost
			a.log.Info("promoted", "change", a.changeNow(), "timeline", claim.Timeline, "switch_point", claim.Switch, "note_end", v.Note.End, "result", journal.NothingLost)
		} else {
			a.details["result"] = fmt.Sprintf("the switch point %s is not the end of the note, %s", claim.Switch, v.Note.End)
			a.log.Error("promoted", "change", a.changeNow(), "timeline", claim.Timeline, "result", a.details["result"])
		}
	} else {
		missing := "not known"
		if v.Measured || v.Missing > 0 {
			missing = strconv.FormatInt(v.Missing, 10)
			a.details["missing_bytes"] = missing
		}
		a.log.Info("promoted", "change", a.changeNow(), "timeline", claim.Timeline, "switch_point", claim.Switch, "missing_bytes", missing, "result", v.Reason)
	}
	if ctl, err := pgdisk.ReadControl(a.pg.DataDir); err == nil {
		claim.CRC = a.identity(pgdisk.OpenWAL(a.pg.DataDir, ctl), claim.Timeline)
	}
	a.details["timeline"] = strconv.FormatUint(uint64(claim.Timeline), 10)
	a.state.Refusal, a.state.Left, a.state.Away = nil, nil, false
	a.state.Claims = baton.MergeClaims(a.state.Claims, []baton.Claim{claim})
	if err := a.save("save-effective"); err != nil {
		a.log.Error("claim not marked as effective", "error", err)
	}
	a.record("done", v.Reason, true)
}
