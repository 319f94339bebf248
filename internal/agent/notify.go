package agent

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

// notify is the part that every node has in a change of roles. Its result is ignored by Pacemaker and a time-out kills
// it, so nothing may depend on it having run; and every phase waits for it on all nodes, so it is short.
func (a *Agent) notify(ctx context.Context) error {
	switch a.plan.Phase + "-" + a.plan.Operation {
	case "pre-demote":
		return a.preDemote(ctx)
	case "post-demote":
		return a.postDemote(ctx)
	case "pre-promote":
		if pacemaker.Contains(a.plan.Promote, a.inv.Node) {
			return a.prePromoteTarget(ctx)
		}
		return a.prePromoteOther(ctx)
	case "post-promote":
		return a.postPromote(ctx)
	}
	return nil
}

// postDemote copies the note of the old primary: a node that leaves cleanly takes its attributes along before anybody
// may have needed them. The target asks its questions already now and the others answer, so that nobody has to wait for
// either in pre-promote.
func (a *Agent) postDemote(ctx context.Context) error {
	target := pacemaker.Contains(a.plan.Promote, a.inv.Node)
	if pacemaker.Contains(a.plan.Demote, a.inv.Node) {
		if target || a.plan.Restarts(a.inv.Node) {
			return nil
		}
		a.answerLater()
		return a.answerAhead(ctx) // also one that is stopped next: its answer stays as long as its node is a member
	}
	list, err := a.awaitNote(ctx)
	if err != nil || list == nil {
		if !target {
			a.answerLater()
		}
		return err
	}
	news := a.learn(list)
	if target {
		// As in pre-promote: a postmaster may hold its socket and accept nothing.
		brief, cancel := context.WithTimeout(ctx, silenceLimit)
		sess, err := a.pg.Connect(brief)
		cancel()
		if err == nil {
			defer sess.Close()
			_, err = a.ask(ctx, list, sess) // which saves what was learnt
			return err
		}
	}
	if news {
		if err := a.save("copy-note"); err != nil {
			return err
		}
	}
	if target {
		return nil // pre-promote asks
	}
	a.answerLater()
	return a.answerAhead(ctx)
}

// answerLater leaves a process behind that answers in pre-promote, if positions will be compared there. Pacemaker under load
// runs one action at a time: the target's pre-promote may be over before this node's begins, and a promote that learns only then
// of somebody who has more fails.
func (a *Agent) answerLater() {
	note, _ := baton.Knowledge{Note: a.state.Note, Claims: a.state.Claims}.Settled().Usable("")
	proof := note != nil && note.Kind != baton.Abandoned && pacemaker.Contains(a.plan.Demote, note.Node)
	if proof || len(a.plan.Promote) == 0 || a.plan.Leaves(a.inv.Node) {
		return
	}
	a.spawnDetached(answerAction)
}

// awaitNote waits for the note of the old primary, and returns the bulletins that show it; none if its node left and took
// its attributes along. The error says that the demote failed, or that its note did not get out: pre-promote asks anew.
func (a *Agent) awaitNote(ctx context.Context) (list []baton.Bulletin, err error) {
	// demote publishes the note before it ends; this is only the way from its attrd to ours.
	wait, cancel := context.WithTimeout(ctx, noteLimit)
	defer cancel()
	gone := false
	err = a.poll(wait, "the note of "+a.change.From, noteInterval, func() (bool, error) {
		var err error
		if list, err = a.others(ctx); err != nil {
			return false, err
		}
		gone = !slices.ContainsFunc(list, func(b baton.Bulletin) bool { return pacemaker.Contains(a.plan.Demote, b.Node) })
		return gone || slices.ContainsFunc(list, a.endedJustNow), nil
	})
	if gone {
		list = nil
	}
	return list, err
}

