package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// change is one of pgbaton history --json, as far as these tests read it.
type change struct {
	Kind    string   `json:"kind"`
	From    string   `json:"from"`
	To      string   `json:"to"`
	Meant   string   `json:"meant"`
	Outcome string   `json:"outcome"`
	Why     []string `json:"why"`
	Gap     float64  `json:"without_primary_ms"`
	Note    string   `json:"note"`
	Proof   string   `json:"proof"`
	Switch  string   `json:"switch_point"`
	Lost    *int64   `json:"bytes_lost"`
	Nodes   []struct {
		Node   string `json:"node"`
		Source string `json:"source"`
		Phases []struct {
			Phase string  `json:"phase"`
			MS    float64 `json:"ms"`
		} `json:"phases"`
	} `json:"nodes"`
	MoreOn []string `json:"more_on"`
}

func (s *scenario) history(node string, n string) (list []change, notHeard []string) {
	s.t.Helper()
	var h struct {
		Version  int      `json:"version"`
		Changes  []change `json:"changes"`
		NotHeard []struct {
			Node string `json:"node"`
		} `json:"not_heard"`
	}
	s.must(json.Unmarshal([]byte(s.run(node, "pgbaton", "history", "--json", n)), &h))
	if h.Version != 1 {
		s.t.Errorf("version %d", h.Version)
	}
	for _, n := range h.NotHeard {
		notHeard = append(notHeard, n.Node)
	}
	return h.Changes, notHeard
}

// phasesOf are the phases that a node had in a change.
func (c change) phasesOf(node string) string {
	var list []string
	for _, n := range c.Nodes {
		if n.Node != node {
			continue
		}
		for _, p := range n.Phases {
			if !slices.Contains(list, p.Phase) {
				list = append(list, p.Phase)
			}
		}
	}
	return strings.Join(list, " ")
}

// Ensure pgbaton history tells one and the same story on every node, with everybody's phases; says what is only to be had
// elsewhere when a node is gone; and that a node that lost its power has lost nothing of it.
func TestConsole_History(t *testing.T) {
	command := built(t, buildCommand)
	o := ordinary()
	o.Files = map[string]string{"/usr/bin/pgbaton": command}
	o.AutoReturn = time.Hour // who has lost its power stays off until the test switches it on
	c := testCluster(t, "history", o)
	c.useFaults(t, true)
	s := c.begin(t, 5*time.Minute, true)
	first, second, third := s.old, s.others[0], s.others[1]
	code, text := s.pgbaton(third, "switchover", "--yes", "--to", second)
	s.expect(code, 0, text, "Done:")
	s.streaming()
	s.lifted(first)
	was := s.timeline(second)
	s.pause(second, atStop, func() { s.move(third) }, func() { s.cutStandby(third) })
	s.newPrimary(was, second)
	s.must(s.lab.HealAll(s.ctx))
	s.clear()
	s.lifted(third)
	s.streaming()
	s.stage("a handover from %s to %s, and one to %s that was rolled back", first, second, third)

	look := func(node string, without string) error {
		list, notHeard := s.history(node, "2")
		want := []string{}
		if without != "" {
			want = []string{without}
		}
		if !slices.Equal(notHeard, want) && len(notHeard)+len(want) > 0 {
			return lab.NotYet("%s has not heard %q, expected %q", node, notHeard, want)
		}
		if len(list) != 2 {
			return lab.NotYet("%d changes on %s, expected 2", len(list), node)
		}
		h, r := list[0], list[1]
		if h.Kind != "handover" || h.From != first || h.To != second || h.Outcome != "done" || h.Lost == nil || *h.Lost != 0 {
			return lab.NotYet("%s says of the handover: %+v", node, h)
		}
		if r.Kind != "handover" || r.From != second || r.To != second || r.Meant != third || r.Outcome != "rolled back" || without != third && !strings.Contains(strings.Join(r.Why, " "), third+" lacks the last") {
			return lab.NotYet("%s says of the one that was rolled back: %+v", node, r)
		}
		for _, c := range list {
			if !slices.Equal(c.MoreOn, want) && len(c.MoreOn)+len(want) > 0 {
				return lab.NotYet("%s says that there is more on %q, expected %q: %+v", node, c.MoreOn, want, c)
			}
			if without != second && (c.Gap < 50 || c.Gap > 20000 || c.Note == "" || c.Switch == "" || !strings.Contains(c.Proof, "everything")) {
				return lab.NotYet("%s does not say all of it: %+v", node, c)
			}
		}
		for _, p := range []struct{ node, handover, rolledBack string }{
			{first, "pre-demote demote post-demote pre-promote post-promote", "pre-demote post-demote pre-promote post-promote"},
			{second, "pre-demote post-demote pre-promote promote post-promote", "pre-demote demote post-demote pre-promote promote post-promote"},
			{third, "pre-demote post-demote pre-promote post-promote", "pre-demote post-demote pre-promote post-promote"},
		} {
			if p.node == without {
				p.handover, p.rolledBack = "", ""
			}
			if got := h.phasesOf(p.node); got != p.handover {
				return lab.NotYet("%s says of %s in the handover: %q, expected %q", node, p.node, got, p.handover)
			}
			if got := r.phasesOf(p.node); got != p.rolledBack {
				return lab.NotYet("%s says of %s when it was rolled back: %q, expected %q", node, p.node, got, p.rolledBack)
			}
		}
		return nil
	}
	for _, n := range s.lab.Names {
		s.await(healLimit, func() error { return look(n, "") })
	}
	s.stage("every node tells the same")

	s.powerOff(third)
	s.await(healLimit, func() error { return look(first, third) })
	s.stage("%s is off: what only it knows is marked", third)
	s.fenced = fencings(t, s.lab) // as it must be, for that
	s.must(s.lab.Power(s.ctx, third, true))
	s.streaming()
	for _, n := range s.lab.Names {
		s.await(healLimit, func() error { return look(n, "") })
	}
	s.stage("%s is back, and has told it again", third)

	s.must(s.lab.StopCluster(s.ctx, third))
	list, notHeard := s.history(third, "2")
	if len(list) != 2 || list[0].phasesOf(third) == "" || list[0].phasesOf(first) != "" || len(notHeard) != 1 {
		t.Errorf("where the cluster does not run: %+v, not heard %q; expected the journal of %s and nothing else", list, notHeard, third)
	}
	s.must(s.lab.StartCluster(s.ctx, third))
	s.finish()
}
