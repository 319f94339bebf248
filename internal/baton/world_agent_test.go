package baton_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// The agent, as internal/agent has it.

func (n *sim) publish(c *baton.Challenge, a *baton.Answer) {
	b := baton.Bulletin{Node: n.name, Note: n.note, Claims: slices.Clone(n.claims), Challenge: c, Answer: a}
	if got, err := baton.Decode(b.Encode()); err != nil {
		panic(err)
	} else {
		n.board = &got
	}
}

// others mirrors board.go: what every node in sight has published, this one's own with what is on its disk.
func (w *world) others(n *sim, sight []string) []baton.Bulletin {
	var l []baton.Bulletin
	for _, o := range w.nodes {
		if !o.on || o.board == nil || (o != n && !slices.Contains(sight, o.name)) {
			continue
		}
		b := *o.board
		if o == n {
			if b.Note == nil || (n.note != nil && n.note.NewerThan(b.Note)) {
				b.Note = n.note
			}
			b.Claims = baton.MergeClaims(b.Claims, n.claims)
		}
		l = append(l, b)
	}
	if n.board == nil {
		l = append(l, baton.Bulletin{Node: n.name, Note: n.note, Claims: n.claims})
	}
	return l
}

func (n *sim) learn(list []baton.Bulletin) {
	know := baton.Gather(list, "")
	if know.Note != nil && know.Note.NewerThan(n.note) {
		n.note = know.Note
	}
	n.claims = baton.MergeClaims(know.Claims, n.claims)
}

// attend mirrors witness in monitor.go: a node that streams a timeline is there for its claim.
func (n *sim) attend() {
	for _, c := range n.claims {
		if c.Timeline == n.timeline() {
			n.attended = max(n.attended, c.Seq)
		}
	}
}

func (n *sim) candidate() baton.Candidate {
	l := n.log[len(n.log)-1]
	return baton.Candidate{
		Node: n.name, SystemID: 7, Position: n.position(), History: n.files[n.timeline()], Identity: n.identity(n.timeline()),
		Last: &baton.LastRecord{Start: lsn(len(n.log) - 1), End: lsn(len(n.log)), CRC: l.id, ShutdownCheckpoint: l.shutdown},
		Left: n.left, Informed: n.informed,
	}
}

// members counts the votes that are there.
func (w *world) members() (n int) {
	n = w.witnesses
	for _, o := range w.nodes {
		if o.on {
			n++
		}
	}
	return n
}

// quorate is Corosync's word on the quorum: of two nodes one will do (two_node).
func (w *world) quorate() bool { return w.members() >= w.votes().Quorum }

func (w *world) votes() baton.Votes {
	v := baton.Votes{Expected: len(w.nodes) + w.witnesses}
	v.Quorum = v.Expected/2 + 1
	if v.Expected == 2 {
		v.Quorum = 1
	}
	return v
}

// left reports whether this is the one that is left of two nodes.
func (w *world) left(n *sim) bool {
	return len(w.nodes) == 2 && !slices.ContainsFunc(w.nodes, func(o *sim) bool { return o != n && o.on })
}

// leave mirrors stop.go.
func (w *world) leave(n *sim) {
	live := n.live
	n.informed = w.left(n) && (n.informed || baton.Informed(n.live, n.attended, n.name, n.claims))
	n.running, n.stopped, n.live, n.attended = false, true, false, 0
	n.away = n.away || w.quorate()
	if n.ctl != inRecovery {
		return
	}
	primary := slices.ContainsFunc(w.nodes, func(o *sim) bool { return o.writable }) // as the plan says
	if _, err := (baton.Knowledge{Note: n.note, Claims: n.claims}).Usable(""); n.left != nil || !primary && (err == nil || !live) {
		return
	}
	left := &baton.Left{}
	for _, c := range n.claims {
		if c.State == baton.Effective || c.Open() && c.Node != n.name {
			left = &baton.Left{Primary: c.Node, Timeline: c.Timeline}
		}
	}
	n.left = left
}

func (n *sim) answer(challenge string) *baton.Answer {
	return &baton.Answer{
		Challenge: challenge, SystemID: 7, Position: n.position(), Identity: n.identity(n.timeline()),
		Writable: n.writable, Live: n.live, Saw: n.attended, Left: n.left != nil, Away: n.away, Unfit: n.unfit(),
	}
}