// endedJustNow reports whether a bulletin holds its own node's unused note, and the plan demotes that node.
func (a *Agent) endedJustNow(b baton.Bulletin) bool {
	if !pacemaker.Contains(a.plan.Demote, b.Node) || b.Note == nil || b.Note.Node != b.Node {
		return false
	}
	// The target of this very plan may have asked already.
	_, err := baton.Knowledge{Note: b.Note, Claims: a.state.Claims}.Settled().Usable("")
	return err == nil
}

// postPromote only notes that there is a primary: what is worth knowing of it, its monitor publishes and the others'
// monitors ask for, when clients do not wait for an address any more.
func (a *Agent) postPromote(context.Context) error {
	a.vol.Live = true
	a.saveVolatile()
	if a.vol.Parked && !a.plan.Leaves(a.inv.Node) && !a.plan.Restarts(a.inv.Node) {
		a.spawnAftercare()
	}
	return nil
}

// answerAhead answers the target already in post-demote. A target that does not ask now asks in pre-promote.
func (a *Agent) answerAhead(ctx context.Context) error {
	if len(a.plan.Promote) == 0 {
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, aheadLimit)
	defer cancel()
	challenge, err := a.awaitChallenge(wait, aheadInterval)
	if err != nil {
		return nil
	}
	return a.answerTo(ctx, challenge)
}

// prePromoteOther answers the target's challenge: its claim goes to this node's disk first.
func (a *Agent) prePromoteOther(ctx context.Context) error {
	if len(a.plan.Promote) == 0 {
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, challengeLimit)
	defer cancel()
	var challenge *baton.Challenge
	answered := false
	err := a.poll(wait, "a challenge from "+a.plan.Promote[0], challengeInterval, func() (bool, error) {
		list, err := a.bulletins(ctx)
		if err != nil {
			return false, err
		}
		challenge = a.inForce(list)
		answered = challenge != nil && a.answered(list, challenge)
		return challenge != nil, nil
	})
	if err == nil && !answered {
		if err := a.answerTo(ctx, challenge); err != nil {
			return err
		}
	}
	if err != nil {
		// Pacemaker under load runs one action at a time, and the target's may come only when this one has ended.
		a.log.Info("no challenge yet: answering when it comes", "error", err)
		a.spawnDetached(answerAction)
		return nil
	}
	// A target whose attempt was cut short asks anew, and this may have been the old challenge.
	a.spawnDetached(answerAction, answeredOne+"=1")
	return nil
}

// inForce is the challenge of the target of the plan. One that somebody else's attempt has followed was left by an attempt
// that was cut short: its target asks anew, and an answer to it would be the wrong one.
func (a *Agent) inForce(list []baton.Bulletin) *baton.Challenge {
	for _, b := range list {
		if b.Node != a.plan.Promote[0] || b.Challenge == nil {
			continue
		}
		a.learn(list)
		if b.Challenge.Claim.Seq+1 == baton.NextSeq(a.state.Claims) {
			return b.Challenge
		}
	}
	return nil
}

// answered reports whether everybody can see this node's answer to a challenge.
func (a *Agent) answered(list []baton.Bulletin, challenge *baton.Challenge) bool {
	return slices.ContainsFunc(list, func(b baton.Bulletin) bool {
		return b.Node == a.inv.Node && b.Answer != nil && b.Answer.Challenge == challenge.Nonce
	})
}

// answerAction is a hidden action: it answers a challenge that comes after the pre-promote notification of this node.
const answerAction = "answer"

// answeredOne is set in its environment if the target has been answered. That challenge may have served before this action
// looks for the first time.
const answeredOne = "PGBATON_ANSWERED"

// How long a challenge is waited for: in the notifications, for which everybody waits, and after them.
const (
	aheadLimit     = 250 * time.Millisecond
	challengeLimit = 500 * time.Millisecond
	lateLimit      = 30 * time.Second
	lateInterval   = 150 * time.Millisecond // well within silenceLimit, for which the target waits
	againInterval  = 800 * time.Millisecond // whose challenge was answered asks anew only if its attempt was cut short
)

