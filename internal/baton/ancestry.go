package baton

import (
	"fmt"
	"slices"
)

// ancestry checks the candidate against the timelines that may hold rows, newest attempt first. Once it descends from
// one of them, the older ones were dealt with by whoever made that claim. Where strict, the candidate must descend from the
// claim; otherwise it is enough that it lies on the way there, because somebody was there when its owner went and this is
// a takeover. Nobody but its owner knows where a claim that did not get as far as to be effective forked.
func ancestry(self Candidate, know Knowledge, own string, strict func(Claim) bool) error {
	for _, c := range slices.Backward(know.Claims) {
		if !c.Open() || c.Nonce == own {
			continue
		}
		if descends(self, c) {
			return nil
		}
		if c.Node == self.Node && c.State != Effective {
			// Our own attempt that did not come to anything: nobody knows that better.
			continue
		}
		if c.State == Effective && !onTheWay(self, c, know.Claims) {
			return fmt.Errorf("%s is not known to lie on the way to %s: its WAL ends at %s", self.Node, c, self.Position)
		}
		if strict(c) {
			return fmt.Errorf("%s is behind %s: start %s, or accept the loss", self.Node, c, c.Node)
		}
		if c.State == Effective {
			return nil
		}
	}
	return nil
}

// descends reports whether the candidate's line runs through the claimed timeline. The number says it, since no number
// is started twice; what else is known of an effective one must fit.
func descends(self Candidate, c Claim) bool {
	if self.Position.Timeline == c.Timeline {
		if c.CRC != 0 && self.Identity != 0 && c.CRC != self.Identity {
			return false
		}
	} else if _, ok := self.History.SwitchPointOf(c.Timeline); !ok {
		return false
	}
	if c.State != Effective {
		return true
	}
	sw, ok := self.History.SwitchPointOf(c.Parent)
	return ok && sw == c.Switch
}

// onTheWay reports whether the candidate's WAL ends on the line that leads to an effective claim. A candidate that is
// more than one timeline behind can only be told from a diverged one if the claims in between are known.
func onTheWay(self Candidate, c Claim, claims []Claim) bool {
	end := c.Switch
	for range len(claims) + 1 {
		if self.Position.Timeline == c.Parent {
			return self.Position.LSN <= end
		}
		i := slices.IndexFunc(claims, func(p Claim) bool { return p.Timeline == c.Parent && p.State == Effective })
		if i < 0 {
			return false
		}
		c = claims[i]
		end = min(end, c.Switch)
	}
	return false
}

// diverged reports whether the answerer is on a branch that was left: behind the point where the candidate's own line,
// or that to the newest effective claim, went another way; or on a twin of that claim's timeline. It may have more bytes,
// but not more of this history.
func diverged(a Answer, self Candidate, know Knowledge) bool {
	p := a.Position
	if sw, ok := self.History.SwitchPointOf(p.Timeline); ok && p.LSN > sw {
		return true
	}
	for _, c := range slices.Backward(know.Claims) {
		if c.State != Effective {
			continue
		}
		switch {
		case p.Timeline == c.Timeline:
			return a.Identity != 0 && c.CRC != 0 && a.Identity != c.CRC
		case p.Timeline == c.Parent:
			return p.LSN > c.Switch
		case c.Parent < p.Timeline && p.Timeline < c.Timeline:
			return true
		}
	}
	return false
}

// avoid lists every timeline number between the candidate's and the claimed one: a history file must stand for each of
// them. PostgreSQL looks for history files one number after the other and takes the first that has none
// (findNewestTimeLine in src/backend/access/transam/timeline.c), so that one gap would make it start another timeline
// than the claimed one, which nobody knows of; and a standby that follows asks its primary for the history of each
// number on the way (WalRcvFetchTimeLineHistoryFiles).
//
// What is listed says whose claim on the number is known, and as its parent the candidate's own timeline.
func avoid(q Question, know Knowledge) []Claim {
	var list []Claim
	for t := q.Self.Position.Timeline + 1; t < q.Challenge.Claim.Timeline; t++ {
		c := Claim{Timeline: t, Node: "nobody", State: Withdrawn}
		for _, k := range know.Claims {
			if k.Timeline == t && k.Nonce != q.Challenge.Nonce {
				c = k
			}
		}
		c.Parent, c.Switch = q.Self.Position.Timeline, q.Self.Position.LSN
		list = append(list, c)
	}
	return list
}

// superseded says whether the attempt in force is off: withdrawn, or another one is known that it did not reckon with. The
// next attempt will.
func superseded(q Question, know Knowledge) error {
	own := q.Challenge.Claim
	for _, c := range know.Claims {
		switch {
		case c.Nonce == q.Challenge.Nonce && c.State == Withdrawn:
			// Refused before; what is written down as never to be started must not be started.
			return fmt.Errorf("%s has withdrawn this attempt: %s", c.Node, c)
		case c.Nonce == q.Challenge.Nonce:
		case c.Open() && c.Seq >= own.Seq:
			return fmt.Errorf("a newer attempt is known: %s", c)
		case c.Open() && c.Timeline >= own.Timeline:
			return fmt.Errorf("timeline %d may exist already: %s", own.Timeline, c)
		}
	}
	return nil
}
