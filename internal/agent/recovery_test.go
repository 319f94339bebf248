package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

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
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Microsecond) {
		if ctl, err := pgdisk.ReadControl(i.DataDir); err == nil && ctl.State == pgdisk.ShuttingDown {
			break
		}
		if time.Now().After(end) {
			p.t.Fatalf("pg_control never said %q", pgdisk.ShuttingDown)
		}
	}
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

// Ensure a demote or a stop does not take the end of that checkpoint for the end of the server, which goes on to write.
func TestEndPrimary_EndOfRecovery(t *testing.T) {
	p := newPlace(t)
	i := p.primary(dirtily...)
	p.makeDirty(i)
	p.restart(i)
	checkpointer := p.holdCheckpoint(i)
	startup := p.child(i, "startup")
	p.signal(startup, syscall.SIGSTOP) // which would go on at once
	p.signal(checkpointer, syscall.SIGCONT)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		if ctl, err := pgdisk.ReadControl(i.DataDir); err == nil && ctl.State == pgdisk.ShutDown {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the checkpoint did not end")
		}
	}
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
	p.run(i, "pg_ctl", "-D", i.DataDir, "-m", "fast", "-w", "stop")
	b, _ := p.agent(i, "n3", "monitor")
	b.release = func() {} // its sentinel is a's
	if err := b.examine(within(t, 10*time.Second)); !errors.As(err, &got) || got.code != ocf.NotRunning {
		t.Errorf("a monitor of a server that a person has stopped says %v, expected that it does not run", err)
	}
}
