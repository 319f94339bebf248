package journal

import (
	"slices"
	"strconv"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
)

// Part is what one node did in one change of roles, or what happened to its instance without one.
type Part struct {
	// IDs name the change: the nonces of its note and of the claims that were made in it. Parts of two nodes that have one
	// in common belong to the same change. A change that was called off before anything was stopped has none.
	IDs []string `json:"ids,omitempty"`
	// Kind, From and To are as whoever knows best says; Meant is who was to become primary at first.
	Kind   string  `json:"kind,omitempty"`
	From   string  `json:"from,omitempty"`
	To     string  `json:"to,omitempty"`
	Meant  string  `json:"meant,omitempty"`
	Phases []Phase `json:"phases"`

	Note     string `json:"note,omitempty"`  // how the old primary's WAL ends
	Proof    string `json:"proof,omitempty"` // why the new primary has everything, or as much as anybody
	Switch   string `json:"switch_point,omitempty"`
	Timeline uint32 `json:"timeline,omitempty"`
	Result   string `json:"result,omitempty"`
	Lost     *int64 `json:"bytes_lost,omitempty"` // known to be lost; nil: this node does not know
	Kept     string `json:"kept,omitempty"`       // where what a rewind took away is
}

// Phase is one action of the agent.
type Phase struct {
	Action   string    `json:"phase"`
	Ended    time.Time `json:"ended"` // by the clock of its node
	Duration float64   `json:"ms"`
	Outcome  string    `json:"outcome"` // done, refused, failed, called off, ...
	Reason   string    `json:"reason,omitempty"`
}

// Began is when the first phase began.
func (p Part) Began() time.Time {
	f := p.Phases[0]
	return f.Ended.Add(-time.Duration(f.Duration * float64(time.Millisecond)))
}

// Ended is when the last phase ended.
func (p Part) Ended() time.Time { return p.Phases[len(p.Phases)-1].Ended }

// Promoted reports whether this node became primary in this change.
func (p Part) Promoted() bool {
	return slices.ContainsFunc(p.Phases, func(f Phase) bool { return f.Action == "promote" && f.Outcome == "done" })
}

// Return is the kind of what is no change of roles: an instance whose history is not the cluster's comes back.
const Return = "return"

// apart is how long nothing must have happened for what comes next to be another change, where nothing else tells.
const apart = 2 * time.Minute

// Parts groups one node's events, oldest first, by the change that they belong to.
func Parts(events []Event) []Part {
	var list []Part
	for _, e := range events {
		if n := len(list); n > 0 && list[n-1].continues(e) {
			list[n-1].add(e)
			continue
		}
		p := Part{}
		p.add(e)
		list = append(list, p)
	}
	return list
}

// The outcomes of what the agent does with an instance whose history is not the cluster's.
const (
	KeptOut     = "kept out"  // not started
	TakenOut    = "taken out" // it ran, and is stopped
	RewindBegun = "begins"
	Rewound     = "rewound"
	Claimed     = "claimed" // it is the primary
)

var returning = []string{KeptOut, TakenOut, RewindBegun, Rewound, Claimed}

func (e Event) returns() bool { return slices.Contains(returning, e.Outcome) }

func (e Event) ids() []string {
	return slices.DeleteFunc([]string{e.NoteID, e.ClaimID}, func(s string) bool { return s == "" })
}

// continues reports whether e belongs to the same change as the events before it.
func (p Part) continues(e Event) bool {
	last := p.Phases[len(p.Phases)-1]
	if slices.ContainsFunc(e.ids(), func(id string) bool { return slices.Contains(p.IDs, id) }) {
		return true
	}
	switch {
	case e.Time.Sub(last.Ended) > apart, (p.Kind == Return) != e.returns():
		return false
	case p.Kind == Return:
		return last.Outcome != Rewound
	case last.Action == "sentinel" && last.Outcome != "left", e.Action == "sentinel":
		return false // a restart in place is a story of its own
	case p.Promoted():
		return e.Action == "post-promote"
	case e.Action == "pre-demote":
		// A plan that is made anew begins with it again, as long as nothing was stopped.
		return !slices.ContainsFunc(p.Phases, func(f Phase) bool { return f.Action != "pre-demote" && f.Action != "sentinel" })
	}
	return true
}

func (p *Part) add(e Event) {
	for _, id := range e.ids() {
		if !slices.Contains(p.IDs, id) {
			p.IDs = append(p.IDs, id)
		}
	}
	switch {
	case e.returns():
		p.Kind = Return
	case p.Kind == "" || p.Kind == string(baton.Undecided) || e.Action == "demote" || e.Action == "promote":
		// A plan only says what is meant, and that of a roll-back does not say what it was; who ended or was promoted knows.
		p.Kind, p.From, p.To = e.Kind, e.From, e.To
	}
	if p.Meant == "" && !e.returns() {
		p.Meant = e.To
	}
	p.Phases = append(p.Phases, Phase{Action: e.Action, Ended: e.Time, Duration: e.Duration, Outcome: e.Outcome, Reason: e.Reason})
	take := func(to *string, key string) {
		if v := e.Details[key]; v != "" {
			*to = v
		}
	}
	take(&p.Note, "note")
	take(&p.Switch, "switch_point")
	take(&p.Result, "result")
	take(&p.Kept, "kept")
	if e.Action == "promote" && e.Outcome == "done" {
		p.Proof = e.Reason
	}
	if n, err := strconv.ParseUint(e.Details["timeline"], 10, 32); err == nil {
		p.Timeline = uint32(n)
	}
	if n, err := strconv.ParseInt(e.Details["missing_bytes"], 10, 64); err == nil {
		p.Lost = &n
	} else if p.Result == NothingLost {
		p.Lost = new(int64)
	}
}

// NothingLost is the result of a promotion whose switch point is the end of the note.
const NothingLost = "equal: nothing lost"
