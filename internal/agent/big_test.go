package agent

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// These tests are about what only large or slow servers show.

// Ensure a standby that has more to replay than a promotion has time for is not promoted yet, and says how much; and that
// sessions that hold up the replay do not keep it from becoming the primary.
func TestAwaitReady(t *testing.T) {
	p := newPlace(t)
	old := p.primary("-c", "max_wal_size=4GB")
	i := p.clone(old)
	i.StartArgs = append(i.StartArgs, "-c", "max_standby_streaming_delay=-1")
	p.start(i, "ready")
	a, _ := p.agent(i, "n2", "notify")
	sess, err := i.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sess.Close()
	if err := a.awaitReady(within(t, time.Second), sess); err != nil {
		t.Fatalf("a standby that has replayed everything: %v", err)
	}

	reader, err := i.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	startup := func(sig syscall.Signal) {
		t.Helper()
		pm, err := i.Postmaster()
		proc, ok := startupProcess(pm)
		if err != nil || !ok {
			t.Fatalf("no startup process (%v)", err)
		}
		if err := proc.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}
	startup(syscall.SIGSTOP)
	p.query(old, "SELECT count(pg_logical_emit_message(false, 'test', repeat('x', 1000000))) FROM generate_series(1, 100)")
	p.await(i, "SELECT pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) > 90000000", "t")
	if _, err := reader.Rows(t.Context(), "BEGIN"); err != nil {
		t.Fatal(err)
	}
	err = a.awaitReady(within(t, 4*time.Second), sess)
	if err == nil || !strings.Contains(err.Error(), "bytes of WAL to replay") {
		t.Errorf("a standby with 100 MB to replay: %v; want that it says so", err)
	}
	if _, err := reader.Row(t.Context(), "SELECT 1"); err == nil {
		t.Error("a session in a transaction goes on, and may be what holds up the replay")
	}
	startup(syscall.SIGCONT)
	if err := a.awaitReady(within(t, 40*time.Second), sess); err != nil {
		t.Errorf("once it replays: %v", err)
	}

	// What a promotion would not wait for is not waited for: a pause, and recovery_min_apply_delay.
	for _, how := range []string{"SELECT pg_wal_replay_pause()", "ALTER SYSTEM SET recovery_min_apply_delay = '1h'"} {
		p.query(i, how, "SELECT pg_reload_conf()")
		p.query(old, "SELECT count(pg_logical_emit_message(true, 'test', repeat('x', 1000000))) FROM generate_series(1, 100)", "SELECT count(pg_logical_emit_message(true, 'test', repeat('x', 1000000))) FROM generate_series(1, 100)")
		p.await(i, "SELECT pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) > 90000000", "t")
		b, _ := p.agent(i, "n2", "notify")
		if err := b.awaitReady(within(t, 20*time.Second), sess); err != nil {
			t.Errorf("after %s: %v", how, err)
		}
	}
}

