package baton_test

import (
	"fmt"
	"maps"
	"slices"

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
