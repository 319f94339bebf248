package baton_test

import (
	"cmp"
	"strings"
	"testing"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pgdisk"

	"pgregory.net/rapid"
)

// The cluster of these tests: n1 started timeline 3 at 0/3000, n2 timeline 4 at 0/4000, n3, which passed over number 5,
// timeline 6 at 0/6000.
var lineClaims = []baton.Claim{
	{Seq: 1, Timeline: 3, Parent: 2, Switch: 0x3000, Node: "n1", Nonce: "a", State: baton.Effective, CRC: 0x33},
	{Seq: 2, Timeline: 4, Parent: 3, Switch: 0x4000, Node: "n2", Nonce: "b", State: baton.Effective, CRC: 0x44},
	{Seq: 3, Timeline: 5, Parent: 4, Switch: 0x5000, Node: "n1", Nonce: "c", State: baton.Withdrawn},
	{Seq: 4, Timeline: 6, Parent: 4, Switch: 0x6000, Node: "n3", Nonce: "d", State: baton.Effective, CRC: 0x66},
}

func TestReturns(t *testing.T) {
	hist := func(entries ...pgdisk.HistoryEntry) pgdisk.History { return entries }
	e := func(t pgdisk.TimelineID, at pgdisk.LSN) pgdisk.HistoryEntry {
		return pgdisk.HistoryEntry{Timeline: t, Switch: at}
	}
	to3 := hist(e(1, 0x1000), e(2, 0x3000))
	to4 := append(to3[:2:2], e(3, 0x4000))
	to6 := append(to4[:3:3], e(4, 0x6000))
	attempt := append(lineClaims[:4:4], baton.Claim{Seq: 5, Timeline: 7, Parent: 6, Switch: 0x7000, Node: "n2", Nonce: "e", State: baton.Claimed})
	for _, tt := range []struct {
		name    string
		claims  []baton.Claim
		at      pgdisk.Position
		history pgdisk.History
		crc     uint32
		primary bool
		closed  bool
		note    *baton.Note
		node    string // n4 unless said
		other   string
		want    baton.Rejoin
		says    string
	}{
		{name: "nothing is known", at: pgdisk.Position{Timeline: 9, LSN: 0x9000}},
		{name: "on the newest timeline", claims: lineClaims, at: pgdisk.Position{Timeline: 6, LSN: 0x9000}, history: to6, crc: 0x66},
		{name: "its first record is not known any more", claims: lineClaims, at: pgdisk.Position{Timeline: 6, LSN: 0x9000}, history: to6},
		{name: "its own history is missing", claims: lineClaims, at: pgdisk.Position{Timeline: 6, LSN: 0x9000}, crc: 0x66},
		{name: "ends at the switch point", claims: lineClaims, at: pgdisk.Position{Timeline: 4, LSN: 0x6000}, history: to4, crc: 0x44},
		{name: "one timeline behind", claims: lineClaims, at: pgdisk.Position{Timeline: 4, LSN: 0x5000}, history: to4, crc: 0x44},
		{name: "two timelines behind", claims: lineClaims, at: pgdisk.Position{Timeline: 3, LSN: 0x3800}, history: to3, crc: 0x33},
		{name: "older than what is known", claims: lineClaims, at: pgdisk.Position{Timeline: 1, LSN: 0x9000}},
		{
			name: "an old primary with WAL of its own", claims: lineClaims, at: pgdisk.Position{Timeline: 4, LSN: 0x6001}, history: to4, crc: 0x44, primary: true,
			want: baton.Rewind, says: "its WAL of timeline 4 ends at 0/6001, but n3 started timeline 6 at 0/6000",
		},
		{
			name: "the same without its history file", claims: lineClaims, at: pgdisk.Position{Timeline: 4, LSN: 0x6001},
			want: baton.Rewind, says: "n3 started timeline 6 at 0/6000",
		},
		{
			name: "two timelines behind, with WAL of its own", claims: lineClaims, at: pgdisk.Position{Timeline: 3, LSN: 0x4100}, history: to3, crc: 0x33,
			want: baton.Rewind, says: "n2 started timeline 4 at 0/4000",
		},
		{
			name: "on the oldest timeline that is known to have been left", claims: lineClaims, at: pgdisk.Position{Timeline: 2, LSN: 0x3001},
			want: baton.Rewind, says: "n1 started timeline 3 at 0/3000",
		},
		{
			name: "on a timeline that was passed over", claims: lineClaims, at: pgdisk.Position{Timeline: 5, LSN: 0x5800}, history: append(to4[:3:3], e(4, 0x5000)), crc: 0x55,
			want: baton.Rewind, says: "its timeline 5 is no ancestor of timeline 6 of n3, whose line left timeline 4 at 0/6000",
		},
		{
			name: "a twin", claims: lineClaims, at: pgdisk.Position{Timeline: 6, LSN: 0x6800}, history: to6, crc: 0x77,
			want: baton.Clone, says: "its timeline 6 is a twin of that of n3: same number, but the first record has the checksum 00000077 and not 00000066",
		},
		{
			name: "a twin of an ancestor", claims: lineClaims, at: pgdisk.Position{Timeline: 4, LSN: 0x6800}, history: to4, crc: 0x77,
			want: baton.Clone, says: "a twin of that of n2",
		},
		{
			name: "same number, other switch point", claims: lineClaims, at: pgdisk.Position{Timeline: 6, LSN: 0x6800}, history: append(to4[:3:3], e(4, 0x5800)),
			want: baton.Clone, says: "it left timeline 4 at 0/5800 and not timeline 4 at 0/6000",
		},
		{
			name: "promoted by hand, and there is no primary", claims: lineClaims, at: pgdisk.Position{Timeline: 7, LSN: 0x8000}, primary: true,
			want: baton.Await, says: "promoted by hand to timeline 7, which nobody in the cluster claimed; the last one known is timeline 6 of n3",
		},
		{name: "a standby of somebody who was promoted by hand", claims: lineClaims, at: pgdisk.Position{Timeline: 7, LSN: 0x8000}, other: "n3"},
		{
			name: "promoted by hand beside a primary", claims: lineClaims, at: pgdisk.Position{Timeline: 7, LSN: 0x8000}, primary: true, other: "n3",
			want: baton.Rewind, says: "promoted by hand to timeline 7, which nobody in the cluster claimed; n3 is the primary, on timeline 6",
		},
		{name: "on a timeline whose owner is about to be primary", claims: attempt, at: pgdisk.Position{Timeline: 7, LSN: 0x8000}, primary: true, other: "n3"},
		{
			name: "closed somebody else's timeline, and that is primary", claims: lineClaims, at: pgdisk.Position{Timeline: 6, LSN: 0x9000}, history: to6, crc: 0x66, primary: true, closed: true, other: "n3",
			want: baton.Clone, says: "started it as a primary on timeline 6, which is that of n3: its WAL ends at 0/9000",
		},
		{
			name: "the same, and there is no primary", claims: lineClaims, at: pgdisk.Position{Timeline: 6, LSN: 0x9000}, history: to6, crc: 0x66, primary: true, closed: true,
			want: baton.Await, says: "which is that of n3",
		},
		{
			name: "closed an old timeline of somebody else, before its end", claims: lineClaims, at: pgdisk.Position{Timeline: 4, LSN: 0x5000}, history: to4, crc: 0x44, primary: true, closed: true, other: "n3",
			want: baton.Clone, says: "which is that of n2",
		},
		{
			name: "the same, behind its end: no case for pg_rewind", claims: lineClaims, at: pgdisk.Position{Timeline: 4, LSN: 0x7000}, history: to4, crc: 0x44, primary: true, closed: true, other: "n3",
			want: baton.Clone, says: "which is that of n2",
		},
		{name: "a copy of what the owner left, and was handed over", claims: lineClaims, at: pgdisk.Position{Timeline: 4, LSN: 0x6000}, history: to4, crc: 0x44, primary: true, closed: true, other: "n3"},
		{name: "a copy of what the owner left now", claims: lineClaims, at: pgdisk.Position{Timeline: 6, LSN: 0x9000}, history: to6, crc: 0x66, primary: true, closed: true, note: &baton.Note{Node: "n3", Timeline: 6, End: 0x9000, CRC: 0x99}},
		{name: "it was the only primary when it ended", claims: lineClaims, at: pgdisk.Position{Timeline: 6, LSN: 0x9000}, history: to6, crc: 0x66, primary: true, closed: true, note: &baton.Note{Node: "n4", Timeline: 6, End: 0x9000, CRC: 0x99}},
		{
			name: "another record than the note's", claims: lineClaims, at: pgdisk.Position{Timeline: 6, LSN: 0x9000}, history: to6, crc: 0x66, primary: true, closed: true, other: "n3", note: &baton.Note{Node: "n3", Timeline: 6, End: 0x9000, CRC: 0x98},
			want: baton.Clone, says: "which is that of n3",
		},
		{name: "the owner", claims: lineClaims, at: pgdisk.Position{Timeline: 6, LSN: 0x9000}, history: to6, crc: 0x66, primary: true, closed: true, node: "n3"},
		{name: "closed a timeline whose owner is not known", claims: lineClaims, at: pgdisk.Position{Timeline: 1, LSN: 0x9000}, primary: true, closed: true, other: "n3"},
		{name: "with more WAL than an attempt that is not settled", claims: attempt, at: pgdisk.Position{Timeline: 6, LSN: 0x7001}, history: to6, crc: 0x66},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := baton.Returns(baton.Returning{
				Candidate: baton.Candidate{
					Node: cmp.Or(tt.node, "n4"), Position: tt.at, History: tt.history, Identity: tt.crc,
					Last: &baton.LastRecord{End: tt.at.LSN, CRC: 0x99, ShutdownCheckpoint: tt.closed},
				},
				WasPrimary: tt.primary, Closed: tt.closed, Note: tt.note, Elsewhere: tt.other,
			}, tt.claims)
			if got.Rejoin != tt.want || !strings.Contains(got.Reason, tt.says) || (tt.want == baton.Follow) != (got.Reason == "") {
				t.Errorf("got %s (%q), want %s (… %q …)", got.Rejoin, got.Reason, tt.want, tt.says)
			}
		})
	}
}