// Ensure a crashed primary that takes long to get to its recovery, with much shared memory to set up or many temporary files to
// remove, is not taken for one that does not start.
func TestRestartInPlace_Slow(t *testing.T) {
	p := newPlace(t)
	i := p.primary()
	if _, err := i.KillLeftovers(t.Context()); err != nil {
		t.Fatal(err)
	}
	slow := *i
	slow.BinDir = filepath.Join(p.dir, "bin")
	if err := os.Mkdir(slow.BinDir, 0o755); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\nsleep 3\nexec " + serverBin + "/postgres \"$@\"\n"
	if err := os.WriteFile(filepath.Join(slow.BinDir, "postgres"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	a, _ := p.agent(&slow, "n1", sentinelAction)
	ctx := within(t, 2*time.Second)
	if err := a.restartInPlace(ctx); err != nil || ctx.Err() != nil {
		t.Errorf("a server that has not come to its recovery: %v (%v); want that it is given its time, and that something is left of the action's", err, ctx.Err())
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if pm, err := i.Postmaster(); err == nil && pm.Status == "ready" {
			break
		} else if time.Now().After(end) {
			t.Fatalf("the server after 20 s: %q, %v", pm.Status, err)
		}
	}

	// What hung while it held the lock starts nothing any more.
	i.KillLeftovers(t.Context())
	over, cancel := context.WithCancel(t.Context())
	cancel()
	b, _ := p.agent(i, "n1", sentinelAction)
	if err := b.restartInPlace(over); err == nil || b.spawned.PID != 0 {
		t.Errorf("started a server (pid %d, %v) after its time", b.spawned.PID, err)
	}
}

// recorder is a memory that keeps all scores.
type recorder struct {
	memory
	scores []string
}

func (*recorder) Incarnation(string) string                                  { return "1" }
func (*recorder) Scores(context.Context) (map[string]pacemaker.Score, error) { return nil, nil }
func (*recorder) Show(context.Context, string) error                         { return nil }
func (*recorder) Tell(context.Context, string) error                         { return nil }
func (s *recorder) SetScore(_ context.Context, _ string, v pacemaker.Score) error {
	s.scores = append(s.scores, v.String())
	return nil
}

// Ensure the monitor of a primary that leaves the role to others, and still runs, does not take it back before Pacemaker has
// begun: its crash recovery has taken too long, or its disk does not answer. When nobody has taken over in a minute it does.
func TestUpkeep_Leaving(t *testing.T) {
	p := newPlace(t)
	i := p.primary()
	a, _ := p.agent(i, "n1", "monitor")
	s := &recorder{}
	a.cluster = s
	sentinelLives(t, a)
	if err := a.leaveRole(within(t, 10*time.Second), time.Now().Add(-time.Hour), "no commit has ended", true, func() {}); err != nil {
		t.Fatal(err)
	}
	monitor := func() *Agent {
		b, _ := p.agent(i, "n1", "monitor")
		b.cluster, b.release = s, func() {}
		if err := b.reload(); err != nil {
			t.Fatal(err)
		}
		b.examine(within(t, 18*time.Second))
		return b
	}
	if b := monitor(); !slices.Equal(s.scores, []string{"-INFINITY"}) || b.state.Refusal == nil {
		t.Errorf("scores %v, refusal %+v after a monitor; want that the role is left", s.scores, b.state.Refusal)
	}
	a.vol.Refused = time.Now().Add(-tendFor)
	a.saveVolatile()
	if b := monitor(); !slices.Equal(s.scores, []string{"-INFINITY", "1001"}) || b.state.Refusal != nil {
		t.Errorf("scores %v, refusal %+v a minute later; want that it goes on", s.scores, b.state.Refusal)
	}
}

// Ensure a segment that was full when the power went, and of which the mark that it is to be archived was lost, is archived all
// the same.
func TestKeepUnarchived_Unmarked(t *testing.T) {
	p := newPlace(t)
	i := p.primary("-c", "archive_mode=on", "-c", "archive_command=false")
	first := p.query(i, "SELECT pg_walfile_name(pg_current_wal_lsn())")
	p.query(i, "SELECT pg_logical_emit_message(false, 'test', 'x')", "SELECT pg_switch_wal()", "SELECT pg_logical_emit_message(false, 'test', 'x')", "SELECT pg_switch_wal()", "SELECT pg_logical_emit_message(false, 'test', 'x')")
	if _, err := i.KillLeftovers(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctl, err := pgdisk.ReadControl(i.DataDir)
	if err == nil {
		err = os.Remove(filepath.Join(i.DataDir, "pg_wal", "archive_status", first+".ready"))
	}
	if err != nil {
		t.Fatal(err)
	}
	a, _ := p.agent(i, "n1", "start")
	if _, err := a.atRest(t.Context(), ctl); err != nil {
		t.Fatal(err)
	}
	if names := a.unmarked(ctl); len(names) > 0 {
		t.Errorf("of a node that was not primary %v, want nothing: it is a clone", names)
	}
	a.state.Claims = []baton.Claim{{Seq: 1, Timeline: 1, Node: "n1", Nonce: "c", State: baton.Effective}}
	for range 2 { // the second time nothing is new
		if kept, err := a.keepUnarchived(ctl); err != nil || !kept {
			t.Fatalf("kept: %t, %v", kept, err)
		}
	}
	if names := a.keptNames(); len(names) != 2 || names[0] != first {
		t.Errorf("kept %v, want %s and the next one", names, first)
	}
	if text := a.cloneCommands(); !strings.Contains(text, "mv "+filepath.Join(i.DataDir, "pg_wal", keepDir)) {
		t.Errorf("the commands that make it anew delete what is not archived: %s", text)
	}
}

// scoring is a cluster whose scores are known.
type scoring struct {
	memory
	scores map[string]pacemaker.Score
}

func (s *scoring) Scores(context.Context) (map[string]pacemaker.Score, error) { return s.scores, nil }

// Ensure a primary whose first monitor has not run does not hand over because its target's has, and that one whose score is not
// lower than the target's does: somebody has ordered it.
func TestScoresLess(t *testing.T) {
	for _, tt := range []struct {
		set         string
		own, target pacemaker.Score
		less        bool
	}{{"10", 10, 50, true}, {"10", 10, 10, false}, {"100", 100, 100, false}, {"1001", 1001, 50, false}, {"1001", 10, 50, false}} {
		a, _ := newPlace(t).agent(nil, "n1", "notify")
		a.cluster = &scoring{scores: map[string]pacemaker.Score{"n1": tt.own, "n2": tt.target}}
		a.vol.Score = tt.set
		if got := a.scoresLess(t.Context(), "n2"); got != tt.less {
			t.Errorf("set %s, in force %s, the target's %s: %t, want %t", tt.set, tt.own, tt.target, got, tt.less)
		}
	}
}
