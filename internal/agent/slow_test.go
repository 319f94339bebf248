package agent

import (
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// crashedWithMuch is a primary that crashed with 500 MB of WAL behind its last checkpoint.
func (p place) crashedWithMuch() *postgres.Instance {
	p.t.Helper()
	i := p.primary("-c", "max_wal_size=8GB", "-c", "checkpoint_timeout=1h")
	p.query(i, "CHECKPOINT", "SELECT count(pg_logical_emit_message(false, 'test', repeat('x', 1000000))) FROM generate_series(1, 500)")
	if _, err := i.KillLeftovers(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	return i
}

// Ensure a node that has much WAL to read says that it does not know yet how far that goes, and neither that it is unfit,
// which would have another one promoted over what it has, nor that it ends where the reading did. What was read is not read again.
func TestAnswer_Slow(t *testing.T) {
	p := newPlace(t)
	i := p.crashedWithMuch()
	all, _ := p.agent(i, "n1", "notify")
	began := time.Now()
	want, err := all.candidate(t.Context(), nil, nil, false)
	if err != nil {
		t.Fatal(err)
	}

	part := time.Since(began) / 15
	a, _ := p.agent(i, "n2", "notify")
	a.state.Refusal = &baton.Refusal{Dead: true, Reason: "does not start"}
	if ans := a.answer(within(t, part), "c"); ans.Unsure || ans.Unfit != "does not start" {
		t.Errorf("one that was given up answers %+v, want that it does not start", ans)
	}
	a.state.Refusal, a.vol.Found = nil, nil
	at, tries := pgdisk.LSN(0), 0
	for ; tries < 1000; tries++ {
		ans := a.answer(within(t, part), "c")
		if !ans.Unsure {
			if ans.Position != want.Position || ans.Unfit != "" {
				t.Errorf("at last it answers %+v, want %v", ans, want.Position)
			}
			break
		}
		if ans.Unfit == "" || ans.Position.Timeline != 1 || ans.Position.LSN < at || ans.Position.LSN > want.Position.LSN {
			t.Fatalf("answer %+v after one of %s; want no less, up to %v, and a reason", ans, at, want.Position)
		}
		at = ans.Position.LSN
	}
	if tries == 0 || tries == 1000 {
		t.Fatalf("it was sure after %d answers; this shows nothing", tries)
	}
	c, err := a.candidate(t.Context(), nil, nil, false)
	if err != nil || c.Position != want.Position || c.Last == nil || *c.Last != *want.Last {
		t.Errorf("going on from what was found: %+v, %v; want %+v", c, err, want)
	}

	// What was found must still be there.
	ctl, err := pgdisk.ReadControl(i.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	wal := pgdisk.OpenWAL(i.DataDir, ctl)
	if r := a.foundBefore(wal, 1, ctl.Redo); r == nil || r.End != a.vol.Found.End {
		t.Errorf("goes on from %+v, want from %+v", r, a.vol.Found)
	}
	a.vol.Found.CRC++
	if r := a.foundBefore(wal, 1, ctl.Redo); r != nil {
		t.Errorf("goes on from %+v, which is not there", r)
	}
}

// Ensure a start does not spend its time on the WAL of a crashed instance, which the server has to read as well.
func TestReadRest(t *testing.T) {
	p := newPlace(t)
	i := p.crashedWithMuch()
	ctl, err := pgdisk.ReadControl(i.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	all := time.Hour // what reading all of it takes, at best
	for range 3 {
		reader, _ := p.agent(i, "n2", "start")
		began := time.Now()
		if _, err := reader.atRest(t.Context(), ctl); err != nil {
			t.Fatal(err)
		}
		all = min(all, time.Since(began))
	}
	a, _ := p.agent(i, "n1", "start")
	ctx := within(t, all)
	a.readRest(ctx, ctl)
	if ctx.Err() != nil {
		t.Fatal("nothing is left of the time of the start")
	}
	if v := a.returning(ctx, ctl); v.Rejoin != baton.Follow || a.unjudged == "" || ctx.Err() != nil {
		t.Errorf("verdict %v, unjudged %q, %v; want that it is let in unjudged, and at once", v, a.unjudged, ctx.Err())
	}
}

// Ensure a stop says what came of this node's attempts: nobody else can, and after a cold start it would count for ever.
func TestStop_Withdraws(t *testing.T) {
	p := newPlace(t)
	i := p.clone(p.primary())
	for _, state := range []baton.ClaimState{baton.Intended, baton.Claimed, baton.Withdrawn} {
		p.start(i, "ready")
		a, m := p.agent(i, "n3", "stop")
		a.state.Claims = []baton.Claim{
			{Seq: 1, Timeline: 1, Node: "n1", Nonce: "c", State: baton.Effective},
			{Seq: 2, Timeline: 2, Parent: 1, Node: "n3", Nonce: "d", State: state},
		}
		if err := a.stop(within(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
		if got := a.state.Claims[len(a.state.Claims)-1].State; got != baton.Withdrawn {
			t.Errorf("a claim that was %s is %s after the stop, want withdrawn", state, got)
		}
		if n := len(m.published); n == 0 || len(m.published[n-1].Claims) != 2 || m.published[n-1].Claims[1].State != baton.Withdrawn {
			t.Errorf("published of a claim that was %s: %+v, want that it was withdrawn", state, m.published)
		}
	}
}

// Ensure nobody is told to accept a loss where time alone is missing.
func TestWayOut(t *testing.T) {
	const accept, again = "pgbaton promote --accept-data-loss n2", "tried again every few seconds"
	for _, tt := range []struct {
		r             baton.Refusal
		accept, again bool
	}{
		{baton.Refusal{Reason: "n2 lacks the last 8 bytes"}, true, false},
		{baton.Refusal{Reason: "how far the WAL of n1 goes is not known yet", Soon: true}, true, true},
		{baton.Refusal{Reason: "its server takes no connections yet", Starting: true}, false, false},
	} {
		if got := wayOut(tt.r, "n1", "n2"); strings.Contains(got, accept) != tt.accept || strings.Contains(got, again) != tt.again {
			t.Errorf("%+v: %q", tt.r, got)
		}
	}
}
