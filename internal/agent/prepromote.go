package agent

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// How often what is waited for is asked for. Reading bulletins spawns a process, reading WAL does not.
const (
	noteInterval      = 20 * time.Millisecond
	aheadInterval     = 20 * time.Millisecond
	challengeInterval = 5 * time.Millisecond
	answerInterval    = 10 * time.Millisecond
	proofInterval     = 5 * time.Millisecond
)

// How long an attempt goes on without progress.
const (
	noteLimit       = 500 * time.Millisecond // the old primary's note, published before its demote ended
	silenceLimit    = time.Second            // nodes that do not answer
	crashStallLimit = 200 * time.Millisecond // WAL of a primary of which nothing runs any more: what was on the wire
	askedFor        = time.Minute            // a challenge published ahead is good for the attempt it was meant for
	stallLimit      = 2 * time.Second        // WAL that does not arrive
)

// prePromoteTarget asks everybody, waits for the proof, and refuses without it.
func (a *Agent) prePromoteTarget(ctx context.Context) error {
	if why := a.unfit(); why != "" {
		return a.refuse(ctx, why, a.state.Note, 0)
	}
	f, err := a.look()
	if err != nil {
		return a.refuse(ctx, err.Error(), a.state.Note, 0)
	}
	switch f.role {
	case primary:
		return nil
	case parkedDown:
		if _, err := a.unpark(ctx); err != nil {
			return a.refuse(ctx, err.Error(), a.state.Note, 0)
		}
		if why := a.unfit(); why != "" {
			return a.refuse(ctx, why, a.state.Note, 0)
		}
	}
	var sess *postgres.Session
	if f.role == standby {
		// Not a server that is stopping: it may hold its socket and accept nothing, for as long as authentication_timeout
		// allows a client to be silent. The position of such a one is read from its disk.
		brief, cancel := context.WithTimeout(ctx, silenceLimit)
		if s, err := a.pg.Connect(brief); err == nil {
			sess = s
			defer sess.Close()
		}
		cancel()
	}
	challenge, ok := a.asked()
	if !ok {
		list, err := a.others(ctx)
		if err != nil {
			return a.refuse(ctx, err.Error(), a.state.Note, 0)
		}
		a.learn(list)
		if challenge, err = a.ask(ctx, list, sess); err != nil {
			return a.refuse(ctx, err.Error(), a.state.Note, 0)
		}
	}
	a.vol.Asked, a.vol.Heard = nil, nil
	a.saveVolatile()
	verdict, heard := a.awaitVerdict(ctx, challenge, sess)
	a.hear(heard, challenge.Nonce)
	if verdict.Unreachable && !verdict.Behind && a.recorded(ctx, challenge, heard) == nil {
		if recorded, err := a.recordClaim(ctx, challenge, heard); err != nil || recorded {
			return err
		}
	}
	if verdict.Outcome == baton.Wait && !verdict.Answered && !verdict.Unreachable && !verdict.Behind && a.provenSoFar(ctx, verdict.Note, sess) {
		// Pacemaker under load runs one action at a time (throttle_get_total_job_limit in daemons/controld): the others
		// may be asked only when this notification has ended. promote comes after all of them, and decides.
		a.log.Info("not everybody has answered yet", "change", a.changeNow(), "missing", verdict.Reason)
		return nil
	}
	var order *baton.Order
	if verdict.Outcome != baton.Promote {
		if verdict, order = a.ordered(ctx, challenge, heard, sess, verdict); order == nil {
			return a.refuseBy(ctx, baton.Refusal{Claim: challenge.Claim.Seq, Reason: verdict.Reason, Soon: verdict.Soon || verdict.Unreachable}, verdict.Note)
		}
	}
	if f.role == standby {
		if why := a.awaitReady(ctx, sess); why != nil {
			return a.refuseBy(ctx, baton.Refusal{Claim: challenge.Claim.Seq, Reason: notReady(why), Starting: true}, verdict.Note)
		}
	}
	a.vol.Heard = &journal.Heard{Challenge: challenge, Bulletins: heard, At: a.clock.Now(), Ordered: order}
	a.saveVolatile()
	a.details["proof"] = verdict.Reason
	a.log.Info("ready to be promoted", "change", a.changeNow(), "why", verdict.Reason)
	return nil
}

// awaitReady waits until the server can be asked to be promoted. One that recovers from a crash cannot, and one that has
// gigabytes of WAL to replay would not be done within the time of a promote, which fails then, goes on failing, and has the
// server begin its replay anew each time.
func (a *Agent) awaitReady(ctx context.Context, sess *postgres.Session) error {
	half, cancel := a.share(ctx, 0.5)
	defer cancel()
	if sess == nil {
		var err error
		if sess, err = a.connect(half, true); err != nil {
			return fmt.Errorf("its server takes no connections yet: %w", err)
		}
		defer sess.Close()
	}
	held := hold{agent: a, sess: sess}
	var end, left pgdisk.LSN
	err := a.poll(half, "the replay of its WAL", 50*time.Millisecond, func() (bool, error) {
		v, err := sess.Standby(half)
		if err != nil {
			return false, err
		}
		if end = max(end, v.Received); end == 0 { // it has not been through what lay on its disk
			self, err := a.candidate(half, sess, nil, false)
			if err != nil {
				return false, err
			}
			end = self.Position.LSN
		}
		left = end - min(v.Replayed, end)
		if left <= replayBytes {
			return true, nil
		}
		if err := a.noDelay(); err != nil {
			return false, err
		}
		return false, held.end(half, v.Replayed)
	})
	if err != nil {
		return fmt.Errorf("it has %d bytes of WAL to replay: %w", left, err)
	}
	return nil
}

