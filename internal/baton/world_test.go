package baton_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// world is a cluster as the rules see it, small enough to be looked through: every record of WAL is one step long, what
// a node has on disk is a list of records, and the steps of the protocol are those of internal/agent, without its I/O.
// It knows the truth that no node knows (what the last primary wrote, which timelines were started), and holds every
// promotion against it.
type world struct {
	nodes   []*sim
	ids     uint32 // of records
	nonces  int
	truth   []rec // all that the instance wrote that was writable last, from the beginning of the cluster on
	starts  map[pgdisk.TimelineID]uint32
	last    uint32          // the first record of the timeline that was started last, 0 for timeline 1
	acked   int             // how many records of truth there were when the last commit was acknowledged
	there   map[string]bool // whose server ran then: who was there knows at least where it stood
	wrong   []string
	story   []string
	trouble func() bool // asked at each point where an agent may be killed; nil: never
	// witnesses are votes of the cluster without an instance, a quorum device or nodes for other things; always there.
	witnesses int
	slow      func() bool // asked whether a node that answers has not read all of its WAL yet; nil: never
}

// rec is a record of WAL. Two records are the same if their ids are.
type rec struct {
	tl       pgdisk.TimelineID
	id       uint32
	shutdown bool
}

// sim is one node.
type sim struct {
	name string
	on   bool
	dead bool // crashed, and its server does not start again

	// What a loss of power leaves.
	log     []rec
	flushed int // records of log that a loss of power leaves
	files   map[pgdisk.TimelineID]pgdisk.History
	ctl     ctlState
	note    *baton.Note
	claims  []baton.Claim
	left    *baton.Left
	away    bool // it was stopped while its node had quorum, and has not caught up since

	// What it does not.
	running, writable bool
	stopped           bool // by Pacemaker: it answers nobody
	lingers           bool // shut down, but its walsenders still feed standbys
	live, informed    bool
	attended          uint64 // Seq of the newest claim it was there for
	saw               uint32 // the first record of the newest timeline this node was there for: the truth about live
	challenge         string
	board             *baton.Bulletin
}

type ctlState string

const (
	inProduction       ctlState = "in production"
	shutDown           ctlState = "shut down"
	inRecovery         ctlState = "in archive recovery"
	shutDownInRecovery ctlState = "shut down in recovery"
)

// step is the length of a record.
const step = 0x10

func lsn(records int) pgdisk.LSN { return pgdisk.LSN(0x100 + step*records) }

// newWorld returns a cluster whose nodes, all standbys, have the same first record.
func newWorld(names ...string) *world {
	w := &world{starts: map[pgdisk.TimelineID]uint32{}, ids: 1}
	w.truth = []rec{{tl: 1, id: 1}}
	for _, n := range names {
		w.nodes = append(w.nodes, &sim{
			name: n, on: true, running: true, ctl: inRecovery,
			log: slices.Clone(w.truth), flushed: 1, files: map[pgdisk.TimelineID]pgdisk.History{},
		})
	}
	return w
}

func (w *world) node(name string) *sim {
	for _, n := range w.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}

func (w *world) names() []string {
	var l []string
	for _, n := range w.nodes {
		l = append(l, n.name)
	}
	return l
}

func (w *world) nonce(prefix string) string {
	w.nonces++
	return fmt.Sprintf("%s%d", prefix, w.nonces)
}

func (w *world) violated(format string, args ...any) {
	w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
}

// tell adds a sentence to the story, which is shown when something is wrong.
func (w *world) tell(format string, args ...any) {
	w.story = append(w.story, fmt.Sprintf(format, args...))
}

func (n *sim) String() string {
	s := fmt.Sprintf("%s at %s", n.name, n.position())
	if n.note != nil {
		s += fmt.Sprintf(", note %s (%d:%s of %s)", n.note.Nonce, n.note.Timeline, n.note.End, n.note.Node)
	}
	for _, c := range n.claims {
		s += fmt.Sprintf(", %s %d.%d<%d@%s of %s %s", c.Nonce, c.Seq, c.Timeline, c.Parent, c.Switch, c.Node, c.State)
	}
	return s
}

// killed tells whether the agent is killed here.
func (w *world) killed() bool {
	if w.trouble == nil || !w.trouble() {
		return false
	}
	w.tell("the agent is killed")
	return true
}

