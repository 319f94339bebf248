package baton

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// ClaimState says how far the promotion that a claim announces has come.
type ClaimState string

const (
	// Intended: the target asked for answers; nobody but the target can know whether it went on.
	Intended ClaimState = "intended"
	// Claimed: the target had what it needs and was about to ask PostgreSQL for the promotion.
	Claimed ClaimState = "claimed"
	// Effective: the timeline was started.
	Effective ClaimState = "effective"
	// Withdrawn: the claimer itself says that the timeline was not started and will not be.
	Withdrawn ClaimState = "withdrawn"
)

// Claim is "I, Node, am about to start Timeline at Switch". It is durable on a quorum of nodes before the instance may
// become writable, so that no later candidate can be unaware of a timeline that may hold committed rows.
//
// Invariant: of two claims the later one has the higher Seq, and a Timeline above every claim that its node knew of.
type Claim struct {
	Seq      uint64            // grows with every attempt in the cluster
	Timeline pgdisk.TimelineID // the timeline about to be started
	Parent   pgdisk.TimelineID // the timeline it forks from; until it is effective: as it stood when the claim was made
	Switch   pgdisk.LSN        // where; until it is effective at the earliest, for more WAL may have come in
	Node     string
	Nonce    string
	Note     string // nonce of the note this promotion uses up, "" if none
	State    ClaimState
	CRC      uint32 // of the first record on Timeline, 0 until known: tells twins apart
}

func (c Claim) String() string {
	return fmt.Sprintf("timeline %d from %d at %s by %s (%s)", c.Timeline, c.Parent, c.Switch, c.Node, c.State)
}

// Open reports whether the claimed timeline may hold rows.
func (c Claim) Open() bool { return c.State != Withdrawn }

// rank orders what may be said about one and the same claim: later knowledge wins over earlier.
func (s ClaimState) rank() int {
	switch s {
	case Intended:
		return 1
	case Claimed:
		return 2
	case Withdrawn:
		return 3
	case Effective:
		return 4
	}
	return 0
}

// keptAncestors is how many effective claims behind the newest are remembered: so many timelines may a node be behind
// and still be told from a diverged one.
const keptAncestors = 3

// ancestors picks from claims, oldest first, those of the timelines that c descends from.
func ancestors(claims []Claim, c Claim) []Claim {
	var line []Claim
	for range keptAncestors {
		i := slices.IndexFunc(claims, func(p Claim) bool { return p.State == Effective && p.Timeline == c.Parent })
		if i < 0 {
			break
		}
		c = claims[i]
		line = append(line, c)
	}
	slices.Reverse(line)
	return line
}

// MergeClaims unites what several nodes know: one entry a nonce, with the most that is known of it, oldest first.
// Claims before the newest effective one are history and are dropped: whoever descends from that one has them behind
// it, whoever does not is refused because of it. A few that it descends from are kept, to tell where its line ran.
//
// A node that asks anew has done with what it only intended before, so that of these its newest is kept, and the list
// stays as short as the cluster is small. It is kept even if it is withdrawn: some may still take it for intended, and
// [NextSeq] must not fall back.
func MergeClaims(lists ...[]Claim) []Claim {
	byNonce := map[string]Claim{}
	for _, list := range lists {
		for _, c := range list {
			known, ok := byNonce[c.Nonce]
			crc := max(c.CRC, known.CRC) // one of them may not know it yet
			if ok && c.State.rank() <= known.State.rank() {
				c = known
			}
			c.CRC = crc
			byNonce[c.Nonce] = c
		}
	}
	merged := make([]Claim, 0, len(byNonce))
	for _, c := range byNonce {
		merged = append(merged, c)
	}
	slices.SortFunc(merged, func(a, b Claim) int {
		switch {
		case a.Seq != b.Seq && a.Seq < b.Seq:
			return -1
		case a.Seq != b.Seq:
			return 1
		case a.Nonce < b.Nonce:
			return -1
		default:
			return 1
		}
	})
	for i := len(merged) - 1; i >= 0; i-- {
		if merged[i].State == Effective {
			merged = append(ancestors(merged[:i], merged[i]), merged[i:]...)
			break
		}
	}
	superseded := func(c Claim) bool {
		return (c.State == Intended || c.State == Withdrawn) &&
			slices.ContainsFunc(merged, func(o Claim) bool { return o.Node == c.Node && o.Seq > c.Seq })
	}
	return slices.DeleteFunc(slices.Clone(merged), superseded)
}

// NextSeq is the sequence number for a new claim.
func NextSeq(claims []Claim) uint64 {
	var top uint64
	for _, c := range claims {
		top = max(top, c.Seq)
	}
	return top + 1
}

// Taken returns the open claim that used up the note with this nonce.
func Taken(claims []Claim, nonce string) (Claim, bool) {
	for _, c := range claims {
		if c.Note == nonce && c.Open() && c.State != Intended {
			return c, true
		}
	}
	return Claim{}, false
}

// Settle makes up this node's mind about its own claims that are neither effective nor withdrawn, and reports whether it
// changed anything. The server is only asked for the promotion after the claim is durable as claimed, so that what is
// only intended was never started. started tells it for the others: the history of the timeline if it was started. It
// may only be asked while the server is down or known not to be on its way to promotion, and must not take a
// [Placeholder] for a timeline.
func Settle(claims []Claim, node string, started func(pgdisk.TimelineID) (pgdisk.History, bool)) bool {
	changed := false
	for i := range claims {
		c := &claims[i]
		if c.Node != node || (c.State != Intended && c.State != Claimed) {
			continue
		}
		was := c.State
		c.State, changed = Withdrawn, true
		if was == Intended {
			continue
		}
		if h, ok := started(c.Timeline); ok {
			c.State = Effective
			if len(h) > 0 {
				c.Parent, c.Switch = h[len(h)-1].Timeline, h[len(h)-1].Switch
			}
		}
	}
	return changed
}

// placeholderReason is how a [Placeholder] is told from a history file that a server wrote.
const placeholderReason = "pgbaton: number passed over"

// Placeholder is the content of the history file that keeps PostgreSQL from starting a timeline with the number of
// avoid, one of [Verdict.Avoid]. It is taken away again from a node whose pg_control does not say a higher timeline by
// the time it is started: a server that finds the file of a timeline that nobody has would wait for it for ever.
//
// It says that the timeline forked at the very begin of its parent, so that no server ever goes over to it: a server that
// looks for newer timelines while it waits for its promotion refuses one that forked before its own position
// (rescanLatestTimeLine in src/backend/access/transam/xlogrecovery.c). Taken for an ancestor of the timeline that is then
// started, it would keep standbys that lack the last segment before the switch from ever following: the walsender would
// look for that segment under the number that was passed over (WalSndSegmentOpen in src/backend/replication/walsender.c).
func Placeholder(avoid Claim) pgdisk.History {
	const begin = 1 // not 0, which means "no end" where a history is read
	return pgdisk.History{{
		Timeline: avoid.Parent, Switch: begin, Reason: fmt.Sprintf("%s, claimed by %s", placeholderReason, avoid.Node),
	}}
}

// IsPlaceholder tells whether a history file is one that pgbaton put there.
func IsPlaceholder(h pgdisk.History) bool {
	return len(h) > 0 && strings.HasPrefix(h[len(h)-1].Reason, placeholderReason)
}
