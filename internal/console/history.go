package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/view"
)

// historyVersion is that of the JSON form, which docs/command.md describes. New fields do not change it.
const historyVersion = 1

// History is what happened to the role: from this node's journal, and from what the other nodes published of theirs.
type History struct {
	Version  int       `json:"version"`
	Time     time.Time `json:"time"`
	SeenFrom string    `json:"seen_from"` // this node
	Resource string    `json:"resource"`
	Changes  []Change  `json:"changes"` // oldest first
	// NotHeard are the nodes of which nothing but what this node's journal says of them is known, and why.
	NotHeard []NotHeard `json:"not_heard"`
}

// NotHeard is a node that told this one nothing.
type NotHeard struct {
	Node string `json:"node"`
	Why  string `json:"why"`
}

// Change is one change of roles, or what happened to one instance without one.
type Change struct {
	Began          time.Time  `json:"began"`
	Ended          time.Time  `json:"ended"`
	Kind           string     `json:"kind"`
	From           string     `json:"from,omitempty"`
	To             string     `json:"to,omitempty"`    // who became primary
	Meant          string     `json:"meant,omitempty"` // who was to, if it was another node
	Outcome        string     `json:"outcome"`
	Why            []string   `json:"why"`
	WithoutPrimary *float64   `json:"without_primary_ms,omitempty"` // about: Pacemaker's own part between the phases is in it
	Note           string     `json:"note,omitempty"`
	Proof          string     `json:"proof,omitempty"`
	Switch         string     `json:"switch_point,omitempty"`
	Timeline       uint32     `json:"timeline,omitempty"`
	Result         string     `json:"result,omitempty"`
	Lost           *int64     `json:"bytes_lost,omitempty"`
	Kept           string     `json:"kept,omitempty"` // where what a rewind took away is
	Nodes          []NodePart `json:"nodes"`
	MoreOn         []string   `json:"more_on"` // nodes whose part is not known here: their journals may have it
}

// NodePart is what one node did in a change.
type NodePart struct {
	Node   string          `json:"node"`
	Source string          `json:"source"` // journal: of this node; published: by its agent
	Phases []journal.Phase `json:"phases"`
}

const (
	fromJournal = "journal"
	published   = "published"
)

// The outcomes of a change.
const (
	changeDone       = "done"
	changeRolledBack = "rolled back"
	changeCalledOff  = "called off"
	changeNotKnown   = "not known here"
)

// told is what one node says of its last changes.
type told struct {
	node   string
	source string
	parts  []journal.Part
	older  bool // it has more than that
}

// ReadHistory asks, and returns the last n changes, all of them if n is 0. Where Pacemaker does not answer it is what this
// node's own journal says.
func (w World) ReadHistory(ctx context.Context, asked string, n int) (History, error) {
	h := History{Version: historyVersion, Time: w.Now(), Changes: []Change{}, NotHeard: []NotHeard{}}
	ctx, cancel := context.WithTimeoutCause(ctx, askLimit, errHangs)
	defer cancel()
	var state pacemaker.ClusterState
	err := together(
		func() (err error) { state, err = pacemaker.ReadState(ctx, w.Run); return err },
		func() (err error) { h.SeenFrom, err = thisNode(ctx, w.Run); return err },
	)
	var others []told
	var nodes []string
	if err != nil {
		lost := explain(err)
		if h.Resource, err = Resource(w.Root, asked); err != nil {
			return h, fail(NoCluster, "%v; and of this node's own journals: %v", lost, err)
		}
		h.NotHeard = append(h.NotHeard, NotHeard{Node: "all others", Why: lost.Error()})
	} else {
		if h.Resource, _, err = find(state, asked); err != nil {
			return h, err
		}
		for _, node := range state.Nodes {
			nodes = append(nodes, node.Name)
		}
		if others, err = w.readTold(ctx, &h, nodes); err != nil {
			return h, explain(err)
		}
	}
	events := w.Journal(h.Resource)
	if h.SeenFrom == "" && len(events) > 0 {
		h.SeenFrom = events[len(events)-1].Node
	}
	own := told{node: h.SeenFrom, source: fromJournal, parts: journal.Parts(events)}
	h.Changes = merge(append([]told{own}, others...), nodes)
	if n > 0 && len(h.Changes) > n {
		h.Changes = h.Changes[len(h.Changes)-n:]
	}
	return h, nil
}

