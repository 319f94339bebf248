package baton

import (
	"fmt"
	"slices"
)

// Plan is what Pacemaker announced for the transition under way, as node names. It is a plan, not a proof: it is
// computed anew at every abort, and a fenced node looks like one that leaves politely.
type Plan struct {
	Promoted, Unpromoted, Demote, Stop, Start, Promote []string
}

// Kind is the kind of a change of roles.
type Kind string

// The kinds of changes.
const (
	NoChange       Kind = "no change"
	Undecided      Kind = "change of roles"  // one of the next four: the plan does not tell
	Handover       Kind = "handover"         // planned, the old primary shut down cleanly
	Takeover       Kind = "takeover"         // the old primary is gone without that
	RestartInPlace Kind = "restart in place" // the old primary is to be primary again
	ColdStart      Kind = "cold start"       // nobody was primary before
	Shutdown       Kind = "shutdown"         // nobody is to be primary afterwards
)

// Change says which change of roles a plan belongs to, and from whom to whom.
type Change struct {
	Kind     Kind
	From, To string // node names, "" for nobody
}

func (c Change) String() string {
	switch {
	case c.Kind == NoChange:
		return string(c.Kind)
	case c.From != "" && c.To != "" && c.From != c.To:
		return fmt.Sprintf("%s from %s to %s", c.Kind, c.From, c.To)
	case c.To != "" && c.Kind == Undecided:
		return fmt.Sprintf("%s to %s", c.Kind, c.To)
	case c.To != "":
		return fmt.Sprintf("%s of %s", c.Kind, c.To)
	case c.From != "":
		return fmt.Sprintf("%s of %s", c.Kind, c.From)
	}
	return string(c.Kind)
}

// Classify reads the kind of change off a plan, as far as it tells: a crashed primary that leaves the role looks like one
// that a person moves, a fenced node like one that leaves politely, and what is left of a takeover once the node is fenced
// like a cold start. See [Change.Resolve].
func Classify(p Plan) Change {
	var c Change
	if len(p.Promote) > 0 {
		c.To = p.Promote[0]
	}
	switch {
	case len(p.Promoted) > 0:
		c.From = p.Promoted[0]
	case len(p.Demote) > 0:
		c.From = p.Demote[0]
	}
	switch {
	case c.To == "" && (slices.Contains(p.Demote, c.From) || slices.Contains(p.Stop, c.From)):
		c.Kind = Shutdown
	case c.To == "":
		c.Kind = NoChange
	case c.From == c.To, c.From == "" && slices.Contains(p.Stop, c.To):
		c.Kind, c.From = RestartInPlace, c.To
	default:
		c.Kind = Undecided
	}
	return c
}

// Ended is what a node knows of how the last primary ended.
type Ended struct {
	Note *Note  // the note that the promotion rests on, nil if it rests on a comparison of positions
	Last string // whose timeline took effect last, "" if nobody knows
	Live bool   // the cluster has seen a primary since its nodes booted
	Cold bool   // nobody has
}

// Resolve settles what the plan leaves open. Who ended is who left the note: a plan made after a promotion that failed names
// the one that failed. Where the old primary is promoted again, because a handover was rolled back or the clone restarted, it
// is in place.
func (c Change) Resolve(e Ended) Change {
	if c.Kind != Undecided {
		return c
	}
	from := e.Last
	if e.Note != nil {
		from = e.Note.Node
	}
	switch {
	case c.From == "" && !e.Live && e.Cold:
		c.Kind = ColdStart
		return c
	case c.From == "" && !e.Live:
		return c
	case from != "" && from == c.To:
		c.Kind = RestartInPlace
	case e.Note != nil && e.Note.Kind == Clean:
		c.Kind = Handover
	default:
		c.Kind = Takeover
	}
	if from != "" {
		c.From = from
	}
	return c
}

// CanCallOff reports whether a running primary may still refuse the plan: somebody else is to be promoted, and the
// primary's own node does not have to leave.
func CanCallOff(p Plan, self string) bool {
	return len(p.Promote) > 0 && p.Promote[0] != self && slices.Contains(p.Demote, self) && !slices.Contains(p.Stop, self)
}

// MustLeave reports whether the plan stops the instance on this node and does not start it again, so that a handover
// cannot be rolled back to it.
func MustLeave(p Plan, self string) bool {
	return slices.Contains(p.Stop, self) && !slices.Contains(p.Start, self)
}
