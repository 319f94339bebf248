package baton_test

import (
	"strings"
	"testing"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// missingQuorum is n2's question with a proof and one answer, its own, of three participants: n1 left with its node, n3
// runs no instance.
func missingQuorum() baton.Question {
	note := &baton.Note{Kind: baton.Clean, SystemID: 7, Timeline: 2, Start: 0x100, End: 0x110, CRC: 1, Node: "n1", Nonce: "N"}
	ch := baton.Challenge{Nonce: "q", Claim: baton.Claim{Seq: 2, Timeline: 3, Parent: 2, Switch: 0x110, Node: "n2", Nonce: "q", Note: "N", State: baton.Intended}}
	self := baton.Candidate{
		Node: "n2", SystemID: 7, Position: pgdisk.Position{Timeline: 2, LSN: 0x110},
		Last: &baton.LastRecord{Start: 0x100, End: 0x110, CRC: 1, ShutdownCheckpoint: true},
	}
	return baton.Question{
		Self: self, Challenge: ch, Participants: []string{"n1", "n2", "n3"}, Available: []string{"n2"},
		Bulletins: []baton.Bulletin{{Node: "n2", Note: note, Claims: []baton.Claim{ch.Claim}, Answer: &baton.Answer{Challenge: "q", SystemID: 7, Position: self.Position}}},
	}
}

// Ensure a quorum that cannot come of those who may answer is said to be out of reach, and that nodes which have the claim
// in the cluster's configuration count.
func TestDecide_Recorded(t *testing.T) {
	q := missingQuorum()
	if v := baton.Decide(q); v.Outcome != baton.Wait || !v.Unreachable || v.Answered {
		t.Errorf("nobody else can answer: %+v; want to wait, out of reach", v)
	}
	q.Available = []string{"n2", "n3"}
	if v := baton.Decide(q); v.Outcome != baton.Wait || v.Unreachable {
		t.Errorf("n3 may answer: %+v; want to wait for it", v)
	}
	q.Available, q.Recorded = []string{"n2"}, []string{"n2"}
	if v := baton.Decide(q); v.Outcome != baton.Wait {
		t.Errorf("recorded where only n2 is: %+v; want to wait: the answer and the record are one node", v)
	}
	q.Recorded = []string{"n2", "n9"}
	if v := baton.Decide(q); v.Outcome != baton.Wait {
		t.Errorf("recorded at a stranger: %+v; want to wait", v)
	}
	q.Recorded = []string{"n2", "n3"}
	if v := baton.Decide(q); v.Outcome != baton.Promote || v.Note == nil {
		t.Errorf("recorded at n3: %+v; want promote by the proof", v)
	}
}

// Ensure a loss of 0 bytes is told from one that nobody can measure.
func TestDecide_Measured(t *testing.T) {
	at := pgdisk.Position{Timeline: 2, LSN: 0x110}
	for _, tt := range []struct {
		name    string
		note    bool
		primary pgdisk.Position
		want    bool
		missing int64
	}{
		{"nobody has said anything", false, pgdisk.Position{}, false, 0},
		{"a note", true, pgdisk.Position{}, true, 0},
		{"a word of the primary", false, pgdisk.Position{Timeline: 2, LSN: 0x120}, true, 0x10},
		{"a word from before this one's last", false, pgdisk.Position{Timeline: 2, LSN: 0x100}, true, 0},
		{"a word of an older timeline's primary", false, pgdisk.Position{Timeline: 1, LSN: 0x900}, false, 0},
	} {
		q := missingQuorum()
		q.Self.Position = at
		if tt.primary != (pgdisk.Position{}) {
			q.Bulletins[0].Primary = &tt.primary
		}
		q.Ordered = &baton.Order{Stake: "note.N", By: "root"}
		if !tt.note {
			q.Bulletins[0].Note, q.Ordered.Stake = nil, "nothing"
		}
		if v := baton.Decide(q); v.Outcome != baton.Promote || v.Measured != tt.want || v.Missing != tt.missing {
			t.Errorf("%s: %+v; want measured: %v, missing %d bytes", tt.name, v, tt.want, tt.missing)
		}
	}
}

// Ensure a person's order does not need a quorum: it is for when none can be had.
func TestDecide_OrderWithoutQuorum(t *testing.T) {
	q := missingQuorum()
	q.Self.Position.LSN -= 0x10
	q.Ordered = &baton.Order{Stake: "note.N", By: "root"}
	if v := baton.Decide(q); v.Outcome != baton.Promote || v.Missing != 0x10 {
		t.Errorf("%+v; want promote with a loss of 16 bytes", v)
	}
	q.Ordered.Stake = "note.other"
	if v := baton.Decide(q); v.Outcome == baton.Promote {
		t.Errorf("an order for something else: %+v", v)
	}
}

// Ensure nobody is elected over a primary that was demoted as planned and has not said how it ended.
func TestDecide_DemotedIsSilent(t *testing.T) {
	q := missingQuorum()
	q.Bulletins[0].Note = nil
	q.Challenge.Claim.Note = ""
	q.Available, q.Settled, q.Demoted = []string{"n1", "n2", "n3"}, true, "n1"
	answer := &baton.Answer{Challenge: "q", SystemID: 7, Position: q.Self.Position, Live: true, Saw: 1}
	q.Bulletins = append(q.Bulletins, baton.Bulletin{Node: "n3", Answer: answer})
	if v := baton.Decide(q); v.Outcome != baton.Wait || !strings.Contains(v.Reason, "n1") {
		t.Errorf("%+v; want to wait for n1", v)
	}
	q.Demoted = ""
	if v := baton.Decide(q); v.Outcome != baton.Promote {
		t.Errorf("n1 is gone: %+v; want promote", v)
	}
	q.Demoted = "n1"
	q.Bulletins = append(q.Bulletins, baton.Bulletin{Node: "n1", Answer: answer})
	if v := baton.Decide(q); v.Outcome != baton.Promote {
		t.Errorf("n1 answered: %+v; want promote", v)
	}
}

// Ensure a claim alone survives being written into the cluster's configuration.
func TestEncodeClaim(t *testing.T) {
	want := missingQuorum().Challenge.Claim
	id, got, err := baton.DecodeClaim(baton.EncodeClaim(7, want))
	if err != nil || id != 7 || got != want {
		t.Errorf("%d, %+v, %v; want 7, %+v", id, got, err, want)
	}
	if _, _, err := baton.DecodeClaim("1;system=7"); err == nil {
		t.Error("no claim: no error")
	}
}

// Ensure that after a cold start so many must have answered that one of them was with the last primary to its end, whoever
// else made its quorum: nodes without an instance, a quorum device.
func TestVotes_Kept(t *testing.T) {
	for _, tt := range []struct {
		name         string
		votes        baton.Votes
		participants int
		want         int
	}{
		{"one node", baton.Votes{Expected: 1, Quorum: 1}, 1, 1},
		{"two nodes", baton.Votes{Expected: 2, Quorum: 1}, 2, 2},
		{"two nodes and a quorum device", baton.Votes{Expected: 3, Quorum: 2}, 2, 2},
		{"three nodes", baton.Votes{Expected: 3, Quorum: 2}, 3, 2},
		{"three nodes and a quorum device", baton.Votes{Expected: 4, Quorum: 3}, 3, 2},
		{"three of five nodes", baton.Votes{Expected: 5, Quorum: 3}, 3, 3},
		{"four nodes", baton.Votes{Expected: 4, Quorum: 3}, 4, 3},
		{"five nodes", baton.Votes{Expected: 5, Quorum: 3}, 5, 3},
		{"not known", baton.Votes{}, 3, 3},
	} {
		if got := tt.votes.Kept(tt.participants); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}
