package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// bulletin is what this node publishes: all of it follows from its state.
func (a *Agent) bulletin(challenge *baton.Challenge, answer *baton.Answer) baton.Bulletin {
	if challenge == nil {
		challenge = a.vol.Asking
	}
	if answer == nil {
		answer = a.vol.LastAnswer // a monitor in the middle of somebody's attempt must not take it back
	}
	return baton.Bulletin{Node: a.inv.Node, SystemID: a.state.SystemID, Note: a.state.Note, Claims: a.state.Claims, Challenge: challenge, Answer: answer, Primary: a.vol.Primary}
}

// publish makes the bulletin known. What is published is already on this node's disk.
func (a *Agent) publish(ctx context.Context, effect string, challenge *baton.Challenge, answer *baton.Answer) error {
	return a.do(effect, func() error { return a.cluster.Publish(ctx, a.bulletin(challenge, answer)) })
}

// others reads every node's bulletin and puts this node's own, fresh from its disk, in place of what was published.
func (a *Agent) others(ctx context.Context) ([]baton.Bulletin, error) {
	list, err := a.bulletins(ctx)
	if err != nil {
		return nil, err
	}
	for n := range list {
		if list[n].Node == a.inv.Node {
			list[n].Note, list[n].Claims = newer(a.state.Note, list[n].Note), baton.MergeClaims(list[n].Claims, a.state.Claims)
			list[n].Primary = a.vol.Primary
			return list, nil
		}
	}
	return append(list, a.bulletin(nil, nil)), nil
}

// bulletins reads every node's bulletin. What speaks of another database cluster, before a pg_upgrade or a new initdb, says
// nothing about this one.
func (a *Agent) bulletins(ctx context.Context) ([]baton.Bulletin, error) {
	list, err := a.cluster.Bulletins(ctx)
	return slices.DeleteFunc(list, func(b baton.Bulletin) bool {
		return b.SystemID != 0 && a.state.SystemID != 0 && b.SystemID != a.state.SystemID
	}), err
}

// identify makes sure that what this node knows is about the database cluster in its data directory. With another system
// identifier everything begins anew. It reports whether it changed anything.
func (a *Agent) identify(ctl pgdisk.Control) bool {
	if a.state.SystemID == ctl.SystemIdentifier {
		return false
	}
	if a.state.SystemID != 0 {
		a.log.Warn("another database cluster than before (pg_upgrade, initdb?): what was known of the old one is forgotten",
			"system_identifier", ctl.SystemIdentifier, "was", a.state.SystemID, "note", a.state.Note, "claims", len(a.state.Claims))
		a.state.Note, a.state.Claims, a.state.Refusal, a.state.Left, a.state.Away = nil, nil, nil, nil, false
		a.vol.Asking, a.vol.LastAnswer, a.vol.Primary, a.vol.Asked, a.vol.Heard = nil, nil, nil, nil, nil
	}
	if len(a.state.Claims) == 0 {
		a.vol.Live, a.vol.Saw = false, 0 // the claims are numbered anew
	}
	a.state.SystemID = ctl.SystemIdentifier
	return true
}

func newer(a, b *baton.Note) *baton.Note {
	if a == nil || (b != nil && b.NewerThan(a)) {
		return b
	}
	return a
}

// learn takes over what the bulletins say and this node does not have on its disk yet. It reports whether there was
// anything new.
func (a *Agent) learn(bulletins []baton.Bulletin) bool {
	know := baton.Gather(bulletins, "")
	changed := false
	if know.Note != nil && know.Note.NewerThan(a.state.Note) {
		a.state.Note, changed = know.Note, true
	}
	if claims := baton.MergeClaims(know.Claims, a.state.Claims); !slices.Equal(claims, a.state.Claims) {
		a.state.Claims, changed = claims, true
	}
	for _, b := range bulletins {
		if !slices.Contains(a.state.Participants, b.Node) {
			a.state.Participants = append(a.state.Participants, b.Node)
			changed = true
		}
	}
	slices.Sort(a.state.Participants)
	return changed
}

