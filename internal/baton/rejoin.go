package baton

import (
	"fmt"
	"slices"

	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// Rejoin is what becomes of an instance that comes back.
type Rejoin int

const (
	// Follow: it may be started as a standby as it is. Also where nothing is known against it.
	Follow Rejoin = iota
	// Await: it was promoted or started as a primary by hand, and there is no primary that it could be compared with.
	Await
	// Rewind: it has WAL that the cluster passed over; pg_rewind can take that out.
	Rewind
	// Clone: its timeline only looks like the cluster's. pg_rewind, which compares numbers and switch points, would find
	// nothing to do, or too little; it must be made anew.
	Clone
)

func (r Rejoin) String() string {
	return [...]string{"follow", "await", "rewind", "clone"}[r]
}

// Returning is what is known of an instance that comes back, and of the cluster that it comes back to.
type Returning struct {
	Candidate
	WasPrimary bool   // its pg_control says that it ended as a primary, cleanly or not
	Closed     bool   // cleanly: what its WAL ends with is a shutdown checkpoint of its own
	Note       *Note  // the newest that is known
	Elsewhere  string // another node that is primary now, "" if none is known
}

// Trespassed tells whether an instance has closed a timeline that another node started, at a point where nobody but itself
// knows of an end of it: without standby.signal a server does not begin a timeline of its own, it goes on with the one that it
// is on (StartupXLOG in src/backend/access/transam/xlog.c), and so there are two that differ in nothing but their rows. A copy
// of what the owner left ends where the owner ended it. Who was the only primary when it ended has a note of its own: the server
// was moved in maintenance, or its node has another name now.
func (r Returning) Trespassed(claims []Claim) (owner string, yes bool) {
	at := r.Position
	if !r.Closed {
		return "", false
	}
	for _, c := range claims {
		switch {
		case !c.Open():
		case c.Timeline == at.Timeline && c.Node == r.Node:
			return "", false
		case c.Parent == at.Timeline && c.Switch == at.LSN:
			return "", false
		case c.Timeline == at.Timeline && c.State == Effective:
			owner = c.Node
		}
	}
	if n := r.Note; n != nil && n.Position() == at && r.Last != nil && r.Last.CRC == n.CRC {
		return "", false
	}
	return owner, owner != ""
}

// Return is the verdict on an instance that comes back.
type Return struct {
	Rejoin Rejoin
	Reason string // one sentence: how it differs from the cluster; "" for Follow
}

// Line is the line of timelines that the cluster's rows are on.
type Line struct {
	Timeline pgdisk.TimelineID // the newest
	// History are its ancestors. There may be others before the first entry; there is none between two.
	History pgdisk.History
	First   map[pgdisk.TimelineID]uint32 // checksum of a timeline's first record, where known
	By      map[pgdisk.TimelineID]string // who started it, where known
}

// LineOf reads the line off the claims, oldest first: that of the newest effective one, as far back as they tell.
func LineOf(claims []Claim) (Line, bool) {
	i := len(claims) - 1
	for i >= 0 && claims[i].State != Effective {
		i--
	}
	if i < 0 {
		return Line{}, false
	}
	c := claims[i]
	l := Line{Timeline: c.Timeline, First: map[pgdisk.TimelineID]uint32{}, By: map[pgdisk.TimelineID]string{}}
	for {
		l.History = append(l.History, pgdisk.HistoryEntry{Timeline: c.Parent, Switch: c.Switch})
		l.By[c.Timeline] = c.Node
		if c.CRC != 0 {
			l.First[c.Timeline] = c.CRC
		}
		i := slices.IndexFunc(claims, func(p Claim) bool { return p.State == Effective && p.Timeline == c.Parent })
		if i < 0 {
			break
		}
		c = claims[i]
	}
	slices.Reverse(l.History)
	return l, true
}

// AncestorsOf is what the claims tell of the ancestors of timeline t.
func AncestorsOf(claims []Claim, t pgdisk.TimelineID) pgdisk.History {
	for i, c := range claims {
		if c.Timeline == t && c.State == Effective {
			l, _ := LineOf(claims[:i+1])
			return l.History
		}
	}
	return nil
}

// Unclaimed reports whether timeline t is newer than all that took effect, and nobody is known to have claimed it: it
// was started by hand.
func Unclaimed(claims []Claim, t pgdisk.TimelineID) bool {
	line, known := LineOf(claims)
	return known && t > line.Timeline && !slices.ContainsFunc(claims, func(c Claim) bool { return c.Timeline == t && c.Open() })
}

// Returns is the rule by which an instance that comes back is let in, from the claims that it has learnt, oldest first.
// What is not known speaks for it: PostgreSQL itself refuses to stream a timeline that does not descend from its own.
func Returns(r Returning, claims []Claim) Return {
	line, known := LineOf(claims)
	var v Return
	if known {
		v = line.Returns(r)
	}
	at := r.Position
	if owner, yes := r.Trespassed(claims); yes && v.Rejoin != Clone {
		v = Return{Clone, fmt.Sprintf("somebody started it as a primary on timeline %d, which is that of %s: its WAL ends at %s with a shutdown checkpoint that %s never wrote", at.Timeline, owner, at.LSN, owner)}
		if r.Elsewhere == "" {
			v.Rejoin = Await // it may hold what everybody goes by
		}
	}
	if v.Rejoin != Follow {
		return v
	}
	if !r.WasPrimary || !Unclaimed(claims, at.Timeline) {
		return Return{}
	}
	by := fmt.Sprintf("it was promoted by hand to timeline %d, which nobody in the cluster claimed", at.Timeline)
	if r.Elsewhere == "" {
		// It may hold what everybody goes by, or what nobody wants.
		return Return{Await, by + fmt.Sprintf("; the last one known is timeline %d of %s", line.Timeline, line.by(line.Timeline))}
	}
	return Return{Rewind, by + fmt.Sprintf("; %s is the primary, on timeline %d", r.Elsewhere, line.Timeline)}
}

// Attempted is somebody else's newer attempt, of which it is not known how it ended, and which this instance would not
// fit: a moment later it may have diverged.
func Attempted(self Candidate, claims []Claim) (Claim, bool) {
	for _, c := range slices.Backward(claims) {
		if c.State == Effective {
			break
		}
		if c.Open() && c.Node != self.Node && c.Parent == self.Position.Timeline && self.Position.LSN > c.Switch {
			return c, true
		}
	}
	return Claim{}, false
}

// Returns compares an instance with the line: its WAL must be a beginning of it.
func (l Line) Returns(r Returning) Return {
	at := r.Position
	if crc := l.First[at.Timeline]; crc != 0 && r.Identity != 0 && crc != r.Identity {
		return Return{Clone, fmt.Sprintf("its timeline %d is a twin of that of %s: same number, but the first record has the checksum %08x and not %08x", at.Timeline, l.by(at.Timeline), r.Identity, crc)}
	}
	if theirs, ok := l.forkOf(at.Timeline); ok && len(r.History) > 0 && l.By[at.Timeline] != r.Node {
		if own := r.History[len(r.History)-1]; own.Timeline != theirs.Timeline || own.Switch != theirs.Switch {
			return Return{Clone, fmt.Sprintf("its timeline %d is another one than that of %s: same number, but it left timeline %d at %s and not timeline %d at %s", at.Timeline, l.by(at.Timeline), own.Timeline, own.Switch, theirs.Timeline, theirs.Switch)}
		}
	}
	if at.Timeline >= l.Timeline {
		return Return{}
	}
	if sw, ok := l.History.SwitchPointOf(at.Timeline); ok {
		if at.LSN <= sw {
			return Return{}
		}
		next := l.after(at.Timeline)
		return Return{Rewind, fmt.Sprintf("its WAL of timeline %d ends at %s, but %s started timeline %d at %s", at.Timeline, at.LSN, l.by(next), next, sw)}
	}
	if len(l.History) == 0 || at.Timeline < l.History[0].Timeline {
		return Return{} // older than what is known
	}
	return Return{Rewind, fmt.Sprintf("its timeline %d is no ancestor of timeline %d of %s, whose line left timeline %d at %s", at.Timeline, l.Timeline, l.by(l.Timeline), l.before(at.Timeline).Timeline, l.before(at.Timeline).Switch)}
}

// forkOf is where timeline t of this line left its parent.
func (l Line) forkOf(t pgdisk.TimelineID) (pgdisk.HistoryEntry, bool) {
	if t == l.Timeline && len(l.History) > 0 {
		return l.History[len(l.History)-1], true
	}
	for i := 1; i < len(l.History); i++ {
		if l.History[i].Timeline == t {
			return l.History[i-1], true
		}
	}
	return pgdisk.HistoryEntry{}, false
}

// after is the timeline of this line that t was left for.
func (l Line) after(t pgdisk.TimelineID) pgdisk.TimelineID {
	for _, e := range l.History {
		if e.Timeline > t {
			return e.Timeline
		}
	}
	return l.Timeline
}

// before is the last entry of this line with a number below t.
func (l Line) before(t pgdisk.TimelineID) (last pgdisk.HistoryEntry) {
	for _, e := range l.History {
		if e.Timeline < t {
			last = e
		}
	}
	return last
}

func (l Line) by(t pgdisk.TimelineID) string {
	if n := l.By[t]; n != "" {
		return n
	}
	return "the primary"
}

// Parts is where an instance's history leaves the line: the last timeline that they have in common, and how far.
func (l Line) Parts(c Candidate) (pgdisk.TimelineID, pgdisk.LSN, bool) {
	own := append(slices.Clone(c.History), pgdisk.HistoryEntry{Timeline: c.Position.Timeline, Switch: c.Position.LSN})
	for n, e := range slices.Backward(own) {
		sw, ok := l.History.SwitchPointOf(e.Timeline)
		if !ok && e.Timeline == l.Timeline {
			sw, ok = e.Switch, true
		}
		if fork, known := l.forkOf(e.Timeline); known && n > 0 && (fork.Timeline != own[n-1].Timeline || fork.Switch != own[n-1].Switch) {
			ok = false // only the number is the same
		}
		if crc := l.First[e.Timeline]; e.Timeline == c.Position.Timeline && crc != 0 && c.Identity != 0 && crc != c.Identity {
			ok = false // a twin
		}
		if ok {
			return e.Timeline, min(sw, e.Switch), true
		}
	}
	return 0, 0, false
}
