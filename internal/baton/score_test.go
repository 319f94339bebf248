package baton_test

import (
	"testing"

	"github.com/pgbaton/pgbaton/internal/baton"
)

// Ensure that a running primary is strictly above everybody else, that whoever may take its role back is, too, and that
// what is forbidden stays so, except for who is primary already.
//
// Trap 14: a standby that does not follow is never preferred.
func TestScore(t *testing.T) {
	standby := []baton.Standing{{}, {Streaming: true}, {Starting: true}}
	top, forbid := baton.Score(baton.Standing{Primary: true, Forbidden: true})
	if forbid {
		t.Error("a running primary is forbidden")
	}
	if own, forbid := baton.Score(baton.Standing{OwnNote: true, Starting: true}); forbid || own != top {
		t.Errorf("whoever holds its own note: %d, forbidden %v; want %d", own, forbid, top)
	}
	for _, s := range standby {
		score, forbid := baton.Score(s)
		if forbid || score >= top || score <= 0 {
			t.Errorf("%+v: score %d, forbidden %v; want between 0 and %d", s, score, forbid, top)
		}
		s.Forbidden = true
		s.OwnNote = true
		if _, forbid := baton.Score(s); !forbid {
			t.Errorf("%+v: not forbidden", s)
		}
	}
}

// Ensure that a refusal is lifted when it has served, and not before.
func TestRefusal_Lift(t *testing.T) {
	note, other := &baton.Note{Nonce: "a"}, &baton.Note{Nonce: "b"}
	abandoned := &baton.Note{Nonce: "a", Kind: baton.Abandoned}
	r := baton.Refusal{Note: "a"}
	for _, c := range []struct {
		name                                         string
		primary, streams, favoured, underWay, proven bool
		inForce                                      *baton.Note
		want                                         bool
	}{
		{"follows the primary", true, true, false, false, false, nil, true},
		{"a constraint would promote it at once", true, true, true, false, false, nil, false},
		{"does not follow the primary", true, false, false, false, false, nil, false},
		{"no primary, and the note stands", false, false, false, false, false, note, false},
		{"no primary, and its instance was given up, so that whoever has most will do", false, false, false, false, false, abandoned, true},
		{"no primary, and what was missing has come", false, false, false, false, true, note, true},
		{"no primary, and another note", false, false, false, false, false, other, true},
		{"no primary, and no note", false, false, false, false, false, nil, true},
		{"somebody is being promoted with the note, whose owner still has the highest score", true, true, false, true, false, nil, false},
	} {
		if got := r.Lift(c.primary, c.streams, c.favoured, c.underWay, c.inForce, c.proven); got != c.want {
			t.Errorf("%s: lifted %v, want %v", c.name, got, c.want)
		}
	}
}
