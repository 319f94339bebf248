package agent

import (
	"strings"
	"testing"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

// Ensure that every action of one change of roles, on every node, names it the same, or leaves open what cannot be known
// there.
func TestChangeNow(t *testing.T) {
	note := &baton.Note{Kind: baton.Clean, Timeline: 2, Start: 0x100, End: 0x110, Node: "n1", Nonce: "N"}
	last := baton.Claim{Seq: 1, Timeline: 2, Parent: 1, Node: "n1", Nonce: "c1", State: baton.Effective}
	claim := func(s baton.ClaimState, note string) []baton.Claim {
		return []baton.Claim{last, {Seq: 2, Timeline: 3, Parent: 2, Switch: 0x110, Node: "n2", Nonce: "c2", Note: note, State: s}}
	}
	move := pacemaker.Plan{Promoted: []string{"n1"}, Demote: []string{"n1"}, Promote: []string{"n2"}}
	fenced := pacemaker.Plan{Promote: []string{"n2"}}
	answered := func(live bool) journal.Volatile {
		return journal.Volatile{Live: true, LastAnswer: &baton.Answer{Challenge: "c2", Live: live}}
	}
	intended, effective := claim(baton.Intended, ""), claim(baton.Effective, "")
	const handover, takeover, open = "handover from n1 to n2", "takeover from n1 to n2", "change of roles to n2"
	for _, tt := range []struct {
		name   string
		node   string
		action string
		plan   pacemaker.Plan
		state  journal.State
		vol    journal.Volatile
		with   func(*Agent)
		want   string
	}{
		{"handover", "n1", "pre-demote", move, journal.State{}, journal.Volatile{Live: true}, func(a *Agent) { a.serving = true }, handover},
		{"handover", "n3", "pre-demote", move, journal.State{}, journal.Volatile{Live: true}, nil, "change of roles from n1 to n2"}, // it may have crashed
		{"handover", "n1", "demote", move, journal.State{Claims: []baton.Claim{last}}, journal.Volatile{Live: true}, func(a *Agent) { a.serving = true }, handover},
		{"handover", "n1", "demote", move, journal.State{Note: note, Claims: []baton.Claim{last}}, journal.Volatile{Live: true}, nil, handover},
		{"handover", "n3", "post-demote", move, journal.State{Note: note, Claims: []baton.Claim{last}}, journal.Volatile{Live: true}, nil, handover},
		{"handover", "n3", "pre-promote", move, journal.State{Note: note, Claims: claim(baton.Intended, "N")}, answered(true), nil, handover},
		{"handover", "n2", "promote", move, journal.State{Note: note, Claims: claim(baton.Claimed, "N")}, answered(true), nil, handover},
		{"handover", "n2", "promote", move, journal.State{Note: note, Claims: claim(baton.Effective, "N")}, answered(true), nil, handover},
		{"handover", "n2", "post-promote", move, journal.State{Note: note, Claims: claim(baton.Effective, "N")}, answered(true), nil, handover},
		{"handover", "n3", "post-promote", move, journal.State{Note: note, Claims: claim(baton.Intended, "N")}, answered(true), nil, handover},
		{"the primary hangs", "n1", "pre-demote", move, journal.State{Refusal: &baton.Refusal{Crashed: true}}, journal.Volatile{Live: true}, func(a *Agent) { a.serving = true }, takeover},

		{"takeover", "n2", "pre-promote", fenced, journal.State{Claims: intended}, answered(true), nil, takeover},
		{"takeover", "n3", "pre-promote", fenced, journal.State{Claims: intended}, answered(true), nil, takeover},
		{"takeover", "n2", "promote", fenced, journal.State{Claims: claim(baton.Claimed, "")}, answered(true), nil, takeover},
		{"takeover", "n2", "promote", fenced, journal.State{Claims: effective}, answered(true), nil, takeover},
		{"takeover", "n2", "post-promote", fenced, journal.State{Claims: effective}, answered(true), nil, takeover},
		{"takeover", "n3", "post-promote", fenced, journal.State{Claims: intended}, answered(true), nil, takeover},
		{"not asked yet", "n3", "pre-promote", fenced, journal.State{Claims: []baton.Claim{last}}, journal.Volatile{Live: true}, nil, open},
		{"it was never asked", "n1", "post-promote", fenced, journal.State{Claims: []baton.Claim{last}}, journal.Volatile{Live: true}, nil, open},
		{"it has only booted", "n3", "pre-promote", fenced, journal.State{Claims: intended}, answered(false), nil, open},
		{"it has only booted, others have not", "n2", "promote", fenced, journal.State{Claims: claim(baton.Claimed, "")}, answered(false), func(a *Agent) { a.heardLive = true }, takeover},

		{"cold start", "n2", "pre-promote", fenced, journal.State{Claims: intended}, answered(false), func(a *Agent) { a.cold = true }, "cold start of n2"},
		{"cold start", "n2", "promote", fenced, journal.State{Claims: effective}, answered(false), func(a *Agent) { a.cold = true }, "cold start of n2"},
		{"cold start", "n2", "post-promote", fenced, journal.State{Claims: effective}, answered(false), nil, open},
	} {
		a := &Agent{inv: ocf.Invocation{Action: tt.action, Node: tt.node}, plan: tt.plan, state: tt.state, vol: tt.vol, live: tt.vol.Live}
		if phase, operation, ok := strings.Cut(tt.action, "-"); ok {
			a.inv.Action, a.plan.Phase, a.plan.Operation = "notify", phase, operation
		}
		a.change = baton.Classify(a.batonPlan())
		if tt.with != nil {
			tt.with(a)
		}
		if got := a.changeNow().String(); got != tt.want {
			t.Errorf("%s, %s on %s: %q, want %q", tt.name, tt.action, tt.node, got, tt.want)
		}
	}
}
