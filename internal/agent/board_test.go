package agent

import (
	"testing"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/ocf"
)

// Ensure that a node keeps the score of its own unused note while it is itself being promoted with it, and gives it up as
// soon as somebody else may have been.
func TestOwnNote(t *testing.T) {
	note := &baton.Note{Kind: baton.Clean, Timeline: 2, Start: 0x100, End: 0x110, Node: "n1", Nonce: "N"}
	claim := func(node string, s baton.ClaimState) []baton.Claim {
		return []baton.Claim{{Seq: 2, Timeline: 3, Parent: 2, Switch: 0x110, Node: node, Nonce: "c2", Note: "N", State: s}}
	}
	for _, c := range []struct {
		name   string
		node   string
		claims []baton.Claim
		want   bool
	}{
		{"nobody used it", "n1", nil, true},
		{"it means to use it itself", "n1", claim("n1", baton.Intended), true},
		{"its own attempt is withdrawn", "n1", claim("n1", baton.Withdrawn), true},
		{"its own promotion may be under way", "n1", claim("n1", baton.Claimed), false},
		{"it was promoted with it", "n1", claim("n1", baton.Effective), false},
		{"somebody else means to", "n1", claim("n2", baton.Intended), false},
		{"somebody else was promoted", "n1", claim("n2", baton.Effective), false},
		{"it is another node's", "n2", nil, false},
	} {
		a := &Agent{inv: ocf.Invocation{Node: c.node}, state: journal.State{Note: note, Claims: c.claims}}
		if got := a.ownNote(); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
