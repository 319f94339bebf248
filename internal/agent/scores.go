package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

// assertScore sets this node's promotion score if it is not what was set last.
func (a *Agent) assertScore(ctx context.Context, score int, forbid bool) error {
	s := pacemaker.Score(score)
	if forbid {
		s = pacemaker.NegInfinity
	}
	if a.vol.Score == s.String() {
		return nil
	}
	if err := a.do("score", func() error { return a.cluster.SetScore(ctx, a.inv.Node, s) }); err != nil {
		return err
	}
	a.log.Info("promotion score", "score", s, "was", a.vol.Score)
	a.vol.Score = s.String()
	a.saveVolatile()
	return nil
}

// statusUnknown stands for the status attribute of an attrd that this node has not told its own yet: one that was
// restarted has none, and the first one after a boot may have that of an instance that was kept out.
const statusUnknown = "?"

// assertStatus shows in crm_mon -A what is wrong, or takes it away.
func (a *Agent) assertStatus(ctx context.Context, text string) {
	if a.vol.Status == text {
		return
	}
	if err := a.do("status", func() error { return a.cluster.SetStatus(ctx, text) }); err != nil {
		a.log.Warn("status attribute not set", "error", err)
		return
	}
	a.vol.Status = text
	a.saveVolatile()
}

// refuse takes this node out of the running for the attempt under way: Pacemaker drops the plan without a failure and
// places the role elsewhere. It returns once the CIB shows the score, or a promote would race with it.
func (a *Agent) refuse(ctx context.Context, reason string, note *baton.Note, seq uint64) error {
	return a.refuseBy(ctx, baton.Refusal{Claim: seq, Reason: reason}, note)
}

// refuseBy is refuse by a refusal that says more than its reason.
func (a *Agent) refuseBy(ctx context.Context, r baton.Refusal, note *baton.Note) error {
	way, reason := a.wayBack(), r.Reason
	a.log.Warn("refusing the promotion", "change", a.changeNow(), "reason", reason, "way_out", way)
	if note != nil {
		r.Note = note.Nonce
	}
	a.state.Refusal = &r
	for n := range a.state.Claims {
		c := &a.state.Claims[n]
		if c.Node == a.inv.Node && c.State == baton.Intended { // one that is claimed may be under way: baton.Settle
			c.State = baton.Withdrawn
		}
	}
	saved := a.save("save-refusal")
	if saved != nil {
		a.log.Error("refusal not saved", "error", saved)
	}
	a.vol.Asking, a.vol.Refused = nil, a.clock.Now()
	if err := a.publish(ctx, "publish-refusal", nil, nil); err != nil {
		a.log.Warn("withdrawn claim not published", "error", err)
	}
	a.record("refused", reason, false)
	a.vol.Score = "" // whatever was set last: the attribute must be written
	if err := a.assertScore(ctx, 0, true); err != nil {
		return err
	}
	err := a.awaitForbidden(ctx, a.inv.Node)
	if saved == nil {
		a.unrecordClaim(ctx)
	}
	a.assertStatus(ctx, "refused: "+reason+way)
	return err
}

// unrecordClaim takes a claim of this node that is withdrawn out of the cluster's configuration: who reads it there when this
// node is gone cannot know that.
func (a *Agent) unrecordClaim(ctx context.Context) {
	open := slices.ContainsFunc(a.state.Claims, func(c baton.Claim) bool { return c.Nonce == a.vol.Recorded && c.Open() })
	if a.vol.Recorded == "" || open {
		return
	}
	if err := a.do("forget-claim", func() error { return a.cluster.ForgetClaim(ctx, a.inv.Node) }); err != nil {
		a.log.Warn("a withdrawn claim still stands in the cluster's configuration", "error", err)
		return
	}
	a.vol.Recorded, a.vol.Forgotten = "", true
	a.saveVolatile()
}

// wayBack is what a person can do where the old primary had to leave and is not coming back by itself, "" elsewhere.
func (a *Agent) wayBack() string {
	for _, n := range a.plan.Demote {
		if n != a.inv.Node && a.plan.Leaves(n) {
			return fmt.Sprintf("; if nobody is promoted: crm_standby -D -N %s, or start its cluster services", n)
		}
	}
	return ""
}

// awaitForbidden waits until the DC's copy of the CIB shows the node's -INFINITY: only then is it certain that the DC's
// controller hears of it before it hears that this notification has ended.
func (a *Agent) awaitForbidden(ctx context.Context, node string) error {
	return a.poll(ctx, "the -INFINITY of "+node+" to stand in the CIB", 10*time.Millisecond, func() (bool, error) {
		s, ok, err := a.cluster.ScoreInCIB(ctx, node)
		return err == nil && ok && s == pacemaker.NegInfinity, nil
	})
}
