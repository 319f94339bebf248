package baton

import (
	"slices"

	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// Bulletin is what one node publishes for the others, as one value of one private attribute. Each node writes only its
// own; what it says of others is hearsay that [MergeClaims] and [Note.NewerThan] put in order.
type Bulletin struct {
	Node      string
	SystemID  uint64     // of the database cluster that it speaks of; 0: a release that did not say
	Note      *Note      // the newest note this node knows of, durably
	Claims    []Claim    // the claims it knows of, durably
	Challenge *Challenge // what this node asks, as the target of a promotion
	Answer    *Answer    // what it answered last
	// Primary is how far the last primary that this node knows of had written when its monitor last said so; nil unless
	// maxlag asks for it. It is as old as a monitor interval, and a second one on a standby.
	Primary *pgdisk.Position
}

// Challenge asks every participant for its position, and announces the claim that the target is about to make. An
// answer counts only for the challenge whose nonce it carries.
type Challenge struct {
	Nonce string
	Claim Claim // State Intended
}

// Answer is a participant's reply to a challenge. It is given only after the challenge's claim is on the participant's
// disk.
type Answer struct {
	Challenge string // nonce
	SystemID  uint64
	Position  pgdisk.Position
	Identity  uint32 // CRC of the first record of Position.Timeline, 0 if unknown
	Writable  bool   // this instance is a running primary
	Live      bool   // this node has seen a primary since it booted: the cluster was not just switched on
	Saw       uint64 // Seq of the newest claim it was there for since it booted, before this answer; see [Attend]
	Left      bool   // it left a running primary and has not caught up since; see [Left]
	Away      bool   // it was not there while a primary may have gone on with its node's part of the quorum, and has not caught up since
	// Unsure: it does not know yet how far its WAL goes, only that it goes as far as Position; it recovers from a crash, or its
	// disk is slow. Nobody can be preferred to it.
	Unsure bool
	Unfit  string // why it must not be promoted, "" if nothing is known against it
}

// saw reports whether the node was there since the claim was made, so that the end of its owner is a failure that the
// cluster saw, and not the past of one that was just switched on. Having seen some primary is not enough: the node may
// have been cut off before the claim.
func (a Answer) saw(c Claim) bool { return a.Live && a.Saw >= c.Seq }

// Attend says which claim a node was there for, once it has stored c and answered: that one, if it was there for the
// open ones before, too; for who was away when a claim was made does not learn how it ended by hearing of the next
// attempt. saw is what it was there for until now, claims is what it knows.
func Attend(saw uint64, claims []Claim, c Claim) uint64 {
	for _, o := range claims {
		if o.Open() && o.Nonce != c.Nonce && saw < o.Seq && o.Seq < c.Seq {
			return saw
		}
	}
	return max(saw, c.Seq)
}

// Informed says whether a node with these claims was there for all of them until now.
func Informed(live bool, saw uint64, node string, claims []Claim) bool {
	last := Knowledge{Claims: claims}.newest(node, "")
	return live && (last == nil || last.Seq <= saw)
}

// Candidate is what a node knows of its own instance when it asks to be promoted.
type Candidate struct {
	Node     string
	SystemID uint64
	Position pgdisk.Position
	History  pgdisk.History // ancestors of Position.Timeline
	Identity uint32         // CRC of the first record of Position.Timeline, 0 if unknown
	Last     *LastRecord    // nil if it could not be read
	Left     *Left          // it left a running primary and has not caught up since
	// Informed: of two nodes, this one was there when the other was gone already, and its node has not left the cluster since:
	// what the other does without it, once it is back, is recorded in the cluster's configuration.
	Informed bool
}

// Left is what a standby writes down when it leaves a cluster whose primary runs: from then on it misses what is committed,
// and nobody may take its word that it has everything until it has caught up with a primary.
type Left struct {
	Primary  string            `json:"primary"`
	Timeline pgdisk.TimelineID `json:"timeline"`
}

// Knowledge is what a node can say about the cluster's past from everything it can see: its own state and the
// bulletins of the others.
type Knowledge struct {
	Note    *Note           // the newest note
	Claims  []Claim         // merged, oldest first
	Primary pgdisk.Position // how far the last primary is known to have written, zero if nobody says
}

// Gather unites the bulletins. For the claims of a node that answered the challenge in force its own word is final: a
// claim that it still calls intended, or does not know, was not acted upon, and will not be, since its node has now
// stored a newer one. A claim that is newer than the challenge is not touched: an answer may come late, from a node that
// has meanwhile become a target itself.
func Gather(bulletins []Bulletin, challenge string) Knowledge {
	var k Knowledge
	lists := make([][]Claim, 0, len(bulletins))
	for _, b := range bulletins {
		if b.Note != nil && b.Note.NewerThan(k.Note) {
			k.Note = b.Note
		}
		lists = append(lists, b.Claims)
		if b.Primary != nil && better(*b.Primary, k.Primary) {
			k.Primary = *b.Primary
		}
	}
	k.Claims = MergeClaims(lists...)
	var seq uint64 // of the attempt in force
	for _, c := range k.Claims {
		if c.Nonce == challenge {
			seq = c.Seq
		}
	}
	for i := range k.Claims {
		c := &k.Claims[i]
		if c.State != Intended || c.Seq >= seq {
			continue
		}
		for _, b := range bulletins {
			if b.Node != c.Node || challenge == "" || b.Answer == nil || b.Answer.Challenge != challenge {
				continue
			}
			if !slices.ContainsFunc(b.Claims, func(own Claim) bool { return own.Nonce == c.Nonce && own.State != Intended }) {
				c.State = Withdrawn
			}
		}
	}
	return k
}

// UsableFor is Usable for a node that is about to make a claim: it has done with what it only intended before.
func (k Knowledge) UsableFor(node string) (*Note, error) {
	k.Claims = slices.DeleteFunc(slices.Clone(k.Claims), func(c Claim) bool { return c.Node == node && c.State == Intended })
	return k.Usable("")
}

// Settled is k without what is only intended: an intent does not use a note up.
func (k Knowledge) Settled() Knowledge {
	k.Claims = slices.DeleteFunc(slices.Clone(k.Claims), func(c Claim) bool { return c.State == Intended })
	return k
}

// Usable returns the newest note if a promotion may still rest on it: nobody has used it up, and no timeline newer than
// the one it ends was claimed. The claim with nonce own is the one being made and does not count. The error says why it is
// of no use any more.
func (k Knowledge) Usable(own string) (*Note, error) {
	if k.Note == nil {
		return nil, errNoNote
	}
	for _, c := range k.Claims {
		if !c.Open() || c.Nonce == own {
			continue
		}
		if c.Note == k.Note.Nonce {
			return nil, &UsedUpError{Note: *k.Note, By: c}
		}
		if c.Timeline > k.Note.Timeline {
			return nil, &UsedUpError{Note: *k.Note, By: c}
		}
	}
	return k.Note, nil
}