// readTold reads what the other nodes published.
func (w World) readTold(ctx context.Context, h *History, nodes []string) ([]told, error) {
	values, err := pacemaker.NewAttrd(w.Run).QueryAll(ctx, view.HistoryAttribute(h.Resource))
	if err != nil {
		return nil, err
	}
	var list []told
	for _, node := range nodes {
		if node == h.SeenFrom {
			continue
		}
		v, err := view.DecodeHistory(values[node])
		switch {
		case values[node] == "":
			err = errors.New("it has published nothing: it is down, had no part in a change yet, or its agent is of an older release")
		case err == nil && v.Node != node:
			err = fmt.Errorf("what it published is signed by %s", v.Node)
		}
		if err != nil {
			h.NotHeard = append(h.NotHeard, NotHeard{Node: node, Why: err.Error()})
			continue
		}
		list = append(list, told{node: node, source: published, parts: v.Parts, older: v.Older})
	}
	return list, nil
}

// near is how far apart two nodes' parts of a change may have begun that have nothing in common but who was to hand over
// to whom: one that was called off before there was a note.
const near = time.Minute

// member is one node's part in a change that is being put together.
type member struct {
	told
	part journal.Part
}

// merge puts the parts of the nodes together to changes, oldest first. nodes are those of the cluster.
func merge(all []told, nodes []string) []Change {
	var groups [][]member
	for _, t := range all {
		for _, p := range t.parts {
			m := member{t, p}
			// A part may show that what looked like two changes is one.
			joined := []member{m}
			groups = slices.DeleteFunc(groups, func(g []member) bool {
				if !slices.ContainsFunc(g, m.belongsWith) {
					return false
				}
				joined = append(g, joined...)
				return true
			})
			groups = append(groups, joined)
		}
	}
	list := make([]Change, 0, len(groups))
	for _, g := range groups {
		list = append(list, compose(g, all, nodes))
	}
	slices.SortStableFunc(list, func(a, b Change) int { return a.Began.Compare(b.Began) })
	return list
}

func (m member) belongsWith(o member) bool {
	a, b := m.part, o.part
	if slices.ContainsFunc(a.IDs, func(id string) bool { return slices.Contains(b.IDs, id) }) {
		return true
	}
	if m.node == o.node || len(a.IDs) > 0 && len(b.IDs) > 0 || alone(a) || alone(b) {
		return false
	}
	return a.From == b.From && a.Meant == b.Meant && a.Began().Sub(b.Began()).Abs() < near
}

// alone reports whether a part has nothing to do with any other node.
func alone(p journal.Part) bool {
	return p.Kind == journal.Return || p.Kind == string(baton.RestartInPlace) && p.Phases[0].Action == "sentinel"
}

// compose makes one change of its parts.
func compose(group []member, all []told, nodes []string) Change {
	slices.SortStableFunc(group, func(a, b member) int { return strings.Compare(a.node, b.node) })
	c := Change{Why: []string{}, MoreOn: []string{}}
	lead := group[0].part // who knows best
	for _, m := range group {
		p := m.part
		switch {
		case p.Promoted():
			lead, c.To = p, m.node
		case c.To == "" && len(lead.Note) == 0 && (len(p.Note) > 0 || lead.Kind == string(baton.Undecided)):
			lead = p
		}
		if c.Began.IsZero() || p.Began().Before(c.Began) {
			c.Began = p.Began()
		}
		if p.Ended().After(c.Ended) {
			c.Ended = p.Ended()
		}
		if c.Meant == "" {
			c.Meant = p.Meant
		}
		if n := len(c.Nodes); n > 0 && c.Nodes[n-1].Node == m.node {
			c.Nodes[n-1].Phases = append(c.Nodes[n-1].Phases, p.Phases...)
		} else {
			c.Nodes = append(c.Nodes, NodePart{m.node, m.source, p.Phases})
		}
	}
	c.Kind, c.From = lead.Kind, lead.From
	for _, m := range group {
		c.take(m.part)
	}
	c.take(lead) // what the new primary says counts
	c.outcome(group)
	if c.To != "" && c.Kind == string(baton.Handover) {
		c.WithoutPrimary = gap(group, lead)
	}
	if c.Meant == c.To || c.Kind == journal.Return {
		c.Meant = ""
	}
	if alone(lead) {
		return c
	}
	c.MoreOn = append(c.MoreOn, unknown(c, all, nodes)...)
	return c
}