// lateAnswer waits for challenges of the target of the plan that it was started for, and answers them. It ends when the one that
// was answered has served. The lock is held for an answer only, never while it waits.
func (a *Agent) lateAnswer(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, lateLimit)
	defer cancel()
	every, answered := lateInterval, a.env[answeredOne] != ""
	if answered {
		every = againInterval
	}
	next := baton.NextSeq(a.state.Claims)
	a.clock.Sleep(wait, every) // the target goes first
	err := a.poll(wait, "a challenge from "+a.plan.Promote[0], every, func() (bool, error) {
		list, err := a.bulletins(wait)
		if err != nil {
			return false, err
		}
		challenge := a.inForce(list)
		if challenge == nil {
			return answered || a.hasAsked(list, next), nil // it was taken back: promoted, or refused
		}
		if answered = a.answered(list, challenge); answered {
			return false, nil
		}
		answered = true
		return false, a.answerHeld(wait)
	})
	if wait.Err() != nil {
		return nil // the plan was dropped
	}
	return err
}

// hasAsked reports whether the target has made a claim with a number of next or above, and so a challenge.
func (a *Agent) hasAsked(list []baton.Bulletin, next uint64) bool {
	return slices.ContainsFunc(list, func(b baton.Bulletin) bool {
		return slices.ContainsFunc(b.Claims, func(c baton.Claim) bool { return c.Node == a.plan.Promote[0] && c.Seq >= next })
	})
}

// answerHeld answers under the lock, unless a notification of this node has done so meanwhile.
func (a *Agent) answerHeld(ctx context.Context) error {
	release, err := a.hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	challenge, err := a.challenge(ctx)
	if err != nil || challenge == nil {
		return err
	}
	return a.answerTo(ctx, challenge)
}

// awaitChallenge waits for a challenge of the target that this node has not answered yet.
func (a *Agent) awaitChallenge(ctx context.Context, every time.Duration) (challenge *baton.Challenge, err error) {
	err = a.poll(ctx, "a challenge from "+a.plan.Promote[0], every, func() (bool, error) {
		challenge, err = a.challenge(ctx)
		return challenge != nil, err
	})
	return challenge, err
}

// challenge is the target's, nil if there is none that this node has not answered yet. What was published with it is
// learnt.
func (a *Agent) challenge(ctx context.Context) (*baton.Challenge, error) {
	list, err := a.bulletins(ctx)
	if err != nil {
		return nil, err
	}
	return a.unanswered(list), nil
}

func (a *Agent) unanswered(list []baton.Bulletin) *baton.Challenge {
	challenge := a.inForce(list)
	if challenge == nil || a.answered(list, challenge) {
		return nil
	}
	return challenge
}

// answerTo stores the claim and answers with this node's position.
func (a *Agent) answerTo(ctx context.Context, challenge *baton.Challenge) error {
	known := a.state.Claims
	a.state.Claims = baton.MergeClaims(a.state.Claims, []baton.Claim{challenge.Claim})
	if err := a.save("save-intent"); err != nil {
		// Silence would count as that of a node that is gone. Of all answers this one needs no claim that is stored: it forbids.
		a.state.Claims = known
		if ans := a.answer(ctx, challenge.Nonce); ans.Writable {
			return errors.Join(err, a.publish(ctx, "publish-answer", nil, ans))
		}
		return err
	}
	ans := a.answer(ctx, challenge.Nonce)
	// After the answer: an answer tells what was seen before. And not more than that: a node that was just switched on
	// answers the first attempt of a cold start, too, and learns by that nothing of a primary that is missing.
	a.vol.Saw = baton.Attend(a.vol.Saw, a.state.Claims, challenge.Claim)
	a.vol.LastAnswer = ans
	a.saveVolatile()
	a.details["answer"] = ans.Position.String()
	a.log.Info("answering", "to", challenge.Claim.Node, "claim", challenge.Claim, "position", ans.Position, "unfit", ans.Unfit)
	if ans.Unsure {
		a.spawnDetached(readAction)
	}
	return a.publish(ctx, "publish-answer", nil, ans)
}