// participants are the nodes that ever published a bulletin and still belong to the cluster.
func (a *Agent) participants() []string {
	list := []string{a.inv.Node}
	for _, n := range a.state.Participants {
		if n != a.inv.Node && (!a.plan.Known() || slices.Contains(a.plan.All, n)) {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list
}

// present are the nodes from which an answer may be expected: online, with an instance by the plan, unless the plan takes
// them away and their attributes are gone already. A fenced node is still called available in the plan that it is fenced
// in.
func (a *Agent) present(bulletins []baton.Bulletin) []string {
	var list []string
	for _, n := range a.plan.Available {
		runs := slices.Contains(a.plan.Active, n) || slices.Contains(a.plan.Start, n)
		leaves := a.plan.Leaves(n)
		if runs && (!leaves || slices.ContainsFunc(bulletins, func(b baton.Bulletin) bool { return b.Node == n })) {
			list = append(list, n)
		}
	}
	return list
}

// answerLimit bounds the look at one's own WAL: everybody waits for a node whose server or disk hangs, and one that is not
// the target must not hold them up for more than a second.
const answerLimit = 500 * time.Millisecond

// answer is this node's reply to a challenge: where its WAL ends now.
func (a *Agent) answer(ctx context.Context, challenge string) *baton.Answer {
	ans := &baton.Answer{Challenge: challenge, Live: a.vol.Live, Saw: a.vol.Saw, Left: a.state.Left != nil, Away: a.state.Away}
	if ans.Unfit = a.unfit(); ans.Unfit != "" {
		return ans
	}
	f, err := a.look()
	if err != nil {
		ans.Unfit = err.Error()
		return ans
	}
	ans.SystemID, ans.Writable = f.control.SystemIdentifier, f.role == primary
	if a.dead() {
		ans.Unfit = a.state.Refusal.Reason
	}
	if f.role == primary {
		ans.Position = pgdisk.Position{Timeline: f.control.CheckPointTimeline, LSN: f.control.CheckPoint}
		return ans
	}
	if a.ownNote() {
		// Nobody has written behind it, and the server has just begun to start: asking it would be waiting for it.
		ans.Position = a.state.Note.Position()
		ans.Identity = a.identity(pgdisk.OpenWAL(a.pg.DataDir, f.control), ans.Position.Timeline)
		return ans
	}
	brief, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	c, err := a.measure(brief, f, a.state.Note, false)
	if err != nil {
		// Its disk may be slow, and there may be much to read. Whoever is chosen must not be chosen because this node was slow.
		var why error
		if ans.Position, why = a.said(ctx, f); why != nil {
			ans.Position = c.Position
			ans.Unfit = cmp.Or(ans.Unfit, err.Error())
			ans.Unsure = brief.Err() != nil && !a.dead()
		}
		return ans
	}
	ans.Position, ans.Identity = c.Position, c.Identity
	if v := a.judge(brief, c, f.control); v.Rejoin == baton.Rewind || v.Rejoin == baton.Clone {
		ans.Unfit = "diverged: " + v.Reason
	}
	return ans
}

// readAction is a hidden action: it reads on in the WAL of an instance that could not say in time how far that goes, so that the
// next answer can, and whoever else is to be promoted need not wait for as many answers as it takes.
const readAction = "read"

// readOn holds no lock while it reads.
func (a *Agent) readOn(ctx context.Context) error {
	brief, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	release, err := a.flock(brief, "read.lock")
	cancel()
	if err != nil {
		return nil // another one is at it
	}
	defer release()
	a.unlocked = true
	most, cancel := a.share(ctx, 0.8)
	_, err = a.candidate(most, nil, nil, false)
	cancel()
	found := a.vol.Found
	unlock, lockErr := a.hold(ctx)
	if lockErr != nil || found == nil {
		return errors.Join(err, lockErr)
	}
	defer unlock()
	if a.vol.Found != nil { // else the instance was started anew
		a.vol.Found = found
		a.saveVolatile()
	}
	return nil
}

// measure reads this instance's position, through a session if it takes one.
func (a *Agent) measure(ctx context.Context, f facts, note *baton.Note, full bool) (baton.Candidate, error) {
	if f.role == standby {
		brief, cancel := context.WithTimeout(ctx, connectLimit)
		defer cancel()
		if sess, err := a.pg.Connect(brief); err == nil {
			defer sess.Close()
			return a.candidate(ctx, sess, note, full)
		}
	}
	return a.candidate(ctx, nil, note, full)
}

// connectLimit is how long a server is waited for that takes no connections: its disk says the rest.
const connectLimit = answerLimit / 3

// said is the position that a standby's server knows of. It is the end of its WAL once the server has been through all that
// lay on its disk: only then it asks a primary for more.
func (a *Agent) said(ctx context.Context, f facts) (pgdisk.Position, error) {
	if f.role != standby {
		return pgdisk.Position{}, errors.New("the end of its WAL could not be read in time")
	}
	brief, cancel := context.WithTimeout(ctx, answerLimit/2)
	defer cancel()
	sess, err := a.pg.Connect(brief)
	if err != nil {
		return pgdisk.Position{}, err
	}
	defer sess.Close()
	v, err := sess.Standby(brief)
	if err == nil && v.Received == 0 {
		err = fmt.Errorf("it has replayed WAL up to %s, and has more", v.Replayed)
	}
	if err != nil {
		return pgdisk.Position{}, err
	}
	on := pgdisk.TimelineID(0)
	if v.Streaming {
		on = v.Timeline
	}
	tli, err := a.timeline(f.control, v.Replayed, on)
	return pgdisk.Position{Timeline: tli, LSN: max(v.Received, v.Replayed)}, err
}

// noteFromDisk makes the note of a primary that was shut down cleanly, from pg_control and the record it names.
func (a *Agent) noteFromDisk(ctl pgdisk.Control) (*baton.Note, error) {
	if ctl.State != pgdisk.ShutDown {
		return nil, fmt.Errorf("pg_control says %q, not %q", ctl.State, pgdisk.ShutDown)
	}
	r, err := pgdisk.OpenWAL(a.pg.DataDir, ctl).ReadRecord(ctl.CheckPointTimeline, ctl.CheckPoint)
	if err != nil {
		return nil, err
	}
	if !r.IsShutdownCheckpoint() {
		return nil, fmt.Errorf("the record at %s that pg_control names is not a shutdown checkpoint", ctl.CheckPoint)
	}
	return &baton.Note{
		Kind: baton.Clean, SystemID: ctl.SystemIdentifier, Timeline: ctl.CheckPointTimeline,
		Start: r.Start, End: r.End, CRC: r.CRC, Node: a.inv.Node, Nonce: nonce(),
	}, nil
}

// confirmOwnNote asks the others whether the note that this node takes for its own and unused is so still: a node that was
// away when somebody used it up would keep a primary's score.
func (a *Agent) confirmOwnNote(ctx context.Context) {
	if !a.ownNote() {
		return
	}
	list, err := a.others(ctx)
	if err != nil {
		a.log.Warn("no word from the other nodes", "error", err)
		return
	}
	if a.learn(list) {
		if err := a.save("learn"); err != nil {
			a.log.Error("what the others know is not saved", "error", err)
		}
	}
}

// ownNote reports whether the newest note this node knows is its own and nobody used it up. What this node itself intends
// uses nothing up: a monitor may come between its pre-promote and its promote, and with a lower score the role would go
// elsewhere.
func (a *Agent) ownNote() bool {
	if a.state.Note == nil || a.state.Note.Node != a.inv.Node {
		return false
	}
	k := baton.Knowledge{Note: a.state.Note, Claims: a.state.Claims}
	_, err := k.UsableFor(a.inv.Node)
	return err == nil
}

// settleOwnClaims makes up this node's mind about its own attempts ([baton.Settle]). It may only be called when the
// instance is down: only then does what is on disk say what will stay so. A timeline was started if pg_control knows it
// (CreateEndOfRecoveryRecord sets the minimum recovery timeline) or if its history file, which the server writes before
// anything else of it, is there.
func (a *Agent) settleOwnClaims(ctl pgdisk.Control) bool {
	return baton.Settle(a.state.Claims, a.inv.Node, func(t pgdisk.TimelineID) (pgdisk.History, bool) {
		h, err := pgdisk.ReadHistory(a.walDir(), t)
		if err == nil && len(h) > 0 && !baton.IsPlaceholder(h) {
			return h, true
		}
		return nil, max(ctl.CheckPointTimeline, ctl.MinRecoveryTimeline) >= t
	})
}
