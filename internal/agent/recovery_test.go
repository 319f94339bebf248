package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// child is the pid of a server's process by its title.
func (p place) child(i *postgres.Instance, title string) int {
	list, err := i.Leftovers()
	if err != nil {
		p.t.Fatal(err)
	}
	for _, proc := range list {
		if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", proc.PID)); strings.HasPrefix(string(b), "postgres: "+title) {
			return proc.PID
		}
	}
	return 0
}

// holdCheckpoint waits for the checkpoint at the end of a crash recovery, and stops the process that writes it.
func (p place) holdCheckpoint(i *postgres.Instance) (checkpointer int) {
	p.t.Helper()
	p.awaitState(i, pgdisk.ShuttingDown)
	checkpointer = p.child(i, "checkpointer")
	if checkpointer == 0 {
		p.t.Fatal("no checkpointer")
	}
	p.signal(checkpointer, syscall.SIGSTOP)
	return checkpointer
}

func (p place) signal(pid int, sig syscall.Signal) {
	p.t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		p.t.Fatal(err)
	}
}

// makeDirty makes a server's next checkpoint write 90 MB.
func (p place) makeDirty(i *postgres.Instance) {
	p.query(i, "DROP TABLE IF EXISTS dirty", "CREATE TABLE dirty AS SELECT n, repeat('x', 500) AS f FROM generate_series(1, 150000) n")
}

// restart kills a server and starts it as it is.
func (p place) restart(i *postgres.Instance) {
	p.t.Helper()
	if _, err := i.KillLeftovers(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	if _, err := i.Spawn(); err != nil {
		p.t.Fatal(err)
	}
}

// dirtily are the settings of a server for that.
var dirtily = []string{"-c", "shared_buffers=256MB", "-c", "max_wal_size=8GB", "-c", "checkpoint_timeout=1h"}

// holdAfterCheckpoint lets that checkpoint end, and stops the server before it goes on from there.
func (p place) holdAfterCheckpoint(i *postgres.Instance) {
	p.t.Helper()
	checkpointer := p.holdCheckpoint(i)
	p.signal(p.child(i, "startup"), syscall.SIGSTOP) // which would go on at once
	p.signal(checkpointer, syscall.SIGCONT)
	p.awaitState(i, pgdisk.ShutDown)
}

func (p place) awaitState(i *postgres.Instance, want pgdisk.ControlState) {
	p.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Microsecond) {
		ctl, err := pgdisk.ReadControl(i.DataDir)
		if err == nil && ctl.State == want {
			return
		}
		if time.Now().After(end) {
			p.t.Fatalf("pg_control says %q (%v), not %q", ctl.State, err, want)
		}
	}
}

// wasPrimary makes an agent's node the one that was primary on the first timeline.
func wasPrimary(a *Agent) {
	a.state.Claims = []baton.Claim{{Seq: 1, Timeline: 1, Node: a.inv.Node, Nonce: "c", State: baton.Effective}}
}

// Ensure a demote or a stop does not take the end of that checkpoint for the end of the server, which goes on to write.
func TestEndPrimary_EndOfRecovery(t *testing.T) {
	p := newPlace(t)
	i := p.primary(dirtily...)
	p.makeDirty(i)
	p.restart(i)
	p.holdAfterCheckpoint(i)
	a, _ := p.agent(i, "n1", "demote")
	f, err := a.look()
	if err != nil || f.role != primary {
		t.Fatalf("role %d, %v; expected a primary", f.role, err)
	}
	if f, err = a.endPrimary(within(t, 20*time.Second), f); err != nil || f.postmaster.Alive() {
		t.Errorf("the server lives: %v, %v; pg_control says %q", f.postmaster.Alive(), err, f.control.State)
	}
}

// Ensure a primary that writes the checkpoint at the end of its crash recovery, for as long as that takes, is a primary for
// everybody, although pg_control says that it is shutting down: it was started again, or one of its backends has crashed.
func TestMonitor_EndOfRecovery(t *testing.T) {
	p := newPlace(t)
	i := p.primary(dirtily...)
	for number, tt := range []struct {
		name  string
		crash func()
	}{
		{"started again", func() { p.restart(i) }},
		{"a process of it crashed", func() { p.signal(p.child(i, "walwriter"), syscall.SIGKILL) }},
	} {
		p.makeDirty(i)
		tt.crash()
		checkpointer := p.holdCheckpoint(i)
		a, _ := p.agent(i, "n"+fmt.Sprint(number), "monitor")
		a.cluster, a.release = &recorder{}, func() {}
		sentinelLives(t, a)
		f, err := a.look()
		if err != nil || f.control.State != pgdisk.ShuttingDown {
			t.Fatalf("%s: pg_control says %q (%v); it was not caught in time", tt.name, f.control.State, err)
		}
		if f.role != primary || !a.recovers() {
			t.Errorf("%s: role %d, recovers: %v; postmaster's status %q", tt.name, f.role, a.recovers(), f.postmaster.Status)
		}
		err = a.examine(within(t, 10*time.Second))
		var got roleCode
		if !errors.As(err, &got) || got.code != ocf.RunningPromoted {
			t.Errorf("%s: a monitor says %v, expected that it runs as a primary", tt.name, err)
		}
		p.signal(checkpointer, syscall.SIGCONT)
		p.await(i, "SELECT pg_is_in_recovery()", "f")
	}

	p.makeDirty(i)
	p.restart(i)
	p.holdCheckpoint(i)
	if _, err := i.KillLeftovers(t.Context()); err != nil {
		t.Fatal(err)
	}
	a, _ := p.agent(i, "n3", "monitor")
	a.release = func() {}
	sentinelLives(t, a)
	var got roleCode
	if err := a.examine(within(t, 10*time.Second)); !errors.As(err, &got) || got.code != ocf.FailedPromoted {
		t.Errorf("a monitor of a server that died at the end of its recovery says %v, expected that a primary has failed", err)
	}
	p.start(i, "ready")
	p.end(i) // pg_ctl waits for the lock file to go alone, and a postmaster lives on after that
	b, _ := p.agent(i, "n3", "monitor")
	b.release = func() {} // its sentinel is a's
	if err := b.examine(within(t, 10*time.Second)); !errors.As(err, &got) || got.code != ocf.NotRunning {
		t.Errorf("a monitor of a server that a person has stopped says %v, expected that it does not run", err)
	}
}

