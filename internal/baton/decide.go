package baton

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// Outcome is what the target of a promotion does next.
type Outcome int

const (
	// Wait: not now, but what is missing may still arrive.
	Wait Outcome = iota
	// Promote: everything that the rules ask for is there.
	Promote
	// Refuse: this instance must not be promoted in this attempt.
	Refuse
)

func (o Outcome) String() string {
	return [...]string{"wait", "promote", "refuse"}[o]
}

// Question is everything that decides whether Self may be promoted.
type Question struct {
	Self         Candidate
	Bulletins    []Bulletin // the newest of every node that can be seen, its own included
	Challenge    Challenge  // in force; the zero value for a lone promotion
	Participants []string   // nodes known to run an instance, as far as they belong to the cluster
	Available    []string   // nodes from which an answer may be expected: online, with an instance
	Recorded     []string   // nodes that have the claim in their copy of the cluster's configuration; see [Question.stored]
	Demoted      string     // the node whose primary this plan demotes and does not stop, "" if there is none: it must answer
	Settled      bool       // no further answer is worth waiting for
	Lone         bool       // run by hand, without a plan: nobody answers
	Ordered      *Order     // a person's order to promote Self in spite of a loss
	Votes        *Votes     // how Corosync counts, nil as long as that was not asked: see [Verdict.Uncounted]
	MaxLag       int64      // bytes that a takeover may lack of what the last primary said it had, 0: not enforced
}

// Verdict is the answer to a [Question].
type Verdict struct {
	Outcome  Outcome
	Reason   string  // one sentence for the log: why, or what is waited for
	Note     *Note   // with Promote: the note whose proof holds, nil in an election; else the one that is to be proven
	Avoid    []Claim // timelines that need a history file so that PostgreSQL starts the one that is claimed
	Answered bool    // with Wait: the answers are there, only WAL is missing
	Behind   bool    // with Wait: WAL is missing, whether the answers are there or not
	Soon     bool    // with Refuse: what is not known may be known in seconds
	// Uncounted, with Wait: it depends on the votes, which are asked for only then.
	Uncounted bool
	// Unreachable, with Wait: no quorum can come of the nodes that may still answer.
	Unreachable bool
	Missing     int64 // bytes of WAL that the last primary is known to have had and Self lacks, in an election
	// Measured: how far the last primary was is known, by its own word or its note. Without, a Missing of 0 says nothing.
	Measured bool
}

// Decide is the rule by which an instance becomes primary.
//
//  1. A quorum of participants has stored the claim that is being made (invariant 8).
//  2. While a note can be used, whoever proves that it has that record, and nothing behind it, is promoted; nobody else
//     (invariant 2).
//  3. Without one, the best position among those who answered is promoted, if it descends from every timeline that may
//     hold rows, or if the cluster saw their owner go (invariant 3).
func Decide(q Question) Verdict {
	know := Gather(q.Bulletins, q.Challenge.Nonce)
	v := decide(q, know)
	if v.Outcome == Promote {
		return v
	}
	v.Note = noteDue(q, know)
	if v.Outcome == Wait && !v.Answered && v.Note != nil && behind(*v.Note, q.Self) {
		// Answers would not help it.
		v.Reason, v.Behind = fmt.Sprintf("%v; %s", Proof(*v.Note, q.Self), v.Reason), true
	}
	return v
}

