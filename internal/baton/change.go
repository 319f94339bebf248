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
	Handover       Kind = "handover"         // planned, the old primary shut down cleanly
	Takeover       Kind = "takeover"         // the old primary is gone without that
	Leaving        Kind = "departure"        // the primary's node leaves; only its note can tell handover from takeover
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
	case c.To != "":
		return fmt.Sprintf("%s of %s", c.Kind, c.To)
	case c.From != "":
		return fmt.Sprintf("%s of %s", c.Kind, c.From)
	}
	return string(c.Kind)
}

// Classify reads the kind of change off a plan. Only positive evidence from the old primary makes a departure a
// handover: see [Change.Resolve].
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
	case c.To == "" && c.From == "":
		c.Kind = NoChange
	case c.To == "" && (slices.Contains(p.Demote, c.From) || slices.Contains(p.Stop, c.From)):
		c.Kind = Shutdown
	case c.To == "":
		c.Kind = NoChange
	case c.From == c.To, c.From == "" && slices.Contains(p.Stop, c.To):
		c.Kind, c.From = RestartInPlace, c.To
	case c.From == "":
		c.Kind = ColdStart
	case slices.Contains(p.Stop, c.From):
		c.Kind = Leaving
	default:
		c.Kind = Handover
	}
	return c
}

// Resolve settles what the plan leaves open, by the note that this promotion rests on (nil if it rests on a comparison
// of positions) and by whether the cluster has seen a primary since its nodes booted. Who ended is who left the note: a
// plan made after a promotion that failed names the one that failed. Where the old primary is promoted again, because a
// handover was rolled back or the clone restarted, it is in place.
func (c Change) Resolve(note *Note, live bool) Change {
	switch {
	case c.Kind != Handover && c.Kind != Leaving && c.Kind != ColdStart:
	case c.Kind == ColdStart && !live:
	case note == nil:
		c.Kind = Takeover
	case note.Node == c.To:
		c.Kind, c.From = RestartInPlace, note.Node
	case note.Kind == Clean:
		c.Kind, c.From = Handover, note.Node
	default:
		c.Kind, c.From = Takeover, note.Node
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
