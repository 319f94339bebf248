package agent

// What an instance says of itself while it does not know enough, or Pacemaker does not.

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// scored is a cluster that counts how often a score was set.
type scored struct {
	memory
	set []pacemaker.Score
}

func (s *scored) SetScore(_ context.Context, _ string, v pacemaker.Score) error {
	s.set = append(s.set, v)
	return nil
}

// Ensure a former primary that starts beside a running one, and has no word of it, does not take its own note, which that
// one has used up, for the newest: with a primary's score it would be given the role where a location constraint likes it.
func TestStarted_Unheard(t *testing.T) {
	p := newPlace(t)
	i := p.clone(p.primary())
	p.start(i, "ready")
	a, _ := p.agent(i, "n1", "start")
	m := &scored{}
	a.cluster = m
	a.state.Note = &baton.Note{Kind: baton.Clean, Timeline: 1, Start: 0x100, End: 0x110, Node: "n1", Nonce: "N"}
	a.unjudged = "not heard from the primary yet"
	if err := a.started(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	if len(m.set) != 1 || m.set[0] != pacemaker.NegInfinity {
		t.Errorf("scores set: %v, want one that cannot be promoted", m.set)
	}
	a.unjudged = ""
	if err := a.started(within(t, 20*time.Second)); err != nil || len(m.set) != 2 || m.set[1] != baton.ScorePrimary {
		t.Errorf("with everybody's word: %v, %v; want %d", m.set, err, baton.ScorePrimary)
	}
}

// promoting is a cluster in which Pacemaker has promoted somebody.
type promoting struct {
	scored
	primary string
}

func (p *promoting) PromotedBut(context.Context, string) (string, error) { return p.primary, nil }
func (p *promoting) Incarnation(known string) string                     { return known }
func (p *promoting) ForgetClaim(context.Context, string) error           { return nil }
func (p *promoting) Show(context.Context, string) error                  { return nil }
func (p *promoting) Tell(context.Context, string) error                  { return nil }

// bereft is the agent of a standby, about to monitor it, whose primary is gone.
func bereft(t *testing.T) (*Agent, *promoting) {
	t.Helper()
	p := newPlace(t)
	first := p.primary()
	i := p.clone(first)
	p.start(i, "ready")
	if _, err := first.KillLeftovers(t.Context()); err != nil {
		t.Fatal(err)
	}
	a, _ := p.agent(i, "n1", "monitor")
	sentinelLives(t, a)
	m := &promoting{}
	a.cluster = m
	sess, err := i.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sess.Close()
	if err := a.poll(within(t, 10*time.Second), "the end of its WAL receiver", 10*time.Millisecond, func() (bool, error) {
		v, err := sess.Standby(t.Context())
		return !v.Streaming, err
	}); err != nil {
		t.Fatal(err)
	}
	return a, m
}

// Ensure an instance that came back beside a primary which began its timeline before this one's end, and has not said so yet, has
// no score to be promoted with: in a cluster that is throttled that takes seconds. It is not held back by an attempt alone: who made
// that may need it for having more WAL.
func TestMonitor_PassedOver(t *testing.T) {
	a, m := bereft(t)
	a.state.Claims = []baton.Claim{{Seq: 2, Timeline: 2, Parent: 1, Switch: 0x28, Node: "n3", Nonce: "c", State: baton.Intended}}
	for _, tt := range []struct {
		primary string
		score   pacemaker.Score
	}{{"", baton.ScoreDetached}, {"n2", baton.ScoreDetached}, {"n3", pacemaker.NegInfinity}, {"", baton.ScoreDetached}} {
		m.set, m.primary, a.vol.Score = nil, tt.primary, ""
		if err := a.examine(within(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
		if len(m.set) != 1 || m.set[0] != tt.score {
			t.Errorf("primary %q: scores set: %v, want %s", tt.primary, m.set, tt.score)
		}
	}
}

// Ensure a primary is known for one while Pacemaker holds it for a standby, after a parameter was changed: what somebody promoted by
// hand beside it would claim its own timeline then, and everybody else would have diverged from that. A score alone does not make a
// primary: who ended as one, and holds the note, has it too.
func TestPrimaryElsewhere_Reloaded(t *testing.T) {
	a, m := newPlace(t).agent(&postgres.Instance{}, "n2", "demote")
	note := &baton.Note{Kind: baton.Clean, Timeline: 1, Start: 0x100, End: 0x110, Node: "n1", Nonce: "N"}
	used := []baton.Claim{{Seq: 1, Timeline: 2, Parent: 1, Switch: 0x110, Node: "n1", Nonce: "c", Note: "N", State: baton.Effective}}
	for _, tt := range []struct {
		name   string
		score  pacemaker.Score
		claims []baton.Claim
		absent bool
		want   string
	}{
		{"promoted, reloaded", baton.ScorePrimary, used, false, "n1"},
		{"a standby", baton.ScoreFollows, used, false, ""},
		{"it holds the note", baton.ScorePrimary, nil, false, ""},
		{"its node is gone", baton.ScorePrimary, used, true, ""},
	} {
		m.scores, m.published = map[string]pacemaker.Score{"n1": tt.score, "n2": baton.ScorePrimary}, nil
		if !tt.absent {
			m.published = []baton.Bulletin{{Node: "n1", SystemID: a.state.SystemID, Note: note, Claims: tt.claims}}
		}
		if got, err := a.primaryElsewhere(t.Context()); err != nil || got != tt.want {
			t.Errorf("%s: %q, %v; want %q", tt.name, got, err, tt.want)
		}
	}
}

// unreadable is a cluster whose configuration cannot be read now.
type unreadable struct {
	scored
	err   error
	claim baton.Claim
}

func (u *unreadable) RecordedClaims(context.Context, uint64) ([]baton.Claim, error) {
	return []baton.Claim{u.claim}, u.err
}

// Ensure an instance that starts and cannot read the claims in the cluster's configuration, which count as known to it, cannot
// be promoted, and reads them later.
func TestLearnRecorded_Unreadable(t *testing.T) {
	p := newPlace(t)
	i := p.clone(p.primary())
	p.start(i, "ready")
	a, _ := p.agent(i, "n3", "start")
	m := &unreadable{err: errors.New("cibadmin: time-out"), claim: baton.Claim{Seq: 3, Timeline: 5, Parent: 4, Node: "n2", Nonce: "c3", State: baton.Intended}}
	a.cluster = m
	if err := a.started(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	if len(m.set) != 1 || m.set[0] != pacemaker.NegInfinity || !journal.LoadVolatile(a.inv.Resource).Unread {
		t.Errorf("scores set: %v; to be read later: %t", m.set, a.vol.Unread)
	}
	m.err = nil
	if err := a.learnUnread(t.Context()); err != nil || a.vol.Unread || len(a.state.Claims) != 1 {
		t.Errorf("read again: %v, %t, claims %v", err, a.vol.Unread, a.state.Claims)
	}
}

// Ensure a standby leaves its score and status as they are while the primary's role changes: written then, they have Pacemaker make
// its plan anew. It does so once for each note, and not where the role is with somebody: a standby that lost its primary by itself
// is not preferred.
func TestMonitor_Changing(t *testing.T) {
	a, m := bereft(t)
	follows, detached := pacemaker.Score(baton.ScoreFollows).String(), pacemaker.Score(baton.ScoreDetached).String()
	note := func(nonce string) *baton.Note {
		return &baton.Note{Kind: baton.Clean, Timeline: 1, Start: 0x5000000, End: 0x5000028, Node: "n2", Nonce: nonce}
	}
	used := []baton.Claim{{Seq: 2, Timeline: 2, Parent: 1, Switch: 0x5000028, Node: "n3", Nonce: "c", Note: "C", State: baton.Effective}}
	if err := a.examine(within(t, 20*time.Second)); err != nil { // the first one asserts everything
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		was    string
		note   *baton.Note
		claims []baton.Claim
		score  string
		shown  bool
	}{
		{"its primary has ended", follows, note("A"), nil, follows, false},
		{"and nobody took over", follows, note("A"), nil, detached, false},
		{"for long", detached, note("A"), nil, detached, true},
		{"the next primary has ended", detached, note("B"), nil, detached, false},
		{"somebody is primary", follows, note("C"), used, detached, false},
		{"no note", follows, nil, nil, detached, false},
		{"not long started", "", note("D"), nil, detached, false},
	} {
		m.published = []baton.Bulletin{{Node: "n2", Note: tt.note, Claims: tt.claims}}
		m.status, a.vol.Score, a.vol.Status = "", tt.was, ""
		if err := a.examine(within(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
		if a.vol.Score != tt.score || (m.status != "") != tt.shown {
			t.Errorf("%s: score %q, status %q; want %q, a status: %t", tt.name, a.vol.Score, m.status, tt.score, tt.shown)
		}
	}
}
