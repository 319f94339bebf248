package baton

import "github.com/pgbaton/pgbaton/internal/pgdisk"

// Promotion scores. Only their order matters to Pacemaker, and that -INFINITY forbids. A running primary is strictly on
// top, or the role would bounce (the promoted role is not sticky: Pacemaker Explained, "Promotion scores").
const (
	ScorePrimary  = 1001 // a running primary, and whoever holds the untaken note of its own clean end
	ScoreFollows  = 100  // a standby that streams
	ScoreDetached = 50   // a standby that does not stream at the moment: still better than nobody
	ScoreStarting = 10   // not known yet
)

// Standing is what a node's own score rests on.
type Standing struct {
	Primary   bool       // running and writable
	OwnNote   bool       // the newest note is this node's own and nobody used it up
	Streaming bool       // its WAL receiver is connected
	Starting  bool       // not consistent yet
	Written   pgdisk.LSN // how far a primary has written, where maxlag asks for it
	Forbidden bool       // refused, diverged or a twin
}

// Score is the promotion score for a standing; forbid asks for -INFINITY instead.
func Score(s Standing) (score int, forbid bool) {
	switch {
	case s.Primary:
		return ScorePrimary, false
	case s.Forbidden:
		return 0, true
	case s.OwnNote:
		return ScorePrimary, false
	case s.Streaming:
		return ScoreFollows, false
	case s.Starting:
		return ScoreStarting, false
	}
	return ScoreDetached, false
}

// Refusal is why a node gave itself -INFINITY.
type Refusal struct {
	Note   string // nonce of the note in force then, "" if there was none
	Claim  uint64 // Seq of the refused attempt
	Reason string
	// Crashed: a primary that left the role to others because it crashed. It may have it back once they have refused.
	Crashed bool
	// Dead: it crashed and does not start again.
	Dead bool
	// Soon: what is not known may be known in seconds.
	Soon bool `json:",omitempty"`
	// Starting: nothing speaks against it, but its server does not take connections yet.
	Starting bool `json:",omitempty"`
}

// Lift says whether a refusal has served: the standby follows the current primary and no constraint would promote it at
// once, or there is no primary and the note that it could not prove is no longer the one in force.
//
// While a note is in force there is no primary, whatever it looks like: the score on top is then that of the note's owner,
// and a WAL receiver that is cut off says for up to wal_receiver_timeout that it streams. The same while somebody else is
// being promoted with that note, and there a score that rises would call that promotion off.
func (r Refusal) Lift(primaryExists, streamsCurrent, favoured, underWay bool, inForce *Note, proven bool) bool {
	if underWay {
		return false
	}
	if primaryExists && inForce == nil {
		return streamsCurrent && !favoured
	}
	if inForce != nil && inForce.Nonce == r.Note && inForce.Kind != Abandoned { // positions decide in spite of that
		return proven
	}
	return true
}