func decide(q Question, know Knowledge) Verdict {
	if w := writable(q); w != "" {
		return refuse("%s is still a writable primary", w)
	}
	note, noteErr := know.Usable(q.Challenge.Nonce)
	if q.Lone {
		return decideLone(q, know, note)
	}
	if err := superseded(q, know); err != nil {
		return refuse("%v", err)
	}

	answers := answersTo(q)
	avoid := avoid(q, know)
	if q.Ordered != nil && q.Ordered.Stake == know.Stake(q.Challenge.Nonce) {
		lost := missing(q.Self, know)
		return Verdict{
			Outcome: Promote, Avoid: avoid, Missing: lost, Measured: measured(q.Self, know, note),
			Reason: fmt.Sprintf("%s ordered it and accepted a loss of at least %d bytes of WAL", q.Ordered.By, lost),
		}
	}
	need := q.needed(answers, know)
	if stored := q.stored(answers); stored < need {
		lack := silent(q, answers)
		v := wait("%d of %d participants stored the claim, %d needed; silent: %s", stored, len(q.Participants), need, names(lack))
		v.Unreachable = stored+len(lack) < need
		if len(q.Participants) == 2 && v.Unreachable {
			other := q.other()
			v.Reason = fmt.Sprintf("%s was not there all the time and cannot know what %s did without it: start %s, or accept the loss", q.Self.Node, other, other)
		}
		return v
	}
	if note != nil {
		err := Proof(*note, q.Self)
		switch {
		case err != nil && note.Kind == Abandoned:
			return elect(q, know, answers, avoid, note, fmt.Errorf("%s does not start again", note.Node))
		case err != nil:
			if behind(*note, q.Self) {
				v := wait("%v", err)
				v.Answered, v.Behind = true, true
				return v
			}
			return refuse("%v", err)
		}
		return Verdict{Outcome: Promote, Note: note, Avoid: avoid, Reason: fmt.Sprintf("%s has everything: the %s", q.Self.Node, note)}
	}
	return elect(q, know, answers, avoid, nil, noteErr)
}

// noteDue is the note that can be used as soon as those that are still to answer have done so: with its answer a node has
// done with what it only intended before ([Gather]). A target that Pacemaker drops once it has asked leaves such an intent.
func noteDue(q Question, know Knowledge) *Note {
	note, err := know.Usable(q.Challenge.Nonce)
	if err == nil {
		return note
	}
	awaited := silent(q, answersTo(q))
	know.Claims = slices.DeleteFunc(slices.Clone(know.Claims), func(c Claim) bool {
		return c.State == Intended && slices.Contains(awaited, c.Node)
	})
	note, err = know.Usable(q.Challenge.Nonce)
	if err != nil || q.Self.Position.Timeline > note.Timeline {
		return nil // what looks like an intent was carried out, and this node has followed it
	}
	return note
}

// stored counts the participants that are known to have the claim on disk: those that answered, and those that have it in
// their copy of the cluster's configuration, where the target puts it when too few nodes run an instance to answer.
func (q Question) stored(answers map[string]Answer) int {
	n := len(answers)
	for _, node := range q.Recorded {
		if _, ok := answers[node]; !ok && slices.Contains(q.Participants, node) {
			n++
		}
	}
	return n
}

// behind reports whether more WAL of its timeline could give a candidate the record that the note names.
func behind(note Note, self Candidate) bool {
	return note.Kind != Abandoned && self.Position.Timeline == note.Timeline && self.Position.LSN < note.End
}

// Quorum is the number of n participants, the asking one included, that must have stored a claim. Of two, one is
// enough for the survivor: Corosync's two_node lets it go on once the other is fenced. See [Question.needed].
func Quorum(n int) int {
	if n <= 2 {
		return 1
	}
	return n/2 + 1
}

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

// needed is how many participants must have stored the claim. Of two, one is enough if the other is gone and this one was
// there for all that has been since: one that was switched on does not know what the other did without it, and one that is
// there could take its own old note for good later.
func (q Question) needed(answers map[string]Answer, know Knowledge) int {
	n := len(q.Participants)
	if n != 2 {
		return Quorum(n)
	}
	own := answers[q.Self.Node]
	last := know.newest(q.Self.Node, q.Challenge.Nonce)
	there := own.Live && (last == nil || own.saw(*last)) || q.Self.Informed
	if len(silent(q, answers)) == 0 && there {
		return Quorum(n)
	}
	return n
}

// other is the other one of two participants.
func (q Question) other() string {
	for _, n := range q.Participants {
		if n != q.Self.Node {
			return n
		}
	}
	return ""
}