func (c *Change) take(p journal.Part) {
	set := func(to *string, v string) {
		if v != "" {
			*to = v
		}
	}
	set(&c.Note, p.Note)
	set(&c.Proof, p.Proof)
	set(&c.Switch, p.Switch)
	set(&c.Result, p.Result)
	set(&c.Kept, p.Kept)
	if p.Timeline != 0 {
		c.Timeline = p.Timeline
	}
	if p.Lost != nil {
		c.Lost = p.Lost
	}
}

// outcome says how it ended, and why.
func (c *Change) outcome(group []member) {
	last, by := journal.Phase{}, ""
	for _, m := range group {
		for _, f := range m.part.Phases {
			if f.Outcome != "done" && f.Reason != "" {
				text := m.node + ": " + f.Reason
				if !slices.Contains(c.Why, text) {
					c.Why = append(c.Why, text)
				}
			}
			if f.Outcome != "done" || alone(m.part) {
				last, by = f, m.node
			}
		}
	}
	switch {
	case c.To != "" && c.Meant != "" && c.Meant != c.To && (c.From == c.To || c.Kind == string(baton.RestartInPlace)):
		c.Kind, c.Outcome, c.From = string(baton.Handover), changeRolledBack, c.To
	case c.To != "":
		c.Outcome = changeDone
	case c.Kind == journal.Return:
		c.Outcome, c.From = last.Outcome, by
		if last.Outcome == journal.RewindBegun {
			c.Outcome = "rewind begun"
		}
	case last.Outcome == "done": // a restart in place by the sentinel
		c.Outcome, c.From, c.To = changeDone, by, by
		c.Why = append(c.Why, by+": "+last.Reason)
	case last.Outcome == "called off", last.Outcome == "refused", last.Outcome == "failed":
		c.Outcome = last.Outcome
	case c.Kind == string(baton.Shutdown):
		c.Outcome = changeDone
	default:
		c.Outcome = changeNotKnown
	}
}

// gap is for about how long there was no primary: from the beginning of demote to the end of promote, by the clock of the new
// primary's node. Where demote ran elsewhere only its duration is taken from there.
func gap(group []member, p journal.Part) *float64 {
	var from, to time.Time
	took := 0.0
	for _, m := range group {
		for _, f := range m.part.Phases {
			if f.Action == "demote" {
				took = f.Duration
			}
		}
	}
	for _, f := range p.Phases {
		switch f.Action {
		case "demote", "post-demote":
			if from.IsZero() {
				from = f.Ended.Add(-time.Duration(f.Duration * float64(time.Millisecond)))
				if f.Action == "post-demote" {
					from = from.Add(-time.Duration(took * float64(time.Millisecond)))
				}
			}
		case "promote":
			to = f.Ended
		}
	}
	if took == 0 || from.IsZero() || !to.After(from) {
		return nil
	}
	ms := float64(to.Sub(from).Milliseconds())
	return &ms
}

