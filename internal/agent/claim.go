package agent

import (
	"context"
	"slices"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// claimByHand claims the timeline of a primary that a person promoted, without the cluster (in maintenance mode, say), or
// another agent, once Pacemaker has it in that role and no other node is primary: without a claim it would leave no note
// of a crash, nor would a handover from it have a proof where other claims are known. It returns the node that is primary beside it.
func (a *Agent) claimByHand(ctx context.Context, f facts, timeline pgdisk.TimelineID) (other string, err error) {
	if err := a.learnAll(ctx); err != nil {
		return "", err
	}
	if !a.unclaimed(timeline) {
		return "", nil
	}
	if other, err = a.primaryElsewhere(ctx); err != nil || other != "" {
		return other, err
	}
	if role := a.env["OCF_RESKEY_CRM_meta_role"]; role != "Promoted" && role != "Master" {
		return "", nil
	}
	return "", a.claimTimeline(f.control, timeline)
}

// unclaimed reports whether nobody claimed the timeline of a primary: it was started by hand, or by another agent before
// any claim was made. The first timeline needs none, since there is nothing before it.
func (a *Agent) unclaimed(timeline pgdisk.TimelineID) bool {
	open := func(c baton.Claim) bool { return c.Open() }
	return baton.Unclaimed(a.state.Claims, timeline) || timeline > 1 && !slices.ContainsFunc(a.state.Claims, open)
}

// claimTimeline makes the claim that should have come before the promotion.
func (a *Agent) claimTimeline(ctl pgdisk.Control, timeline pgdisk.TimelineID) error {
	h, err := pgdisk.ReadHistory(a.walDir(), timeline)
	if err != nil {
		return err
	}
	c := baton.Claim{
		Seq: baton.NextSeq(a.state.Claims), Timeline: timeline, Node: a.inv.Node, Nonce: nonce(), State: baton.Effective,
		CRC: a.identity(pgdisk.OpenWAL(a.pg.DataDir, ctl), timeline),
	}
	if a.ownNote() {
		c.Note = a.state.Note.Nonce // this instance has written behind it: nobody has everything who ends there
	}
	if len(h) > 0 {
		c.Parent, c.Switch = h[len(h)-1].Timeline, h[len(h)-1].Switch
	}
	a.state.Claims = baton.MergeClaims(a.state.Claims, []baton.Claim{c})
	if err := a.save("claim-by-hand"); err != nil {
		return err
	}
	a.vol.Asserted = 0 // publish it
	why := "promoted by hand, or before this agent had the resource"
	if c.Note != "" {
		why = "started by hand after it had left its note, and has written behind it"
	}
	a.log.Warn("this primary was not promoted by this agent: its timeline is claimed now", "claim", c, "why", why)
	a.record(journal.Claimed, why+": "+c.String(), true)
	return nil
}