// PostgreSQL.

func (n *sim) timeline() pgdisk.TimelineID { return n.log[len(n.log)-1].tl }

func (n *sim) identity(tl pgdisk.TimelineID) uint32 {
	if tl == 1 {
		return 0
	}
	for _, r := range n.log {
		if r.tl == tl {
			return r.id
		}
	}
	return 0
}

func (n *sim) position() pgdisk.Position {
	return pgdisk.Position{Timeline: n.timeline(), LSN: lsn(len(n.log))}
}

func (w *world) write(n *sim, r rec) {
	w.ids++
	r.id = w.ids
	n.log = append(n.log, r)
	n.flushed = len(n.log)
	w.truth = slices.Clone(n.log)
	w.tell("%s writes record %d, ends at %s", n.name, r.id, n.position())
}

// commit writes as a client does that is told so.
func (w *world) commit(n *sim) {
	w.write(n, rec{tl: n.timeline()})
	w.acked, w.there = len(w.truth), map[string]bool{}
	for _, o := range w.nodes {
		w.there[o.name] = o.on && o.running
	}
}

// stream hands up to limit records (0: all) from a primary, or from one that is shut down and lingers, to a standby. As
// in PostgreSQL a timeline is known by its number alone: twins are not told apart.
func (w *world) stream(s, from *sim, limit int, flush bool) bool {
	if !s.on || !s.running || s.writable || !from.on || (!from.writable && !from.lingers) || s == from {
		return false
	}
	if s.timeline() != from.timeline() {
		sw, ok := from.files[from.timeline()].SwitchPointOf(s.timeline())
		if !ok || s.position().LSN > sw {
			return false
		}
		for t := s.timeline() + 1; t <= from.timeline(); t++ {
			if h, ok := from.files[t]; ok && s.files[t] == nil {
				s.files[t] = h
			}
		}
	}
	if len(s.log) > len(from.log) {
		return false
	}
	more := from.log[len(s.log):]
	if limit > 0 && len(more) > limit {
		more = more[:limit]
	}
	s.log = append(s.log, more...)
	if flush {
		s.flushed = len(s.log)
	}
	s.live = true
	if len(w.nodes) == 2 && from.writable {
		s.learn(w.others(s, w.names())) // judgeRunning in returning.go
	}
	s.attend()
	if from.writable && len(s.log) == len(from.log) {
		s.left, s.away = nil, false
	}
	if from.identity(from.timeline()) == w.last {
		s.saw = w.last
	}
	w.tell("%s streams from %s up to %s", s.name, from.name, s.position())
	return true
}

// nextTimeline is PostgreSQL's choice: it looks for history files above its own timeline, one by one, and takes the
// first number that has none (findNewestTimeLine in src/backend/access/transam/timeline.c).
func (n *sim) nextTimeline() pgdisk.TimelineID {
	t := n.timeline() + 1
	for n.files[t] != nil {
		t++
	}
	return t
}

// becomePrimary is what the server does when it is told to promote.
func (w *world) becomePrimary(n *sim) pgdisk.TimelineID {
	for _, o := range w.nodes {
		if o.writable {
			w.violated("%s becomes writable while %s is", n.name, o.name)
		}
	}
	t := n.nextTimeline()
	n.files[t] = append(slices.Clone(n.files[n.timeline()]), pgdisk.HistoryEntry{Timeline: n.timeline(), Switch: lsn(len(n.log))})
	n.writable, n.lingers, n.ctl = true, false, inProduction
	w.write(n, rec{tl: t})
	w.last = n.log[len(n.log)-1].id
	if first, ok := w.starts[t]; ok {
		w.violated("twins: timeline %d is started by %s (record %d), and was started before (record %d)", t, n.name, w.last, first)
	}
	w.starts[t] = w.last
	return t
}

func (w *world) crash(n *sim) {
	w.tell("crash %s", n.name)
	n.running, n.writable, n.lingers = false, false, false
}

func (w *world) powerOff(n *sim) {
	w.tell("power off %s", n.name)
	n.on, n.running, n.stopped, n.writable, n.lingers = false, false, false, false, false
	n.live, n.informed, n.saw, n.attended, n.challenge, n.board = false, false, 0, 0, "", nil
	n.log = n.log[:n.flushed]
}

