package baton

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// Votes is how Corosync counts (votequorum(5)): the votes of the whole cluster, also of nodes that run no instance and of a
// quorum device, and how many of them make a quorum. The zero value: not known, or changing.
type Votes struct{ Expected, Quorum int }

// Kept is how many of n participants must have answered, after a cold start, that they did not leave before it. The last
// primary committed as long as its node was in a quorum. Of that, nodes and devices without an instance may have been
// a part, so that few or none of the other participants were. Among so many, or among all, there is one of those that
// were, or the last primary itself.
func (v Votes) Kept(n int) int {
	if v.Expected <= 0 || v.Quorum <= 0 {
		return n
	}
	with := v.Quorum - max(0, v.Expected-n) // at least so many participants were in its quorum, itself included
	return max(Quorum(n), n+1-max(1, with))
}

// elect compares positions, for want of a note, or of who has what an abandoned one names.
//
// Whoever was there when the last primary was gone vouches for it that no more is lost than replication lagged. After a
// cold start nobody was. Then so many that did not leave before must have answered, and everybody who is there, that one of
// them was with the last primary to the end ([Votes.Kept]). Who was stopped for want of a quorum was in none without an
// instance.
func elect(q Question, know Knowledge, answers map[string]Answer, avoid []Claim, note *Note, noteErr error) Verdict {
	awaited := silent(q, answers)
	if q.Settled {
		awaited = nil
	}
	if due := noteDue(q, know); len(awaited) > 0 && due != nil && due.Kind != Abandoned {
		return wait("no answer yet from %s", names(awaited)) // positions may not matter
	}
	last := know.newest(q.Self.Node, q.Challenge.Nonce)
	newest := q.heardOfAll() || q.Self.Informed // so that no later claim than last can be unknown
	stayed, kept := false, 0
	var unsure []string
	for node, a := range answers {
		other := node != q.Self.Node
		if a.Unfit != "" && !a.Unsure || a.SystemID != q.Self.SystemID || other && diverged(a, q.Self, know) {
			continue
		}
		if other && better(a.Position, q.Self.Position) {
			return refuse("%s has more WAL: it ends at %s, %s at %s", node, a.Position, q.Self.Node, q.Self.Position)
		}
		if other && a.Unsure {
			unsure = append(unsure, node)
			continue
		}
		stayed = stayed || sawItGo(node, a, last, newest)
		if !a.Away {
			kept++
		}
	}
	if len(awaited) > 0 {
		return wait("no answer yet from %s", names(awaited)) // only now: who has more is no less so for their silence
	}
	if len(unsure) > 0 {
		slices.Sort(unsure)
		why := answers[unsure[0]].Unfit
		v := refuse("how far the WAL of %s goes is not known yet, it may have more (%s)", strings.Join(unsure, ", "), cmp.Or(why, "it is still being read"))
		v.Soon = true
		return v
	}
	if _, ok := answers[q.Demoted]; q.Demoted != "" && !ok {
		// It was demoted as the plan said, so that it knows how it ended; a choice without its word could lose what it has.
		return wait("%s was primary and is there, but says neither how it ended nor how far it is", q.Demoted)
	}
	if l := q.Self.Left; l != nil && !stayed {
		return refuse("%s left while %s was primary of timeline %d, and misses what was committed since: start %s, or accept the loss", q.Self.Node, l.Primary, l.Timeline, l.Primary)
	}
	strict := func(c Claim) bool {
		for _, a := range answers {
			if a.saw(c) {
				return false
			}
		}
		return true
	}
	if err := ancestry(q.Self, know, q.Challenge.Nonce, strict); err != nil {
		return refuse("%v", err)
	}
	if !stayed {
		who, start := "the last primary", ""
		if last != nil {
			who = last.Node
		}
		if start = who; last == nil || who == q.Self.Node {
			start = "the others"
		}
		if q.Votes == nil {
			v := wait("how many votes make a quorum is not known yet")
			v.Uncounted = true
			return v
		}
		need := q.Votes.Kept(len(q.Participants))
		if kept < need {
			return refuse("nobody who answered saw how %s ended, and %d of %d participants answered that they did not leave before it, %d needed: start %s, or accept the loss", who, kept, len(q.Participants), need, start)
		}
		if absent := silent(q, answers); len(absent) > 0 {
			return refuse("nobody who answered saw how %s ended, and from %s, which is there, no answer has come", who, names(absent))
		}
	}
	missing, measured := missing(q.Self, know), measured(q.Self, know, note)
	if q.MaxLag > 0 && missing > q.MaxLag {
		return refuse("%s lacks at least %d bytes that the last primary had, maxlag allows %d", q.Self.Node, missing, q.MaxLag)
	}
	lost := "what is lost is not known: nobody has heard how far the last primary was"
	if missing > 0 {
		lost = fmt.Sprintf("at least %d bytes of WAL are lost", missing)
	} else if measured {
		lost = "nothing is known to be lost"
	}
	reason := fmt.Sprintf("%s has the best position of %d that answered, %s; %v; %s", q.Self.Node, len(answers), q.Self.Position, noteErr, lost)
	return Verdict{Outcome: Promote, Avoid: avoid, Missing: missing, Measured: measured, Reason: reason}
}

// heardOfAll reports whether so many participants have said what they know that any claim is known to one of them: a quorum
// of them has stored it. Of two nodes the survivor alone has, and one that comes back alone, with a quorum device or a third
// node that runs no instance, cannot know whether the other was primary after it.
func (q Question) heardOfAll() bool {
	n, heard := len(q.Participants), 0
	for _, b := range q.Bulletins {
		if slices.Contains(q.Participants, b.Node) {
			heard++
		}
	}
	return heard > n-Quorum(n)
}

// sawItGo reports whether the node was the last primary, that of the claim last, or a standby of it until it was gone. It
// could be promoted itself, so that a candidate that has no less than it has loses nothing more, even if it was away in
// between. A standby that came back and has not caught up yet cannot: what it lacks is no lag. newest: there is no newer claim
// than last.
func sawItGo(node string, a Answer, last *Claim, newest bool) bool {
	switch {
	case a.Left:
		return false
	case last == nil:
		return a.Live && !a.Away
	}
	return a.saw(*last) && !a.Away || newest && last.Node == node && last.Timeline == a.Position.Timeline
}

// missing says how many bytes of WAL the candidate is known to lack: of what the last primary said it had written, of a
// note that somebody else may have used up, and of what was there when a timeline was claimed.
func missing(self Candidate, know Knowledge) int64 {
	end := self.Position.LSN
	if know.Primary.Timeline >= self.Position.Timeline {
		end = max(end, know.Primary.LSN)
	}
	if n := know.Note; n != nil && n.Timeline >= self.Position.Timeline {
		end = max(end, n.End)
	}
	for _, c := range know.Claims {
		if c.Open() && c.Parent >= self.Position.Timeline {
			end = max(end, c.Switch)
		}
	}
	return int64(end - self.Position.LSN)
}

// measured reports whether anybody knows how far the last primary was: by the word that it publishes with maxlag, or by a note
// that nobody used up.
func measured(self Candidate, know Knowledge, note *Note) bool {
	return note != nil || know.Primary.Timeline != 0 && know.Primary.Timeline >= self.Position.Timeline
}

func better(a, b pgdisk.Position) bool {
	if a.Timeline != b.Timeline {
		return a.Timeline > b.Timeline
	}
	return a.LSN > b.LSN
}