// Ensure a primary that is ended before its crash recovery has got anywhere leaves a crash behind, and not what looks like a
// standby that was shut down: a fast shutdown would, and nobody would know that this node has what the others may lack.
func TestEndPrimary_BeforeRedo(t *testing.T) {
	p := newPlace(t)
	i := p.primary(append(dirtily, "-c", "fsync=on")...) // it syncs the data directory before that
	p.makeDirty(i)
	startup := 0
	for try := 0; startup == 0; try++ {
		if try == 20 {
			t.Fatal("the startup process was never caught before it said in pg_control that it recovers")
		}
		p.restart(i)
		for end := time.Now().Add(10 * time.Second); startup == 0 && time.Now().Before(end); time.Sleep(100 * time.Microsecond) {
			startup = p.child(i, "startup")
		}
		p.signal(startup, syscall.SIGSTOP)
		pm, _ := i.Postmaster()
		if ctl, err := pgdisk.ReadControl(i.DataDir); err != nil || ctl.State != pgdisk.InProduction || pm.Status != "starting" {
			startup = 0
		}
	}
	go func() {
		time.Sleep(300 * time.Millisecond)
		syscall.Kill(startup, syscall.SIGCONT) // not there any more, or told to end
	}()
	a, _ := p.agent(i, "n1", "stop")
	wasPrimary(a)
	if err := a.stop(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	ctl, err := pgdisk.ReadControl(i.DataDir)
	if err != nil || a.state.Note == nil || a.state.Note.Kind != baton.Crash || a.state.Left != nil {
		t.Errorf("note %v, left %+v; pg_control says %q (%v); expected a crash note", a.state.Note, a.state.Left, ctl.State, err)
	}
}

// Ensure a primary that was given up, and whose server died between the checkpoint at the end of its crash recovery and being
// writable, leaves a note that says so: with that of a clean shutdown everybody would wait for a record that nobody can get.
func TestLeaveNote_GivenUpAtEndOfRecovery(t *testing.T) {
	p := newPlace(t)
	i := p.primary(dirtily...)
	p.makeDirty(i)
	p.restart(i)
	p.holdAfterCheckpoint(i)
	if _, err := i.KillLeftovers(t.Context()); err != nil {
		t.Fatal(err)
	}
	a, _ := p.agent(i, "n1", "stop")
	wasPrimary(a)
	a.state.Refusal = &baton.Refusal{Reason: "its server keeps dying", Crashed: true, Dead: true}
	if err := a.stop(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	if n := a.state.Note; n == nil || n.Kind != baton.Abandoned {
		t.Errorf("note %v, expected that the primary was abandoned", n)
	}
}

// Ensure a stop lets a primary finish the checkpoint of a shutdown that somebody else began, a demote that was killed perhaps,
// and that one which it could not finish leaves a note too.
func TestStop_ShuttingDown(t *testing.T) {
	p := newPlace(t)
	i := p.primary(dirtily...)
	for _, tt := range []struct {
		name   string
		killed bool
		want   baton.NoteKind
	}{{"it ends in time", false, baton.Clean}, {"the server is killed", true, baton.Crash}} {
		if _, err := i.Postmaster(); err != nil {
			p.start(i, "ready")
		}
		p.makeDirty(i)
		pm := p.postmaster(i)
		pm.Signal(postgres.FastStop)
		checkpointer := p.holdCheckpoint(i)
		if tt.killed {
			i.KillLeftovers(t.Context())
		} else {
			go func() {
				time.Sleep(3 * silentClientLimit)
				syscall.Kill(checkpointer, syscall.SIGCONT)
			}()
		}
		a, _ := p.agent(i, "n1", "stop")
		wasPrimary(a)
		if err := a.stop(within(t, 30*time.Second)); err != nil {
			t.Fatal(err)
		}
		if n := a.state.Note; n == nil || n.Kind != tt.want {
			ctl, _ := pgdisk.ReadControl(i.DataDir)
			t.Errorf("%s: note %v, expected %q; pg_control says %q", tt.name, n, tt.want, ctl.State)
		}
		os.RemoveAll(a.store.Dir)
	}
}

// Ensure a demote does not succeed while the server runs: one whose pg_control cannot be read may be a primary.
func TestDemote_ControlGone(t *testing.T) {
	p := newPlace(t)
	i := p.primary()
	pm := p.postmaster(i)
	if err := os.Remove(filepath.Join(i.DataDir, "global", "pg_control")); err != nil {
		t.Fatal(err)
	}
	a, _ := p.agent(i, "n1", "demote")
	a.cluster = &recorder{}
	err := a.demote(within(t, 20*time.Second))
	if pm.Alive() || err != nil {
		t.Errorf("the server lives: %v; demote: %v", pm.Alive(), err)
	}
}
