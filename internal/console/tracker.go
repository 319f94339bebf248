package console

import (
	"fmt"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/view"
)

// ending is how the watching of a handover ended.
type ending int

const (
	ended       ending = iota + 1 // the role has come to rest
	unplanned                     // Pacemaker did nothing
	interrupted                   // by a signal
	deaf                          // Pacemaker does not answer here
)

// tracker makes out of what Pacemaker and the agents say, asked again and again, what happened to the role.
type tracker struct {
	resource string
	from, to string
	began    time.Time
	note0    string // nonce of the newest note before
	seq0     uint64 // of the newest claim before

	said     map[string]bool
	up       time.Time // the old primary was last seen to serve
	demoted  time.Time // it was seen to be on its way down
	promoted time.Time // somebody was seen to be primary after that
	primary  string    // "" while there is none
	busy     bool      // an action on an instance is under way
	calm     time.Time // since when the role is at rest, zero if it is not
	top      bool      // the primary's score is strictly above all others
	dc       string
	why      map[string]string // of a node that refuses
	note     string
	noteEnd  string
	switched string

	end ending
	err error
}

func newTracker(s *Snapshot, from, to string) *tracker {
	t := &tracker{resource: s.Resource, from: from, to: to, said: map[string]bool{}, why: map[string]string{}, primary: from}
	know := baton.Gather(s.Bulletins, "")
	if know.Note != nil {
		t.note0 = know.Note.Nonce
	}
	t.seq0 = baton.NextSeq(know.Claims) - 1
	return t
}

// observe takes one look in and returns what is new.
func (t *tracker) observe(at time.Time, state pacemaker.ClusterState, bulletins []baton.Bulletin) []Event {
	var news []Event
	say := func(node, format string, args ...any) {
		text := fmt.Sprintf(format, args...)
		if !t.said[node+text] {
			t.said[node+text] = true
			news = append(news, Event{at, node, text})
		}
	}
	if t.began.IsZero() {
		t.began, t.up = at, at
	}
	t.dc = state.DC
	know := baton.Gather(bulletins, "")
	t.primary, t.busy = "", false
	for _, in := range state.Of(t.resource) {
		if in.Node == "" {
			continue
		}
		moving := in.Pending
		if in.Role == "Promoting" || in.Role == "Demoting" || in.Role == "Starting" || in.Role == "Stopping" {
			moving = in.Role // crm_mon shows the action in the place of the role
		}
		if moving != "" && moving != "Monitoring" {
			t.busy = true
		}
		if in.Node == t.from && t.demoted.IsZero() && (in.Role != pacemaker.RolePromoted || moving == "Demoting") {
			t.demoted = at
			say(in.Node, "is being shut down")
		}
		if moving == "Promoting" {
			say(in.Node, "is being promoted")
		}
		if in.Role == pacemaker.RolePromoted && moving != "Demoting" {
			t.primary = in.Node
			if in.Node == t.from && t.demoted.IsZero() {
				t.up = at
			}
		}
	}
	if t.primary != "" && t.promoted.IsZero() && (t.primary != t.from || !t.demoted.IsZero()) {
		t.promoted = at
		say(t.primary, "is the primary")
	}
	t.hear(at, say, know, bulletins)
	t.scores(say, state)
	if t.primary != "" && !t.busy && t.top {
		if t.calm.IsZero() {
			t.calm = at
		}
	} else {
		t.calm = time.Time{}
	}
	return news
}

// hear takes in what the agents say.
func (t *tracker) hear(at time.Time, say func(string, string, ...any), know baton.Knowledge, bulletins []baton.Bulletin) {
	if n := know.Note; n != nil && n.Nonce != t.note0 && n.Node == t.from && t.note == "" {
		t.note, t.noteEnd = n.String(), n.End.String()
		if t.demoted.IsZero() {
			t.demoted = at // the note is quicker than the CIB
			say(n.Node, "is being shut down")
		}
		say(n.Node, "has ended: %s", *n)
	}
	for _, b := range bulletins {
		if c := b.Challenge; c != nil && c.Claim.Seq > t.seq0 && c.Claim.Node == b.Node {
			say(b.Node, "asks the others; means to start timeline %d at %s", c.Claim.Timeline, c.Claim.Switch)
		}
	}
	for _, c := range know.Claims {
		if c.Seq <= t.seq0 || c.State != baton.Effective || t.switched != "" {
			continue
		}
		t.switched = fmt.Sprintf("timeline %d begins at %s", c.Timeline, c.Switch)
		switch {
		case t.noteEnd == "":
		case t.noteEnd == c.Switch.String():
			t.switched += ", the end of the shutdown checkpoint: nothing is lost"
		default:
			t.switched += fmt.Sprintf(", but the shutdown checkpoint ended at %s", t.noteEnd)
		}
		say(c.Node, "%s", t.switched)
	}
}

// scores finds refusals, and whether the primary is strictly on top.
func (t *tracker) scores(say func(string, string, ...any), state pacemaker.ClusterState) {
	own, ok := state.Score(t.primary, t.resource)
	t.top = ok
	for _, n := range state.Nodes {
		score, ok := state.Score(n.Name, t.resource)
		if !ok || n.Name == t.primary {
			continue
		}
		if score >= own {
			t.top = false
		}
		if score > pacemaker.NegInfinity {
			continue
		}
		if says := state.Attributes[n.Name][view.StatusAttribute(t.resource)]; says != "" {
			t.why[n.Name] = says
			say(n.Name, "%s", says)
		} else if _, heard := t.why[n.Name]; !heard {
			t.why[n.Name] = "refuses the role"
			say(n.Name, "refuses the role")
		}
	}
}

// refused tells whether the target said no, itself or the primary for it.
func (t *tracker) refused() bool { return t.why[t.to] != "" }

// restful tells whether the role is at rest, and not only because nothing has begun yet.
func (t *tracker) restful(at time.Time) bool {
	if t.calm.IsZero() {
		return false
	}
	return !t.unbegun() || at.Sub(t.began) > planLimit
}

// unbegun tells whether nothing was seen yet of what was ordered.
func (t *tracker) unbegun() bool {
	return t.primary == t.from && t.demoted.IsZero() && !t.refused()
}

// atRest tells whether a primary is strictly above all others and nothing moves.
func (t *tracker) atRest() bool { return !t.calm.IsZero() }

// wanted tells whether the constraint still has work to do.
func (t *tracker) wanted() bool { return !t.refused() }