func decideLone(q Question, know Knowledge, note *Note) Verdict {
	if err := ancestry(q.Self, know, q.Challenge.Nonce, func(Claim) bool { return true }); err != nil {
		return refuse("%v", err)
	}
	avoid := avoid(q, know)
	if note != nil && note.Kind != Clean {
		return refuse("promoted by hand and alone, %s needs a primary that was shut down cleanly; the last one crashed and left the %s", q.Self.Node, note)
	}
	if note != nil {
		if err := Proof(*note, q.Self); err != nil {
			return refuse("%v", err)
		}
		return Verdict{Outcome: Promote, Note: note, Avoid: avoid, Reason: fmt.Sprintf("%s has everything: the %s", q.Self.Node, note)}
	}
	if q.Self.Last == nil || !q.Self.Last.ShutdownCheckpoint || q.Self.Last.End != q.Self.Position.LSN {
		return refuse("promoted by hand and alone, %s needs WAL that ends with the shutdown checkpoint of a primary; it ends at %s without one", q.Self.Node, q.Self.Position)
	}
	return Verdict{Outcome: Promote, Avoid: avoid, Reason: fmt.Sprintf("the WAL of %s ends with the shutdown checkpoint of a primary at %s", q.Self.Node, q.Self.Position)}
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

// newest is the newest claim that may have taken effect, besides the one with nonce own and what came of none of self's.
func (k Knowledge) newest(self, own string) *Claim {
	for i := len(k.Claims) - 1; i >= 0; i-- {
		if c := &k.Claims[i]; c.Open() && c.Nonce != own && (c.State == Effective || c.Node != self) {
			return c
		}
	}
	return nil
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

// ancestry checks the candidate against the timelines that may hold rows, newest attempt first. Once it descends from
// one of them, the older ones were dealt with by whoever made that claim. Where strict, the candidate must descend from the
// claim; otherwise it is enough that it lies on the way there, because somebody was there when its owner went and this is
// a takeover. Nobody but its owner knows where a claim that did not get as far as to be effective forked.
func ancestry(self Candidate, know Knowledge, own string, strict func(Claim) bool) error {
	for _, c := range slices.Backward(know.Claims) {
		if !c.Open() || c.Nonce == own {
			continue
		}
		if descends(self, c) {
			return nil
		}
		if c.Node == self.Node && c.State != Effective {
			// Our own attempt that did not come to anything: nobody knows that better.
			continue
		}
		if c.State == Effective && !onTheWay(self, c, know.Claims) {
			return fmt.Errorf("%s is not known to lie on the way to %s: its WAL ends at %s", self.Node, c, self.Position)
		}
		if strict(c) {
			return fmt.Errorf("%s is behind %s: start %s, or accept the loss", self.Node, c, c.Node)
		}
		if c.State == Effective {
			return nil
		}
	}
	return nil
}

// descends reports whether the candidate's line runs through the claimed timeline. The number says it, since no number
// is started twice; what else is known of an effective one must fit.
func descends(self Candidate, c Claim) bool {
	if self.Position.Timeline == c.Timeline {
		if c.CRC != 0 && self.Identity != 0 && c.CRC != self.Identity {
			return false
		}
	} else if _, ok := self.History.SwitchPointOf(c.Timeline); !ok {
		return false
	}
	if c.State != Effective {
		return true
	}
	sw, ok := self.History.SwitchPointOf(c.Parent)
	return ok && sw == c.Switch
}

// onTheWay reports whether the candidate's WAL ends on the line that leads to an effective claim. A candidate that is
// more than one timeline behind can only be told from a diverged one if the claims in between are known.
func onTheWay(self Candidate, c Claim, claims []Claim) bool {
	end := c.Switch
	for range len(claims) + 1 {
		if self.Position.Timeline == c.Parent {
			return self.Position.LSN <= end
		}
		i := slices.IndexFunc(claims, func(p Claim) bool { return p.Timeline == c.Parent && p.State == Effective })
		if i < 0 {
			return false
		}
		c = claims[i]
		end = min(end, c.Switch)
	}
	return false
}

// diverged reports whether the answerer is on a branch that was left: behind the point where the candidate's own line,
// or that to the newest effective claim, went another way; or on a twin of that claim's timeline. It may have more bytes,
// but not more of this history.
func diverged(a Answer, self Candidate, know Knowledge) bool {
	p := a.Position
	if sw, ok := self.History.SwitchPointOf(p.Timeline); ok && p.LSN > sw {
		return true
	}
	for _, c := range slices.Backward(know.Claims) {
		if c.State != Effective {
			continue
		}
		switch {
		case p.Timeline == c.Timeline:
			return a.Identity != 0 && c.CRC != 0 && a.Identity != c.CRC
		case p.Timeline == c.Parent:
			return p.LSN > c.Switch
		case c.Parent < p.Timeline && p.Timeline < c.Timeline:
			return true
		}
	}
	return false
}

func better(a, b pgdisk.Position) bool {
	if a.Timeline != b.Timeline {
		return a.Timeline > b.Timeline
	}
	return a.LSN > b.LSN
}

// avoid lists every timeline number between the candidate's and the claimed one: a history file must stand for each of
// them. PostgreSQL looks for history files one number after the other and takes the first that has none
// (findNewestTimeLine in src/backend/access/transam/timeline.c), so that one gap would make it start another timeline
// than the claimed one, which nobody knows of; and a standby that follows asks its primary for the history of each
// number on the way (WalRcvFetchTimeLineHistoryFiles).
//
// What is listed says whose claim on the number is known, and as its parent the candidate's own timeline.
func avoid(q Question, know Knowledge) []Claim {
	var list []Claim
	for t := q.Self.Position.Timeline + 1; t < q.Challenge.Claim.Timeline; t++ {
		c := Claim{Timeline: t, Node: "nobody", State: Withdrawn}
		for _, k := range know.Claims {
			if k.Timeline == t && k.Nonce != q.Challenge.Nonce {
				c = k
			}
		}
		c.Parent, c.Switch = q.Self.Position.Timeline, q.Self.Position.LSN
		list = append(list, c)
	}
	return list
}

// superseded says whether the attempt in force is off: withdrawn, or another one is known that it did not reckon with. The
// next attempt will.
func superseded(q Question, know Knowledge) error {
	own := q.Challenge.Claim
	for _, c := range know.Claims {
		switch {
		case c.Nonce == q.Challenge.Nonce && c.State == Withdrawn:
			// Refused before; what is written down as never to be started must not be started.
			return fmt.Errorf("%s has withdrawn this attempt: %s", c.Node, c)
		case c.Nonce == q.Challenge.Nonce:
		case c.Open() && c.Seq >= own.Seq:
			return fmt.Errorf("a newer attempt is known: %s", c)
		case c.Open() && c.Timeline >= own.Timeline:
			return fmt.Errorf("timeline %d may exist already: %s", own.Timeline, c)
		}
	}
	return nil
}

func writable(q Question) string {
	for _, b := range q.Bulletins {
		if b.Answer != nil && b.Answer.Challenge == q.Challenge.Nonce && q.Challenge.Nonce != "" && b.Answer.Writable && b.Node != q.Self.Node {
			return b.Node
		}
	}
	return ""
}

func answersTo(q Question) map[string]Answer {
	got := map[string]Answer{}
	for _, b := range q.Bulletins {
		if b.Answer != nil && b.Answer.Challenge == q.Challenge.Nonce && slices.Contains(q.Participants, b.Node) {
			got[b.Node] = *b.Answer
		}
	}
	return got
}

func silent(q Question, answers map[string]Answer) []string {
	var list []string
	for _, n := range q.Participants {
		if _, ok := answers[n]; !ok && slices.Contains(q.Available, n) {
			list = append(list, n)
		}
	}
	return list
}

func names(list []string) string {
	if len(list) == 0 {
		return "none that is online"
	}
	return strings.Join(list, ", ")
}

func wait(format string, args ...any) Verdict {
	return Verdict{Outcome: Wait, Reason: fmt.Sprintf(format, args...)}
}

func refuse(format string, args ...any) Verdict {
	return Verdict{Outcome: Refuse, Reason: fmt.Sprintf(format, args...)}
}