func TestAttempted(t *testing.T) {
	attempt := append(lineClaims[:4:4], baton.Claim{Seq: 5, Timeline: 7, Parent: 6, Switch: 0x7000, Node: "n2", Nonce: "e", State: baton.Claimed})
	withdrawn := append(lineClaims[:4:4], baton.Claim{Seq: 5, Timeline: 7, Parent: 6, Switch: 0x7000, Node: "n2", Nonce: "e", State: baton.Withdrawn})
	for _, tt := range []struct {
		name   string
		node   string
		claims []baton.Claim
		at     pgdisk.Position
		want   bool
	}{
		{"it has more WAL", "n4", attempt, pgdisk.Position{Timeline: 6, LSN: 0x7001}, true},
		{"it has as much", "n4", attempt, pgdisk.Position{Timeline: 6, LSN: 0x7000}, false},
		{"its own attempt", "n2", attempt, pgdisk.Position{Timeline: 6, LSN: 0x7001}, false},
		{"it was given up", "n4", withdrawn, pgdisk.Position{Timeline: 6, LSN: 0x7001}, false},
		{"another timeline", "n4", attempt, pgdisk.Position{Timeline: 4, LSN: 0x7001}, false},
		{"an old attempt", "n4", lineClaims, pgdisk.Position{Timeline: 4, LSN: 0x5800}, false},
	} {
		if c, got := baton.Attempted(baton.Candidate{Node: tt.node, Position: tt.at}, tt.claims); got != tt.want {
			t.Errorf("%s: got %v (%s), want %v", tt.name, got, c, tt.want)
		}
	}
}

