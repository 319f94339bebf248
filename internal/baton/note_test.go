package baton_test

import (
	"strings"
	"testing"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// Ensure that only the very record that the note names, as the last one, is a proof.
func TestProof(t *testing.T) {
	note := baton.Note{Kind: baton.Clean, SystemID: 7, Timeline: 3, Start: 0x128, End: 0x1A0, CRC: 0xC0FFEE, Node: "n1", Nonce: "a"}
	has := func(change func(*baton.Candidate)) baton.Candidate {
		c := baton.Candidate{
			Node: "n2", SystemID: 7, Position: pgdisk.Position{Timeline: 3, LSN: 0x1A0},
			Last: &baton.LastRecord{Start: 0x128, End: 0x1A0, CRC: 0xC0FFEE, ShutdownCheckpoint: true},
		}
		change(&c)
		return c
	}
	for _, c := range []struct {
		name   string
		change func(*baton.Candidate)
		wrong  string
	}{
		{"the record", func(*baton.Candidate) {}, ""},
		{"another cluster", func(c *baton.Candidate) { c.SystemID = 8 }, "another database cluster"},
		{"another timeline", func(c *baton.Candidate) { c.Position.Timeline = 4 }, "on timeline 4"},
		{"one byte less", func(c *baton.Candidate) { c.Position.LSN-- }, "lacks the last 1 bytes"},
		{"one byte more", func(c *baton.Candidate) { c.Position.LSN++ }, "1 bytes of WAL that n1 never wrote"},
		{"unreadable", func(c *baton.Candidate) { c.Last = nil }, "could not be read"},
		{"another checksum", func(c *baton.Candidate) { c.Last.CRC++ }, "expected the shutdown checkpoint"},
		{"another start", func(c *baton.Candidate) { c.Last.Start-- }, "expected the shutdown checkpoint"},
		{"another end", func(c *baton.Candidate) { c.Last.End-- }, "expected the shutdown checkpoint"},
		{"no checkpoint", func(c *baton.Candidate) { c.Last.ShutdownCheckpoint = false }, "not a shutdown checkpoint"},
	} {
		err := baton.Proof(note, has(c.change))
		switch {
		case c.wrong == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)):
			t.Errorf("%s: got error %v, want one with %q", c.name, err, c.wrong)
		}
	}
	// A crashed primary may have written any record last.
	note.Kind = baton.Crash
	if err := baton.Proof(note, has(func(c *baton.Candidate) { c.Last.ShutdownCheckpoint = false })); err != nil {
		t.Errorf("crash note: %v", err)
	}
}

// Ensure that being there for a claim is not learned from the next one.
func TestAttend(t *testing.T) {
	claims := []baton.Claim{
		{Seq: 4, Nonce: "a", State: baton.Effective},
		{Seq: 5, Nonce: "b", State: baton.Intended},
		{Seq: 6, Nonce: "c", State: baton.Withdrawn},
		{Seq: 7, Nonce: "d", State: baton.Intended},
	}
	for _, c := range []struct{ saw, want uint64 }{{0, 0}, {4, 4}, {5, 7}, {6, 7}, {9, 9}} {
		if got := baton.Attend(c.saw, claims, claims[3]); got != c.want {
			t.Errorf("there for claim %d, asked with claim 7: got %d, want %d", c.saw, got, c.want)
		}
	}
}