func notReady(why error) string {
	return fmt.Sprintf("nothing speaks against it, but %v", why)
}

// decideBy asks the rules, and first how the votes are counted where it depends on that.
func (a *Agent) decideBy(ctx context.Context, q *baton.Question) baton.Verdict {
	v := baton.Decide(*q)
	if !v.Uncounted {
		return v
	}
	if a.votes == nil {
		votes, err := a.cluster.Votes(ctx)
		if err != nil {
			a.log.Warn("how Corosync counts the votes is not known: every participant must answer", "error", err)
		}
		a.votes = &votes
	}
	q.Votes = a.votes
	return baton.Decide(*q)
}

// recordClaim puts the claim where also nodes keep it on disk that run no instance and cannot answer: into the cluster's
// configuration. This is for when the quorum that must know of it cannot be had otherwise: a standby is down for
// maintenance and the primary's node is lost. It aborts the plan; the next one finds it recorded and goes on from here.
func (a *Agent) recordClaim(ctx context.Context, challenge baton.Challenge, heard []baton.Bulletin) (bool, error) {
	n := len(a.participants())
	if len(a.members(ctx, heard)) < min(n, max(2, baton.Quorum(n))) {
		return false, nil
	}
	a.log.Info("too few nodes run an instance to store the claim: it goes into the cluster's configuration", "claim", challenge.Claim)
	if err := a.do("record-claim", func() error { return a.cluster.RecordClaim(ctx, a.state.SystemID, challenge.Claim) }); err != nil {
		a.log.Warn("claim not recorded", "error", err)
		return false, nil
	}
	a.vol.Forgotten = false
	a.vol.Recorded, a.vol.Asked = challenge.Nonce, &journal.Asked{Challenge: challenge, At: a.clock.Now()}
	a.saveVolatile()
	return true, nil
}

// recorded lists the participants that have the claim in their copy of the cluster's configuration, nil if it is not
// there.
func (a *Agent) recorded(ctx context.Context, challenge baton.Challenge, list []baton.Bulletin) []string {
	if a.vol.Recorded == "" || a.vol.Recorded != challenge.Nonce {
		return nil
	}
	return a.members(ctx, list)
}

// members are the participants that are members of the cluster now: attributes go with their node. One that was booted and
// runs no instance has published nothing since, and is told by Pacemaker's word alone.
func (a *Agent) members(ctx context.Context, list []baton.Bulletin) []string {
	if a.online == nil {
		var err error
		if a.online, err = a.cluster.Online(ctx); err != nil {
			a.log.Warn("which nodes are online is not known", "error", err)
		}
	}
	return slices.DeleteFunc(a.participants(), func(n string) bool {
		return n != a.inv.Node && !slices.Contains(a.online, n) && !slices.ContainsFunc(list, func(b baton.Bulletin) bool { return b.Node == n })
	})
}

// demoted is the node whose primary the plan under way ends and does not take away.
func (a *Agent) demoted() string {
	for _, n := range a.plan.Demote {
		if n != a.inv.Node && !pacemaker.Contains(a.plan.Stop, n) {
			return n
		}
	}
	return ""
}

// ordered asks the rules once more where they said no, with the order of a person if there is one.
func (a *Agent) ordered(ctx context.Context, challenge baton.Challenge, heard []baton.Bulletin, sess *postgres.Session, no baton.Verdict) (baton.Verdict, *baton.Order) {
	order, err := a.cluster.Order(ctx, a.inv.Node)
	if err != nil || order == nil {
		return no, nil
	}
	self, err := a.candidate(ctx, sess, a.state.Note, false)
	if err != nil {
		return no, nil
	}
	v := a.decideBy(ctx, &baton.Question{
		Self: self, Bulletins: heard, Challenge: challenge, Participants: a.participants(), Available: a.present(heard),
		Recorded: a.recorded(ctx, challenge, heard), Demoted: a.demoted(), Settled: true, MaxLag: a.params.MaxLag, Ordered: order,
	})
	if v.Outcome != baton.Promote {
		return v, nil
	}
	return v, order
}

// provenSoFar reports whether nothing but answers can be missing: this node has what the note names, if there is one; and
// if there is none, or only one that positions are compared in spite of, it has not left in between, which needs more than
// answers.
func (a *Agent) provenSoFar(ctx context.Context, note *baton.Note, sess *postgres.Session) bool {
	if note == nil || note.Kind == baton.Abandoned {
		return a.state.Left == nil
	}
	self, err := a.candidate(ctx, sess, note, false)
	return err == nil && baton.Proof(*note, self) == nil
}