// diverged mirrors facts.go.
func (n *sim) diverged() string {
	p := n.position()
	for _, t := range slices.Sorted(maps.Keys(n.files)) {
		if t <= p.Timeline || baton.IsPlaceholder(n.files[t]) {
			continue
		}
		if sw, ok := n.files[t].SwitchPointOf(p.Timeline); !ok || p.LSN > sw {
			return fmt.Sprintf("timeline %d left timeline %d", t, p.Timeline)
		}
	}
	return ""
}

// settle is what a node does with its own claims while its server is down.
func (n *sim) settle() {
	baton.Settle(n.claims, n.name, func(t pgdisk.TimelineID) (pgdisk.History, bool) {
		return n.files[t], n.files[t] != nil && !baton.IsPlaceholder(n.files[t])
	})
}

func (w *world) noteOf(n *sim, kind baton.NoteKind) *baton.Note {
	l := n.log[len(n.log)-1]
	return &baton.Note{
		Kind: kind, SystemID: 7, Timeline: n.timeline(), Start: lsn(len(n.log) - 1), End: lsn(len(n.log)),
		CRC: l.id, Node: n.name, Nonce: w.nonce("N"),
	}
}

func (n *sim) unfit() string {
	if n.dead {
		return "does not start"
	}
	return n.diverged()
}

// leaveNote mirrors demote.go.
func (w *world) leaveNote(n *sim) {
	switch n.ctl {
	case shutDown:
		if note := w.noteOf(n, baton.Clean); note.NewerThan(n.note) {
			n.note = note
		}
	case inProduction:
		kind := baton.Crash
		if n.dead {
			kind = baton.Abandoned
		}
		if note := w.noteOf(n, kind); note.NewerThan(n.note) {
			n.note = note
		}
	default:
		return
	}
	n.settle()
	n.publish(nil, nil)
}

// startAsStandby mirrors start.go.
func (w *world) startAsStandby(n *sim) {
	n.away = n.away || slices.ContainsFunc(w.nodes, func(o *sim) bool { return o.writable })
	if len(w.nodes) == 2 {
		n.learn(w.others(n, w.names())) // learnAtStart in returning.go; of more than two, others could tell it as well
	}
	n.settle()
	for t, h := range n.files {
		if t > n.timeline() && baton.IsPlaceholder(h) {
			delete(n.files, t)
		}
	}
	if n.ctl == shutDown {
		if note := w.noteOf(n, baton.Clean); note.NewerThan(n.note) {
			n.note = note
		}
	}
	n.running, n.stopped, n.writable, n.ctl = true, false, false, inRecovery
}

// stopPrimary shuts the server of a primary down cleanly; its walsenders linger.
func (w *world) stopPrimary(n *sim) {
	w.write(n, rec{tl: n.timeline(), shutdown: true})
	n.writable, n.running, n.lingers, n.ctl = false, false, true, shutDown
}

// demote mirrors demote.go, of a primary that runs or has crashed.
func (w *world) demote(n *sim) {
	w.tell("demote %s", n.name)
	switch {
	case n.writable:
		w.stopPrimary(n)
	case n.ctl == inProduction || n.ctl == shutDown:
	default:
		w.demoteStandby(n)
		return
	}
	w.leaveNote(n)
}

// demoteStandby: a promotion that was cut short is found out about on a server that is stopped.
func (w *world) demoteStandby(n *sim) {
	if slices.ContainsFunc(n.claims, func(c baton.Claim) bool { return c.Node == n.name && c.State == baton.Claimed }) {
		w.startAsStandby(n)
	}
}

// postDemote mirrors notify.go.
func (w *world) postDemote(n *sim, sight []string) { n.learn(w.others(n, sight)) }

func (w *world) newClaim(n *sim, know baton.Knowledge, note *baton.Note) baton.Claim {
	t := n.timeline()
	for _, c := range know.Claims {
		if c.Open() {
			t = max(t, c.Timeline)
		}
	}
	for f := range n.files {
		t = max(t, f)
	}
	c := baton.Claim{
		Seq: baton.NextSeq(know.Claims), Timeline: t + 1, Parent: n.timeline(), Switch: lsn(len(n.log)),
		Node: n.name, Nonce: w.nonce("c"), State: baton.Intended,
	}
	if note != nil {
		c.Note = note.Nonce
		if note.Kind != baton.Abandoned {
			c.Switch = note.End
		}
	}
	return c
}