// Ensure that an answer that comes late, from a node that has become a target itself meanwhile, withdraws nothing newer
// than what was asked.
func TestGather_LateAnswer(t *testing.T) {
	older := baton.Claim{Seq: 3, Timeline: 3, Parent: 2, Node: "n1", Nonce: "older", State: baton.Intended}
	asked := baton.Claim{Seq: 4, Timeline: 4, Parent: 2, Node: "n2", Nonce: "asked", State: baton.Intended}
	newer := baton.Claim{Seq: 5, Timeline: 5, Parent: 2, Node: "n1", Nonce: "newer", State: baton.Intended}
	answer := &baton.Answer{Challenge: "asked"}
	know := baton.Gather([]baton.Bulletin{
		{Node: "n1", Claims: []baton.Claim{older, asked, newer}, Answer: answer},
		{Node: "n2", Claims: []baton.Claim{asked}, Answer: answer},
	}, "asked")
	want := map[string]baton.ClaimState{"older": baton.Withdrawn, "asked": baton.Intended, "newer": baton.Intended}
	for _, c := range know.Claims {
		if c.State != want[c.Nonce] {
			t.Errorf("%s: got %s, want %s", c.Nonce, c.State, want[c.Nonce])
		}
	}
}

// Ensure that the note of the later end wins, whoever tells of it: by timeline first, for a later timeline may end at an
// earlier position than one that was given up.
func TestNote_NewerThan(t *testing.T) {
	at := func(tl pgdisk.TimelineID, end pgdisk.LSN) *baton.Note { return &baton.Note{Timeline: tl, End: end} }
	for _, c := range []struct {
		n, other *baton.Note
		want     bool
	}{
		{at(1, 0x100), nil, true},
		{at(2, 0x100), at(1, 0x200), true},
		{at(1, 0x200), at(2, 0x100), false},
		{at(2, 0x201), at(2, 0x200), true},
		{at(2, 0x200), at(2, 0x200), false},
		{at(2, 0x1FF), at(2, 0x200), false},
	} {
		if got := c.n.NewerThan(c.other); got != c.want {
			t.Errorf("%+v newer than %+v: %v, want %v", c.n, c.other, got, c.want)
		}
	}
}

// Ensure that an attempt is off when something is known that it did not reckon with.
func TestDecide_Superseded(t *testing.T) {
	own := baton.Claim{Seq: 5, Timeline: 4, Parent: 3, Switch: 0x200, Node: "n2", Nonce: "own", State: baton.Intended}
	note := &baton.Note{Kind: baton.Clean, Timeline: 3, Start: 0x180, End: 0x200, Node: "n1", Nonce: "a"}
	ask := func(other baton.Claim) baton.Verdict {
		answer := &baton.Answer{Challenge: "own", Position: note.Position()}
		return baton.Decide(baton.Question{
			Self: baton.Candidate{
				Node: "n2", Position: note.Position(),
				Last: &baton.LastRecord{Start: 0x180, End: 0x200, ShutdownCheckpoint: true},
			},
			Challenge: baton.Challenge{Nonce: "own", Claim: own}, Participants: []string{"n1", "n2", "n3"},
			Bulletins: []baton.Bulletin{
				{Node: "n1", Note: note, Claims: []baton.Claim{own, other}, Answer: answer},
				{Node: "n2", Claims: []baton.Claim{own}, Answer: answer},
			},
		})
	}
	for _, c := range []struct {
		name string
		seq  uint64
		tl   pgdisk.TimelineID
		st   baton.ClaimState
		want string
	}{
		{"an older one that is off", 4, 4, baton.Withdrawn, "n2 has everything"},
		{"a newer one that is off", 6, 5, baton.Withdrawn, "n2 has everything"},
		{"a newer one", 6, 5, baton.Intended, "a newer attempt is known"},
		{"one at the same time", 5, 4, baton.Claimed, "a newer attempt is known"},
		{"an older one of the same number", 4, 4, baton.Claimed, "timeline 4 may exist already"},
		{"an older one of a higher number", 4, 9, baton.Effective, "timeline 4 may exist already"},
	} {
		v := ask(baton.Claim{Seq: c.seq, Timeline: c.tl, Parent: 3, Switch: 0x200, Node: "n3", Nonce: "other", State: c.st})
		if promote := c.st == baton.Withdrawn; promote != (v.Outcome == baton.Promote) || !strings.Contains(v.Reason, c.want) {
			t.Errorf("%s: got %s, %q, want %q", c.name, v.Outcome, v.Reason, c.want)
		}
	}
}
