package agent

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// sentinelAction is a hidden action: it watches the postmaster and notices its death within milliseconds, where a
// monitor would within its interval. It decides nothing that the monitor would not have led to; the monitor is the safety
// net, and starts it again when it is gone.
const sentinelAction = "sentinel"

const (
	// sentinelInterval is how often a sentinel looks whether anything needs it while the server lives.
	sentinelInterval = time.Second
	// sentinelIdle is how long a sentinel stays without a server to watch.
	sentinelIdle = 10 * time.Second
	// crashPatience is how long a crashed primary leaves the role to others before it takes it back.
	crashPatience = 15 * time.Second
	// maxRevivals bounds how often a sentinel starts a server again in revivalWindow; beyond it the role goes elsewhere, and
	// a monitor reports a standby's failure so that Pacemaker counts it.
	maxRevivals   = 3
	revivalWindow = 10 * time.Minute
	// oursEvery is how often a sentinel asks whether the resource still is this agent's, oursLimit how long it waits for the
	// answer: nobody watches the server meanwhile.
	oursEvery = time.Minute
	oursLimit = 2 * time.Second
	// lockedFor bounds what is done under the lock of actions.
	lockedFor = 20 * time.Second
)

// ensureSentinel starts the sentinel if none runs.
func (a *Agent) ensureSentinel() {
	path := filepath.Join(journal.RunDir(a.inv.Resource), "sentinel.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return // it holds the lock as long as it lives
	}
	a.spawnDetached(sentinelAction)
}

// renewSentinel has a sentinel that began with other parameters end, and another one take its place: it would start a crashed
// server with those, or look for it where it is no more.
func (a *Agent) renewSentinel() {
	was, now := a.vol.Parameters, a.parameters()
	if a.tending || was == now {
		return
	}
	a.vol = journal.LoadVolatile(a.inv.Resource) // an action without the lock may come here, and must take nothing back
	a.vol.Parameters = now
	a.saveVolatile()
	if was != "" {
		a.spawnDetached(sentinelAction)
	}
}

// parameters is a checksum of what the user has set: a password may be among it.
func (a *Agent) parameters() string {
	h := fnv.New64a()
	fmt.Fprintf(h, "%+v", a.params)
	return fmt.Sprintf("%016x", h.Sum64())
}

// outdated reports whether this sentinel began with other parameters than those of the last action.
func (a *Agent) outdated() bool {
	now := journal.LoadVolatile(a.inv.Resource).Parameters
	return now != "" && now != a.parameters()
}

// sentinel watches one incarnation of the server after the other.
func (a *Agent) sentinel(ctx context.Context) error {
	// One with other parameters ends when it looks the next time, or has brought up what it is at; a lock is waited for in a
	// part of the time alone.
	brief, cancel := context.WithTimeout(ctx, 10*sentinelInterval)
	release, err := a.flock(brief, "sentinel.lock")
	cancel()
	if err != nil {
		return nil
	}
	defer release()
	self := executable()
	idle := a.clock.Now()
	asked := idle
	var revivals []time.Time
	had := addresses{}
	var tended care
	var crashed, stalled time.Time
	for ctx.Err() == nil {
		pm, err := a.pg.Postmaster()
		if err != nil {
			if a.clock.Now().Sub(idle) > sentinelIdle || a.outdated() {
				return nil
			}
			a.clock.Sleep(ctx, 50*time.Millisecond)
			continue
		}
		var receiver connecting
		stopped, gone, since := 0, 0, a.clock.Now()
		recovery := crashed // since when a primary recovers from a crash, zero if it does not
		for !watch(pm.Process, sentinelInterval) {
			a.unstick(ctx, pm, &receiver)
			a.endStranded(ctx, pm, had)
			a.tend(ctx, since, &tended)
			if stopped = countStopped(pm, stopped); stopped == stoppedLooks {
				if err := a.endHung(ctx, pm); err != nil {
					a.log.Error("sentinel", "error", err)
					stopped = 0 // once more
				}
			}
			if err := a.endStalled(ctx, &stalled); err != nil {
				a.log.Error("sentinel", "error", err)
			}
			if gone = a.countGone(pm, gone); gone == goneLooks {
				if err := a.endGone(ctx, pm); err != nil {
					a.log.Error("sentinel", "error", err)
				}
			}
			if now := a.clock.Now(); !a.recovers() {
				recovery = time.Time{}
			} else if recovery.IsZero() {
				recovery = now
			} else if err := a.endRecovery(ctx, recovery); err != nil {
				a.log.Error("sentinel", "error", err)
			}
			if executable() != self {
				return nil // the agent was replaced: the next monitor starts the new one's sentinel
			}
			if a.outdated() {
				return nil // whoever changed them has started another one
			}
			if now := a.clock.Now(); now.Sub(asked) > oursEvery {
				asked = now
				if !a.ours(ctx) {
					a.log.Info("the resource is another agent's by now: the sentinel ends")
					return nil
				}
			}
		}
		crashed = a.clock.Now()
		for again := true; again; {
			if again, err = a.mourn(ctx, pm, &revivals); err != nil {
				a.log.Error("sentinel", "error", err)
			}
			if again {
				a.clock.Sleep(ctx, 200*time.Millisecond) // for whoever waits for the lock
			}
		}
		idle = a.clock.Now()
	}
	return nil
}

