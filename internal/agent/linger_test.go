package agent

import (
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/journal"
)

// Ensure the process that looks after a lingering postmaster kills nothing while an action is at work: a promote that takes the role
// back ends that postmaster, too, and starts a server, which was killed with it.
func TestBringBack_Locked(t *testing.T) {
	p := newPlace(t)
	i := p.primary()
	pm := p.postmaster(i)
	p.signal(pm.PID, syscall.SIGSTOP) // nothing but SIGKILL ends it
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