// ask mirrors prepromote.go.
func (w *world) ask(n *sim, sight []string) baton.Challenge {
	list := w.others(n, sight)
	n.learn(list)
	know := baton.Gather(list, "")
	note, _ := know.UsableFor(n.name)
	c := baton.Challenge{Claim: w.newClaim(n, know, note)}
	w.tell("%s asks, sees %s: %s", n.name, strings.Join(sight, ","), c.Claim)
	c.Nonce = c.Claim.Nonce
	n.claims = baton.MergeClaims(n.claims, []baton.Claim{c.Claim})
	if w.killed() {
		return baton.Challenge{}
	}
	n.challenge = c.Nonce
	n.publish(&c, n.answer(c.Nonce))
	return c
}

// reply mirrors prePromoteOther in notify.go.
func (w *world) reply(n *sim, c baton.Challenge, sight []string) {
	n.learn(w.others(n, sight))
	n.claims = baton.MergeClaims(n.claims, []baton.Claim{c.Claim})
	if w.killed() {
		return
	}
	ans := n.answer(c.Nonce)
	if ans.Unfit == "" && w.slow != nil && w.slow() {
		ans.Unsure, ans.Unfit, ans.Position, ans.Identity = true, "still being read", pgdisk.Position{}, 0
		w.tell("%s is slow", n.name)
	}
	n.publish(nil, ans)
	n.attended = baton.Attend(n.attended, n.claims, c.Claim)
	if w.trouble != nil {
		w.tell("%s answers; knows: %s", n.name, n)
	} else {
		w.tell("%s answers: %s", n.name, n.position())
	}
}

// record mirrors recordClaim in prepromote.go: every member of the cluster has the claim on disk then, and reads it when its
// instance starts.
func (w *world) record(c baton.Challenge, sight []string) []string {
	var members []string
	for _, name := range sight {
		if o := w.node(name); o.on {
			members = append(members, name)
			o.claims = baton.MergeClaims(o.claims, []baton.Claim{c.Claim})
		}
	}
	w.tell("the claim is recorded on %s", strings.Join(members, ","))
	return members
}

func (w *world) question(n *sim, c baton.Challenge, sight []string, settled bool) baton.Question {
	votes := w.votes()
	return baton.Question{
		Self: n.candidate(), Bulletins: w.others(n, sight), Challenge: c, Votes: &votes,
		Participants: w.names(), Available: sight, Settled: settled,
	}
}

// refuse mirrors scores.go.
func (n *sim) refuse() {
	for i := range n.claims {
		c := &n.claims[i]
		if c.Node == n.name && (c.State == baton.Intended || c.State == baton.Claimed) {
			c.State = baton.Withdrawn
		}
	}
}

// promote mirrors promote.go from the verdict on. It reports whether the agent came to its end.
func (w *world) promote(n *sim, q baton.Question, v baton.Verdict) bool {
	for _, c := range v.Avoid {
		if n.files[c.Timeline] == nil {
			n.files[c.Timeline] = baton.Placeholder(c)
		}
	}
	if w.killed() {
		return false
	}
	claim := q.Challenge.Claim
	claim.State = baton.Claimed
	n.claims = baton.MergeClaims(n.claims, []baton.Claim{claim})
	if w.killed() {
		return false
	}
	w.tell("%s is promoted at %s", n.name, n.position())
	w.judge(n, q, v)
	started := w.becomePrimary(n)
	if started != claim.Timeline {
		w.violated("%s claimed timeline %d and started %d", n.name, claim.Timeline, started)
	}
	n.live, n.attended, n.saw, n.left, n.away = true, claim.Seq, w.last, nil, false
	for _, b := range q.Bulletins {
		if b.Answer != nil && b.Answer.Challenge == q.Challenge.Nonce {
			w.node(b.Node).saw = w.last
		}
	}
	if w.killed() {
		return false
	}
	claim.State, claim.Timeline, claim.CRC = baton.Effective, started, n.identity(started)
	if sw, ok := n.files[started].SwitchPointOf(claim.Parent); ok {
		claim.Switch = sw
	}
	n.claims = baton.MergeClaims(n.claims, []baton.Claim{claim})
	if w.killed() {
		return false
	}
	n.publish(nil, nil)
	return true
}