// tendEvery bounds how often tend runs a monitor for one and the same reason, tendFor for how long after a refusal: then
// the monitor will do. unsaidFor is how long a new primary leaves it to Pacemaker to run its first.
const (
	tendEvery = 2 * time.Second
	tendFor   = time.Minute
	unsaidFor = time.Second
)

// care is what a sentinel remembers of its tending.
type care struct {
	last   time.Time // when it ran a monitor
	unsaid time.Time // since when the node has not said that it was promoted, zero if it has
}

// tend runs a monitor where what this node says of itself must not wait for the next one: attrd was restarted, and scores
// went with it; a cluster that is throttled gets to the first monitor of a new primary many seconds late, whose role goes to
// a better score meanwhile, and beside which an old primary that comes back does not know that it has diverged; no commit
// ends, and the next look may show that it is no stall; a refusal may have served, also that of a server that recovered for
// long, or a standby that came back has caught up, and until that is known there is one candidate less for the next failure.
func (a *Agent) tend(ctx context.Context, since time.Time, c *care) {
	now := a.clock.Now()
	vol := journal.LoadVolatile(a.inv.Resource)
	switch {
	case !a.unsaid(vol):
		c.unsaid = time.Time{}
	case c.unsaid.IsZero():
		c.unsaid = now
	}
	if now.Sub(c.last) < tendEvery {
		return
	}
	unsaid := !c.unsaid.IsZero() && now.Sub(c.unsaid) >= unsaidFor
	restarted := vol.Attrd != "" && a.cluster.Incarnation(vol.Attrd) != vol.Attrd
	refused := vol.Score == pacemaker.NegInfinity.String()
	behind, ready := false, false
	if young := now.Sub(since) < tendFor; young || refused {
		st, err := a.store.Load()
		behind = young && err == nil && (st.Left != nil || st.Away)
		ready = refused && err == nil && st.Refusal != nil && st.Refusal.Starting && a.ready()
	}
	if !restarted && !unsaid && !(refused && a.age(vol.Refused) < tendFor) && !ready && !behind && vol.Stall == nil {
		return
	}
	c.last = now
	if !a.ours(ctx) {
		return
	}
	inv := a.inv
	inv.Action, inv.Probe, inv.Timeout = "monitor", false, 20*time.Second
	m := New(inv, a.env, io.Discard)
	m.tending = true
	m.Run()
}

// unsaid reports whether this node is a primary of which the others have not heard: its promotion is done, and no monitor was here.
func (a *Agent) unsaid(vol journal.Volatile) bool {
	if !vol.Live || vol.Asserted != 0 || a.pg.HasStandbySignal() {
		return false
	}
	ctl, err := pgdisk.ReadControl(a.pg.DataDir)
	return err == nil && ctl.State == pgdisk.InProduction
}

// ready reports whether the server takes connections, by its own word, which is cheap to ask for.
func (a *Agent) ready() bool {
	pm, err := a.pg.Postmaster()
	return err == nil && pm.Status == "ready"
}

// ours reports whether the resource still is this agent's, as far as that can be found out.
func (a *Agent) ours(ctx context.Context) bool {
	brief, cancel := context.WithTimeout(ctx, oursLimit)
	defer cancel()
	ours, err := a.cluster.Ours(brief)
	return ours || err != nil
}

// sentinelRuns reports whether a sentinel is there to act on a crash.
func (a *Agent) sentinelRuns() bool {
	f, err := os.OpenFile(filepath.Join(journal.RunDir(a.inv.Resource), "sentinel.lock"), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) != nil
}

// watch returns true when the process has died, false after the limit. It waits on a pidfd; a kernel without them is
// asked again and again.
func watch(p postgres.Process, limit time.Duration) bool {
	const sysPidfdOpen = 434
	fd, _, errno := syscall.Syscall(sysPidfdOpen, uintptr(p.PID), 0, 0)
	if errno != 0 {
		for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if !p.Alive() {
				return true
			}
		}
		return !p.Alive()
	}
	defer syscall.Close(int(fd))
	if !p.Alive() {
		return true // the pid was taken over before the pidfd was opened
	}
	pollfd := struct {
		fd      int32
		events  int16
		revents int16
	}{fd: int32(fd), events: 1}
	ts := syscall.NsecToTimespec(int64(limit))
	syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&pollfd)), 1, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	runtime.KeepAlive(&pollfd)
	return !p.Alive()
}

// executable identifies the agent's binary on disk: another inode is another agent.
func executable() uint64 {
	path, err := os.Executable()
	if err != nil {
		return 0
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Sys().(*syscall.Stat_t).Ino
}