func (w *world) powerOn(n *sim) {
	w.tell("power on %s", n.name)
	n.on = true
	w.startAsStandby(n)
	n.publish(nil, nil)
	for _, o := range w.nodes {
		if o.on && o.stopped && o.ctl == inRecovery && !o.away && w.quorate() {
			w.startAsStandby(o)
			o.publish(nil, nil)
		}
	}
}

// clone makes a node's data anew from the primary's.
func (w *world) clone(n, from *sim) {
	w.tell("clone %s from %s", n.name, from.name)
	n.log, n.flushed, n.files = slices.Clone(from.log), len(from.log), maps.Clone(from.files)
	n.left, n.away = nil, false
	n.ctl, n.running = inRecovery, true
}

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

// judge holds a promotion that is about to happen against the truth.
func (w *world) judge(n *sim, q baton.Question, v baton.Verdict) {
	stored, live, effective, there := 0, false, false, false
	for _, o := range w.nodes {
		if slices.ContainsFunc(o.claims, func(c baton.Claim) bool { return c.Nonce == q.Challenge.Nonce }) {
			stored++
		}
	}
	if need := baton.Quorum(len(w.nodes)); stored < need {
		w.violated("%s is promoted with its claim on %d disks of %d, %d needed", n.name, stored, len(w.nodes), need)
	}
	for _, b := range q.Bulletins {
		if b.Answer == nil || b.Answer.Challenge != q.Challenge.Nonce {
			continue
		}
		live = live || w.node(b.Node).saw == w.last
		there = there || w.there[b.Node]
		effective = effective || slices.ContainsFunc(b.Claims, func(c baton.Claim) bool { return c.State == baton.Effective && c.CRC == w.last })
		if o := w.node(b.Node); v.Note == nil && o != n && !o.dead && common(o.log, w.truth) == len(o.log) && common(n.log, w.truth) < len(o.log) {
			w.violated("%s is elected with %d records of the last primary, %s answered and has %d", n.name, common(n.log, w.truth), o.name, len(o.log))
		}
	}
	has := w.last == 0 || slices.ContainsFunc(n.log, func(r rec) bool { return r.id == w.last })
	switch {
	case v.Note != nil && !slices.Equal(n.log, w.truth):
		w.violated("%s is promoted by the note %s, but has %d of %d records of the last primary", n.name, v.Note.Nonce, common(n.log, w.truth), len(w.truth))
	case v.Note == nil && !live && !has:
		w.violated("cold start: %s is elected without the timeline that was started last (record %d)", n.name, w.last)
	case v.Note == nil && !there && common(n.log, w.truth) < w.acked:
		w.violated("%s is elected with %d of %d records, and nobody who answered was there when the last primary acknowledged the last of them", n.name, common(n.log, w.truth), w.acked)
	case v.Note == nil && effective && common(n.log, w.truth) < len(n.log):
		w.violated("%s is elected, but has diverged from the last primary: %d of its %d records are common, and those who answered know it", n.name, common(n.log, w.truth), len(n.log))
	}
}

// common counts the records that two logs share from the start.
func common(a, b []rec) int {
	n := 0
	for n < len(a) && n < len(b) && a[n].id == b[n].id {
		n++
	}
	return n
}

// noteStillTrue holds what any quorum of disks would believe against the truth: a note that is usable must be the end of
// all that was ever written. Of two nodes one alone believes only in what it was there for: what it makes of that, judge sees.
func (w *world) noteStillTrue() {
	need := max(2, baton.Quorum(len(w.nodes)))
	for set := range 1 << len(w.nodes) {
		var l []baton.Bulletin
		var who []string
		for i, n := range w.nodes {
			if set&(1<<i) != 0 {
				l = append(l, baton.Bulletin{Node: n.name, Note: n.note, Claims: n.claims})
				who = append(who, n.name)
			}
		}
		if len(l) != need {
			continue
		}
		note, err := baton.Gather(l, "").Usable("")
		end := len(w.truth)
		if err == nil && (note.End != lsn(end) || note.CRC != w.truth[end-1].id) {
			w.violated("%s believe in the note %s of %s, which ends at %s, but the last primary ended at %s", strings.Join(who, " and "), note.Nonce, note.Node, note.End, lsn(end))
		}
	}
}