// Ensure that an instance whose WAL is a beginning of the cluster's is let in however little is known, that one that
// left the line is not when everything is, and that a twin is never sent to pg_rewind.
func TestReturns_RandomLines(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		// The cluster's line: timelines with rising numbers and switch points, each with a first record of its own.
		type timeline struct {
			id    pgdisk.TimelineID
			begin pgdisk.LSN
			crc   uint32
		}
		draw := func(label string, lo, hi int) int { return rapid.IntRange(lo, hi).Draw(rt, label) }
		line := []timeline{{id: 1, begin: 1}}
		for i := range draw("changes", 1, 5) {
			last := line[i]
			line = append(line, timeline{last.id + pgdisk.TimelineID(draw("skip", 1, 3)), last.begin + pgdisk.LSN(draw("length", 1, 9)), uint32(100 + i)})
		}
		end := line[len(line)-1].begin + 10
		history := func(n int) (h pgdisk.History) {
			for i := range n {
				h = append(h, pgdisk.HistoryEntry{Timeline: line[i].id, Switch: line[i+1].begin})
			}
			return h
		}
		ends := func(n int) pgdisk.LSN {
			if n+1 < len(line) {
				return line[n+1].begin
			}
			return end
		}

		// What is known of it.
		whole := rapid.Bool().Draw(rt, "everything is known")
		first := 1
		if !whole {
			first = draw("oldest claim", 1, len(line))
		}
		var claims []baton.Claim
		for i := first; i < len(line); i++ {
			c := baton.Claim{
				Seq: uint64(i), Timeline: line[i].id, Parent: line[i-1].id, Switch: line[i].begin, Node: "n1", Nonce: string(rune('a' + i)),
				State: baton.Effective, CRC: line[i].crc,
			}
			if !whole && rapid.Bool().Draw(rt, "checksum lost") {
				c.CRC = 0
			}
			claims = append(claims, c)
		}

		// The instance: on the line, past a switch point of it, or on a timeline of its own that left it.
		n := draw("timeline", 0, len(line)-1)
		self := baton.Returning{Candidate: baton.Candidate{Node: "n2", Position: pgdisk.Position{Timeline: line[n].id}, History: history(n), Identity: line[n].crc}}
		want := baton.Follow
		switch kind := draw("kind", 0, 2); {
		case kind == 0:
			self.Position.LSN = line[n].begin + pgdisk.LSN(draw("end", 0, int(ends(n)-line[n].begin)))
		case kind == 1 && n+1 < len(line):
			self.Position.LSN = ends(n) + pgdisk.LSN(draw("more", 1, 9))
			want = baton.Rewind
		default:
			at := line[n].begin + pgdisk.LSN(draw("fork", 0, int(ends(n)-line[n].begin)))
			self.History = append(self.History, pgdisk.HistoryEntry{Timeline: line[n].id, Switch: at})
			self.Position = pgdisk.Position{Timeline: line[n].id + pgdisk.TimelineID(draw("number", 1, 4)), LSN: at + pgdisk.LSN(draw("own", 1, 9))}
			self.Identity = 99
			want = baton.Rewind
			for _, l := range line {
				if l.id == self.Position.Timeline {
					want = baton.Clone
				}
			}
			if self.Position.Timeline > line[len(line)-1].id {
				want = baton.Follow // as a standby of somebody of whom nothing is known
			}
		}

		got := baton.Returns(self, claims)
		switch {
		case whole && got.Rejoin != want:
			rt.Fatalf("got %s (%s), want %s: %+v in %+v", got.Rejoin, got.Reason, want, self, claims)
		case want == baton.Follow && got.Rejoin != baton.Follow:
			rt.Fatalf("got %s (%s) for an instance on the line: %+v in %+v", got.Rejoin, got.Reason, self, claims)
		case want == baton.Rewind && got.Rejoin == baton.Clone:
			rt.Fatalf("got %s (%s), want %s: %+v in %+v", got.Rejoin, got.Reason, want, self, claims)
		}
	})
}

