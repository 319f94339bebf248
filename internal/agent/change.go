package agent

import (
	"slices"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

// changeNow is the change of roles that this action is part of, as far as it can tell by now: by the plan, by the note of
// who ended, and by the attempt under way.
func (a *Agent) changeNow() baton.Change {
	c := a.change
	if a.serving && c.Kind == baton.Undecided {
		c.Kind = baton.Handover
		if a.leaving() {
			c.Kind = baton.Takeover
		}
		return c
	}
	note, claim := a.changeIDs()
	if note == "" && claim == "" {
		return c
	}
	e := baton.Ended{Live: a.live, Cold: a.cold}
	if ans := a.vol.LastAnswer; ans != nil && ans.Challenge == claim {
		e.Live = ans.Live // by now the target itself is a primary
	}
	e.Live = e.Live || a.heardLive
	if n := a.state.Note; n != nil && n.Nonce == note {
		e.Note = n
	}
	if last := (baton.Knowledge{Claims: a.state.Claims}).Last(claim); last != nil {
		e.Last = last.Node
	}
	return c.Resolve(e)
}

// hear takes from the answers to an attempt whether anybody has seen a primary since it booted.
func (a *Agent) hear(list []baton.Bulletin, challenge string) {
	if list == nil {
		return
	}
	a.heardLive = slices.ContainsFunc(list, func(b baton.Bulletin) bool {
		return b.Answer != nil && b.Answer.Challenge == challenge && b.Answer.Live
	})
	a.cold = !a.heardLive
}

// changeIDs are the nonces of the note and of the claim that this action is about, as far as it can tell by now.
func (a *Agent) changeIDs() (note, claim string) {
	promoting := false
	switch a.actionName() {
	case "pre-promote", "promote", "post-promote":
		promoting = true
	case "demote", "stop", "post-demote":
	default:
		return "", "" // it comes before the note, or belongs to no change
	}
	// A note that nobody has used up is what a change under way is about.
	if n, err := (baton.Knowledge{Note: a.state.Note, Claims: a.state.Claims}).Settled().Usable(""); err == nil {
		note = n.Nonce
	}
	if len(a.state.Claims) == 0 {
		return note, ""
	}
	c := a.state.Claims[len(a.state.Claims)-1] // the latest attempt
	target := promoting && c.Node == a.inv.Node && (a.inv.Action == "promote" || pacemaker.Contains(a.plan.Promote, a.inv.Node))
	underWay := c.State == baton.Intended || c.State == baton.Claimed || target
	if !underWay || note != "" && c.Note != note {
		return note, ""
	}
	return c.Note, c.Nonce
}