// unknown are the nodes that may have had a part in a change, and told this node nothing of it.
func unknown(c Change, all []told, nodes []string) []string {
	list := slices.Clone(nodes)
	for _, n := range []string{c.From, c.To, c.Meant} {
		if n != "" && !slices.Contains(list, n) {
			list = append(list, n) // it is no node of the cluster any more
		}
	}
	list = slices.DeleteFunc(list, func(n string) bool {
		if slices.ContainsFunc(c.Nodes, func(p NodePart) bool { return p.Node == n }) {
			return true
		}
		i := slices.IndexFunc(all, func(t told) bool { return t.node == n })
		if i < 0 {
			return false
		}
		t := all[i]
		return !t.older || len(t.parts) > 0 && t.parts[0].Began().Before(c.Began) // it had none
	})
	slices.Sort(list)
	return list
}

// Title is a change in a few words.
func (c Change) Title() string {
	to := or(c.Meant, c.To)
	switch {
	case c.Kind == journal.Return:
		return "return of " + c.From
	case c.From != "" && to != "" && c.From != to:
		return fmt.Sprintf("%s from %s to %s", c.Kind, c.From, to)
	case to != "" && c.Kind == string(baton.Undecided):
		return c.Kind + " to " + to
	case or(to, c.From) != "":
		return c.Kind + " of " + or(to, c.From)
	}
	return or(c.Kind, string(baton.Undecided))
}

// Text writes the history for a person, one paragraph a change.
func (h History) Text(w io.Writer, y Style) {
	if len(h.Changes) == 0 {
		fmt.Fprintln(w, "no change of roles is recorded")
	}
	day := ""
	for _, c := range h.Changes {
		if d := c.Began.Local().Format("2006-01-02"); d != day {
			fmt.Fprintf(w, "%s%s\n", map[bool]string{true: "", false: "\n"}[day == ""], y.paint(bold, d))
			day = d
		}
		c.text(w, y)
	}
	if len(h.NotHeard) > 0 {
		fmt.Fprintln(w)
	}
	for _, n := range h.NotHeard {
		indented(w, "not heard: ", 11, n.Node+": "+n.Why)
	}
}

func (c Change) text(w io.Writer, y Style) {
	end := y.paint(green, c.Outcome)
	switch {
	case c.Outcome == changeRolledBack:
		end = y.paint(yellow, c.Outcome) + " to " + c.To
	case c.Outcome != changeDone:
		end = y.paint(yellow, c.Outcome)
	case c.Meant != "":
		end += ", but to " + c.To
	}
	switch {
	case c.Lost != nil && *c.Lost == 0 && c.Result == journal.NothingLost:
		end += ", nothing lost"
	case c.Lost != nil:
		end += fmt.Sprintf(", known to be lost: %d bytes of WAL", *c.Lost)
	}
	fmt.Fprintf(w, "  %s  %s: %s\n", c.Began.Local().Format("15:04:05"), c.Title(), end)
	line := func(label, text string) {
		for n, part := range wrap(text, 78-20) {
			fmt.Fprintf(w, "            %-8s%s\n", map[bool]string{true: label}[n == 0], part)
		}
	}
	for n, why := range c.Why {
		line(map[bool]string{true: "why"}[n == 0], why)
	}
	line("note", c.Note)
	line("proof", strings.ReplaceAll(c.Proof, ": the "+c.Note, ""))
	if c.Timeline != 0 {
		line("switch", fmt.Sprintf("timeline %d forks at %s", c.Timeline, c.Switch))
	}
	if c.Result != journal.NothingLost {
		line("result", c.Result)
	}
	line("kept", c.Kept)
	if c.WithoutPrimary != nil {
		line("outage", fmt.Sprintf("about %.0f ms without a primary", *c.WithoutPrimary))
	}
	for _, n := range c.Nodes {
		var phases []string
		for _, f := range n.Phases {
			s := fmt.Sprintf("%s %.0f ms", f.Action, f.Duration)
			if f.Outcome != "done" {
				s += " (" + f.Outcome + ")"
			}
			phases = append(phases, s)
		}
		line(n.Node, strings.Join(phases, ", "))
	}
	if len(c.MoreOn) > 0 {
		line("more", "on "+strings.Join(c.MoreOn, ", ")+": run pgbaton history there")
	}
}
