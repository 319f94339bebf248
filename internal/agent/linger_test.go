package agent

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// Ensure the process that looks after a lingering postmaster kills nothing while an action is at work: a promote that takes the role
// back ends that postmaster, too, and starts a server, which was killed with it.
func TestBringBack_Locked(t *testing.T) {
	p := newPlace(t)
	i := p.primary()
	pm := p.lingering(i)
	action, _ := p.agent(i, "n1", "promote")
	release, err := action.hold(within(t, time.Second))
	if err != nil {
		t.Fatal(err)
	}
	action.vol.Parked = true
	if err := journal.SaveVolatile(action.inv.Resource, action.vol); err != nil {
		t.Fatal(err)
	}
	a, _ := p.agent(i, "n1", aftercareAction)
	done := make(chan error)
	go func() { done <- a.bringBack(within(t, time.Minute)) }()
	time.Sleep(silentClientLimit + quitLimit + time.Second)
	if !pm.Alive() {
		t.Error("it was killed beside an action that holds the lock")
	}
	release()
	if err := <-done; err != nil {
		t.Log(err) // of this cluster's answers to a start
	}
	if pm.Alive() {
		t.Error("it lives on")
	}
}

// Ensure a parked instance is still known as parked while its postmaster has removed its lock file and is not gone yet, which takes
// seconds on a starved machine: it was taken for a server that somebody else had started, and nobody brought the instance back.
func TestMonitor_LockFileGone(t *testing.T) {
	p := newPlace(t)
	i := p.primary()
	pm := p.postmaster(i)
	pm.Signal(postgres.FastStop)
	a, _ := p.agent(i, "n1", "monitor")
	if err := a.poll(within(t, 20*time.Second), "the shutdown", 10*time.Millisecond, func() (bool, error) { return !pm.Alive(), nil }); err != nil {
		t.Fatal(err)
	}
	control := filepath.Join(i.DataDir, "global", "pg_control")
	shutDown, err := os.ReadFile(control)
	if err != nil {
		t.Fatal(err)
	}
	// A server process without a title and without a lock file, as that postmaster is.
	last := exec.Command(filepath.Join(serverBin, "postgres"), "--single", "-D", i.DataDir, "postgres")
	last.Dir = i.DataDir
	last.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: i.Owner.UID, Gid: i.Owner.GID}}
	if _, err := last.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := last.Start(); err != nil {
		t.Fatal(err)
	}
	if err := a.poll(within(t, 20*time.Second), "it to be up", 10*time.Millisecond, func() (bool, error) {
		ctl, err := pgdisk.ReadControl(i.DataDir)
		return err == nil && ctl.State == pgdisk.InProduction, nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(control, shutDown, 0o600), os.Remove(filepath.Join(i.DataDir, "postmaster.pid"))); err != nil {
		t.Fatal(err)
	}
	if pm := p.postmaster(i); pm.PID != last.Process.Pid || pm.Status != "" {
		t.Fatalf("found %+v: this shows nothing", pm)
	}
	a.vol.Parked = true
	a.saveVolatile()
	if err := a.examine(within(t, 20*time.Second)); err != nil {
		t.Error(err)
	}
	if !journal.LoadVolatile(a.inv.Resource).Parked {
		t.Error("it is not parked any more")
	}
	last.Process.Kill()
	last.Wait()
	if err := a.examine(within(t, 20*time.Second)); err != nil {
		t.Error("with that process gone:", err)
	}
	if f, err := a.look(); err != nil || f.role != standby {
		t.Errorf("then its role is %d (%v), want it to be back as a standby", f.role, err)
	}
}

// Ensure a parked instance is brought back while what was kept of another time cannot be archived, however long that takes.
func TestBringBack_WhileArchiving(t *testing.T) {
	p := newPlace(t)
	tried := filepath.Join(p.dir, "tried")
	i := p.primary("-c", "archive_mode=on", "-c", "archive_command=touch "+tried+"; false")
	if err := os.Remove(tried); err != nil && !errors.Is(err, os.ErrNotExist) { // the server's own archiver may have tried
		t.Fatal(err)
	}
	keep := filepath.Join(i.DataDir, "pg_wal", keepDir)
	if err := errors.Join(os.Mkdir(keep, 0o700), os.WriteFile(filepath.Join(keep, "000000010000000000000001"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	archiving, _ := p.agent(i, "n1", aftercareAction)
	ctx, cancel := context.WithCancel(within(t, time.Minute))
	done := make(chan error)
	go func() { done <- archiving.aftercare(ctx) }()
	if err := archiving.poll(within(t, 20*time.Second), "it to archive", 10*time.Millisecond, func() (bool, error) {
		_, err := os.Stat(tried)
		return err == nil, nil
	}); err != nil {
		t.Error(err)
	}
	pm := p.postmaster(i)
	pm.Signal(postgres.FastStop)
	a, _ := p.agent(i, "n1", aftercareAction)
	a.vol.Parked = true
	a.saveVolatile()
	care, end := context.WithTimeout(t.Context(), 30*time.Second)
	defer end()
	go func() {
		a.poll(care, "it to be back", 10*time.Millisecond, func() (bool, error) {
			now, err := i.Postmaster()
			return err == nil && now.PID != pm.PID, nil
		})
		end()
	}()
	a.aftercare(care)
	if now, err := i.Postmaster(); err != nil || now.PID == pm.PID {
		t.Errorf("the instance: %+v, %v; want it started again", now, err)
	}
	cancel()
	<-done
}