// ask publishes a challenge: the claim that this node is about to make, for the others to store and to answer with
// their positions.
func (a *Agent) ask(ctx context.Context, list []baton.Bulletin, sess *postgres.Session) (baton.Challenge, error) {
	know := baton.Gather(list, "")
	note, _ := know.UsableFor(a.inv.Node)
	self, err := a.candidate(ctx, sess, know.Note, false)
	if err != nil {
		return baton.Challenge{}, err
	}
	c := baton.Challenge{Nonce: nonce()}
	c.Claim = a.newClaim(self, know, note)
	c.Claim.Nonce = c.Nonce
	a.state.Claims = baton.MergeClaims(a.state.Claims, []baton.Claim{c.Claim})
	if err := a.save("save-intent"); err != nil {
		return c, err
	}
	own := &baton.Answer{Challenge: c.Nonce, SystemID: self.SystemID, Position: self.Position, Identity: self.Identity, Live: a.vol.Live, Saw: a.vol.Saw, Left: a.state.Left != nil, Away: a.state.Away}
	a.vol.Asking, a.vol.LastAnswer, a.vol.Challenge, a.vol.Asked = &c, own, c.Nonce, nil
	a.saveVolatile()
	if err := a.publish(ctx, "publish-challenge", &c, own); err != nil {
		return c, err
	}
	// Only now: a challenge that nobody has seen must be asked anew.
	a.vol.Asked = &journal.Asked{Challenge: c, At: a.clock.Now()}
	a.saveVolatile()
	a.log.Info("asking for answers", "change", a.changeNow(), "claim", c.Claim, "position", self.Position)
	return c, nil
}

// asked returns the challenge that this node published ahead, in post-demote, if no attempt came between.
func (a *Agent) asked() (baton.Challenge, bool) {
	asked := a.vol.Asked
	if asked == nil || a.age(asked.At) > askedFor || asked.Challenge.Claim.Seq+1 != baton.NextSeq(a.state.Claims) {
		return baton.Challenge{}, false
	}
	return asked.Challenge, true
}

// awaitVerdict asks the rules again and again while answers and WAL come in. It gives up when nothing moves any more;
// it never settles for the answers that are there: promote runs after everybody's pre-promote, and does. An old primary that has to
// leave was stopped before, and sends nothing any more: the others are asked the sooner.
func (a *Agent) awaitVerdict(ctx context.Context, challenge baton.Challenge, sess *postgres.Session) (baton.Verdict, []baton.Bulletin) {
	note := a.state.Note // until the rules say which decides
	began := a.clock.Now()
	patience := func(v baton.Verdict) time.Duration {
		switch {
		case v.Answered && a.cold:
			return crashStallLimit // there has been no primary since the nodes booted that could send
		case note != nil && note.Kind != baton.Clean:
			return crashStallLimit
		}
		return stallLimit
	}
	moved, at := began, pgdisk.LSN(0)
	var v baton.Verdict
	var list []baton.Bulletin
	needAnswers := true
	most, cancel := a.share(ctx, 0.8) // the rest is for saying no
	defer cancel()
	err := a.poll(most, "proof and answers", proofInterval, func() (bool, error) {
		now := a.clock.Now()
		if needAnswers {
			if list != nil {
				a.clock.Sleep(ctx, answerInterval)
			}
			next, err := a.others(ctx)
			if err != nil {
				return false, err
			}
			list = next
		}
		self, err := a.candidate(ctx, sess, note, false)
		if err != nil {
			return false, err
		}
		if self.Position.LSN != at {
			moved, at = now, self.Position.LSN
		}
		q := baton.Question{
			Self: self, Bulletins: list, Challenge: challenge, Participants: a.participants(), Available: a.present(list),
			Recorded: a.recorded(ctx, challenge, list), Demoted: a.demoted(), MaxLag: a.params.MaxLag,
		}
		v = a.decideBy(ctx, &q)
		if v.Outcome != baton.Wait {
			return true, nil
		}
		needAnswers = !v.Answered
		note = cmp.Or(v.Note, note)
		a.hear(list, challenge.Nonce)
		if !v.Answered && !v.Behind && (v.Unreachable || now.Sub(began) > silenceLimit) {
			return true, nil
		}
		if v.Behind && now.Sub(moved) > patience(v) {
			return true, nil
		}
		return false, nil
	})
	a.details["waited_ms"] = strconv.FormatInt(a.clock.Now().Sub(began).Milliseconds(), 10)
	if err != nil {
		return baton.Verdict{Outcome: baton.Refuse, Reason: err.Error(), Note: note}, nil
	}
	if v.Outcome == baton.Wait {
		v.Reason = fmt.Sprintf("%s (nothing moved for %s)", v.Reason, a.clock.Now().Sub(moved).Round(100*time.Millisecond))
	}
	return v, list
}
