package baton

import (
	"fmt"
	"slices"
	"strings"
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

// newest is the newest claim that may have taken effect, besides the one with nonce own and what came of none of self's.
func (k Knowledge) newest(self, own string) *Claim {
	for i := len(k.Claims) - 1; i >= 0; i-- {
		if c := &k.Claims[i]; c.Open() && c.Nonce != own && (c.State == Effective || c.Node != self) {
			return c
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