// Ensure it is told right where an instance's history leaves the cluster's: what lies behind is what nobody else has.
func TestLine_Parts(t *testing.T) {
	e := func(t pgdisk.TimelineID, at pgdisk.LSN) pgdisk.HistoryEntry {
		return pgdisk.HistoryEntry{Timeline: t, Switch: at}
	}
	to3 := pgdisk.History{e(1, 0x1000), {Timeline: 2, Switch: 0x3000, Reason: "no recovery target specified"}}
	to4 := append(to3[:2:2], e(3, 0x4000))
	line, _ := baton.LineOf(lineClaims)
	for name, tt := range map[string]struct {
		at      pgdisk.Position
		history pgdisk.History
		crc     uint32
		on      pgdisk.TimelineID
		fork    pgdisk.LSN
	}{
		"an old primary with WAL of its own":    {pgdisk.Position{Timeline: 4, LSN: 0x6100}, to4, 0x44, 4, 0x6000},
		"behind, without any":                   {pgdisk.Position{Timeline: 4, LSN: 0x5000}, to4, 0x44, 4, 0x5000},
		"promoted by hand":                      {pgdisk.Position{Timeline: 7, LSN: 0x5900}, append(to4[:3:3], e(4, 0x5800)), 0, 4, 0x5800},
		"promoted by hand behind the fork":      {pgdisk.Position{Timeline: 7, LSN: 0x6900}, append(to4[:3:3], e(4, 0x6800)), 0, 4, 0x6000},
		"a twin of the newest":                  {pgdisk.Position{Timeline: 6, LSN: 0x6900}, append(to4[:3:3], e(4, 0x6000)), 0x67, 4, 0x6000},
		"a twin of an older one":                {pgdisk.Position{Timeline: 4, LSN: 0x4900}, to4, 0x45, 3, 0x4000},
		"only the number is the same":           {pgdisk.Position{Timeline: 4, LSN: 0x4900}, append(to3[:2:2], e(3, 0x3900)), 0, 3, 0x3900},
		"from a timeline that was passed over":  {pgdisk.Position{Timeline: 5, LSN: 0x5900}, append(to4[:3:3], e(4, 0x5000)), 0, 4, 0x5000},
		"nothing in common that is known of it": {pgdisk.Position{Timeline: 9, LSN: 0x900}, nil, 0, 0, 0},
	} {
		on, fork, ok := line.Parts(baton.Candidate{Node: "n9", Position: tt.at, Identity: tt.crc, History: tt.history})
		if on != tt.on || fork != tt.fork || ok != (tt.on != 0) {
			t.Errorf("%s: parts on timeline %d at %s (%t), want %d at %s", name, on, fork, ok, tt.on, tt.fork)
		}
	}
}
